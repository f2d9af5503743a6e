"""Run the pieces of a stage in this process or in several, and stop on a signal between them."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol, TypeVar

from glint import log
from glint.errors import LostError, Stopped

Result = TypeVar("Result")
RETRIES = 2  # of a piece whose worker died


class Again(KeyboardInterrupt):
    """The second signal: nothing is finished first."""


class _Signals:
    """A handler of SIGINT and SIGTERM that counts; one inside another counts on."""

    def __init__(self, at_once: bool) -> None:
        outer = signal.getsignal(signal.SIGINT)
        self.came: list[int] = outer.came if isinstance(outer, _Signals) else []
        self.at_once = at_once

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came.append(number)
        if len(self.came) > 1:
            raise Again
        if self.at_once:
            raise KeyboardInterrupt  # which no library takes for an error of its own


@contextmanager
def _counting(at_once: bool) -> Iterator[list[int]]:
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    signals = _Signals(at_once)
    before = {s: signal.signal(s, signals) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals.came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM came; the second one raises Again."""
    with _counting(at_once=False) as came:
        yield lambda: bool(came)


@contextmanager
def ending() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into Stopped GL0704 at once, for work that may end anywhere.

    The second one raises Again.
    """
    with _counting(at_once=True):
        try:
            yield
        except Again:
            raise
        except KeyboardInterrupt:
            raise Stopped(
                "GL0704",
                "stopped on a signal",
                hint="what is done is saved: the same command continues",
            ) from None


def _start(parent: int) -> None:
    """Prepare a worker: signals are the parent's business, and it does not outlive the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


class Engine(Protocol):
    """Where the pieces of a stage run, if not in processes of this machine."""

    def each(
        self,
        work: Callable[[Any, Any], Any],
        plan: object,
        todo: Sequence[Any],
        workers: int,
        done: Callable[[Any, Any], None],
    ) -> None:
        """Do what `each` does. Raises what it raises."""


def each(
    work: Callable[[Any, int], Result],
    plan: object,
    todo: Sequence[int],
    workers: int,
    done: Callable[[int, Result], None],
    *,
    engine: Engine | None = None,
) -> None:
    """Call work(plan, piece) for every piece of `todo` and `done(piece, result)` here, as they end.

    With one worker all happens in this process. `work` and `plan` must pickle. Results come in
    any order. A piece whose worker process died is done again, RETRIES times and each time by half
    as many workers. Raises what `work` raises, Stopped GL0704 after a signal (pieces under way are
    finished first), LostError GL0902 where a piece lost every worker.
    """
    if engine is not None:
        engine.each(work, plan, todo, workers, done)
        return
    with stoppable() as stopped:
        workers = min(workers, len(todo))
        if workers <= 1:
            for count, piece in enumerate(todo):
                if stopped():
                    raise stop(len(todo) - count)
                done(piece, work(plan, piece))
            return
        left, lost = list(reversed(todo)), Counter[int]()
        while left and not stopped():
            gone = _pool(work, plan, left, workers, done, stopped)
            lost.update(gone)
            left += reversed(gone)
            if gone:
                check_lost(lost, len(left))
                workers = max(1, workers // 2)
                log.logger.warning(
                    "a worker process died: going on with %d, pieces again: %s",
                    workers,
                    ", ".join(map(str, gone)),
                )
        if left:
            raise stop(len(left))


def _pool(
    work: Callable[[Any, int], Result],
    plan: object,
    left: list[int],
    workers: int,
    done: Callable[[int, Result], None],
    stopped: Callable[[], bool],
) -> list[int]:
    """Take pieces from the end of `left` until none is left, a signal came or a worker died.

    Returns the pieces that were under way when a worker died.
    """
    running: dict[Future[Result], int] = {}
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start, (os.getpid(),)) as pool:
        try:
            while (left and not stopped()) or running:
                # No piece waits for a worker: a kill costs at most as many pieces as workers.
                while left and len(running) < workers and not stopped():
                    piece = left.pop()
                    try:
                        running[pool.submit(work, plan, piece)] = piece
                    except BrokenProcessPool:
                        left.append(piece)
                        raise
                ready, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in ready:
                    result = future.result()
                    done(running.pop(future), result)
                if stopped():
                    for future in [f for f in running if f.cancel()]:
                        left.append(running.pop(future))
        except Again:
            _kill(before)  # or the pool waits for the pieces under way
            raise
        except BrokenProcessPool:
            _kill(before)  # they may wait for ever for what the dead one held
            for future, piece in list(running.items()):
                if future.done() and future.exception() is None:
                    done(piece, future.result())
                    del running[future]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            _end(before)
    return sorted(running.values())


def _end(before: set[multiprocessing.process.BaseProcess]) -> None:
    """Wait until the processes that were started since have ended.

    One that is killed, even while it exits, may hold the lock of the pool's pipe for ever; the pool
    would then wait for ever with the workers that wait for the lock, so all are killed.
    """
    children = set(multiprocessing.active_children()) - before
    try:
        while alive := [child for child in children if child.is_alive()]:
            if any(child.exitcode for child in children):
                _kill(before)
            multiprocessing.connection.wait([child.sentinel for child in alive], timeout=0.5)
    except Again:
        _kill(before)
        raise


def _kill(before: set[multiprocessing.process.BaseProcess]) -> None:
    """Kill the processes that were started since."""
    for child in set(multiprocessing.active_children()) - before:
        child.kill()


def check_lost(lost: Counter[int], left: int) -> None:
    """Raise LostError GL0902 where a piece lost its worker more than RETRIES times."""
    given_up = sorted(piece for piece, times in lost.items() if times > RETRIES)
    if given_up:
        raise LostError(
            "GL0902",
            f"the worker process died {RETRIES + 1} times with piece "
            f"{' or '.join(map(str, given_up))}; {left} pieces are not done",
            hint="the same command continues; if memory ran out, use fewer --workers",
        )


def stop(left: int) -> Stopped:
    """Return the error of a stage that a signal stopped."""
    return Stopped(
        "GL0704",
        f"stopped on a signal, {left} pieces are left",
        hint="what is done is saved: the same command continues",
    )
