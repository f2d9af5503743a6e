"""Which record goes where: pure arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt


def order(n: int, seed: int) -> npt.NDArray[np.int64]:
    """Return a permutation of range(n), the same for ever for a seed: position -> record.

    Sorts `words`; `spill.save` does the same to sources that need not fit into memory.
    """
    return np.argsort(words(seed)(n), kind="stable").astype(np.int64, copy=False)


def words(seed: int) -> Callable[[int], npt.NDArray[np.uint64]]:
    """Return what draws the next so many words: sorted by them, records are in their new order.

    Philox's raw words (Salmon et al. 2011), whose stream numpy promises not to change.
    """
    draw: Callable[[int], npt.NDArray[np.uint64]] = np.random.Philox(key=seed).random_raw
    return draw


def spans(n: int, per_shard: int) -> list[tuple[int, int]]:
    """Return the positions [start, stop) of every shard."""
    return [(start, min(start + per_shard, n)) for start in range(0, n, per_shard)]


def shard_name(shard: int) -> str:
    """Return the file name of one shard."""
    return f"train-{shard:06d}.tar"
