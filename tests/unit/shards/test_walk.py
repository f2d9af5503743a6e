"""Every byte of a shard is held against the index: none may differ unseen, and none is misread."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from glint.pipelines.dataset import shard as stage
from glint.shards import tar as tars
from glint.shards import walk as walking
from glint.shards.dataset import Dataset
from glint.shards.tar import BLOCK
from glint.shards.walk import Entry, Rows, entries, index, none, walk

Jpeg = Callable[[int], bytes]
LAYOUTS = [{}, {"members": "jpg"}, {"with_json": True}]


def made(
    folder: Path, jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch, **options: object
) -> tuple[Path, Entry, Rows]:
    """Give a shard of labels of one, two and three digits, read in several pieces."""
    monkeypatch.setattr(walking, "PIECE", 20_000)
    for i in range(120):
        path = folder / "src" / f"{i:03d}" / "0.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(jpeg(i % 30) + b"\0" * (i * 17 % 600))
    stage.shard(folder / "src", folder / "set", stage.Options(500, **options))  # type: ignore[arg-type]
    dataset = Dataset(folder / "set")
    ((_, rows),) = index(dataset)
    entry = entries(dataset)[0]
    return folder / "set" / entry.file, entry, rows


@pytest.mark.parametrize("options", LAYOUTS)
def test_no_byte_may_differ(
    tmp_path: Path,
    jpeg: Jpeg,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, object],
) -> None:
    """Every byte of a sample's blocks outside its image, and bytes drawn everywhere.

    Without a SHA-256 to compare with, as when a shard is read back that was just written. Only the
    text of KEY.json may differ then, and not with it.
    """
    path, entry, rows = made(tmp_path, jpeg, monkeypatch, **options)
    raw = bytearray(path.read_bytes())
    asked = replace(entry, sha256="", bytes=-1)
    assert walk(path, asked, rows)[0].count == walk(path, entry, rows)[0].count == 0
    assert walk(path, asked, rows)[1] == hashlib.sha256(raw).hexdigest() == entry.sha256
    start, size = int(rows.offset_n[57]) - BLOCK, int(rows.size_n[57])
    after = int(rows.offset_n[58]) - BLOCK
    bytes_ = {*range(start, start + BLOCK, 2), *range(start + BLOCK + size, after, 3)}
    last = int(rows.offset_n[-1] + rows.size_n[-1])
    draw = np.random.default_rng(0)
    bytes_ |= {*draw.integers(0, len(raw), 100).tolist(), *range(last, len(raw), 97)}
    bytes_ |= {0, len(raw) - 1}
    texts = set[int]()
    with tarfile.open(path) as tar:
        for member in (m for m in tar if m.name.endswith(".json")):
            texts |= {*range(member.offset_data, member.offset_data + member.size)}
    with path.open("r+b", buffering=0) as file:
        for byte in sorted(bytes_):
            file.seek(byte)
            file.write(bytes([raw[byte] ^ 1 << byte % 8]))
            assert walk(path, entry if byte in texts else asked, rows)[0].count, byte
            file.seek(byte)
            file.write(raw[byte : byte + 1])
    assert walk(path, asked, rows)[0].count == 0


@pytest.mark.parametrize("options", LAYOUTS)
def test_the_end_is_where_it_should_be(
    tmp_path: Path, jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    path, entry, rows = made(tmp_path, jpeg, monkeypatch, **options)
    raw = path.read_bytes()
    asked = replace(entry, sha256="", bytes=-1)
    for data in (raw[:-1], raw[:-512], raw[:-10240], raw + b"\0", raw + bytes(10240), raw + b"x"):
        path.write_bytes(data)
        found, told = walk(path, asked, rows)
        assert found.count == 1 and told == hashlib.sha256(data).hexdigest()
        assert walk(path, entry, rows)[0].shown[0].what == "the shard has another size"
    for size in range(0, len(raw), 5000):
        path.write_bytes(raw[:size])
        (problem,) = walk(path, asked, rows)[0].shown
        assert problem.offset is not None and problem.offset <= size
    path.write_bytes(raw + bytes(3 << 20) + b"x")  # in pieces
    (problem,) = walk(path, asked, rows)[0].shown
    assert problem.what == "something stands behind the last sample"
    assert problem.offset == len(raw) + (3 << 20)


def test_what_the_index_says_wrongly_is_no_good(
    tmp_path: Path, jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, entry, rows = made(tmp_path, jpeg, monkeypatch)
    for name in rows._fields:
        value = getattr(rows, name).copy()
        value[5] = value[6]
        assert walk(path, entry, rows._replace(**{name: value}))[0].count, name
    for label in (-1, 119, 2**63 - 1):
        label_n = rows.label_n.copy()
        label_n[5] = label
        assert walk(path, entry, rows._replace(label_n=label_n))[0].count, label
    for wrong in (-(2**63), -1, 0, 513, 2**63 - 512):
        for name in ("offset_n", "size_n"):
            value = getattr(rows, name).copy()
            value[7] = wrong
            assert walk(path, entry, rows._replace(**{name: value}))[0].count, (name, wrong)
    assert walk(path, entry, Rows(*(column[:-1] for column in rows)))[0].count
    assert walk(path, entry, none())[0].count


def test_an_empty_shard_and_one_without_an_index(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(10240))
    sha256 = hashlib.sha256(bytes(10240)).hexdigest()
    assert walk(path, Entry("x.tar", 0, 10240, sha256), none())[0].count == 0
    assert walk(path, Entry("x.tar", 7, 10240, sha256), None)[0].count == 0
    assert walk(path, Entry("x.tar", 7, 10240, "0" * 64), None)[0].count == 1


def test_what_is_no_plain_file_is_named(tmp_path: Path) -> None:
    entry = Entry("x.tar", 0, 10240, "")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name, found in (
        ("pipe", "a pipe"),
        ("folder", "a folder"),
        ("link", "a link that leads nowhere"),
        ("nothing", "nothing"),
    ):
        (problem,) = walk(tmp_path / name, entry, none())[0].shown
        assert (problem.code, problem.found) == ("GL0302", found)
    (problem,) = walk(Path("/dev/zero"), entry, none())[0].shown
    assert problem.found == "a device"
    (problem,) = walk(tmp_path / "loop", entry, none())[0].shown
    assert problem.code == "GL0903"


def test_headers_are_those_of_tarfile() -> None:
    draw = np.random.default_rng(0)
    for size in (0, 1, 511, 512, 8**11 - 1, *draw.integers(0, 8**11, 50).tolist()):
        name = "".join(draw.choice([*"0123456789_.jpgcls"], draw.integers(1, 101)))
        info = tarfile.TarInfo(name)
        info.size = size
        assert tars.header(name.encode(), size) == info.tobuf(tarfile.USTAR_FORMAT)
    for name, size in ((b"", 0), (b"x" * 101, 0), (b"x", -1), (b"x", 8**11)):
        with pytest.raises(ValueError, match="no USTAR header"):
            tars.header(name, size)
    for blocks in range(45):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            info = tarfile.TarInfo("x")
            info.size = blocks * BLOCK - 9 if blocks else 0
            tar.addfile(info, io.BytesIO(bytes(info.size)))
        made = tars.header(b"x", info.size) + bytes(info.size) + tars.padding(info.size)
        assert made + tars.end(len(made)) == file.getvalue()
