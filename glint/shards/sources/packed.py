"""Images that lie inside larger files: where each one lies, and how it is taken out."""

# n images of the source

from __future__ import annotations

import hashlib
import os
import zlib
from array import array
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from glint.errors import InputError
from glint.shards import spill
from glint.shards.image import MAX_BYTES, Rejected
from glint.shards.sources.folder import text
from glint.shards.sources.source import Ints, fingerprint, persistent
from glint.shards.strings import Strings

RAW, STORED, DEFLATED = 0, 1, 2  # bytes as they are; a zip member, not packed or packed
SLACK = 1 << 16  # what deflate may add to bytes that it cannot pack

# What is kept of a record; its name is the `number`-th.
ROW = np.dtype(
    [
        ("number", np.int64),
        ("label", np.int64),
        ("at", np.int64),
        ("size", np.int64),
        ("packed", np.int64),
        ("file", np.int32),
        ("crc", np.uint32),
        ("method", np.uint8),
        ("flaw", np.uint8),
    ]
)

# What a listing finds wrong with a record; the index into this tuple is stored.
FLAWS = (
    "",
    "no-identity",
    "bad-name",
    "unsafe-member",
    "duplicate-name",
    "encrypted",
    "unsupported-method",
    "no-image",
    "no-label",
    "label-not-integer",
    "ambiguous-sample",
)
(
    SOUND,
    NO_IDENTITY,
    BAD_NAME,
    UNSAFE,
    DUPLICATE,
    ENCRYPTED,
    METHOD,
    NO_IMAGE,
    NO_LABEL,
    NOT_INTEGER,
    AMBIGUOUS,
) = range(len(FLAWS))


class Member(NamedTuple):
    """One member of an archive: `at` its bytes (in a zip: its header), `packed` bytes there."""

    name: bytes
    at: int
    size: int
    packed: int
    flaw: int = SOUND
    method: int = RAW
    crc: int = 0


class Rows:
    """Records as they are listed: numbers in arrays, names in one string."""

    def __init__(self) -> None:
        self.number = {
            "file": array("i"),
            "at": array("q"),
            "size": array("q"),
            "packed": array("q"),
            "method": array("B"),
            "crc": array("I"),
            "flaw": array("B"),
        }
        self.blob, self.end, self.hash = bytearray(), array("q"), array("Q")

    def __len__(self) -> int:
        return len(self.end)

    def add(self, file: int, member: Member, flaw: int) -> None:
        """Append one record."""
        for name, value in (
            ("file", file),
            ("at", member.at),
            ("size", member.size),
            ("packed", member.packed),
            ("method", member.method),
            ("crc", member.crc),
            ("flaw", flaw),
        ):
            self.number[name].append(value)
        self.blob += member.name
        self.end.append(len(self.blob))
        self.hash.append(xxhash.xxh3_64_intdigest(b"%d/%s" % (file, member.name)))

    def ints(self, name: str) -> npt.NDArray[Any]:
        """Return one column as an array; from now on no row can be added."""
        return np.frombuffer(self.number[name], ROW[name])

    def names(self) -> Strings:
        """Return the names."""
        return Strings(np.frombuffer(self.blob, np.uint8), np.frombuffer(self.end, np.int64))

    def repeated(self) -> npt.NDArray[np.bool_]:
        """Say which records bear a name that stood in the same file before."""
        again_n = np.ones(len(self), np.bool_)
        again_n[np.unique(np.frombuffer(self.hash, np.uint64), return_index=True)[1]] = False
        return again_n


class Packed:
    """Listed records, read one by one from the files that hold them.

    `files` are paths below `root`, or b"" where `root` is the file itself.
    """

    kind = "packed"

    def __init__(
        self,
        root: Path,
        files: Sequence[bytes],
        rows: Rows,
        flaw_n: npt.NDArray[np.uint8],
        label_n: Ints,
        classes: Strings,
        names: Strings,
    ) -> None:
        self.root, self.files, self.paths = root, Strings.of(files), rows.names()
        self.file, self.at, self.size = rows.ints("file"), rows.ints("at"), rows.ints("size")
        self.packed, self.method = rows.ints("packed"), rows.ints("method")
        self.crc, self.flaw = rows.ints("crc"), flaw_n
        self.label, self.classes, self.names = label_n, classes, names
        self._facts: dict[str, Any] = {}

    @property
    def n(self) -> int:
        return len(self.label)

    def describe(self) -> dict[str, Any]:
        return {"source": text(os.fsencode(self.root.name)), **self._facts}

    def _path(self, file: int) -> Path:
        name = self.files[file]
        return self.root / os.fsdecode(name) if name else self.root

    def fingerprint(self) -> dict[str, Any]:
        hasher = hashlib.sha256()
        if len(self.files) == 1:
            return {"kind": self.kind, "file": fingerprint(self._path(0))}
        for file in range(len(self.files)):
            hasher.update(repr(sorted(fingerprint(self._path(file)).items())).encode())
        return {"kind": self.kind, "files": len(self.files), "all": hasher.hexdigest()}

    @cached_property
    def _open(self) -> dict[int, Any]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_open"}

    def _pread(self, file: int, count: int, at: int) -> bytes:
        """Read bytes of a file. Raises InputError GL0001, ResourceError GL0903."""
        path = self._path(file)

        def read() -> bytes:
            if file not in self._open:
                if len(self._open) >= 64:
                    self._open.pop(next(iter(self._open))).close()
                self._open[file] = open(path, "rb", buffering=0)  # noqa: SIM115
            fd = self._open[file].fileno()
            return os.pread(fd, max(min(count, os.fstat(fd).st_size - at), 0), at)

        return persistent(read, f"{path} @ 0x{at:x}")

    def read(self, i: int) -> bytes:
        flaw, size, packed = int(self.flaw[i]), int(self.size[i]), int(self.packed[i])
        if flaw:
            raise Rejected(FLAWS[flaw])
        if size > MAX_BYTES or packed > MAX_BYTES + SLACK:
            raise Rejected("too-large", f"{max(size, packed)} bytes")
        file, at, method = int(self.file[i]), int(self.at[i]), int(self.method[i])
        if method != RAW:
            head = self._pread(file, 30, at)
            if len(head) < 30 or head[:4] != b"PK\x03\x04":
                raise Rejected("corrupt-record", "no header of a zip member")
            at += 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        data = self._pread(file, packed, at)
        if len(data) < packed:
            raise Rejected("corrupt-record", f"{packed} bytes expected, {len(data)} found")
        return unpacked(data, size, int(self.crc[i]), method) if method != RAW else data

    def name(self, i: int) -> str:
        inner = text(self.paths[i])
        return f"{text(self.files[int(self.file[i])])}/{inner}" if len(self.files) > 1 else inner

    def offset(self, i: int) -> int | None:
        return int(self.at[i])

    def bytes(self) -> int:
        return int(self.size[self.flaw == 0].sum())

    _STRINGS = ("files", "paths", "classes", "names")

    def save(self, folder: Path, seed: int | None = None) -> None:
        spill.save(folder, spill.numbered(self, ROW), ROW, seed)
        for name in self._STRINGS:
            getattr(self, name).save(folder, name)

    @classmethod
    def load(
        cls,
        path: Path,
        facts: dict[str, Any],
        folder: Path,
        start: int = 0,
        stop: int | None = None,
    ) -> Packed:
        """Open rows [start, stop) of what `save` wrote, without listing the files."""
        made = cls.__new__(cls)
        made.root, made._facts = path, facts
        row_n = spill.load(folder, ROW, start, stop)
        for name in ROW.names or ():
            setattr(made, name, row_n[name])
        made.paths = Strings.some(folder, "paths", row_n["number"])
        for name in ("files", "classes", "names"):
            setattr(made, name, Strings.load(folder, name))
        return made


def unpacked(data: bytes, size: int, crc: int, method: int) -> bytes:
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
        raise Rejected(
            "corrupt-record",
            f"{size} bytes declared, "
            + (f"{len(data)} found" if len(data) < size else "more found"),
        )
    if zlib.crc32(data) != crc:
        raise Rejected("corrupt-record", "the CRC does not match")
    return data


def beneath(root: Path, suffixes: tuple[str, ...]) -> list[bytes]:
    """Return the files of a folder with such a suffix, in order; [b""] for a file."""
    if root.is_file():
        return [b""]
    places = [place for place in (root, root / "data") if place.is_dir()]
    for place in places:
        found = sorted(
            os.fsencode(p.relative_to(root))
            for p in place.iterdir()
            if p.is_file() and p.name.lower().endswith(suffixes) and not p.name.startswith(".")
        )
        if found:
            return found
    return []


def damaged(what: str, path: Path, at: int | None = None, hint: str = "") -> InputError:
    """Return the error of an archive that cannot be listed."""
    where = str(path) if at is None else f"{path} @ 0x{at:x}"
    return InputError("GL0214", what, where=where, hint=hint or "copy or download the file again")
