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
from glint.files.strings import checksummed, load_array, load_names, packed, save_names

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
        self.label: Ints = row_n["label"]
        self._facts = facts or {}

    @property
    def n(self) -> int:
        return len(self.row)

    def describe(self) -> dict[str, Any]:
        """Return what was recognised, for people and for the manifest.

        {source, layout, images, identities, label: which rule makes it, examples, left_out,
        notes, warnings}, and more by kind.
        """
        facts = {"source": shown(os.fsencode(self.root.name)), **self._facts}
        left = {why: count for why, count in facts.get("left_out", {}).items() if count}
        warnings = [*facts.get("warnings", ()), *self._nonsense()]
        return {**facts, "examples": self._examples(), "left_out": left, "warnings": warnings}

    def _examples(self) -> list[list[str]]:
        """Return name and label of three images, of three identities where there are."""
        some_m = self.label[: 1 << 16]
        first = np.sort(np.unique(some_m, return_index=True)[1])
        rows = [*first[some_m[first] >= 0][:3], *np.flatnonzero(some_m >= 0)[:3]]
        said = [(i, int(self.label[i])) for i in [*dict.fromkeys(map(int, rows))][:3]]
        return [[self.name(i), shown(self.classes[label].as_py())] for i, label in said]

    def _nonsense(self) -> list[str]:
        """Say where labels look as if they were none."""
        label_n = self.label[self.label >= 0]
        if len(label_n) < 2:
            return []
        count_C = np.bincount(label_n, minlength=len(self.classes))
        most, n = int(count_C.argmax()), len(label_n)
        look = "look at the examples; --label-depth, --label-from and --labels take others"
        if (count_C > 0).sum() == 1:
            return [f"all {n} images are under one identity: nothing can be learnt; {look}"]
        if count_C.max() == 1:
            text = "labels seem to be numbers of rows or names of images, not of people"
            return [f"as many identities as images ({n}): {text}; {look}"]
        if n >= 20 and count_C[most] >= 0.9 * n:
            share, name = f"{100 * count_C[most] / n:.0f} %", shown(self.classes[most].as_py())
            return [f"{share} of the images are under one identity, {name}; {look}"]
        return []

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

    def save(self, folder: Path, order_n: Ints) -> None:
        """Write what `load` needs, records in the order of a plan: position -> record.

        A worker then opens positions [start, stop) of the plan without listing the source.
        """
        self._save(folder, order_n, self.row)

    def _save(self, folder: Path, order_n: Ints, row_n: Rows) -> None:
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
    with checksummed(folder / "rows.npy") as file:
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


def read_retrying(read: Callable[[], bytes], where: str) -> bytes:
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
