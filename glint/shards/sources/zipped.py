"""The members of a zip, found by its central directory: zip64 too; nothing is extracted."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from glint.shards.sources.packed import (
    DEFLATED,
    ENCRYPTED,
    METHOD,
    SOUND,
    STORED,
    UNSAFE,
    Member,
    damaged,
)

_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_FULL = 0xFFFFFFFF


def _directory(fd: int, size: int, path: Path) -> tuple[int, int, int]:
    """Return where the central directory begins, where it ends, and how many entries it has."""
    start = max(size - 65_557, 0)
    tail = os.pread(fd, 65_557, start)
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0:
        if at + 22 <= len(tail) and at + 22 + int.from_bytes(
            tail[at + 20 : at + 22], "little"
        ) == len(tail):
            break
        at = tail.rfind(b"PK\x05\x06", 0, at)
    if at < 0:
        raise damaged("the zip has no central directory: it was cut", path, size)
    _, disk, first, here, count, length, offset, _ = _END.unpack_from(tail, at)
    end = start + at
    if _FULL in (length, offset) or count == 0xFFFF:
        locator = os.pread(fd, 20, end - 20) if end >= 20 else b""
        if len(locator) == 20 and locator[:4] == b"PK\x06\x07":
            end = _LOCATOR.unpack(locator)[2]
            found = os.pread(fd, 56, end) if end < size else b""
            if len(found) < 56 or found[:4] != b"PK\x06\x06":
                raise damaged(
                    "the end of the zip64 directory is not where it should be", path, min(end, size)
                )
            _, _, _, _, disk, first, here, count, length, offset = _END64.unpack(found)
    if disk or first or here != count:
        raise damaged("the zip is one of several volumes", path, end, "join them first")
    if offset + length > end:
        raise damaged(
            f"the central directory claims {length} bytes at {offset}, it must end before {end}",
            path,
            end,
        )
    return offset, offset + length, count


def _wide(extra: bytes, values: list[int]) -> list[int] | None:
    """Put the zip64 numbers of `extra` where `values` say that they stand there."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            place, end = at + 4, min(at + 4 + length, len(extra))
            for i, value in enumerate(values):
                if value == _FULL:
                    if place + 8 > end:
                        return None
                    values[i] = int.from_bytes(extra[place : place + 8], "little")
                    place += 8
            return values
        at += 4 + length
    return values


def members(path: Path) -> Iterator[Member]:
    """Yield the members of a zip in the order of its directory, folders left out.

    Links and devices come with the flaw UNSAFE, members that ask for a password with ENCRYPTED,
    other packings than deflate with METHOD. Raises InputError GL0214 for a damaged directory.
    """
    with path.open("rb", buffering=1 << 18) as file:
        size = os.fstat(file.fileno()).st_size
        start, end, count = _directory(file.fileno(), size, path)
        file.seek(start)
        at = start
        for _ in range(count):
            member, length = _entry(file, at, end, path)
            at += length
            if member is not None:
                yield member
        if at != end:
            raise damaged(f"the central directory holds more than its {count} entries", path, at)


def _entry(file: IO[bytes], at: int, end: int, path: Path) -> tuple[Member | None, int]:
    """Read one entry; None for a folder."""
    head = file.read(46) if at + 46 <= end else b""
    if len(head) < 46 or head[:4] != b"PK\x01\x02":
        raise damaged("the central directory is damaged", path, at)
    (_, _, _, flags, method, _, _, crc, packed, full, n, extra, note, _, _, mode, where) = (
        _ENTRY.unpack(head)
    )
    length = 46 + n + extra + note
    if at + length > end:
        raise damaged("the central directory is damaged", path, at)
    name, more = file.read(n), file.read(extra)
    file.read(note)
    numbers = _wide(more, [full, packed, where])
    if numbers is None or max(numbers) >= 1 << 62:
        raise damaged("a zip64 entry is damaged", path, at)
    full, packed, where = numbers
    if name.endswith((b"/", b"\\")):
        return None, length
    kind = stat.S_IFMT(mode >> 16)
    flaw = SOUND
    if kind not in (0, stat.S_IFREG):
        flaw = UNSAFE
    elif flags & 0x2041:
        flaw = ENCRYPTED
    elif method not in (0, 8):
        flaw = METHOD
    return Member(name, where, full, packed, flaw, STORED if method == 0 else DEFLATED, crc), length
