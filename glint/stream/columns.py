"""What the stream needs of a dataset's index, in 32 bytes per sample, mapped from one file.

Parquet has to be decompressed into every process; this file is mapped once for all of them and
only the pages that are touched are read: one for each sample, as its numbers stand side by side.
It is derived from samples.parquet, named by a fingerprint of it, and may be deleted at any time.
"""

# n samples, L labels as sharded, s shards

from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import xxhash

from glint import schemas
from glint.errors import BusyError, InputError, ResourceError
from glint.files import atomic, parquet
from glint.log import logger
from glint.rng import I64
from glint.shards.dataset import Dataset

FORMAT = "glint/columns@2"
BLOCK = 512  # bytes of a tar block: image bytes begin at a multiple of it
SMALL = 1 << 20  # samples up to which the columns are simply kept in memory
_PAGE = mmap.ALLOCATIONGRANULARITY


RECORD = np.dtype([("label", "<i4"), ("block", "<u4"), ("size", "<i4"), ("digest", "u1", 16)])


@dataclass(frozen=True)
class Columns:
    """What is known of every sample, and the rows of each label.

    record: n of RECORD: label as sharded, offset of the image bytes in tar blocks, size in bytes,
    xxh3-128 of the image bytes.
    """

    record: npt.NDArray[np.void]  # n, in row order
    member: npt.NDArray[np.uint32]  # n, rows grouped by label, ascending inside each
    first_L: npt.NDArray[np.int64]  # L + 1, where each label's rows begin in `member`
    first_s: npt.NDArray[np.int64]  # s + 1, first row of each shard
    own_n: npt.NDArray[np.int32] | None = None  # n, labels in force where they say other ones

    @property
    def label(self) -> npt.NDArray[np.int32]:
        """Return the label of every row, int32 [n]: as sharded, or as `relabelled` says."""
        label_n: npt.NDArray[np.int32] = self.record["label"] if self.own_n is None else self.own_n
        return label_n

    def relabelled(self, row_k: I64, label_k: I64) -> Columns:
        """Return a copy in which rows (ascending) have other labels; -1 = drawn by none.

        Costs 8 bytes per sample: labels and `member` are no longer mapped.
        """
        if not len(row_k):
            return self
        own_n = self.record["label"].astype(np.int32)
        own_n[row_k] = label_k
        rest = self.without(row_k)
        member, first_L = rest.member[: len(own_n) - len(row_k)], rest.first_L
        kept = np.flatnonzero(label_k >= 0)
        kept = kept[np.argsort(label_k[kept], kind="stable")]  # rows ascend inside each label
        row_m, label_m = row_k[kept], label_k[kept]
        place_m = [
            lo + int(np.searchsorted(member[lo:hi], row))
            for row, lo, hi in zip(row_m, first_L[label_m].tolist(), first_L[label_m + 1].tolist())
        ]
        member = np.insert(member, np.array(place_m, np.int64), row_m.astype(np.uint32))
        more_L = np.bincount(label_m, minlength=len(first_L) - 1)
        out = row_k[label_k < 0].astype(np.uint32)
        return replace(
            self,
            member=np.concatenate([member, out]),
            first_L=first_L + np.concatenate([[0], np.cumsum(more_L)]),
            own_n=own_n,
        )

    def shard_of(self, row_m: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the number of the shard that holds each row."""
        return np.asarray(np.searchsorted(self.first_s, row_m, side="right") - 1)

    def without(self, row_m: npt.NDArray[Any]) -> Columns:
        """Return a copy with some rows behind the last label's, where nothing draws them.

        Costs 4 bytes per sample: `member` is no longer mapped.
        """
        kept_n = np.ones(len(self.record), dtype=np.bool_)
        kept_n[row_m] = False
        stays_n = kept_n[self.member]
        member = np.concatenate([self.member[stays_n], self.member[~stays_n]])
        first_L = np.concatenate([[0], np.cumsum(stays_n)])[self.first_L]
        return replace(self, member=member, first_L=first_L.astype(np.int64))


_KINDS = {
    "record": RECORD,
    "member": np.dtype("<u4"),
    "first_L": np.dtype("<i8"),
    "first_s": np.dtype("<i8"),
}
_NAMES = tuple(_KINDS)


def open_columns(dataset: Dataset, small: int = SMALL) -> Columns:
    """Map the columns of a dataset; written beside it first where they are not there yet.

    Datasets of at most `small` samples, and such in a folder that cannot be written, get them in
    memory of their own. Raises InputError GL0301 where the index is damaged.
    """
    if dataset.n <= small:
        return _in_memory(dataset)
    path = dataset.root / "_glint" / f"columns-{fingerprint(dataset)}.bin"
    found = _mapped(path)
    if found is not None:
        return found
    try:
        atomic.make_dir(path.parent)
        _wait_and_write(dataset, path)
        found = _mapped(path)
    except ResourceError as error:
        logger.warning("%s; the index is kept in memory instead", error)
    return found if found is not None else _in_memory(dataset)


def fingerprint(dataset: Dataset) -> str:
    """Name the index: the dataset's digest, the table's size and its last 64 KiB (the footer)."""
    path = dataset.root / "samples.parquet"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - (64 << 10)))
            tail = file.read()
    except OSError as error:
        raise InputError("GL0301", f"cannot be read: {error.strerror}", where=str(path)) from None
    return xxhash.xxh3_64_hexdigest(f"{FORMAT} {dataset.digest} {size} ".encode() + tail)


def key_of(dataset: Dataset, row: int) -> str:
    """Return one sample's key, from the row group that holds it: for the text of an error."""
    with (dataset.root / "samples.parquet").open("rb") as handle:
        file = pq.ParquetFile(handle, **parquet.READING)
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < rows:
                return str(file.read_row_group(group, columns=["key"])["key"][row].as_py())
            row -= rows
    return "?"


def _wait_and_write(dataset: Dataset, path: Path) -> None:
    """Write the file once, however many ranks start at the same time."""
    try:
        with atomic.lock(path.with_suffix(".lock")):
            if not path.exists():
                logger.info("indexing %d samples once, into %s", dataset.n, path)
                _write(dataset, path)
    except BusyError:
        _write(dataset, path)  # another rank is at it: the same bytes, whoever is last


def _in_memory(dataset: Dataset) -> Columns:
    parts: list[npt.NDArray[np.void]] = []
    grouped = _derive(dataset, parts.append)
    record = np.concatenate(parts) if parts else np.empty(0, RECORD)
    return Columns(record, *grouped)


def _write(dataset: Dataset, path: Path) -> None:
    about: dict[str, Any] = {"format": FORMAT, "columns": {"record": [_PAGE, dataset.n]}}
    at = _PAGE
    with atomic.replacing(path) as file:
        file.seek(at)
        rest: tuple[npt.NDArray[Any], ...] = _derive(
            dataset, lambda part: file.write(part.tobytes())
        )
        for name, value in zip(_NAMES[1:], rest):
            at = -(-file.tell() // _PAGE) * _PAGE
            about["columns"][name] = [at, len(value)]
            file.seek(at)
            file.write(value.tobytes())
        about["bytes"] = file.tell()
        file.seek(0)
        file.write(json.dumps(about).encode())


def _mapped(path: Path) -> Columns | None:
    """Map a file of columns; None where there is none that is whole."""
    try:
        with path.open("rb") as file:
            head = json.loads(file.read(_PAGE).rstrip(b"\0"))
            size = path.stat().st_size
            if head["format"] != FORMAT or head["bytes"] != size:
                return None
            memory = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):  # map what is touched, not the 2 MiB around it
            with suppress(OSError):
                memory.madvise(mmap.MADV_NOHUGEPAGE)
        made = {}
        for name in _NAMES:
            at, count = head["columns"][name]
            made[name] = np.frombuffer(memory, _KINDS[name], count, at)
        return Columns(**made)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _derive(
    dataset: Dataset, put: Callable[[npt.NDArray[np.void]], Any]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pass records to `put`, part after part; return `member`, `first_L` and `first_s`."""
    from scipy import sparse

    path, n = dataset.root / "samples.parquet", dataset.n
    label_n = np.empty(n, dtype=np.int32)
    count_s = np.zeros(len(dataset.shards), dtype=np.int64)
    done = last = 0
    for batch in parquet.scan(
        path, schemas.SAMPLES, ("label", "shard", "offset", "size", "digest")
    ):
        part = np.empty(len(batch), dtype=RECORD)
        label, shard, offset, size = (batch.column(i).to_numpy() for i in range(4))
        digest = batch.column(4)
        if done + len(part) > n:
            raise _bad(path, f"the manifest says {n} samples, found more")
        if not len(part):
            continue
        if not 0 <= label.min() <= label.max() < dataset.classes:
            raise _bad(
                path,
                f"labels run from {label.min()} to {label.max()}, expected 0 to "
                f"{dataset.classes - 1}",
            )
        if shard[0] < last or (np.diff(shard) < 0).any():
            raise _bad(path, "rows do not stand in the order of their shards")
        if shard[-1] >= len(dataset.shards):
            raise _bad(path, "a sample names a shard that the manifest lacks")
        if offset.min() < 0 or (offset & (BLOCK - 1)).any() or offset.max() >= BLOCK << 32:
            raise _bad(path, f"an offset is not a multiple of {BLOCK}")
        if size.min() < 0:
            raise _bad(path, "a size is negative")
        last = int(shard[-1])
        part["label"], part["block"], part["size"] = label, offset // BLOCK, size
        part["digest"] = np.frombuffer(
            digest.buffers()[1], np.uint8, 16 * len(part), 16 * digest.offset
        ).reshape(-1, 16)
        label_n[done : done + len(part)] = label
        count_s += np.bincount(shard, minlength=len(count_s))
        done += len(part)
        put(part)
    if done != n:
        raise _bad(path, f"the manifest says {n} samples, found {done}")
    # One counting pass: compressed sparse rows are the rows of each label, ascending.
    where = (label_n, np.arange(n, dtype=np.int32))
    grouped = sparse.csr_matrix((np.ones(n, np.int8), where), shape=(dataset.classes, max(n, 1)))
    first_s = np.concatenate([[0], np.cumsum(count_s)]).astype(np.int64)
    return (grouped.indices.astype(np.uint32, copy=False), grouped.indptr.astype(np.int64), first_s)


def _bad(path: Path, what: str) -> InputError:
    return InputError("GL0301", what, where=str(path))
