"""Equal batches for every rank, in the order of the plan, from any step of any epoch."""

# n images of one rank's batch, H height, W width, L labels as sharded
# w workers, t threads of one

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch

from glint.dist.world import present
from glint.errors import MismatchError, UsageError
from glint.log import logger
from glint.rng import I64
from glint.shards import labels as label_versions
from glint.shards.dataset import Dataset
from glint.shards.labels import LabelTable
from glint.stream import prefetch
from glint.stream.augment import flips
from glint.stream.buffers import U8, Buffers
from glint.stream.columns import Columns, open_columns
from glint.stream.coverage import Coverage, coverage
from glint.stream.decode import Decoder
from glint.stream.degrade import KINDS, Degrade, Kind
from glint.stream.files import Shards, Windows
from glint.stream.identities import IdentityPlan
from glint.stream.order import Order, select
from glint.stream.plan import Plan, Slice
from glint.stream.position import Batch as Batch
from glint.stream.position import Place
from glint.stream.reader import Reader
from glint.stream.view import Loader, View
from glint.stream.workers import DEADLINE, Workers

GROUP = 16  # steps planned in one call
REMOTE_DEADLINE = 1200.0  # seconds without a batch where shards are fetched first


@dataclass(frozen=True)
class Images:
    """How stored bytes become the pixels of a batch.

    size: pixels of a side. augment: see `degrade`. decoder: decodes a batch instead of this
    machine's processor (`decode.on_gpu`); it goes with threads, not with workers or augment.
    verify: check every sample's digest. pinned: batches in page-locked memory.
    """

    size: int = 112
    flip: bool = True
    augment: Kind = "none"
    decoder: Decoder | None = None
    verify: bool = True
    pinned: bool = False


class Stream:
    """The training samples of one rank.

    `for batch in stream` yields the steps of an epoch, and the next time those of the next one;
    `len` counts them; `state_dict` says what was handed out. `loader()` gives them through torch's
    DataLoader, `view()` as a data set of steps.
    labels: a label version, by default the one in force. batch: images per rank and step; the
    global batch is batch * world. rank, world: those of the live process group unless said.
    workers: loader processes; 0 loads in this process. threads: without workers, threads that make
    batches ahead (0: none, each batch is made when asked for); with workers, decoding threads in
    each. columns: those of the dataset, where they are open already.
    The samples of a (epoch, step) do not depend on workers, threads, pinned or verify.
    Errors: UsageError GL0001, GL0002; InputError GL0301, GL0304, GL0305.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        labels: LabelTable | None = None,
        batch: int,
        rank: int | None = None,
        world: int | None = None,
        seed: int = 0,
        workers: int = 0,
        threads: int = 0,
        drop_last: bool = True,
        order: Order | None = None,
        images: Images | None = None,
        columns: Columns | None = None,
    ) -> None:
        order, images = order or Order(), images or Images()
        if isinstance(dataset, str | os.PathLike):
            raise UsageError("GL0002", f"expected a Dataset, found {dataset!r}", where="stream")
        _check(batch, workers, threads, images)
        self.dataset, self.seed, self.images, self.order = dataset, seed, images, order
        if (rank is None) != (world is None):
            raise UsageError("GL0002", f"rank is {rank} and world {world}: give both or none")
        live = present()
        self.batch, self._found = batch, rank is None
        self.rank = live.rank if rank is None else rank
        self.world = live.size if world is None else world
        if labels is None:
            labels = label_versions.current(dataset.root, dataset.classes)
        self.labels = labels
        self.place = Place()
        self.workers, self.threads, self.drop_last = workers, threads, drop_last
        columns = open_columns(dataset) if columns is None else columns
        self.selection = select(dataset, labels, order, columns, seed, batch)
        self.columns, self.plan = self.selection.columns, self.selection.plan
        table = self.selection.table
        self.sampling_digest = "" if table is None else table.digest
        plan = self.plan
        windowed = plan if isinstance(plan, Plan) and plan.block is not None else None
        prefetch.check(dataset, windowed)
        self._shards = Shards(dataset, self.columns, images.verify)
        degrade = None if images.augment == "none" else Degrade(images.augment, seed)
        self._reader = Reader(self._shards, size=images.size, degrade=degrade)
        self._buffers = Buffers((batch, *self._reader.shape), images.pinned)
        self._windows = None if windowed is None else Windows(self._shards, windowed)
        self._slice = self._from(0)
        self._planned: tuple[tuple[int, Slice, int], I64] | None = None
        if windowed is not None:
            logger.info(
                "sequential reads: windows of %d samples, at most %.0f MiB of stored "
                "bytes held by each loader process",
                windowed.window_slots,
                self.window_bytes / 2**20,
            )

    @property
    def epoch_samples(self) -> int:
        """Return the draws of one epoch, over all ranks, before the last batch is cut or filled."""
        return self.plan.length

    @property
    def steps_per_epoch(self) -> int:
        """Return the steps of one epoch: the same for every rank and epoch."""
        return self._slice.steps

    @property
    def window_bytes(self) -> int:
        """Return the most stored bytes that a loader process holds, 0 without windows."""
        return 0 if self._windows is None else self._windows.most_bytes()

    def position(self, step: int, origin: int = 0) -> int:
        """Return the first position of the epoch that `step` steps from `origin` do not take."""
        return self._from(origin).position(step)

    def coverage(self, epochs: int) -> Coverage:
        """Count what so many epochs draw, and how much of it goes to the tail."""
        drawn = self.selection
        if isinstance(drawn.plan, IdentityPlan):
            return coverage(drawn.count_C, drawn.plan, epochs)
        return coverage(drawn.count_C, drawn.draws if drawn.table else None, epochs)

    def batches(
        self, epoch: int, start_step: int = 0, origin: int = 0
    ) -> Generator[Batch, None, None]:
        """Yield this rank's batches of an epoch from a step on.

        origin: position at which step 0 begins, for a run that stopped in this epoch under another
        global batch. Errors while reading: InputError GL0302, GL0303 (the sample by shard and key),
        GL0903; LostError GL0902 (a loader process died or stuck).
        """
        self._require_share()
        part = self._from(origin)
        steps = range(start_step, part.steps)
        self.plan.rows_at(epoch, np.zeros(1, dtype=np.int64))  # the epoch's counts, before a fork
        if self.workers:
            return self._from_workers(epoch, part, steps)
        if self.threads:
            return self._from_threads(epoch, part, steps)
        return self._one_by_one(epoch, part, steps)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        epoch, step, origin = self.place.begin()
        yield from self.place.handing(self.batches(epoch, step, origin), epoch, origin)

    def __getitem__(self, index: object) -> NoReturn:
        raise UsageError(
            "GL0002",
            "a stream has no items, and its order is its own",
            where="stream",
            hint="a loop takes stream.loader(num_workers=...) or "
            "DataLoader(stream.view(), batch_size=None, num_workers=...)",
        )

    @property
    def epoch(self) -> int:
        """Return the epoch that the next iteration yields."""
        return self.place.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; within the one at hand nothing changes."""
        self.place.to(epoch)

    def loader(self, num_workers: int = 0, **options: Any) -> Loader:
        """Return torch's DataLoader over the steps; options: of it, but those that order or batch.

        Neither accelerate nor Fabric cuts it up again. Raises UsageError (GL0002).
        """
        return Loader(self, num_workers, **options)

    def view(self) -> View:
        """Return the steps of an epoch as a map-style data set, one item a step."""
        return View(self)

    def state_dict(self) -> dict[str, Any]:
        """Return where the loop stands: what was handed out, not what was read ahead.

        The same on every rank; it loads on any number of them, and with another batch.
        """
        place = self.place.state(self._from(self.place.origin))
        return {**place, "stream": self.fingerprint()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there. Raises MismatchError (GL0702) for a stream of other samples."""
        self.require(state_dict.get("stream", {}))
        self.place.load(state_dict, self._from(0))

    def fingerprint(self) -> dict[str, Any]:
        """Return what the samples of a position depend on."""
        order = self.order
        return {
            "dataset": self.dataset.digest,
            "labels": self.labels.digest,
            "sampling": self.sampling_digest,
            "order": f"{order.block} {order.each} {order.endless} {order.positives}",
            "seed": self.seed,
            "samples": self.plan.length,
        }

    def require(self, fingerprint: dict[str, Any]) -> None:
        """Raise MismatchError (GL0702) where a state is of other samples."""
        for name, own in self.fingerprint().items():
            if (found := fingerprint.get(name)) != own:
                raise MismatchError(
                    "GL0702", f"{name} was {found!r}, is {own!r}", where="state of the stream"
                )

    def steps_from(self, origin: int) -> int:
        """Return the steps from a position of the epoch to its end."""
        return self._from(origin).steps

    def batch_at(self, epoch: int, step: int, origin: int = 0, stride: int = 1) -> Batch:
        """Return one batch, made by this process. stride: it makes every stride-th one."""
        self._require_share()
        return self._make(epoch, self._from(origin), step, stride)

    def _require_share(self) -> None:
        if self._found and self.world == 1 and present().size > 1:
            raise UsageError(
                "GL0002",
                "it was made before the process group: every rank would read the same samples",
                where="stream",
                hint="make it after init_process_group, or pass rank= and world=",
            )
        if not self.steps_per_epoch:
            what = f"{self.plan.length} samples make no batch of {self.batch * self.world}"
            raise UsageError(
                "GL0002", what, where="stream", hint="drop_last=False, or a smaller one"
            )

    def stored(
        self, epoch: int, start_step: int = 0, origin: int = 0
    ) -> Iterator[tuple[list[bytes], torch.Tensor, I64]]:
        """Yield the same batches undecoded: stored bytes (checked), labels, rows."""
        part, read = self._from(origin), self._shards.read
        for step in range(start_step, part.steps):
            row_n = self._rows(epoch, part, step)
            data = [read(sample) for sample in self._shards.samples(row_n)]
            yield data, self._labels(row_n), row_n

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
        now_t: I64 | None = None,
    ) -> tuple[I64, I64]:
        """Fill a batch; return its rows and positions.

        stride: this process makes every stride-th batch of the epoch. now_t: see `Reader.fill`.
        """
        position_n = part.positions(step)
        row_n = self._rows(epoch, part, step)
        threads, count = max(1, self.threads), len(position_n)
        begin = 0
        while begin < count:
            window, end = None, count
            if self._windows is not None:
                first = int(position_n[begin])
                window, stop = self._windows.at(epoch, part, step, first, stride)
                end = min(count, begin + stop - first)
            here = slice(begin, end)
            self._reader.fill(
                image_nHW3[here], row_n[here], position_n[here], epoch, pool, threads, window, now_t
            )
            begin = end
        return row_n, position_n

    def _rows(self, epoch: int, part: Slice, step: int) -> I64:
        """Return the rows of a step; planned for GROUP at once, as a call has its cost."""
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
        flip_n = np.zeros(len(row_n), dtype=np.bool_)
        if self.images.flip:
            flip_n = flips(self.seed, epoch, position_n)
        flip = torch.from_numpy(flip_n)
        return Batch(image, flip, self._labels(row_n), row_n, position_n, epoch, step, repeats)

    def _labels(self, row_n: I64) -> torch.Tensor:
        return torch.from_numpy(self.selection.target_L[self.columns.label[row_n]])

    def _make(self, epoch: int, part: Slice, step: int, stride: int = 1) -> Batch:
        if self.images.decoder is not None:
            row_n, frame = self._rows(epoch, part, step), (self.images.size, self.images.size)
            data = [self._shards.read(sample) for sample in self._shards.samples(row_n)]
            image = self.images.decoder(data, frame, lambda i: self._shards.where(int(row_n[i])))
            return self._batch(image, row_n, part.positions(step), epoch, step)
        image = self._buffers.take()
        filled = self._fill(epoch, part, step, image.numpy(), stride=stride)
        return self._batch(image, *filled, epoch, step)

    @contextmanager
    def _prefetch(self, epoch: int, part: Slice, steps: range) -> Iterator[Callable[[int], None]]:
        """Fetch the shards of these steps ahead where they lie in a store.

        Yields a function that takes the step in use. Entered after a fork, as it starts threads.
        """
        if self.dataset.remote is None or not steps:
            yield lambda step: None
            return
        window = None
        if isinstance(self.plan, Plan) and self.plan.block is not None:
            window = partial(self.plan.window_at, epoch)
        rows = partial(self.plan.rows_at, epoch)
        first, last = part.position(steps.start), min(part.length, part.position(steps.stop))
        fetched = prefetch.Prefetcher(self.dataset, self.columns, rows, window, first, last)
        try:
            yield lambda step: fetched.at(part.position(step))
        finally:
            fetched.close()

    def _one_by_one(self, epoch: int, part: Slice, steps: range) -> Generator[Batch, None, None]:
        with self._prefetch(epoch, part, steps) as at:
            for step in steps:
                at(step)
                yield self._make(epoch, part, step)

    def _from_threads(self, epoch: int, part: Slice, steps: range) -> Generator[Batch, None, None]:
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="glint-stream")
        queue: deque[Future[Batch]] = deque()
        try:
            with self._prefetch(epoch, part, steps) as at:
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
            now_t = now_wt[steps.index(step) % count]
            return self._fill(epoch, part, step, image_nHW3, pool, count, now_t)

        deadline = DEADLINE if self.dataset.remote is None else REMOTE_DEADLINE
        shape = (self.batch, *self._reader.shape)
        workers = Workers(make, shape, count, self.threads, deadline, reading)
        try:
            with self._prefetch(epoch, part, steps) as at:
                for step, image_nHW3, (row_n, position_n) in workers.batches(steps):
                    at(step)
                    image = self._buffers.take().copy_(torch.from_numpy(image_nHW3))
                    yield self._batch(image, row_n, position_n, epoch, step)
        finally:
            workers.close()


def _check(batch: int, workers: int, threads: int, images: Images) -> None:
    """Refuse numbers and options that do not go together. Raises UsageError GL0002."""
    if batch < 1 or workers < 0 or threads < 0:
        raise UsageError(
            "GL0002",
            f"batch must be at least 1, workers and threads at least 0; "
            f"found {batch}, {workers}, {threads}",
        )
    augment = images.augment
    if augment not in KINDS:
        what = f"expected one of {', '.join(KINDS)}, found {augment!r}"
        raise UsageError("GL0002", what, where="augment")
    if images.decoder is not None and (workers or augment != "none"):
        raise UsageError(
            "GL0002",
            f"decoding elsewhere goes without loader processes and degradations; found "
            f"workers {workers}, augment {augment!r}",
            hint="data.workers=0, data.threads=2 and data.augment=none",
        )
