"""README.md of a dataset: numbers from its tables, words from its holder, who must give some."""

# C labels as sharded

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glint.errors import BusyError, InputError, UsageError
from glint.files import atomic
from glint.results import datasets as results
from glint.shards import labels, tombstones
from glint.shards.dataset import Dataset

Ints = npt.NDArray[np.int64]
TEMPLATES = Path(__file__).parent / "templates"
# What must be said, and the option that says it.
REQUIRED = {"licence": "--license", "consent": "--consent", "contact": "--contact"}
FIRST_WORDS = {
    "overlap": "Not stated: whether identities of LFW, CFP, AgeDB, IJB or MegaFace were removed, "
    "how, and at which threshold.",
    "biases": "Not stated: how many identities and images there are per group, where known.",
    "intended-use": "Research on face recognition within the licence and the consent above.",
    "out-of-scope": "Identifying, tracking or profiling people without their consent; any decision "
    "about a person; publishing images; giving the data away against the licence.",
    "notes": "Nothing yet.",
}
_EMPTY = {"", "-", "?", "...", "todo", "tbd", "fixme", "xxx", "n/a", "na", "none", "unknown"}
_EMPTY |= {"not stated", "not stated."}
# The hub knows these by name; any other licence is `other` with a name of its own.
_HUB = (
    "apache-2.0 mit bsd-2-clause bsd-3-clause cc0-1.0 cc-by-4.0 cc-by-3.0 cc-by-sa-4.0 "
    "cc-by-sa-3.0 cc-by-nc-4.0 cc-by-nc-3.0 cc-by-nd-4.0 cc-by-nc-nd-4.0 cc-by-nc-nd-3.0 "
    "cc-by-nc-sa-4.0 cc-by-nc-sa-3.0 odbl odc-by cdla-permissive-2.0 cdla-sharing-1.0 pddl "
    "unlicense"
)
_BLOCK = re.compile(r"<!-- glint:keep ([a-z0-9-]+) -->\n(.*?)<!-- glint:end \1 -->", re.DOTALL)
_MARK = re.compile(r"<!-- glint:(?:keep|end) ([a-z0-9-]+) -->")
BAR = 50


def kept(path: Path) -> dict[str, str]:
    """Return the kept blocks of an earlier card; none where there is no card.

    Raises BusyError GL0004 where the file is not glint's, InputError GL0307 where a mark is lost.
    """
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    found = dict(_BLOCK.findall(text))
    marks = _MARK.findall(text)
    if not marks:
        what = "the file is not a card that glint made"
        hint = "move it away; its text can go between the marks of the new card"
        raise BusyError("GL0004", what, where=str(path), hint=hint)
    for name in marks:
        if name not in found or marks.count(name) != 2:
            what = f"expected one '<!-- glint:keep {name} -->' and one "
            what += f"'<!-- glint:end {name} -->' behind it"
            hint = "put the marks right, so that no text between them gets lost"
            raise InputError("GL0307", what, where=str(path), hint=hint)
    return {name: body.strip() for name, body in found.items()}


def _title(path: Path) -> str:
    """Return the title of an earlier card, or ''."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.search(r"^pretty_name: (\".*\")$", text, re.MULTILINE)
    return str(json.loads(found[1])) if found else ""


def _name(dataset: Dataset) -> str:
    return dataset.name.rpartition("/")[2] if dataset.remote else dataset.root.resolve().name


def words(given: Mapping[str, str | None], old: Mapping[str, str], where: str) -> dict[str, str]:
    """Return the text of every block: as given now, else as kept, else the first words.

    Raises UsageError GL0002 naming the option of a required one that says nothing.
    """
    told = {**FIRST_WORDS, **old}
    for name, option in REQUIRED.items():
        text = given.get(name)
        if text is None:
            text = old.get(name, "")
        if text.strip().lower() in _EMPTY:
            what = "a card of biometric data cannot leave this open: expected "
            what += f"a text, found {text.strip()!r}"
            hint = f"{option} TEXT, or between the marks of {where}"
            raise UsageError("GL0002", what, where=option, hint=hint)
        told[name] = text.strip()
    for name in given:
        if _MARK.search(told[name]) or "-->" in told[name]:
            what = "the text holds a mark or the end of a comment"
            raise UsageError("GL0002", what, where=REQUIRED[name])
    return told


def histogram(count_C: Ints) -> str:
    """Draw images per identity in bins that double: '0', '1', '2-3', '4-7' and so on."""
    if not len(count_C):
        return "no identities"
    power_C = np.where(count_C > 0, np.floor(np.log2(np.maximum(count_C, 1))) + 1, 0).astype(int)
    tally = np.bincount(power_C)
    lines = []
    for power in range(0 if tally[0] else 1, len(tally)):
        low, high = (2 ** (power - 1), 2**power - 1) if power else (0, 0)
        name = str(low) if low == high else f"{low}-{high}"
        size = int(tally[power])
        bar = "#" * (max(1, round(BAR * size / int(tally.max()))) if size else 0)
        lines.append(f"{name:>15s} {size:10d} {bar}".rstrip())
    return "\n".join([f"{'images':>15s} identities", *lines])


def hub_license(text: str) -> tuple[str, str]:
    """Return the hub's name of a licence ('other' where it has none), and the licence's own."""
    first = text.strip().splitlines()[0].strip()
    return (first.lower() if first.lower() in _HUB.split() else "other"), first


def _size_category(n: int) -> str:
    """Return the hub's name of a size: n<1K, 1K<n<10K and so on."""
    names = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B")
    power = len(str(n)) - 3  # 10^(power + 2) <= n
    if power < 1:
        return "n<1K"
    low = min(power, len(names) - 1)
    return f"{names[low - 1]}<n<{names[low]}"


def _options(told: dict[str, Any]) -> str:
    """Return the options of `glint align` as a command line has them."""
    names = ("detector", "faces", "max_faces", "min_score", "min_face", "input_size", "quality",
             "subsampling")  # fmt: skip
    words = [f"--{name.replace('_', '-')} {shlex.quote(str(told[name]))}" for name in names]
    return " ".join(["", *words, "" if told["antialias"] else "--no-antialias"])


def _commands(manifest: dict[str, Any], history: list[dict[str, Any]]) -> list[str]:
    """Return the command lines that lead to this dataset, folders by name."""
    steps = manifest.get("derived", [])
    sizes = [step["samples_per_shard"] for step in steps if "samples_per_shard" in step]
    sizes.append(manifest["samples_per_shard"])
    first = f"glint shard {shlex.quote(str(manifest['source']))} DATASET"
    if told := manifest.get("recognised", {}).get("align"):
        first = first.replace("shard", "align", 1) + _options(told)
        sizes[0] //= told["max_faces"] if told["faces"] == "all" else 1
    if steps and steps[0]["by"] == "merge":
        names = " ".join(shlex.quote(one["name"]) for one in steps[0]["from"])
        first = f"glint merge {names} DATASET"
    lines = [f"{first} --samples-per-shard {sizes[0]} --seed {manifest['seed']}"]
    for step, size in zip((step for step in steps if step["by"] != "merge"), sizes[1:]):
        again = f"glint reshard OLD DATASET --samples-per-shard {size}"
        erased = "glint drop OLD --reason TEXT --erase DATASET"
        lines.append(again if step["by"] == "reshard" else erased)
    for line in history:
        stage = (line.get("why") or {}).get("stage")
        if line.get("op") == "apply" and stage == "dedup-conflicts":
            lines.append("glint dedup-conflicts apply REPORT")
        elif line.get("op") == "apply" and stage == "drop":
            lines.append("glint drop DATASET --identity LABEL --reason TEXT")
    return [" ".join(line.split()) for line in lines]


def _origins(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    steps = manifest.get("derived", [])
    if steps and steps[0]["by"] == "merge":
        return [
            {
                "source": f"{one['name']} ({one['source']})",
                "layout": "dataset",
                "images": one["samples"],
                "identities": one["identities"],
                "digest": one["digest"],
            }
            for one in steps[0]["from"]
        ]
    return [
        {
            "source": manifest["source"],
            "layout": manifest["layout"],
            "images": manifest["read"],
            "identities": manifest["identities"],
            "digest": steps[0]["from"] if steps else manifest["digest"],
        }
    ]


def _history(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    shown = []
    for line in lines:
        why = dict(line.get("why") or {})
        by = str(why.pop("stage", ""))
        details = ", ".join(f"{k} {_short(v)}" for k, v in sorted(why.items()))
        shown.append({"op": line["op"], "version": line["version"], "by": by, "details": details})
    return shown


def _short(value: object) -> str:
    if isinstance(value, list) and len(value) > 8:
        return f"{len(value)} of them"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _sizes(dataset: Dataset) -> list[dict[str, int]]:
    """Return the commonest image sizes, at most five."""
    width_n, height_n = (dataset.column(c).to_numpy().astype(np.int64) for c in ("width", "height"))
    size_n, count_n = np.unique(width_n << 32 | height_n, return_counts=True)
    first = np.argsort(-count_n, kind="stable")[:5]
    return [
        {"width": size >> 32, "height": size & 0xFFFFFFFF, "images": count}
        for size, count in zip(size_n[first].tolist(), count_n[first].tolist())
    ]


def facts(dataset: Dataset) -> dict[str, Any]:
    """Return what the card says without being told: counts, labels, history, commands."""
    said = dataset.manifest
    count_C = dataset.identities().column("count").to_numpy()
    table = labels.current(dataset.root, dataset.classes)
    history = labels.history(dataset.root)
    stones = tombstones.read(dataset.root)
    in_force = int((table.target >= 0).sum())
    return {
        "written": dataset.n,
        "read": said["read"],
        "quarantined": said["quarantined"],
        "erased": int(said.get("erased", 0)),
        "identities": dataset.classes,
        "peopled": int((count_C > 0).sum()),
        "shards": len(dataset.shards),
        "bytes": sum(int(entry["bytes"]) for entry in said["shards"]),
        "least": int(count_C.min(initial=10**9 if len(count_C) else 0)),
        "median": f"{np.median(count_C) if len(count_C) else 0:g}",
        "most": int(count_C.max(initial=0)),
        "histogram": histogram(count_C),
        "sizes": _sizes(dataset),
        "origins": _origins(said),
        "reasons": sorted(said["quarantine_reasons"].items()),
        "labels": {
            "version": table.version,
            "classes": table.classes,
            "merged": in_force - table.classes,
            "dropped": len(table.target) - in_force,
            "masks": len(table.masks),
            "images": len(table.row),
            "left_out": int((table.label < 0).sum()),
            "moved": int((table.label >= 0).sum()),
        },
        "history": _history(history),
        "commands": _commands(said, history),
        "tombstones": {
            "requests": len(stones),
            "identities": len({i for line in stones for i in line.get("labels", ())}),
            "images": len({k for line in stones for k in line.get("keys", ())}),
        }
        if stones
        else None,
        "glint": said["glint"],
        "seed": said["seed"],
        "digest": dataset.digest,
        "samples_per_shard": said["samples_per_shard"],
        "last_shard": f"{max(len(dataset.shards) - 1, 0):06d}",
        "size_category": _size_category(dataset.n),
    }


def render(told: dict[str, str], values: dict[str, Any]) -> str:
    """Fill the template: `told` are the kept blocks, by name."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    def block(name: str) -> str:
        return f"<!-- glint:keep {name} -->\n{told[name]}\n<!-- glint:end {name} -->"

    # Markdown, not HTML: nothing to escape; `cell` and `line` keep foreign text in its place.
    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    jinja.filters.update(
        json=lambda text: json.dumps(str(text)),
        line=_line,
        cell=lambda text: _line(text).replace("|", "\\|"),
    )
    others = sorted(set(told) - set(FIRST_WORDS) - set(REQUIRED))
    hub, own = hub_license(told["licence"])
    return jinja.get_template("card.md.jinja").render(
        block=block, others=others, hub_license=hub, license_name=own, **values
    )


def _line(text: object) -> str:
    """Return foreign text as one harmless line."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("`", "'")


def card(
    root: str | os.PathLike[str],
    *,
    licence: str | None = None,
    consent: str | None = None,
    contact: str | None = None,
    title: str | None = None,
    dry_run: bool = False,
) -> results.Card:
    """Write DATASET/README.md, keeping what stands between the marks of an earlier one.

    Licence, consent and contact must be given, now or between the marks. Raises UsageError GL0002
    naming the option, BusyError GL0004 for a file that is not glint's, InputError GL0307.
    """
    dataset = Dataset(root)
    path = dataset.root / "README.md"
    old = kept(path)
    given = {
        name: text
        for name, text in (("licence", licence), ("consent", consent), ("contact", contact))
        if text is not None
    }
    shown = f"{dataset.name}/README.md" if dataset.remote else str(path)
    told = words(given, old, shown)
    values = {**facts(dataset), "title": title or _title(path) or _name(dataset)}
    text = render(told, values)
    if not dry_run:
        atomic.sweep(path.parent, path.name)
        atomic.write_bytes(path, text.encode())
        dataset.publish("README.md")
    hub, _ = hub_license(told["licence"])
    return results.Card(
        dry_run=dry_run,
        card=shown,
        license=hub,
        text=text,
        replaced=sorted(name for name in given if old.get(name, told[name]) != told[name]),
        kept=sorted(name for name in old if name not in given),
    )
