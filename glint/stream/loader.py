"""Equal batches for every rank, in the order of the plan, from any step of any epoch."""

# n images of one rank's batch, H height, W width, C classes, L labels as sharded
# w workers, t threads of one

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from glint.errors import InputError, UsageError
from glint.log import logger
from glint.rng import I64
from glint.shards.dataset import Dataset
from glint.shards.labels import LabelTable
from glint.stream import prefetch
from glint.stream import sampling as tables
from glint.stream.augment import flips
from glint.stream.buffers import U8, Buffers
from glint.stream.class_rows import Members
from glint.stream.columns import BLOCK, Columns, key_of, open_columns
from glint.stream.coverage import Coverage, coverage
from glint.stream.decode import Decoder
from glint.stream.degrade import KINDS, Degrade, Kind
from glint.stream.draws import Draws
from glint.stream.files import Shards, Window
from glint.stream.identities import IdentityPlan
from glint.stream.mates import MatePlan
from glint.stream.plan import Plan, Slice
from glint.stream.prefetch import Ahead
from glint.stream.reader import Reader
from glint.stream.workers import DEADLINE, Workers

GROUP = 16  # steps planned in one call
REMOTE_DEADLINE = 1200.0  # seconds without a batch where shards are fetched first
HELD = 2  # shuffle windows whose bytes are held, so that a batch may lie across a seam


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch.

    image: uint8 nHW3, as decoded (and degraded, where that was asked for); flip: bool n, the images
    to mirror, which `augment.to_input` does on the device; label: int64 n, targets of the label
    table; row: int64 n, rows of samples.parquet; position: int64 n, places in the epoch (at or past
    its length: a repeat that fills the last batch, `repeats` of them, at the end).
    """

    image: torch.Tensor
    flip: torch.Tensor
    label: torch.Tensor
    row: I64
    position: I64
    epoch: int
    step: int
    repeats: int = 0


class Stream:
    """The training samples of one rank.

    batch: images per rank and step; the global batch is batch * world. sampling: a
    sampling.parquet, or None to draw every image once per epoch; either way rows whose target is -1
    are left out, and those that the table masks. workers: loader processes; 0 loads in this
    process. threads: without workers, threads that make batches ahead (0: none, each batch is made
    when asked for); with workers, decoding threads in each. block: slots per shuffle block: shards
    are then read in long sequential reads, a window of blocks at a time; None permutes the whole
    epoch and reads sample by sample. augment: see `degrade`. pinned: batches in page-locked memory.
    decoder: what turns a batch's stored bytes into pixels instead of this machine's processor
    (`decode.on_gpu`); it goes with threads, not with workers or augment. each: images of one
    identity that stand together, identities taking turns (also said by a sampling table); endless:
    such cycles follow one another inside one epoch. mates: so many images of its identity follow
    every sample (`MatePlan`), so that a batch is groups of 1 + mates; a sampling table that groups
    just so many does without.
    The samples of a (epoch, step) do not depend on workers, threads, pinned or verify.
    Errors: UsageError GL0001, GL0002; InputError GL0301, GL0304, GL0305.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        labels: LabelTable,
        sampling: str | Path | None = None,
        rank: int = 0,
        world: int = 1,
        batch: int,
        seed: int = 0,
        workers: int = 0,
        threads: int = 0,
        block: int | None = None,
        flip: bool = True,
        augment: Kind = "none",
        drop_last: bool = True,
        verify: bool = True,
        size: int = 112,
        pinned: bool = False,
        decoder: Decoder | None = None,
        each: int = 0,
        endless: bool = False,
        mates: int = 0,
        columns: Columns | None = None,
    ) -> None:
        if batch < 1 or workers < 0 or threads < 0:
            raise UsageError(
                "GL0002",
                f"batch must be at least 1, workers and threads at least 0; "
                f"found {batch}, {workers}, {threads}",
            )
        if augment not in KINDS:
            raise UsageError(
                "GL0002", f"expected one of {', '.join(KINDS)}, found {augment!r}", where="augment"
            )
        if decoder is not None and (workers or augment != "none"):
            raise UsageError(
                "GL0002",
                f"decoding elsewhere goes without loader processes and degradations; found "
                f"workers {workers}, augment {augment!r}",
                hint="data.workers=0, data.threads=2 and data.augment=none",
            )
        self.decoder, self.frame = decoder, (size, size)
        self.dataset, self.classes, self.seed, self.flip = dataset, labels.classes, seed, flip
        self.batch, self.rank, self.world = batch, rank, world
        self.workers, self.threads, self.drop_last = workers, threads, drop_last
        self.columns = open_columns(dataset) if columns is None else columns
        self.target_L = _targets(dataset, labels, self.columns)
        members = Members(self.columns.member, self.columns.first_L, self.target_L, labels.classes)
        self.count_C = members.count_C
        self.sampling_digest = ""
        draws_C = None
        if sampling is not None:
            table = tables.read(sampling, self.count_C, labels.version, dataset.digest)
            self.sampling_digest, draws_C = table.digest, table.draws_C
            if len(table.left_out):
                self.columns = _masked(self.columns, table, dataset.n, str(sampling))
                members = Members(
                    self.columns.member, self.columns.first_L, self.target_L, labels.classes
                )
                if (members.count_C != table.count_C).any():
                    raise tables.stale(
                        sampling, "left_out names rows of other identities than its own"
                    )
                self.count_C = members.count_C
            each = table.each or each
        self.draws: Draws | None = None
        self.plan: Plan | IdentityPlan | MatePlan
        if mates and each not in (0, 1 + mates):
            raise UsageError(
                "GL0002",
                f"the table puts {each} images of an identity together, each sample takes {mates} "
                "more of its own",
                where="sampling table",
                hint=f"a table made without --per-identity, or with --per-identity {1 + mates}",
            )
        if each or mates:
            if batch % (each or 1 + mates):
                raise UsageError(
                    "GL0002",
                    f"a batch of {batch} does not hold whole groups of "
                    f"{each or 1 + mates} images of an identity",
                    where="batch",
                )
            block = None
        if each:
            kept_C = None if draws_C is None else draws_C > 0
            self.plan = IdentityPlan(members, each, seed, kept_C, endless)
        else:
            if draws_C is not None or members.count_C.sum() != dataset.n:
                self.draws = Draws(members, draws_C, seed)
            plan = self.plan = Plan(dataset.n, seed, self.draws, block)
            if mates:
                self.plan = MatePlan(plan, members, self.columns.record["label"], mates, seed)
        self.block = block
        prefetch.check(dataset, block, self.plan.window if isinstance(self.plan, Plan) else 0)
        self._shards = Shards(dataset, self.columns, verify)
        self._reader = Reader(
            self._shards, size=size, degrade=None if augment == "none" else Degrade(augment, seed)
        )
        self._buffers = Buffers((batch, *self._reader.shape), pinned)
        self._slice = self._from(0)
        self._planned: tuple[tuple[int, Slice, int], I64] | None = None
        self._windows: OrderedDict[tuple[int, Slice, int, int], Window] = OrderedDict()
        self._window_lock = threading.Lock()
        if block is not None:
            logger.info(
                "sequential reads: windows of %d samples, at most %.0f MiB of stored "
                "bytes held by each loader process",
                block * self.window_blocks,
                self.window_bytes / 2**20,
            )

    @property
    def epoch_samples(self) -> int:
        """Give the draws of one epoch, over all ranks, before the last batch is cut or filled."""
        return self.plan.length

    @property
    def steps_per_epoch(self) -> int:
        """Give the steps of one epoch: the same for every rank and epoch."""
        return self._slice.steps

    @property
    def window_blocks(self) -> int:
        """Give the blocks of a shuffle window; 0 where samples are read one by one."""
        return self.plan.window if isinstance(self.plan, Plan) and self.block else 0

    @property
    def window_bytes(self) -> int:
        """Bound the stored bytes that a loader process holds: the windows in use, gaps included.

        A window's blocks are runs of rows (where a table leaves rows out, longer ones), so the
        bound takes the mean size of a sample in its shard.
        """
        if not self.block or not self.dataset.n:
            return 0
        last_s = self.columns.first_s[1:][np.diff(self.columns.first_s) > 0] - 1
        last = self.columns.record[last_s]
        stored = int((last["block"].astype(np.int64) * BLOCK + last["size"]).sum())
        spread = self.dataset.n / min(self.plan.length, self.dataset.n)
        return int(HELD * self.block * self.window_blocks * spread * stored / self.dataset.n)

    def position(self, step: int, origin: int = 0) -> int:
        """Give the first position of the epoch that `step` steps from `origin` leave untaken."""
        return self._from(origin).position(step)

    def coverage(self, epochs: int) -> Coverage:
        """Count what so many epochs draw, and how much of it goes to the tail."""
        if isinstance(self.plan, IdentityPlan):
            return coverage(self.count_C, self.plan, epochs)
        table = None if self.draws is None or not self.sampling_digest else self.draws
        return coverage(self.count_C, table, epochs)

    def batches(
        self, epoch: int, start_step: int = 0, origin: int = 0
    ) -> Generator[Batch, None, None]:
        """Give this rank's batches of an epoch from a step on.

        origin: position at which step 0 begins, for a run that stopped in this epoch under another
        global batch. Errors while reading: InputError GL0302, GL0303 (the sample by shard and key),
        GL0903; LostError GL0902 (a loader process died or stuck).
        """
        part = self._from(origin)
        steps = range(start_step, part.steps)
        self.plan.rows_at(epoch, np.zeros(1, dtype=np.int64))  # the epoch's counts, before a fork
        if self.workers:
            return self._from_workers(epoch, part, steps)
        if self.threads:
            return self._from_threads(epoch, part, steps)
        return self._one_by_one(epoch, part, steps)

    def stored(
        self, epoch: int, start_step: int = 0, origin: int = 0
    ) -> Iterator[tuple[list[bytes], torch.Tensor, I64]]:
        """Give the same batches undecoded: stored bytes (checked), labels, rows."""
        part, read = self._from(origin), self._shards.read
        for step in range(start_step, part.steps):
            row_n = self._rows(epoch, part, step)
            data = [read(sample) for sample in self._shards.samples(row_n)]
            yield data, torch.from_numpy(self.target_L[self.columns.record["label"][row_n]]), row_n

    def _from(self, origin: int) -> Slice:
        return Slice(
            self.plan.length, self.batch * self.world, self.rank, self.world, origin, self.drop_last
        )

    def _fill(
        self,
        epoch: int,
        part: Slice,
        step: int,
        image_nHW3: U8,
        pool: ThreadPoolExecutor | None = None,
        stride: int = 1,
    ) -> tuple[I64, I64]:
        """Fill a batch. stride: this process makes every stride-th batch of the epoch."""
        position_n = part.positions(step)
        row_n = self._rows(epoch, part, step)
        threads = max(1, self.threads)
        if self.block is None:
            self._reader.fill(image_nHW3, row_n, position_n, epoch, pool, threads)
            return row_n, position_n
        assert isinstance(self.plan, Plan)
        begin = 0
        while begin < len(position_n):
            first = int(position_n[begin])
            span = self.plan.window_at(epoch, first)
            if first >= self.plan.length:  # a repeat that fills the last batch: read by itself
                window, end = None, len(position_n)
            else:
                window = self._window(epoch, part, step, span, stride)
                end = min(len(position_n), begin + span[1] - first)
            here = slice(begin, end)
            self._reader.fill(
                image_nHW3[here], row_n[here], position_n[here], epoch, pool, threads, window
            )
            begin = end
        return row_n, position_n

    def _window(
        self, epoch: int, part: Slice, step: int, span: tuple[int, int], stride: int
    ) -> Window:
        """Give the bytes of this process's samples in a window; read at once, in file order."""
        name = (epoch, part, *span)
        with self._window_lock:
            window = self._windows.get(name)
            if window is None:
                first = max(0, (span[0] - part.origin) // part.batch)
                first += (step - first) % stride
                last = min(part.steps, -(-(span[1] - part.origin) // part.batch))
                position_m = np.concatenate([part.positions(s) for s in range(first, last, stride)])
                inside = (position_m >= span[0]) & (position_m < span[1])
                row_m = self.plan.rows_at(epoch, position_m[inside])
                while len(self._windows) >= HELD:
                    self._windows.popitem(last=False)
                window = self._windows[name] = Window(self._shards, row_m)
            return window

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

    def _batch(
        self, image: torch.Tensor, row_n: I64, position_n: I64, epoch: int, step: int
    ) -> Batch:
        repeats = max(0, int(position_n[-1]) - max(self.plan.length, int(position_n[0])) + 1)
        label = torch.from_numpy(self.target_L[self.columns.record["label"][row_n]])
        flip = torch.from_numpy(
            flips(self.seed, epoch, position_n)
            if self.flip
            else np.zeros(len(row_n), dtype=np.bool_)
        )
        return Batch(image, flip, label, row_n, position_n, epoch, step, repeats)

    def _make(self, epoch: int, part: Slice, step: int) -> Batch:
        if self.decoder is not None:
            row_n = self._rows(epoch, part, step)
            data = [self._shards.read(sample) for sample in self._shards.samples(row_n)]
            image = self.decoder(data, self.frame, lambda i: self._shards.where(int(row_n[i])))
            return self._batch(image, row_n, part.positions(step), epoch, step)
        image = self._buffers.take()
        return self._batch(image, *self._fill(epoch, part, step, image.numpy()), epoch, step)

    @contextmanager
    def _ahead(self, epoch: int, part: Slice, steps: range) -> Iterator[Callable[[int], None]]:
        """Fetch the shards of these steps ahead where they lie in a store; yield what to tell.

        That is told the step in use. Entered after a fork, as it starts threads.
        """
        if self.dataset.remote is None or not steps:
            yield lambda step: None
            return
        window = None
        if isinstance(self.plan, Plan) and self.block is not None:
            window = partial(self.plan.window_at, epoch)
        rows = partial(self.plan.rows_at, epoch)
        first, last = part.position(steps.start), min(part.length, part.position(steps.stop))
        fetched = Ahead(self.dataset, self.columns, rows, window, first, last)
        try:
            yield lambda step: fetched.at(part.position(step))
        finally:
            fetched.close()

    def _one_by_one(self, epoch: int, part: Slice, steps: range) -> Generator[Batch, None, None]:
        with self._ahead(epoch, part, steps) as at:
            for step in steps:
                at(step)
                yield self._make(epoch, part, step)

    def _from_threads(self, epoch: int, part: Slice, steps: range) -> Generator[Batch, None, None]:
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="glint-stream")
        queue: deque[Future[Batch]] = deque()
        try:
            with self._ahead(epoch, part, steps) as at:
                for step in steps:
                    at(step)
                    queue.append(pool.submit(self._make, epoch, part, step))
                    if len(queue) > self.threads:
                        yield queue.popleft().result()
                while queue:
                    yield queue.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _from_workers(self, epoch: int, part: Slice, steps: range) -> Generator[Batch, None, None]:
        count = min(self.workers, max(1, len(steps)))
        parts = max(1, self.threads)
        shared = mmap.mmap(-1, 8 * count * parts)
        now_wt = np.frombuffer(shared, np.int64).reshape(count, parts)
        now_wt[:] = -1

        def reading(worker: int) -> str:
            row_t = now_wt[worker][now_wt[worker] >= 0]
            return " or ".join(self._shards.where(row) for row in row_t.tolist())

        def make(step: int, image_nHW3: U8, pool: ThreadPoolExecutor | None) -> tuple[I64, I64]:
            self._reader.now_t = now_wt[steps.index(step) % count]
            return self._fill(epoch, part, step, image_nHW3, pool, count)

        deadline = DEADLINE if self.dataset.remote is None else REMOTE_DEADLINE
        workers = Workers(
            make, (self.batch, *self._reader.shape), count, self.threads, deadline, reading
        )
        try:
            with self._ahead(epoch, part, steps) as at:
                for step, image_nHW3, (row_n, position_n) in workers.batches(steps):
                    at(step)
                    image = self._buffers.take().copy_(torch.from_numpy(image_nHW3))
                    yield self._batch(image, row_n, position_n, epoch, step)
        finally:
            workers.close()


def _masked(columns: Columns, table: tables.Sampling, n: int, path: str) -> Columns:
    """Take the rows out that a sampling table masks. Raises InputError GL0305."""
    first, last = int(table.left_out[0]), int(table.left_out[-1])
    if not 0 <= first <= last < n:
        raise tables.stale(path, f"left_out names rows {first} to {last}, there are {n}")
    return columns.without(table.left_out)


def _targets(dataset: Dataset, labels: LabelTable, columns: Columns) -> I64:
    """Give the class of every label, -1 where it was dropped; all that have an image checked."""
    if len(labels.target) != dataset.classes:
        raise InputError(
            "GL0304",
            f"expected {dataset.classes} labels, found {len(labels.target)}",
            where=str(dataset.root),
        )
    target_L = np.asarray(labels.target, dtype=np.int64)
    bad_L = (target_L < -1) | (target_L >= labels.classes)
    bad_L &= np.diff(columns.first_L) > 0
    if bad_L.any():
        label = int(np.flatnonzero(bad_L)[0])
        row = int(columns.member[columns.first_L[label]])
        shard = dataset.shards[int(columns.shard_of(np.array([row]))[0])]
        raise InputError(
            "GL0304",
            f"expected a label below {labels.classes}, found {target_L[label]}",
            where=f"data/{shard} key {key_of(dataset, row)}",
        )
    return target_L
