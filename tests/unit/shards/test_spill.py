"""Rows in blocks: sorted, dealt and listed as they would be in memory, and in little of it."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.errors import InputError, ResourceError
from glint.pipelines import shard as stage
from glint.shards import plan, recordio, spill
from glint.shards.sources import open_source, resyncing
from glint.shards.strings import Strings

PAIR = np.dtype([("value", np.int64), ("at", np.int64)])
TINY = b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x70\x00\x70\x01\x01\x11\x00\xff\xd9"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "BLOCK", 64)
    monkeypatch.setattr(spill, "STEP", 4)


def table(value_n: Any) -> spill.Table:
    row_n = np.empty(len(value_n), PAIR)
    row_n["value"], row_n["at"] = value_n, np.arange(len(value_n))
    cuts = sorted(random.Random(0).choices(range(len(value_n) + 1), k=9))
    return spill.collected(np.split(row_n, cuts), PAIR, None)


@pytest.mark.parametrize("n", [0, 1, 64, 65, 3000])
@pytest.mark.parametrize("kinds", [1, 7, 1 << 40])
def test_rows_are_sorted_stably(small: None, n: int, kinds: int) -> None:
    value_n = np.random.default_rng(n).integers(0, kinds, n)
    rows = table(value_n)
    assert len(rows) == n and rows.array()["value"].tolist() == value_n.tolist()
    for order in (value_n, np.sort(value_n)):
        rows = table(order)
        blocks = list(spill.arranged(rows, "value"))
        want = np.argsort(order, kind="stable")
        assert np.concatenate([np.empty(0, PAIR), *blocks])["at"].tolist() == want.tolist()
        kept, count = np.unique(order, return_counts=True)
        many = [(int(v), int(c)) for v, c in zip(kept, count) if c > 1]
        assert spill.repeated(blocks, "value") == many[:5]
    if kinds > n:
        assert max(map(len, blocks), default=0) <= 64  # no block is all of them


@pytest.mark.parametrize("n", [1, 64, 5000])
def test_rows_are_dealt_in_the_order_of_the_plan(small: None, tmp_path: Path, n: int) -> None:
    row_n = table(range(n)).array()
    spill.save(tmp_path, np.array_split(row_n, 7), PAIR, 3)
    order = plan.order(n, 3).tolist()
    assert spill.load(tmp_path, PAIR)["at"].tolist() == order
    assert spill.load(tmp_path, PAIR, n // 3, n // 2)["at"].tolist() == order[n // 3 : n // 2]
    with pytest.raises(ResourceError, match=r"GL0903 .*rows, found"):
        spill.load(tmp_path, PAIR, 0, n + 1)


def records(folder: Path, people: int, each: int, *, ids: bool = True) -> Path:
    """Write a pack in the identity layout, its records in a random order."""
    folder.mkdir()
    n = people * each
    made: list[tuple[int, Any, bytes]] = [
        (k, float((k - 1) // each), TINY) for k in range(1, n + 1)
    ]
    made += [(n + 1 + c, [1.0 + c * each, 1.0 + (c + 1) * each], b"") for c in range(people)]
    made.append((0, [n + 1.0, n + 1.0 + people], b""))
    if ids:
        random.Random(1).shuffle(made)
    with recordio.Writer(folder / "train.rec", folder / "train.idx") as writer:
        for key, label, data in made:
            writer.write(key, recordio.pack(label, key if ids else 0, 0, data))
    return folder / "train.rec"


@pytest.mark.parametrize("way", ["idx", "scan", "order", "resync", "no header"])
def test_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    path = records(tmp_path / "s", 60, 7, ids=way != "order")
    if way != "idx":
        path.with_suffix(".idx").unlink()
    data = bytearray(path.read_bytes())
    at = [len(data) // 3 & ~3, len(data) // 2 & ~3]
    if way == "resync":
        data[at[0] : at[0] + 40], data[at[1]] = bytes(40), 1
    elif way == "no header":
        data = data[: data.rindex(np.uint32(recordio.MAGIC).tobytes())]
    path.write_bytes(data)

    def listed() -> tuple[Any, ...]:
        with resyncing(way == "resync"):
            source = open_source(path)
            arrays = [getattr(source, name).tolist() for name in ("key", "at", "span", "flaw")]
        return arrays, source.label.tolist(), list(source.classes), source.describe()

    whole = listed()
    monkeypatch.setattr(spill, "BLOCK", 64)
    monkeypatch.setattr(spill, "STEP", 4)
    assert listed() == whole and whole[-1]["identities"] == 60


def test_an_idx_is_refused_for_the_same_reasons_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = records(tmp_path / "s", 60, 7)
    idx = path.with_suffix(".idx")
    lines = idx.read_bytes().splitlines(keepends=True)
    cases = [
        [*lines, lines[300].replace(b"\t", b"9\t")],  # an offset twice
        [*lines, lines[300].split(b"\t")[0] + b"\t4\n"],  # a key twice
        lines[:200] + lines[203:],  # records that are not listed
        [line[:-1] + b"0\n" for line in lines],  # of another file
        lines[:-3],
    ]
    for case in cases:
        idx.write_bytes(b"".join(case))
        with pytest.raises(InputError, match="GL0216") as whole:
            open_source(path)
        with monkeypatch.context() as patch, pytest.raises(InputError) as pieces:
            patch.setattr(spill, "BLOCK", 64)
            open_source(path)
        assert str(pieces.value) == str(whole.value)


def test_strings_are_read_where_they_lie(tmp_path: Path) -> None:
    values = [b"", b"a", "\u00e9".encode(), b"x" * 300]
    strings = Strings.of(values)
    strings.save(tmp_path, "s")
    some = Strings.some(tmp_path, "s", np.array([3, 0, 2, 2]))
    assert list(some) == [values[i] for i in (3, 0, 2, 2)]
    assert strings.arrow().to_pylist() == [v.decode() for v in values]
    assert Strings.of([]).arrow().to_pylist() == []
    assert Strings.of([b"a", b"\xff"]).arrow().to_pylist() == ["a", "\\xff"]
    # valid as a whole, and cut inside a character
    assert Strings.of([b"\xc3", b"\xa9"]).arrow().to_pylist() == ["\\xc3", "\\xa9"]
    with pytest.raises(ResourceError, match="GL0903"):
        Strings.some(tmp_path, "t", np.array([0]))


def test_planning_takes_no_more_memory_for_more_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "BLOCK", 1 << 10)
    peaks = []
    for each in (200, 1200):
        path = records(tmp_path / f"s{each}", 50, each)
        tracemalloc.start()
        stage.make_plan(path, tmp_path / f"out{each}", stage.Options())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 50_000 * 4, peaks  # half a number for each record
