"""Batch memory that is used again once nothing refers to it: no page is faulted in twice."""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import torch

U8 = npt.NDArray[np.uint8]
IDLE = 8  # unused batches that are kept
_STEP = 2 << 20


class Arena:
    """Hands out flat arrays; their memory is used again when the last view of them is gone.

    idle: pieces of unused memory that are kept. Safe across threads.
    """

    def __init__(self, idle: int) -> None:
        self._idle: deque[mmap.mmap] = deque(maxlen=idle)

    def take(self, size: int) -> U8:
        """Return `size` bytes of unknown content."""
        try:
            memory = self._idle.pop()
        except IndexError:
            memory = None
        if memory is None or len(memory) < size:
            rounded = max(1, -(-size // _STEP)) * _STEP
            memory = mmap.mmap(-1, rounded, flags=mmap.MAP_PRIVATE)
            if rounded > _STEP and hasattr(mmap, "MADV_HUGEPAGE"):  # decoding misses fewer pages
                with suppress(OSError):
                    memory.madvise(mmap.MADV_HUGEPAGE)
        # Every view that numpy or torch makes keeps `flat` alive: `memory` is no ndarray.
        flat: U8 = np.frombuffer(memory, np.uint8, size)
        weakref.finalize(flat, self._idle.append, memory).atexit = False
        return flat


class Buffers:
    """Hands out uint8 tensors of one shape; a consumer may hold them as long as it likes.

    pinned: page-locked memory of torch's own caching allocator, which also waits for copies to the
    device that are still under way.
    """

    def __init__(self, shape: tuple[int, ...], pinned: bool = False) -> None:
        self.shape, self.pinned = shape, pinned
        self._arena = Arena(IDLE)

    def take(self) -> torch.Tensor:
        """Return memory of unknown content."""
        if self.pinned:
            return torch.empty(self.shape, dtype=torch.uint8, pin_memory=True)
        flat = self._arena.take(int(np.prod(self.shape)))
        return torch.from_numpy(flat.reshape(self.shape))
