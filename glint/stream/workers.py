"""Loader processes that cannot hang: batch i is made by worker i % W, in shared memory.

A worker that dies, stalls or reads a bad sample raises a named error in the consumer at once; there
is no signal handler and no queue thread.
"""

from __future__ import annotations

import mmap
import multiprocessing as mp
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from glint.errors import GlintError, LostError

DEPTH = 2  # batches a worker holds: one made, one in the making
DEADLINE = 60.0  # seconds without the next batch before its worker counts as stuck
_ALONE = 2.0  # seconds between looks whether the parent still lives

U8 = npt.NDArray[np.uint8]
Make = Callable[[int, U8, "ThreadPoolExecutor | None"], Any]  # (step, where to, threads) -> rest


class Workers:
    """W processes that make batches of one epoch ahead of the consumer.

    make(step, image, threads) fills `image` and returns the rest of the batch, picklable.
    shape: of `image`, uint8. at: names what a worker reads, for the error about its end.
    Forked, so the dataset's index is shared, not copied.
    """

    def __init__(
        self,
        make: Make,
        shape: tuple[int, ...],
        workers: int,
        threads: int = 1,
        deadline: float = DEADLINE,
        at: Callable[[int], str] | None = None,
    ) -> None:
        context = mp.get_context("fork")
        self._deadline, self._at = deadline, at
        self._ends: list[Connection] = []
        self._slots: list[list[U8]] = []
        self._processes: list[Any] = []
        size = int(np.prod(shape))
        try:
            for _ in range(workers):
                slots = [
                    np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8).reshape(shape)
                    for _ in range(DEPTH)
                ]
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_work,
                    daemon=True,
                    args=(make, theirs, [*self._ends, ours], slots, threads, os.getpid()),
                )
                with warnings.catch_warnings():  # a fork beside torch's threads: see _work
                    warnings.simplefilter("ignore", DeprecationWarning)
                    process.start()
                theirs.close()
                self._ends.append(ours)
                self._slots.append(slots)
                self._processes.append(process)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Return the processes' numbers."""
        return [process.pid for process in self._processes]

    def batches(self, steps: Sequence[int]) -> Iterator[tuple[int, U8, Any]]:
        """Yield (step, image, rest) in order; `image` is valid until the next one is asked for.

        Raises what `make` raised where that is a GlintError; LostError GL0902 for a dead or
        stuck worker; RuntimeError with the worker's stack for anything else.
        """
        count, ahead = len(self._ends), len(self._ends) * DEPTH
        for i in range(min(ahead, len(steps))):
            self._ask(i, steps[i])
        for i, step in enumerate(steps):
            kind, rest = self._answer(i % count, step)
            if kind == "error":
                raise rest
            if kind == "bug":
                raise RuntimeError(f"a loader worker failed at step {step}\n{rest}")
            yield step, self._slots[i % count][i // count % DEPTH], rest
            if i + ahead < len(steps):
                self._ask(i + ahead, steps[i + ahead])

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for end in self._ends:
            end.close()

    def _ask(self, i: int, step: int) -> None:
        count = len(self._ends)
        try:
            self._ends[i % count].send((step, i // count % DEPTH))
        except OSError:
            raise self._lost(i % count, step) from None

    def _answer(self, worker: int, step: int) -> tuple[str, Any]:
        end, process = self._ends[worker], self._processes[worker]
        ready = wait([end, process.sentinel], timeout=self._deadline)
        if end in ready:
            try:
                kind, rest = end.recv()
            except (EOFError, OSError):
                raise self._lost(worker, step) from None
            return kind, rest
        if process.sentinel in ready:
            raise self._lost(worker, step)
        raise LostError(
            "GL0902",
            f"no batch from worker {worker} (pid {process.pid}) for {self._deadline:.0f} s",
            where=self._place(worker, step),
            hint="the storage may hang; look at the worker with py-spy or strace",
        )

    def _lost(self, worker: int, step: int) -> LostError:
        process = self._processes[worker]
        process.join(1)
        code = process.exitcode
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"ended with status {code}"
        hint = (
            "out of memory kills look like this: fewer data.workers, a smaller data.batch"
            if code == -signal.SIGKILL
            else "if it ends at the same picture again, the decoder cannot bear that picture: "
            "leave it out of the source"
        )
        return LostError(
            "GL0902",
            f"worker {worker} (pid {process.pid}) {how}",
            where=self._place(worker, step),
            hint=hint,
        )

    def _place(self, worker: int, step: int) -> str:
        sample = self._at(worker) if self._at is not None else ""
        return f"step {step}" + (f", reading {sample}" if sample else "")


def _work(
    make: Make,
    end: Connection,
    others: list[Connection],
    slots: list[U8],
    threads: int,
    parent: int,
) -> None:
    """Serve one pipe until it closes or the parent is gone.

    The process is a fork, so it must not enter a parallel region of torch: one thread only.
    Signals that end a run are the parent's business; it may still want batches to save a state.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for other in others:
        other.close()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads) if threads > 1 else None
    while True:
        try:
            while not end.poll(_ALONE):
                if os.getppid() != parent:
                    return
            step, slot = end.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[str, Any] = ("made", make(step, slots[slot], pool))
        except GlintError as error:
            answer = ("error", error)
        except Exception:
            answer = ("bug", traceback.format_exc())
        try:
            end.send(answer)
        except OSError:
            return
