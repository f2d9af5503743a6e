"""RecordIO as a source: InsightFace's identity layout, plain im2rec packs, with or without .idx."""

# n images of the source, r all records of the file

from __future__ import annotations

import mmap
import os
import struct
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glint.errors import GlintError, InputError, UsageError
from glint.shards import commit, recordio, spill
from glint.shards.blocks import Room
from glint.shards.image import MAX_BYTES, Rejected, kind
from glint.shards.recordio import MAGIC, MAX_LENGTH, damaged
from glint.shards.sources.source import Ints, Run, fingerprint, persistent
from glint.shards.spill import Row, Table, arranged, collected, repeated
from glint.shards.strings import Strings

WINDOW = 4 << 20  # bytes of the file mapped at a time
LIMIT = MAX_BYTES + (1 << 20)  # an image that is let pass, and its labels
EXACT = 1 << 24  # above it float32 skips integers

_MOST_LABELS = 120  # of a record whose front is guessed: it lies in one block
_FRONT = struct.Struct("<III")  # magic, length (with no part flag), number of labels

# What the listing finds wrong with a record; the index into this tuple is stored.
FLAWS = ("", "corrupt-record", "label-not-integer", "identity-range", "lost-bytes")
LOST = 4

_resync: ContextVar[bool] = ContextVar("resync", default=False)


@contextmanager
def resyncing(on: bool = True) -> Iterator[None]:
    """Go on behind damage in record files that are listed inside this context."""
    token = _resync.set(on)
    try:
        yield
    finally:
        _resync.reset(token)


# A record of the file by its .idx; its first bytes; what a listing keeps of an image.
ENTRY = np.dtype([("key", np.int64), ("offset", np.int64)])
HEAD = np.dtype(
    [
        ("key", np.int64),
        ("offset", np.int64),
        ("span", np.int64),  # bytes from this record to the next
        ("id", np.uint64),
        ("value", np.float32),  # the class: label, or the first of several
        ("second", np.float32),  # the second label
        ("flag", np.int32),
        ("image", np.int32),  # bytes behind header and labels; -1 where the header claims too much
        ("intact", np.bool_),
    ]
)
_IMAGE = [("key", np.int64), ("at", np.int64), ("span", np.int64), ("flaw", np.uint8)]
LISTED = np.dtype([*_IMAGE, ("value", np.float32)])
ROW = np.dtype([*_IMAGE, ("label", np.int64)])


def _mapped(file: IO[bytes], begin: int, length: int) -> npt.NDArray[np.uint32]:
    """Map bytes of a file as words. Closing the map, with views of it, would hide a signal."""
    view = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=begin)
    return np.frombuffer(view, "<u4")


def _words(path: Path, at_r: Ints, count: int) -> npt.NDArray[np.uint32]:
    """Return `count` little-endian words at each 4-aligned offset (ascending); 0 past the end."""
    out_rw = np.zeros((len(at_r), count), np.uint32)
    size = path.stat().st_size // 4 * 4
    with path.open("rb") as file:
        first = 0
        while first < len(at_r) and at_r[first] < size:
            begin = int(at_r[first]) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            length = min(size - begin, WINDOW + 4 * count)
            last = int(np.searchsorted(at_r, min(begin + WINDOW, size), "left"))
            word = _mapped(file, begin, length)
            index = (at_r[first:last] - begin) // 4
            for w in range(count):
                inside = index + w < len(word)
                out_rw[first:last, w][inside] = word[(index + w)[inside]]
            del word
            first = last
    return out_rw


def scan_offsets(path: Path) -> Iterator[Ints]:
    """Yield the offset of every record of a file without .idx, many at a time.

    Raises InputError GL0213 at the first byte that is not a record.
    """
    found, before = array("q"), 0
    size = path.stat().st_size
    at, last, inside = 0, 0, False
    unpack = recordio.PART.unpack_from
    with path.open("rb") as file:
        while at < size:
            begin = at // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            length = min(size - begin, WINDOW)
            with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=begin) as view:
                while at < size and at - begin + 8 <= length:
                    magic, lrec = unpack(view, at - begin)
                    cflag, n = lrec >> 29, lrec & MAX_LENGTH
                    if magic != MAGIC:
                        raise damaged(
                            f"expected magic 0x{MAGIC:08x}, found 0x{magic:08x}",
                            path.name,
                            at,
                            f"it is record {before + len(found)}; with an .idx "
                            "beside the file, or --resync, glint goes on behind it",
                        )
                    if cflag not in ((2, 3) if inside else (0, 1)):
                        raise damaged(f"part flag {cflag} is out of place", path.name, at)
                    if n > size - at - 8:
                        raise damaged(
                            f"the record claims {n} bytes, the file has {size - at - 8} left",
                            path.name,
                            at,
                        )
                    if not inside:
                        last = at
                        found.append(at)
                    inside = cflag in (1, 2)
                    at += 8 + n + (-n & 3)
            if at < size and size - at < 8:
                raise damaged(f"{size - at} bytes are left over at the end", path.name, at)
            if len(found) >= spill.BLOCK:
                yield np.array(found, np.int64)
                before += len(found)
                found = array("q")
    if inside:
        raise damaged("the file ends inside a record of several parts", path.name, last)
    yield np.array(found, np.int64)


def _magics(path: Path) -> Ints:
    """Return every 4-aligned offset of a file at which the magic stands."""
    size = path.stat().st_size // 4 * 4
    found: list[Ints] = [np.empty(0, np.int64)]
    with path.open("rb") as file:
        for begin in range(0, size, WINDOW):
            length = min(size - begin, WINDOW)
            word = _mapped(file, begin, length)
            found.append(begin + 4 * np.flatnonzero(word == MAGIC))
            del word
    return np.concatenate(found)


def scan_past_damage(path: Path) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Cut a file into records and lost stretches; return where each begins, and which are lost.

    An aligned magic stands nowhere but at the start of a part, so a length is true where it leads
    to the next one or to the end of the file. A record is taken where all its parts do; one that
    stands before damage also where its header fits its length and its image has a known beginning.
    """
    size = path.stat().st_size
    at_p = _magics(path)
    lrec_p = _words(path, at_p, 2)[:, 1].astype(np.int64)
    cflag_p, length_p = (lrec_p >> 29).tolist(), lrec_p & MAX_LENGTH
    true_p = at_p + 8 + length_p
    end_p = true_p + (-length_p & 3)
    next_p = np.append(at_p[1:], size)[: len(at_p)]
    leads_p = end_p == next_p
    if len(at_p):  # the last record may lack its padding
        leads_p[-1] |= true_p[-1] <= size <= end_p[-1]
    ends, leads, at = end_p.tolist(), leads_p.tolist(), at_p.tolist()
    start: list[int] = []
    lost: list[bool] = []

    def mark(offset: int, gone: bool) -> None:
        if not (gone and lost and lost[-1]):  # lost stretches that touch are one
            start.append(offset)
            lost.append(gone)

    if size and (not at or at[0] > 0):
        mark(0, True)
    p = 0
    with path.open("rb") as file:
        while p < len(at):
            stop = p
            if cflag_p[p] == 1:
                while leads[stop] and stop + 1 < len(at) and cflag_p[stop + 1] in (2, 3):
                    stop += 1
                    if cflag_p[stop] == 3:
                        break
            whole = cflag_p[p] == 0 or (cflag_p[p] == 1 and cflag_p[stop] == 3)
            if whole and leads[stop]:
                mark(at[p], False)
            elif (
                whole
                and ends[stop] <= min(int(next_p[stop]), size)
                and _plausible(file.fileno(), at[p], ends[stop])
            ):
                mark(at[p], False)
                mark(ends[stop], True)
            else:
                mark(at[p], True)
            p = stop + 1
    return np.array(start, np.int64), np.array(lost, np.bool_)


def _plausible(fd: int, at: int, end: int) -> bool:
    """Say whether the record between two offsets has a header that fits, and holds an image."""
    try:
        payload, after = recordio.parse(os.pread(fd, min(end - at, 2 * LIMIT), at), 0, LIMIT)
        image = recordio.unpack(payload)[1]
    except GlintError:
        return False
    return after == end - at and (not image or kind(image) != "")


def rebuild_idx(rec: Path) -> dict[str, Any]:
    """Write the .idx of a record file anew, from its records; the old one is kept as .idx.old.

    Raises UsageError GL0002 for another kind of file, InputError GL0213 at damage (with
    `resyncing`, the lost stretches are left out), ResourceError.
    """
    if rec.suffix != ".rec":
        raise UsageError("GL0002", "only RecordIO has an .idx", where=str(rec))
    idx = rec.with_suffix(".idx")
    if _resync.get():
        heads, lost = _past_damage(rec, None)
    else:
        heads, lost = read_heads(rec, _scanned(rec, None)), np.empty(0, HEAD)
    heads = _made_up_keys(heads, gaps=len(lost) > 0)
    if idx.exists():
        idx.replace(idx.with_name(idx.name + ".old"))
    with commit.atomic(idx) as file:
        for head_m in heads.blocks():
            pairs = zip(head_m["key"].tolist(), head_m["offset"].tolist())
            file.write(b"".join(b"%d\t%d\n" % pair for pair in pairs))
    return {"idx": str(idx), "records": len(heads), "lost_stretches": len(lost)}


def _scanned(rec: Path, folder: Path | None) -> Table:
    """Return the records of a file without .idx; no key is known yet."""
    return collected((_entries(offset_m) for offset_m in scan_offsets(rec)), ENTRY, folder)


def _entries(offset_m: Ints, key_m: Ints | int = -1) -> Row:
    row_m = np.empty(len(offset_m), ENTRY)
    row_m["key"], row_m["offset"] = key_m, offset_m
    return row_m


def _past_damage(rec: Path, folder: Path | None) -> tuple[Table, Row]:
    """Return the records of a damaged file, and the heads of the stretches without one."""
    offset_r, lost_r = scan_past_damage(rec)
    heads = read_heads(rec, collected([_entries(offset_r, -1 - lost_r)], ENTRY, folder))
    lost = [head_m[head_m["key"] == -2] for head_m in heads.blocks()]
    good = (head_m[head_m["key"] == -1] for head_m in heads.blocks())
    return collected(good, HEAD, folder), np.concatenate([np.empty(0, HEAD), *lost])


def _with_next(entries: Table, size: int) -> Iterator[tuple[Row, Ints]]:
    """Yield records in blocks, with the offset of the one behind each (`size` for the last)."""
    for start in range(0, len(entries), spill.BLOCK):
        stop = min(start + spill.BLOCK, len(entries))
        row_m = entries.read(start, min(stop + 1, len(entries)))
        next_m = (
            row_m["offset"][1:] if stop < len(entries) else np.append(row_m["offset"], size)[1:]
        )
        yield row_m[: stop - start], next_m


def read_heads(path: Path, entries: Table) -> Table:
    """Read the headers of the records at ascending, 4-aligned offsets and check their lengths.

    A record is intact when its own lengths lead exactly to the next one. Every record of several
    parts, or too short for a header, is read in full; the others cost 40 bytes each.
    """
    size = path.stat().st_size
    heads = Table(HEAD, entries.folder)
    with path.open("rb") as file:
        for row_m, next_m in _with_next(entries, size):
            heads.append(_heads(path, file.fileno(), row_m, next_m - row_m["offset"], size))
    return heads


def _heads(path: Path, fd: int, entry_m: Row, span_m: Ints, size: int) -> Row:
    offset_m = entry_m["offset"].copy()
    word_mw = _words(path, offset_m, 10)
    length_m = (word_mw[:, 1] & MAX_LENGTH).astype(np.int64)
    cflag_m = word_mw[:, 1] >> 29
    whole_m = (word_mw[:, 0] == MAGIC) & (cflag_m == 0)
    step_m = 8 + length_m + (-length_m & 3)
    # the last record may lack its padding
    short_m = (offset_m + span_m == size) & (8 + length_m <= span_m) & (span_m <= step_m)
    flag_m = word_mw[:, 2].astype(np.int64)
    image_m = length_m - 24 - 4 * flag_m
    value_m, first_m, second_m = (word_mw[:, w].view(np.float32) for w in (3, 8, 9))
    head_m = np.empty(len(entry_m), HEAD)
    head_m["key"], head_m["offset"], head_m["span"] = entry_m["key"], offset_m, span_m
    head_m["id"] = word_mw[:, 4].astype(np.uint64) | word_mw[:, 5].astype(np.uint64) << np.uint64(
        32
    )
    head_m["value"] = np.where(flag_m > 0, first_m, value_m)
    head_m["second"] = np.where(flag_m > 1, second_m, np.float32(np.nan))
    good_m = whole_m & ((step_m == span_m) | short_m) & (length_m >= 24) & (image_m >= 0)
    head_m["intact"] = good_m
    head_m["image"], head_m["flag"] = np.where(good_m, image_m, -1), np.where(good_m, flag_m, 0)
    for i in np.flatnonzero((word_mw[:, 0] == MAGIC) & (cflag_m == 1)).tolist():
        try:
            block = os.pread(fd, min(int(span_m[i]), 2 * LIMIT), int(offset_m[i]))
            payload, after = recordio.parse(block, 0, LIMIT)
            header, image = recordio.unpack(payload)
        except GlintError:
            continue
        labels = header.label if isinstance(header.label, tuple) else ()
        whole = after == int(span_m[i])
        head_m[i] = (
            *head_m[i].tolist()[:3],
            header.id,
            header.first,
            labels[1] if len(labels) > 1 else np.nan,
            header.flag if whole else 0,
            len(image) if whole else -1,
            whole,
        )
    return head_m


def check_idx(path: Path, entries: Table) -> None:
    """Check that ascending offsets are those of this file's records.

    One or a few records without their magic, each where the record before it ends, are damage of
    the file; offsets that no record's end leads to are a foreign .idx.
    Raises InputError GL0216 naming the first entries, GL0213 for a file cut short.
    """
    size = path.stat().st_size
    idx = path.with_suffix(".idx").name
    for what in ("key", "offset"):
        several = repeated(arranged(entries, what), what)
        if several:
            raise _mismatch(idx, [f"{what} {v} stands {c} times" for v, c in several])
    if not len(entries):
        if size:
            raise _mismatch(idx, ["it lists no record"])
        return
    foreign: list[str] = []
    missed: list[str] = []
    unlisted: list[int] = []
    misses = outside = 0
    # The first record must stand at 0; one of a single part says where the next one does.
    sure, due, offset, length = True, 0, 0, 0
    for row_m in entries.blocks():
        offset_m = row_m["offset"].copy()
        inside_m = offset_m + 8 <= size
        word_mw = _words(path, offset_m // 4 * 4, 2)
        part_m = word_mw[:, 1] >> 29
        hit_m = inside_m & (offset_m % 4 == 0) & (word_mw[:, 0] == MAGIC) & (part_m < 2)
        length_m = (word_mw[:, 1] & MAX_LENGTH).astype(np.int64)
        sure_m = np.append(sure, hit_m & (part_m == 0))
        due_m = np.append(due, offset_m + 8 + length_m + (-length_m & 3))
        missed_m = inside_m & ~hit_m
        foreign_m = missed_m & sure_m[:-1] & (due_m[:-1] != offset_m)
        for bad, bad_m in ((foreign, foreign_m), (missed, missed_m)):
            first = np.flatnonzero(bad_m)[: 5 - len(bad)]
            bad += [f"key {row_m['key'][i]} @ {offset_m[i]}" for i in first]
        misses += int(missed_m.sum())
        outside += int((~inside_m).sum())
        unlisted += _at_magic(path, due_m[:-1][sure_m[:-1] & (due_m[:-1] + 8 <= offset_m)], size)
        unlisted = sorted(unlisted)[:5]
        sure, due = bool(sure_m[-1]), int(due_m[-1])
        offset, length = int(offset_m[-1]), int(length_m[-1])
    if foreign or misses > max(16, len(entries) // 20):
        raise _mismatch(idx, foreign or missed)
    unlisted += _at_magic(path, np.array([due] if sure else [], np.int64), size)
    if unlisted:
        raise _mismatch(idx, [f"the record @ {at} is not listed" for at in sorted(unlisted)[:5]])
    if (sure and offset + 8 + length > size) or outside:
        want = max(offset + 8, due if sure else 0)
        raise damaged(
            f"the file ends here, {outside or 1} of {len(entries)} "
            f"records of {idx} lie behind it: at least {want - size} bytes are missing",
            path.name,
            size,
            "copy or download the file again",
        )


def _at_magic(path: Path, due_m: Ints, size: int) -> list[int]:
    """Return the offsets at which a record begins."""
    due_m = np.sort(due_m[due_m + 8 <= size])
    found: list[int] = due_m[_words(path, due_m, 1)[:, 0] == MAGIC].tolist()
    return found


def _mismatch(idx: str, bad: list[str]) -> InputError:
    return InputError(
        "GL0216",
        "it does not belong to its .rec file: " + "; ".join(bad),
        where=idx,
        hint="move the .idx away: glint then finds the records itself",
    )


def _known_keys(idx: Path, heads: Table, gaps: bool) -> Table:
    """Take keys from an .idx that lists every record found, or else make them up."""
    if idx.exists():
        try:
            key_r, offset_r = recordio.read_idx(idx)
        except InputError:
            return _made_up_keys(heads, gaps=gaps)
        head_r = heads.array()
        offset_u, first_u = np.unique(offset_r, return_index=True)
        place_r = np.minimum(np.searchsorted(offset_u, head_r["offset"]), max(len(offset_u) - 1, 0))
        if len(offset_u) and (offset_u[place_r] == head_r["offset"]).all():
            found_r = key_r[first_u[place_r]]
            if len(np.unique(found_r)) == len(found_r):
                head_r = head_r.copy()
                head_r["key"] = found_r
                return collected([head_r], HEAD, heads.folder)
    return _made_up_keys(heads, gaps=gaps)


def _slack(value: float) -> int:
    """Return by how much a float32 key may differ from the one that was meant."""
    return int(np.spacing(np.float32(value))) if value >= EXACT else 0


def _is_structure(head_m: Row) -> npt.NDArray[np.bool_]:
    found_m: npt.NDArray[np.bool_] = (
        head_m["intact"] & (head_m["flag"] >= 1) & (head_m["image"] == 0)
    )
    return found_m


def _made_up_keys(heads: Table, *, gaps: bool = False) -> Table:
    """Give keys to a file without .idx: the ids where they tell a header, else by order.

    Where records are lost (`gaps`), order tells no keys, and ids are taken that differ.

    Where ids are not set, the header is the one empty record whose range is that of the other
    empty records; images are then 1.. in file order and identities follow them.
    """
    n, count, told, usable = len(heads), 0, gaps, True
    for head_m in heads.blocks():
        empty_m = _is_structure(head_m)
        count += int(empty_m.sum())
        told |= bool((empty_m & (head_m["id"] == 0)).any())
        usable &= bool((head_m["id"] < 1 << 62).all())
    if told and usable:
        ids = collected(
            (_entries(head_m["id"].astype(np.int64)) for head_m in heads.blocks()),
            ENTRY,
            heads.folder,
        )
        if not repeated(arranged(ids, "offset"), "offset", 1):
            return _with_keys(heads, lambda head_m, at: head_m["id"].astype(np.int64))
    first = n - count + 1
    header: list[int] = []
    at = 0
    for head_m in heads.blocks():
        value_m, second_m = (head_m[name].astype(np.float64) for name in ("value", "second"))
        with np.errstate(invalid="ignore"):
            found_m = (
                _is_structure(head_m)
                & (head_m["flag"] == 2)
                & (abs(value_m - first) <= _slack(first))
                & (abs(second_m - first - count + 1) <= _slack(first + count))
            )
        header += (at + np.flatnonzero(found_m)[:2]).tolist()
        at += len(head_m)
    if len(header) != 1 or count < 2:
        return _with_keys(heads, lambda head_m, at: at + np.arange(len(head_m)))
    images = identities = 0

    def numbered(head_m: Row, at: int) -> Ints:
        nonlocal images, identities
        empty_m = _is_structure(head_m)
        image_m = ~empty_m
        if at <= header[0] < at + len(head_m):
            empty_m[header[0] - at] = False
        key_m = np.zeros(len(head_m), np.int64)
        key_m[image_m] = 1 + images + np.arange(image_m.sum())
        key_m[empty_m] = first + identities + np.arange(empty_m.sum())
        images, identities = images + int(image_m.sum()), identities + int(empty_m.sum())
        return key_m

    return _with_keys(heads, numbered)


def _with_keys(heads: Table, key: Callable[[Row, int], Ints]) -> Table:
    """Return the heads with the keys that `key` gives to a block and its first row."""
    made, at = Table(HEAD, heads.folder), 0
    for head_m in heads.blocks():
        head_m = head_m.copy()
        head_m["key"] = key(head_m, at)
        made.append(head_m)
        at += len(head_m)
    return made


class _Layout:
    """Tell images from InsightFace's header and identity records.

    Membership of an identity comes from the image records alone: the ranges are float32 and
    rounded above 2^24, and old packs hold several identity records for one label.
    """

    def __init__(self, heads: Table) -> None:
        self.heads, self.first, self.notes = heads, 0.0, list[str]()
        for head_m in heads.blocks():
            found_m = head_m["value"][(head_m["key"] == 0) & _is_structure(head_m)]
            if len(found_m):
                self.first = float(found_m[0])
        if not np.isfinite(self.first) or self.first < 1:
            self.first = 0.0
        self.slack = _slack(self.first)
        self.facts: dict[str, Any] = {"records": len(heads)}
        self.name = "recordio/identity" if self.first else "recordio/plain"
        self._ranges: list[Row] = []

    def images(self) -> Table:
        """Return the images in the order of their keys, and count what else there is."""
        made = Table(LISTED, self.heads.folder)
        identities = unsound = 0
        stop = self.first + self.slack
        for head_m in self.heads.blocks():
            image_m, flaw_m = np.ones(len(head_m), np.bool_), (~head_m["intact"]).astype(np.uint8)
            key_m = head_m["key"]
            if self.first:
                empty_m = _is_structure(head_m)
                identity_m = empty_m & (key_m >= self.first - self.slack) & (key_m > 0)
                image_m = ~identity_m & ~(empty_m & (key_m == 0))
                # Behind the images only identity records are expected; but the last images may
                # stand where the rounded range says identities.
                late_m = key_m > stop if self.slack else key_m >= stop
                flaw_m[image_m & late_m & (flaw_m == 0)] = 3
                identities += int(identity_m.sum())
                a, b = (head_m[name][identity_m].astype(np.float64) for name in ("value", "second"))
                with np.errstate(invalid="ignore"):
                    sound = np.isfinite(a) & np.isfinite(b) & (a >= 1) & (a <= b) & (b <= stop)
                unsound += int((~sound).sum())
                if stop <= EXACT:
                    self._ranges.append(np.stack([a[sound], b[sound]]))
            row_m = np.empty(int(image_m.sum()), LISTED)
            for name, column_m in (
                ("key", key_m),
                ("at", head_m["offset"]),
                ("span", head_m["span"]),
                ("flaw", flaw_m),
                ("value", head_m["value"]),
            ):
                row_m[name] = column_m[image_m]
            made.append(row_m)
        made = collected(arranged(made, "key"), LISTED, made.folder)
        if self.first:
            self.facts["identity_records"] = identities
            if unsound:
                self.notes.append(f"{unsound} identity records hold no range of image keys")
            if stop > EXACT:
                self.notes.append(
                    "image keys go past 2^24, where the ranges of identity records are rounded; "
                    "labels are taken from the images"
                )
            else:
                self._compare(made)
        return made

    def _compare(self, images: Table) -> None:
        """Compare the identity records with the images; they may be wrong: they decide nothing."""
        a, b = np.concatenate([np.empty((2, 0)), *self._ranges], 1)
        order = np.argsort(a, kind="stable")
        a, b = a[order], b[order]
        if not len(a):
            return
        if (b[:-1] > a[1:]).any():
            self.notes.append(f"{int((b[:-1] > a[1:]).sum())} identity records overlap")
        a, b = np.ceil(a).astype(np.int64), np.ceil(b).astype(np.int64)
        # Of each range [a, b) of keys: how many images, and how often the label had changed before
        # the first of them and before the last.
        held, before, after = (np.zeros(len(a), np.int64) for _ in range(3))
        changes, last = 0, None
        for row_m in images.blocks():
            key_m, value_m = row_m["key"].copy(), row_m["value"]
            change_m = np.append(
                last is not None and value_m[0] != last, value_m[1:] != value_m[:-1]
            )
            change_m = changes + np.cumsum(change_m)
            here = np.flatnonzero((a <= key_m[-1]) & (b > key_m[0]))
            lo, hi = np.searchsorted(key_m, a[here]), np.searchsorted(key_m, b[here])
            here, lo, hi = here[hi > lo], lo[hi > lo], hi[hi > lo]
            fresh = held[here] == 0
            before[here[fresh]] = change_m[lo[fresh]]
            after[here] = change_m[hi - 1]
            held[here] += hi - lo
            changes, last = int(change_m[-1]), value_m[-1]
        uncovered = len(images) - int(held.sum())
        if uncovered > 0:
            self.notes.append(f"{uncovered} images lie in no identity record's range")
        mixed = int((before != after)[held > 0].sum())
        if mixed:
            self.notes.append(f"{mixed} identity records hold images of several labels")


def _number(row_m: Row) -> Ints:
    """Return the labels of images, -1 for those that are none, and say so in their flaws."""
    value_m = row_m["value"].astype(np.float64)
    with np.errstate(invalid="ignore"):
        whole_m = (value_m >= 0) & (value_m < 2.0**53) & (value_m == np.floor(value_m))
    good_m = whole_m & (row_m["flaw"] != 1)
    row_m["flaw"][(row_m["flaw"] == 0) & ~whole_m] = 2
    return np.where(good_m, np.where(whole_m, value_m, 0), -1).astype(np.int64)


class _Labels:
    """The labels seen so far, each once."""

    def __init__(self) -> None:
        self._kept, self._more, self._count = np.empty(0, np.int64), list[Ints](), 0

    def add(self, number_m: Ints) -> None:
        """Take up labels; negative ones are none."""
        self._more.append(np.unique(number_m[number_m >= 0]))
        self._count += len(self._more[-1])
        if self._count > max(spill.BLOCK, len(self._kept)):
            self.all()

    def all(self) -> Ints:
        """Return them in order."""
        self._kept, self._more, self._count = (
            np.unique(np.concatenate([self._kept, *self._more])),
            [],
            0,
        )
        return self._kept


def _all_there(rec: Path, idx: Path) -> None:
    """Refuse a file that ends before records of its .idx: their loss would go unseen."""
    size, behind, every = rec.stat().st_size, 0, 0
    try:
        for two_r2 in recordio.idx_blocks(idx):
            behind += int((two_r2[:, 1] >= size).sum())
            every += len(two_r2)
    except (OSError, InputError):  # none, or no .idx: there is nothing to hold the file against
        return
    if behind:
        raise InputError(
            "GL0213",
            f"ends at byte {size}; {behind} of the {every} records of {idx.name} lie behind it",
            where=str(rec),
            hint="copy or download the file again; to go on with what is here, move the .idx away",
        )


class RecordIO:
    """A .rec file, listed.

    Raises InputError GL0213 (damage that hides what follows), GL0216 (foreign .idx).
    """

    kind = "recordio"

    def __init__(self, rec: Path, folder: Path | None = None) -> None:
        self.rec = rec
        idx = rec.with_suffix(".idx")
        lost = np.empty(0, HEAD)  # stretches without a record
        if _resync.get():
            _all_there(rec, idx)
            heads, lost = _past_damage(rec, folder)
            heads = _known_keys(idx, heads, len(lost) > 0)
        elif idx.exists():
            blocks = (_entries(two[:, 1], two[:, 0]) for two in recordio.idx_blocks(idx))
            entries = collected(blocks, ENTRY, folder)
            entries = collected(arranged(entries, "offset"), ENTRY, folder)
            check_idx(rec, entries)
            heads = read_heads(rec, entries)
        else:
            heads = _made_up_keys(read_heads(rec, _scanned(rec, folder)))
        layout = _Layout(heads)
        images = layout.images()
        seen, beyond = _Labels(), 0
        for row_m in images.blocks():
            number_m = _number(row_m)
            seen.add(number_m)
            beyond += int((number_m >= EXACT).sum())
        label_C = seen.all()
        self._table = Table(ROW, folder)
        self._bytes = int(lost["span"].sum())
        for row_m in images.blocks():
            number_m, image_m = _number(row_m), np.empty(len(row_m), ROW)
            for name in ("key", "at", "span", "flaw"):
                image_m[name] = row_m[name]
            image_m["label"] = np.where(number_m < 0, -1, np.searchsorted(label_C, number_m))
            self._bytes += int(row_m["span"].sum())
            self._table.append(image_m)
        if len(lost):
            none_m = np.empty(len(lost), ROW)
            none_m["key"] = none_m["label"] = -1
            none_m["at"], none_m["span"], none_m["flaw"] = lost["offset"], lost["span"], LOST
            self._table.append(none_m)
        self._take(self._table.array())
        self.classes = Strings.of(
            b"%d" % value
            for at in range(0, len(label_C), spill.BLOCK)
            for value in label_C[at : at + spill.BLOCK].tolist()
        )
        self.names = Strings.of(b"" for _ in range(len(self.classes)))
        notes = layout.notes
        if len(lost):
            notes.append(
                f"{int(lost['span'].sum())} bytes in {len(lost)} stretches hold no record "
                "that can be read"
            )
        if beyond:
            notes.append(
                f"{beyond} labels are 2^24 or more: the file's float32 cannot tell "
                "neighbours apart, so identities may have been merged before glint"
            )
        self._facts = {
            "layout": layout.name,
            **layout.facts,
            "images": len(self.key),
            "identities": len(self.classes),
            "idx": idx.name if idx.exists() else "absent, found by scanning",
            "notes": notes + self._property_notes(),
        }

    def _take(self, row_n: Row) -> None:
        self.key, self.at, self.span = row_n["key"], row_n["at"], row_n["span"]
        self.flaw, self.label = row_n["flaw"], row_n["label"]

    @property
    def n(self) -> int:
        return len(self.key)

    def _property_notes(self) -> list[str]:
        """Compare with the `property` file beside the records, where there is one."""
        path = self.rec.with_name("property")
        try:
            with path.open("rb") as file:
                said = int(file.read(64).split(b",")[0])
        except (OSError, ValueError):
            return []
        found = len(self.classes)
        return [] if said == found else [f"'property' says {said} identities, found {found}"]

    def describe(self) -> dict[str, Any]:
        return {"source": self.rec.name, **self._facts}

    def fingerprint(self) -> dict[str, Any]:
        return self.fingerprint_of(self.rec)

    @classmethod
    def fingerprint_of(cls, rec: Path) -> dict[str, Any]:
        """Return the fingerprint of a file that is not listed yet."""
        idx = rec.with_suffix(".idx")
        said = {
            "kind": cls.kind,
            "rec": fingerprint(rec),
            "idx": fingerprint(idx) if idx.exists() else None,
        }
        return {**said, "resync": True} if _resync.get() else said

    @cached_property
    def _file(self) -> Any:
        return open(self.rec, "rb", buffering=0)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_file", "_table")}

    def record(self, i: int) -> bytes:
        """Return the bytes of record i as they stand in the file, at most what glint accepts."""
        size, at = min(int(self.span[i]), 2 * LIMIT), int(self.at[i])
        fd = self._file.fileno()
        try:
            return os.pread(fd, size, at)
        except OSError:
            return persistent(lambda: os.pread(fd, size, at), f"{self.rec.name} @ 0x{at:x}")

    def read(self, i: int) -> bytes:
        flaw = int(self.flaw[i])
        if flaw == LOST:
            raise Rejected(
                FLAWS[LOST],
                f"{int(self.span[i])} bytes from 0x{int(self.at[i]):x} "
                "hold no record that can be read",
            )
        block = self.record(i)
        if not flaw and len(block) >= 32:  # the common case, in one step
            magic, length, labels = _FRONT.unpack_from(block)
            start, end = 32 + 4 * labels, 8 + length
            if magic == MAGIC and length <= LIMIT and start <= end <= len(block):
                return block[start:end]
        try:
            payload, _ = recordio.parse(block, 0, LIMIT)
            header, image = recordio.unpack(payload)
        except InputError as error:
            raise Rejected("corrupt-record", error.what) from None
        if flaw == 2:
            raise Rejected("label-not-integer", f"label {header.first!r}")
        if flaw:
            raise Rejected(FLAWS[flaw])
        return image

    def many(self, row_n: Ints, most: int, room: Room) -> Iterator[Run]:
        """Read records in runs of about `most` bytes, their images to where `room` wants them."""
        span_n = np.minimum(self.span[row_n], 2 * LIMIT)
        end_n = np.cumsum(room.slots(span_n))
        first = 0
        while first < len(row_n):
            before = int(end_n[first - 1]) if first else 0
            last = max(int(np.searchsorted(end_n, before + most, "right")), first + 1)
            run = None
            while run is None:
                run = self._run(row_n[first:last], span_n[first:last], room)
            yield run
            first = last

    def _run(self, row_n: Ints, span_n: Ints, room: Room) -> Run | None:
        """Read records, taking what stands before each image to be as long as it last was.

        None where an image begins earlier: it may need more room, and all is to be read again.
        """
        front = self._front
        size_n = np.maximum(span_n - front, 0)
        data, start_n = room.lay(size_n)
        at_n = start_n - front
        fd, view, preadv = self._file.fileno(), data.data, os.preadv
        offset_n = self.at[row_n].tolist()
        try:
            got = [
                preadv(fd, (view[at:stop],), offset)
                for at, stop, offset in zip(at_n.tolist(), (at_n + span_n).tolist(), offset_n)
            ]
        except OSError:
            got = [-1] * len(row_n)  # one by one, `read` tries again and knows what to say
        word = data[: len(data) // 4 * 4].view("<u4")
        magic_n, length_n, label_n = (word[at_n // 4 + w].astype(np.int64) for w in range(3))
        good_n = (
            (self.flaw[row_n] == 0)
            & (span_n >= 32)
            & (np.array(got) == span_n)
            & (magic_n == MAGIC)
            & (length_n <= LIMIT)
            & (32 + 4 * label_n <= 8 + length_n)
            & (8 + length_n <= span_n)
        )
        least = 32 + 4 * int(label_n[good_n].min(initial=_MOST_LABELS))
        if good_n.any():
            self._front = least
        if least < front:
            return None
        start_n = np.where(good_n, at_n + 32 + 4 * label_n, start_n)
        stop_n = np.where(good_n, at_n + 8 + length_n, start_n)
        bad: dict[int, Rejected] = {}
        for j in np.flatnonzero(~good_n).tolist():  # of several parts, or no good
            try:
                image = self.read(int(row_n[j]))
            except Rejected as why:
                bad[j] = why
                continue
            if len(image) > size_n[j]:
                self._front = 32
                return None
            at = int(start_n[j])
            stop_n[j] = at + len(image)
            view[at : at + len(image)] = image
        return Run(data, start_n, stop_n, bad)

    _front = 32  # bytes before the image in the records that were read last

    def names_of(self, row_n: Ints) -> pa.Array:
        """Return the keys of records as text."""
        return pa.array(self.key[row_n]).cast(pa.string())

    def name(self, i: int) -> str:
        return str(int(self.key[i])) if self.flaw[i] != LOST else f"@0x{int(self.at[i]):x}"

    def offset(self, i: int) -> int | None:
        return int(self.at[i])

    def bytes(self) -> int:
        return self._bytes

    def save(self, folder: Path, seed: int | None = None) -> None:
        spill.save(folder, self._table.blocks(), ROW, seed)
        self.classes.save(folder, "classes")
        self.names.save(folder, "names")

    @classmethod
    def load(
        cls,
        path: Path,
        facts: dict[str, Any],
        folder: Path,
        start: int = 0,
        stop: int | None = None,
    ) -> RecordIO:
        """Open rows [start, stop) of what `save` wrote, without listing the file."""
        made = cls.__new__(cls)
        made.rec, made._facts = path, facts
        made._take(spill.load(folder, ROW, start, stop))
        made._bytes = int(made.span.sum())
        made.classes = Strings.load(folder, "classes")
        made.names = Strings.load(folder, "names")
        return made
