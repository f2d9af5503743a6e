"""How rows are read from and written to a table: as they are, or bf16 with stochastic rounding.

A bf16 value keeps 8 significant bits: rounded to nearest, an update below 1/512 of a weight would
be lost for good. Rounded up with the probability of the remainder, it is right on average (Gupta
et al., arXiv 1502.02551). The draws are hashes of (seed, step, class, column): the same for every
world size and order of blocks, with no generator state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glint.rng import hash_32, scramble_32, stream_key

# c class rows of this rank, k rows that play, b rows of one block, D embedding, h half of D

At = slice | Tensor  # rows of a table: a slice, or an index of int64


def rows_at(table_c: Tensor, at: At) -> Tensor:
    """Read rows of a table: a view of a slice, otherwise a copy."""
    return table_c[at] if isinstance(at, slice) else table_c.index_select(0, at)


class Space:
    """Memory for the rows of one block after another, so that it stays in cache."""

    def __init__(self, like_cD: Tensor, block: int, dtype: torch.dtype) -> None:
        self._like_cD, self._block, self._dtype = like_cD, block, dtype
        self._made: list[Tensor] = []
        self._used = 0

    def begin(self) -> Space:
        """Begin a block: what was handed out is free again."""
        self._used = 0
        return self

    def __call__(self, rows: int) -> Tensor:
        """Hand out memory for rows of a block, (rows, D), with any content."""
        if self._used == len(self._made):
            shape = self._block, self._like_cD.shape[1]
            self._made.append(self._like_cD.new_empty(shape, dtype=self._dtype))
        self._used += 1
        return self._made[self._used - 1][:rows]


class Store:
    """Read rows in the type that is computed in, and write them in the type that is kept.

    first: the class of row 0 on this rank.
    """

    def __init__(self, compute: torch.dtype, *, seed: int = 0, first: int = 0) -> None:
        self.compute, self.seed, self.first = compute, seed, first

    def take(self, table_cD: Tensor, at: At, space: Space | None = None) -> Tensor:
        """Read rows: a view where a slice is kept as it is computed in, otherwise a copy."""
        if space is None or isinstance(at, slice) or table_cD.dtype != self.compute:
            return rows_at(table_cD, at).to(self.compute)
        return torch.index_select(table_cD, 0, at, out=space(at.numel()))

    def put(self, table_cD: Tensor, at: At, rows_bD: Tensor, *, salt: int, step: int) -> None:
        """Write rows that `take` read and that were changed; salt: another for each table."""
        if table_cD.dtype == torch.bfloat16:
            rows_bD = self._rounded(rows_bD, at, self.rounding_key(salt, step))
        if isinstance(at, slice):
            place_bD = table_cD[at]
            if place_bD.data_ptr() != rows_bD.data_ptr():
                place_bD.copy_(rows_bD)
        elif self._by_numpy(table_cD):
            table_cD.numpy()[at.numpy()] = rows_bD.numpy()
        else:
            table_cD.index_copy_(0, at, rows_bD)

    @staticmethod
    def _by_numpy(table_cD: Tensor) -> bool:
        """Say whether numpy writes faster: row by row on one thread; torch on all, by number."""
        few = table_cD.device.type == "cpu" and torch.get_num_threads() <= 2
        return few and table_cD.dtype != torch.bfloat16

    def rounding_key(self, salt: int, step: int) -> int:
        """Return the key that draws the rounding of a table at a step."""
        return stream_key(self.seed, 2, step, salt)

    def _rounded(self, rows_bD: Tensor, at: At, key: int) -> Tensor:
        """Round to bf16, up or down by chance."""
        if isinstance(at, slice):
            at = torch.arange(at.start, at.stop, device=rows_bD.device)
        noise_bD = noise(at + self.first, rows_bD.shape[1], key)
        bits_bD = rows_bD.contiguous().view(torch.int32).add(noise_bD).add_(1 << 15)
        return bits_bD.bitwise_and_(-1 << 16).view(torch.float32).to(torch.bfloat16)


def noise(class_b: Tensor, dim: int, key: int) -> Tensor:
    """Draw uniform int16 values (b, dim) as a function of (class, column, key)."""
    mixed_b = hash_32(class_b, key).to(torch.int32)
    mixed_bh: Tensor = scramble_32(mixed_b[:, None] ^ column_hashes(dim, key, class_b.device))
    return mixed_bh.view(torch.int16)[:, :dim]


def column_hashes(dim: int, key: int, device: torch.device) -> Tensor:
    """Hash pairs of columns, int32 (ceil(dim / 2)): 32 bits draw for two columns."""
    pair_h = torch.arange(-(-dim // 2), device=device)
    hashed_h: Tensor = hash_32(pair_h, stream_key(key, 1)).to(torch.int32)
    return hashed_h
