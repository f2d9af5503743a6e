"""Rows to pixels: read, check, decode and mirror the images of a batch."""

# n images, H height, W width

from __future__ import annotations

from concurrent.futures import Executor
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from glint.errors import InputError
from glint.shards.index import Dataset
from glint.stream.augment import flips, mirror
from glint.stream.decode import decode_into
from glint.stream.permute import I64

_GROUP = 16  # mirrored images that wait for one flip: they stay in the processor's cache

U8 = npt.NDArray[np.uint8]


class Reader:
    """Fills batches from a dataset. Safe across threads and forks; holds no position."""

    def __init__(self, dataset: Dataset, *, seed: int, flip: bool = True, verify: bool = True,
                 size: int = 112) -> None:
        self.dataset, self.seed, self.flip, self.verify = dataset, seed, flip, verify
        self.shape = (size, size, 3)
        for column in ("shard", "offset", "size", *(("digests",) if verify else ())):
            getattr(dataset, column)  # read now: forked workers share what is in memory

    def fill(self, image_nHW3: U8, row_n: I64, position_n: I64, epoch: int,
             pool: Executor | None = None, parts: int = 1) -> None:
        """Write the images of rows, mirrored as (seed, epoch, position) says, into a batch.

        With a pool of threads the batch is cut into `parts`. Raises InputError GL0302, GL0303.
        """
        flip_n = (flips(self.seed, epoch, position_n) if self.flip
                  else np.zeros(len(row_n), dtype=np.bool_))
        if pool is None or parts < 2:
            self._fill(image_nHW3, row_n, flip_n)
            return
        edge = np.linspace(0, len(row_n), parts + 1).astype(int)
        done = [pool.submit(self._fill, image_nHW3[a:b], row_n[a:b], flip_n[a:b])
                for a, b in pairwise(edge.tolist())]
        for future in done:
            future.result()

    def _fill(self, image_nHW3: U8, row_n: I64, flip_n: npt.NDArray[np.bool_]) -> None:
        read, verify = self.dataset.read, self.verify
        spare = np.empty((_GROUP, *self.shape), dtype=np.uint8)
        waiting: list[int] = []
        for i, (row, flip) in enumerate(zip(row_n.tolist(), flip_n.tolist())):
            out = spare[len(waiting)] if flip else image_nHW3[i]
            try:
                decode_into(read(row, verify), out)
            except InputError as error:
                raise error if error.where else self._located(error, row) from None
            if flip:
                waiting.append(i)
                if len(waiting) == _GROUP:
                    _settle(image_nHW3, spare, waiting)
        _settle(image_nHW3, spare, waiting)

    def _located(self, error: InputError, row: int) -> InputError:
        data = self.dataset
        shard = data.shard_path(int(data.shard[row])).name
        return InputError(error.code, error.what, where=f"data/{shard} key {data.key[row]}",
                          hint=error.hint)


def _settle(image_nHW3: U8, spare: U8, waiting: list[int]) -> None:
    if waiting:
        flipped = mirror(spare[:len(waiting)])
        for at, image in zip(waiting, flipped):
            image_nHW3[at] = image
        waiting.clear()
