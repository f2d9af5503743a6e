"""What the stream needs of a dataset's index, in 32 bytes per sample, mapped from one file.

Parquet has to be decompressed into every process; this file is mapped once for all of them and
only the pages that are touched are read. It is derived from samples.parquet, named by a
fingerprint of it, and may be deleted at any time.
"""

# n samples, L labels as sharded, s shards

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import xxhash

from glint.errors import BusyError, InputError, ResourceError
from glint.log import logger
from glint.manifests import tables
from glint.shards import commit, parquet
from glint.shards.index import Dataset

FORMAT = "glint/columns@1"
BLOCK = 512  # bytes of a tar block: image bytes begin at a multiple of it
SMALL = 1 << 20  # samples up to which the columns are simply kept in memory
_PAGE = mmap.ALLOCATIONGRANULARITY
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Columns:
    """Columns in row order, and the rows of each label."""

    label: npt.NDArray[np.int32]  # n, as sharded
    block: npt.NDArray[np.uint32]  # n, offset of the image bytes in tar blocks
    size: npt.NDArray[np.int32]  # n, bytes
    digest: npt.NDArray[np.uint8]  # n x 16, xxh3-128 of the image bytes
    member: npt.NDArray[np.uint32]  # n, rows grouped by label, ascending inside each
    first_L: npt.NDArray[np.int64]  # L + 1, where each label's rows begin in `member`
    first_s: npt.NDArray[np.int64]  # s + 1, first row of each shard

    def shard_of(self, row_m: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Give the number of the shard that holds each row."""
        return np.asarray(np.searchsorted(self.first_s, row_m, side="right") - 1)


_NAMES = ("label", "block", "size", "digest", "member", "first_L", "first_s")


def open_columns(dataset: Dataset, small: int = SMALL) -> Columns:
    """Map the columns of a dataset; written beside it first where they are not there yet.

    Datasets of at most `small` samples, and such in a folder that cannot be written, get them in
    memory of their own. Raises InputError GL0301 where the index is damaged.
    """
    if dataset.n <= small:
        return Columns(**dict(_derived(dataset)))
    path = dataset.root / "_glint" / f"columns-{fingerprint(dataset)}.bin"
    found = _mapped(path)
    if found is not None:
        return found
    try:
        commit.make_dir(path.parent)
        _wait_and_write(dataset, path)
        found = _mapped(path)
    except ResourceError as error:
        logger.warning("%s; the index is kept in memory instead", error)
    return found if found is not None else Columns(**dict(_derived(dataset)))


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
    """Give one sample's key, from the row group that holds it: for the text of an error."""
    with (dataset.root / "samples.parquet").open("rb") as handle:
        file = pq.ParquetFile(handle)
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < rows:
                return str(file.read_row_group(group, columns=["key"])["key"][row].as_py())
            row -= rows
    return "?"


def _wait_and_write(dataset: Dataset, path: Path) -> None:
    """Write the file once, however many ranks start at the same time."""
    try:
        with commit.lock(path.with_suffix(".lock")):
            if not path.exists():
                logger.info("indexing %d samples once, into %s", dataset.n, path)
                _write(dataset, path)
    except BusyError:
        _write(dataset, path)  # another rank is at it: the same bytes, whoever is last


def _write(dataset: Dataset, path: Path) -> None:
    about: dict[str, Any] = {"format": FORMAT, "columns": {}}
    at = _PAGE
    with commit.atomic(path) as file:
        file.seek(at)
        for name, value in _derived(dataset):
            about["columns"][name] = [at, value.dtype.str, list(value.shape)]
            file.write(np.ascontiguousarray(value).tobytes())
            at += -(-value.nbytes // _PAGE) * _PAGE
            file.seek(at)
        file.truncate(at)
        about["bytes"] = at
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
        for advice in ("MADV_RANDOM", "MADV_NOHUGEPAGE"):  # map what is touched, not its neighbours
            if hasattr(mmap, advice):
                with suppress(OSError):
                    memory.madvise(getattr(mmap, advice))
        made = {}
        for name in _NAMES:
            at, kind, shape = head["columns"][name]
            count = int(np.prod(shape))
            made[name] = np.frombuffer(memory, np.dtype(kind), count, at).reshape(shape)
        return Columns(**made)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _derived(dataset: Dataset) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Give one column after another, so that a big dataset's are never in memory together."""
    from scipy import sparse

    path = dataset.root / "samples.parquet"
    n = dataset.n

    def column(name: str) -> Any:
        table = parquet.read(path, tables.SAMPLES, columns=[name])
        if table.num_rows != n:
            raise _bad(path, f"the manifest says {n} samples, found {table.num_rows}")
        return table.column(name)

    label_n = column("label").to_numpy()
    if n and not 0 <= label_n.min() <= label_n.max() < dataset.classes:
        raise _bad(path, f"labels run from {label_n.min()} to {label_n.max()}, expected 0 to "
                   f"{dataset.classes - 1}")
    label_n = label_n.astype(np.int32)
    yield "label", label_n
    # One counting pass: compressed sparse rows are the rows of each label, ascending.
    where = (label_n, np.arange(n, dtype=np.int32))
    grouped = sparse.csr_matrix((np.ones(n, np.int8), where), shape=(dataset.classes, max(n, 1)))
    yield "member", grouped.indices.astype(np.uint32, copy=False)
    yield "first_L", grouped.indptr.astype(np.int64)
    del label_n, where, grouped
    shard_n = column("shard").to_numpy()
    if n and (np.diff(shard_n) < 0).any():
        raise _bad(path, "rows do not stand in the order of their shards")
    if n and not 0 <= shard_n[0] <= shard_n[-1] < len(dataset.shards):
        raise _bad(path, "a sample names a shard that the manifest lacks")
    yield "first_s", np.searchsorted(shard_n, np.arange(len(dataset.shards) + 1)).astype(np.int64)
    del shard_n
    offset_n = column("offset").to_numpy()
    if n and (offset_n.min() < 0 or (offset_n & (BLOCK - 1)).any()
              or offset_n.max() >= BLOCK << 32):
        raise _bad(path, f"an offset is not a multiple of {BLOCK}")
    yield "block", (offset_n >> 9).astype(np.uint32)
    del offset_n
    size_n = column("size").to_numpy()
    if n and size_n.min() < 0:
        raise _bad(path, "a size is negative")
    yield "size", size_n
    chunks = column("digest").chunks
    parts = [np.frombuffer(c.buffers()[1], np.uint8, 16 * len(c), 16 * c.offset)
             for c in chunks if len(c)]
    digest = np.concatenate(parts) if parts else np.empty(0, np.uint8)
    yield "digest", digest.reshape(-1, 16)


def _bad(path: Path, what: str) -> InputError:
    return InputError("GL0301", what, where=str(path))
