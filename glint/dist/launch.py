"""Start the ranks of one machine, watch them, and leave none behind."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from glint.dist import heartbeat
from glint.errors import GlintError, LostError, Stopped, UsageError
from glint.log import logger

POLL = 0.1  # seconds between two looks at the ranks
GRACE = 10.0  # seconds from SIGTERM to SIGKILL
STOP_GRACE = 120.0  # seconds the other ranks get once one has stopped with its state saved
SILENCE = 60.0  # seconds without a sign of life after which a rank counts as lost
EXPLAINED = frozenset({*range(2, 11), Stopped.exit_code})  # exit codes of glint's own errors
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Nodes:
    """This machine among `count` with as many ranks each, which meet at host:port of the first."""

    count: int = 1
    number: int = 0
    host: str = ""
    port: int = 0

    @classmethod
    def of(cls, count: int, number: int, master: str) -> Nodes:
        """Read --nnodes, --node-rank and --master HOST:PORT. Raises UsageError GL0002."""
        if not 0 <= number < count:
            raise UsageError(
                "GL0002", f"expected 0 to {count - 1}, found {number}", where="--node-rank"
            )
        if count == 1:
            return cls()
        host, _, port = master.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise UsageError(
                "GL0002",
                f"expected HOST:PORT of machine 0, found {master!r}",
                where="--master",
            )
        return cls(count, number, host.strip("[]"), int(port))


def run_ranks(
    argv: Sequence[str],
    nproc: int,
    env: Mapping[str, str] | None = None,
    *,
    grace: float = GRACE,
    silence: float = SILENCE,
    stacks: Path | None = None,
    nodes: Nodes | None = None,
) -> int:
    """Run `argv` as `nproc` ranks on this machine and return their common exit code.

    Every rank gets RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE and GLINT_RENDEZVOUS on top of
    `env` (default: this process's); with `nodes`, which every machine calls with its own number,
    MASTER_ADDR and MASTER_PORT instead of the last. The first rank here writes to this process's
    stdout and stderr; the other ranks' output is kept aside and its end is logged when one of them
    dies. A rank that dies is seen within a second; the others then get SIGTERM and, `grace`
    seconds later, SIGKILL. Ranks die with this process. SIGTERM, SIGINT and SIGUSR1 are passed on;
    a second SIGINT or SIGTERM kills. An exit code of glint's own (2 to 10, 75) is returned as it
    is, 128 + the signal for ranks that were stopped before they could save; anything else raises
    LostError (GL0601) with the rank and its signal or exit code. So does a rank that called
    `heartbeat.start` and then shows no life for `silence` seconds (stopped, or stuck in native
    code): before the ranks are ended, each writes its stacks, and these files go to the folder
    `stacks`.
    """
    if nproc < 1:
        raise ValueError(f"nproc is {nproc}")
    with tempfile.TemporaryDirectory(prefix="glint-ranks-") as folder:
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            with _passed_on(ranks) as stopped:
                for rank in range(nproc):
                    ranks.append(_start(argv, rank, nproc, env, Path(folder), nodes))
                pulse = _Pulse(Path(folder), nproc, silence)
                return _watch(ranks, Path(folder), grace, stopped, pulse, stacks)
        finally:
            _end(ranks, grace)


def _start(
    argv: Sequence[str],
    rank: int,
    nproc: int,
    env: Mapping[str, str] | None,
    folder: Path,
    nodes: Nodes | None,
) -> subprocess.Popen[bytes]:
    child = dict(os.environ if env is None else env)
    many = nodes or Nodes()
    child.update(
        RANK=str(many.number * nproc + rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(many.count * nproc),
        LOCAL_WORLD_SIZE=str(nproc),
    )
    if many.count > 1:
        child.update(MASTER_ADDR=many.host, MASTER_PORT=str(many.port))
    else:
        child["GLINT_RENDEZVOUS"] = f"file://{folder / 'meeting'}"
    child[heartbeat.FOLDER] = str(folder)
    if sys.platform == "linux":
        if many.count == 1:
            child.setdefault("GLOO_SOCKET_IFNAME", "lo")
        child.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP remarks on what glint asks it for
    start = _dies_with_parent()
    if rank == 0:
        return subprocess.Popen(argv, env=child, preexec_fn=start, start_new_session=True)
    with open(_output(folder, rank), "wb") as out:
        return subprocess.Popen(
            argv,
            env=child,
            preexec_fn=start,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def _dies_with_parent() -> Callable[[], None] | None:
    """Return what a child does before exec so that the kernel kills it when its parent dies."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the tie was made
            os._exit(1)

    return tie


@contextmanager
def _passed_on(ranks: list[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Pass signals on to the ranks and list them while the block runs (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    seen: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGUSR1:
            seen.append(number)
        _signal(ranks, signal.SIGKILL if len(seen) > 1 else signal.Signals(number))

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Pulse:
    """When each rank last showed life; a rank that never did is not held to it."""

    def __init__(self, folder: Path, nproc: int, silence: float) -> None:
        self.folder, self.silence = folder, silence
        self.seen = [("", 0.0)] * nproc
        self.next = 0.0

    def lost(self) -> int | None:
        """Return a rank that has been silent for too long."""
        now = time.monotonic()
        if now < self.next:
            return None
        self.next = now + heartbeat.BEAT
        for rank, (before, since) in enumerate(self.seen):
            try:
                beat = heartbeat.beat_file(self.folder, rank).read_text()
            except OSError:
                continue
            if beat != before:
                self.seen[rank] = beat, now
            elif before and now - since > self.silence:
                return rank
        return None


def _watch(
    ranks: list[subprocess.Popen[bytes]],
    folder: Path,
    grace: float,
    stopped: Sequence[int],
    pulse: _Pulse,
    stacks: Path | None,
) -> int:
    while True:
        codes = [rank.poll() for rank in ranks]
        if any(codes):
            break
        if all(code == 0 for code in codes):
            return 0
        silent = pulse.lost()
        if silent is not None and codes[silent] is None:
            raise _silent(ranks, silent, folder, pulse.silence, stacks)
        time.sleep(POLL)
    time.sleep(POLL)  # one rank's end ends others: look again, then name the first cause
    codes = [rank.poll() for rank in ranks]
    rank, code = _cause(codes)
    if code in EXPLAINED:
        patience = STOP_GRACE if code == Stopped.exit_code else 2 * POLL
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and any(r.poll() is None for r in ranks):
            time.sleep(POLL)
        if rank:
            logger.error("%s", _tail(folder, rank) or f"rank {rank} left with exit code {code}")
        return code
    _end(ranks, grace)
    if stopped:  # while they started, before they could exit with a code of their own
        return 128 + stopped[0]
    raise _lost(rank, code, len(ranks), _tail(folder, rank))


def _silent(
    ranks: Sequence[subprocess.Popen[bytes]],
    rank: int,
    folder: Path,
    silence: float,
    stacks: Path | None,
) -> LostError:
    """Have every rank write its stacks, keep them, end the silent rank; return the error."""
    _signal(ranks, signal.SIGUSR2)
    _signal(ranks, signal.SIGCONT)
    time.sleep(10 * POLL)
    _signal([ranks[rank]], signal.SIGKILL)
    hint = ""
    if stacks is not None:
        stacks.mkdir(parents=True, exist_ok=True)
        for number in range(len(ranks)):
            path = heartbeat.stack_file(folder, number)
            if path.exists():
                shutil.copyfile(path, stacks / path.name)
        hint = f"what every rank was doing: {stacks}"
    return LostError(
        "GL0601",
        f"showed no life for {silence:.0f} s; the other ranks were ended",
        hint=hint,
        where=f"rank {rank} of {len(ranks)}",
    )


def _cause(codes: Sequence[int | None]) -> tuple[int, int]:
    """Pick the rank whose end explains the others': a signal, then a glint error, then any."""

    def order(entry: tuple[int, int]) -> tuple[int, int]:
        rank, code = entry
        return (0 if code < 0 else 1 if code in EXPLAINED else 2), rank

    return min(((rank, code) for rank, code in enumerate(codes) if code), key=order)


def _lost(rank: int, code: int, nproc: int, tail: str) -> GlintError:
    if code < 0:
        try:
            how = f"killed by signal {-code} ({signal.Signals(-code).name})"
        except ValueError:
            how = f"killed by signal {-code}"
    else:
        how = f"left with exit code {code}"
    hint = "the machine may have run out of memory" if code == -signal.SIGKILL else tail
    return LostError(
        "GL0601", f"{how}; the other ranks were ended", hint=hint, where=f"rank {rank} of {nproc}"
    )


def _output(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.txt"


def _tail(folder: Path, rank: int, size: int = 2000) -> str:
    """Read the end of what a rank other than 0 has written."""
    path = _output(folder, rank)
    if not path.exists():
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode(errors="replace").strip()


def _signal(ranks: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(number)


def _end(ranks: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    _signal(ranks, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and any(rank.poll() is None for rank in ranks):
        time.sleep(POLL)
    _signal(ranks, signal.SIGKILL)
    for rank in ranks:
        rank.wait()
