"""RecordIO: the record files of MXNet and InsightFace, read and written without MXNet.

record := u32 magic | u32 (cflag << 29 | length) | payload | 0-3 zero bytes, all little endian.
A payload that holds the magic at a 4-aligned offset is cut there into parts with cflag 1, 2.., 3;
the magic itself is left out and put back by the reader (dmlc-core, recordio.cc).
Inside a payload: IRHeader `<IfQQ` (flag, label, id, id2), `flag` float32 labels, image bytes.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from glint.errors import InputError

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
MAX_RECORD = 16 << 20  # bytes that a reader accepts for one record unless told otherwise
MAX_LENGTH = (1 << 29) - 1  # what the length field holds

PART = struct.Struct("<II")  # magic, cflag << 29 | length
_HEADER = struct.Struct("<IfQQ")
_IDX_LINES = re.compile(rb"(?:[ \t\r]*(?:[0-9]{1,18}[ \t]+[0-9]{1,18}[ \t\r]*)?(?:\n|\Z))*")

Ints = npt.NDArray[np.int64]
Buffer = bytes | bytearray | memoryview | mmap.mmap


class Header(NamedTuple):
    """The 24 bytes before the image: `label` is a float, or a tuple of `flag` floats."""

    flag: int
    label: float | tuple[float, ...]
    id: int
    id2: int

    @property
    def first(self) -> float:
        """The class: the label, or the first of several."""
        return self.label[0] if isinstance(self.label, tuple) else self.label


def damaged(what: str, path: str, offset: int, hint: str = "") -> InputError:
    """Return the error of a damaged record at `offset` of `path`."""
    where = f"{path} @ 0x{offset:x}" if path else f"@ 0x{offset:x}"
    return InputError("GL0213", what, where=where, hint=hint)


def pack(label: float | Sequence[float], id: int, id2: int, image: bytes) -> bytes:
    """Return the payload of one record; a sequence of labels sets flag to its length."""
    if isinstance(label, (int, float)):
        return _HEADER.pack(0, label, id, id2) + image
    n = len(label)
    return _HEADER.pack(n, 0.0, id, id2) + struct.pack(f"<{n}f", *label) + image


def unpack(record: bytes, *, path: str = "", offset: int = 0) -> tuple[Header, bytes]:
    """Split a payload into its header and the image bytes.

    Raises InputError GL0213 where the payload is shorter than its header says.
    """
    left = len(record) - 24
    if left < 0:
        raise damaged(f"expected a header of 24 bytes, found {len(record)}", path, offset)
    flag, label, id_, id2 = _HEADER.unpack_from(record)
    if flag == 0:
        return Header(0, label, id_, id2), record[24:]
    if 4 * flag > left:
        raise damaged(f"the header claims {flag} labels, {left} bytes are left", path, offset)
    labels = struct.unpack_from(f"<{flag}f", record, 24)
    return Header(flag, labels, id_, id2), record[24 + 4 * flag :]


def parse(
    buffer: Buffer, offset: int = 0, limit: int = MAX_RECORD, *, path: str = ""
) -> tuple[bytes, int]:
    """Return the payload at `offset` of `buffer` and the offset behind it.

    Every length is compared with the buffer's end, and their sum with `limit`, before bytes are
    copied. `path` is for the text of errors. Raises InputError GL0213.
    """
    end, at, total = len(buffer), offset, 0
    parts: list[bytes] = []
    while True:
        left = end - at - 8
        if left < 0:
            found = f"the end of the file after {max(left + 8, 0)} of 8 bytes"
            raise damaged(f"expected a record, found {found}", path, at)
        magic, lrec = PART.unpack_from(buffer, at)
        cflag, length = lrec >> 29, lrec & MAX_LENGTH
        total += length + (4 if parts else 0)
        wrong = ""
        if magic != MAGIC:
            wrong = f"expected magic 0x{MAGIC:08x}, found 0x{magic:08x}"
        elif cflag not in ((2, 3) if parts else (0, 1)):
            which = "a next" if parts else "a first or whole"
            wrong = f"expected {which} part, found part flag {cflag}"
        elif length > left:
            wrong = f"the record claims {length} bytes, the file has {left} left"
        elif total > limit:
            wrong = f"the record is longer than the limit of {limit} bytes"
        if wrong:
            raise damaged(wrong, path, at)
        parts.append(bytes(buffer[at + 8 : at + 8 + length]))
        at += 8 + length + (-length & 3)
        if cflag in (0, 3):
            return MAGIC_BYTES.join(parts), min(at, end)


def read_at(source: int | Buffer, offset: int, limit: int = MAX_RECORD, *, path: str = "") -> bytes:
    """Return the payload of the record at `offset` of an open file (its number) or a buffer.

    Raises InputError GL0213: bad magic, lengths that lie, a record cut short or over `limit`.
    """
    if not isinstance(source, int):
        return parse(source, offset, limit, path=path)[0]
    size = os.fstat(source).st_size
    if not 0 <= offset < size:
        raise damaged(f"the offset lies outside the file of {size} bytes", path, offset)
    with mmap.mmap(source, size, access=mmap.ACCESS_READ) as view:
        return parse(view, offset, limit, path=path)[0]


def scan(path: str | os.PathLike[str], limit: int = MAX_RECORD) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, payload) of every record in file order, without an .idx.

    Raises InputError GL0213 at the first byte that is not a record.
    """
    at, size = 0, Path(path).stat().st_size
    if size == 0:
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as view:
        while at < size:
            payload, after = parse(view, at, limit, path=Path(path).name)
            yield at, payload
            at = after


def read_idx(path: str | os.PathLike[str]) -> tuple[Ints, Ints]:
    """Return the keys and offsets of an .idx file in its order.

    Tolerates CRLF, a byte order mark and blank lines. Raises InputError GL0216 on anything else.
    """
    lines, blocks = 0, [np.empty(0, np.int64)]
    with open(path, "rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        while block := file.read(1 << 16):  # a match takes some 600 bytes for each line
            block += file.readline(1 << 16)
            if not _IDX_LINES.fullmatch(block):
                _bad_line(block, lines, Path(path).name)
            lines += block.count(b"\n")
            if not block.isspace():  # of which fromstring makes one number
                blocks.append(np.fromstring(block, np.int64, sep=" "))  # any white space
    number_r2 = np.concatenate(blocks).reshape(-1, 2)
    return number_r2[:, 0].copy(), number_r2[:, 1].copy()


def _bad_line(block: bytes, before: int, name: str) -> NoReturn:
    """Raise the error for the first line of `block` that is not of an .idx file."""
    for number, line in enumerate(block.split(b"\n"), before + 1):
        if not _IDX_LINES.fullmatch(line):
            shown = line[:40].decode("ascii", "backslashreplace")
            what = f"expected 'key<tab>offset', found {shown!r}"
            raise InputError("GL0216", what, where=f"{name} line {number}")
    raise AssertionError("a block is bad only where a line is")


class Writer:
    """Write records to `rec` and their keys and offsets to `idx`.

    Use as a context manager. Lines of the .idx stand in write order, as MXNet writes them.
    """

    def __init__(self, rec: str | os.PathLike[str], idx: str | os.PathLike[str] | None = None):
        self._rec: IO[bytes] = open(rec, "wb", buffering=1 << 20)  # noqa: SIM115
        self._idx: IO[bytes] | None = open(idx, "wb") if idx else None  # noqa: SIM115
        self.offset = 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write(self, key: int, payload: bytes) -> int:
        """Append one record and return its offset; `payload` is what `pack` returned."""
        if len(payload) > MAX_LENGTH:
            what = f"a record holds at most {MAX_LENGTH} bytes, found {len(payload)}"
            raise InputError("GL0213", what, where=f"key {key}")
        offset, start = self.offset, 0
        found = payload.find(MAGIC_BYTES)
        while found >= 0:
            if found & 3 == 0:
                self._part(1 if start == 0 else 2, payload[start:found])
                start = found + 4
            found = payload.find(MAGIC_BYTES, max(start, found + 1))
        self._part(3 if start else 0, payload[start:])
        if self._idx is not None:
            self._idx.write(b"%d\t%d\n" % (key, offset))
        return offset

    def _part(self, cflag: int, data: bytes) -> None:
        part = PART.pack(MAGIC, cflag << 29 | len(data)) + data + b"\0" * (-len(data) & 3)
        self._rec.write(part)
        self.offset += len(part)

    def close(self) -> None:
        """Flush and close both files."""
        self._rec.close()
        if self._idx is not None:
            self._idx.close()
