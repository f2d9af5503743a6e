"""Writes a run's checkpoints in a thread, from a copy of the state made between two steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from glint.dist.host import local_ranks, ram
from glint.dist.world import cpu_group
from glint.errors import GlintError
from glint.log import logger
from glint.models import checkpoint
from glint.train import restore
from glint.train.build import Run
from glint.train.metrics import Log

ROOM = 0.8  # share of the free memory that copies may take
MOMENT = 5.0  # seconds that a run waits for its writer where another rank may be lost


class Saver:
    """Saves the checkpoints of one run; every rank has one and calls it at the same steps.

    With `run.async_save` a save waits for the one before it, copies the state into host memory,
    which is kept for the next, and lets a thread write it. Without, or where free memory does not
    hold the copies of the ranks of this machine, the state is written as it lies, between steps.
    """

    def __init__(self, run: Run, log: Log) -> None:
        """Open what the ranks' threads meet through (a collective)."""
        self.run, self.log = run, log
        self.asynchronous = run.recipe.run.async_save
        self._meet = checkpoint.meeting(cpu_group(run.world) if self.asynchronous else run.world)
        self._copies: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, best: bool = False) -> Path:
        """Save the state after `step` steps; its folder is there after `wait` at the latest.

        best: keep it as the run's `best`, too.

        Raises what `wait` does of the save before, and of this one where it is not asynchronous.
        """
        began = time.perf_counter()
        self.wait()
        waited = time.perf_counter()
        parts = restore.parts(self.run, step)
        sizes = [t.numel() * t.element_size() for _, t in _tensors(parts)]
        size = sum(sizes)
        if self.asynchronous and not self._copies:
            self.asynchronous = self._room(held(sizes, pinned=self._pinned))
        folder = self.run.out / "checkpoints"
        if self.asynchronous:
            parts = self._copied(parts)
            self._thread = threading.Thread(
                target=self._write, args=(folder, step, parts, best), name="checkpoint", daemon=True
            )
            self._thread.start()
        else:
            self._save(folder, step, parts, best)
        self.log.saved(step, size, waited - began, time.perf_counter() - waited)
        return folder / f"step-{step:08d}"

    @property
    def _pinned(self) -> bool:
        """Whether copies lie in memory that a GPU writes to directly."""
        return self.run.world.device.type == "cuda"

    @property
    def failed(self) -> bool:
        """Whether the save under way has failed; `wait` raises why."""
        return self._error is not None

    def wait(self) -> None:
        """Wait for the save under way. Raises ResourceError GL0901 where it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Wait for the checkpoint where all ranks end together; a failure is only logged."""
        if self._thread is not None:
            together = kind is None or issubclass(kind, GlintError)  # all ranks end at this step
            self._thread.join(None if together else MOMENT)
        if self._error is not None:
            logger.error("%s", self._error)

    def _save(self, folder: Path, step: int, parts: dict[str, Any], best: bool) -> None:
        checkpoint.save(folder, step, meet=self._meet, **parts)
        if best and self.run.world.rank == 0:
            checkpoint.keep_as(folder / f"step-{step:08d}", self.run.out / restore.BEST)

    def _write(self, folder: Path, step: int, parts: dict[str, Any], best: bool) -> None:
        try:
            self._save(folder, step, parts, best)
        except BaseException as error:
            self._error = error

    def _room(self, size: int) -> bool:
        """Whether the copies of this machine's ranks fit into its memory; rank 0 logs it."""
        free, ranks = ram()["available"], local_ranks(self.run.world.size)
        good = size * ranks <= ROOM * free
        if not good:
            logger.warning(
                "checkpoints are written between steps: copies of %.1f MiB a rank do not fit "
                "into %.1f MiB of free memory", size / 2**20, free / 2**20,
            )  # fmt: skip
        elif self.run.world.rank == 0:
            logger.info("checkpoints: %.1f MiB copied, written beside the steps", size / 2**20)
        return good

    def _copied(self, parts: dict[str, Any]) -> dict[str, Any]:
        copies: dict[str, Tensor] = {}
        for name, tensor in _tensors(parts):
            place = self._copies.get(name)
            if place is None or place.shape != tensor.shape:
                place = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._pinned)
            copies[name] = place.copy_(tensor.detach())
        self._copies = copies

        def of(part: str, held: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: copies[f"{part}/{name}"] for name in held}

        start, stop, rows = parts["head"]
        return parts | {
            "head": (start, stop, of("head", rows)),
            **{part: of(part, parts[part]) for part in _WHOLE if parts[part] is not None},
        }


_WHOLE = ("backbone", "optimizer", "averaged")  # what rank 0 writes of them all


def held(sizes: Sequence[int], *, pinned: bool) -> int:
    """Return the bytes that copies of tensors of these sizes take.

    torch rounds pinned memory up to a power of two.
    """
    return sum(1 << (size - 1).bit_length() if pinned and size else size for size in sizes)


def _tensors(parts: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for part in _WHOLE:
        for name, tensor in (parts[part] or {}).items():
            yield f"{part}/{name}", tensor
    for name, tensor in parts["head"][2].items():
        yield f"head/{name}", tensor
