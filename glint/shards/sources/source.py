"""What every kind of source offers to the sharder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from glint.errors import InputError, ResourceError
from glint.shards import blocks
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

    def save(self, folder: Path, seed: int | None = None) -> None:
        """Write what `load` needs, so that a worker opens the source without listing it.

        With a seed, the records take the order of `plan.order`.
        """
        ...


class Run(NamedTuple):
    """Records read together: record j is bytes [start, stop) of `data`, unless it is in `bad`.

    The next run may use the same memory.
    """

    data: npt.NDArray[np.uint8]
    start_n: Ints
    stop_n: Ints
    bad: dict[int, Rejected]


def read_many(
    source: Source, row_n: Ints, most: int, room: blocks.Room | None = None
) -> Iterator[Run]:
    """Read records in runs of about `most` bytes, into a room.

    A source that can do better than one `read` after the other has a method `many`.
    """
    room = room or blocks.Room()
    many = getattr(source, "many", None)
    if many is not None:
        yield from many(row_n, most, room)
        return
    held: list[bytes] = []
    bad: dict[int, Rejected] = {}
    total = 0
    for i in row_n.tolist():
        try:
            held.append(source.read(i))
        except Rejected as why:
            bad[len(held)] = why
            held.append(b"")
        total += len(held[-1])
        if total >= most:
            yield joined(held, bad, room)
            held, bad, total = [], {}, 0
    if held:
        yield joined(held, bad, room)


def joined(held: Sequence[bytes], bad: dict[int, Rejected], room: blocks.Room | None = None) -> Run:
    """Return a run of byte strings."""
    size_n = np.fromiter(map(len, held), np.int64, len(held))
    data, start_n = (room or blocks.Room()).lay(size_n)
    view = data.data
    for image, at in zip(held, start_n.tolist()):
        view[at : at + len(image)] = image
    return Run(data, start_n, start_n + size_n, bad)


def names_of(source: Source, row_n: Ints) -> pa.Array:
    """Return the `name` of records as an Arrow column; a source may have a method `names_of`."""
    made = getattr(source, "names_of", None)
    return (
        pa.array([source.name(i) for i in row_n.tolist()], pa.string())
        if made is None
        else made(row_n)
    )


def dense(value_n: Ints) -> tuple[Ints, Strings]:
    """Map labels (negative = unusable) to 0..C-1 in numeric order; return them and their names."""
    good_n = value_n >= 0
    kept, label_n = np.unique(value_n[good_n], return_inverse=True)
    out_n = np.full(len(value_n), -1, np.int64)
    out_n[good_n] = label_n
    return out_n, Strings.of(b"%d" % value for value in kept.tolist())


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
