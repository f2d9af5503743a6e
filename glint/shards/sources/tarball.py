"""The members of a tar, found by its headers alone: USTAR, GNU and PAX; nothing is extracted.

`tarfile` reads each header. The walk from one to the next is not left to it: it takes a damaged
header for the end of the archive and leaves out PAX records that are damaged, both without a word,
and has no limit for what one header may take.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from glint.shards.sources.listed import Flaw
from glint.shards.sources.packed import Member, damaged

BLOCK = tarfile.BLOCKSIZE
NAME = 1 << 16  # bytes that a long name may take
EXTENDED = 1 << 20  # bytes that a PAX header may take
EMPTY = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders: no bytes follow
LONG = ("utf-8", "surrogateescape")


def members(path: Path) -> Iterator[Member]:
    """Yield the members of a plain tar in order, folders left out.

    Links, devices, sparse files and anything else that is no regular file come with the flaw
    unsafe_member. Raises InputError GL0214: damaged headers, an archive that was cut, bytes behind
    its end.
    """
    with path.open("rb") as file:
        fd, size = file.fileno(), os.fstat(file.fileno()).st_size
        at, told = 0, dict[bytes, bytes]()  # what long headers tell of the next member
        while (head := _read(fd, BLOCK, at, path)).strip(b"\0"):
            info = _header(head, path, at)
            start, count, kind = at + BLOCK, info.size, head[156:157]
            if kind in (b"L", b"K", b"x", b"g"):
                told |= _long_header(fd, info, path, at)
            else:
                count = 0 if kind in EMPTY else int(told.get(b"size", count))
                more = kind == b"S" and head[482]
                while more:  # the map of a sparse file
                    more, start = _read(fd, BLOCK, start, path)[504], start + BLOCK
                if count > size - start:
                    what = f"a member claims {count} bytes, {max(size - start, 0)} are left"
                    raise damaged(f"the archive was cut: {what}", path, at)
                if not info.isdir():
                    sparse = any(key.startswith(b"GNU.sparse") for key in told)
                    safe = kind in (b"0", b"\0", b"7") and not sparse
                    name = told.get(b"path") or info.name.encode(*LONG)
                    flaw = Flaw.sound if safe else Flaw.unsafe_member
                    yield Member(name, start, count, count, flaw)
                told = {}
            at = start + count + -count % BLOCK
        _check_tail(fd, at, path)


def _read(fd: int, count: int, at: int, path: Path) -> bytes:
    block = os.pread(fd, count, at)
    if len(block) < count:
        what = f"{count} bytes of headers expected, {len(block)} found"
        raise damaged(f"the archive was cut: {what}, and no end mark", path, at)
    return block


def _header(head: bytes, path: Path, at: int) -> tarfile.TarInfo:
    """Read a header, its checksum compared."""
    try:
        info = tarfile.TarInfo.frombuf(head, *LONG)
    except (tarfile.HeaderError, ValueError) as error:
        raise damaged(f"a tar header is damaged: {error}", path, at) from None
    if info.size < 0:
        raise damaged(f"a tar header is damaged: a size of {info.size}", path, at)
    if head[257:263] != b"ustar\0":  # GNU has times where POSIX has the front of a long name
        info.name = head[:100].split(b"\0", 1)[0].decode(*LONG)
    return info


def _long_header(fd: int, info: tarfile.TarInfo, path: Path, at: int) -> dict[bytes, bytes]:
    """Return what a long name or a PAX header tells of the next member."""
    limit = NAME if info.type in (b"L", b"K") else EXTENDED
    if info.size > limit:
        raise damaged(f"a header of {info.size} bytes, {limit} are let pass", path, at)
    block = _read(fd, info.size, at + BLOCK, path)
    if info.type == b"L":
        return {b"path": block.rstrip(b"\0")}
    fields = _fields(block, path, at) if info.type != b"K" else {}
    if info.type == b"g" and {b"path", b"size"} & fields.keys():
        raise damaged("a global header names all members at once", path, at)
    told = fields.get(b"size", b"0")
    if not told.isdigit() or len(told) > 18:
        raise damaged(f"a PAX header gives a size of {told[:20]!r}", path, at)
    return fields


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


def _check_tail(fd: int, at: int, path: Path) -> None:
    """Raise where anything but zeros stands behind the end mark."""
    while block := os.pread(fd, 1 << 20, at):
        if rest := block.lstrip(b"\0"):
            what = "something stands behind the end of the archive"
            hint = "tars that were joined must be taken apart"
            raise damaged(what, path, at + len(block) - len(rest), hint)
        at += len(block)
