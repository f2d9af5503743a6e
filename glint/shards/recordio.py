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
from types import TracebackType
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
    return InputError(
        "GL0213", what, where=f"{path} @ 0x{offset:x}" if path else f"@ 0x{offset:x}", hint=hint
    )


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
    if len(record) < 24:
        raise damaged(f"expected a header of 24 bytes, found {len(record)}", path, offset)
    flag, label, id_, id2 = _HEADER.unpack_from(record)
    if flag == 0:
        return Header(0, label, id_, id2), record[24:]
    if 4 * flag > len(record) - 24:
        raise damaged(
            f"the header claims {flag} labels, {len(record) - 24} bytes are left", path, offset
        )
    end = 24 + 4 * flag
    return Header(flag, struct.unpack_from(f"<{flag}f", record, 24), id_, id2), record[end:]


def parse(
    buffer: Buffer,
    offset: int = 0,
    limit: int = MAX_RECORD,
    *,
    path: str = "",
    base: int = 0,
    end: int | None = None,
) -> tuple[bytes, int]:
    """Return the payload at `offset` of `buffer` and the offset behind it.

    `base` is where `buffer` begins in the file `path`, for the text of errors; `end` is where the
    file ends, counted in the buffer, if that is not the buffer's own end. Every length is compared
    with `end`, and their sum with `limit`, before bytes are copied. Raises InputError GL0213.
    """
    end = len(buffer) if end is None else end
    at, total = offset, 0
    parts: list[bytes] = []
    while True:
        if at + 8 > end:
            raise damaged(
                f"expected a record, found the end of the file after {max(end - at, 0)} of 8 bytes",
                path,
                base + at,
            )
        magic, lrec = PART.unpack_from(buffer, at)
        if magic != MAGIC:
            raise damaged(f"expected magic 0x{MAGIC:08x}, found 0x{magic:08x}", path, base + at)
        cflag, length = lrec >> 29, lrec & MAX_LENGTH
        if cflag not in ((2, 3) if parts else (0, 1)):
            raise damaged(
                f"expected {'a next' if parts else 'a first or whole'} part, "
                f"found part flag {cflag}",
                path,
                base + at,
            )
        if length > end - at - 8:
            raise damaged(
                f"the record claims {length} bytes, the file has {end - at - 8} left",
                path,
                base + at,
            )
        total += length + (4 if parts else 0)
        if total > limit:
            raise damaged(f"the record is longer than the limit of {limit} bytes", path, base + at)
        part = bytes(buffer[at + 8 : at + 8 + length])
        at += 8 + length + (-length & 3)
        if cflag == 0:
            return part, min(at, end)
        parts.append(part)
        if cflag == 3:
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
    need = _extent(source, offset, size, limit)
    block = os.pread(source, need, offset)
    end = size - offset if len(block) == need else len(block)
    return parse(block, 0, limit, path=path, base=offset, end=end)[0]


def _extent(fd: int, offset: int, size: int, limit: int) -> int:
    """Return how many bytes to read for the record at `offset`, all its parts included."""
    at = offset
    while True:
        head = os.pread(fd, 8, at)
        if len(head) < 8:
            return size - offset
        magic, lrec = PART.unpack(head)
        cflag, length = int(lrec >> 29), int(lrec & MAX_LENGTH)
        if magic != MAGIC:
            return at + 8 - offset
        at += 8 + length + (-length & 3)
        if at - offset > 4 * limit:  # an empty middle part: 4 bytes of payload, 8 of file
            return min(size - offset, 4 * limit)
        if at >= size or cflag in (0, 3):
            return min(size, at) - offset


def scan(path: str | os.PathLike[str], limit: int = MAX_RECORD) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, payload) of every record in file order, without an .idx.

    Raises InputError GL0213 at the first byte that is not a record.
    """
    name = Path(path).name
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as view:
            at = 0
            while at < size:
                payload, after = parse(view, at, limit, path=name)
                yield at, payload
                at = after


def read_idx(path: str | os.PathLike[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the keys and offsets of an .idx file in its order. Raises as `idx_blocks` does."""
    number_r2 = np.concatenate([np.empty((0, 2), np.int64), *idx_blocks(path)])
    return number_r2[:, 0].copy(), number_r2[:, 1].copy()


def idx_blocks(path: str | os.PathLike[str]) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the keys and offsets [m, 2] of an .idx file, 64 KiB of it at a time.

    Tolerates CRLF, a byte order mark and blank lines. Raises InputError GL0216 on anything else.
    """
    name = Path(path).name
    lines = 0
    with open(path, "rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        while block := file.read(1 << 16):  # a match takes some 600 bytes for each line
            block += file.readline(1 << 16)
            if not _IDX_LINES.fullmatch(block):
                _bad_line(block, lines, name)
            lines += block.count(b"\n")
            if not block.isspace():  # of which fromstring makes one number
                yield np.fromstring(block, np.int64, sep=" ").reshape(-1, 2)  # any white space


def _bad_line(block: bytes, before: int, name: str) -> NoReturn:
    """Raise the error for the first line of `block` that is not of an .idx file."""
    for number, line in enumerate(block.split(b"\n"), before + 1):
        if not _IDX_LINES.fullmatch(line):
            shown = line[:40].decode("ascii", "backslashreplace")
            raise InputError(
                "GL0216",
                f"expected 'key<tab>offset', found {shown!r}",
                where=f"{name} line {number}",
            )
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, key: int, payload: bytes) -> int:
        """Append one record and return its offset; `payload` is what `pack` returned."""
        if len(payload) > MAX_LENGTH:
            raise InputError(
                "GL0213",
                f"a record holds at most {MAX_LENGTH} bytes, found {len(payload)}",
                where=f"key {key}",
            )
        offset, start = self.offset, 0
        found = payload.find(MAGIC_BYTES)
        while found >= 0:
            if found & 3 == 0:
                self._part(1 if start == 0 else 2, payload[start:found])
                start = found + 4
                found = payload.find(MAGIC_BYTES, start)
            else:
                found = payload.find(MAGIC_BYTES, found + 1)
        self._part(3 if start else 0, payload[start:])
        if self._idx is not None:
            self._idx.write(b"%d\t%d\n" % (key, offset))
        return offset

    def _part(self, cflag: int, data: bytes) -> None:
        self._rec.write(PART.pack(MAGIC, cflag << 29 | len(data)) + data + b"\0" * (-len(data) & 3))
        self.offset += 8 + len(data) + (-len(data) & 3)

    def close(self) -> None:
        """Flush and close both files."""
        self._rec.close()
        if self._idx is not None:
            self._idx.close()
