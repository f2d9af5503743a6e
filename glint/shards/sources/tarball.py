"""The members of a tar, found by its headers alone: USTAR, GNU and PAX; nothing is extracted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from glint.shards.sources.packed import SOUND, UNSAFE, Member, damaged

BLOCK = 512
NAME = 1 << 16  # bytes that a long name may take
EXTENDED = 1 << 20  # bytes that a PAX header may take
REGULAR = (b"0", b"\0", b"7")
_EMPTY = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders: no bytes follow
_ZERO = bytes(BLOCK)


def members(path: Path) -> Iterator[Member]:
    """Yield the members of a plain tar in order, folders left out.

    Links, devices, sparse files and anything else that is no regular file come with the flaw
    UNSAFE. Raises InputError GL0214: damaged headers, an archive that was cut, bytes behind its
    end.
    """
    with path.open("rb") as file:
        fd, size = file.fileno(), os.fstat(file.fileno()).st_size
        at, name, said = 0, b"", -1
        sparse = False
        while True:
            head = os.pread(fd, BLOCK, at)
            if len(head) < BLOCK:
                raise damaged(
                    f"the archive was cut: it ends after {size} bytes without its end mark",
                    path,
                    at,
                )
            if head == _ZERO:
                break
            kind = head[156:157]
            count = _checked(head, path, at)
            start = at + BLOCK
            if kind in (b"L", b"K", b"x", b"g"):
                limit = NAME if kind in (b"L", b"K") else EXTENDED
                if count > limit:
                    raise damaged(f"a header of {count} bytes, {limit} are let pass", path, at)
                block = os.pread(fd, count, start)
                if len(block) < count:
                    raise damaged(
                        f"the archive was cut inside a header: {count} bytes expected, "
                        f"{len(block)} found",
                        path,
                        at,
                    )
                if kind == b"L":
                    name = block.rstrip(b"\0")
                elif kind in (b"x", b"g"):
                    fields = _fields(block, path, at)
                    if kind == b"g" and ({b"path", b"size"} & fields.keys()):
                        raise damaged("a global header names all members at once", path, at)
                    name = fields.get(b"path", name)
                    said = _decimal(fields[b"size"], path, at) if b"size" in fields else said
                    sparse |= any(key.startswith(b"GNU.sparse") for key in fields)
                at = start + count + -count % BLOCK
                continue
            if kind in _EMPTY:
                count = 0
            elif said >= 0:
                count = said
            more = kind == b"S" and head[482] != 0
            while more:  # the map of a sparse file
                block = os.pread(fd, BLOCK, start)
                more, start = len(block) == BLOCK and block[504] != 0, start + BLOCK
            if count > size - start:
                raise damaged(
                    f"the archive was cut: a member claims {count} bytes, "
                    f"{max(size - start, 0)} are left",
                    path,
                    at,
                )
            name = name or _name(head)
            folder = kind == b"5" or (kind == b"\0" and name.endswith(b"/"))
            if not folder:
                safe = kind in REGULAR and not sparse
                yield Member(name, start, count, count, SOUND if safe else UNSAFE)
            at = start + count + -count % BLOCK
            name, said, sparse = b"", -1, False
        _tail(fd, at, path)


def _name(head: bytes) -> bytes:
    name = head[:100].split(b"\0", 1)[0]
    prefix = head[345:500].split(b"\0", 1)[0] if head[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _checked(head: bytes, path: Path, at: int) -> int:
    """Return the size a header gives, its checksum compared."""
    told = _number(head[148:156])
    found = sum(head) - sum(head[148:156]) + 8 * 32
    if told != found:
        raise damaged(
            f"a tar header is damaged: checksum {found:o} expected, found {head[148:156]!r}",
            path,
            at,
        )
    size = _number(head[124:136])
    if size < 0:
        raise damaged(f"a tar header is damaged: a size of {head[124:136]!r}", path, at)
    return size


def _number(field: bytes) -> int:
    """Read an octal or base-256 number; -1 for neither, or a negative one."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits:
        return 0
    return int(digits, 8) if all(48 <= byte <= 55 for byte in digits) else -1


def _decimal(value: bytes, path: Path, at: int) -> int:
    if not value.isdigit() or len(value) > 18:
        raise damaged(f"a PAX header gives a size of {value[:20]!r}", path, at)
    return int(value)


def _fields(block: bytes, path: Path, at: int) -> dict[bytes, bytes]:
    """Return the fields of a PAX header: 'LENGTH KEY=VALUE' lines."""
    fields: dict[bytes, bytes] = {}
    start = 0
    while start < len(block) and block[start]:
        blank = block.find(b" ", start, start + 8)
        digits = block[start:blank] if blank > 0 else b""
        end = start + int(digits) if digits.isdigit() else -1
        equal = block.find(b"=", blank, max(end, 0))
        if equal < 0 or end > len(block) or block[end - 1 : end] != b"\n":
            raise damaged("a PAX header is damaged", path, at)
        fields[block[blank + 1 : equal]] = block[equal + 1 : end - 1]
        start = end
    return fields


def _tail(fd: int, at: int, path: Path) -> None:
    """Check that nothing but zeros stands behind the end mark."""
    while block := os.pread(fd, 1 << 20, at):
        if block.strip(b"\0"):
            at += len(block) - len(block.lstrip(b"\0"))
            raise damaged(
                "something stands behind the end of the archive",
                path,
                at,
                "tars that were joined must be taken apart",
            )
        at += len(block)
