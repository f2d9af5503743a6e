"""The pieces of a stage on Ray: on this machine, or on a cluster that runs already."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from glint.errors import GlintError, LostError, UsageError
from glint.jobs.workers import RETRIES, stop, stoppable

CLOSE = 60.0  # seconds that pieces under way have after a signal
CONNECT = 20.0  # seconds for a cluster to answer
POLL = 0.5  # seconds between two looks at signals
STORE = 128 << 20  # bytes of Ray's object store, where Ray is started here

Submit = Callable[[Any], Any]


@dataclass(frozen=True)
class Ray:
    """An engine: pieces run as Ray tasks, or in actors, which keep what a piece opened.

    address: of a cluster, else that of RAY_ADDRESS, else Ray is started here and ended with the
    stage. at_once: pieces at a time on a cluster, 0 = as many as it has CPUs, or GPUs. actors: one
    process takes piece after piece, with a GPU of its own where the cluster has any.
    """

    address: str = ""
    at_once: int = 0
    actors: bool = False

    def check(self) -> None:
        """Raise UsageError GL0003 where ray is not installed."""
        _import()

    def each(
        self,
        work: Callable[[Any, Any], Any],
        plan: object,
        todo: Sequence[Any],
        workers: int,
        done: Callable[[Any, Any], None],
    ) -> None:
        """Do what `workers.each` does; Ray does a piece again whose worker or machine died.

        `workers` are the processes of a Ray that is started here, 0 = one per core. Raises what
        `work` raises, Stopped GL0704 after a signal (pieces under way have CLOSE seconds to end),
        LostError GL0902 where a piece lost its worker too often, UsageError GL0002 for a wrong
        address.
        """
        if not todo:
            return
        ray = _import()
        with self._joined(ray, workers), stoppable() as stopped:
            cpus, gpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU"))
            most = self.at_once or (gpus if self.actors and gpus else cpus) or 1
            most = min(most, len(todo))
            if self.actors:
                submit = _actors(ray, (work, plan), most, bool(gpus))
            else:
                submit = _tasks(ray, (work, plan))
            _run(ray, submit, most, todo, done, stopped)

    @contextlib.contextmanager
    def pool(self, workers: int) -> Iterator[tuple[Callable[..., Future], int]]:
        """Yield a `submit`, as of a pool of threads, and how many calls it runs at a time."""
        ray = _import()
        with self._joined(ray, workers):
            most = self.at_once or int(ray.cluster_resources().get("CPU", 1))
            remote = ray.remote(_call).options(num_cpus=1, max_retries=RETRIES)
            yield (lambda *call: Future(ray, remote.remote(*call))), most

    @contextlib.contextmanager
    def _joined(self, ray: Any, workers: int) -> Iterator[None]:
        """Join the cluster, or start one here; nothing of Ray's is printed on stdout."""
        address = self.address or os.environ.get("RAY_ADDRESS", "")
        options: dict[str, Any] = {"address": address}
        if not address:
            options = {
                "address": "local",
                "num_cpus": workers or None,
                "include_dashboard": False,
                "object_store_memory": STORE,
            }
        main = threading.current_thread() is threading.main_thread()
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
        with contextlib.redirect_stdout(sys.stderr):
            ours = not ray.is_initialized()
            try:
                if ours:
                    _answers(address)
                    ray.init(log_to_driver=False, logging_level="ERROR", **options)
            except (OSError, ValueError, RuntimeError) as error:
                raise UsageError(
                    "GL0002",
                    f"no Ray at {address or 'this machine'}: {error}".splitlines()[0][:300],
                    where="--ray-address",
                    hint="`ray status` says whether a cluster runs",
                ) from None
            finally:
                for number, handler in before.items():  # Ray puts its own in place
                    signal.signal(number, handler)
            try:
                yield
            finally:
                if ours:
                    ray.shutdown()


@dataclass(frozen=True)
class Future:
    """What a call will return; `result` as of concurrent.futures."""

    ray: Any
    ref: Any

    def result(self) -> Any:
        """Wait for it. Raises what the call raised, LostError GL0902."""
        while not self.ray.wait([self.ref], timeout=POLL)[0]:
            pass  # so that a signal is seen
        return _result(self.ray, self.ref, "a shard")


def _call(work: Callable[..., Any], *arguments: Any) -> Any:
    return work(*arguments)


def _answers(address: str) -> None:
    """Raise OSError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT).close()


def _import() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise UsageError(
            "GL0003", "--engine ray needs ray", hint="pip install 'glint-faces[ray]'"
        ) from None


Job = tuple[Callable[[Any, Any], Any], object]  # work and plan, sent once to every machine


def _piece(job: Job, piece: Any) -> Any:
    """Do one piece, in a worker."""
    work, plan = job
    return work(plan, piece)


class _Actor:
    """One process that does piece after piece."""

    def do(self, job: Job, piece: Any) -> Any:
        """Do one piece."""
        return _piece(job, piece)


def _tasks(ray: Any, job: Job) -> Submit:
    """Return what starts a piece as a task on one CPU."""
    remote = ray.remote(_piece).options(num_cpus=1, max_retries=RETRIES)
    shared = ray.put(job)
    return lambda piece: remote.remote(shared, piece)


def _actors(ray: Any, job: Job, most: int, gpus: bool) -> Submit:
    """Return what gives a piece to an actor that is free."""
    kind = ray.remote(_Actor).options(
        num_cpus=0 if gpus else 1,
        num_gpus=1 if gpus else 0,
        max_restarts=-1,
        max_task_retries=RETRIES,
    )
    shared = ray.put(job)
    free = [kind.remote() for _ in range(most)]
    busy: dict[Any, Any] = {}

    def submit(piece: Any) -> Any:
        if not free:  # one has ended, or nobody would ask
            ready, _ = ray.wait(list(busy), num_returns=1)
            free.append(busy.pop(ready[0]))
        actor = free.pop()
        ref = actor.do.remote(shared, piece)
        busy[ref] = actor
        return ref

    return submit


def _run(
    ray: Any,
    submit: Submit,
    most: int,
    todo: Sequence[Any],
    done: Callable[[Any, Any], None],
    stopped: Callable[[], bool],
) -> None:
    """Keep `most` pieces under way until all are done or a signal came."""
    left, running = list(reversed(todo)), dict[Any, Any]()
    end = float("inf")
    try:
        while (left and not stopped()) or running:
            while left and len(running) < most and not stopped():
                piece = left.pop()
                running[submit(piece)] = piece
            ready, _ = ray.wait(list(running), num_returns=1, timeout=POLL)
            for ref in ready:
                piece = running[ref]
                result = _result(ray, ref, f"piece {piece}")
                done(running.pop(ref), result)
            if stopped():
                end = min(end, time.monotonic() + CLOSE)
                if time.monotonic() > end:
                    break
        if left or running:
            raise stop(len(left) + len(running))
    finally:
        for ref in running:
            with contextlib.suppress(Exception):
                ray.cancel(ref)


def _result(ray: Any, ref: Any, what: str) -> Any:
    """Return what a piece returned. Raises what it raised, LostError GL0902."""
    try:
        return ray.get(ref, timeout=CLOSE)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, GlintError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise LostError(
            "GL0902",
            f"Ray lost the worker of {what} {RETRIES + 1} times: {type(error).__name__}",
            hint="the same command continues; if memory ran out, let fewer pieces run at once",
        ) from None
