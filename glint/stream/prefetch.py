"""Shards of a dataset in a store, fetched into the cache before the loader asks for them."""

# m positions of one piece of the epoch

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np

from glint.errors import UsageError
from glint.log import logger
from glint.rng import I64
from glint.shards.dataset import Dataset
from glint.shards.remote import limit
from glint.stream.columns import Columns
from glint.stream.plan import Plan

THREADS = 4  # shards fetched at once
PIECE = 4096  # positions looked at together where the epoch has no windows
JOIN = 60.0  # seconds to wait for a shard under way when an epoch ends early

Rows = Callable[[I64], I64]  # positions of the epoch -> rows
Window = Callable[[int], tuple[int, int]]  # a position -> [start, stop) of its window


def check(dataset: Dataset, windowed: Plan | None) -> None:
    """Refuse an order that would fetch every shard again and again. Raises UsageError GL0002.

    windowed: the plan where it shuffles in windows; None where samples come from anywhere.
    """
    if dataset.remote is None or dataset.remote.fits or not dataset.n:
        return
    listed = dataset.manifest["shards"]
    sizes = sorted((int(entry["bytes"]) for entry in listed), reverse=True)
    counts = {int(entry["samples"]) for entry in listed[:-1]} or {dataset.n}
    total, most = sum(sizes), limit()
    if windowed is None or windowed.block is None:
        raise UsageError(
            "GL0002",
            f"the shards take {total / 1e9:.1f} GB, the cache {most / 1e9:.1f} GB, and the order "
            "takes samples from anywhere",
            where=dataset.name,
            hint="a larger --cache-size, or data.block = the samples of a shard",
        )
    block, per_shard = windowed.block, max(counts)
    shards_per_block = 1 if counts == {block} else 1 + -(-block // max(1, min(counts)))
    touched = min(len(sizes), 2 * windowed.window * shards_per_block)
    need = sum(sizes[:touched])
    if need > most:
        raise UsageError(
            "GL0002",
            f"two shuffle windows touch up to {touched} shards, {need / 1e9:.1f} GB; the cache "
            f"takes {most / 1e9:.1f} GB",
            where=dataset.name,
            hint="a larger --cache-size, or a dataset of smaller shards with a smaller data.block",
        )
    if block < per_shard:
        logger.warning(
            "%s: blocks of %d samples are cut from shards of %d, so an epoch fetches a shard up to "
            "%d times; data.block=%d fetches most once",
            dataset.name,
            block,
            per_shard,
            -(-per_shard // block),
            per_shard,
        )


class Prefetcher:
    """Fetches the shards of an epoch in the order of their first use, in threads.

    rows, window: of the plan; window None where the epoch has no windows: then the cache holds all
    shards. Otherwise at most the window in use and the next one are fetched. An error is met by who
    needs the shard.
    """

    def __init__(
        self,
        dataset: Dataset,
        columns: Columns,
        rows: Rows,
        window: Window | None,
        first: int,
        length: int,
    ) -> None:
        assert dataset.remote is not None
        self._remote, self._columns, self._rows = dataset.remote, columns, rows
        self._window = window
        self._paced = not dataset.remote.fits
        self._may = threading.Condition()
        self._stopped, self._until = False, 0
        self._next = self._order(first, length)
        self.at(first)
        self._taking = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, daemon=True, name="glint-prefetch")
            for _ in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def at(self, position: int) -> None:
        """Note which position of the epoch is in use."""
        if self._paced and self._window is not None:
            until = self._window(position)[1]
            with self._may:
                self._until = until
                self._may.notify_all()

    def close(self) -> None:
        """Fetch no more; waits for the shards under way."""
        with self._may:
            self._stopped = True
            self._may.notify_all()
        for thread in self._threads:
            thread.join(JOIN)

    def _order(self, first: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (first position of its piece, shard); a shard stands once in a piece."""
        done: set[int] = set()
        start = first
        while start < length:
            stop = min(length, self._window(start)[1] if self._window else start + PIECE)
            row_m = self._rows(np.arange(start, stop, dtype=np.int64))
            shard_m = self._columns.shard_of(row_m)
            found, at = np.unique(shard_m, return_index=True)
            if self._window is None:
                found = found[np.argsort(at)]  # read one by one: in the order of first use
            for shard in found.tolist():
                if self._paced or shard not in done:
                    done.add(shard)
                    yield start, shard
            start = stop

    def _work(self) -> None:
        while True:
            with self._taking:
                start, shard = next(self._next, (0, -1))
                with self._may:
                    while self._paced and start > self._until and not self._stopped:
                        self._may.wait(1.0)
                if shard < 0 or self._stopped:
                    return
            if not self._remote.attempt(shard):
                return
