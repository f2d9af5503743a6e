"""Every number of `glint card`, counted again from the tars, the tables and the source.

The card reads whole tables and holds no block; what could cut it short is a shard (10,000 samples:
three here), the five commonest sizes it shows (eight here) and the doubling bins of its histogram
(twelve here). 20,010 images.
"""

# C identities

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import simplejpeg

from glint.pipelines.dataset import card, drop
from glint.shards import labels

SAID = {"licence": "CC-BY-4.0", "consent": "All signed.", "contact": "data@example.org"}


def section(text: str, title: str) -> str:
    found = re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^##+ |\Z)", text, re.M | re.S)
    assert found, title
    return found[1]


def table(text: str) -> dict[str, str]:
    """Read the rows of two cells of a Markdown table."""
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text, re.M))


def bins(count_C: list[int]) -> list[tuple[str, int]]:
    """Count identities by images in bins that double: 1, 2-3, 4-7 and so on; no bin left out."""
    tally = Counter(count.bit_length() for count in count_C)
    names = {0: "0", 1: "1"} | {p: f"{2 ** (p - 1)}-{2**p - 1}" for p in range(2, 40)}
    return [(names[p], tally[p]) for p in range(0 if tally[0] else 1, max(tally) + 1)]


def check(root: Path, samples: list, bad: dict[str, int], read: int, erased: int) -> str:
    """Hold the numbers of a card that need no label version against the dataset's files."""
    text = (root / "README.md").read_text()
    source = pq.read_table(root / "identities.parquet")["source_label"].to_pylist()
    per = Counter(row.label for row in samples)
    count_C = [per[label] for label in range(len(source))]
    tars = sorted((root / "data").glob("*.tar"))
    holds = section(text, "What it holds")
    held = table(holds)
    assert held["images"] == str(len(samples)) and held["shards"] == str(len(tars))
    assert held["identities"] == str(len(source))
    assert held["identities with an image"] == str(sum(count > 0 for count in count_C))
    assert held["bytes in shards"] == str(sum(path.stat().st_size for path in tars))
    spread = f"{min(count_C)}, {np.median(count_C):g}, {max(count_C)}"
    assert held["images per identity: least, median, most"] == spread
    sizes = Counter(simplejpeg.decode_jpeg_header(row.image)[1::-1] for row in samples)
    want = sorted(sizes.items(), key=lambda one: (-one[1], one[0]))[:5]
    found = re.findall(r"^\| images of (\d+) x (\d+) pixels \| (\d+) \|$", holds, re.M)
    assert [(int(w), int(h), int(n)) for w, h, n in found] == [(*wh, n) for wh, n in want]
    drawn = re.findall(r"^ *([\d-]+) +(\d+)(?: #+)?$", section(text, "Images per identity"), re.M)
    assert [(name, int(n)) for name, n in drawn] == bins(count_C)
    told = section(text, "What was left out")
    line = f"{read} records were read = {len(samples)} written + {sum(bad.values())} quarantined"
    assert line + (f" + {erased} erased." if erased else ".") in told
    assert {k: int(v) for k, v in table(told).items() if k in bad} == bad
    manifest = json.loads((root / "manifest.json").read_text())
    assert f"```text\n{manifest['digest']}\n```" in text
    for entry, path in zip(manifest["shards"], tars, strict=True):
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"train-{{000000..{len(tars) - 1:06d}}}.tar" in text
    assert "- 10K<n<100K" in text.split("---\n")[1]
    return text


def test_every_number(world, rows, copied, targets, tmp_path: Path) -> None:
    root, samples = copied(world.root), rows(world.root)
    source = pq.read_table(root / "identities.parquet")["source_label"].to_pylist()
    who = Counter(world.image[row.image][0] for row in samples)
    assert [who[name] for name in source] == [
        n for _, n in sorted(Counter(row.label for row in samples).items())
    ]
    target_C = np.arange(len(source))
    target_C[100:900:2] = target_C[101:901:2]  # 400 labels merged into their neighbours
    target_C = np.unique(target_C, return_inverse=True)[1]
    mask_m2 = np.array([[a, a + 7] for a in range(0, 2000, 3)])
    labels.apply(root, target_C, mask_m2, {"stage": "dedup-conflicts", "report": "by hand"})
    drop.drop(root, ["label:101", "label:2000"], "asked")
    drop.drop(root, ["label:7"], "asked again")
    card.card(root, **SAID)
    text = check(root, samples, world.bad, world.read, 0)
    now_C, now_m2 = targets(root, len(source))
    some = now_C[now_C >= 0]
    told = " ".join(section(text, "Identity conflicts").split())
    assert (
        f"Label version 3 is in force: {len({*some.tolist()})} classes. "
        f"{len(some) - len({*some.tolist()})} labels were merged into others as the same person, "
        f"{int((now_C < 0).sum())} dropped, {len(now_m2)} pairs of classes masked" in told
    )
    assert int((now_C < 0).sum()) == 4 and len(some) - len({*some.tolist()}) == 399
    assert "So far 2 request(s) were honoured, for 4 identities and 0 single images." in " ".join(
        text.split()
    )
    assert re.findall(r"^\| (apply|undo) \| (\d) \| ([\w-]+) \|", text, re.M) == [
        ("apply", "1", "dedup-conflicts"), ("apply", "2", "drop"), ("apply", "3", "drop"),
    ]  # fmt: skip

    gone = {source[i] for i in (7, 100, 101, 2000)}
    drop.drop(root, [], "asked", erase=tmp_path / "less")
    card.card(tmp_path / "less", **SAID)
    left = rows(tmp_path / "less")
    assert Counter(row.image for row in left) == Counter(
        row.image for row in samples if world.image[row.image][0] not in gone
    )
    check(tmp_path / "less", left, world.bad, world.read, len(samples) - len(left))
