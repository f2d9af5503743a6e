"""Equal batches for every rank, in the order of the plan, from any step of any epoch."""

# n images of one rank's batch, H height, W width, C classes

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from glint.errors import InputError, UsageError
from glint.shards.index import Dataset
from glint.shards.labels import LabelTable
from glint.stream import sampling as tables
from glint.stream.coverage import Coverage, coverage
from glint.stream.draws import Draws
from glint.stream.permute import I64
from glint.stream.plan import Plan, Slice
from glint.stream.pool import Workers
from glint.stream.reader import U8, Reader

GROUP = 16  # steps planned in one call


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch, already mirrored where the plan says so.

    image: uint8 nHW3; label: int64 n, targets of the label table; row: int64 n, rows of
    samples.parquet; position: int64 n, places in the epoch (at or past its length: a repeat that
    fills the last batch, `repeats` of them, at the end).
    """

    image: torch.Tensor
    label: torch.Tensor
    row: I64
    position: I64
    epoch: int
    step: int
    repeats: int = 0


class Stream:
    """The training samples of one rank.

    batch: images per rank and step; the global batch is batch * world. sampling: a
    sampling.parquet, or None to draw every image once per epoch; either way rows whose target is
    -1 are left out. workers: loader processes; 0 loads in this process. threads: without workers,
    threads that make batches ahead (0: none, each batch is made when asked for); with workers,
    decoding threads in each. block: slots per shuffle block, None for one permutation of the whole
    epoch. The samples of a (epoch, step) do not depend on workers, threads or verify.
    Errors: UsageError GL0001, GL0002; InputError GL0304, GL0305.
    """

    def __init__(self, dataset: Dataset, *, labels: LabelTable, sampling: str | Path | None = None,
                 rank: int = 0, world: int = 1, batch: int, seed: int = 0, workers: int = 0,
                 threads: int = 0, block: int | None = None, flip: bool = True,
                 drop_last: bool = True, verify: bool = True, size: int = 112) -> None:
        if batch < 1 or workers < 0 or threads < 0:
            raise UsageError("GL0002", f"batch must be at least 1, workers and threads at least 0; "
                             f"found {batch}, {workers}, {threads}")
        self.dataset, self.classes, self.seed = dataset, labels.classes, seed
        self.batch, self.rank, self.world = batch, rank, world
        self.workers, self.threads, self.drop_last = workers, threads, drop_last
        self.target_n = _targets(dataset, labels)
        kept_n = self.target_n >= 0
        self.count_C = np.bincount(self.target_n[kept_n], minlength=labels.classes)
        self.sampling_digest = ""
        draws_C = None
        if sampling is not None:
            draws_C = tables.read(sampling, self.count_C, labels.version, dataset.digest)
            self.sampling_digest = tables.digest(draws_C)
        self.draws: Draws | None = None
        if draws_C is not None or not bool(kept_n.all()):
            self.draws = Draws(self.target_n, draws_C, seed)
        self.plan = Plan(dataset.n, seed, self.draws, block)
        self._reader = Reader(dataset, seed=seed, flip=flip, verify=verify, size=size)
        self._slice = self._from(0)
        self._planned: tuple[tuple[int, Slice, int], I64] | None = None

    @property
    def epoch_samples(self) -> int:
        """Give the draws of one epoch, over all ranks, before the last batch is cut or filled."""
        return self.plan.length

    @property
    def steps_per_epoch(self) -> int:
        """Give the steps of one epoch: the same for every rank and epoch."""
        return self._slice.steps

    def position(self, step: int, origin: int = 0) -> int:
        """Give the first position of the epoch that `step` steps from `origin` leave untaken."""
        return self._from(origin).position(step)

    def coverage(self, epochs: int) -> Coverage:
        """Count what so many epochs draw, and how much of it goes to the tail."""
        table = None if self.draws is None or not self.sampling_digest else self.draws
        return coverage(self.count_C, table, epochs)

    def batches(self, epoch: int, start_step: int = 0, origin: int = 0) -> Iterator[Batch]:
        """Give this rank's batches of an epoch from a step on.

        origin: position at which step 0 begins, for a run that stopped in this epoch under another
        global batch. Errors while reading: InputError GL0302, GL0303 (the sample by shard and key);
        LostError GL0902 (a loader process died or stuck).
        """
        part = self._from(origin)
        steps = range(start_step, part.steps)
        self.plan.rows_at(epoch, np.zeros(1, dtype=np.int64))  # the epoch's counts, before a fork
        if self.workers:
            return self._from_workers(epoch, part, steps)
        if self.threads:
            return self._from_threads(epoch, part, steps)
        return (self._make(epoch, part, step) for step in steps)

    def _from(self, origin: int) -> Slice:
        return Slice(self.plan.length, self.batch * self.world, self.rank, self.world, origin,
                     self.drop_last)

    def _fill(self, epoch: int, part: Slice, step: int, image_nHW3: U8,
              pool: ThreadPoolExecutor | None = None) -> tuple[I64, I64]:
        position_n = part.positions(step)
        row_n = self._rows(epoch, part, step)
        self._reader.fill(image_nHW3, row_n, position_n, epoch, pool, max(1, self.threads))
        return row_n, position_n

    def _rows(self, epoch: int, part: Slice, step: int) -> I64:
        """Give the rows of a step; planned for GROUP at once, as a call has its cost."""
        group = step - step % GROUP
        planned = self._planned  # read once: another thread may replace it
        if planned is None or planned[0] != (epoch, part, group):
            steps = range(group, min(group + GROUP, part.steps))
            position_m = np.concatenate([part.positions(s) for s in steps])
            row_gn = self.plan.rows_at(epoch, position_m).reshape(len(steps), -1)
            planned = self._planned = (epoch, part, group), row_gn
        return np.asarray(planned[1][step - group], dtype=np.int64)

    def _batch(self, image: torch.Tensor, row_n: I64, position_n: I64, epoch: int,
               step: int) -> Batch:
        repeats = int((position_n >= self.plan.length).sum())
        label = torch.from_numpy(self.target_n[row_n])
        return Batch(image, label, row_n, position_n, epoch, step, repeats)

    def _make(self, epoch: int, part: Slice, step: int) -> Batch:
        image = torch.empty((self.batch, *self._reader.shape), dtype=torch.uint8)
        return self._batch(image, *self._fill(epoch, part, step, image.numpy()), epoch, step)

    def _from_threads(self, epoch: int, part: Slice, steps: range) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="glint-stream")
        queue: deque[Future[Batch]] = deque()
        try:
            for step in steps:
                queue.append(pool.submit(self._make, epoch, part, step))
                if len(queue) > self.threads:
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _from_workers(self, epoch: int, part: Slice, steps: range) -> Iterator[Batch]:
        def make(step: int, image_nHW3: U8, pool: ThreadPoolExecutor | None) -> tuple[I64, I64]:
            return self._fill(epoch, part, step, image_nHW3, pool)

        workers = Workers(make, (self.batch, *self._reader.shape),
                          min(self.workers, max(1, len(steps))), self.threads)
        try:
            for step, image_nHW3, (row_n, position_n) in workers.batches(steps):
                image = torch.from_numpy(image_nHW3).clone()
                yield self._batch(image, row_n, position_n, epoch, step)
        finally:
            workers.close()


def _targets(dataset: Dataset, labels: LabelTable) -> I64:
    """Give the class of every row, -1 where its identity was dropped; all checked, once."""
    if len(labels.target) != dataset.classes:
        raise InputError("GL0304", f"expected {dataset.classes} labels, found "
                         f"{len(labels.target)}", where=str(dataset.root))
    target_n = np.asarray(labels.target, dtype=np.int64)[dataset.label]
    bad = np.flatnonzero((target_n < -1) | (target_n >= labels.classes))
    if bad.size:
        row = int(bad[0])
        shard = dataset.shard_path(int(dataset.shard[row])).name
        raise InputError("GL0304", f"expected a label below {labels.classes}, found "
                         f"{target_n[row]}", where=f"data/{shard} key {dataset.key[row]}")
    return target_n
