"""Every byte of a shard is held against the index: none may differ unseen, and none is misread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from glint.pipelines import shard as stage
from glint.shards import walk as walking
from glint.shards.index import Dataset
from glint.shards.verify import columns, entries, runs
from glint.shards.walk import BLOCK, Entry, Rows, walk


def made(
    folder: Path, jpeg: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch, members: str
) -> tuple[Path, Entry, Rows]:
    """Give a shard of labels of one, two and three digits, cut into several pieces."""
    monkeypatch.setattr(walking, "PIECE", 20_000)
    for i in range(120):
        path = folder / "src" / f"{i:03d}" / "0.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(jpeg(i % 30) + b"\0" * (i * 17 % 600))
    stage.shard(folder / "src", folder / "set", stage.Options(500, members=members))
    dataset = Dataset(folder / "set")
    ((number, table),) = runs(dataset)
    return folder / "set", entries(dataset)[0], columns(table, number)


@pytest.mark.parametrize("members", ["jpg,cls", "jpg"])
def test_no_byte_may_differ(
    tmp_path: Path,
    jpeg: Callable[[int], bytes],
    monkeypatch: pytest.MonkeyPatch,
    members: str,
) -> None:
    """Every bit of a sample's blocks outside its image, and bits drawn everywhere."""
    root, entry, rows = made(tmp_path, jpeg, monkeypatch, members)
    path = root / entry.file
    raw = bytearray(path.read_bytes())
    with path.open("r+b", buffering=0) as file:

        def good() -> bool:
            file.seek(0)
            return walking._exact(file, entry, rows)

        assert good()
        start, size = int(rows.offset_n[57]) - BLOCK, int(rows.size_n[57])
        after = int(rows.offset_n[58]) - BLOCK
        bytes_ = {*range(start, start + BLOCK), *range(start + BLOCK + size, after)}
        last = int(rows.offset_n[-1] + rows.size_n[-1])
        draw = np.random.default_rng(0)
        bytes_ |= {*draw.integers(0, len(raw), 200).tolist(), *range(last, len(raw), 97)}
        bytes_ |= {0, len(raw) - 1}
        for byte in sorted(bytes_):
            file.seek(byte)
            file.write(bytes([raw[byte] ^ 1 << byte % 8]))
            assert not good(), byte
            file.seek(byte)
            file.write(raw[byte : byte + 1])
        assert good()
    assert walk(root, entry, rows)[0].count == 0


def test_what_the_index_says_wrongly_is_no_good(
    tmp_path: Path, jpeg: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, entry, rows = made(tmp_path, jpeg, monkeypatch, "jpg,cls")
    with (root / entry.file).open("rb", buffering=0) as file:

        def good(**other: np.ndarray) -> bool:
            file.seek(0)
            return walking._exact(file, entry, rows._replace(**other))

        assert good()
        for name in rows._fields:
            value = getattr(rows, name).copy()
            value[5] = value[6]
            assert not good(**{name: value}), name
        assert not good(label_n=-rows.label_n)
    (root / entry.file).write_bytes((root / entry.file).read_bytes() + b"\0" * 10240)
    found, _ = walk(root, entry, rows)
    assert found.shown[0].what == "the shard has another size"


def test_sha256_is_taken_where_it_is_asked_for(
    tmp_path: Path, jpeg: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest with another digest, well sealed, is no damage of the bytes."""
    root, entry, rows = made(tmp_path, jpeg, monkeypatch, "jpg,cls")
    other = Entry(entry.name, entry.samples, entry.bytes, "0" * 64)
    assert walk(root, other, rows)[0].count == 0
    found, told = walk(root, other, rows, sha256=True)
    assert told == entry.sha256
    assert [problem.what for problem in found.shown] == ["the shard's bytes have changed"]
