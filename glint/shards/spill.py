"""Rows that need not fit into memory: appended, read back, sorted, saved in a dealt order."""

# m rows of a block

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glint.errors import ResourceError
from glint.shards import commit, plan
from glint.shards.strings import reading

Row = npt.NDArray[Any]  # of a structured type
BLOCK = 1 << 16  # rows in memory at a time
STEP = 256  # rows read of a sorted run at a time
RUNS = 10  # at most 2 ** RUNS sorted runs: more rows than 2 ** 26 make longer ones
ROWS = "rows.bin"


class Table:
    """Rows of one type: the first block in memory, more of them in a file without a name.

    The file lies in `folder`, or where temporary files do, and is gone with the table or the
    process. Raises ResourceError GL0901, GL0903.
    """

    def __init__(self, dtype: Any, folder: Path | None = None) -> None:
        self.dtype, self.folder = np.dtype(dtype), folder
        self._held: list[Row] = []
        self._holding = self._n = 0
        self._file: Any = None

    def __len__(self) -> int:
        return self._n

    def append(self, row_m: Row) -> None:
        """Add rows."""
        self._held.append(row_m)
        self._holding += len(row_m)
        self._n += len(row_m)
        if self._holding > BLOCK:
            self._flush()

    def _flush(self) -> None:
        with commit.writing(self.folder or tempfile.gettempdir()):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
            for row_m in self._held:
                self._file.write(np.ascontiguousarray(row_m).view(np.uint8).data)
            self._file.flush()
        self._held, self._holding = [], 0

    def read(self, start: int, stop: int) -> Row:
        """Return rows [start, stop)."""
        if self._file is None:
            return self.array()[start:stop]
        if self._held:
            self._flush()
        with reading(self.folder or Path(tempfile.gettempdir())):
            return _read(self._file.fileno(), self.dtype, start, stop)

    def blocks(self, size: int = 0) -> Iterator[Row]:
        """Yield all rows, `size` (or BLOCK) at a time."""
        size = size or BLOCK
        for start in range(0, self._n, size):
            yield self.read(start, min(start + size, self._n))

    def array(self) -> Row:
        """Return all rows; where they lie in a file, mapped."""
        if self._file is None:
            if len(self._held) != 1:  # copied once, however often it is read
                self._held = [np.concatenate([np.empty(0, self.dtype), *self._held])]
            return self._held[0]
        if self._held:
            self._flush()
        return np.memmap(self._file, self.dtype, "r").view(np.ndarray)


def _read(fd: int, dtype: np.dtype[Any], start: int, stop: int) -> Row:
    row_m = np.empty(stop - start, dtype)
    got = os.preadv(fd, [row_m.view(np.uint8).data], start * dtype.itemsize)
    if got != row_m.nbytes:
        raise ResourceError("GL0903", f"expected {row_m.nbytes} bytes of rows, found {got}")
    return row_m


def collected(blocks: Iterable[Row], dtype: Any, folder: Path | None) -> Table:
    """Return a table of all these rows."""
    table = Table(dtype, folder)
    for row_m in blocks:
        table.append(row_m)
    return table


class _Run:
    """A sorted stretch of a table, read front to back."""

    def __init__(self, table: Table, by: str, start: int, stop: int) -> None:
        self._table, self._by, self._at, self._stop = table, by, start, stop
        self._row = np.empty(0, table.dtype)

    def below(self, value: Any) -> Iterator[Row]:
        """Yield the next rows, those less than `value`; all where it is None."""
        while True:
            if not len(self._row):
                if self._at == self._stop:
                    return
                start, self._at = self._at, min(self._at + STEP, self._stop)
                self._row = self._table.read(start, self._at)
            n = len(self._row)
            if value is not None:
                n = int(np.searchsorted(self._row[self._by], value))
            yield self._row[:n]
            self._row = self._row[n:]
            if len(self._row):
                return


def _ascends(table: Table, by: str) -> bool:
    last = None
    for row_m in table.blocks():
        value_m = row_m[by]
        if (value_m[1:] < value_m[:-1]).any() or (last is not None and value_m[0] < last):
            return False
        last = value_m[-1]
    return True


def _sorted(row_m: Row, by: str) -> Row:
    return row_m[np.argsort(row_m[by], kind="stable")]


def arranged(table: Table, by: str) -> Iterator[Row]:
    """Yield the rows sorted by a column, in blocks; rows of one value keep their order.

    Sorts blocks, writes them, and merges between values that cut all of them into about a block.
    """
    if _ascends(table, by):
        yield from table.blocks()
        return
    size = max(BLOCK, len(table) >> RUNS)
    runs = Table(table.dtype, table.folder)
    sample: list[Row] = []
    for row_m in table.blocks(size):
        row_m = _sorted(row_m, by)
        sample.append(row_m[by][::STEP].copy())
        runs.append(row_m)
    some = max(size // STEP, 1)
    cuts = np.unique(np.sort(np.concatenate(sample))[some::some])
    parts = [
        _Run(runs, by, start, min(start + size, len(runs))) for start in range(0, len(runs), size)
    ]
    for value in (*cuts, None):
        yield _sorted(np.concatenate([row_m for run in parts for row_m in run.below(value)]), by)


def repeated(blocks: Iterable[Row], by: str, most: int = 5) -> list[tuple[int, int]]:
    """Return the first values that stand several times in sorted rows, and how often each does."""
    found: list[tuple[int, int]] = []
    last, count = None, 0
    for row_m in blocks:
        kept, count_m = np.unique(row_m[by], return_counts=True)
        if len(kept) and last == kept[0]:
            count_m[0] += count
        elif count > 1:
            found.append((int(last or 0), count))
        many = count_m[:-1] > 1
        found += list(zip(kept[:-1][many].tolist(), count_m[:-1][many].tolist()))[:most]
        if len(kept):
            last, count = kept[-1], int(count_m[-1])
        if len(found) >= most:
            break
    else:
        if count > 1:
            found.append((int(last or 0), count))
    return found[:most]


def numbered(columns: Any, dtype: Any) -> Iterator[Row]:
    """Yield rows made of the arrays that are attributes of `columns`, and of their `number`."""
    dtype = np.dtype(dtype)
    for start in range(0, columns.n, BLOCK):
        stop = min(start + BLOCK, columns.n)
        row_m = np.empty(stop - start, dtype)
        row_m["number"] = np.arange(start, stop)
        for name in dtype.names or ():
            if name != "number":
                row_m[name] = getattr(columns, name)[start:stop]
        yield row_m


def save(folder: Path, blocks: Iterable[Row], dtype: Any, seed: int | None = None) -> None:
    """Write the rows of a source: as they come, or in the order that `plan.order` deals them.

    A shard's rows then lie side by side.
    """
    dtype = np.dtype(dtype)
    if seed is not None:
        blocks = _dealt(folder, blocks, dtype, seed)
    with commit.writing(folder), (folder / ROWS).open("wb") as file:
        for row_m in blocks:
            file.write(np.ascontiguousarray(row_m).view(np.uint8).data)


def _dealt(folder: Path, blocks: Iterable[Row], dtype: np.dtype[Any], seed: int) -> Iterator[Row]:
    drawn = Table([("word", np.uint64), ("row", dtype)], folder)
    draw = plan.words(seed)
    for row_m in blocks:
        both_m = np.empty(len(row_m), drawn.dtype)
        both_m["word"], both_m["row"] = draw(len(row_m)), row_m
        drawn.append(both_m)
    for both_m in arranged(drawn, "word"):
        yield both_m["row"]


def load(folder: Path, dtype: Any, start: int = 0, stop: int | None = None) -> Row:
    """Read rows [start, stop) of what `save` wrote. Raises ResourceError GL0903."""
    dtype = np.dtype(dtype)
    with reading(folder), (folder / ROWS).open("rb", buffering=0) as file:
        if stop is None:
            stop = os.fstat(file.fileno()).st_size // dtype.itemsize
        return _read(file.fileno(), dtype, start, stop)
