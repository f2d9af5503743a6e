"""Images that lie inside larger files: where each one lies, and how it is taken out."""

# n images of the source

from __future__ import annotations

import hashlib
import os
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from glint.errors import InputError
from glint.files import reads
from glint.shards.image import MAX_BYTES, Rejected
from glint.shards.sources import listed
from glint.shards.sources.listed import Flaw, Found, Listed
from glint.shards.sources.rule import Rule, is_image
from glint.shards.sources.source import Rows, fingerprint, read_retrying, shown
from glint.shards.sources.tree import Tree

RAW, STORED, DEFLATED = 0, 1, 2  # bytes as they are; a zip member, not packed or packed
SLACK = 1 << 16  # what deflate may add to bytes that it cannot pack
OPEN = 64  # files held open
_PARTS = re.compile(rb"[/\\]")
_DRIVE = re.compile(rb"[A-Za-z]:")
_FIELDS = ("label", "at", "size", "packed", "file", "crc", "method", "flaw")
ROW = np.dtype(list(zip(_FIELDS, ("i8", "i8", "i8", "i8", "i4", "u4", "u1", "u1"))))


class Member(NamedTuple):
    """One member of an archive: `at` its bytes (in a zip: its header), `packed` bytes there."""

    name: bytes
    at: int = 0
    size: int = 0
    packed: int = 0
    flaw: int = Flaw.sound
    method: int = RAW
    crc: int = 0

    def row(self, label: int, file: int, flaw: int) -> tuple[int, ...]:
        """Return the fields of ROW."""
        return label, self.at, self.size, self.packed, file, self.crc, self.method, flaw


class Packed(Listed):
    """Listed records, read one by one from the files that hold them.

    `files` are paths below `root`, or b"" where `root` is the file itself. `read` raises InputError
    GL0001, ResourceError GL0903.
    """

    whole = ("files", "classes", "names")

    files: pa.Array

    def _path(self, file: int) -> Path:
        return place(self.root, self.files[file].as_py())

    def fingerprint(self) -> dict[str, Any]:
        if len(self.files) == 1:
            return {"kind": self.kind, "file": fingerprint(self._path(0))}
        hasher = hashlib.sha256()
        for file in range(len(self.files)):
            hasher.update(repr(sorted(fingerprint(self._path(file)).items())).encode())
        return {"kind": self.kind, "files": len(self.files), "all": hasher.hexdigest()}

    @cached_property
    def _open(self) -> Callable[[int], IO[bytes]]:
        return lru_cache(OPEN)(lambda file: open(self._path(file), "rb", buffering=0))

    def _pread(self, file: int, count: int, at: int) -> bytes:
        """Read bytes of a file, less where it ends."""

        def read() -> bytes:
            fd = self._open(file).fileno()
            return reads.pread(fd, max(min(count, os.fstat(fd).st_size - at), 0), at)

        return read_retrying(read, f"{self._path(file)} @ 0x{at:x}")

    def read(self, i: int) -> bytes:
        _, at, size, count, file, crc, method, _ = self._sound(i).item()
        if size > MAX_BYTES or count > MAX_BYTES + SLACK:
            raise Rejected("too-large", f"{max(size, count)} bytes")
        if method != RAW:
            head = self._pread(file, 30, at)
            if len(head) < 30 or head[:4] != b"PK\x03\x04":
                raise Rejected("corrupt-record", "no header of a zip member")
            at += 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        data = self._pread(file, count, at)
        if len(data) < count:
            raise Rejected("corrupt-record", f"{count} bytes expected, {len(data)} found")
        return extract(data, size, crc, method) if method != RAW else data

    def name(self, i: int) -> str:
        file = shown(self.files[int(self.row["file"][i])].as_py())
        return f"{file}/{super().name(i)}" if len(self.files) > 1 else super().name(i)

    def offset(self, i: int) -> int | None:
        return int(self.row["at"][i])

    def bytes(self) -> int:
        return int(self.row["size"][self.row["flaw"] == Flaw.sound].sum())


def collect(found: Found) -> tuple[Rows, pa.Array]:
    """Pack what was listed; a sound record whose name stood in the same file before gets a flaw."""
    hashes = array("Q")

    def hashed() -> Found:
        for name, row in found:
            file = row[_FIELDS.index("file")]
            hashes.append(xxhash.xxh3_64_intdigest(b"%d/%s" % (file, _plain(name))))
            yield name, row

    row_n, names = listed.collect(hashed(), ROW)
    again_n = row_n["flaw"] == Flaw.sound
    again_n[np.unique(np.frombuffer(hashes, np.uint64), return_index=True)[1]] = False
    row_n["flaw"][again_n] = Flaw.duplicate_name
    return row_n, names


def _plain(name: bytes) -> bytes:
    """Return a name without the parts that lead nowhere, as ./ does."""
    if b"./" not in name and b"//" not in name:
        return name
    root = b"/" if name[:1] == b"/" else b""
    return root + b"/".join(part for part in name.split(b"/") if part not in (b"", b"."))


def extract(data: bytes, size: int, crc: int, method: int) -> bytes:
    """Take a zip member out: never more than the `size` it declares. Raises Rejected."""
    if method == DEFLATED:
        worker = zlib.decompressobj(-15)
        try:
            data = worker.decompress(data, size + 1)
        except zlib.error as error:
            raise Rejected("corrupt-record", str(error)) from None
        if not worker.eof and len(data) <= size:
            raise Rejected("corrupt-record", "the packed bytes end early")
    if len(data) != size:
        found = f"{len(data)} found" if len(data) < size else "more found"
        raise Rejected("corrupt-record", f"{size} bytes declared, {found}")
    if zlib.crc32(data) != crc:
        raise Rejected("corrupt-record", "the CRC does not match")
    return data


def unsafe(name: bytes) -> bool:
    """Say whether a name would lead out of the folder that it is extracted to."""
    outside = name[:1] in (b"/", b"\\", b"") or _DRIVE.match(name)
    return bool(outside) or b".." in _PARTS.split(name)


def find_files(
    root: Path, suffixes: tuple[bytes, ...], rule: Rule, left: Counter[str]
) -> list[bytes]:
    """Return the files of a folder with such a suffix, in order; [b""] for a file.

    What else lies there is counted in `left`. Raises InputError GL0201 where they lie in several
    folders, and where images lie beside them.
    """
    if root.is_file():
        return [b""]
    tree, found = Tree(root, rule), list[bytes]()
    images: list[bytes] = []
    for here, files, _ in tree.walk():
        for name, _ in files:
            path = here + b"/" + name if here else name
            if name.lower().endswith(suffixes):
                found.append(path)
            elif is_image(name):
                images.append(path)
            else:
                left[f"other files: {shown(name.rpartition(b'.')[2])[:20]}"] += 1
    left.update(tree.left)
    if images and found:
        raise listed.mixed(root, found, images[0])
    folders = Counter(path.rpartition(b"/")[0] for path in found)
    if len(folders) > 1:
        some = ", ".join(f"{shown(name) or '.'} ({n})" for name, n in [*folders.items()][:5])
        what = f"{len(found)} containers in {len(folders)} folders: {some}"
        each = " ".join(str(root / os.fsdecode(name)) for name in [*folders][:3])
        each += " ..." if len(folders) > 3 else ""
        hint = f"if one label is one person in all of them: glint shard {each} OUT; else give one"
        raise InputError("GL0201", what, where=str(root), hint=hint)
    return found


def place(root: Path, file: bytes) -> Path:
    """Return the path of a file that `find_files` found."""
    return root / os.fsdecode(file) if file else root


def numbered_paths(root: Path, files: Sequence[bytes]) -> Iterator[tuple[int, Path]]:
    """Yield numbers and paths of the files that `find_files` found."""
    return enumerate(place(root, file) for file in files)


def damaged(what: str, path: Path, at: int | None = None, hint: str = "") -> InputError:
    """Return the error of an archive that cannot be listed."""
    where = str(path) if at is None else f"{path} @ 0x{at:x}"
    return InputError("GL0214", what, where=where, hint=hint or "copy or download the file again")
