"""Memory for batches, used again once nobody holds the batch: no page is faulted in twice."""

from __future__ import annotations

import mmap
import weakref
from collections import deque

import numpy as np
import torch

from glint.stream.files import U8

KEPT = 8  # idle buffers that are kept


class Buffers:
    """Gives uint8 tensors of one shape.

    A tensor's memory comes back when the last tensor or array over it is gone, so a consumer may
    hold batches as long as it likes. pinned: page-locked memory of torch's own caching allocator,
    which also waits for copies to the device that are still under way. Safe across threads.
    """

    def __init__(self, shape: tuple[int, ...], pinned: bool = False) -> None:
        self.shape, self.pinned = shape, pinned
        self._idle: deque[mmap.mmap] = deque(maxlen=KEPT)

    def take(self) -> torch.Tensor:
        """Give memory of unknown content."""
        if self.pinned:
            return torch.empty(self.shape, dtype=torch.uint8, pin_memory=True)
        try:
            memory = self._idle.pop()
        except IndexError:
            memory = mmap.mmap(-1, max(1, int(np.prod(self.shape))), flags=mmap.MAP_PRIVATE)
        # Every view that numpy or torch makes keeps `flat` alive: `memory` is no ndarray.
        flat: U8 = np.frombuffer(memory, np.uint8, int(np.prod(self.shape)))
        weakref.finalize(flat, self._idle.append, memory).atexit = False
        return torch.from_numpy(flat.reshape(self.shape))
