"""Read one shard once, front to back, and hold every byte against what the index says."""

# n samples of the shard, m members looked at together, b blocks of a piece

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from glint.shards import blocks
from glint.shards.image import FORMATS, MAX_BYTES
from glint.shards.write import BLOCK, RECORD

PIECE = 4 << 20  # bytes read and looked at together
ROOM = MAX_BYTES + (1 << 20)  # most bytes that one sample's members may take
SHOWN = 100  # problems that are kept with their details
_CHECKSUM = slice(148, 156)
_SIZE = slice(124, 135)

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
    """A shard as the manifest lists it."""

    name: str
    samples: int
    bytes: int
    sha256: str

    @property
    def file(self) -> str:
        """Return the path below the dataset."""
        return f"data/{self.name}"


_kept = threading.local()


def _room(size: int) -> U8:
    """Return this thread's buffer, grown to `size` bytes."""
    if getattr(_kept, "buffer", np.empty(0, np.uint8)).size < size:
        _kept.buffer = np.empty(size, np.uint8)
    buffer: U8 = _kept.buffer
    return buffer


def _octal(digit_md: U8) -> Ints:
    """Read octal numbers, one a row; -1 where a character is no octal digit."""
    value_md = digit_md.astype(np.int64) - ord("0")
    weight_d = 8 ** np.arange(digit_md.shape[1] - 1, -1, -1, dtype=np.int64)
    number_m: Ints = value_md @ weight_d
    number_m[((value_md < 0) | (value_md > 7)).any(axis=1)] = -1
    return number_m


def _sums(head_mb: U8) -> Ints:
    """Return the tar checksum of headers: their bytes summed, its own field taken as blanks."""
    word_m = np.ascontiguousarray(head_mb).view(np.uint64)
    low = np.uint64(0x00FF00FF00FF00FF)
    lane_m = ((word_m & low) + ((word_m >> np.uint64(8)) & low)).sum(axis=1, dtype=np.uint64)
    total_m = np.zeros(len(head_mb), np.int64)  # 64 words of two bytes each fit a 16-bit lane
    for shift in (0, 16, 32, 48):
        total_m += ((lane_m >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64)
    own_m = head_mb[:, _CHECKSUM].sum(axis=1, dtype=np.int64)
    result: Ints = total_m - own_m + 8 * ord(" ")
    return result


def _numbers(text_md: U8, length_m: Ints) -> Ints:
    """Read decimal numbers of the given lengths, one a row; -2 where they are none."""
    value_m = np.zeros(len(text_md), np.int64)
    sound_m = (length_m > 0) & (length_m <= text_md.shape[1])
    for place in range(min(text_md.shape[1], int(length_m.max(initial=0)))):
        within = place < length_m
        digit_m = text_md[:, place].astype(np.int64) - ord("0")
        sound_m &= ~within | ((digit_m >= 0) & (digit_m <= 9))
        value_m = np.where(within, value_m * 10 + digit_m, value_m)
    return np.where(sound_m, value_m, -2)


def _tagged(head_mb: U8, label_m: Ints) -> npt.NDArray[np.bool_]:
    """Say which members are named KEY_LABEL.suffix, with the labels that are given."""
    tagged_m = head_mb[:, 9] == ord("_")
    if tagged_m.any():
        text_md, length_m = blocks.plain(np.maximum(label_m, 0))
        place_d = np.arange(text_md.shape[1])
        same_md = (head_mb[:, 10 : 10 + text_md.shape[1]] == text_md) | (
            place_d >= length_m[:, None]
        )
        ended_m = head_mb[np.arange(len(head_mb)), 10 + length_m] == ord(".")
        tagged_m = tagged_m & same_md.all(axis=1) & ended_m
    result: npt.NDArray[np.bool_] = tagged_m
    return result


class _Walk:
    """The state of one pass over a shard."""

    def __init__(self, entry: Entry, rows: Rows) -> None:
        self.entry, self.rows, self.found = entry, rows, Findings()

    def problem(
        self, code: str, what: str, row: int, offset: int, expected: str = "", found: str = ""
    ) -> None:
        """Note a problem with a sample."""
        key = self.rows.key_n9[row].tobytes().decode("ascii", "replace")
        self.found.add(Problem(code, what, self.entry.file, key, offset, expected, found))

    def sane(self, end: int) -> bool:
        """Say whether the index describes a tar of `end` bytes at all; note why not."""
        offset_n, size_n = self.rows.offset_n, self.rows.size_n
        stop_n = offset_n + size_n + (-size_n) % BLOCK
        next_n = np.append(offset_n[1:] - BLOCK, end)
        first = np.append(np.array([BLOCK]), stop_n[:-1] + BLOCK)[: len(offset_n)]
        wrong_n = (
            (offset_n % BLOCK != 0)
            | (size_n < 1)
            | (offset_n < first)
            | (stop_n > next_n)
            | (next_n - offset_n > ROOM)
        )
        if len(wrong_n) and offset_n[0] != BLOCK:
            wrong_n[0] = True
        if not len(wrong_n) and end > ROOM:
            self.found.add(
                Problem(
                    "GL0302",
                    "the index has no sample of this shard",
                    self.entry.file,
                    None,
                    None,
                    "samples",
                    f"{end} bytes",
                )
            )
            return False
        for row in np.flatnonzero(wrong_n).tolist():
            self.problem(
                "GL0302",
                "the index does not describe a tar of this size here",
                row,
                int(offset_n[row]),
                f"{BLOCK}-byte blocks below byte {end}",
                f"{int(size_n[row])} bytes at {int(offset_n[row])}",
            )
        return not wrong_n.any()

    def pieces(self, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Cut the shard between samples: first row, end row, first byte, end byte."""
        start_n = np.append(self.rows.offset_n - BLOCK, end)
        n, row = len(start_n) - 1, 0
        if not n:
            yield 0, 0, 0, end
        while row < n:
            stop = int(np.searchsorted(start_n, start_n[row] + PIECE, side="right")) - 1
            stop = min(max(stop, row + 1), n)
            yield row, stop, int(start_n[row]), int(start_n[stop])
            row = stop

    def images(self, row: int, stop: int, base: int, data: U8) -> None:
        """Check the image bytes of rows against their digests."""
        view = data.data
        hash_ = xxhash.xxh3_128_digest
        at_n = (self.rows.offset_n[row:stop] - base).tolist()
        size_n = self.rows.size_n[row:stop].tolist()
        told = [hash_(view[at : at + size]) for at, size in zip(at_n, size_n)]
        digest_nk = np.frombuffer(b"".join(told), np.uint8).reshape(-1, 16)
        wrong_n = (digest_nk != self.rows.digest_nk[row:stop]).any(axis=1)
        for i in np.flatnonzero(wrong_n).tolist():
            self.problem(
                "GL0303",
                "the image bytes do not match their checksum",
                row + i,
                int(self.rows.offset_n[row + i]),
                "xxh3-128 " + self.rows.digest_nk[row + i].tobytes().hex(),
                told[i].hex(),
            )

    def members(self, row: int, stop: int, base: int, data: U8, final: bool) -> int:
        """Walk the headers of rows' members in `data`; return the byte after the last one.

        All samples take one step together: first their images, then what follows each.
        """
        block_b = data.reshape(-1, BLOCK)
        offset_n = (self.rows.offset_n[row:stop] - base) // BLOCK - 1
        end_n = np.append(offset_n[1:], len(block_b))
        row_m, at_m, last = np.arange(row, stop), offset_n, len(block_b) if stop > row else 0
        image = True
        while len(row_m):
            head_mb = block_b[at_m]
            size_m = _octal(head_mb[:, _SIZE])
            good_m = self._headers(
                head_mb,
                row_m,
                base + at_m * BLOCK,
                size_m,
                image,
                at_m + 1 + (size_m + BLOCK - 1) // BLOCK > end_n,
            )
            if not image:
                self._labels(block_b, head_mb, row_m, at_m, size_m, good_m, base)
            row_m, at_m, end_n, size_m = (v[good_m] for v in (row_m, at_m, end_n, size_m))
            at_m = at_m + 1 + (size_m + BLOCK - 1) // BLOCK
            image = False
            going_m = at_m < end_n
            if (
                final
                and len(row_m)
                and row_m[-1] == stop - 1
                and going_m[-1]
                and not block_b[at_m[-1]].any()
            ):  # the end of the archive
                last, going_m[-1] = int(at_m[-1]), False
            row_m, at_m, end_n = row_m[going_m], at_m[going_m], end_n[going_m]
        return base + last * BLOCK

    def _headers(
        self,
        head_mb: U8,
        row_m: Ints,
        offset_m: Ints,
        size_m: Ints,
        image: bool,
        beyond_m: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.bool_]:
        """Check headers; return which may be walked on from."""
        said_m = _octal(head_mb[:, 148:154])
        sum_m = _sums(head_mb)
        named_m = (head_mb[:, :9] == self.rows.key_n9[row_m]).all(axis=1) & (
            (head_mb[:, 9] == ord("."))
            | (_tagged(head_mb, self.rows.label_n[row_m]) if image else False)
        )
        plain_m = (head_mb[:, 156] == ord("0")) & (
            head_mb[:, 257:262] == np.frombuffer(b"ustar", np.uint8)
        ).all(axis=1)
        broken_m = (said_m != sum_m) | (size_m < 0)
        other_m = size_m != self.rows.size_n[row_m] if image else np.zeros(len(row_m), np.bool_)
        bad_m = broken_m | ~named_m | ~plain_m | other_m | beyond_m
        for i in np.flatnonzero(bad_m).tolist():
            row, offset = int(row_m[i]), int(offset_m[i])
            name = head_mb[i, :100].tobytes().split(b"\0")[0].decode("ascii", "backslashreplace")
            key = self.rows.key_n9[row].tobytes().decode("ascii", "replace")
            if broken_m[i]:
                self.problem(
                    "GL0302",
                    "a tar header is damaged",
                    row,
                    offset,
                    f"checksum {sum_m[i]:o}",
                    f"{max(int(said_m[i]), 0):o}",
                )
            elif not named_m[i]:
                self.problem(
                    "GL0302", "a tar member has another name", row, offset, f"{key}.*", repr(name)
                )
            elif not plain_m[i]:
                self.problem(
                    "GL0302",
                    "a tar member is not a plain USTAR file",
                    row,
                    offset,
                    "type '0'",
                    repr(chr(head_mb[i, 156])),
                )
            elif other_m[i]:
                self.problem(
                    "GL0302",
                    "a tar member has another size than the index says",
                    row,
                    offset,
                    str(int(self.rows.size_n[row])),
                    str(int(size_m[i])),
                )
            else:
                self.problem(
                    "GL0302",
                    "a tar member runs into the next sample",
                    row,
                    offset,
                    "a smaller member",
                    f"{int(size_m[i])} bytes",
                )
        good_m: npt.NDArray[np.bool_] = ~bad_m
        return good_m

    def _labels(
        self,
        block_b: U8,
        head_mb: U8,
        row_m: Ints,
        at_m: Ints,
        size_m: Ints,
        good_m: npt.NDArray[np.bool_],
        base: int,
    ) -> None:
        """Check the label members among these headers."""
        suffix = np.frombuffer(b"cls\0", np.uint8)
        pick_m = np.flatnonzero(good_m & (head_mb[:, 10:14] == suffix).all(axis=1))
        label_m = _numbers(block_b[at_m[pick_m] + 1, :19], size_m[pick_m])
        wrong_m = label_m != self.rows.label_n[row_m[pick_m]]
        for i in pick_m[wrong_m].tolist():
            row, at = int(row_m[i]), int(at_m[i]) + 1
            text = block_b[at].tobytes()[: min(max(int(size_m[i]), 0), 19)]
            self.problem(
                "GL0302",
                "the label in the shard is not the index's",
                row,
                base + at * BLOCK,
                str(int(self.rows.label_n[row])),
                repr(text),
            )

    def tail(self, offset: int, data: U8) -> None:
        """Check the end of the archive: zeros, two blocks at least."""
        if data.any():
            at = int(np.flatnonzero(data)[0])
            self.found.add(
                Problem(
                    "GL0302",
                    "something stands behind the last sample",
                    self.entry.file,
                    None,
                    offset + at,
                    "zeros",
                    f"0x{int(data[at]):02x}",
                )
            )
        elif len(data) < 2 * BLOCK:
            self.found.add(
                Problem(
                    "GL0302",
                    "the end of the archive is missing",
                    self.entry.file,
                    None,
                    offset,
                    f"{2 * BLOCK} zeros or more",
                    str(len(data)),
                )
            )

    def padding(self, file: IO[bytes]) -> None:
        """Find bytes between members that are not zero: a second pass, for damage not yet found."""
        at = row = 0
        while at < self.entry.bytes:
            head = os.pread(file.fileno(), BLOCK, at)
            if len(head) < BLOCK or not any(head):
                return
            size = int(_octal(np.frombuffer(head, np.uint8)[None, _SIZE])[0])
            end = at + BLOCK + max(size, 0)
            pad = os.pread(file.fileno(), -max(size, 0) % BLOCK, end)
            while row + 1 < len(self.rows.offset_n) and self.rows.offset_n[row + 1] <= at + BLOCK:
                row += 1
            if any(pad):
                i = next(i for i, byte in enumerate(pad) if byte)
                self.problem(
                    "GL0302",
                    "a tar member's padding is not zero",
                    row,
                    end + i,
                    "0x00",
                    f"0x{pad[i]:02x}",
                )
            at = end + len(pad)


def _rest(file: IO[bytes], hasher: Any, buffer: U8) -> int:
    """Hash what is left of a file; return how many bytes that were."""
    count = 0
    while got := file.readinto(buffer):  # type: ignore[attr-defined]
        hasher.update(buffer[:got].data)
        count += got
    return count


def walk(
    root: str | os.PathLike[str], entry: Entry, rows: Rows | None, sha256: bool = False
) -> tuple[Findings, str]:
    """Read one shard and return what is wrong with it, and its SHA-256 in hex ('' if unread).

    First every byte is held against what the index says that it is; where one is not, or the index
    does not say all (KEY.json, tars of other writers), or `sha256` asks for it, one sequential
    read: SHA-256 of the file, xxh3-128 of every image at its indexed offset, and every tar header:
    checksum, name, type, size, and the label members. Without `rows` (an index that cannot be
    read) only the SHA-256. A pure function: shards may be walked in any order.
    """
    path = Path(root) / entry.file
    try:
        with open(path, "rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):  # the disk reads on while the processor hashes
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            if not sha256 and rows is not None and _exact(file, entry, rows):
                return Findings(), entry.sha256
            file.seek(0)
            return _walk(file, entry, rows)
    except OSError as error:
        findings = Findings()
        findings.add(Problem("GL0903", f"cannot be read: {error.strerror}", entry.file))
        return findings, ""


def _exact(file: IO[bytes], entry: Entry, rows: Rows) -> bool:
    """Say whether a shard is, to the byte, what glint writes for these rows of the index.

    Images are held against their xxh3-128; headers, labels, padding and end are made anew.
    """
    n, size = len(rows.label_n), os.fstat(file.fileno()).st_size
    state = _Walk(entry, rows)
    if not n or size != entry.bytes or size % BLOCK or not state.sane(size):
        return False
    if rows.label_n.min() < 0:
        return False
    head = os.pread(file.fileno(), BLOCK, 0)[:100].split(b"\0")[0]
    labels, suffix = b"_" not in head, head.rpartition(b".")[2].decode("ascii", "replace")
    if suffix not in FORMATS:
        return False
    members = blocks.Members(rows.key_n9, rows.label_n, rows.size_n, suffix, labels)
    start_n = rows.offset_n - BLOCK
    end = int(start_n[-1] + members.count_n[-1] * BLOCK)
    if (members.count_n * BLOCK != np.diff(start_n, append=end)).any():
        return False
    if size != end + 2 * BLOCK + -(end + 2 * BLOCK) % RECORD:
        return False
    hashed = xxhash.xxh3_128_digest
    for row, stop, start, after in state.pieces(size):
        data = _room(after - start)[: after - start]
        if _fill(file, data) < len(data):
            return False
        view, part = data.data, slice(row, stop)
        at_m = rows.offset_n[part] - start
        told = [
            hashed(view[at:behind])
            for at, behind in zip(at_m.tolist(), (at_m + rows.size_n[part]).tolist())
        ]
        if b"".join(told) != rows.digest_nk[part].tobytes():
            return False
        if not members.same(part, data.reshape(-1, BLOCK), at_m // BLOCK - 1):
            return False
        if data[max(end - start, 0) :].any():
            return False
    return True


def _fill(file: IO[bytes], data: U8) -> int:
    """Read until `data` is full or the file ends; return how many bytes that were."""
    got = 0
    while got < len(data) and (more := file.readinto(data[got:])):  # type: ignore[attr-defined]
        got += more
    return got


def _walk(file: IO[bytes], entry: Entry, rows: Rows | None) -> tuple[Findings, str]:
    none = Rows(
        np.empty((0, 9), np.uint8), *(np.empty(0, np.int64),) * 3, np.empty((0, 16), np.uint8)
    )
    state = _Walk(entry, rows if rows is not None else none)
    hasher = hashlib.sha256()
    size = os.fstat(file.fileno()).st_size
    if size != entry.bytes:
        state.found.add(
            Problem(
                "GL0302",
                "the shard has another size",
                entry.file,
                None,
                min(size, entry.bytes),
                f"{entry.bytes} bytes",
                f"{size} bytes",
            )
        )
    at = 0
    if rows is not None and size % BLOCK == 0 and state.sane(size):
        for row, stop, start, end in state.pieces(size):
            data = _room(end - start)[: end - start]
            got = _fill(file, data)
            hasher.update(data[:got].data)
            at = start + got
            if got < len(data):
                state.found.add(
                    Problem(
                        "GL0302",
                        "the shard ends early",
                        entry.file,
                        None,
                        at,
                        f"{end} bytes",
                        f"{at} bytes",
                    )
                )
                break
            state.images(row, stop, start, data)
            behind = state.members(row, stop, start, data, end == size)
            if end == size and (
                not len(state.rows.offset_n) or behind < size or not state.found.count
            ):
                state.tail(behind, data[behind - start :])
    _rest(file, hasher, _room(PIECE))
    told = hasher.hexdigest()
    if told != entry.sha256:
        if not state.found.count and rows is not None:
            state.padding(file)
        if not state.found.count:
            state.found.add(
                Problem(
                    "GL0302",
                    "the shard's bytes have changed",
                    entry.file,
                    None,
                    None,
                    "sha256 " + entry.sha256,
                    told,
                )
            )
    return state.found, told
