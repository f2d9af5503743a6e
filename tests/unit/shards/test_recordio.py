"""RecordIO against real files of mxnet, and against files that lie."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest

from glint.errors import InputError
from glint.shards import recordio

SETS = ["ms1m", "recbuilder", "shufrec", "multipart", "bigids"]


def scan(path: Path) -> dict[int, bytes]:
    """Return offset and payload of every record, without an .idx."""
    data = path.read_bytes()
    return {at: recordio.parse(data, at)[0] for at in recordio.scan_offsets(path).tolist()}


@pytest.mark.parametrize("name", SETS)
def test_reads_what_mxnet_reads(shared: Path, name: str) -> None:
    folder = shared / "peers" / "mxnet-recordio"
    expected = json.loads((folder / "expected.json").read_text())["sets"][name]
    key_r, offset_r = recordio.read_idx(folder / name / "train.idx")
    at = dict(zip(key_r.tolist(), offset_r.tolist()))
    scanned = scan(folder / name / "train.rec")
    assert len(expected) == len(at) == len(scanned) >= 3
    for row in expected:
        assert at[row["key"]] == row["offset"]
        header, image = recordio.unpack(scanned[row["offset"]])
        labels = list(header.label) if isinstance(header.label, tuple) else [header.label]
        assert (header.flag, labels, header.id, header.id2, len(image)) == (
            row["flag"],
            row["label"],
            row["id"],
            row["id2"],
            row["payload_len"],
        )
        assert hashlib.sha256(image).hexdigest() == row["sha256"]


def test_reads_im2rec_by_its_list(shared: Path) -> None:
    folder = shared / "peers" / "mxnet-recordio" / "im2rec"
    key_r, offset_r = recordio.read_idx(folder / "train.idx")
    at = dict(zip(key_r.tolist(), offset_r.tolist()))
    rows = [line.split("\t") for line in (folder / "train.lst").read_text().splitlines()]
    assert len(rows) == len(at) == 20
    data = (folder / "train.rec").read_bytes()
    for key, label, _ in rows:
        header, image = recordio.unpack(recordio.parse(data, at[int(key)])[0])
        assert (header.flag, header.label, header.id) == (0, float(label), int(key))
        assert image[:2] == b"\xff\xd8"


@pytest.mark.parametrize("name", [*SETS, "im2rec"])
def test_writes_the_bytes_that_mxnet_wrote(shared: Path, tmp_path: Path, name: str) -> None:
    source = shared / "peers" / "mxnet-recordio" / name
    payload = scan(source / "train.rec")
    key_r, offset_r = recordio.read_idx(source / "train.idx")
    with recordio.Writer(tmp_path / "train.rec", tmp_path / "train.idx") as writer:
        for key, offset in zip(key_r.tolist(), offset_r.tolist()):
            assert writer.write(key, payload[offset]) == offset
    for file in ("train.rec", "train.idx"):
        assert (tmp_path / file).read_bytes() == (source / file).read_bytes()


def record(*parts: tuple[int, bytes]) -> bytes:
    return b"".join(
        struct.pack("<II", recordio.MAGIC, flag << 29 | len(data)) + data + b"\0" * (-len(data) & 3)
        for flag, data in parts
    )


@pytest.mark.parametrize(
    "data, text",
    [
        (b"", "end of the file after 0 of 8"),
        (b"\0" * 12, "expected magic 0xced7230a, found 0x00000000"),
        (record((0, b"abcd"))[:-1], "claims 4 bytes, the file has 3 left"),
        (struct.pack("<II", recordio.MAGIC, (1 << 29) - 1) + b"x", "claims 536870911 bytes"),
        (record((3, b"abcd")), "expected a first or whole part, found part flag 3"),
        (record((1, b"abcd"), (0, b"abcd")), "expected a next part, found part flag 0"),
        (record((1, b"abcd")), "end of the file"),
        (record((5, b"abcd")), "found part flag 5"),
    ],
)
def test_damage_is_told(data: bytes, text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="GL0213 corrupt-record") as caught:
        recordio.parse(data, path="a.rec")
    assert text in str(caught.value) and "a.rec @ 0x" in str(caught.value)
    if data:
        (tmp_path / "a.rec").write_bytes(data)
        with pytest.raises(InputError, match=r"GL0213 corrupt-record: a\.rec @ 0x"):
            recordio.scan_offsets(tmp_path / "a.rec")


def test_limit_is_checked_before_bytes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    with recordio.Writer(path) as writer:
        writer.write(0, b"x" * 5000)
        writer.write(1, recordio.MAGIC_BYTES * 5000)
    data = path.read_bytes()
    assert len(recordio.parse(data, 0, 5000)[0]) == 5000
    assert len(recordio.parse(data, 5008, 20000)[0]) == 20000
    for offset in (0, 5008):
        with pytest.raises(InputError, match="longer than the limit of 4999"):
            recordio.parse(data, offset, 4999)
    with pytest.raises(InputError, match="expected a record, found the end"):
        recordio.parse(data, 10**9)


@pytest.mark.parametrize(
    "payload, text",
    [
        (b"short", "expected a header of 24 bytes, found 5"),
        (struct.pack("<IfQQ", 2**32 - 1, 0, 0, 0) + b"x" * 8, "claims 4294967295 labels, 8 bytes"),
    ],
)
def test_headers_that_lie(payload: bytes, text: str) -> None:
    with pytest.raises(InputError, match=text):
        recordio.unpack(payload)


def test_idx_tolerates_what_editors_do(tmp_path: Path) -> None:
    path = tmp_path / "a.idx"
    path.write_bytes(b"\xef\xbb\xbf1\t0\r\n\r\n2\t8589934592\r\n0\t9")
    key_r, offset_r = recordio.read_idx(path)
    assert key_r.tolist() == [1, 2, 0] and offset_r.tolist() == [0, 1 << 33, 9]
    for nothing in (b"", b"\n", b"\t", b" \r\n\n"):
        path.write_bytes(nothing)
        assert len(recordio.read_idx(path)[0]) == 0
    path.write_bytes(b"1\t0\n" + b"\n" * (1 << 17))
    assert recordio.read_idx(path)[0].tolist() == [1]


@pytest.mark.parametrize(
    "line", [b"2", b"2 x", b"1 2 3", b"-1\t5", b"1.5\t2", b"\0\0\0", b"1\t99999999999999999999"]
)
def test_idx_of_another_kind(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.idx"
    path.write_bytes(b"1\t0\n" + line + b"\n3\t4\n")
    with pytest.raises(InputError, match=r"GL0216 idx-mismatch: a\.idx line 2: expected 'key<tab>"):
        recordio.read_idx(path)
