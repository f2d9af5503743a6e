"""Run the pieces of a stage in this process or in several, and stop on a signal between them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from glint.errors import LostError, Stopped

Result = TypeVar("Result")


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM came; the second one interrupts."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ending() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into Stopped GL0704 at once, for work that may end anywhere."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt  # which no library takes for an error of its own

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, end) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(
            "GL0704",
            "stopped on a signal",
            hint="what is done is saved: the same command continues",
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(parent: int) -> None:
    """Prepare a worker: signals are the parent's business, and it does not outlive the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def each(
    work: Callable[[Any, int], Result],
    plan: object,
    todo: Sequence[int],
    workers: int,
    done: Callable[[int, Result], None],
) -> None:
    """Call work(plan, piece) for every piece of `todo` and `done(piece, result)` here, as they end.

    With one worker all happens in this process. `work` and `plan` must pickle. Results come in
    any order. Raises what `work` raises, Stopped GL0704 after a signal (pieces under way are
    finished first), LostError GL0902 where a worker process died.
    """
    with stoppable() as stopped:
        workers = min(workers, len(todo))
        if workers <= 1:
            for count, piece in enumerate(todo):
                if stopped():
                    raise _stop(len(todo) - count)
                done(piece, work(plan, piece))
            return
        context = multiprocessing.get_context("spawn")
        left = list(reversed(todo))
        running: dict[Future[Result], int] = {}
        with ProcessPoolExecutor(workers, context, _start, (os.getpid(),)) as pool:
            try:
                while (left and not stopped()) or running:
                    while left and len(running) < 2 * workers and not stopped():
                        piece = left.pop()
                        running[pool.submit(work, plan, piece)] = piece
                    ready, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in ready:
                        piece = running.pop(future)
                        done(piece, future.result())
                    if stopped():
                        for future in [f for f in running if f.cancel()]:
                            left.append(running.pop(future))
            except BrokenProcessPool:
                raise LostError(
                    "GL0902",
                    f"a worker process died; {len(left) + len(running)} pieces are not done",
                    hint="the same command continues; if memory ran out, use fewer --workers",
                ) from None
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        if left:
            raise _stop(len(left))


def _stop(left: int) -> Stopped:
    return Stopped(
        "GL0704",
        f"stopped on a signal, {left} pieces are left",
        hint="what is done is saved: the same command continues",
    )
