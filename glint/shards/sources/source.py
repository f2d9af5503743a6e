"""What every kind of source offers to the sharder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glint.errors import InputError, ResourceError
from glint.shards.image import Rejected
from glint.shards.strings import Strings

Ints = npt.NDArray[np.int64]
WHOLE = 1 << 30  # files up to this size are told apart by all their bytes


class Source(Protocol):
    """Images with labels, in a fixed order.

    `label` int64 [n] is dense: 0..C-1, or -1 where the source gives no usable one; `classes` [C]
    are the labels as the source writes them, `names` [C] what people call them (b"" = unknown).
    """

    kind: str
    label: Ints
    classes: Strings
    names: Strings

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
    def save(self, folder: Path) -> None:
        """Write what `load` needs, so that a worker opens the source without listing it."""
        ...


def read_many(source: Source, row_n: Ints) -> Iterator[bytes | Rejected]:
    """Read records one after the other; what `read` would raise is given instead.

    A source that can do better than one `read` after the other has a method `many`.
    """
    many = getattr(source, "many", None)
    if many is not None:
        yield from many(row_n)
        return
    for i in row_n.tolist():
        try:
            yield source.read(i)
        except Rejected as why:
            yield why


def names_of(source: Source, row_n: Ints) -> pa.Array:
    """Return the `name` of records as an Arrow column; a source may have a method `names_of`."""
    made = getattr(source, "names_of", None)
    return (pa.array([source.name(i) for i in row_n.tolist()], pa.string()) if made is None
            else made(row_n))


def dense(value_n: Ints) -> tuple[Ints, Strings]:
    """Map labels (negative = unusable) to 0..C-1 in numeric order; return them and their names."""
    good_n = value_n >= 0
    kept, label_n = np.unique(value_n[good_n], return_inverse=True)
    out_n = np.full(len(value_n), -1, np.int64)
    out_n[good_n] = label_n
    return out_n, Strings.of(b"%d" % value for value in kept.tolist())


def fingerprint(path: Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file; for a large one of its ends, with its time of change."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        if stat.st_size <= WHOLE:
            while block := file.read(1 << 20):
                hasher.update(block)
            return {"name": path.name, "size": stat.st_size, "sha256": hasher.hexdigest()}
        hasher.update(file.read(1 << 20))
        file.seek(-(1 << 20), os.SEEK_END)
        hasher.update(file.read())
    return {"name": path.name, "size": stat.st_size, "ends_sha256": hasher.hexdigest(),
            "mtime_ns": stat.st_mtime_ns}


def persistent(read: Callable[[], bytes], where: str) -> bytes:
    """Read, trying three times. Raises ResourceError GL0903, InputError GL0001 for a lost file."""
    for attempt in range(3):
        try:
            return read()
        except FileNotFoundError:
            raise InputError("GL0001", "the file is gone since it was listed",
                             where=where) from None
        except OSError as error:
            if attempt == 2:
                raise ResourceError("GL0903", f"cannot be read: {error.strerror or error}",
                                    where=where) from error
    raise AssertionError("the loop returns or raises")
