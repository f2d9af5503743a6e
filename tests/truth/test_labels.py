"""`dedup-conflicts apply` and `undo` against a plain union-find, and what training then reads.

Reports are written by hand; expected targets come from a union-find over identities.parquet, in
the order that docs/conflicts.md and docs/dataset.md state. The stage holds whole tables and no
block of its own; its files are Parquet's, whose pages take 2^20 bytes and row groups 2^20 rows: the
quick tests have 2,470 identities and 20,010 images, the slow one 1.3 million identities.
"""

# C labels as sharded, m pairs

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from glint.pipelines.conflicts import apply
from glint.pipelines.dataset import drop
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.stream.loader import Images, Stream

Pairs = list[tuple[int, int]]


class Sets:
    """A union-find whose roots are smallest members."""

    def __init__(self, count: int) -> None:
        self.up = list(range(count))

    def root(self, one: int) -> int:
        while self.up[one] != one:
            self.up[one] = one = self.up[self.up[one]]
        return one

    def join(self, a: int, b: int) -> None:
        a, b = sorted((self.root(a), self.root(b)))
        self.up[b] = a


def settled(target: list[int], masks: Pairs, merge: Pairs, mask: Pairs) -> tuple[list[int], Pairs]:
    """Give targets and masks after a report on labels as sharded, on top of those in force.

    Labels of one target, or of a merged pair, are one person; that one of them is dropped takes
    nothing from the others. Persons are numbered in the order of their smallest target.
    """
    sets, first = Sets(len(target)), dict[int, int]()
    for label, old in enumerate(target):
        if old >= 0:
            sets.join(first.setdefault(old, label), label)
    for a, b in merge:
        sets.join(a, b)
    number: dict[int, int] = {}
    for old in range(len(first)):
        number.setdefault(sets.root(first[old]), len(number))
    now = [-1 if old < 0 else number[sets.root(label)] for label, old in enumerate(target)]
    apart = {(now[first[a]], now[first[b]]) for a, b in masks} | {(now[a], now[b]) for a, b in mask}
    kept = {(min(pair), max(pair)) for pair in apart if -1 not in pair and pair[0] != pair[1]}
    return now, sorted(kept)


def report(folder: Path, root: Path, version: int, merge: Pairs, mask: Pairs, keep: Pairs) -> Path:
    """Write a report folder by hand: what `apply` reads of docs/conflicts.md."""
    folder.mkdir()
    classes = json.loads((root / "manifest.json").read_text())["identities"]
    a, b = np.array([*merge, *mask, *keep]).T
    verdict = ["merge"] * len(merge) + ["mask"] * len(mask) + ["keep"] * len(keep)
    nothing, words = pa.array([0.0] * len(a)), pa.array(["by hand"] * len(a))
    floats = ("cosine", "cross_mean", "cross_q10", "score", "probability")
    some = pa.array([1] * len(a), pa.int64())
    columns = {"a": a, "b": b, "verdict": verdict, "reason": words, "n_a": some, "n_b": some}
    columns |= dict.fromkeys(floats, nothing)
    pq.write_table(pa.table(columns), folder / "pairs.parquet")
    sets = Sets(classes)
    for one, other in merge:
        sets.join(one, other)
    member = sorted({label for pair in merge for label in pair})
    group = [sets.root(label) for label in member]
    pq.write_table(pa.table({"group": group, "label": member}), folder / "groups.parquet")
    named = {"path": "", "absolute": str(root), "label_version": version}
    named["digest"] = json.loads((root / "manifest.json").read_text())["digest"]
    about = {"format": "glint/conflicts@1", "dataset": named}
    (folder / "conflicts.json").write_text(json.dumps(about))
    return folder


def tables(root: Path) -> dict[str, bytes]:
    """Give the files that say what is in force: versions and which one, without the history."""
    return {
        path.name: path.read_bytes()
        for path in (root / "labels").iterdir()
        if path.suffix == ".parquet" or path.name == "current.json"
    }


def drawn(seed: int, classes: int, merges: int, masks: int) -> tuple[Pairs, Pairs, Pairs]:
    """Draw verdicts: chains and single pairs to merge, pairs to mask and to keep apart."""
    rng = np.random.default_rng(seed)
    chain = rng.permutation(classes)[: merges // 2 + 1].tolist()
    merge = [(a, b) for a, b in pairwise(chain) if (a + b) % 9]  # of up to dozens
    pairs = rng.integers(0, classes, (merges - len(merge) + 2 * masks, 2))
    pairs = [(a, b) for a, b in pairs.tolist() if a != b]
    cut = merges - len(merge)
    return merge + pairs[:cut], pairs[cut : cut + masks], pairs[cut + masks :]


def holds(root: Path, targets, want: tuple[list[int], Pairs]) -> None:
    target_C, mask_m2 = targets(root, len(want[0]))
    assert target_C.tolist() == want[0]
    assert [tuple(pair) for pair in mask_m2.tolist()] == want[1]


def test_two_reports_on_top_of_a_drop_undone_and_redone(
    world, rows, copied, shown, targets, tmp_path: Path
) -> None:
    root = copied(world.root)
    source = pq.read_table(root / "identities.parquet")["source_label"].to_pylist()
    odd = [i for i, name in enumerate(source) if name.startswith("odd")]
    drop.drop(root, [f"label:{i}" for i in odd], "no size of ours")
    place, masks = iter(range(len(source))), []
    target = [-1 if i in odd else next(place) for i in range(len(source))]
    holds(root, targets, (target, masks))
    before = [tables(root)]
    folders, wants = [], [(target, masks)]
    for number, (merges, masked) in enumerate(((900, 700), (300, 200))):
        verdicts = drawn(number, len(source), merges, masked)
        folders.append(report(tmp_path / f"conf{number}", root, 1 + number, *verdicts))
        told = apply.apply(folders[-1])
        wants.append(settled(*wants[-1], *verdicts[:2]))
        holds(root, targets, wants[-1])
        assert told.classes == max(wants[-1][0]) + 1 and told.masks == len(wants[-1][1])
        before.append(tables(root))
        assert {k: v for k, v in before[-1].items() if k in before[-2]} | {
            "current.json": before[-2]["current.json"]
        } == before[-2], "an older version was touched"
    assert len({*wants[2][0]}) < len({*wants[1][0]}) < len({*wants[0][0]})

    for number in (1, 0):
        apply.undo(folders[number])
        holds(root, targets, wants[number])
        now = tables(root)
        assert now["current.json"] == before[number]["current.json"]
        assert all(now[name] == data for name, data in before[2].items() if name != "current.json")
    for number in (1, 2):
        labels.redo(root)
        holds(root, targets, wants[number])
    assert tables(root) == before[2]

    merged = dict(zip(source, wants[2][0]))
    dataset = Dataset(root)
    stream = Stream(
        dataset,
        labels=labels.current(root, dataset.classes),
        batch=128,
        drop_last=False,
        images=Images(size=16),
    )
    seen: dict[tuple[str, int], int] = {}
    for batch in stream.batches(0):
        for pixel, label in zip(batch.image.numpy(), batch.label.tolist()):
            seen[shown[pixel.tobytes()]] = label
    in_tar = {
        shown[simplejpeg.decode_jpeg(row.image).tobytes()]: wants[2][0][row.label]
        for row in rows(world.root)
        if row.image not in world.odd
    }
    assert seen == in_tar == {whose: merged[whose[0]] for whose in shown.values()}
    assert stream.epoch_samples == len(in_tar) == 20_000


@pytest.mark.slow
def test_more_identities_than_a_row_group(targets, tmp_path: Path) -> None:
    """1.3 million identities (a row group holds 2^20), 400,000 pairs to merge, masks over all."""
    root, classes = tmp_path / "set", 1_300_000
    root.mkdir()
    about = {
        "format": "glint/dataset@1", "written": 0, "identities": classes, "shards": [],
        "digest": "sha256:by hand",
    }  # fmt: skip
    (root / "manifest.json").write_text(json.dumps(about))
    verdicts = drawn(5, classes, 400_000, 50_000)
    folder = report(tmp_path / "conf", root, 0, *verdicts)
    apply.apply(folder)
    assert pq.ParquetFile(root / "labels/v0001.parquet").num_row_groups == 2
    holds(root, targets, settled(list(range(classes)), [], *verdicts[:2]))
    apply.undo(folder)
    holds(root, targets, (list(range(classes)), []))
