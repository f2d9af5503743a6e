"""Bytes of samples: one read each, or long reads that hold many samples of a shuffle window."""

# n samples, m of one span

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from glint.errors import InputError
from glint.shards.dataset import Bytes, Dataset, check_sample, read_sample
from glint.stream.buffers import Arena
from glint.stream.columns import BLOCK, Columns, key_of
from glint.stream.plan import Plan, Slice

GAP = 64 << 10  # bytes between two wanted samples that are read rather than skipped
LONGEST = 8 << 20  # bytes of one read
HELD = 2  # shuffle windows whose bytes are held, so that a batch may lie across a seam


class Shards:
    """Open shards, checked samples. Safe across threads and forks; holds no position."""

    def __init__(self, dataset: Dataset, columns: Columns, verify: bool = True) -> None:
        self.dataset, self.columns, self.verify = dataset, columns, verify
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = max(64, soft // 2) if soft > 0 else 1 << 16
        if dataset.remote is not None and not dataset.remote.fits:
            self._most = 2  # an open file takes its room even when it has left the cache
        self._files: OrderedDict[int, IO[bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self.arena = Arena(2)

    def open(self, shard: int) -> IO[bytes]:
        """Return an open shard; a caller that holds it keeps it open. Raises InputError GL0302."""
        file = self._files.get(shard)
        if file is not None:
            return file
        file = self.dataset.open_shard(shard)
        with self._lock:
            self._files[shard] = file
            if len(self._files) > self._most:
                self._files.popitem(last=False)
        return file

    def samples(self, row_n: npt.NDArray[Any]) -> list[tuple[int, int, int, int, bytes]]:
        """Return (row, shard, offset, size, digest) of each row, looked up together."""
        columns = self.columns
        shard_n = columns.shard_of(row_n)
        record_n = columns.record[row_n]
        offset_n = record_n["block"].astype(np.int64) * BLOCK
        digests = record_n["digest"].tobytes() if self.verify else b""
        ends = range(0, 16 * len(row_n), 16)
        return list(
            zip(
                row_n.tolist(),
                shard_n.tolist(),
                offset_n.tolist(),
                record_n["size"].tolist(),
                [digests[a : a + 16] for a in ends],
            )
        )

    def read(self, sample: tuple[int, int, int, int, bytes]) -> bytes:
        """Read one sample and check it. Raises InputError GL0302, GL0303, GL0903."""
        row, shard, offset, size, digest = sample
        file = self.open(shard)
        return read_sample(
            file.fileno(),
            offset,
            size,
            digest,
            lambda: self.where(row),
            lambda: self.dataset.remedy(shard),
        )

    def check(self, sample: tuple[int, int, int, int, bytes], data: Bytes) -> None:
        """Check bytes that were read ahead. Raises InputError GL0303."""
        row, shard, _, size, digest = sample
        check_sample(
            data, size, digest, lambda: self.where(row), lambda: self.dataset.remedy(shard)
        )

    def where(self, row: int) -> str:
        """Name a sample by shard, key and offset."""
        shard = int(self.columns.shard_of(np.array([row]))[0])
        offset = int(self.columns.record["block"][row]) * BLOCK
        return f"data/{self.dataset.shards[shard]} key {key_of(self.dataset, row)} @ 0x{offset:x}"


class Window:
    """The bytes of many rows, read in long sequential reads: each byte run once, in file order.

    Rows close together in a shard are read together, with the gaps between them where these are
    at most GAP. Only stored bytes are held, never pixels. Raises InputError GL0302, GL0903.
    """

    def __init__(self, shards: Shards, row_n: npt.NDArray[Any]) -> None:
        columns = shards.columns
        row_m = np.unique(row_n)
        shard_m = columns.shard_of(row_m)
        record_m = columns.record[row_m]
        begin_m = record_m["block"].astype(np.int64) * BLOCK
        end_m = begin_m + record_m["size"]
        self._at: dict[int, memoryview] = {}
        spans = []
        start = 0
        cut_m = (np.diff(shard_m) != 0) | (begin_m[1:] - end_m[:-1] > GAP)
        for stop in [*(np.flatnonzero(cut_m) + 1).tolist(), len(row_m)]:
            while start < stop:  # a run of neighbours, in pieces of at most LONGEST
                fits = np.searchsorted(end_m[start:stop], begin_m[start] + LONGEST, side="right")
                last = start + max(1, int(fits))
                spans.append((start, last))
                start = last
        self.reads = len(spans)
        self.bytes = int(sum(end_m[b - 1] - begin_m[a] for a, b in spans))
        memory = shards.arena.take(self.bytes).data
        for a, b in spans:
            first, size = int(begin_m[a]), int(end_m[b - 1] - begin_m[a])
            whole = memory[:size]
            memory = memory[size:]
            whole = whole[: _read(shards, int(shard_m[a]), whole, first)].toreadonly()
            at = zip(
                row_m[a:b].tolist(), (begin_m[a:b] - first).tolist(), (end_m[a:b] - first).tolist()
            )
            self._at.update((row, whole[begin:end]) for row, begin, end in at)

    def __getitem__(self, row: int) -> memoryview:
        return self._at[row]


class Windows:
    """The shuffle windows that this process reads from. Safe across threads."""

    def __init__(self, shards: Shards, plan: Plan) -> None:
        self.shards, self.plan = shards, plan
        self.held: OrderedDict[tuple[int, Slice, int, int, int, int], Window] = OrderedDict()
        self._lock = threading.Lock()

    def at(
        self, epoch: int, part: Slice, step: int, position: int, stride: int
    ) -> tuple[Window | None, int]:
        """Return the window that holds a position, and where it stops; read at first use.

        It has the samples of every stride-th step from `step` on, which are this process's. A
        position past the epoch's end, a repeat that fills the last batch, is in no window.
        """
        plan = self.plan
        if position >= plan.length:
            return None, part.length + part.batch
        start, stop = plan.window_at(epoch, position)
        name = (epoch, part, start, stop, stride, step % stride)
        with self._lock:
            window = self.held.get(name)
            if window is None:
                first = max(0, (start - part.origin) // part.batch)
                first += (step - first) % stride
                last = min(part.steps, -(-(stop - part.origin) // part.batch))
                position_m = np.concatenate([part.positions(s) for s in range(first, last, stride)])
                inside = (position_m >= start) & (position_m < stop)
                row_m = plan.rows_at(epoch, position_m[inside])
                while len(self.held) >= HELD:
                    self.held.popitem(last=False)
                window = self.held[name] = Window(self.shards, row_m)
        return window, stop

    def most_bytes(self) -> int:
        """Bound the stored bytes that are held, gaps included.

        A window's blocks are runs of rows (where a table leaves rows out, longer ones), so the
        bound takes the mean size of a sample in its shard.
        """
        columns, n = self.shards.columns, self.shards.dataset.n
        if not n:
            return 0
        last_s = columns.first_s[1:][np.diff(columns.first_s) > 0] - 1
        last = columns.record[last_s]
        stored = int((last["block"].astype(np.int64) * BLOCK + last["size"]).sum())
        spread = n / min(self.plan.length, n)
        return int(HELD * self.plan.window_slots * spread * stored / n)


def _read(shards: Shards, shard: int, into: memoryview, offset: int) -> int:
    """Read until `into` is full or the file ends; return the bytes read."""
    file = shards.open(shard)
    got = 0
    try:
        while got < len(into) and (more := os.preadv(file.fileno(), [into[got:]], offset + got)):
            got += more
    except OSError as error:
        raise InputError(
            "GL0903",
            f"cannot be read: {error.strerror}",
            where=shards.dataset.place(shard),
        ) from None
    return got
