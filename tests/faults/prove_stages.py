"""Every stage under fire: the part `stages` of prove.py.

    python tests/faults/prove.py stages [--quick] [--only embed drop ...]

Each stage is killed before every call that changes a file, and each such call fails once with
ENOSPC and once with EIO; then the same command is given again. It has to end with the bytes of an
undisturbed run (SHA-256 of every file and every name of the folder it works in), or refuse by name.
Each is raced against itself, too. Left out of the comparison: what `LOOSE` names and says why.

The calls are seen by calls.c, preloaded, in all threads. Not seen: stores into mapped files, and
the rename with which the safetensors library names a file, made past the C library.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import prove
from prove import Figure, Given, Run, figures

HERE = Path(__file__).parent
LIMIT = 60.0  # seconds that a run may take
CLOCK = 1_800_000_000  # what the wall clock says meanwhile
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
EXITS = {2, 3, 4, 5, 6, 7, 75}  # docs/errors.md
LOOSE = re.compile(
    r"(^|/)lock$"  # who held it, wiped or not
    r"|run/log\.jsonl$|run/report\.html$"  # how long steps took
)
RECIPE = """
[data]
path = "{data}"
batch = 8
[backbone]
name = "iresnet"
embedding = 16
options = {{ layers = [1, 1, 1, 1], widths = [4, 4, 8, 8], stem_stride = 2 }}
[head]
margin = "cosface"
m = 0.4
[optim]
lr = 0.05
[schedule]
epochs = 1
max_steps = 4
[run]
device = "cpu"
threads = 1
tensorboard = false
save_every = 2
keep = 1
"""


def compiled(place: Path) -> Path | None:
    """Build calls.c; None where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    made = place / "calls.so"
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(made), str(HERE / "calls.c"), "-ldl"]
    subprocess.run(command, check=True)
    return made


def preloaded(script: Path, given: Given, only: Sequence[str]) -> Iterator[Figure]:
    """Run a script of this folder with calls.c before it; give the figures it prints."""
    library = compiled(given.place)
    if library is None:
        return
    told = json.dumps({"place": str(given.place), "share": given.share, "only": [*only],
                       "part": given.part, "seed": given.seed})  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, str(script), told],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1",
             "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            yield json.loads(line)
    if child.wait():
        raise RuntimeError(f"{script.name} left with {child.returncode}")


def stages(given: Given) -> Iterator[Figure]:
    """Kills, failing calls and races of every stage."""
    yield from preloaded(Path(__file__), given, given.only)


class Calls(contextlib.AbstractContextManager[None]):
    """In a fork: have calls.c look on, kill, or fail one call; write how many there were."""

    def __init__(self, folder: Path, at: int = 0, error: int = 0, log: Path | None = None) -> None:
        self.folder, self.at, self.error, self.log = folder, at, error, log

    def __enter__(self) -> None:
        self.library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        log = None if self.log is None else os.fsencode(self.log)
        long = ctypes.c_long
        self.library.calls_arm(
            os.fsencode(self.folder), long(self.at), self.error, log, long(CLOCK)
        )

    def __exit__(self, *_: object) -> None:
        count = self.library.calls_count()
        self.folder.with_name("count").write_text(str(count))


@dataclass
class Stage:
    """A command, the state it starts from, and what it makes of it undisturbed."""

    name: str
    args: list[str]
    state: Path
    work: Path
    files: dict[str, str] = field(default_factory=dict)
    calls: int = 0

    def fresh(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.state, self.work)

    def run(self, at: int = 0, error: int = 0, log: Path | None = None) -> Run:
        return Run(self.args, self.work.parent, around=Calls(self.work, at, error, log))

    def ended(self, run: Run) -> tuple[int | None, str]:
        code = run.wait(LIMIT)
        run.end()
        said = run.errors
        run.said.unlink()
        run.told.unlink()
        return code, said

    def other(self) -> list[str]:
        """Return the differences from an undisturbed run: bytes, stray and missing files."""
        now = held(self.work)
        return [
            f"{name} is {'stray' if name not in self.files else 'missing or changed'}"
            for name in sorted(now.keys() | self.files.keys())
            if now.get(name) != self.files.get(name)
        ]

    def verdict(self, code: int | None, said: str, lax: bool = False) -> tuple[str, str]:
        """Judge an end: "same", "refused" with its code, or "wrong" with the reason.

        lax: what a removal that failed left is for the next run to remove.
        """
        if code is None:
            return "wrong", "no end"
        if code == 0:
            other = self.other()
            if lax and other and all(one.endswith("is stray") for one in other):
                return "left over", ""
            return ("wrong", "; ".join(other[:4])) if other else ("same", "")
        found = re.search(r"error (GL\d{4})", said)
        if code in EXITS and found and "Traceback" not in said:
            return "refused", found[1] + ("" if self.other() else ", done already")
        return "wrong", f"exit {code}: {said[-300:]}"


def held(work: Path) -> dict[str, str]:
    return {name: mark for name, mark in prove.files(work).items() if not LOOSE.search(name)}


def road(place: Path, only: Sequence[str]) -> Iterator[Stage]:
    """Take every stage once, undisturbed; give each with the state it started from."""
    work, world = place / "work", place / "world"
    data, run, emb, conf, ids = (work / name for name in ("data", "run", "emb", "conf", "ids"))
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    sizes = {"identities": 8, "images": 4, "conflicts": 2, "lookalikes": 0, "unseen": 20}
    sizes |= {"pairs": 0, "seed": 1}
    ended(["synth", world, *(f"--{name}={size}" for name, size in sizes.items())], place)
    (place / "recipe.toml").write_text(RECIPE.format(data=data))
    small = ["--samples-per-shard", "20", "--workers", "1"]
    found = [emb, "--threshold", "0.1"]
    steps: list[tuple[str, list[Path], list[object]]] = [
        ("shard", [], ["shard", world, data, *small]),
        ("train", [data], ["train", place / "recipe.toml", "--out", run]),
        ("export", [run], ["export", run, work / "net.onnx", "--crops", 2]),
        ("import", [], ["import", place / "net.pt", work / "net", "--backbone", "mobilefacenet",
                        "--embedding", 32]),
        ("embed", [data, run], ["embed", data, "--model", run, "--out", emb, "--batch", 16]),
        ("find", [data, emb], ["dedup-conflicts", "find", data, "--out", conf, "--emb", *found]),
        ("apply", [data, conf], ["dedup-conflicts", "apply", conf]),
        ("undo", [data, conf], ["dedup-conflicts", "undo", conf]),
        ("cluster", [emb], ["cluster", "find", emb, "--out", ids]),
        ("cluster apply", [data, ids], ["cluster", "apply", ids, data]),
        ("cluster undo", [data, ids], ["cluster", "undo", ids, data]),
        ("coreset", [data, emb], ["coreset", data, "--emb", emb, "--out", work / "core",
                                "--keep-ratio", 0.7]),
        ("balance", [data], ["balance", data]),
        ("drop", [data], ["drop", data, "--id", "label:3", "--reason", "asked"]),
        ("drop --key", [data], ["drop", data, "--key=0", "--key=9", "--key=18", "--reason",
                                "asked"]),
        ("reshard", [data], ["reshard", data, work / "re", "--samples-per-shard", 16,
                             "--workers", 1]),
        ("drop --erase", [data], ["drop", data, "--id", "label:5", "--reason", "asked", "--erase",
                                  work / "less", "--workers", 1]),
        ("merge", [data, work / "less"], ["merge", data, work / "less", work / "both", *small]),
        ("card", [data], ["card", data, "--license", "MIT", "--consent", "by letter", "--contact",
                          "a@b.example"]),
    ]  # fmt: skip
    made = {data: "shard", run: "train", emb: "embed", conf: "find", ids: "cluster",
            work / "less": "drop --erase"}  # fmt: skip
    wanted = {*only} or {name for name, *_ in steps}
    taken = {*wanted}
    for name, needs, _ in reversed(steps):
        if name in taken:
            taken |= {made[path] for path in needs}
            taken |= {name.replace("undo", "apply")}
    if "import" in taken:
        _weights(place / "net.pt")
    for name, needs, args in steps:
        if name not in taken:
            continue
        stage = Stage(name, [*map(str, args), "--json"], place / "states" / name, work)
        stage.state.mkdir(parents=True)
        for path in needs:
            shutil.copytree(path, stage.state / path.name)
        if name in wanted:
            stage.fresh()
            prove.warm(stage.args)
            yield stage
        _go_on(stage, place)


def _go_on(stage: Stage, place: Path) -> None:
    """Make the state behind a stage, with all that was there before."""
    behind = place / "behind"
    stage.fresh()
    if behind.exists():
        shutil.rmtree(stage.work)
        behind.rename(stage.work)
    ended(stage.args, place)
    shutil.copytree(stage.work, behind)


def ended(args: Sequence[object], place: Path) -> None:
    """Run a command that must end well."""
    run = Run(args, place, around=Calls(place / "work")).go()
    code = run.wait(LIMIT)
    run.end()
    if code != 0:
        raise RuntimeError(f"{args[0]}: exit {code}: {run.errors}")


def _weights(path: Path) -> None:
    """Save a net as others publish theirs, in a process of its own."""
    code = (
        "import sys, torch\nfrom glint.nn.backbones import create\ntorch.manual_seed(3)\n"
        "torch.save(create('mobilefacenet', 32).state_dict(), sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def undisturbed(stage: Stage) -> None:
    """Learn twice what a stage makes: the files that it does not make alike would show."""
    made = []
    for _ in range(2):
        stage.fresh()
        code, said = stage.ended(stage.run().go())
        if code != 0:
            raise RuntimeError(f"{stage.name}: exit {code}: {said}")
        made.append(held(stage.work))
    stage.files, stage.calls = made[0], int((stage.work.with_name("count")).read_text())
    odd = {
        name for name in made[0].keys() | made[1].keys() if made[0].get(name) != made[1].get(name)
    }
    if odd:
        raise RuntimeError(f"{stage.name} makes {sorted(odd)} otherwise each time")


class Counts:
    """What became of the runs of one kind, and the first that went wrong."""

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()
        self.shown: list[str] = []

    def note(self, about: str, verdict: tuple[str, str]) -> None:
        kind, why = verdict
        self.ends[f"refused {why}" if kind == "refused" else kind] += 1
        if kind == "wrong":
            self.shown.append(f"{about}: {why}")

    def figure(self, name: str, begin: float, **more: object) -> Figure:
        ends = {kind: n for kind, n in sorted(self.ends.items()) if kind != "wrong"}
        shown = {"shown": self.shown[:8]} if self.shown else {}
        wrong = figures.ceiling(f"stages, {name}: wrong", self.ends["wrong"], 0)
        return {**wrong, **more, "ends": ends, **shown, "seconds": round(time.monotonic() - begin)}


def spread(stage: Stage, share: float, part: Sequence[int]) -> list[int]:
    """Return the calls to disturb: all, or an evenly spaced share of them, at least six."""
    count = stage.calls if share >= 1 else min(stage.calls, max(6, round(share * stage.calls)))
    some = [1 + i * stage.calls // count for i in range(count)]
    return some[part[0] :: part[1]]


def under_fire(stage: Stage, share: float, part: Sequence[int]) -> Iterator[Figure]:
    """Disturb one stage in every way."""
    undisturbed(stage)
    points = spread(stage, share, part)
    of = {"points": len(points), "of": stage.calls}
    begin, again, killed = time.monotonic(), Counts(), 0
    for at in points:
        stage.fresh()
        code, said = stage.ended(stage.run(at).go())
        if code == -signal.SIGKILL:
            killed += 1
        else:  # threads made fewer calls this time
            again.note(f"not killed at {at}", stage.verdict(code, said))
        again.note(f"killed at {at}", stage.verdict(*stage.ended(stage.run().go())))
    yield again.figure(f"{stage.name}, killed", begin, **of, killed=killed)
    begin, first, again = time.monotonic(), Counts(), Counts()
    for name, error in ERRORS.items():
        for at in points:
            stage.fresh()
            end = stage.ended(stage.run(at, error).go())
            first.note(f"{name} at {at}", stage.verdict(*end, lax=True))
            again.note(f"{name} at {at}", stage.verdict(*stage.ended(stage.run().go())))
    yield first.figure(f"{stage.name}, a call fails", begin, **of)
    yield again.figure(f"{stage.name}, after a call failed", begin, **of)
    begin, rounds, both, again = time.monotonic(), max(3, round(20 * share)), Counts(), Counts()
    for number in range(rounds):
        stage.fresh()
        runs = [stage.run() for _ in range(2)]
        for run in runs:
            run.go()
            time.sleep(0.01 * (number % 5))
        for run in runs:
            code, said = stage.ended(run)
            if code == 0:  # the other may be at it still
                both.note(f"race {number}", ("same", ""))
            else:
                both.note(f"race {number}", stage.verdict(code, said))
        again.note(f"after race {number}", stage.verdict(*stage.ended(stage.run().go())))
        other = stage.other()
        again.note(
            f"after race {number}", ("wrong", "; ".join(other[:4])) if other else ("same", "")
        )
    yield both.figure(f"{stage.name}, raced against itself", begin, rounds=rounds)
    yield again.figure(f"{stage.name}, after the race", begin, rounds=rounds)


def main() -> None:
    given = json.loads(sys.argv[1])
    place = Path(given["place"])
    prove.ready()
    for stage in road(place, given["only"]):
        for figure in under_fire(stage, given["share"], given["part"]):
            print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
