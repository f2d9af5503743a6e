"""A record file is listed in blocks and in little memory: where blocks end changes nothing."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.errors import InputError
from glint.shards import recordio
from glint.shards.plan import order
from glint.shards.sources.recordio import RecordIO

TINY = b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x70\x00\x70\x01\x01\x11\x00\xff\xd9"


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
        source = RecordIO(path, resync=way == "resync")
        arrays = [source.row[name].tolist() for name in ("key", "at", "span", "flaw")]
        return arrays, source.label.tolist(), source.classes.to_pylist(), source.describe()

    whole = listed()
    monkeypatch.setattr(recordio, "_BLOCK", 64)
    monkeypatch.setattr(recordio, "_BUFFER", 64)
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
            RecordIO(path)
        with monkeypatch.context() as patch, pytest.raises(InputError) as pieces:
            patch.setattr(recordio, "_BLOCK", 64)
            RecordIO(path)
        assert str(pieces.value) == str(whole.value)


@pytest.mark.parametrize("way", ["idx", "scan", "resync"])
def test_a_record_takes_some_hundred_bytes_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(recordio, "_BLOCK", 1 << 10)
    used = []
    for each in (200, 1200):
        path = records(tmp_path / f"s{each}", 50, each)
        if way == "scan":
            path.with_suffix(".idx").unlink()
        tracemalloc.start()
        source = RecordIO(path, resync=way == "resync")
        source.save(path.parent, order(source.n, 0))
        used.append(tracemalloc.get_traced_memory())
        tracemalloc.stop()
    held, peak = (int(more) / 50_000 for more in np.diff(used, axis=0)[0])
    assert held < 40 and peak < 115, (held, peak)
