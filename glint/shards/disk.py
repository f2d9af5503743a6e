"""A file written past the page cache: the next bytes are made while the last go to the disk.

A shard is written once and is larger than what a cache should hold of it. Copied into the page
cache it costs more processor time than all else that makes it but its SHA-256; from here the
device takes it where it lies.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO

import numpy as np
import numpy.typing as npt

PIECE = 4 << 20  # bytes that are written together
ALIGN = 4096  # of memory, lengths and offsets that go past the cache
_DIRECT = getattr(os, "O_DIRECT", 0)

U8 = npt.NDArray[np.uint8]


def _memory(size: int) -> U8:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return np.frombuffer(mmap.mmap(-1, max(size, PIECE), flags), np.uint8)  # begins at a page


def _on_device(file: IO[bytes]) -> bool:
    """Say whether a file lies on a block device of its own, not on a network or in memory."""
    try:
        return os.major(os.fstat(file.fileno()).st_dev) != 0
    except OSError:  # not a file of the system
        return False


def _direct(fd: int, on: bool) -> bool:
    """Switch O_DIRECT; say whether it could be done."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | _DIRECT if on else flags & ~_DIRECT)
    except OSError:
        return False
    return True


class Sink:
    """Append bytes to `file`: fill the memory that `room` gives, then `take` it.

    Files smaller than a piece, and those that lie on no block device, are written as any other.
    `size` and `sha256` are those of all that was taken. What a write raises, a later call raises.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._here, self._there = _memory(PIECE), np.empty(0, np.uint8)
        self._held = 0
        self._threads: ThreadPoolExecutor | None = None
        self._busy: Future[None] | None = None
        self._past = bool(_DIRECT) and _on_device(file)
        self._hasher = hashlib.sha256()
        self.size = 0

    def room(self, size: int) -> U8:
        """Return memory for the next `size` bytes, until the next call; what it holds is junk."""
        if self._held + size > len(self._here):
            self._push(size)
        return self._here[self._held : self._held + size]

    def take(self, size: int) -> None:
        """Append the first `size` bytes of the room."""
        self._hasher.update(self._here[self._held : self._held + size].data)
        self._held += size
        self.size += size
        if self._held >= PIECE:
            self._push(0)

    def _push(self, size: int) -> None:
        """Write what is held, all but the last odd bytes; make room for `size` more."""
        self._wait()
        whole = self._held // ALIGN * ALIGN if self._past else self._held
        if self._past and whole and self._threads is None:
            self._past = _direct(self._file.fileno(), True)
            self._threads = ThreadPoolExecutor(1)
        rest = self._held - whole
        if len(self._there) < rest + size or not len(self._there):
            self._there = _memory(rest + size + size // 4)
        self._there[:rest] = self._here[whole : self._held]
        view = self._here[:whole].data
        if self._threads is not None:
            self._busy = self._threads.submit(self._write, view)
            self._here, self._there = self._there, self._here
        else:
            self._file.write(view)
            if len(self._here) < rest + size:
                # One buffer under one name: the thread writes what lies here while `take` fills it.
                self._here, self._there = self._there, np.empty(0, np.uint8)
        self._held = rest

    def _write(self, view: memoryview) -> None:
        fd = self._file.fileno()
        while len(view):
            try:
                view = view[os.write(fd, view) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._past:
                    raise
                self._past = False  # this device wants another alignment
                _direct(fd, False)

    def _wait(self) -> None:
        if self._busy is not None:
            busy, self._busy = self._busy, None
            busy.result()

    def close(self) -> None:
        """Write what is left; the file itself stays open."""
        if self._threads is None:
            self._file.write(self._here[: self._held].data)
        else:
            self._wait()
            _direct(self._file.fileno(), False)
            self._write(self._here[: self._held].data)
        self._held = 0
        self.stop()

    def stop(self) -> None:
        """Let no write be under way any more."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None

    @property
    def sha256(self) -> str:
        """SHA-256 of all that was taken, in hex."""
        return self._hasher.hexdigest()
