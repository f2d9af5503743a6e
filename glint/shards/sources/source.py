"""What every kind of source offers to the sharder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from glint.errors import InputError, ResourceError
from glint.files.strings import load_array, packed, save_names, summed
from glint.shards import plan

Ints = npt.NDArray[np.int64]
WHOLE = 1 << 30  # files up to this size are told apart by all their bytes
PIECE = 1 << 16  # rows copied at a time


class Source(Protocol):
    """Images with labels, in a fixed order.

    `label` int64 [n] is dense: 0..C-1, or -1 where the source gives no usable one; `classes` [C]
    are the labels as the source writes them, `names` [C] what people call them (b"" = unknown),
    both Arrow arrays of large_binary.
    """

    kind: str
    label: Ints
    classes: pa.LargeBinaryArray
    names: pa.LargeBinaryArray

    @property
    def n(self) -> int: ...
    def describe(self) -> dict[str, Any]:
        """Say what was recognised, for people and for the manifest."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Say what tells these inputs from others."""
        ...

    def read(self, i: int) -> bytes:
        """Return the image bytes of record i; raise Rejected where it has none to give."""
        ...

    def name(self, i: int) -> str:
        """Return the record's key, or the path below the source."""
        ...

    def offset(self, i: int) -> int | None:
        """Return where the record lies in its file; None for a file of its own."""
        ...

    def bytes(self) -> int:
        """Return about how many bytes the images take."""
        ...

    def save(self, folder: Path, seed: int) -> None:
        """Write what `load(path, folder, start, stop)` needs, records in the order of `plan.order`.

        A worker then opens positions [start, stop) of the plan without listing the source.
        """
        ...


def save_rows(
    folder: Path, row_n: npt.NDArray[Any], seed: int, names: dict[str, pa.Array] | None = None
) -> None:
    """Write rows, and the names that belong to each, in the order that `plan.order` deals them."""
    order_n = plan.order(len(row_n), seed)
    pieces = (row_n[order_n[at : at + PIECE]] for at in range(0, len(order_n), PIECE))
    write_rows(folder, pieces, row_n.dtype, len(order_n))
    for name, array in (names or {}).items():
        save_names(folder, name, array.take(pa.array(order_n)))


def write_rows(
    folder: Path, pieces: Iterable[npt.NDArray[Any]], dtype: np.dtype[Any], n: int
) -> None:
    """Write n rows, a piece at a time, as `load_rows` reads them."""
    header = {"descr": dtype.descr, "fortran_order": False, "shape": (n,)}
    with summed(folder / "rows.npy") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces:
            file.write(piece.tobytes())


def load_rows(folder: Path, start: int, stop: int) -> npt.NDArray[Any]:
    """Read rows [start, stop) of what `save_rows` wrote. Raises ResourceError GL0903."""
    rows: npt.NDArray[Any] = load_array(folder, "rows")[start:stop].copy()
    return rows


def dense(value_n: Ints) -> tuple[Ints, pa.LargeBinaryArray]:
    """Map labels (negative = unusable) to 0..C-1 in numeric order; return them and their names."""
    good_n = value_n >= 0
    kept, label_n = np.unique(value_n[good_n], return_inverse=True)
    out_n = np.full(len(value_n), -1, np.int64)
    out_n[good_n] = label_n
    return out_n, packed(b"%d" % value for value in kept.tolist())


def fingerprint(path: Path) -> dict[str, Any]:
    """Return size and xxh3-128 of a file; for a large one of its ends, with its time of change.

    It tells a changed input from the one a run began with; nobody has a reason to forge it.
    """
    hasher = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        stat = os.fstat(file.fileno())
        if stat.st_size <= WHOLE:
            room = memoryview(bytearray(1 << 20))
            while got := file.readinto(room):
                hasher.update(room[:got])
            return {"name": path.name, "size": stat.st_size, "xxh3": hasher.hexdigest()}
        hasher.update(file.read(1 << 20))
        file.seek(-(1 << 20), os.SEEK_END)
        hasher.update(file.read())
    return {
        "name": path.name,
        "size": stat.st_size,
        "ends_xxh3": hasher.hexdigest(),
        "mtime_ns": stat.st_mtime_ns,
    }


def persistent(read: Callable[[], bytes], where: str) -> bytes:
    """Read, trying three times. Raises ResourceError GL0903, InputError GL0001 for a lost file."""
    for attempt in range(3):
        try:
            return read()
        except FileNotFoundError:
            raise InputError(
                "GL0001", "the file is gone since it was listed", where=where
            ) from None
        except OSError as error:
            if attempt == 2:
                raise ResourceError(
                    "GL0903", f"cannot be read: {error.strerror or error}", where=where
                ) from error
    raise AssertionError("the loop returns or raises")
