"""Who reads which sample: pure arithmetic, no I/O, the same for every world size.

Words: a *row* is a row of samples.parquet; a *slot* is one copy of a row in an epoch, in row
order (with draws and without blocks identity by identity: nothing of size n is needed then); a
*position* is a place in the epoch's shuffled order; a *step* takes one global batch of positions,
of which each rank takes one contiguous run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from glint.errors import UsageError
from glint.rng import I64, hash_at, key_of, shuffle, unshuffle
from glint.stream.draws import Draws

_ORDER, _BLOCKS, _INSIDE = 0x04DE4, 0xB10C5, 0x1451DE  # purposes of keys
WINDOW = 64  # blocks: each long enough for one read, enough of them to mix


class Plan:
    """Map positions of an epoch to rows.

    n: rows of the dataset. draws: which rows an epoch holds and how often; None holds each once.
    block: slots per block for reading shards in large runs: blocks are permuted, then the slots of
    every `window` consecutive blocks are permuted among themselves; None permutes all slots.
    Without draws the state is O(1): any position of any epoch is computed directly.
    Errors: UsageError GL0002 for an empty epoch or a bad block.
    """

    def __init__(
        self,
        n: int,
        seed: int,
        draws: Draws | None = None,
        block: int | None = None,
        window: int = WINDOW,
    ) -> None:
        if draws is not None and draws.n != n:
            raise UsageError("GL0002", f"draws are for {draws.n} rows, the dataset has {n}")
        self.n, self.seed, self.draws, self.block, self.window = n, seed, draws, block, window
        self.length = n if draws is None else draws.length
        if self.length < 1:
            raise UsageError(
                "GL0002",
                "an epoch of this dataset holds no sample",
                hint="check the label table and the sampling table",
            )
        if block is not None and (block < 1 or window < 1):
            raise UsageError(
                "GL0002", f"block and window must be at least 1, found {block}, {window}"
            )

    @property
    def window_slots(self) -> int:
        """Return the slots of a shuffle window, 0 without blocks."""
        return 0 if self.block is None else self.block * self.window

    def rows(self, epoch: int, start: int, stop: int) -> I64:
        """Return the rows at positions [start, stop) of an epoch, wrapping past its end."""
        return self.rows_at(epoch, np.arange(start, stop, dtype=np.int64))

    def rows_at(self, epoch: int, position_m: npt.NDArray[Any]) -> I64:
        """Return the row at each position; a position at or past the end wraps to the beginning."""
        slot_m = self.slots(epoch, np.asarray(position_m, dtype=np.int64) % self.length)
        if self.draws is None:
            return slot_m
        if self.block is None:
            return self.draws.rows(epoch, slot_m)
        return self.draws.at(epoch).row_of(slot_m)

    def slots(self, epoch: int, position_m: I64) -> I64:
        """Permute positions in [0, length) into slots."""
        if self.block is None:
            return shuffle(position_m, self.length, key_of(self.seed, _ORDER, epoch))
        block, window = self.block, self.window
        blocks, missing, block_key, short = self._blocks(epoch)
        # Blocks in permuted order are cut into windows. The short block is moved to the end of
        # its window, so each window is one run of whole blocks and at most one tail.
        short_window = short // window
        last_of_it = min((short_window + 1) * window, blocks) - 1
        start_missing = np.where(position_m >= (last_of_it + 1) * block - missing, missing, 0)
        window_m = (position_m + start_missing) // (window * block)
        first_m = window_m * window
        size_m = np.minimum(window, blocks - first_m) * block
        size_m -= np.where(window_m == short_window, missing, 0)
        inside_m = position_m + start_missing - first_m * block
        key_m = hash_at(key_of(self.seed, _INSIDE, epoch), window_m)
        inside_m = shuffle(inside_m, size_m, key_m)
        ordinal_m = first_m + inside_m // block
        ordinal_m = np.where(
            ordinal_m == last_of_it, short, np.where(ordinal_m == short, last_of_it, ordinal_m)
        )
        return shuffle(ordinal_m, blocks, block_key) * block + inside_m % block

    def window_at(self, epoch: int, position: int) -> tuple[int, int]:
        """Return [start, stop) of the positions of a window: whole blocks, in any order."""
        if self.block is None:
            return 0, self.length
        _, missing, _, short = self._blocks(epoch)
        size, short_stop = self.window * self.block, (short // self.window + 1) * self.window
        seam = short_stop * self.block - missing  # positions from here on lie `missing` earlier
        number = (position + (missing if position >= seam else 0)) // size
        start, stop = number * size, (number + 1) * size
        start -= missing if start >= short_stop * self.block else 0
        stop -= missing if stop >= short_stop * self.block else 0
        return start, min(stop, self.length)

    def _blocks(self, epoch: int) -> tuple[int, int, int, int]:
        """Return blocks, slots that the last one lacks, their key, and where that block stands."""
        assert self.block is not None
        blocks = -(-self.length // self.block)
        key = key_of(self.seed, _BLOCKS, epoch)
        missing = blocks * self.block - self.length
        return blocks, missing, key, int(unshuffle(blocks - 1, blocks, key))


@dataclass(frozen=True)
class Slice:
    """One rank's share of an epoch: at step s, a contiguous run of the global batch.

    length: positions in the epoch. batch: global batch. origin: the position at which step 0
    begins, so that a run resumed with another batch goes on where it stopped. drop_last: leave
    out a last batch that is not full; else fill it by wrapping to the epoch's beginning (positions
    at or past `length` are such repeats).
    Errors: UsageError GL0002.
    """

    length: int
    batch: int
    rank: int = 0
    world: int = 1
    origin: int = 0
    drop_last: bool = True

    def __post_init__(self) -> None:
        if self.world < 1 or not 0 <= self.rank < self.world:
            raise UsageError("GL0002", f"rank {self.rank} of {self.world} does not exist")
        if self.batch < 1 or self.batch % self.world:
            raise UsageError(
                "GL0002",
                f"global batch {self.batch} is not a positive multiple of "
                f"the world size {self.world}",
                hint="change the batch or the ranks",
            )
        if not 0 <= self.origin <= self.length:
            raise UsageError(
                "GL0002", f"position {self.origin} is outside an epoch of {self.length}"
            )

    @property
    def steps(self) -> int:
        """Return the number of steps from the origin to the end of the epoch."""
        rest = self.length - self.origin
        return rest // self.batch if self.drop_last else -(-rest // self.batch)

    def positions(self, step: int) -> I64:
        """Return this rank's positions at a step, ascending."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        start, stop = batch_positions(step, self.batch, self.rank, self.world)
        return np.arange(self.origin + start, self.origin + stop, dtype=np.int64)

    def position(self, step: int) -> int:
        """Return the first position not yet taken when `step` steps are done, by any rank."""
        return min(self.origin + step * self.batch, self.length)


def batch_positions(step: int, batch: int, rank: int, world: int) -> tuple[int, int]:
    """Return [start, stop) of the positions that a rank takes at a step of a global batch."""
    share = batch // world
    start = step * batch + rank * share
    return start, start + share
