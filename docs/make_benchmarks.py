"""Write docs/benchmarks.md from benchmarks/results: no quoted figure can differ from its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
HEAD = """\
# Benchmarks

For people who want to know how fast, how small and how right glint is, and to check it. Made from
`benchmarks/results/*.jsonl` by `make docs`; a test compares the two.

Every figure is of a shared machine with two CPU cores, and every comparison of one run; nothing
here was measured on a GPU. `benchmarks/NAME.py` makes them again, with `--quick` in a minute at
smaller sizes. Where a target is missed it says so.

## In short
"""
# words with a place for each figure: (file, figure, format)
SHORT: list[tuple[str, list[tuple[str, str, str]]]] = [
    ("LFW through `glint shard` and `glint eval`, a published 1 M-parameter recogniser, no flip "
     "(its README states 99.38 %): {}", [("real_faces", "LFW accuracy, 6000 pairs, no flip", "%")]),
    ("head, a step's CPU time against `partial_fc_v2.py`, same optimiser, 1 M classes, rate 0.1 "
     "and 0.02: {} and {} times less",
     [("head", "1000000 r=0.1 dense_exact: times as fast as the reference", ".1f"),
      ("head", "1000000 r=0.02 dense_exact: times as fast as the reference", ".1f")]),
    ("the same as a drop-in in the reference's own `train_v2.py`, 1 M classes, rate 0.1, batch "
     "128: {} times less; losses after 100 steps in float64 differ by {}",
     [("drop_in", "1000000 classes, rate 0.1, batch 128: times less CPU for the head's part",
       ".1f"),
      ("drop_in", "rate 0.1, 2 rank(s), 100 steps: largest relative difference of a loss", ".0e")]),
    ("head, peak memory against it, with momentum and without: {} and {} times",
     [("head", "1000000 r=0.1 dense_exact: peak memory over the reference's", ".2f"),
      ("head", "1000000 r=0.1 none: peak memory over the reference's", ".2f")]),
    ("full softmax over 1 M classes, batch 1,024: {} GiB above the weights",
     [("head", "full softmax, 1000000 classes, batch 1024: GiB above the weights", ".2f")]),
    ("a whole training step, toy net, 100,000 classes, rate 0.1, loader included, against the "
     "reference's loop: {} times",
     [("train", "train: glint, lazy_decay over the reference, cpu, 100000 classes", ".1f")]),
    ("ten-fold verification of 6,000 pairs against the field's loops, equal to the last digit: {} "
     "times as fast ({} against the loop for accuracy alone)",
     [("train", "verification: accuracy and VAL over the field's loops", ".0f"),
      ("train", "verification: the same over its accuracy loop alone", ".0f")]),
    ("decoded stream against webdataset, mosaicml-streaming and litdata, per CPU-second: {}, {} "
     "and {} times",
     [("stream", "speed glint / webdataset, per CPU-second", ".2f"),
      ("stream", "speed glint / mosaicml-streaming, per CPU-second", ".1f"),
      ("stream", "speed glint / litdata, per CPU-second", ".2f")]),
    ("seek to any sample of an epoch of 42 M: {} ms; memory of its index: {} MiB a rank",
     [("stream", "index 42M seek, milliseconds", ".1f"),
      ("stream", "index 42M memory of each rank's own, MiB", ".0f")]),
    ("sharding, images per CPU-second against webdataset's ShardWriter, checksums, index and "
     "read-back included: {} times",
     [("shard", "shard: images per CPU-second over ShardWriter", ".1f")]),
    ("exact search of all pairs of 100,000 centres against faiss's flat index: {} times less CPU; "
     "360,232 centres: {} s, {} s end to end",
     [("conflicts", "exact join: faiss at its best over glint, CPU-seconds", ".1f"),
      ("conflicts", "seconds of 360232 centres", ".0f"),
      ("conflicts", "end to end: seconds", ".0f")]),
    ("people of another collection found in LFW by `--against`: {} at a precision of {} (a centre "
     "cosine at its best threshold: {})",
     [("unlike_halves", "y1, cross source, --against, draw 0: recall", "%"),
      ("unlike_halves", "y1, cross source, --against, draw 0: precision", ".3f"),
      ("unlike_halves", "y1, cross source, --against, draw 0: recall of cosine at its best, 0.507",
       "%")]),
    ("distillation, synthetic world, three seeds, TAR at FAR 1e-3 of the student alone and "
     "distilled: {} and {} %",
     [("distill", "distill: TAR at FAR 1e-3, %, alone, mean of 3", ".1f"),
      ("distill", "distill: TAR at FAR 1e-3, %, distilled, mean of 3", ".1f")]),
]  # fmt: skip
ABOUT = ("machine", "cpu", "cores", "load", "python", "torch", "numpy", "pyarrow", "commit", "date")


def figures(name: str) -> list[dict[str, Any]]:
    """Return the lines of a file of results; those of its head stand in every line after it."""
    about: dict[str, Any] = {}
    found = []
    for text in (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line.get("figure") == "machine":
            about = line["value"]
        elif "figure" in line:
            found.append({**about, **line})
        elif "benchmark" in line:
            about = line
    return found


def quoted(name: str, figure: str, form: str) -> str:
    """Return a figure as it is quoted, the last of its name. Raises LookupError."""
    values = [line["value"] for line in figures(name) if line["figure"] == figure]
    if not values:
        raise LookupError(f"no figure {figure!r} in {name}.jsonl")
    return f"{100 * values[-1]:.2f} %" if form == "%" else format(values[-1], form)


def page() -> str:
    """Return docs/benchmarks.md as text."""
    lines = [HEAD]
    for words, places in SHORT:
        lines.append("- " + words.format(*(quoted(*place) for place in places)))
    lines += ["", "## Floors and ceilings", "", "Every figure with a target, as it was last seen.",
              ""]  # fmt: skip
    for path in sorted(RESULTS.glob("*.jsonl")):
        found = [line for line in figures(path.stem) if line.get("holds") is not None]
        if not found or path.stem in ("faults", "fuzz"):
            continue
        about = found[-1]
        facts = ", ".join(f"{key} {about[key]}" for key in ABOUT if key in about)
        missed = sum(not line["holds"] for line in found)
        lines += [
            f"### `benchmarks/{path.stem}.py`", "",
            f"{facts}. {len(found) - missed} of {len(found)} hold.", "",
            "| figure | value | target | |", "|---|---|---|---|",
        ]  # fmt: skip
        lines += [
            f"| {line['figure']} | {_value(line['value'])} | {line.get('target')} "
            f"| {'' if line['holds'] else '**missed**'} |".replace(" |  |", " | |")
            for line in _few(found)
        ]
        if len(_few(found)) < len(found):
            lines += ["", f"{len(found)} in all; these are those that are missed and the first "
                      "that hold."]  # fmt: skip
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def _few(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what fits a page: all, or the missed ones and the first that hold."""
    if len(found) <= 40:
        return found
    good = [line for line in found if line["holds"]][:20]
    return [line for line in found if not line["holds"] or line in good]


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    (ROOT / "docs" / "benchmarks.md").write_text(page(), encoding="utf-8")
