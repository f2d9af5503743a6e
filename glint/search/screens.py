"""Screens for pairs of unit rows: rounded products that miss no pair which reaches a threshold.

A screen compares a rounded product with the threshold less what rounding can have taken away, so
that it lets through every pair that counts, and a few more.

Proof for int8. Rows are taken in blocks; `pairs.in_order` puts rows of like largest parts into one.
Let u_i be a unit row, s the largest part of its block over 127, q_i = u_i / s rounded to integers,
and d_i the length of u_i - s q_i, measured in float64.

1. u_i.u_j - s q_i . r q_j = (u_i - s q_i).u_j + s q_i.(u_j - r q_j), by Cauchy and Schwarz at most
   d_i + (1 + d_i) d_j. The d of a tile are the largest of its rows and of its columns.
2. q_i.q_j is summed in int32, without rounding, and no sum of D terms below 2^14 leaves it while
   D < 2^17.
3. The exact score and the d are float64: ROUNDING is far above what they lose.

So a pair that reaches t has q_i.q_j of at least (t - d_i - (1 + d_i) d_j - ROUNDING) / (s r).
A card sums in int32 too: unlike bf16 or TF32, nothing rests on how its sums of floats are rounded.
Blocks whose parts are so unlike that the d are large (one-hot rows) are multiplied in float32.
"""

# N all usable rows, r rows and c columns of a tile, D embedding

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from glint.search import faiss_index

if TYPE_CHECKING:
    import torch

CHUNK = 2048  # unit rows that are held in float64
ROUNDING = 2.0**-30  # above D 2^-51
SOME = 128  # of them, which stay in a cache
SPAN = 65536  # columns that a card multiplies at a time
COARSE = 2.0**-4  # a tile whose d add up to more is multiplied in float32

Rows = npt.NDArray[np.int64]
Take = Callable[[Rows], npt.NDArray[np.float64]]  # the unit rows of some of 0 to N - 1


class Screen(Protocol):
    """Hold the unit rows and find candidates among them."""

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


def bfloat16_is_fast() -> bool:
    """Return whether this processor multiplies tiles of bfloat16 (AMX); else it may be slow."""
    import torch

    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def card_is_there(device: str) -> bool:
    """Return whether torch has this device, another than the processor."""
    import torch

    try:
        place = torch.device(device)
    except RuntimeError:
        return False
    return place.type == "cuda" and (place.index or 0) < torch.cuda.device_count()


def card_has_int8(device: str) -> bool:
    """Return whether a card multiplies int8: compute capability 7.5 and up."""
    import torch

    return torch.cuda.get_device_capability(torch.device(device)) >= (7, 5)


@dataclass(frozen=True)
class Whole:
    """Unit rows in int8, with zeros after the D parts up to a multiple of 16.

    For torch takes strides of one part for many, and cards want rows that begin at 16 bytes.
    step_b: the s of each block of `block` rows; off_b: the largest d of its rows.
    """

    row_ND: npt.NDArray[np.int8]
    step_b: npt.NDArray[np.float64]
    off_b: npt.NDArray[np.float64]
    block: int


def whole(take: Take, count: int, dim: int, block: int) -> Whole:
    """Round unit rows to int8."""
    row_ND = np.zeros((count, -(-dim // 16) * 16), np.int8)
    step_b, off_b = (np.zeros(-(-count // block)) for _ in range(2))
    for i in range(len(step_b)):
        first, last = i * block, min((i + 1) * block, count)
        unit_rD = take(np.arange(first, last))
        step_b[i] = max(unit_rD.max(), -unit_rD.min()) / 127
        for start in range(0, last - first, SOME):
            unit_nD = unit_rD[start : start + SOME]
            whole_nD = np.rint(unit_nD / step_b[i])
            row_ND[first + start : first + start + len(unit_nD), :dim] = whole_nD
            whole_nD *= -step_b[i]
            whole_nD += unit_nD
            longest = np.sqrt(np.einsum("nd,nd->n", whole_nD, whole_nD).max())
            off_b[i] = max(off_b[i], longest)
    return Whole(row_ND, step_b, off_b, block)


@dataclass(frozen=True)
class _Side:
    """The rows, or the columns, of the products."""

    take: Take
    table: Whole
    row_ND: torch.Tensor

    def part(self, i: int) -> torch.Tensor:
        """Return a block in int8."""
        return self.row_ND[i * self.table.block : (i + 1) * self.table.block]

    def float32(self, i: int) -> torch.Tensor:
        """Return a block in float32."""
        import torch

        start, count = i * self.table.block, len(self.part(i))
        row_rD = self.take(np.arange(start, start + count)).astype(np.float32)
        return torch.from_numpy(row_rD).to(self.row_ND.device)


class Int8:
    """Products in int8, summed in int32: N D bytes, on the processor or on a card.

    On the processor each thread has a tile of its own: threads that share one wait for each other
    at its end. A card multiplies a block of rows by SPAN columns at a time. other: the columns, in
    blocks of as many, where they are another set; then candidates are (row, column), all of them.
    """

    def __init__(
        self,
        take: Take,
        table: Whole,
        threshold: float,
        device: str = "cpu",
        other: tuple[Take, Whole] | None = None,
    ) -> None:
        import torch

        self._device, self._threshold = torch.device(device), threshold
        self._rows = self._columns = self._side(take, table)
        self._alone, self._block = other is None, table.block
        if other is not None:
            self._columns = self._side(*other)
        self._own = threading.local()
        self._pool: ThreadPoolExecutor | None = None
        if self._device.type == "cpu":
            self._pool = ThreadPoolExecutor(torch.get_num_threads(), "tiles", self._begin)

    def _side(self, take: Take, table: Whole) -> _Side:
        return _Side(take, table, _tensor(table.row_ND).to(self._device))

    def _begin(self) -> None:
        """Have this thread compute alone, in room of its own."""
        import torch

        torch.set_num_threads(1)
        sides = (len(side.row_ND) for side in (self._rows, self._columns))
        room = math.prod(min(count, self._block) for count in sides)
        self._own.room = torch.empty(room, dtype=torch.int32)

    def tiles(self, first: int) -> Iterator[tuple[Rows, Rows]]:
        """Yield candidates of the tiles from the diagonal on, or of all columns of another set."""
        i = first // self._block
        others = range(i if self._alone else 0, len(self._columns.table.step_b))
        if self._pool is None:
            found = self._stretches(i, others)
        else:
            found = (
                (j * self._block, *near)
                for j, near in zip(others, self._pool.map(self._tile, repeat(i), others))
            )
        for start, row_k, column_k in found:
            a, b = row_k + first, column_k + start
            keep = (a < b) if self._alone else slice(None)
            yield a[keep], b[keep]

    def _cut(self, i: int, j: int) -> int:
        """Return the least product of a tile that may reach the threshold."""
        one, two = self._rows.table, self._columns.table
        lost = one.off_b[i] + (1 + one.off_b[i]) * two.off_b[j] + ROUNDING
        cut: int = math.floor((self._threshold - lost) / (one.step_b[i] * two.step_b[j]))
        return max(-(2**31), min(cut, 2**31 - 1))

    def _coarse(self, i: int, j: int) -> bool:
        return bool(self._rows.table.off_b[i] + self._columns.table.off_b[j] > COARSE)

    def _wide(self, i: int, j: int) -> tuple[Rows, Rows]:
        return wide(self._rows.float32(i), self._columns.float32(j), self._threshold)

    def _tile(self, i: int, j: int) -> tuple[Rows, Rows]:
        """Screen a tile."""
        import torch

        if self._coarse(i, j):
            return self._wide(i, j)
        row_rD, column_cD = self._rows.part(i), self._columns.part(j)
        shape = len(row_rD), len(column_cD)
        score_rc = self._own.room[: shape[0] * shape[1]].view(shape)
        torch._int_mm(row_rD, column_cD.T, out=score_rc)
        if self._alone and i == j:
            score_rc.fill_diagonal_(-(2**31))
        cut = self._cut(i, j)
        near_k = (score_rc.amax(dim=1) >= cut).nonzero()[:, 0]  # few rows have a pair at all
        hit = (score_rc[near_k] >= cut).nonzero()
        return near_k[hit[:, 0]].numpy(), hit[:, 1].numpy()

    def _stretches(self, i: int, blocks: range) -> Iterator[tuple[int, Rows, Rows]]:
        """Screen a block of rows against SPAN columns at a time: (first column, rows, columns)."""
        import torch

        block = self._block
        row_rD = self._rows.part(i)
        rows, row_rD = len(row_rD), _padded(row_rD)
        span = max(1, SPAN // block)
        for begin in blocks[::span]:
            others = range(begin, min(begin + span, blocks.stop))
            column_cD = self._columns.row_ND[others.start * block : others.stop * block]
            columns = len(column_cD)
            cuts = [2**31 - 1 if self._coarse(i, j) else self._cut(i, j) for j in others]
            cut_c = torch.tensor(cuts, dtype=torch.int32).repeat_interleave(block)[:columns]
            score_rc = torch._int_mm(row_rD, _padded(column_cD).T)[:rows, :columns]
            hit = (score_rc >= cut_c.to(self._device)).nonzero().cpu().numpy()
            yield others.start * block, hit[:, 0], hit[:, 1]
            for j in others:
                if self._coarse(i, j):
                    yield j * block, *self._wide(i, j)


def _tensor(x_ND: npt.NDArray[np.int8]) -> torch.Tensor:
    """Return an array, perhaps a map of a file to read, as a tensor of the same memory."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it could be written to
        return torch.from_numpy(x_ND)


def _padded(x_nD: torch.Tensor) -> torch.Tensor:
    """Add rows of zeros up to a multiple of 32: a card multiplies no other shapes of int8."""
    from torch.nn.functional import pad

    return pad(x_nD, (0, 0, 0, -len(x_nD) % 32)) if len(x_nD) % 32 else x_nD


class Float32:
    """Products in float32 by torch: 4 N D bytes on `device`. Tiles of the triangle."""

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
