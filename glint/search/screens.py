"""Screens for pairs of unit rows: rounded products that miss no pair which reaches a threshold.

A screen compares a rounded product with the threshold less what rounding can have taken away, so
that it lets through every pair that counts, and a few more.

Proof for int8. Rows are taken in blocks, in the order of their largest parts. Let u_i be a unit
row, s the largest part of its block over 127, q_i = u_i / s rounded to integers, and d_i the length
of u_i - s q_i, measured in float64.

1. u_i.u_j - s q_i . r q_j = (u_i - s q_i).u_j + s q_i.(u_j - r q_j), by Cauchy and Schwarz at most
   d_i + (1 + d_i) d_j. The d of a tile are the largest of its rows and of its columns.
2. q_i.q_j is summed in int32, without rounding, and no sum of D terms below 2^14 leaves it while
   D < 2^17.
3. The exact score and the d are float64: ROUNDING is far above what they lose.

So a pair that reaches t has q_i.q_j of at least (t - d_i - (1 + d_i) d_j - ROUNDING) / (s r).
Blocks whose parts are so unlike that the d are large (one-hot rows) are multiplied in float32.
"""

# N all usable rows, r rows and c columns of a tile, D embedding

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from glint.search import faiss_index

if TYPE_CHECKING:
    import torch

CHUNK = 2048  # unit rows that are held in float64
ROUNDING = 2.0**-30  # above D 2^-51
COARSE = 2.0**-4  # a tile whose d add up to more is multiplied in float32

Rows = npt.NDArray[np.int64]
Take = Callable[[Rows], npt.NDArray[np.float64]]  # the unit rows of some of 0 to N - 1


class Screen(Protocol):
    """Hold the unit rows and find candidates among them.

    parts: names the division of the pairs into blocks of rows.
    """

    parts: str

    def tiles(self, first: int) -> Iterator[tuple[Rows, Rows]]:
        """Yield candidates a < b of the block from `first` on, a tile at a time.

        Over all blocks every pair is met once.
        """


def margin(dim: int) -> float:
    """Bound the error of a float32 inner product of two unit rows of length `dim`.

    |fl(x.y) - x.y| <= gamma_D * sum|x_i y_i| <= gamma_D, gamma_D = D u / (1 - D u), u = 2^-24
    (Higham, Accuracy and Stability, 3.5), plus the rounding of the rows themselves; doubled.
    """
    return 2.0 * (dim + 4) * 2.0**-24


def int8_is_fast() -> bool:
    """Return whether this processor has instructions for products of int8 that torch uses.

    Without them (AVX512-VNNI) they are slower, and summed in 16 bits on the way.
    """
    import torch

    return bool(getattr(torch.cpu, "_is_vnni_supported", lambda: False)())


class Int8:
    """Products in int8, summed in int32: N D bytes, on the processor. Tiles of the triangle.

    Each thread has a tile of its own: threads that share one wait for each other at its end.
    """

    def __init__(self, take: Take, count: int, dim: int, threshold: float, block: int) -> None:
        import torch

        self._take, self._threshold, self._block = take, threshold, block
        peak_N = np.empty(count)
        for rows in _chunks(count):
            peak_N[rows] = np.abs(take(rows)).max(axis=1)
        self._order_N = np.argsort(peak_N, kind="stable")
        self.parts = f"int8 {xxhash.xxh3_128_hexdigest(self._order_N.tobytes())}"
        self._step = np.zeros(-(-count // block))  # s of each block, and the largest d
        self._off = np.zeros(-(-count // block))
        # Zeros after the D parts: torch takes the strides of one part for those of many.
        self._row_ND = torch.zeros(count, -(-dim // 4) * 4, dtype=torch.int8)
        for i in range(len(self._step)):
            unit_rD = self._unit(i)
            self._step[i] = np.abs(unit_rD).max() / 127
            whole_rD = np.rint(unit_rD / self._step[i])
            self._row_ND[i * block : (i + 1) * block, :dim] = torch.from_numpy(whole_rD)
            self._off[i] = np.linalg.norm(unit_rD - self._step[i] * whole_rD, axis=1).max()
        self._own = threading.local()
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(threads, "tiles", self._begin)

    def _begin(self) -> None:
        """Have this thread compute alone, in room of its own."""
        import torch

        torch.set_num_threads(1)
        self._own.room = torch.empty(min(len(self._row_ND), self._block) ** 2, dtype=torch.int32)

    def tiles(self, first: int) -> Iterator[tuple[Rows, Rows]]:
        """Yield candidates of the tiles from the diagonal on; rows are in the order of parts."""
        i = first // self._block
        others = range(i, len(self._step))
        for j, (row_k, column_k) in zip(others, self._pool.map(self._tile, repeat(i), others)):
            keep_k = (row_k < column_k) if i == j else slice(None)
            a = self._order_N[row_k[keep_k] + first]
            b = self._order_N[column_k[keep_k] + j * self._block]
            yield np.minimum(a, b), np.maximum(a, b)

    def _tile(self, i: int, j: int) -> tuple[Rows, Rows]:
        """Screen a tile."""
        import torch

        if self._off[i] + self._off[j] > COARSE:
            return wide(self._float32(i), self._float32(j), self._threshold)

        row_rD, column_cD = self._part(i), self._part(j)
        shape = len(row_rD), len(column_cD)
        score_rc = self._own.room[: shape[0] * shape[1]].view(shape)
        torch._int_mm(row_rD, column_cD.T, out=score_rc)
        if i == j:
            score_rc.fill_diagonal_(-(2**31))
        lost = self._off[i] + (1 + self._off[i]) * self._off[j] + ROUNDING
        cut = math.floor((self._threshold - lost) / (self._step[i] * self._step[j]))
        cut = max(-(2**31), min(cut, 2**31 - 1))
        near_k = (score_rc.amax(dim=1) >= cut).nonzero()[:, 0]  # few rows have a pair at all
        hit = (score_rc[near_k] >= cut).nonzero()
        return near_k[hit[:, 0]].numpy(), hit[:, 1].numpy()

    def _part(self, i: int) -> torch.Tensor:
        return self._row_ND[i * self._block : (i + 1) * self._block]

    def _unit(self, i: int) -> npt.NDArray[np.float64]:
        return self._take(self._order_N[i * self._block : (i + 1) * self._block])

    def _float32(self, i: int) -> torch.Tensor:
        import torch

        return torch.from_numpy(self._unit(i).astype(np.float32))


class Float32:
    """Products in float32 by torch: 4 N D bytes on `device`. Tiles of the triangle."""

    parts = "rows"

    def __init__(
        self, take: Take, count: int, dim: int, threshold: float, block: int, device: str
    ) -> None:
        import torch

        self._row_ND = torch.from_numpy(_float32(take, count, dim)).to(device)
        self._threshold, self._block = threshold, block

    def tiles(self, first: int) -> Iterator[tuple[Rows, Rows]]:
        """Yield candidates of the tiles from the diagonal on."""
        row_rD = self._row_ND[first : first + self._block]
        for other in range(first, len(self._row_ND), self._block):
            row_k, column_k = wide(
                row_rD, self._row_ND[other : other + self._block], self._threshold
            )
            a, b = row_k + first, column_k + other
            yield a[a < b], b[a < b]


class Faiss:
    """Range search of faiss in float32: 4 N D bytes, all columns of a block of rows at once."""

    parts = "rows"

    def __init__(self, take: Take, count: int, dim: int, threshold: float, block: int) -> None:
        self._row_ND = _float32(take, count, dim)
        self._index = faiss_index.FlatIndex(self._row_ND)
        self._bound, self._block = threshold - margin(dim), block

    def tiles(self, first: int) -> Iterator[tuple[Rows, Rows]]:
        """Yield the candidates of a block of rows."""
        a, b = self._index.above(self._row_ND[first : first + self._block], self._bound)
        a += first
        yield a[a < b], b[a < b]


@contextmanager
def exactly() -> Iterator[None]:
    """Keep products of float32 in float32, not TF32: the bound on their error rests on it."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def wide(row_rD: torch.Tensor, column_cD: torch.Tensor, threshold: float) -> tuple[Rows, Rows]:
    """Screen a tile of unit rows in float32: all that reach the threshold, and some below."""
    with exactly():
        score_rc = row_rD @ column_cD.T
    hit = (score_rc > threshold - margin(row_rD.shape[1])).nonzero().cpu().numpy()
    return hit[:, 0], hit[:, 1]


def _chunks(count: int) -> Iterator[Rows]:
    for start in range(0, count, CHUNK):
        yield np.arange(start, min(start + CHUNK, count))


def _float32(take: Take, count: int, dim: int) -> npt.NDArray[np.float32]:
    """Return all unit rows in float32."""
    row_ND = np.empty((count, dim), np.float32)
    for rows in _chunks(count):
        row_ND[rows] = take(rows)
    return row_ND
