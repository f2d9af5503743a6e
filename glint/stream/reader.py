"""Rows to pixels: read, check and decode the images of a batch."""

# n images, H height, W width

from __future__ import annotations

from concurrent.futures import Executor
from itertools import pairwise

import numpy as np

from glint.errors import InputError
from glint.rng import I64
from glint.stream.buffers import U8
from glint.stream.decode import decode_into
from glint.stream.degrade import Degrade
from glint.stream.files import Shards, Window


class Reader:
    """Fills batches from a dataset. Safe across threads and forks; holds no position."""

    def __init__(self, shards: Shards, *, size: int = 112, degrade: Degrade | None = None) -> None:
        self.shards, self.degrade = shards, degrade
        self.shape = (size, size, 3)

    def fill(
        self,
        image_nHW3: U8,
        row_n: I64,
        position_n: I64,
        epoch: int,
        pool: Executor | None = None,
        parts: int = 1,
        window: Window | None = None,
        now_t: I64 | None = None,
    ) -> None:
        """Write the images of rows into a batch, degraded as (seed, epoch, position) says.

        With a pool of threads the batch is cut into `parts`. window: bytes read ahead. now_t: where
        each thread writes the row that it is at, or -1 (`Workers` names it when a worker dies).
        Raises InputError GL0302, GL0303, GL0903.
        """
        if pool is None or parts < 2:
            self._fill(image_nHW3, row_n, window, 0, now_t)
        else:
            edge = np.linspace(0, len(row_n), parts + 1).astype(int)
            done = [
                pool.submit(self._fill, image_nHW3[a:b], row_n[a:b], window, part, now_t)
                for part, (a, b) in enumerate(pairwise(edge.tolist()))
            ]
            for future in done:
                future.result()
        if self.degrade is not None:
            self.degrade(image_nHW3, epoch, position_n)

    def _fill(
        self, image_nHW3: U8, row_n: I64, window: Window | None, part: int, now_t: I64 | None
    ) -> None:
        shards = self.shards
        read, check = shards.read, shards.check
        for sample, out in zip(shards.samples(row_n), image_nHW3):
            data: bytes | memoryview
            if now_t is not None:
                now_t[part] = sample[0]
            if window is None:
                data = read(sample)
            else:
                data = window[sample[0]]
                check(sample, data)
            try:
                decode_into(data, out)
            except InputError as error:
                raise InputError(
                    error.code, error.what, where=shards.where(sample[0]), hint=error.hint
                ) from None
        if now_t is not None:
            now_t[part] = -1
