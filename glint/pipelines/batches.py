"""Embed a stretch of a dataset batch by batch, in threads that each decode and embed."""

# n images of one batch, D embedding

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from glint.errors import GlintError
from glint.log import logger
from glint.shards import pixels
from glint.shards.embeddings import STATUS

SIZES = (8, 4, 16, 32)  # of batches that are tried; the first where nothing is tried
ROUNDS = 2
WORTH = 10_000  # images from which on a trial, of 256, is worth its time
GAIN = 0.95  # of the time of the first, at which another is taken
BATCH = 64  # where a net has all the machine, or a GPU, for a call


class Recogniser(Protocol):
    """What `models.recogniser.open_model` returns."""

    @property
    def dim(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    def embed(self, image_nHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]: ...


class Source(Protocol):
    """The part of `shards.dataset.Dataset` that embedding reads."""

    @property
    def n(self) -> int: ...
    @property
    def classes(self) -> int: ...
    @property
    def label(self) -> npt.NDArray[np.int64]: ...
    @property
    def key(self) -> Any: ...
    @property
    def digest(self) -> str: ...
    def read(self, row: int) -> bytes: ...


@dataclass(frozen=True)
class Pace:
    """How many images a call of the model takes, and how many threads read and decode, and call
    it where it is `concurrent`."""

    batch: int
    workers: int


Part = tuple[
    slice, npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.uint8]
]  # rows of the dataset, unit embeddings, norms, statuses


def settle(model: Recogniser, images: int, batch: int, workers: int) -> Pace:
    """Return how to embed; what is not given (0) is chosen, the batch by a trial where it pays.

    A model that computes a call on one thread (`concurrent`) is called by as many threads as there
    are cores: threads inside a call wait for each other, and burn a busy machine's time with it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if not _concurrent(model):
        return Pace(batch or BATCH, workers or min(8, cores))
    workers = workers or cores
    if batch or images < WORTH:
        return Pace(batch or SIZES[0], workers)
    best, took = _tried(model)
    logger.info("embedding in batches of %d with %d threads: %.1f ms of CPU an image",
                best, workers, 1000 * took)  # fmt: skip
    return Pace(best, workers)


def of_actor(model: Recogniser) -> int:
    """Return the threads of an actor, which has a core or a card: decoding waits for no card."""
    return 1 if _concurrent(model) else 2


def _concurrent(model: Recogniser) -> bool:
    return bool(getattr(model, "concurrent", False))


def _tried(model: Recogniser) -> tuple[int, float]:
    """Return the batch that costs least CPU an image, and its seconds, on made images.

    Batches take turns, and the best round counts: the machine may be busy. One whose rows are not
    those of the first, to the bit, is not taken, so the choice changes no result.
    """
    most = max(SIZES)
    shape = (most, model.size, model.size, 3)
    image_nHWC = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    took, rows = dict.fromkeys(SIZES, np.inf), {}
    for _ in range(ROUNDS):
        for size in SIZES:
            began = time.thread_time()
            rows[size] = np.concatenate(
                [model.embed(image_nHWC[at : at + size]) for at in range(0, most, size)]
            )
            took[size] = min(took[size], (time.thread_time() - began) / most)
    first = SIZES[0]
    same = [size for size in SIZES if np.array_equal(rows[size], rows[first])]
    best = min(same or [first], key=lambda size: took[size])
    best = best if took[best] < GAIN * took[first] else first
    return best, took[best]


def embedded(
    dataset: Source, model: Recogniser, cut: slice, pace: Pace, flip: bool
) -> Iterator[Part]:
    """Embed the rows of a block, batch by batch, in order; a few batches are under way at once.

    A model that is not `concurrent` is called from this thread; the others only decode.
    """
    todo = iter(range(cut.start, cut.stop, pace.batch))
    waiting: deque[Future[_Decoded | Part]] = deque()

    def work(part: slice) -> _Decoded | Part:
        ready = _decoded(dataset, model, part)
        return _rows(model, ready, flip) if _concurrent(model) else ready

    with ThreadPoolExecutor(pace.workers, thread_name_prefix="glint-embed") as pool:
        try:
            while True:
                while len(waiting) <= pace.workers and (start := next(todo, None)) is not None:
                    stop = min(start + pace.batch, cut.stop)
                    waiting.append(pool.submit(work, slice(start, stop)))
                if not waiting:
                    return
                found = waiting.popleft().result()
                yield _rows(model, found, flip) if isinstance(found, _Decoded) else found
        finally:
            for future in waiting:
                future.cancel()


@dataclass(frozen=True)
class _Decoded:
    """The images of some rows, a batch of those that decode, and the status of each row."""

    part: slice
    image_nHWC: pixels.Pixels | None
    status_n: npt.NDArray[np.uint8]


def _decoded(dataset: Source, model: Recogniser, part: slice) -> _Decoded:
    ready = [_decode(dataset, row, model.size) for row in range(part.start, part.stop)]
    images = [image for _, image in ready if image is not None]
    status_n = np.array([status for status, _ in ready], np.uint8)
    return _Decoded(part, np.stack(images) if images else None, status_n)


def _rows(model: Recogniser, ready: _Decoded, flip: bool) -> Part:
    status_n = ready.status_n
    row_nD = np.full((len(status_n), model.dim), np.nan, np.float32)
    norm_n = np.full(len(status_n), np.nan, np.float32)
    good_n = np.flatnonzero(status_n == 0)
    if ready.image_nHWC is not None:
        row_nD[good_n], norm_n[good_n] = _unit(model, ready.image_nHWC, flip)
    status_n[good_n[np.isnan(norm_n[good_n])]] = STATUS.index("not-finite")
    return ready.part, row_nD, norm_n, status_n


def _unit(
    model: Recogniser, image_nHWC: npt.NDArray[np.uint8], flip: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Embed images; return unit rows and their norms, NaN where the model gave no direction."""
    raw_nD = np.asarray(model.embed(image_nHWC), dtype=np.float32)
    if flip:
        raw_nD = raw_nD + model.embed(np.ascontiguousarray(image_nHWC[:, :, ::-1]))
    norm_n = np.linalg.norm(raw_nD.astype(np.float64), axis=1)
    norm_n[~np.isfinite(norm_n) | (norm_n == 0)] = np.nan
    return (raw_nD / norm_n[:, None]).astype(np.float32), norm_n.astype(np.float32)


def _decode(dataset: Source, row: int, size: int) -> tuple[int, pixels.Pixels | None]:
    """Read and decode one image; return (status, RGB image or None).

    Damaged is what was read whole and is not what was written. Raises GlintError where it could
    not be read whole: that says nothing of the image.
    """
    try:
        data = dataset.read(row)
    except GlintError as error:
        if error.code != "GL0303":
            raise
        logger.debug("row %d: %s", row, error)  # counted; named in samples.parquet
        return STATUS.index("damaged"), None
    try:
        if (pixels.size(data) or (size, size)) != (size, size):
            return STATUS.index("wrong-size"), None
        return 0, pixels.rgb(data)
    except ValueError:
        return STATUS.index("not-a-jpeg"), None
