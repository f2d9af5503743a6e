"""What every kind of source offers to the sharder, and how it is saved for workers."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from glint.errors import InputError, ResourceError
from glint.files import atomic
from glint.files.strings import load_array, load_names, packed, save_names, summed
from glint.shards.plan import order

Ints = npt.NDArray[np.int64]
Rows = npt.NDArray[Any]  # of a structured type
WHOLE = 1 << 30  # files up to this size are told apart by all their bytes
PIECE = 1 << 16  # rows copied at a time


class Source(ABC):
    """Images with labels, in a fixed order: a row for each, with the fields `label` and `flaw`.

    `label` int64 [n] is dense: 0..C-1, or -1 where the source gives no usable one; `classes` [C]
    are the labels as the source writes them, `names` [C] what people call them (b"" = unknown),
    both Arrow arrays of large_binary.
    """

    kind = ""
    whole: tuple[str, ...] = ("classes", "names")  # arrays that every worker takes whole
    by_row: tuple[str, ...] = ()  # arrays of which it takes those that belong to its rows
    classes: pa.LargeBinaryArray
    names: pa.LargeBinaryArray

    def __init__(self, root: Path, row_n: Rows, facts: dict[str, Any] | None = None) -> None:
        self.root, self.row = root, row_n
        self.label: Ints = np.ascontiguousarray(row_n["label"])
        self._facts = facts or {}

    @property
    def n(self) -> int:
        return len(self.row)

    def describe(self) -> dict[str, Any]:
        """Return what was recognised, for people and for the manifest."""
        return {"source": shown(os.fsencode(self.root.name)), **self._facts}

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Return what tells these inputs from others."""

    @abstractmethod
    def read(self, i: int) -> bytes:
        """Return the image bytes of record i; raise Rejected where it has none to give."""

    @abstractmethod
    def name(self, i: int) -> str:
        """Return the record's key, or the path below the source."""

    def offset(self, i: int) -> int | None:
        """Return where the record lies in its file; None for a file of its own."""
        return None

    @abstractmethod
    def bytes(self) -> int:
        """Return about how many bytes the images take."""

    def save(self, folder: Path, seed: int) -> None:
        """Write what `load` needs, records in the order of `plan.order`.

        A worker then opens positions [start, stop) of the plan without listing the source.
        """
        self._save(folder, seed, self.row)

    def _save(self, folder: Path, seed: int, row_n: Rows) -> None:
        order_n = order(len(row_n), seed)
        pieces = (row_n[order_n[at : at + PIECE]] for at in range(0, len(order_n), PIECE))
        write_rows(folder, pieces, row_n.dtype, len(order_n))
        for name in self.by_row:
            save_names(folder, name, getattr(self, name).take(pa.array(order_n)))
        for name in self.whole:
            save_names(folder, name, getattr(self, name))

    @classmethod
    def load(cls, path: Path, folder: Path, start: int, stop: int) -> Source:
        """Open positions [start, stop) of what `save` wrote, to read them; nothing is listed.

        What is known of the whole source (`describe`, `fingerprint`) is not there.
        """
        source = cls.__new__(cls)
        Source.__init__(source, path, load_rows(folder, start, stop))
        for name in cls.whole:
            setattr(source, name, load_names(folder, name))
        for name in cls.by_row:
            setattr(source, name, load_names(folder, name).slice(start, stop - start))
        return source


def shown(path: bytes) -> str:
    """Return a path as text; bytes that are not UTF-8 are written as \\xNN."""
    return path.decode("utf-8", "backslashreplace")


def write_rows(folder: Path, pieces: Iterable[Rows], dtype: np.dtype[Any], n: int) -> None:
    """Write n rows, a piece at a time, as `load_rows` reads them."""
    header = {"descr": dtype.descr, "fortran_order": False, "shape": (n,)}
    with summed(folder / "rows.npy") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces:
            file.write(piece.tobytes())


def load_rows(folder: Path, start: int, stop: int) -> Rows:
    """Read rows [start, stop) of what `write_rows` wrote. Raises ResourceError GL0903."""
    rows: Rows = load_array(folder, "rows")[start:stop].copy()
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
    size, changed = path.stat().st_size, path.stat().st_mtime_ns
    if size <= WHOLE:
        return {"name": path.name, "size": size, "xxh3": atomic.xxh3_of(path)}
    with path.open("rb") as file:
        ends = file.read(1 << 20)
        file.seek(-(1 << 20), os.SEEK_END)
        ends += file.read()
    digest = xxhash.xxh3_128_hexdigest(ends)
    return {"name": path.name, "size": size, "ends_xxh3": digest, "mtime_ns": changed}


def persistent(read: Callable[[], bytes], where: str) -> bytes:
    """Read, trying three times. Raises ResourceError GL0903, InputError GL0001 for a lost file."""
    for last in (False, False, True):
        try:
            return read()
        except FileNotFoundError:
            what = "the file is gone since it was listed"
            raise InputError("GL0001", what, where=where) from None
        except OSError as error:
            if last:
                what = f"cannot be read: {error.strerror or error}"
                raise ResourceError("GL0903", what, where=where) from error
    raise AssertionError("the loop returns or raises")
