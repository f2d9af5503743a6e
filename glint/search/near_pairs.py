"""Pairs of rows in files, sorted in two passes over blocks of them: a row takes 16 bytes of memory,
a pair none."""

# N all rows, n some of them, m pairs

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glint.files import atomic
from glint.files.strings import new_array

ROWS = 16384  # rows whose pairs are put in order at once
PAIRS = 1 << 19  # pairs looked at at once

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NearPairs:
    """Row pairs a < b, sorted, and their cosine in float32; good_N: the rows with a direction."""

    a: npt.NDArray[np.int32]
    b: npt.NDArray[np.int32]
    cosine: npt.NDArray[np.float32]
    good_N: Ints

    def parts(self) -> Iterator[slice]:
        """Yield where to find all pairs, some at a time."""
        return (slice(at, at + PAIRS) for at in range(0, len(self.a), PAIRS))


@dataclass(frozen=True)
class Graph:
    """The neighbours of each row, ascending, and the cosines: those of row i from start_N[i] on."""

    start_N: Ints
    other: npt.NDArray[np.int32]
    cosine: npt.NDArray[np.float32]

    def blocks(self) -> Iterator[tuple[int, Ints, slice]]:
        """Yield some rows at a time: the first, the row of each entry, and where the entries are.

        Rows are counted from the first.
        """
        for first in range(0, len(self.start_N) - 1, ROWS):
            start_n = self.start_N[first : first + ROWS + 1]
            yield (
                first,
                np.repeat(np.arange(len(start_n) - 1), np.diff(start_n)),
                slice(int(start_n[0]), int(start_n[-1])),
            )

    def pairs(self, folder: Path, good_N: Ints) -> NearPairs:
        """Return entries as pairs: of a graph of rows and larger ones."""
        row = new_file(folder / "pairs-a.npy", np.int32, len(self.other))
        for first, row_m, where in self.blocks():
            row[where] = row_m + first
        return NearPairs(row, self.other, self.cosine, good_N)


class CountingSort:
    """Places of entries by a key of theirs, given how often each key comes, block after block."""

    def __init__(self, count_k: Ints) -> None:
        self.start = np.concatenate([[0], np.cumsum(count_k)])
        self._next = self.start[:-1].copy()

    def place(self, key_m: npt.NDArray[Any]) -> Ints:
        """Return the places of the next entries, which keep their order."""
        order = np.argsort(key_m, kind="stable")
        key, first, count = np.unique(key_m[order], return_index=True, return_counts=True)
        rank = np.arange(len(order)) - np.repeat(first, count)
        place = np.empty(len(order), np.int64)
        place[order] = self._next[key_m[order]] + rank
        self._next[key] += count
        return place


def graph(blocks: Callable[[], Iterable[Any]], n: int, folder: Path, *, both: bool) -> Graph:
    """Sort pairs a < b of disjoint blocks, which are asked for twice, by row.

    both: each pair stands with both of its rows, else with the smaller.
    """
    count_N = np.zeros(n, np.int64)
    for found in blocks():
        for rows in (found.a, found.b)[: 1 + both]:
            row, count = np.unique(rows, return_counts=True)
            count_N[row] += count
    sort = CountingSort(count_N)
    del count_N
    total = int(sort.start[-1])
    other = new_file(folder / f"pairs-{'both' if both else 'b'}.npy", np.int32, total)
    cosine = new_file(folder / f"pairs-cosine-{both:d}.npy", np.float32, total)
    for found in blocks():
        for rows, others in ((found.a, found.b), (found.b, found.a))[: 1 + both]:
            place = sort.place(rows)
            other[place], cosine[place] = others, found.cosine
    made = Graph(sort.start, other, cosine)
    for _, row_m, where in made.blocks():
        order = np.lexsort((other[where], row_m))
        other[where], cosine[where] = other[where][order], cosine[where][order]
    return made


def nearest(full: Graph, most: int, folder: Path) -> Graph:
    """Keep the `most` largest of each row, of equals the smallest rows."""
    start_N = np.concatenate([[0], np.cumsum(np.minimum(np.diff(full.start_N), most))])
    other = new_file(folder / "pairs-few.npy", np.int32, int(start_N[-1]))
    for first, row_m, where in full.blocks():
        near = full.other[where]
        order = np.lexsort((near, -full.cosine[where], row_m))
        rank = np.arange(len(order)) - (full.start_N[first + row_m] - where.start)
        keep = np.sort(order[rank < most])
        at = int(start_N[first])
        other[at : at + len(keep)] = near[keep]
    return Graph(start_N, other, np.empty(0, np.float32))


def new_file(path: Path, dtype: npt.DTypeLike, count: int) -> npt.NDArray[Any]:
    """Map a new file of so many numbers."""
    if not count:
        return np.empty(0, dtype)
    path.unlink(missing_ok=True)  # what is mapped of one before stays as it is
    with atomic.writing(path):
        return new_array(path, dtype, (count,)).view(np.ndarray)
