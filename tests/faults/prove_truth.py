"""Datasets at length, held against their sources: the parts `truth` and `large` of prove.py.

    python tests/faults/prove.py truth [--gib 4] [--seed N] [--place FOLDER]
    python tests/faults/prove.py large [--large 512] [--kills 20] [--disks 10]

`truth` takes random chains of commands over every kind of source. `large` kills, fills disks and
fails calls under a set of many buffers. tarfile and hashlib judge (tests/truth): never glint. Work
is done in --place, which should lie on a disk (default: the folder for temporary files), and a
quarter of the chains in memory.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import prove
from prove import Figure, Given, Job, Run, Tally, can_mount, figures, mounted, numbered

sys.path.insert(0, str(Path(__file__).parents[1] / "truth"))
import chains
import oracle
import sources

MIB, GIB = 1 << 20, 1 << 30
WAIT = 900.0  # seconds that a run may take


def seconds(begin: float) -> int:
    return round(time.monotonic() - begin)


def ended(run: Run) -> None:
    """Wait for a run that must end well."""
    code = run.wait(WAIT)
    run.end()
    if code != 0:
        raise RuntimeError(f"exit {code}: {run.errors}")


def system(place: Path) -> str:
    """Name the kind of file system."""
    told = ["stat", "-f", "-c", "%T", str(place)]
    return subprocess.run(told, capture_output=True, text=True, check=True).stdout.strip()


@contextlib.contextmanager
def memory(place: Path, size: int) -> Iterator[Path]:
    """Give a folder in memory: a mount of its own where that is allowed."""
    if can_mount():
        with mounted(place / "memory", f"size={size}"):
            yield place / "memory"
    else:
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="glint-prove-") as folder:
            yield Path(folder)


# Chains


def truth(given: Given) -> Iterator[Figure]:
    """Random chains of commands, until enough was written and every pair of kind and form came."""
    os.environ["GLINT_CACHE"] = str(given.place / "cache")
    least = given.gib * given.share * GIB / given.part[1]
    pairs = [(kind, form) for kind in sources.MAKERS for form in oracle.FORMS]
    given.chance("pairs").shuffle(pairs)
    tally, begin, written, done = Tally(), time.monotonic(), 0, 0
    seen: Counter[str] = Counter()
    with memory(given.place, 6 * GIB) as fast:
        while written < least or (given.share >= 1 and done < len(pairs)):
            kind, form = pairs[done % len(pairs)]
            where = fast if done % 4 == 3 else given.place
            with tempfile.TemporaryDirectory(dir=where, prefix="chain-") as place:
                chance = given.chance(f"chain {done}")
                written += _chain(Path(place), kind, form, chance, tally)
            seen.update((kind, form, system(where)))
            done += 1
    yield {
        **figures.floor("truth: GiB of shards written and read again", written / GIB, least / GIB),
        "chains": done,
        "commands": tally.counts["commands"],
        "of": dict(sorted(seen.items())),
        "seconds": seconds(begin),
    }
    yield tally.none("truth: chains that lost, changed or added anything", "wrong")
    yield tally.none("truth: chains with a command that failed", "failed")


def _chain(place: Path, kind: str, form: str, chance: random.Random, tally: Tally) -> int:
    """Take a source through every step in random order; return the bytes of shards it wrote."""

    def glint(*args: object) -> None:
        tally.counts["commands"] += 1
        run = Run([*args, "--json"], place).go()
        code = run.wait(WAIT)
        errors = run.errors
        run.end()
        run.said.unlink()
        run.told.unlink()
        if code != 0:
            raise RuntimeError(f"{args[0]} ended with {code}: {errors[-600:]}")

    images = sources.mixed(chance.randrange(18, 40) * MIB, chance.randrange(1 << 30))
    samples = sources.usable(images)
    source = sources.MAKERS[kind](place / "source", images)
    chain = chains.Chain(glint, place, chance.randrange(1 << 30), (1, 2))
    steps = chance.sample(chains.STEPS, len(chains.STEPS))
    way = ["shard"]
    try:
        data = first = chain.shard(
            source, form, samples, chance.choice(("", "", "tasks", "upload"))
        )
        if oracle.quarantined(first.root) != sources.unusable(images):
            raise AssertionError("other records are quarantined than are unusable")
        for step in steps:
            way.append(step)
            data = chain.step(step, data, first)
    except AssertionError as error:
        tally.note("wrong", [str(error)], f"{kind} {form} {' '.join(way)}")
    except RuntimeError as error:
        tally.note("failed", [str(error)], f"{kind} {form} {' '.join(way)}")
    return chain.written


# A set of many buffers


@dataclass
class Large:
    """A command whose outcome is known, and what it must hold."""

    name: str
    job: Job
    samples: Counter[sources.Sample]
    took: float = 0.0  # seconds, undisturbed
    size: int = 0  # bytes of all its files

    def wrong(self) -> list[str]:
        """Return what is wrong with a finished output, stray files included."""
        try:
            chains.Data(self.job.out, "both", self.samples).held()
        except (AssertionError, OSError) as error:
            return [str(error)]
        return []

    def early(self) -> list[str]:
        """Return the shards under their final names that are not whole, or hold what none has."""
        known, bad = {image for image, _ in self.samples}, []
        for path in sorted((self.job.out / "data").glob("train-??????.tar")):
            try:
                for name, data, _ in oracle.members(path):
                    if name.endswith(".jpg") and sources.sha(data) not in known:
                        bad.append(f"{path.name}: {name} is of no source")
            except (ValueError, tarfile.TarError) as error:
                bad.append(f"{path.name}: {error}")
        return bad

    def run(self, workers: int = 2) -> Run:
        return self.job.run(workers=workers)

    def settle(self, run: Run, tally: Tally, about: str) -> int | None:
        """Wait for a disturbed run and look at what it left; return its exit code."""
        code = run.wait(WAIT)
        errors = run.errors
        run.end()
        tally.counts["runs"] += 1
        about = f"{self.name}, {about}"
        if code is None:
            tally.note("hang", ["no end"], about)
        elif code == 0:
            tally.counts["exit 0"] += 1
            tally.note("wrong", self.wrong(), f"{about}: exit 0")
            return code
        elif "Traceback" in errors:
            tally.note("code", [f"exit {code}: {errors[-400:]}"], about)
        tally.note("early", self.early(), about)
        return code

    def again(self, tally: Tally, about: str) -> None:
        """Give the command again, undisturbed; its output must be right."""
        run = self.run().go()
        code, errors = run.wait(WAIT), run.errors
        run.end()
        wrong = self.wrong() if code == 0 else [f"exit {code}: {errors[-400:]}"]
        tally.note("wrong", wrong, f"{self.name}, {about}: the same command again")


def large(given: Given) -> Iterator[Figure]:
    """Kill workers and whole commands, fill disks and fail calls of shard, reshard and merge."""
    os.environ["GLINT_CACHE"] = str(given.place / "cache")
    size = max(64, round(given.large * given.share)) * MIB
    jobs = list(_jobs(given.place, size))
    yield {**figures.told("large: MiB of images", size / MIB), "on": system(given.place)}
    yield from _kills(given, jobs, workers=True)
    yield from _kills(given, jobs, workers=False)
    if can_mount():
        yield from _disks(given, jobs)
    if prove.STRACE is not None:
        yield from _calls(given, jobs[0])
        yield from _lies(given, jobs[0])


def _jobs(place: Path, size: int) -> Iterator[Large]:
    """Give shard, reshard and merge, with an undisturbed run of each, that was right."""
    parts = size // (64 * MIB)
    samples: Counter[sources.Sample] = Counter()

    def images() -> Iterator[sources.Image]:
        for part in range(parts):
            for image in sources.mixed(64 * MIB, part, small=3000):
                if part < 4 or len(image[1]) >= sources.SMALLEST:
                    samples.update(sources.usable([image]))
                    yield image

    source = sources.recordio(place / "source", images())
    few = sources.mixed(20 * MIB, parts)
    sources.recordio(place / "few", few)
    base, more, out = place / "base", place / "more", place / "out"
    for made, name in ((base, source), (more, place / "few")):
        ended(Run(["shard", name, made, "--workers", 2, "--json"], place).go())
    both = samples + sources.usable(few)
    per = ["--samples-per-shard", 900]
    for name, args, expected in (
        ("shard", ["shard", source, out, *per], samples),
        ("reshard", ["reshard", base, out, *per], samples),
        ("merge", ["merge", base, more, out, *per], both),
    ):
        prove.warm([*args, "--workers", 1, "--json"])
        shutil.rmtree(out)
        made = Large(name, Job(list(args), out, place), expected)
        run = made.run().go()
        ended(run)
        if wrong := made.wrong():
            raise RuntimeError(f"{name}, undisturbed: {wrong}")
        made.took = run.took
        made.size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        yield made


def _figures(name: str, tally: Tally, least: int, begin: float) -> Iterator[Figure]:
    yield {
        **figures.floor(f"large, {name}: runs", tally.counts["runs"], least),
        **{kind: tally.counts[kind] for kind in ("killed", "exit 0") if tally.counts[kind]},
        "seconds": seconds(begin),
    }
    yield tally.none(f"large, {name}: outputs with a wrong byte or a stray file", "wrong")
    yield tally.none(f"large, {name}: unfinished outputs with a shard that is not whole", "early")
    yield tally.none(f"large, {name}: hangs", "hang")
    yield tally.none(f"large, {name}: tracebacks", "code")


def _workers(run: Run) -> list[int]:
    """Return the living worker processes of a run."""
    found = []
    with contextlib.suppress(OSError):  # they come and go
        for pid in figures.children(run.pid):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX":
                found.append(pid)
    return found


def _kills(given: Given, jobs: list[Large], *, workers: bool) -> Iterator[Figure]:
    """SIGKILL one worker, or the whole command, at random instants."""
    name = "workers killed" if workers else "commands killed"
    count = given.count(given.kills if workers else -(-given.kills // 4), 1)
    chance, tally, begin = given.chance(name), Tally(), time.monotonic()
    for i in range(count):
        one = jobs[i % len(jobs)]
        for _ in range(20):  # until there is somebody to kill at the instant
            one.job.fresh()
            run, delay = one.run().go(), one.took * chance.random()
            ran = run.wait(delay) is None
            found = _workers(run) if ran and workers else []
            if found or (ran and not workers):
                break
            run.end()
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(found), signal.SIGKILL)
                tally.counts["killed"] += 1
        elif ran:
            run.kill(group=True)
        about = f"killed after {delay:.3f} s"
        code = one.settle(run, tally, about)
        tally.counts["killed"] += code == -signal.SIGKILL  # it may have ended just before
        if code != 0:
            one.again(tally, about)
    yield figures.floor(f"large, {name}", tally.counts["killed"], -(-count // 2))
    yield from _figures(name, tally, count, begin)


def _disks(given: Given, jobs: list[Large]) -> Iterator[Figure]:
    """Fill a file system that is too small by a random amount; make it larger."""
    chance, tally, begin = given.chance("large disks"), Tally(), time.monotonic()
    count = given.count(given.disks, 1)
    for i in range(count):
        one = jobs[i % len(jobs)]
        size = round(one.size * chance.uniform(0.05, 0.98))
        mount = given.place / "small"
        with mounted(mount, f"size={size}") as mount_again:
            out = mount / "out"
            args = [out if arg == one.job.out else arg for arg in one.job.args]
            small = Large(one.name, Job(args, out, one.job.place), one.samples)
            about = f"a disk of {size} of {one.size} bytes"
            code = small.settle(small.run().go(), tally, about)
            tally.counts["refused"] += code == 6
            mount_again(f"size={2 * one.size}")
            small.again(tally, about)
    yield figures.floor("large, disks filled: runs refused with exit 6", tally.counts["refused"], 1)
    yield from _figures("disks filled", tally, count, begin)


def _plans(one: Large, log: Path) -> list[tuple[str, int, str]]:
    """Return name, number and text of the calls that change shards, made by the main thread."""
    found = prove.hits(one.job, log)
    first = found[0].pid
    return [
        (call.name, k, call.text)
        for k, call in numbered(found, log)
        if call.pid == first and "/data/train-" in call.text
    ]


def _inject(given: Given, one: Large, name: str, plans: list[tuple[str, str]]) -> Iterator[Figure]:
    tally, begin = Tally(), time.monotonic()
    log = one.job.place / "inject.log"
    for call, what in plans:
        one.job.fresh()
        run = one.run(workers=1).trace(log, "-e", f"trace={call}", "-e", f"inject={call}:{what}")
        if one.settle(run.go(), tally, f"{call} {what}") != 0:
            one.again(tally, f"{call} {what}")
        tally.note("missed", [] if "INJECTED" in log.read_text() else ["no call"], f"{call} {what}")
    yield tally.none(f"large, {name}: calls that did not come", "missed")
    yield from _figures(name, tally, max(1, len(plans)), begin)


def _calls(given: Given, one: Large) -> Iterator[Figure]:
    """Have calls on shards fail once: no space, an error of the device, an interruption."""
    chance = given.chance("large calls")
    found = _plans(one, given.place / "calls.log")
    errors = [(call, k, error) for call, k, _ in found for error in ("ENOSPC", "EIO", "EINTR")]
    by_name: dict[str, list[tuple[str, int, str]]] = {}
    for plan in errors:
        by_name.setdefault(plan[0], []).append(plan)
    some = [chance.choice(by_name[call]) for call in sorted(by_name)]
    some += chance.sample(errors, min(len(errors), 6))
    some = some[: given.count(len(some), 2)]
    plans = [(call, f"error={error}:when={k}") for call, k, error in some]
    yield from _inject(given, one, "calls that failed", plans)


def _lies(given: Given, one: Large) -> Iterator[Figure]:
    """Have writes to a shard do nothing and say that they did: reading back must see it."""
    chance = given.chance("large lies")
    found = [plan for plan in _plans(one, given.place / "calls.log") if plan[0] == "write"]
    plans = []
    for call, k, text in chance.sample(found, min(len(found), given.count(4, 1))):
        size = int(text.rsplit(",", 1)[1])
        plans.append((call, f"retval={size}:when={k}"))
    yield from _inject(given, one, "writes that lied", plans)
