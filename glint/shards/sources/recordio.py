"""RecordIO as a source: InsightFace's identity layout, plain im2rec packs, with or without .idx."""

# n images of the source, r all records of the file

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glint.errors import GlintError, InputError, UsageError
from glint.shards import commit, recordio
from glint.shards.image import MAX_BYTES, Rejected, kind
from glint.shards.recordio import MAGIC, MAX_LENGTH, damaged
from glint.shards.sources.source import Ints, Run, dense, fingerprint, persistent
from glint.shards.strings import Strings, load_array

WINDOW = 32 << 20  # bytes of the file mapped at a time
LIMIT = MAX_BYTES + (1 << 20)  # an image that is let pass, and its labels
EXACT = 1 << 24  # above it float32 skips integers

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


@dataclass
class Heads:
    """The first bytes of every record, in file order: arrays of [r]."""

    offset: Ints
    span: Ints  # bytes from this record to the next
    intact: npt.NDArray[np.bool_]
    flag: Ints
    value: npt.NDArray[np.float64]  # the class: label, or the first of several
    second: npt.NDArray[np.float64]  # the second label
    id: npt.NDArray[np.uint64]
    image: Ints  # bytes behind header and labels; -1 where the header claims too much

    def of(self, keep_r: npt.NDArray[np.bool_]) -> Heads:
        """Return the heads of some records."""
        return Heads(*(getattr(self, f.name)[keep_r] for f in fields(self)))


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
            with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=begin) as view:
                word = np.frombuffer(view, "<u4")
                index = (at_r[first:last] - begin) // 4
                for w in range(count):
                    inside = index + w < len(word)
                    out_rw[first:last, w][inside] = word[(index + w)[inside]]
                del word
            first = last
    return out_rw


def scan_offsets(path: Path) -> Ints:
    """Return the offset of every record of a file without .idx.

    Raises InputError GL0213 at the first byte that is not a record.
    """
    found: list[int] = []
    size = path.stat().st_size
    at, inside = 0, False
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
                            f"it is record {len(found)}; with an .idx "
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
                        found.append(at)
                    inside = cflag in (1, 2)
                    at += 8 + n + (-n & 3)
            if at < size and size - at < 8:
                raise damaged(f"{size - at} bytes are left over at the end", path.name, at)
    if inside:
        raise damaged("the file ends inside a record of several parts", path.name, found[-1])
    return np.array(found, np.int64)


def _magics(path: Path) -> Ints:
    """Return every 4-aligned offset of a file at which the magic stands."""
    size = path.stat().st_size // 4 * 4
    found: list[Ints] = [np.empty(0, np.int64)]
    with path.open("rb") as file:
        for begin in range(0, size, WINDOW):
            length = min(size - begin, WINDOW)
            with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=begin) as view:
                word = np.frombuffer(view, "<u4")
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
        offset_r, lost_r = scan_past_damage(rec)
    else:
        offset_r = scan_offsets(rec)
        lost_r = np.zeros(len(offset_r), np.bool_)
    heads = read_heads(rec, offset_r)
    good_r = ~lost_r
    key_r, offset_r = _made_up_keys(heads.of(good_r), gaps=bool(lost_r.any())), offset_r[good_r]
    if idx.exists():
        idx.replace(idx.with_name(idx.name + ".old"))
    with commit.atomic(idx) as file:
        for begin in range(0, len(key_r), 1 << 16):
            pairs = zip(
                key_r[begin : begin + (1 << 16)].tolist(),
                offset_r[begin : begin + (1 << 16)].tolist(),
            )
            file.write(b"".join(b"%d\t%d\n" % pair for pair in pairs))
    return {"idx": str(idx), "records": len(key_r), "lost_stretches": int(lost_r.sum())}


def read_heads(path: Path, offset_r: Ints) -> Heads:
    """Read the headers of the records at ascending, 4-aligned offsets and check their lengths.

    A record is intact when its own lengths lead exactly to the next one. Every record of several
    parts, or too short for a header, is read in full; the others cost 40 bytes each.
    """
    size = path.stat().st_size
    word_rw = _words(path, offset_r, 10)
    length_r = (word_rw[:, 1] & MAX_LENGTH).astype(np.int64)
    cflag_r = word_rw[:, 1] >> 29
    span_r = np.diff(offset_r, append=size)
    whole_r = (word_rw[:, 0] == MAGIC) & (cflag_r == 0)
    end_r = offset_r + 8 + length_r + (-length_r & 3)
    chained_r = end_r - offset_r == span_r
    if len(chained_r):  # the last record may lack its padding
        chained_r[-1] |= 8 + int(length_r[-1]) <= int(span_r[-1]) <= int(end_r[-1] - offset_r[-1])
    flag_r = word_rw[:, 2].astype(np.int64)
    image_r = length_r - 24 - 4 * flag_r
    with np.errstate(invalid="ignore"):  # signalling NaNs
        value_r, first_r, second_r = (
            word_rw[:, w].view(np.float32).astype(np.float64) for w in (3, 8, 9)
        )
    heads = Heads(
        offset_r,
        span_r,
        whole_r & chained_r & (length_r >= 24),
        flag_r,
        np.where(flag_r > 0, first_r, value_r),
        np.where(flag_r > 1, second_r, np.nan),
        word_rw[:, 4].astype(np.uint64) | word_rw[:, 5].astype(np.uint64) << np.uint64(32),
        image_r,
    )
    rest = np.flatnonzero((word_rw[:, 0] == MAGIC) & (cflag_r == 1))
    with path.open("rb") as file:
        for i in rest.tolist():
            try:
                block = os.pread(file.fileno(), min(int(span_r[i]), 2 * LIMIT), int(offset_r[i]))
                payload, after = recordio.parse(block, 0, LIMIT)
                header, image = recordio.unpack(payload)
            except GlintError:
                continue
            heads.intact[i] = after == span_r[i]
            heads.flag[i], heads.id[i], heads.image[i] = header.flag, header.id, len(image)
            heads.value[i] = header.first
            labels = header.label if isinstance(header.label, tuple) else ()
            heads.second[i] = labels[1] if len(labels) > 1 else np.nan
    heads.intact &= heads.image >= 0
    heads.image[~heads.intact] = -1
    heads.flag[~heads.intact] = 0
    return heads


def check_idx(path: Path, key_r: Ints, offset_r: Ints) -> None:
    """Check that ascending offsets are those of this file's records.

    One or a few records without their magic, each where the record before it ends, are damage of
    the file; offsets that no record's end leads to are a foreign .idx.
    Raises InputError GL0216 naming the first entries, GL0213 for a file cut short.
    """
    size = path.stat().st_size
    idx = path.with_suffix(".idx").name
    for what, value_r in (("key", key_r), ("offset", offset_r)):
        kept, count = np.unique(value_r, return_counts=True)
        if len(kept) != len(value_r):
            raise _mismatch(
                idx,
                [
                    f"{what} {v} stands {c} times"
                    for v, c in zip(kept[count > 1][:5].tolist(), count[count > 1].tolist())
                ],
            )
    if not len(offset_r):
        if size:
            raise _mismatch(idx, ["it lists no record"])
        return
    inside_r = offset_r + 8 <= size
    word_rw = _words(path, offset_r // 4 * 4, 2)
    hit_r = inside_r & (offset_r % 4 == 0) & (word_rw[:, 0] == MAGIC) & (word_rw[:, 1] >> 29 < 2)
    length_r = (word_rw[:, 1] & MAX_LENGTH).astype(np.int64)
    # The first record must stand at 0; one of a single part says where the next one does.
    sure_r = np.concatenate([[True], hit_r & (word_rw[:, 1] >> 29 == 0)])
    due_r = np.concatenate([[0], offset_r + 8 + length_r + (-length_r & 3)])
    listed_r = np.append(offset_r, size)
    foreign_r = inside_r & ~hit_r & sure_r[:-1] & (due_r[:-1] != offset_r)
    missed_r = inside_r & ~hit_r
    if foreign_r.any() or missed_r.sum() > max(16, len(offset_r) // 20):
        bad = np.flatnonzero(foreign_r if foreign_r.any() else missed_r)
        raise _mismatch(idx, [f"key {key_r[i]} @ {offset_r[i]}" for i in bad[:5]])
    early_i = np.flatnonzero(sure_r & (due_r + 8 <= listed_r) & (due_r + 8 <= size))
    found = _words(path, np.sort(due_r[early_i]), 1)[:, 0] == MAGIC
    if found.any():
        raise _mismatch(
            idx, [f"the record @ {at} is not listed" for at in np.sort(due_r[early_i])[found][:5]]
        )
    last_cut = sure_r[-1] and offset_r[-1] + 8 + length_r[-1] > size
    if last_cut or not inside_r.all():
        want = max(int(offset_r[-1]) + 8, int(due_r[-1]) if sure_r[-1] else 0)
        raise damaged(
            f"the file ends here, {int((~inside_r).sum()) or 1} of {len(offset_r)} "
            f"records of {idx} lie behind it: at least {want - size} bytes are missing",
            path.name,
            size,
            "copy or download the file again",
        )


def _mismatch(idx: str, bad: list[str]) -> InputError:
    return InputError(
        "GL0216",
        "it does not belong to its .rec file: " + "; ".join(bad),
        where=idx,
        hint="move the .idx away: glint then finds the records itself",
    )


def _known_keys(idx: Path, heads: Heads, gaps: bool) -> Ints:
    """Return keys from an .idx that lists every record found, or else made-up ones."""
    if idx.exists():
        try:
            key_r, offset_r = recordio.read_idx(idx)
        except InputError:
            return _made_up_keys(heads, gaps=gaps)
        offset_u, first_u = np.unique(offset_r, return_index=True)
        place_r = np.minimum(np.searchsorted(offset_u, heads.offset), max(len(offset_u) - 1, 0))
        if len(offset_u) and (offset_u[place_r] == heads.offset).all():
            found_r = key_r[first_u[place_r]]
            if len(np.unique(found_r)) == len(found_r):
                return found_r
    return _made_up_keys(heads, gaps=gaps)


@dataclass
class _Layout:
    """Which records are images: `image` bool [r], `key` int64 [r], `flaw` uint8 [r]."""

    name: str
    key: Ints
    image: npt.NDArray[np.bool_]
    flaw: npt.NDArray[np.uint8]
    facts: dict[str, Any]
    notes: list[str]


def _slack(value: float) -> int:
    """Return by how much a float32 key may differ from the one that was meant."""
    return int(np.spacing(np.float32(value))) if value >= EXACT else 0


def _is_structure(heads: Heads) -> npt.NDArray[np.bool_]:
    found_r: npt.NDArray[np.bool_] = heads.intact & (heads.flag >= 1) & (heads.image == 0)
    return found_r


def _made_up_keys(heads: Heads, *, gaps: bool = False) -> Ints:
    """Return keys for a file without .idx: the ids where they tell a header, else by order.

    Where records are lost (`gaps`), order tells no keys, and ids are taken that differ.

    Where ids are not set, the header is the one empty record whose range is that of the other
    empty records; images are then 1.. in file order and identities follow them.
    """
    empty_r = _is_structure(heads)
    ids = heads.id
    told = gaps or (empty_r & (ids == 0)).any()
    if told and (ids < 1 << 62).all() and len(np.unique(ids)) == len(ids):
        return ids.astype(np.int64)
    count = int(empty_r.sum())
    first = len(ids) - count + 1
    with np.errstate(invalid="ignore"):
        header = np.flatnonzero(
            empty_r
            & (heads.flag == 2)
            & (abs(heads.value - first) <= _slack(first))
            & (abs(heads.second - first - count + 1) <= _slack(first + count))
        )
    key_r = np.arange(len(ids), dtype=np.int64)
    if len(header) == 1 and count > 1:
        empty_r[header] = False
        images = ~empty_r
        images[header] = False
        key_r[images] = 1 + np.arange(images.sum())
        key_r[empty_r] = 1 + images.sum() + np.arange(count - 1)
        key_r[header] = 0
    return key_r


def lay_out(key_r: Ints, heads: Heads) -> _Layout:
    """Tell images from InsightFace's header and identity records.

    Membership of an identity comes from the image records alone: the ranges are float32 and
    rounded above 2^24, and old packs hold several identity records for one label.
    """
    flaw_r = np.where(heads.intact, 0, 1).astype(np.uint8)
    empty_r = _is_structure(heads)
    header = np.flatnonzero((key_r == 0) & empty_r)
    first = float(heads.value[header[0]]) if len(header) else 0.0
    if not len(header) or not np.isfinite(first) or first < 1:
        return _Layout(
            "recordio/plain", key_r, np.ones(len(key_r), bool), flaw_r, {"records": len(key_r)}, []
        )
    slack = _slack(first)
    identity_r = empty_r & (key_r >= first - slack) & (key_r > 0)
    image_r = ~identity_r
    image_r[header[0]] = False
    # Behind the images only identity records are expected.
    flaw_r[image_r & (key_r >= first + max(slack, 0)) & (flaw_r == 0)] = 3
    if slack:  # the last images may stand where the rounded range says identities
        near = image_r & (flaw_r == 3) & (key_r <= first + slack)
        flaw_r[near] = 0
    facts = {"records": len(key_r), "identity_records": int(identity_r.sum())}
    return _Layout(
        "recordio/identity",
        key_r,
        image_r,
        flaw_r,
        facts,
        _range_notes(key_r, heads, identity_r, image_r, first + slack),
    )


def _range_notes(
    key_r: Ints,
    heads: Heads,
    identity_r: npt.NDArray[np.bool_],
    image_r: npt.NDArray[np.bool_],
    stop: float,
) -> list[str]:
    """Compare the identity records with the images; they may be wrong, and are only compared."""
    notes: list[str] = []
    a, b = heads.value[identity_r], heads.second[identity_r]
    with np.errstate(invalid="ignore"):
        sound = np.isfinite(a) & np.isfinite(b) & (a >= 1) & (a <= b) & (b <= stop)
    if not sound.all():
        notes.append(f"{int((~sound).sum())} identity records hold no range of image keys")
    a, b = np.sort(a[sound]), b[sound][np.argsort(a[sound], kind="stable")]
    if stop > EXACT:
        notes.append(
            "image keys go past 2^24, where the ranges of identity records are rounded; "
            "labels are taken from the images"
        )
        return notes
    if len(a) and (b[:-1] > a[1:]).any():
        notes.append(f"{int((b[:-1] > a[1:]).sum())} identity records overlap")
    key, value = key_r[image_r], heads.value[image_r]
    order = np.argsort(key)
    key, value = key[order], value[order]
    lo, hi = np.searchsorted(key, a), np.searchsorted(key, b)
    uncovered = len(key) - int((hi - lo).sum())
    if uncovered > 0 and len(a):
        notes.append(f"{uncovered} images lie in no identity record's range")
    change = np.concatenate([[0], np.cumsum(value[1:] != value[:-1])]) if len(value) else value
    full = hi > lo
    mixed = int((change[hi[full] - 1] != change[lo[full]]).sum())
    if mixed:
        notes.append(f"{mixed} identity records hold images of several labels")
    return notes


class RecordIO:
    """A .rec file, listed.

    Raises InputError GL0213 (damage that hides what follows), GL0216 (foreign .idx).
    """

    kind = "recordio"

    def __init__(self, rec: Path) -> None:
        self.rec = rec
        idx = rec.with_suffix(".idx")
        lost = np.empty((0, 2), np.int64)  # where stretches without a record begin; their bytes
        if _resync.get():
            offset_r, lost_r = scan_past_damage(rec)
            heads = read_heads(rec, offset_r)
            lost = np.stack([offset_r, heads.span], 1)[lost_r]
            heads = heads.of(~lost_r)
            key_r = _known_keys(idx, heads, bool(lost_r.any()))
        elif idx.exists():
            key_r, offset_r = recordio.read_idx(idx)
            order = np.argsort(offset_r, kind="stable")
            key_r, offset_r = key_r[order], offset_r[order]
            check_idx(rec, key_r, offset_r)
            heads = read_heads(rec, offset_r)
        else:
            heads = read_heads(rec, scan_offsets(rec))
            key_r = _made_up_keys(heads)
        layout = lay_out(key_r, heads)
        value = heads.value[layout.image]
        with np.errstate(invalid="ignore"):
            whole = (value >= 0) & (value < 2.0**53) & (value == np.floor(value))
        flaw = layout.flaw[layout.image]
        flaw[(flaw == 0) & ~whole] = 2
        number = np.where(whole & (flaw != 1), np.where(whole, value, 0), -1).astype(np.int64)
        order = np.argsort(layout.key[layout.image], kind="stable")
        self.key = layout.key[layout.image][order]
        self.at = heads.offset[layout.image][order]
        self.span = heads.span[layout.image][order]
        self.flaw = flaw[order]
        number_n = number[order]
        if len(lost):
            none = np.full(len(lost), -1, np.int64)
            self.key, self.at = np.append(self.key, none), np.append(self.at, lost[:, 0])
            self.span, number_n = np.append(self.span, lost[:, 1]), np.append(number_n, none)
            self.flaw = np.append(self.flaw, np.full(len(lost), LOST, np.uint8))
        self.label, self.classes = dense(number_n)
        self.names = Strings.of(b"" for _ in range(len(self.classes)))
        notes = layout.notes
        if len(lost):
            notes.append(
                f"{int(lost[:, 1].sum())} bytes in {len(lost)} stretches hold no record "
                "that can be read"
            )
        beyond = int((number >= EXACT).sum())
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
        return {k: v for k, v in self.__dict__.items() if k not in ("_file", "_memory")}

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

    def many(self, row_n: Ints, most: int) -> Iterator[Run]:
        """Read records in runs of about `most` bytes, into the same memory."""
        span_n = np.minimum(self.span[row_n], 2 * LIMIT)
        slot_n = (span_n + 15) // 16 * 16
        end_n = np.cumsum(slot_n)
        first = 0
        while first < len(row_n):
            before = int(end_n[first - 1]) if first else 0
            last = max(int(np.searchsorted(end_n, before + most, "right")), first + 1)
            part, size = slice(first, last), int(end_n[last - 1]) - before
            if len(self._memory) < size:
                self._memory = np.empty(size, np.uint8)
            yield self._run(row_n[part], span_n[part], end_n[part] - slot_n[part] - before)
            first = last

    def _run(self, row_n: Ints, span_n: Ints, at_n: Ints) -> Run:
        data = self._memory
        fd, view, preadv = self._file.fileno(), data.data, os.preadv
        offset_n = self.at[row_n].tolist()
        try:
            got = [
                preadv(fd, (view[at:stop],), offset)
                for at, stop, offset in zip(at_n.tolist(), (at_n + span_n).tolist(), offset_n)
            ]
        except OSError:
            got = [-1] * len(row_n)  # one by one, `read` tries again and knows what to say
        front_n = np.minimum(at_n // 4, len(data) // 4 - 3)
        word = data[: len(data) // 4 * 4].view("<u4")
        length_n, label_n = (word[front_n + w].astype(np.int64) for w in (1, 2))
        start_n, stop_n = 32 + 4 * label_n, 8 + length_n
        good_n = (
            (self.flaw[row_n] == 0)
            & (span_n >= 32)
            & (np.array(got) == span_n)
            & (word[front_n] == MAGIC)
            & (length_n <= LIMIT)
            & (start_n <= stop_n)
            & (stop_n <= span_n)
        )
        start_n, stop_n = start_n + at_n, stop_n + at_n
        bad: dict[int, Rejected] = {}
        for j in np.flatnonzero(~good_n).tolist():  # of several parts, or no good
            start_n[j] = stop_n[j] = at = int(at_n[j])
            try:
                image = self.read(int(row_n[j]))
                stop_n[j] = at + len(image)
                view[at : at + len(image)] = image  # shorter than the record
            except Rejected as why:
                bad[j] = why
        return Run(data, start_n, stop_n, bad)

    @cached_property
    def _memory(self) -> npt.NDArray[np.uint8]:
        return np.empty(64, np.uint8)

    def names_of(self, row_n: Ints) -> pa.Array:
        """Return the keys of records as text."""
        return pa.array(self.key[row_n]).cast(pa.string())

    def name(self, i: int) -> str:
        return str(int(self.key[i])) if self.flaw[i] != LOST else f"@0x{int(self.at[i]):x}"

    def offset(self, i: int) -> int | None:
        return int(self.at[i])

    def bytes(self) -> int:
        return int(self.span.sum())

    _ARRAYS = ("key", "at", "span", "flaw", "label")

    def save(self, folder: Path) -> None:
        for name in self._ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        self.classes.save(folder, "classes")
        self.names.save(folder, "names")

    @classmethod
    def load(cls, path: Path, facts: dict[str, Any], folder: Path) -> RecordIO:
        """Open what `save` wrote, without listing the file."""
        made = cls.__new__(cls)
        made.rec, made._facts = path, facts
        for name in cls._ARRAYS:
            setattr(made, name, load_array(folder, name))
        made.classes = Strings.load(folder, "classes")
        made.names = Strings.load(folder, "names")
        return made
