"""RecordIO as a source: InsightFace's identity layout, plain im2rec packs, with or without .idx."""

# n images of the source, r records of the file, p parts of records, m records of a block

from __future__ import annotations

import struct
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from glint.errors import InputError, UsageError
from glint.files import atomic, reads
from glint.files.strings import packed
from glint.shards import recordio
from glint.shards.image import Rejected
from glint.shards.recordio import LIMIT, MAGIC, MAGIC_BYTES, MAX_LENGTH, Row, damaged
from glint.shards.sources.rule import Rule
from glint.shards.sources.source import Ints, Source, dense, fingerprint, read_retrying

EXACT = 1 << 24  # above it float32 skips integers

# What the listing finds wrong with a record; the index into this tuple is stored.
FLAWS = ("", "corrupt-record", "label-not-integer", "identity-range", "lost-bytes")
CORRUPT, NO_LABEL, OUT_OF_RANGE, LOST = 1, 2, 3, 4

_COMMON = struct.Struct("<III")  # magic, length (with no part flag), number of labels
_NO_ID, _NO_PART = 1 << 62, 8

# What is known of a record: its key, at first the id in its header; its offset; the bytes to the
# next one; length and cflag of its first part; the class, which is the first label, and the second
# one; how many labels (at most 3) it has where it has no image, else 0; and whether it is intact.
# Listing takes some 100 bytes of memory for each: 4.2 GB for the 42 million of WebFace42M.
HEAD = np.dtype("i8, i8, i8, u4, u1, f4, f4, u1, ?")
HEAD.names = ("key", "at", "span", "length", "cflag", "value", "second", "empty", "intact")
# What is kept of an image.
ROW = np.dtype("i8, i8, i8, u1, i8")
ROW.names = ("key", "at", "span", "flaw", "label")


def rebuild_idx(rec: Path, resync: bool = False) -> dict[str, Any]:
    """Write the .idx of a record file anew, from its records; the old one is kept as .idx.old.

    Raises UsageError GL0002 for another kind of file, InputError GL0213 at damage (with
    `resync`, the lost stretches are left out), ResourceError.
    """
    if rec.suffix != ".rec":
        raise UsageError("GL0002", "only RecordIO has an .idx", where=str(rec))
    idx = rec.with_suffix(".idx")
    head_r, lost = _listed(rec, None, resync)
    if idx.exists():
        idx.replace(idx.with_name(idx.name + ".old"))
    with atomic.replacing(idx) as file:
        for key, at in zip(head_r["key"], head_r["at"]):
            file.write(b"%d\t%d\n" % (key, at))
    return {"idx": str(idx), "records": len(head_r), "lost_stretches": len(lost)}


def _listed(rec: Path, idx: Path | None, resync: bool) -> tuple[Row, Row]:
    """Return the heads of all records in file order, with their keys, and of lost stretches."""
    if idx and not resync:
        return _by_idx(rec, idx), np.empty(0, HEAD)
    lost = np.empty(0, HEAD)
    if resync:
        at_r, lost_r = recordio.scan_past_damage(rec)
        head_r = read_heads(rec, at_r)
        head_r, lost = head_r[~lost_r], head_r[lost_r]
    else:
        head_r = read_heads(rec, recordio.scan_offsets(rec))
    key_r = _known_keys(rec, idx, head_r["at"]) if idx else None
    head_r["key"] = _made_up_keys(head_r, len(lost) > 0) if key_r is None else key_r
    return head_r, lost


def _by_idx(rec: Path, idx: Path) -> Row:
    """Return the heads of the records that an .idx lists. Raises InputError GL0216, GL0213."""
    key_r, at_r = recordio.read_idx(idx)
    for what, value_r in (("key", key_r), ("offset", at_r)):
        several = _repeated(value_r)
        if several:
            raise _mismatch(idx, [f"{what} {v} stands {c} times" for v, c in several])
    order = np.argsort(at_r)
    key_r, at_r = key_r[order], at_r[order]
    del order
    head_r = read_heads(rec, at_r)
    head_r["key"] = key_r
    del key_r, at_r
    check_idx(rec, idx, head_r)
    return head_r


def _repeated(value_r: Ints) -> list[tuple[int, int]]:
    """Return the first five values that stand several times, and how often each does."""
    value_r = np.sort(value_r)
    kept, count = np.unique(value_r[1:][value_r[1:] == value_r[:-1]], return_counts=True)
    return list(zip(kept[:5].tolist(), (count[:5] + 1).tolist()))


def _known_keys(rec: Path, idx: Path, at_r: Ints) -> Ints | None:
    """Return the keys that an .idx has for records; None if it is none, lacks or repeats any.

    Raises InputError GL0213 for records behind the file's end: their loss would go unseen.
    """
    try:
        key_i, at_i = recordio.read_idx(idx)
    except InputError:
        return None
    size = rec.stat().st_size
    behind = (at_i >= size).sum()
    if behind:
        records = f"{behind} of the {len(at_i)} records of {idx.name}"
        what = f"ends at byte {size}; {records} lie behind it"
        hint = "copy or download the file again; to go on with what is here, move the .idx away"
        raise InputError("GL0213", what, where=str(rec), hint=hint)
    order = np.argsort(at_i, kind="stable")
    place_r = np.searchsorted(at_i[order], at_r)
    listed_r = order[place_r[place_r < len(order)]]
    key_r = key_i[listed_r]
    return key_r if np.array_equal(at_i[listed_r], at_r) and not _repeated(key_r) else None


def read_heads(path: Path, at_r: Ints) -> Row:
    """Read the headers of the records at ascending, 4-aligned offsets and check their lengths.

    A record is intact when its own lengths lead exactly to the next one. Every record of several
    parts is read in full; the others cost 40 bytes each. Keys are the headers' ids.
    """
    size, head_r = path.stat().st_size, np.empty(len(at_r), HEAD)
    head_r["at"], head_r["span"] = at_r, np.diff(at_r, append=size)
    with path.open("rb", buffering=0) as file:
        for rows, front_m in recordio.fronts(path, at_r):
            _take_fronts(head_r[rows], front_m, size)
            for i in rows.start + np.flatnonzero(head_r["cflag"][rows] == 1):
                _take_parts(head_r[i], file.fileno())
    return head_r


def _take_fronts(head_m: Row, front_m: Row, size: int) -> None:
    """Fill in the heads of records from how they begin; those of several parts are not intact."""
    flag_m, span_m = front_m["flag"].astype(np.int64), head_m["span"]
    length_m = (front_m["lrec"] & MAX_LENGTH).astype(np.int64)
    image_m, pad_m, over_m = length_m - 24 - 4 * flag_m, -length_m & 3, span_m - 8 - length_m
    last_m = head_m["at"] + span_m == size  # it may lack its padding
    fits_m = (over_m == pad_m) | (last_m & (over_m >= 0) & (over_m <= pad_m))
    head_m["key"], head_m["length"] = np.minimum(front_m["id"], _NO_ID), length_m
    head_m["cflag"] = np.where(front_m["magic"] == MAGIC, front_m["lrec"] >> 29, _NO_PART)
    head_m["value"] = np.where(flag_m > 0, front_m["first"], front_m["label"])
    head_m["second"] = np.where(flag_m > 1, front_m["second"], np.float32(np.nan))
    head_m["intact"] = (head_m["cflag"] == 0) & fits_m & (length_m >= 24) & (image_m >= 0)
    head_m["empty"] = np.where(head_m["intact"] & (image_m == 0), np.minimum(flag_m, 3), 0)


def _take_parts(head: Any, fd: int) -> None:
    """Fill in the head of a record of several parts, where it can be read."""
    header, image, fits = recordio.read_span(fd, int(head["at"]), int(head["span"]))
    if header is not None:
        labels = header.label if isinstance(header.label, tuple) else ()
        head["key"], head["value"], head["intact"] = min(header.id, _NO_ID), header.first, fits
        head["second"] = labels[1] if len(labels) > 1 else np.nan
        head["empty"] = min(header.flag, 3) if fits and not image else 0


def check_idx(path: Path, idx: Path, head_r: Row) -> None:
    """Check that the ascending offsets of an .idx are those of this file's records.

    One or a few records without their magic, each where the record before it ends, are damage of
    the file; offsets that no record's end leads to are a foreign .idx.
    Raises InputError GL0216 naming the first entries, GL0213 for a file cut short.
    """
    size, n, at_r = path.stat().st_size, len(head_r), head_r["at"]
    if not n:
        if size:
            raise _mismatch(idx, ["it lists no record"])
        return
    stop_r = at_r + 8 + head_r["length"]
    inside_r = at_r + 8 <= size
    hit_r = inside_r & (at_r % 4 == 0) & (head_r["cflag"] < 2)
    missed_r = inside_r & ~hit_r
    # The first record must stand at 0; one of a single part says where the next one does.
    sure_r = np.append(True, hit_r & (head_r["cflag"] == 0))
    due_r = np.append(0, (stop_r + 3) // 4 * 4)
    foreign_r = missed_r & sure_r[:-1] & (due_r[:-1] != at_r)
    if foreign_r.any() or missed_r.sum() > max(16, n // 20):
        bad = head_r[foreign_r if foreign_r.any() else missed_r][:5]
        raise _mismatch(idx, [f"key {head['key']} @ {head['at']}" for head in bad])
    passed_r = due_r[sure_r & (due_r + 8 <= np.minimum(np.append(at_r, size), size))]
    with path.open("rb", buffering=0) as file:
        magics = (at for at in passed_r if file.seek(at) >= 0 and file.read(4) == MAGIC_BYTES)
        unlisted = [f"the record @ {at} is not listed" for at in islice(magics, 5)]
    if unlisted:
        raise _mismatch(idx, unlisted)
    outside = n - int(inside_r.sum())
    if outside or (sure_r[-1] and stop_r[-1] > size):
        missing = max(at_r[-1] + 8, due_r[-1] if sure_r[-1] else 0) - size
        records = f"{outside or 1} of {n} records of {idx.name}"
        what = f"the file ends here, {records} lie behind it: at least {missing} bytes are missing"
        raise damaged(what, path.name, size, "copy or download the file again")


def _mismatch(idx: Path, bad: list[str]) -> InputError:
    what = "it does not belong to its .rec file: " + "; ".join(bad)
    hint = "move the .idx away: glint then finds the records itself"
    return InputError("GL0216", what, where=idx.name, hint=hint)


def _slack(value: float) -> int:
    """Return by how much a float32 key may differ from the one that was meant."""
    return int(np.spacing(np.float32(value))) if value >= EXACT else 0


def _made_up_keys(head_r: Row, gaps: bool) -> Ints:
    """Give keys to a file without .idx: the ids where they tell a header, else by order.

    Where records are lost (`gaps`), order tells no keys, and ids are taken that differ.

    Where ids are not set, the header is the one empty record whose range is that of the other
    empty records; images are then 1.. in file order and identities follow them.
    """
    id_r, empty_r, n = head_r["key"], head_r["empty"] > 0, len(head_r)
    told = gaps or bool((empty_r & (id_r == 0)).any())
    if told and (id_r < _NO_ID).all() and not _repeated(id_r):
        return id_r
    count = int(empty_r.sum())
    first = n - count + 1
    with np.errstate(invalid="ignore"):
        a, b = (head_r[name].astype(np.float64) - first for name in ("value", "second"))
        near_r = (abs(a) <= _slack(first)) & (abs(b - count + 1) <= _slack(first + count))
    header = np.flatnonzero((head_r["empty"] == 2) & near_r)
    if len(header) != 1 or count < 2:
        return np.arange(n)
    key_r = np.zeros(n, np.int64)
    key_r[~empty_r] = np.arange(1, first)
    empty_r[header] = False
    key_r[empty_r] = np.arange(first, n)
    return key_r


def _images(head_r: Row, notes: list[str]) -> tuple[Row, Row, dict[str, Any]]:
    """Tell images from InsightFace's header and identity records.

    Return rows of the images in the order of their keys, the labels as they stand, and facts.
    Membership of an identity comes from the image records alone: the ranges are float32 and rounded
    above 2^24, and old packs hold several identity records for one label.
    """
    key_r, empty_r, image_r = head_r["key"], head_r["empty"] > 0, np.ones(len(head_r), np.bool_)
    flaw_r = np.where(head_r["intact"], np.uint8(0), np.uint8(CORRUPT))
    facts: dict[str, Any] = {"layout": "recordio/plain", "records": len(head_r)}
    # The header, record 0, says where the identity records begin.
    said = head_r["value"][(key_r == 0) & empty_r & np.isfinite(head_r["value"])]
    first = float(said[0]) if len(said) and said[0] >= 1 else 0.0
    stop = first + _slack(first)
    if first:
        identity_r = empty_r & (key_r >= first - _slack(first)) & (key_r > 0)
        image_r = ~identity_r & ~(empty_r & (key_r == 0))
        # Behind the images only identity records are expected; but the last images may
        # stand where the rounded range says identities.
        late_r = key_r > stop if stop > first else key_r >= stop
        flaw_r[image_r & late_r & (flaw_r == 0)] = OUT_OF_RANGE
        identity = head_r[identity_r]
        facts |= {"layout": "recordio/identity", "identity_records": len(identity)}
    order_n = np.flatnonzero(image_r)
    order_n = order_n[np.argsort(key_r[order_n], kind="stable")]
    row_n = np.empty(len(order_n), ROW)
    for name in ("key", "at", "span"):
        row_n[name] = head_r[name][order_n]
    row_n["flaw"], value_n = flaw_r[order_n], head_r["value"][order_n]
    if first:
        _compare(identity, stop, row_n["key"], value_n, notes)
    return row_n, value_n, facts


def _compare(identity: Row, stop: float, key_n: Ints, value_n: Row, notes: list[str]) -> None:
    """Compare the identity records with the images; they may be wrong: they decide nothing."""
    with np.errstate(invalid="ignore"):
        a, b = (identity[name].astype(np.float64) for name in ("value", "second"))
        sound = np.isfinite(a) & np.isfinite(b) & (a >= 1) & (a <= b) & (b <= stop)
    if not sound.all():
        notes.append(f"{(~sound).sum()} identity records hold no range of image keys")
    if stop > EXACT:
        notes.append(
            "image keys go past 2^24, where the ranges of identity records are rounded; "
            "labels are taken from the images"
        )
        return
    order = np.argsort(a[sound], kind="stable")
    a, b = a[sound][order], b[sound][order]
    overlaps = (b[:-1] > a[1:]).sum()
    if overlaps:
        notes.append(f"{overlaps} identity records overlap")
    begin, end = np.searchsorted(key_n, a), np.searchsorted(key_n, b)
    uncovered = len(key_n) - (end - begin).sum()
    if len(a) and uncovered > 0:
        notes.append(f"{uncovered} images lie in no identity record's range")
    changes = 1 + np.flatnonzero(value_n[1:] != value_n[:-1])
    begin, last = begin[end > begin], end[end > begin] - 1
    mixed = np.searchsorted(changes, begin, "right") != np.searchsorted(changes, last, "right")
    if mixed.any():
        notes.append(f"{mixed.sum()} identity records hold images of several labels")


def _numbers(value_n: Row, flaw_n: Row) -> Ints:
    """Return the labels of images, -1 for those that are none, and say so in their flaws."""
    with np.errstate(invalid="ignore"):
        value_n = value_n.astype(np.float64)
        whole_n = (value_n >= 0) & (value_n < 2.0**53) & (value_n == np.floor(value_n))
    flaw_n[(flaw_n == 0) & ~whole_n] = NO_LABEL
    return np.where(whole_n & (flaw_n != CORRUPT), value_n, -1.0).astype(np.int64)


class RecordIO(Source):
    """A .rec file, listed; with `resync`, past its damage.

    Raises InputError GL0213 (damage that hides what follows), GL0216 (foreign .idx).
    """

    kind = "recordio"

    def __init__(self, rec: Path, rule: Rule = Rule(), *, resync: bool = False) -> None:  # noqa: B008
        self.resync = resync
        idx = rec.with_suffix(".idx")
        notes: list[str] = []
        head_r, lost = _listed(rec, idx if idx.exists() else None, resync)
        row_n, value_n, facts = _images(head_r, notes)
        del head_r  # the larger part of the memory
        number_n = _numbers(value_n, row_n["flaw"])
        if rule.unlabelled:
            number_n[:] = -1
            row_n["flaw"][row_n["flaw"] == NO_LABEL] = 0
        row_n["label"], self.classes = dense(number_n)
        self.names = packed(b"" for _ in range(len(self.classes)))
        if len(lost):
            lost_n = np.empty(len(lost), ROW)
            lost_n["at"], lost_n["span"] = lost["at"], lost["span"]
            lost_n["key"], lost_n["flaw"], lost_n["label"] = -1, LOST, -1
            row_n, gone = np.append(row_n, lost_n), f"{lost['span'].sum()} bytes"
            notes.append(f"{gone} in {len(lost)} stretches hold no record that can be read")
        beyond = (number_n >= EXACT).sum()
        if beyond:
            notes.append(
                f"{beyond} labels are 2^24 or more: the file's float32 cannot tell "
                "neighbours apart, so identities may have been merged before glint"
            )
        told = "none: every image gets its own (--unlabelled)"
        facts["label"] = told if rule.unlabelled else "the record's number"
        facts["images"], facts["identities"] = len(row_n), len(self.classes)
        facts["idx"] = idx.name if idx.exists() else "absent, found by scanning"
        facts["notes"] = notes + _property_notes(rec, len(self.classes))
        super().__init__(rec, row_n, facts)

    def fingerprint(self) -> dict[str, Any]:
        return self.fingerprint_of(self.root, self.resync)

    @classmethod
    def fingerprint_of(cls, rec: Path, resync: bool = False) -> dict[str, Any]:
        """Return the fingerprint of a file that is not listed yet."""
        idx = rec.with_suffix(".idx")
        beside = fingerprint(idx) if idx.exists() else None
        result = {"kind": cls.kind, "rec": fingerprint(rec), "idx": beside}
        return {**result, "resync": True} if resync else result

    @cached_property
    def _file(self) -> IO[bytes]:
        return open(self.root, "rb", buffering=0)

    def read(self, i: int) -> bytes:
        _, at, span, flaw, _ = self.row.item(i)
        if flaw == LOST:
            note = f"{span} bytes from 0x{at:x} hold no record that can be read"
            raise Rejected(FLAWS[LOST], note)
        fd, size = self._file.fileno(), min(span, 2 * LIMIT)
        try:
            block = reads.pread(fd, size, at)
        except OSError:
            where = f"{self.root.name} @ 0x{at:x}"
            block = read_retrying(lambda: reads.pread(fd, size, at), where)
        if not flaw and len(block) >= 32:  # the common case, in one step
            magic, length, labels = _COMMON.unpack_from(block)
            start, end = 32 + 4 * labels, 8 + length
            if magic == MAGIC and length <= LIMIT and start <= end <= len(block):
                return block[start:end]
        try:
            header, image = recordio.unpack(recordio.parse(block)[0])
        except InputError as error:
            raise Rejected(FLAWS[CORRUPT], error.what) from None
        if flaw:
            raise Rejected(FLAWS[flaw], f"label {header.first!r}" if flaw == NO_LABEL else "")
        return image

    def name(self, i: int) -> str:
        key, at, _, flaw, _ = self.row.item(i)
        return f"{key}" if flaw != LOST else f"@0x{at:x}"

    def offset(self, i: int) -> int | None:
        return int(self.row["at"][i])

    def bytes(self) -> int:
        return int(self.row["span"].sum())


def _property_notes(rec: Path, found: int) -> list[str]:
    """Compare with the `property` file beside the records, where there is one."""
    try:
        with rec.with_name("property").open("rb") as file:
            said = int(file.read(64).split(b",")[0])
    except (OSError, ValueError):
        return []
    return [] if said == found else [f"'property' says {said} identities, found {found}"]
