"""Read one shard once, front to back, and hold every byte against what the index says."""

# n samples of the shard, m of some of them, k bytes of a digest

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from glint import schemas
from glint.errors import InputError
from glint.files import parquet
from glint.shards import tar
from glint.shards.image import FORMATS, MAX_BYTES, kind
from glint.shards.tar import BLOCK

if TYPE_CHECKING:
    from glint.shards.dataset import Dataset

PIECE = 1 << 19  # bytes read and hashed at a time
SHOWN = 100  # problems that are kept with their details
_COLUMNS = ["key", "label", "shard", "offset", "size", "digest"]
_ODD = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
_BEHIND = "something stands behind the last sample"
_SUFFIXES = {*(suffix.encode() for suffix in FORMATS), b"bin"}

Sample = tuple[bytes, int, int, int, bytes]  # key, label, offset and size of the image, digest
Read = Callable[[int], bytes]
U8 = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it was written; offset in bytes of `file`."""

    code: str
    what: str
    file: str
    key: str | None = None
    offset: int | None = None
    expected: str = ""
    found: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, with the shard's name where the file is one."""
        folder, _, name = self.file.rpartition("/")
        return {**asdict(self), "shard": name if folder == "data" else None}

    def __str__(self) -> str:
        place = self.file + (f" key {self.key}" if self.key else "")
        place += f" @ 0x{self.offset:x}" if self.offset is not None else ""
        tail = f": expected {self.expected}, found {self.found}" if self.expected else ""
        return f"{self.code} {place}: {self.what}{tail}"


@dataclass
class Findings:
    """The first problems, and how many there were."""

    shown: list[Problem] = field(default_factory=list)
    count: int = 0

    def add(self, problem: Problem) -> None:
        """Note one problem."""
        self.count += 1
        if len(self.shown) < SHOWN:
            self.shown.append(problem)

    def join(self, other: Findings) -> None:
        """Note another's problems."""
        self.count += other.count
        self.shown += other.shown[: SHOWN - len(self.shown)]


class Rows(NamedTuple):
    """The index of one shard, in its order."""

    key_n9: U8  # ASCII digits
    label_n: Ints
    offset_n: Ints  # of the image bytes
    size_n: Ints
    digest_nk: U8  # xxh3-128


@dataclass(frozen=True)
class Entry:
    """A shard as the manifest lists it; bytes -1 and sha256 "" are not known yet."""

    name: str
    samples: int
    bytes: int
    sha256: str

    @property
    def file(self) -> str:
        """Return the path below the dataset."""
        return f"data/{self.name}"


def entries(dataset: Dataset) -> list[Entry]:
    """Return the shards as the manifest lists them."""
    return [
        Entry(str(e["name"]), int(e["samples"]), int(e["bytes"]), str(e["sha256"]))
        for e in dataset.manifest["shards"]
    ]


def _runs(dataset: Dataset) -> Iterator[tuple[int, pa.Table]]:
    """Raise InputError GL0301 where the shards' numbers descend, or are none of the manifest's."""
    path = dataset.root / "samples.parquet"
    held: list[pa.Table] = []
    number = -1
    for table in parquet.groups(path, schemas.SAMPLES, columns=_COLUMNS):
        if table.column("shard").null_count:
            raise InputError("GL0301", "a shard's number is missing", where=str(path))
        shard_n = table.column("shard").to_numpy()
        cuts = (np.flatnonzero(np.diff(shard_n)) + 1).tolist()
        for start, stop in pairwise([0, *cuts, len(shard_n)] if len(shard_n) else ()):
            now = int(shard_n[start])
            if now < number or now >= len(dataset.shards):
                what = f"shard {now} follows shard {number} of {len(dataset.shards)}"
                raise InputError("GL0301", what, where=str(path))
            if now > number and held:
                yield number, pa.concat_tables(held)
                held = []
            held, number = [*held, table.slice(start, stop - start)], now
    if held:
        yield number, pa.concat_tables(held)


def _columns(table: pa.Table, shard: int) -> Rows:
    """Return one shard's rows as arrays. Raises InputError GL0301 for empty cells or odd keys."""
    for name in _COLUMNS:
        if table.column(name).null_count:
            raise InputError("GL0301", f"column {name} has an empty cell in shard {shard}")
    key_n = table.column("key").to_pylist()
    keys = "".join(key_n).encode()
    if {len(key) for key in key_n} - {9} or not (keys or b"0").isdigit():
        raise InputError("GL0301", f"a key of shard {shard} is not nine digits")
    digests = b"".join(table.column("digest").to_pylist())
    label_n, offset_n, size_n = (
        table.column(name).to_numpy().astype(np.int64) for name in ("label", "offset", "size")
    )
    key_n9, digest_nk = (np.frombuffer(data, np.uint8) for data in (keys, digests))
    return Rows(key_n9.reshape(-1, 9), label_n, offset_n, size_n, digest_nk.reshape(-1, 16))


def index(dataset: Dataset) -> Iterator[tuple[int, Rows]]:
    """Read the index a shard at a time, in order: (number, its rows). Raises InputError GL0301."""
    for number, table in _runs(dataset):
        yield number, _columns(table, number)


def none() -> Rows:
    """Return the index of a shard without samples."""
    none = np.empty(0, np.int64)
    return Rows(np.empty((0, 9), np.uint8), none, none, none, np.empty((0, 16), np.uint8))


def there(path: Path) -> int | str:
    """Return the size of a plain file, or what stands there instead, "" for nothing.

    Raises OSError. Nothing is opened: a pipe would never answer.
    """
    try:
        told = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "a link that leads nowhere" if path.is_symlink() else ""
    what = stat.S_IFMT(told.st_mode)
    return told.st_size if what == stat.S_IFREG else _ODD.get(what, "a device")


def walk(path: Path, entry: Entry, rows: Rows | None) -> tuple[Findings, str]:
    """Read one shard and return what is wrong with it, and its SHA-256 in hex ('' if unread).

    One sequential read: SHA-256 of the file, xxh3-128 of every image at its indexed offset, every
    header, label and padding and the end of the archive against those that glint writes. The text
    of KEY.json the SHA-256 alone covers; without `rows` (an index that cannot be read) it covers
    all. A pure function: shards may be walked in any order.
    """
    state = _Walk(entry)
    try:
        if isinstance(odd := there(path), str):
            state.note("no plain file", "a file", odd or "nothing")
            return state.found, ""
        with open(path, "rb", buffering=0) as file:
            return state.found, state.read(file, rows)
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        state.found.add(Problem("GL0903", what, entry.file))
        return state.found, ""


class _Hashed(io.RawIOBase):
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: io.FileIO) -> None:
        self.file, self.hasher = file, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        got = self.file.readinto(room)
        self.hasher.update(room[:got])
        return got


def _samples(rows: Rows) -> Iterator[Sample]:
    for first in range(0, len(rows.label_n), 4096):
        part = slice(first, first + 4096)
        keys, digests = (np.ascontiguousarray(v[part]) for v in (rows.key_n9, rows.digest_nk))
        key_m, digest_m = (v.ravel().tolist() for v in (keys.view("S9"), digests.view("V16")))
        numbers = (v[part].tolist() for v in (rows.label_n, rows.offset_n, rows.size_n))
        yield from zip(key_m, *numbers, digest_m)


def _frame(sample: Sample, head: bytes, image: bytes) -> tuple[bytes, bytes]:
    """Return the header of an image, and all that follows its bytes, as glint writes them.

    The header that is there says whether the label stands in the name, else it is in KEY.cls.
    """
    key, label, _, size, _ = sample
    text, suffix, rest = b"%d" % label, kind(image).encode(), tar.padding(size)
    if not suffix:  # a damaged image
        suffix = head[:100].rstrip(b"\0").rpartition(b".")[2]
        suffix = suffix if suffix in _SUFFIXES else b"jpg"
    if head[9:10] == b"_":
        return tar.header(b"%b_%b.%b" % (key, text, suffix), size), rest
    rest += tar.header(key + b".cls", len(text)) + text.ljust(BLOCK, b"\0")
    return tar.header(b"%b.%b" % (key, suffix), size), rest


class _Walk:
    """One pass over a shard."""

    def __init__(self, entry: Entry) -> None:
        self.entry, self.found = entry, Findings()

    def note(self, what: str, *said: str, key: bytes | None = None, at: int | None = None) -> None:
        """Note a problem: what was expected and found, the sample and the place."""
        code = "GL0303" if what.startswith("the image bytes") else "GL0302"
        name = None if key is None else key.decode("ascii", "replace")
        self.found.add(Problem(code, what, self.entry.file, name, at, *said))

    def read(self, raw: io.FileIO, rows: Rows | None) -> str:
        """Read the whole file; return its SHA-256."""
        hashed, size, said = _Hashed(raw), os.fstat(raw.fileno()).st_size, self.entry.bytes
        file = io.BufferedReader(hashed, PIECE)
        if said not in (-1, size):
            what = "the shard has another size"
            self.note(what, f"{said} bytes", f"{size} bytes", at=min(size, said))
        if rows is not None:
            self.samples(file.read, rows)
        while file.read(PIECE):
            pass
        told, said_ = hashed.hasher.hexdigest(), self.entry.sha256
        if not self.found.count and said_ not in ("", told):
            self.note("the shard's bytes have changed", f"sha256 {said_}", told)
        return told

    def samples(self, read: Read, rows: Rows) -> None:
        """Read the samples, one after the other, and the end of the archive."""
        end, sound, key = 0, True, b""
        for sample in _samples(rows):
            before, (key, _, at, size, digest) = key, sample
            room, most = at - BLOCK - end, MAX_BYTES if end else 0  # of KEY.json before it
            if at % BLOCK or not 0 <= room <= most or not 0 < size <= MAX_BYTES:
                what, said = "the index does not describe a tar of this size here", f"from {end}"
                return self.note(what, f"blocks {said}", f"{size} bytes at {at}", key=key, at=at)
            if room:
                if len(data := read(room)) < room:
                    return self.note("the shard ends early", key=before, at=end + len(data))
                if sound:
                    self.json(before, end, data)
            head, image = read(BLOCK), read(size)
            made, rest = _frame(sample, head, image)
            after, end, sound = read(len(rest)), at + size + len(rest), True
            if head != made or after != rest or xxhash.xxh3_128_digest(image) != digest:
                if short := end - at + BLOCK - len(head) - len(image) - len(after):
                    return self.note("the shard ends early", key=key, at=end - short)
                sound = self.explain(sample, (head, made), image, (after, rest))
        head = read(BLOCK)
        if sound and head.startswith(key + b".json"):
            data = head + read(min(_padded(_octal(head)), MAX_BYTES))
            sound, end, head = self.json(key, end, data), end + len(data), read(BLOCK)
        if sound:
            self.tail(end, head, read)

    def explain(
        self, sample: Sample, head: tuple[bytes, bytes], image: bytes, rest: tuple[bytes, bytes]
    ) -> bool:
        """Note how a sample differs from what glint writes; say whether its members are sound.

        head, rest: header and what follows the image, as found and as glint writes them.
        """
        key, _, at, size, digest = sample
        if (told := xxhash.xxh3_128_digest(image)) != digest:
            what, said = "the image bytes do not match their checksum", f"xxh3-128 {digest.hex()}"
            self.note(what, said, told.hex(), key=key, at=at)
        if not self.header(key, at - BLOCK, *head):
            return False
        pad, (found, made) = -size % BLOCK, rest
        sound = self.zeros(key, at + size, found[:pad])
        if len(made) > pad:  # KEY.cls
            at += size + pad
            if not self.header(key, at, found[pad:-BLOCK], made[pad:-BLOCK]):
                return False
            if found[-BLOCK:] != made[-BLOCK:]:
                said, seen = made[-BLOCK:].rstrip(b"\0").decode(), found[-BLOCK:].rstrip(b"\0")[:40]
                what = "the label in the shard is not the index's"
                self.note(what, said, repr(seen)[1:], key=key, at=at + BLOCK)
                return False
        return sound

    def header(self, key: bytes, at: int, found: bytes, made: bytes) -> bool:
        """Say whether a header is sound; note what is wrong with it."""
        total = b"%06o\0 " % (sum(found) - sum(found[148:156]) + 8 * ord(" "))
        for what, place, said in (
            ("a tar header is damaged", slice(148, 156), total),
            ("a tar member has another name", slice(100), made[:100]),
            ("a tar member is not a plain USTAR file", slice(156, 157), made[156:157]),
            ("a tar member is not a plain USTAR file", slice(257, 263), made[257:263]),
            ("a tar member has another size than the index says", slice(124, 136), made[124:136]),
        ):
            if found[place] != said:
                expected, seen = (repr(v.rstrip(b"\0 "))[1:] for v in (said, found[place]))
                self.note(what, expected, seen, key=key, at=at)
                return False
        if found != made and not self.found.count:  # mode, owner, time: the SHA-256 says so too
            self.note("the shard's bytes have changed", key=key, at=at)
        return True

    def zeros(self, key: bytes | None, at: int, found: bytes) -> bool:
        """Say whether bytes are zero as they should be; note where they are not."""
        if rest := found.lstrip(b"\0"):
            at += len(found) - len(rest)
            what = "a tar member's padding is not zero" if key else _BEHIND
            self.note(what, "0x00", f"0x{rest[0]:02x}", key=key, at=at)
        return not rest

    def json(self, key: bytes, at: int, data: bytes) -> bool:
        """Check a KEY.json of whatever text, which fills its room; say whether it is sound."""
        size = _octal(data)
        if not self.header(key, at, data[:BLOCK], tar.header(key + b".json", size)):
            return False
        if len(data) != BLOCK + _padded(size):
            what = "a tar member does not end where the next sample begins"
            self.note(what, f"{len(data) - BLOCK} bytes", f"{size} bytes", key=key, at=at)
            return False
        return self.zeros(key, at + BLOCK + size, data[BLOCK + size :])

    def tail(self, start: int, data: bytes, read: Read) -> None:
        """Check that the archive ends at `start`, with as many zeros as tar writes."""
        length, said = 0, len(tar.end(start))
        while data:
            if not self.zeros(None, start + length, data):
                return
            length, data = length + len(data), read(PIECE)
        if length != said and not self.found.count:
            what = "the end of the archive is missing" if length < said else _BEHIND
            self.note(what, f"{said} zeros", str(length), at=start)


def _octal(head: bytes) -> int:
    """Return the size that a header states, 0 where it states none."""
    digits = head[124:135]
    return int(digits, 8) if re.fullmatch(rb"[0-7]{11}", digits) else 0


def _padded(size: int) -> int:
    return size + -size % BLOCK
