"""Faults on purpose, by the hundred: kills, full disks, races, the order of fsyncs, signals.

    python tests/faults/prove.py [PART ...] [--quick]

PART is kills, disks, races, order, signals, truth, large, stages or crashes. It prints one JSON
line per figure, adds them to `--out FILE`, and leaves with 1 where one falls short.
`--share F` runs that share of the counts (`--quick` is 0.05), `--part i/N` the i-th of N parts of
them, from 0 on; `--seed N` is the seed of every draw. The command runs in forks of this process,
which has imported glint once; `--spawn F` of the runs start their workers as a user's run does (the
others fork them, which is quicker). `truth` and `large` are those of prove_truth.py, `stages` that
of prove_stages.py, `crashes` of prove_crashes.py. Linux; strace for system calls, a C compiler for
`stages` and `crashes`, root for the mounts, which live in a mount namespace of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import typer.main

import glint.__main__
import glint.pipelines.dataset.shard  # the forks have it already
from glint.cli import app as cli
from glint.cli import commands
from glint.jobs import workers as stage
from glint.shards import recordio

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
figures = importlib.import_module("figures")

LIMIT = 120.0  # seconds after which a run counts as hanging
LIBC = ctypes.CDLL(None, use_errno=True)
STRACE = shutil.which("strace")
WRITES = ("write", "writev", "pwrite64", "pwritev", "pwritev2", "ftruncate", "fallocate")
NAMES = ("rename", "renameat", "renameat2", "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir")
CHANGES = (*WRITES, *NAMES, "openat", "fsync", "fdatasync", "link", "linkat", "symlink")
Figure = dict[str, Any]


# What strace tells


@dataclass
class Call:
    """A system call of a log; it lasted from line `begin` to line `end`."""

    pid: int
    name: str
    text: str
    value: int
    begin: int
    end: int

    @property
    def strings(self) -> list[str]:
        """The quoted arguments: paths, and what is written as strace shows it."""
        return re.findall(r'"((?:[^"\\]|\\.)*)"', self.text)

    @property
    def file(self) -> str:
        """The path of the descriptor that is written or synced (strace -y)."""
        found = re.match(r"\d+<([^>]*)>", self.text)
        return found.group(1) if found else ""

    @property
    def creates(self) -> bool:
        return self.name == "openat" and "O_CREAT" in self.text


VALUE = r"(-?\d+\b|0x[0-9a-f]+)"


def read_log(text: str) -> list[Call]:
    """Return the calls of `strace -f -y`, in the order in which they began."""
    calls: list[Call] = []
    waiting: dict[int, Call] = {}
    for line, raw in enumerate(text.splitlines()):
        pid_text, _, rest = raw.partition(" ")
        rest = rest.lstrip()
        if not pid_text.isdigit():
            continue
        pid = int(pid_text)
        resumed = re.match(r"<\.\.\. (\w+) resumed>(.*)$", rest)
        if resumed and pid in waiting:
            call = waiting.pop(pid)
            ended = re.match(rf"(.*)\) += {VALUE}", resumed.group(2))
            call.text += ended.group(1) if ended else resumed.group(2)
            call.value, call.end = int(ended.group(2), 0) if ended else -1, line
            continue
        begun = re.match(r"(\w+)\((.*) <unfinished \.\.\.>$", rest)
        if begun:
            waiting[pid] = Call(pid, begun.group(1), begun.group(2), -1, line, line)
            calls.append(waiting[pid])
            continue
        whole = re.match(rf"(\w+)\((.*)\) += {VALUE}", rest)
        if whole:
            name, told, value = whole.groups()
            calls.append(Call(pid, name, told, int(value, 0), line, line))
    return calls


TEMPORARY = re.compile(r"\.tmp(\.|$|/)|\.partial(/|$)")
# Names that promise nothing: locks, and logs that are followed while they grow.
LOOSE = re.compile(r"(^|/)([\w.-]*\.?lock|log\.jsonl|tensorboard(/.*)?|run\.json)$")
# What these list must last before them.
SEALS = ("manifest.json", "MANIFEST.json", "current.json", "embeddings.json")


@dataclass
class Order:
    """What a log shows: renames to final names, lines of journals, and what broke the order."""

    renames: int = 0
    lines: int = 0
    broken: list[str] = field(default_factory=list)


def check_order(calls: Iterable[Call], root: str) -> Order:
    """Hold every rename, journal line and created file below `root` against the order they need.

    A file's bytes are synced before it gets its final name. The folder is synced before a journal
    line names the file, before a seal (a manifest) is put beside or above it, and before the end.
    """
    order = Order()
    dirty: dict[str, str] = {}  # path -> what was done last
    fresh: dict[str, int] = {}  # name that its folder does not hold durably -> line
    steps: list[tuple[int, int, Call]] = []
    for call in calls:
        if call.value >= 0:
            steps += [(call.begin, 0, call), (call.end, 1, call)]
    synced: dict[int, tuple[set[str], set[str]]] = {}  # at a fsync's begin: what it will settle

    def below(path: str, top: str) -> bool:
        return path == top or path.startswith(top.rstrip("/") + "/")

    def inside(path: str) -> bool:
        return below(path, root)

    def begin(call: Call) -> None:
        if call.name in ("fsync", "fdatasync"):
            at = call.file
            names = {p for p in fresh if parent(p) == at}
            synced[id(call)] = ({at} & dirty.keys(), names)
            for path in synced[id(call)][0]:
                dirty.pop(path)
        elif call.name.startswith("rename"):
            a, b = call.strings[:2]
            if not inside(b) or TEMPORARY.search(b):
                return
            order.renames += 1
            for path, what in dirty.items():
                if below(path, a):
                    order.broken.append(f"line {call.begin}: {b} is named before {what} is synced")
            for path in fresh:
                if below(path, a) and path != a:
                    order.broken.append(f"line {call.begin}: {b} is named, {path} may be lost")
            if base(b) in SEALS:
                top = parent(b)
                for path, line in fresh.items():
                    listed = below(path, top) and "/_glint/" not in path[len(top) :]
                    if listed and not loose(path) and not below(path, a):
                        order.broken.append(
                            f"line {call.begin}: {b} while {path} (line {line}) may be lost"
                        )
        elif call.name in WRITES and is_journal(call.file) and inside(call.file):
            order.lines += 1
            said = " ".join(call.strings)
            for path, line in fresh.items():
                if base(path) in said and not TEMPORARY.search(path):
                    order.broken.append(
                        f"line {call.begin}: a journal speaks of {path} (line {line}) too early"
                    )

    def end(call: Call) -> None:
        if call.name in WRITES:
            if inside(call.file):
                dirty[call.file] = f"its {call.name} (line {call.end})"
        elif call.name == "mmap":
            if "MAP_SHARED" in call.text and "PROT_WRITE" in call.text:
                found = re.search(r"\d+<([^>]*)>", call.text)
                if found and inside(found.group(1)):
                    dirty[found.group(1)] = f"its mmap (line {call.end})"
                    maps[call.pid, call.value] = found.group(1)
        elif call.name == "msync" and "MS_SYNC" in call.text:  # stores are not seen, this is
            dirty.pop(maps.get((call.pid, int(call.text.split(",")[0], 0)), ""), None)
        elif call.name in ("fsync", "fdatasync"):
            for path in synced.pop(id(call), (set(), set()))[1]:
                fresh.pop(path, None)
        elif call.name.startswith("rename"):
            a, b = call.strings[:2]
            for table in (dirty, fresh):
                moved = {p: table.pop(p) for p in list(table) if below(p, a)}  # type: ignore[attr-defined]
                for path, value in moved.items():
                    if path != a or table is dirty:
                        table[b + path[len(a) :]] = value  # type: ignore[index]
            if inside(b):
                fresh[b] = call.end
        elif call.name.startswith("mkdir") or call.creates:
            path = call.strings[0]
            if inside(path) and path != root and path not in known:
                fresh[path] = call.end
            known.add(path)
        elif call.name.startswith("unlink") or call.name == "rmdir":
            where = re.match(r"\d+<([^>]*)>, ", call.text)
            path = str(Path(where.group(1) if where else "", call.strings[0]))
            known.discard(path)
            for table in (dirty, fresh):
                table.pop(path, None)  # type: ignore[attr-defined]

    known: set[str] = set()
    maps: dict[tuple[int, int], str] = {}
    for _, late, call in sorted(steps, key=lambda step: step[:2]):
        (end if late else begin)(call)
    for path, what in dirty.items():
        if not loose(path):
            order.broken.append(f"end: {path} was not synced after {what}")
    for path, line in fresh.items():
        if not loose(path):
            order.broken.append(f"end: the name {path} (line {line}) may be lost")
    return order


def parent(path: str) -> str:
    return path.rpartition("/")[0]


def base(path: str) -> str:
    return path.rpartition("/")[2]


def is_journal(path: str) -> bool:
    return path.endswith(".jsonl") and "journal" in base(path)


def loose(path: str) -> bool:
    return bool(LOOSE.search(path) or TEMPORARY.search(path))


# The command, in forks


class Run:
    """`glint ARGS` in a fork, in a process group of its own, that waits for `go`."""

    def __init__(
        self,
        args: Sequence[object],
        place: Path,
        *,
        spawn: bool = False,
        held: bool = False,
        around: contextlib.AbstractContextManager[object] | None = None,
    ) -> None:
        self.said, self.told = place / f"said-{id(self)}", place / f"told-{id(self)}"
        self.tracer: subprocess.Popen[str] | None = None
        self._code: int | None = None
        gate, self._gate = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                os.setpgid(0, 0)
                signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a foreground job
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                LIBC.prctl(1, signal.SIGKILL)  # no run outlives the harness
                os.close(self._gate)
                for fd, path in ((1, self.said), (2, self.told)):
                    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), fd)
                sys.stdout = os.fdopen(1, "w", closefd=False)
                sys.stderr = os.fdopen(2, "w", closefd=False)
                if not spawn:
                    real = multiprocessing.get_context
                    multiprocessing.get_context = lambda how=None: real(  # type: ignore
                        "fork" if how == "spawn" else how
                    )
                if held:
                    _hold_workers()
                sys.modules["__main__"] = glint.__main__  # what a spawned worker looks at
                os.read(gate, 1)
                os.close(gate)
                with around or contextlib.nullcontext():
                    code = _command([str(arg) for arg in args])
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        with contextlib.suppress(PermissionError):
            os.setpgid(self.pid, self.pid)
        os.close(gate)
        self._watch = os.pidfd_open(self.pid)

    def trace(self, log: Path, *options: str, pid: int = 0) -> Run:
        """Have strace look on, from the next system call on."""
        assert STRACE is not None
        self.tracer = subprocess.Popen(
            [STRACE, "-o", str(log), *options, "-p", str(pid or self.pid)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.tracer.stderr is not None
        line = self.tracer.stderr.readline()
        if "attached" not in line:
            self.end()
            raise RuntimeError(f"strace: {line}")
        return self

    def go(self) -> Run:
        self.began = time.monotonic()
        os.write(self._gate, b".")
        return self

    def stopped(self) -> list[int]:
        """Return the workers that wait for `release`."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        found = []
        with contextlib.suppress(OSError):
            for pid in children.read_text().split():
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "Tt":
                        found.append(int(pid))
        return found

    def release(self) -> int | None:
        """Let held workers go, those too that replace dead ones; return what `wait` does."""
        deadline = time.monotonic() + LIMIT
        while self.wait(0.01) is None and time.monotonic() < deadline:
            for pid in self.stopped():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        return self.wait(0)

    def wait(self, seconds: float = LIMIT) -> int | None:
        """Return the exit code (negative for a signal), or None when the time is over."""
        if self._code is None:
            poll = select.poll()
            poll.register(self._watch, select.POLLIN)
            if not poll.poll(seconds * 1000):
                return None
            self.took = time.monotonic() - self.began
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    def kill(self, *, group: bool) -> None:
        """SIGKILL the process, or all of its group at once."""
        if self._code is None:
            (os.killpg if group else os.kill)(self.pid, signal.SIGKILL)

    def gone(self, seconds: float) -> float:
        """Wait until no process of the group is left; return how long, or infinity."""
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            if not self._reap():
                return time.monotonic() - begin
            time.sleep(0.001)
        return float("inf")

    def _reap(self) -> bool:
        """Collect dead workers (this process is their reaper); say whether any is alive."""
        try:
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return False
        return True

    def end(self) -> float:
        """Leave no process behind; return the seconds that workers outlived their parent."""
        if self.wait(0) is None:
            self.kill(group=True)
            self.wait()
        late = self.gone(10)
        if late == float("inf"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.gone(10)
        for fd in (self._watch, self._gate):
            os.close(fd)
        if self.tracer is not None:
            self.tracer.communicate()
        return late

    @property
    def errors(self) -> str:
        return self.told.read_text(errors="replace")

    @property
    def result(self) -> dict[str, Any]:
        lines = self.said.read_text().splitlines()
        return dict(json.loads(lines[-1])) if lines else {}


def _hold_workers() -> None:
    """Have every forked worker stop itself as it begins."""
    begin = stage._start

    def start(parent: int) -> None:
        begin(parent)
        os.kill(os.getpid(), signal.SIGSTOP)

    stage._start = start


@cache
def _built() -> Any:
    """Return the command line, which takes longer to build than a small run takes."""
    commands.register(cli.app)
    return typer.main.get_command(cli.app)


def _command(args: list[str]) -> int:
    sys.argv = ["glint", *args]
    try:
        _built()(args, prog_name="glint")
    except SystemExit as left:
        return int(left.code or 0)
    except KeyboardInterrupt:
        return 130
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    return 0


def ready() -> None:
    """Make this process the one that runs are forked from, and that reaps their workers."""
    _built()
    LIBC.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def warm(args: Sequence[object]) -> None:
    """Import here what a command imports on its way, so that the forks have it already."""
    answer, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1), os.dup2(nowhere, 2)
            before = set(sys.modules)
            _command([str(arg) for arg in args])
            with os.fdopen(told, "w") as pipe:
                pipe.write(" ".join(name for name in sys.modules if name not in before))
        finally:
            os._exit(0)
    os.close(told)
    with os.fdopen(answer) as pipe:
        names = pipe.read().split()
    os.waitpid(pid, 0)
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def source(folder: Path, records: int, different: int = 20) -> Path:
    """Write a RecordIO source of small pictures; of the first, one record in 100 is empty."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    images = []
    for _ in range(different):
        corner = chance.integers(0, 256, (4, 4, 3), np.uint8)
        pixel = np.ascontiguousarray(np.kron(corner, np.ones((28, 28, 1), np.uint8)))
        images.append(simplejpeg.encode_jpeg(pixel, quality=90))
    with recordio.Writer(folder / "train.rec", folder / "train.idx") as writer:
        for key in range(records):
            image = b"" if key % 100 == 7 and key < 1500 else images[key % different]
            writer.write(key, recordio.pack(float(key // 8), key, 0, image))
    return folder


def files(root: Path) -> dict[str, str]:
    """Return name -> SHA-256 of every file, and name/ -> "" of every empty folder."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not any(path.iterdir()):
            found[name + "/"] = ""
    return found


def finals(out: Path) -> Iterator[Path]:
    """Give every file of a dataset under a final name: all but what is in _glint, and the plan."""
    for folder in (out, out / "data"):
        for path in folder.glob("*.*"):
            if not TEMPORARY.search(path.name):
                yield path
    plan = out / "_glint" / "plan.json"
    if plan.exists():
        yield plan


@dataclass
class Job:
    """A command, where it writes, and what it writes when nobody disturbs it."""

    args: list[object]
    out: Path
    place: Path  # what the runs say
    whole: dict[str, str] = field(default_factory=dict)
    shards: int = 0

    def run(self, *, spawn: bool = False, held: bool = False, workers: int = 1) -> Run:
        args = [*self.args, "--workers", workers, "--json"]
        return Run(args, self.place, spawn=spawn, held=held)

    def fresh(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)

    def half(self) -> list[str]:
        """Return the final names that hold anything but their final bytes."""
        bad = []
        for path in finals(self.out):
            name = str(path.relative_to(self.out))
            if hashlib.sha256(path.read_bytes()).hexdigest() != self.whole.get(name):
                bad.append(f"{name} is not complete")
        return bad

    def other(self) -> list[str]:
        """Return the differences from an undisturbed output: bytes, stray and missing files."""
        now = files(self.out)
        return [
            f"{name} is {'stray' if name not in self.whole else 'missing or changed'}"
            for name in sorted(now.keys() | self.whole.keys())
            if now.get(name) != self.whole.get(name)
        ]

    def begun(self) -> int:
        """Return how many shards a run has begun, finished ones included."""
        return len({path.name[:12] for path in (self.out / "data").glob("train-*")})

    def completed(self) -> tuple[list[str], dict[str, Any]]:
        """Give the same command again; return what is wrong with its end, and its result."""
        return self._ended(self.run().go())

    def _ended(self, run: Run) -> tuple[list[str], dict[str, Any]]:
        code = run.wait()
        run.end()
        if code != 0:
            return [f"the same command ended with {code}: {run.errors[-600:]}"], {}
        return self.other(), run.result


def job(
    place: Path, records: int, per_shard: int, out: Path | None = None, *, plain: bool = True
) -> Job:
    """Make a source and learn what its dataset is, from a plain process of its own (or a fork)."""
    world = source(place / f"world-{records}", records)
    args = ["shard", world, out or place / "out", "--samples-per-shard", per_shard]
    return undisturbed(args, place, plain)


def reshaping(place: Path, per_shard: int, out: Path) -> Job:
    """Make a dataset, and learn what `glint reshard` makes of it."""
    first = job(place / "before", 200, 25)
    ended(first.run().go())
    return undisturbed(["reshard", first.out, out, "--samples-per-shard", per_shard], place, True)


def undisturbed(args: list[object], place: Path, plain: bool) -> Job:
    """Run a command that writes args[2] elsewhere, and keep what it wrote as the whole truth."""
    place.mkdir(exist_ok=True)
    oracle = place / "oracle"
    command = [*map(str, args[:2]), str(oracle), *map(str, args[3:]), "--workers", "1", "--json"]
    warm(command)
    shutil.rmtree(oracle)
    if plain:
        done = subprocess.run(
            [sys.executable, "-m", "glint", *command], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        said = json.loads(done.stdout)
    else:
        said = ended(Run(command, place).go())
    made = Job(args, Path(str(args[2])), place, files(oracle), said["shards"])
    shutil.rmtree(oracle)
    return made


def ended(run: Run) -> dict[str, Any]:
    """Wait for a run that must end well, and return what it says."""
    code = run.wait()
    run.end()
    if code != 0:
        raise RuntimeError(run.errors)
    return run.result


class Reader:
    """A process that reads all final names again and again, and counts those not complete."""

    def __init__(self, job: Job) -> None:
        answer, told = os.pipe()
        stop, self._stop = os.pipe()
        self._answer = answer
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._stop)
                os.write(told, json.dumps(looked(job, stop)).encode())
            finally:
                os._exit(0)
        os.close(told)
        os.close(stop)

    def end(self) -> dict[str, Any]:
        """Return how many files were read, and what was wrong with some."""
        os.close(self._stop)
        with os.fdopen(self._answer) as pipe:
            found = dict(json.load(pipe))
        os.waitpid(self._pid, 0)
        return found


def looked(job: Job, stop: int = -1, rounds: int | None = None) -> dict[str, Any]:
    """Read all final names so many times, or until `stop` can be read; count the bad ones."""
    known: set[tuple[int, int, int]] = set()
    read, done, bad = 0, 0, []
    while done != rounds and not (stop >= 0 and select.select([stop], [], [], 0.002)[0]):
        done += 1
        paths = []
        with contextlib.suppress(OSError):  # the folder may go while it is listed
            paths = list(finals(job.out))
        for path in paths:
            with contextlib.suppress(OSError), path.open("rb") as file:
                state = os.fstat(file.fileno())
                if (key := (state.st_ino, state.st_mtime_ns, state.st_size)) in known:
                    continue
                read += 1
                name = str(path.relative_to(job.out))
                if hashlib.sha256(file.read()).hexdigest() == job.whole.get(name):
                    known.add(key)
                else:
                    bad.append(name)
    return {"read": read, "rounds": done, "bad": len(bad), "shown": bad[:5]}


@dataclass
class Tally:
    """Counts of what happened, and the first lines about what should not have."""

    counts: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)

    def note(self, kind: str, problems: Sequence[str], about: str) -> None:
        if problems:
            self.counts[kind] += 1
            self.shown.append(f"{about}: {kind}: {'; '.join(problems[:3])}")

    def none(self, figure: str, kind: str, **more: Any) -> Figure:
        """Return the figure that this kind of problem never came."""
        shown = [line for line in self.shown if f": {kind}: " in line][:5]
        return {
            **figures.ceiling(figure, self.counts[kind], 0),
            **more,
            **({"shown": shown} if shown else {}),
        }


def hits(job: Job, log: Path, *, workers: int = 1) -> list[Call]:
    """Return the changing system calls of an undisturbed run, all processes and threads."""
    job.fresh()
    run = job.run(workers=workers)
    run.trace(log, "-f", "-y", "-s", "64", "-e", f"trace={','.join(CHANGES)}")
    if run.go().wait() != 0:
        raise RuntimeError(run.errors)
    run.end()
    return [call for call in read_log(log.read_text()) if call.name != "openat" or call.creates]


def numbered(calls: Iterable[Call], log: Path) -> Iterator[tuple[int, Call]]:
    """Give each call with its number among those of its name and process, as strace counts."""
    count: Counter[tuple[int, str]] = Counter()
    wanted = {(call.pid, call.begin) for call in calls}
    for call in read_log(log.read_text()):
        count[call.pid, call.name] += 1
        if (call.pid, call.begin) in wanted:
            yield count[call.pid, call.name], call


# Proof 1: kills


@dataclass
class Given:
    """What the command line asked for."""

    share: float
    part: tuple[int, int]
    seed: int
    spawn: float
    workers: list[int]
    place: Path
    gib: float = 4.0
    large: int = 512
    kills: int = 20
    disks: int = 10
    only: Sequence[str] = ()

    def chance(self, name: str) -> random.Random:
        return random.Random(f"{self.seed}/{self.part[0]}/{name}")

    def count(self, full: int, least: int = 2) -> int:
        return max(least, round(self.share * full / self.part[1]))

    def some(self, items: Sequence[Any], name: str, least: int = 2) -> list[Any]:
        """Return this part of the items, or that share of it, drawn; in their order."""
        mine = items[self.part[0] :: self.part[1]]
        if self.share >= 1:
            return list(mine)
        count = min(len(mine), max(least, round(self.share * len(mine))))
        return [mine[i] for i in sorted(self.chance(name).sample(range(len(mine)), count))]


def kills(given: Given) -> Iterator[Figure]:
    """SIGKILL at random instants and at every changing system call, with 1, 2 and 4 workers."""
    made = job(given.place, 200, 25)
    for workers in given.workers:
        yield from _kills(given, made, workers)


def _kills(given: Given, job: Job, workers: int) -> Iterator[Figure]:
    chance, tally, begin = given.chance(f"kills/{workers}"), Tally(), time.monotonic()
    most = slow = 0.0
    name = f"kills workers {workers}"
    job.fresh()
    reader = Reader(job)

    def after(run: Run, about: str) -> None:
        """Look at what a kill left, give the command again, and look at that."""
        nonlocal most, slow
        late = run.end()
        slow = max(slow, late)
        tally.note("orphans", [f"alive after {late} s"] if late > 2 else [], about)
        tally.note("half", job.half(), about)
        began = job.begun()
        tally.counts["runs"] += 1
        tally.counts["unfinished"] += not (job.out / "manifest.json").exists()
        again = job.run(workers=workers).go()
        wrong, result = job._ended(again)
        tally.note("other", wrong, about)
        redone = began - result.get("resumed_shards", 0)
        tally.counts[f"redone {redone}"] += 1
        most = max(most, redone)

    times = []
    for _ in range(3):
        job.fresh()
        run = job.run(workers=workers).go()
        run.wait()
        times.append(run.took)
        run.end()
    spawned: list[float] = []
    count = given.count(200)
    while tally.counts["killed"] < count and tally.counts["runs"] < 3 * count:
        job.fresh()
        spawn = workers > 1 and chance.random() < given.spawn
        if spawn and not spawned:
            run = job.run(workers=workers, spawn=True).go()
            run.wait()
            spawned.append(run.took)
            run.end()
            job.fresh()
        known = spawned if spawn else times
        delay = chance.random() * statistics.median(known[-3:])
        group = chance.random() < 0.5
        run = job.run(workers=workers, spawn=spawn).go()
        if run.wait(delay) is None:
            run.kill(group=group)
            tally.counts["killed"] += 1
            tally.counts["spawned"] += spawn
        else:  # it was quicker this time
            known.append(run.took)
        run.wait()
        after(run, f"kill after {delay:.4f} s, group {group}, spawn {spawn}")
    instants = tally.counts["runs"]
    seen: Counter[str] = Counter()
    planned: Counter[str] = Counter()
    if STRACE is not None:
        log = job.place / "calls.log"
        found = hits(job, log, workers=workers)
        plans: list[tuple[str, int, bool]] = []
        first = found[0].pid
        told = list(numbered(found, log))
        plans += sorted({(call.name, k, False) for k, call in told if call.pid == first})
        most_k: dict[str, dict[int, int]] = {}
        for k, call in told:
            if call.pid != first:
                most_k.setdefault(call.name, {})[call.pid] = k
        for call_name, by_pid in sorted(most_k.items()):  # what every worker does
            plans += [(call_name, k, True) for k in range(1, min(by_pid.values()) + 1)]
        for call, k, in_worker in given.some(plans, f"calls/{workers}"):
            job.fresh()
            run = job.run(workers=workers, held=in_worker)
            about = f"{call} {k} of {'a worker' if in_worker else 'the main process'}"
            inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={k}"]
            if in_worker:
                run.go()
                while not (ready := run.stopped()):
                    if run.wait(0.005) is not None:
                        raise RuntimeError(f"no worker was seen: {run.errors}")
                run.trace(job.place / "kill.log", *inject, pid=ready[0])
                code = run.release()
            else:
                code = run.trace(job.place / "kill.log", *inject).go().wait()
            if code is None:
                tally.note("hang", ["no end"], about)
            elif in_worker:  # its pieces are done again
                tally.note("code", [f"{code}: {run.errors[-300:]}"] if code else [], about)
                told_of = (job.place / "kill.log").read_text()
                seen["worker"] += "+++ killed by SIGKILL +++" in told_of
                planned["worker"] += 1
            else:
                wrong = code not in (0, -signal.SIGKILL)
                tally.note("code", [f"{code}: {run.errors[-300:]}"] if wrong else [], about)
                seen["main"] += code == -signal.SIGKILL
                planned["main"] += 1
            after(run, about)
    watched = reader.end()
    counts = {
        "unfinished": tally.counts["unfinished"],
        "spawned": tally.counts["spawned"],
        "seconds": round(time.monotonic() - begin),
    }
    yield {
        **figures.floor(f"{name}: kills at random instants", tally.counts["killed"], count),
        "of": instants,
        **counts,
    }
    if STRACE is not None:
        # With workers, who makes how many calls depends on who is quicker.
        of = planned["main"]
        least = of if workers == 1 else round(0.9 * of)
        yield {**figures.floor(f"{name}: kills at system calls", seen["main"], least), "of": of}
        if of := planned["worker"]:
            at = figures.floor(f"{name}: kills of a worker at its calls", seen["worker"], of // 2)
            yield {**at, "of": of}
    runs = tally.counts["runs"]
    yield tally.none(f"{name}: runs that left an incomplete file under a final name", "half")
    yield {
        **figures.ceiling(f"{name}: incomplete files a reader saw", watched["bad"], 0),
        "files_read": watched["read"],
        "shown": watched["shown"],
    }
    yield tally.none(f"{name}: reruns not byte-identical, or with stray files", "other", of=runs)
    yield {
        **figures.ceiling(f"{name}: most shards redone after a kill", most, workers),
        "redone": {k[7:]: v for k, v in sorted(tally.counts.items()) if k.startswith("redone ")},
    }
    yield {
        **tally.none(f"{name}: runs with a worker alive after 2 s", "orphans"),
        "slowest_s": round(slow, 3),
    }
    if STRACE is not None:
        yield tally.none(f"{name}: other ends than 0 or the kill", "code")
        yield tally.none(f"{name}: hangs", "hang")


# Proof 2: disks


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Callable[[str], None]]:
    """Mount a tmpfs on `folder`; yield what mounts it again with other options."""
    folder.mkdir(parents=True, exist_ok=True)

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)

    mount(options)
    try:
        yield lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def can_mount() -> bool:
    """Say whether this process may mount; from then on its mounts are its own."""
    if os.geteuid() != 0 or shutil.which("mount") is None or LIBC.unshare(0x00020000):
        return False
    return subprocess.run(["mount", "--make-rprivate", "/"], check=False).returncode == 0


def disks(given: Given) -> Iterator[Figure]:
    """File systems of 64 sizes, of few inodes, and every changing call failing once."""
    if can_mount():
        yield from _sizes(given)
    if STRACE is not None:
        yield from _failing(given)


def _refused(run: Run, code: int | None, job: Job, tally: Tally, about: str) -> None:
    """Note what a run that met a bad disk did wrong."""
    said = run.errors
    if code is None:
        tally.note("hang", ["no end"], about)
    elif code != 0:
        named = code == 6 and any(name in said for name in ("GL0901", "GL0007", "GL0903"))
        tally.note("code", [] if named else [f"exit {code}: {said[-400:]}"], about)
        tally.counts["refused"] += 1
    left = [p.name for p in job.out.rglob("*.tmp*")] if job.out.exists() else []
    tally.note("half", job.half() + [f"{name} is left" for name in left], about)


def _sizes(given: Given) -> Iterator[Figure]:
    mount = given.place / "small"
    made = job(given.place / "sizes", 200, 25, mount / "out")
    yield from _small("disks", given, made, mount, 64)
    if given.share >= 0.05:
        made = reshaping(given.place / "resharded", 60, mount / "out")
        yield from _small("disks reshard", given, made, mount, 16)


def _small(name: str, given: Given, job: Job, mount: Path, count: int) -> Iterator[Figure]:
    tally, begin = Tally(), time.monotonic()
    with mounted(mount, "size=64m"):
        ended(job.run().go())
        held = os.statvfs(mount)
        full = (held.f_blocks - held.f_bfree) * held.f_frsize
        inodes = held.f_files - held.f_ffree
    sizes = [max(4096, round(full * 1.3 * (k + 1) / count / 4096) * 4096) for k in range(count)]
    plans = [(f"size={size}", "size=64m") for size in sizes]
    plans += [
        (f"size=64m,nr_inodes={k}", "nr_inodes=1000") for k in range(2, inodes + 6, 128 // count)
    ]
    for small, large in given.some(plans, name):
        with mounted(mount, small) as again:
            run = job.run().go()
            code = run.wait()
            run.end()
            tally.counts["runs"] += 1
            _refused(run, code, job, tally, small)
            again(large)
            tally.note("other", job.completed()[0], small)
    yield {
        **figures.floor(f"{name}: small file systems", tally.counts["runs"], given.count(count)),
        "refused": tally.counts["refused"],
        "seconds": round(time.monotonic() - begin),
    }
    yield from _disk_figures(tally, f"{name}, small file systems")


def _disk_figures(tally: Tally, name: str) -> Iterator[Figure]:
    yield tally.none(f"{name}: refused without exit 6 and its name", "code")
    yield tally.none(f"{name}: left half a file", "half")
    yield tally.none(f"{name}: not byte-identical once there is room", "other")
    yield tally.none(f"{name}: hangs", "hang")


def _failing(given: Given) -> Iterator[Figure]:
    made = job(given.place / "failing", 200, 25)
    tally, begin = Tally(), time.monotonic()
    log = made.place / "calls.log"
    found = hits(made, log)
    first = found[0].pid
    plans = [
        (call.name, k, error)
        for k, call in numbered(found, log)
        if call.pid == first and str(made.out) in call.text
        for error in ("ENOSPC", "EIO")
    ]
    kinds: Counter[str] = Counter()
    for call, k, error in given.some(plans, "failing", 6):
        made.fresh()
        run = made.run()
        run.trace(
            made.place / "fail.log",
            "-e",
            f"trace={call}",
            "-e",
            f"inject={call}:error={error}:when={k}",
        )
        code = run.go().wait()
        run.end()
        about = f"{call} {k} {error}"
        if "INJECTED" not in (made.place / "fail.log").read_text():
            tally.note("missed", ["the call did not come"], about)
        kinds[call] += 1
        tally.counts["harmless"] += code == 0
        _refused(run, code, made, tally, about)
        # What is not removed, or wiped from the lock, the next run removes.
        if code == 0 and not call.startswith(("unlink", "rmdir", "ftruncate")):
            tally.note("code", ["exit 0"], about)
        tally.note("other", made.completed()[0], about)
    yield {
        **figures.floor("disks: calls that failed once", sum(kinds.values()), 6),
        "of": len(plans),
        "calls": dict(sorted(kinds.items())),
        "refused": tally.counts["refused"],
        "harmless": tally.counts["harmless"],
        "seconds": round(time.monotonic() - begin),
    }
    yield tally.none("disks, failing calls: calls that did not come", "missed")
    yield from _disk_figures(tally, "disks, failing calls")


# Proof 3: races


def races(given: Given) -> Iterator[Figure]:
    """Two to eight runs at once on one output, with the same options and with two kinds."""
    plain = given.share >= 0.05
    made = job(given.place, 200, 25, plain=plain)
    args = made.args[:-1]
    other = undisturbed([*args, 40], made.place, plain)
    made.fresh()
    run = made.run().go()
    ended(run)
    for mixed, count in ((False, given.count(100)), (True, given.count(100))):
        yield from _races(given, [made, other] if mixed else [made], count, run.took)


def _races(given: Given, jobs: list[Job], count: int, usual: float) -> Iterator[Figure]:
    name = "races of two kinds of options" if len(jobs) > 1 else "races"
    chance, tally, begin = given.chance(name), Tally(), time.monotonic()
    codes: Counter[int | None] = Counter()
    for i in range(count):
        jobs[0].fresh()
        size = chance.randint(2, 8)
        kinds = [chance.choice(jobs) for _ in range(size)]
        late = chance.choice((0.0, 0.1, 1.3)) * usual  # all at once, close together, spread out
        delays = sorted(chance.random() * late for _ in range(size))
        runs = [kind.run(workers=chance.choice((1, 1, 2))) for kind in kinds]
        start = time.monotonic()
        for run, delay in zip(runs, delays):
            time.sleep(max(0.0, start + delay - time.monotonic()))
            run.go()
        ends = [run.wait() for run in runs]
        codes.update(ends)
        for run in runs:
            run.end()
        about = f"race {i} of {size}"
        good = [(kind, run) for kind, run, end in zip(kinds, runs, ends) if end == 0]
        workers = [run for kind, run in good if run.result["resumed_shards"] < kind.shards]
        tally.note("winners", [f"{len(workers)} runs worked"] if len(workers) != 1 else [], about)
        for kind, run, end in zip(kinds, runs, ends):
            said = {0: "", 4: "GL0005", 7: "GL0006"}.get(end if end is not None else -1)
            wrong = said is None or said not in run.errors or "Traceback" in run.errors
            wrong |= end == 7 and bool(good) and kind is good[0][0]
            tally.note("code", [f"exit {end}: {run.errors[-300:]}"] if wrong else [], about)
        if good:
            tally.note("damage", good[0][0].other(), about)
            tally.note(
                "winners",
                ["two kinds won"] if len({id(kind) for kind, _ in good}) > 1 else [],
                about,
            )
    told = {str(code): n for code, n in sorted(codes.items(), key=str)}
    yield {
        **figures.floor(f"{name}: run", count, given.count(100)),
        "exit_codes": told,
        "seconds": round(time.monotonic() - begin),
    }
    yield tally.none(f"{name}: without exactly one run that worked", "winners")
    yield tally.none(f"{name}: losers without exit 4 GL0005 (or 7 GL0006)", "code")
    yield tally.none(f"{name}: outputs not byte-identical", "damage")


# Proof 4: order

RECIPE = """
[data]
path = "{data}"
batch = 16
[backbone]
name = "iresnet"
embedding = 64
options = {{ layers = [1, 1, 1, 1], widths = [8, 16, 32, 64] }}
[head]
margin = "cosface"
m = 0.4
rate = 0.5
[optim]
lr = 0.1
[schedule]
epochs = 1
[run]
device = "cpu"
threads = 1
tensorboard = false
"""


def order(given: Given) -> Iterator[Figure]:
    """The road from a source to a checkpoint and new labels, each command under strace."""
    if STRACE is None:
        return
    place = given.place
    source(place / "world", 200)
    data, run = place / "data", place / "run"
    (place / "recipe.toml").write_text(RECIPE.format(data=data))
    small = ["--samples-per-shard", 25]
    road: list[tuple[str, list[object], Path]] = [
        ("shard, one worker", ["shard", place / "world", data, *small, "--workers", 1], data),
        (
            "shard, two workers",
            ["shard", place / "world", place / "two", *small, "--workers", 2],
            place / "two",
        ),
        (
            "reshard",
            ["reshard", data, place / "coarse", "--samples-per-shard", 60, "--workers", 2],
            place / "coarse",
        ),
    ]
    if given.share < 0.05:
        road = road[1:2]
    else:
        conflicts = place / "conf"
        road += [
            ("merge", ["merge", data, place / "coarse", place / "both", *small], place / "both"),
            ("balance", ["balance", data], data),
            ("train", ["train", place / "recipe.toml", "--out", run], run),
            ("embed", ["embed", data, "--model", run, "--out", place / "emb"], place / "emb"),
            (
                "dedup-conflicts find",
                ["dedup-conflicts", "find", data, "--embeddings", place / "emb"]
                + ["--out", conflicts, "--threshold", 0.9],
                conflicts,
            ),
            ("dedup-conflicts apply", ["dedup-conflicts", "apply", conflicts], place),
            ("drop", ["drop", data, "--identity", 3, "--reason", "a proof"], data),
        ]
    for name, args, root in road:
        yield _ordered(name, [*args, "--json"], root, place / "order.log")


def _ordered(name: str, args: list[object], root: Path, log: Path) -> Figure:
    begin = time.monotonic()
    trace = ",".join((*CHANGES, "mmap", "msync"))
    tracer = [str(STRACE), "-f", "-y", "-s", "4096", "--seccomp-bpf", "-o", str(log)]
    done = subprocess.run(
        [*tracer, "-e", f"trace={trace}", sys.executable, "-m", "glint", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
    )
    told = check_order(read_log(log.read_text()), str(root))
    broken = told.broken + (
        [f"exit {done.returncode}: {done.stderr[-600:]}"] * (done.returncode != 0)
    )
    return {
        **figures.ceiling(f"order of {name}: violations", len(broken), 0),
        "renames": told.renames,
        "journal_lines": told.lines,
        "seconds": round(time.monotonic() - begin),
        **({"shown": broken[:5]} if broken else {}),
        "holds": not broken and told.renames > 0,
    }


# Proof 5: signals


def signals(given: Given) -> Iterator[Figure]:
    """SIGTERM, SIGINT and a second SIGINT while shards are written; a read-only disk."""
    made = job(given.place, *((40_000, 5_000) if given.share >= 0.05 else (4_000, 500)))
    for workers in given.workers:
        yield from _signals(given, made, workers)
    if can_mount():
        yield from _read_only(given, made)


def _signals(given: Given, job: Job, workers: int) -> Iterator[Figure]:
    chance, tally, begin = given.chance(f"signals/{workers}"), Tally(), time.monotonic()
    name = f"signals workers {workers}"
    job.fresh()
    run = job.run(workers=workers).go()
    run.wait()
    usual = run.took
    run.end()
    slow, twice = [0.0], [0.0]
    codes: Counter[int | None] = Counter()
    for i in range(given.count(24, 4)):
        job.fresh()
        number = (signal.SIGTERM, signal.SIGINT)[i % 2]
        second, group = i % 4 == 3, chance.random() < 0.5
        delay = chance.random() * usual
        run = job.run(workers=workers).go()
        send = os.killpg if group else os.kill
        if run.wait(delay) is not None:  # it was quicker this time
            usual = run.took
            run.end()
            continue
        send(run.pid, number)
        sent = time.monotonic()
        about = f"{number.name} at {delay:.3f} s, group {group}, second {second}"
        if second:
            if run.wait(0.02 + chance.random() * 0.1) is None and not run.errors:
                send(run.pid, number)
                sent = time.monotonic()
            else:  # it has ended already
                second = False
        code = run.wait()
        took = time.monotonic() - sent
        late = run.end()
        tally.note("orphans", [f"{late} s"] if late > 2 else [], about)
        codes[code] += 1
        (twice if second else slow).append(took)
        allowed = (130, 0) if second else (75, 0)  # 0: it was about to end
        if (job.out / "manifest.json").exists() or not job.out.exists():
            allowed += (-number, 130)  # before the work, and behind it, signals end at once
        tally.note("code", [] if code in allowed else [f"exit {code}: {run.errors[-300:]}"], about)
        tally.note("half", job.half(), about)
        if i % 4 == 0 or second:
            tally.note("other", job.completed()[0], about)
    told = {str(code): n for code, n in sorted(codes.items(), key=str)}
    yield {
        **figures.ceiling(f"{name}: most seconds until exit 75", max(slow), 10),
        "signals": len(slow) - 1,
        "exit_codes": told,  # 0: no shard was left when it came
        "seconds": round(time.monotonic() - begin),
    }
    yield figures.floor(f"{name}: runs that ended with 75", codes[75], 1)
    if len(twice) > 1:
        yield {
            **figures.ceiling(f"{name}: most seconds from a second SIGINT to 130", max(twice), 1),
            "signals": len(twice) - 1,
        }
    yield tally.none(f"{name}: other exit codes", "code")
    yield tally.none(f"{name}: incomplete files under final names", "half")
    yield tally.none(f"{name}: reruns not byte-identical", "other")
    yield tally.none(f"{name}: workers alive after 2 s", "orphans")


def _read_only(given: Given, job: Job) -> Iterator[Figure]:
    tally, took, opened = Tally(), [0.0], 0
    folder = given.place / "locked"
    begun = Job([*job.args], folder / "out", job.place, job.whole)
    begun.args[2] = begun.out
    for kind in ("empty", "begun", "finished"):
        with mounted(folder, "size=1g") as again:
            if kind != "empty":
                run = begun.run().go()
                run.wait()
                run.end()
            if kind == "begun":
                (begun.out / "manifest.json").unlink()
            before = files(folder)
            again("ro")
            run = begun.run()
            log = job.place / "ro.log"
            if STRACE is not None:
                run.trace(log, "-f", "-y", "-e", "trace=openat")
            code = run.go().wait()
            took.append(run.took)
            run.end()
            _refused(run, code, begun, tally, kind)
            tally.note("code", ["exit 0"] if code == 0 else [], kind)
            tally.note("other", ["it changed"] if files(folder) != before else [], kind)
            if STRACE is not None:
                opened += sum(
                    call.value >= 0 and "train.rec" in call.text
                    for call in read_log(log.read_text())
                )
    yield figures.ceiling("read-only output: most seconds until exit 6", max(took), 1)
    if STRACE is not None:
        yield figures.ceiling("read-only output: times the source was opened before", opened, 0)
    yield tally.none("read-only output: without exit 6 and its name", "code")
    yield tally.none("read-only output: changed", "other")


def part_of(module: str, name: str) -> Callable[[Given], Iterator[Figure]]:
    """Return a part of another file, which imports this one."""

    def part(given: Given) -> Iterator[Figure]:
        sys.modules.setdefault("prove", sys.modules[__name__])
        sys.path.insert(0, str(Path(__file__).parent))
        yield from getattr(importlib.import_module(module), name)(given)

    return part


ON_DISK = ("truth", "large")
SECTIONS: dict[str, Callable[[Given], Iterator[Figure]]] = {
    "kills": kills,
    "disks": disks,
    "races": races,
    "order": order,
    "signals": signals,
    **{name: part_of("prove_truth", name) for name in ON_DISK},
    "stages": part_of("prove_stages", "stages"),
    "crashes": part_of("prove_crashes", "crashes"),
}


def main() -> None:
    """Read the options, prove, print one JSON line per figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], default=[])
    parser.add_argument("--quick", action="store_true", help="a twentieth of the counts")
    parser.add_argument("--share", type=float, default=1.0, help="this share of the counts")
    parser.add_argument("--part", default="0/1", help="i/N: this part of the runs, from 0/N on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spawn", type=float, default=0.1, help="runs with spawned workers")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--place", type=Path, help="where to work (default: memory)")
    parser.add_argument("--gib", type=float, default=4.0, help="truth: GiB to write, at least")
    parser.add_argument("--large", type=int, default=512, help="large: MiB of images")
    parser.add_argument("--kills", type=int, default=20, help="large: workers that are killed")
    parser.add_argument("--disks", type=int, default=10, help="large: disks that are filled")
    parser.add_argument("--only", nargs="+", default=[], help="stages, crashes: these stages")
    parser.add_argument("--out", type=Path, help="add the lines to this file too")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    ready()
    memory = Path("/dev/shm")
    machine = figures.machine("numpy", "pyarrow")
    good = True
    for name in given.sections or SECTIONS:
        base = given.place or (memory if memory.is_dir() and name not in ON_DISK else None)
        with tempfile.TemporaryDirectory(dir=base, prefix="glint-prove-") as place:
            share = min(given.share, 0.05) if given.quick else given.share
            part = tuple(map(int, given.part.split("/")))
            made = Given(
                share, (part[0], part[1]), given.seed, given.spawn, given.workers, Path(place),
                given.gib, given.large, given.kills, given.disks, given.only,
            )  # fmt: skip
            for figure in SECTIONS[name](made):
                line = json.dumps(
                    {**figure, "share": share, "part": given.part, "seed": given.seed, **machine}
                )
                print(line, flush=True)
                if given.out:
                    with given.out.open("a") as file:
                        file.write(line + "\n")
                good &= figure["holds"] is not False
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
