"""Which record goes where: pure arithmetic."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def order(n: int, seed: int) -> npt.NDArray[np.int64]:
    """Return a permutation of range(n), the same for ever for a seed: position -> record.

    Sorts Philox's raw words (Salmon et al. 2011), whose stream numpy promises not to change.
    """
    word_n = np.random.Philox(key=seed).random_raw(n)
    return np.argsort(word_n, kind="stable").astype(np.int64, copy=False)


def spans(n: int, per_shard: int) -> list[tuple[int, int]]:
    """Return the positions [start, stop) of every shard."""
    return [(start, min(start + per_shard, n)) for start in range(0, n, per_shard)]


def shard_name(shard: int) -> str:
    """Return the file name of one shard."""
    return f"train-{shard:06d}.tar"


def key_name(key: int) -> str:
    """Return a key as it is written: nine digits."""
    return f"{key:09d}"
