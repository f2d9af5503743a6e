"""RecordIO: the record files of MXNet and InsightFace, read and written without MXNet.

record := u32 magic | u32 (cflag << 29 | length) | payload | 0-3 zero bytes, all little endian.
A payload that holds the magic at a 4-aligned offset is cut there into parts with cflag 1, 2.., 3;
the magic itself is left out and put back by the reader (dmlc-core, recordio.cc).
Inside a payload: IRHeader `<IfQQ` (flag, label, id, id2), `flag` float32 labels, image bytes.
"""

# r records of a file, p parts of records, m records of a block

from __future__ import annotations

import mmap
import os
import re
import struct
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from glint.errors import InputError
from glint.files import reads
from glint.shards.image import MAX_BYTES, kind

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
MAX_LENGTH = (1 << 29) - 1  # what the length field holds
LIMIT = MAX_BYTES + (1 << 20)  # bytes of a record that is read: an image, and its labels

PART = struct.Struct("<II")  # magic, cflag << 29 | length
_HEADER = struct.Struct("<IfQQ")
# How a record begins in the file: its first part, IRHeader, two labels where it has them.
FRONT = np.dtype("<u4, <u4, <u4, <f4, <u8, <u8, <f4, <f4")
FRONT.names = ("magic", "lrec", "flag", "label", "id", "id2", "first", "second")
_BLOCK = 1 << 16  # records that are Python objects at a time
_BUFFER = 1 << 18  # bytes read at a time where only the beginnings of records are wanted
_IDX_LINES = re.compile(rb"(?:[ \t\r]*(?:[0-9]{1,18}[ \t]+[0-9]{1,18}[ \t\r]*)?(?:\n|\Z))*")

Ints = npt.NDArray[np.int64]
Row = npt.NDArray[Any]  # of a structured type
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


def unpack(record: bytes) -> tuple[Header, bytes]:
    """Split a payload into its header and the image bytes.

    Raises InputError GL0213 where the payload is shorter than its header says.
    """
    left = len(record) - 24
    if left < 0:
        raise damaged(f"expected a header of 24 bytes, found {len(record)}", "", 0)
    flag, label, id_, id2 = _HEADER.unpack_from(record)
    if flag == 0:
        return Header(0, label, id_, id2), record[24:]
    if 4 * flag > left:
        raise damaged(f"the header claims {flag} labels, {left} bytes are left", "", 0)
    labels = struct.unpack_from(f"<{flag}f", record, 24)
    return Header(flag, labels, id_, id2), record[24 + 4 * flag :]


def _part(buffer: Buffer, at: int, left: int, inside: bool) -> tuple[int, int, str]:
    """Return flag and length of the part at an offset, and what is wrong with it ('': nothing).

    left: bytes of the file behind the part's header. inside: a part of this record came before.
    """
    magic, lrec = PART.unpack_from(buffer, at)
    cflag, length, wrong = lrec >> 29, lrec & MAX_LENGTH, ""
    if magic != MAGIC:
        wrong = f"expected magic 0x{MAGIC:08x}, found 0x{magic:08x}"
    elif cflag not in ((2, 3) if inside else (0, 1)):
        which = "a next" if inside else "a first or whole"
        wrong = f"expected {which} part, found part flag {cflag}"
    elif length > left:
        wrong = f"the record claims {length} bytes, the file has {left} left"
    return cflag, length, wrong


def parse(buffer: Buffer, at: int = 0, limit: int = LIMIT, *, path: str = "") -> tuple[bytes, int]:
    """Return the payload of the record at an offset of `buffer`, and the offset behind it.

    Every length is compared with the buffer's end, and their sum with `limit`, before bytes are
    copied. `path` is for the text of errors. Raises InputError GL0213.
    """
    end, total = len(buffer), 0
    parts: list[bytes] = []
    while True:
        left = end - at - 8
        if left < 0:
            found = f"the end of the file after {max(left + 8, 0)} of 8 bytes"
            raise damaged(f"expected a record, found {found}", path, at)
        cflag, length, wrong = _part(buffer, at, left, bool(parts))
        total += length + (4 if parts else 0)
        if not wrong and total > limit:
            wrong = f"the record is longer than the limit of {limit} bytes"
        if wrong:
            raise damaged(wrong, path, at)
        parts.append(bytes(buffer[at + 8 : at + 8 + length]))
        at += 8 + length + (-length & 3)
        if cflag in (0, 3):
            return MAGIC_BYTES.join(parts), min(at, end)


def fronts(path: Path, at_r: Ints) -> Iterator[tuple[slice, Row]]:
    """Yield how the records at ascending offsets begin, in blocks; zeros past the last word."""
    size, want = path.stat().st_size // 4 * 4, FRONT.itemsize
    with path.open("rb", buffering=_BUFFER) as file:
        for start in range(0, len(at_r), _BLOCK):
            rows, pieces = slice(start, start + _BLOCK), []
            for at in (np.minimum(at_r[rows], size) // 4 * 4).tolist():
                file.seek(at)
                pieces.append(file.read(want)[: size - at].ljust(want, b"\0"))
            yield rows, np.frombuffer(b"".join(pieces), FRONT)


def scan_offsets(path: Path) -> Ints:
    """Return the offset of every record of a file without .idx.

    Raises InputError GL0213 at the first byte that is not a record.
    """
    found, at, inside, size = array("q"), 0, False, path.stat().st_size
    with path.open("rb", buffering=_BUFFER) as file:
        while at + 8 <= size:
            file.seek(at)
            cflag, length, wrong = _part(file.read(8), 0, size - at - 8, inside)
            if wrong:
                hint = f"it is record {len(found)}; with an .idx beside the file, or --resync, "
                hint += "glint goes on behind it"
                raise damaged(wrong, path.name, at, hint)
            if not inside:
                found.append(at)
            inside = cflag in (1, 2)
            at += 8 + length + (-length & 3)
    if at < size:
        raise damaged(f"{size - at} bytes are left over at the end", path.name, at)
    if inside:
        raise damaged("the file ends inside a record of several parts", path.name, found[-1])
    return np.array(found, np.int64)


def magics(path: Path) -> Ints:
    """Return every 4-aligned offset of a file at which the magic stands."""
    found, at = [np.empty(0, np.int64)], 0
    with path.open("rb") as file:
        while len(word := np.fromfile(file, "<u4", 4 * _BLOCK)):
            found.append(at + 4 * np.flatnonzero(word == MAGIC))
            at += 4 * len(word)
    return np.concatenate(found)


def read_span(fd: int, at: int, span: int) -> tuple[Header | None, bytes, bool]:
    """Return header (None: damaged) and image of a record, and whether it fills its `span`."""
    try:
        payload, after = parse(reads.pread(fd, min(span, 2 * LIMIT), at), 0, LIMIT)
        return *unpack(payload), after == span
    except InputError:
        return None, b"", False


def scan_past_damage(path: Path) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Cut a file into records and lost stretches; return where each begins, and which are lost.

    An aligned magic stands nowhere but at the start of a part, so a length is true where it leads
    to the next one or to the end of the file. A record is taken where all its parts do; one that
    stands before damage also where its header fits its length and its image has a known beginning.
    """
    size, at_p = path.stat().st_size, magics(path)
    lrec_p = np.empty(len(at_p), np.uint32)
    for rows, front_m in fronts(path, at_p):
        lrec_p[rows] = front_m["lrec"]
    cflag_p, next_p = (lrec_p >> 29).astype(np.int8), np.append(at_p, size)[1:]
    stop_p = at_p + 8 + (lrec_p & MAX_LENGTH)
    padded_p = np.minimum((stop_p + 3) // 4 * 4, size)  # the last part may lack its padding
    stop_p = np.where(stop_p <= size, padded_p, stop_p)
    leads_p = stop_p == next_p
    # A record begins with p and ends with the part `last`, to which the ones before lead.
    p = np.flatnonzero(cflag_p < 2)
    further = np.append(np.flatnonzero(cflag_p != 2), len(at_p) - 1)
    last = np.where(cflag_p[p] == 0, p, further[np.searchsorted(further[:-1], p, "right")])
    astray_p = np.cumsum(~leads_p, dtype=np.int32) - ~leads_p  # parts before p that do not lead on
    whole = (cflag_p[last] == 3 * cflag_p[p]) & (astray_p[last] == astray_p[p])
    taken = whole & leads_p[last]
    with path.open("rb", buffering=0) as file:
        for i in np.flatnonzero(whole & ~taken & (stop_p[last] <= next_p[last])).tolist():
            at, stop = int(at_p[p[i]]), int(stop_p[last[i]])
            _, image, fits = read_span(file.fileno(), at, stop - at)
            taken[i] = fits and (not image or kind(image) != "")
    start_r, stop_r = at_p[p[taken]], stop_p[last[taken]]
    lost = np.append(0, stop_r)[np.append(0, stop_r) < np.append(start_r, size)]
    order = np.argsort(np.append(start_r, lost))
    return np.append(start_r, lost)[order], (order >= len(start_r))


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
                tail = enumerate(block.split(b"\n"), lines + 1)
                number, line = next(two for two in tail if not _IDX_LINES.fullmatch(two[1]))
                shown = line[:40].decode("ascii", "backslashreplace")
                what = f"expected 'key<tab>offset', found {shown!r}"
                raise InputError("GL0216", what, where=f"{Path(path).name} line {number}")
            lines += block.count(b"\n")
            if not block.isspace():  # of which fromstring makes one number
                blocks.append(np.fromstring(block, np.int64, sep=" "))  # any white space
    number_r2 = np.concatenate(blocks).reshape(-1, 2)
    return number_r2[:, 0].copy(), number_r2[:, 1].copy()


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
