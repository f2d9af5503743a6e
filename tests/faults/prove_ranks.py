"""Ranks killed at random: the run starts itself again and ends as if nothing had happened.

    python tests/faults/prove_ranks.py --kills 50 --ranks 4 [--seed 0] [--place DIR] [--out FILE]

trains a small net on a synthetic world, uninterrupted and with ranks killed at random instants:
anywhere in a step, inside a collective (the others of it wait for a rank that is held), inside a
save (its folder is there and not yet whole) and while ranks start. Prints one JSON line a figure
and leaves with 1 where one falls short. With --place, a call that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECIPE = """
[data]
path = "{data}"
batch = 8
[backbone]
name = "iresnet"
embedding = 32
options = {{ layers = [1, 1, 1, 1], widths = [8, 8, 16, 16] }}
[head]
margin = "cosface"
rate = 0.5
rule = "lazy_decay"
[optim]
lr = 0.1
[schedule]
epochs = 1000
max_steps = {steps}
[run]
device = "cpu"
threads = 1
log_every = 1
save_every = {every}
tensorboard = false
ema = 0.9
"""
KINDS = {"anywhere": 0.4, "collective": 0.25, "save": 0.25, "start": 0.1}  # how often which
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def glint(*args: object) -> None:
    """Run a command to its end."""
    subprocess.run(
        [sys.executable, "-m", "glint", *map(str, args)], check=True, env=ENV, capture_output=True
    )


def command(recipe: Path, out: Path, ranks: int) -> list[str]:
    """Give the command of a run."""
    return [
        sys.executable, "-m", "glint", "train", str(recipe), "--nproc", str(ranks),
        "--out", str(out), "--max-restarts", "10",
    ]  # fmt: skip


def children(pid: int) -> list[int]:
    """Give the processes that `pid` has started."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def last_step(out: Path) -> int:
    """Give the last step that the log tells."""
    try:
        lines = (out / "log.jsonl").read_text().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except ValueError:
            continue
    return 0


class Killer:
    """Kills ranks of a run until there have been enough, and writes down every kill."""

    def __init__(self, process: subprocess.Popen[str], out: Path, kinds: dict[str, float]) -> None:
        self.process, self.out, self.kinds = process, out, kinds
        self.told: list[float] = []
        self.said: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if "starting again" in line:
                self.told.append(time.monotonic())

    def until(self, true: Callable[[], object], seconds: float) -> None:
        """Wait for something, for the end of the run or for so long."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline and not true():
            time.sleep(0.002)

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any((self.out / "checkpoints").glob(".step-*.partial"))

    def kill(self, chance: random.Random) -> dict[str, Any] | None:
        """Kill one rank; give what was done, None where there was none to kill."""
        kind = chance.choices(list(self.kinds), list(self.kinds.values()))[0]
        if kind == "start":
            time.sleep(0.5 + 5 * chance.random())
        else:
            goal = last_step(self.out) + 1 + chance.randrange(4)
            self.until(lambda: last_step(self.out) >= goal, 120)
            time.sleep(0.2 * chance.random())
        if kind == "save":
            self.until(self.saving, 60)
            time.sleep(0.01 * chance.random())
        ranks = children(self.process.pid) if self.process.poll() is None else []
        if len(ranks) < 2:
            return None
        victim, held = chance.sample(ranks, 2)
        seen = len(self.told)
        try:
            if kind == "collective":
                os.kill(held, signal.SIGSTOP)
                time.sleep(0.3)  # by now the others wait for it
            os.kill(victim, signal.SIGKILL)
            at = time.monotonic()
            inside = self.saving()
            if kind == "collective":
                os.kill(held, signal.SIGCONT)
        except ProcessLookupError:
            return None
        self.until(lambda: len(self.told) > seen, 60)
        took = self.told[seen] - at if len(self.told) > seen else None
        return {"kind": kind, "inside a save": inside, "step": last_step(self.out), "seen": took}


def disturbed(recipe: Path, out: Path, ranks: int, wanted: int, kinds: dict[str, float],
              seed: int) -> list[dict[str, Any]]:  # fmt: skip
    """Run to the end while ranks are killed; give all kills, those of earlier calls too."""
    notes = out.parent / "kills.jsonl"
    done = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    process = subprocess.Popen(
        command(recipe, out, ranks), stderr=subprocess.PIPE, text=True, env=ENV
    )
    killer = Killer(process, out, kinds)
    try:
        while process.poll() is None and len(done) < wanted:
            kill = killer.kill(random.Random(f"{seed}/{len(done)}"))
            if kill is not None:
                done.append(kill)
                with notes.open("a") as file:
                    file.write(json.dumps(kill) + "\n")
        code = process.wait(timeout=900)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
    if code:
        raise SystemExit(f"the run ended with {code}:\n{''.join(killer.said[-20:])}")
    return done


def whole(out: Path) -> dict[str, Any]:
    """Give everything that a run leaves and that must not depend on kills."""
    from safetensors.numpy import load_file

    from glint.models.checkpoint import all_in

    folder = all_in(out / "checkpoints")[-1]
    tensors = {
        f"{path.name}/{name}": value.tobytes()
        for path in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(path).items()
    }
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    steps = [(e["step"], e["loss"], e["lr"]) for e in entries if e["kind"] == "step"]
    return {"step": folder.name, "tensors": tensors, "steps": steps}


def main() -> int:
    """Make the runs, compare them, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--place", type=Path, help="keep everything here, and go on from it")
    parser.add_argument("--out", type=Path, help="append the figures")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as temporary:
        place = args.place or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        figures = prove(place, args)
    about = {"ranks": args.ranks, "save_every": args.every, "seed": args.seed}
    for figure in figures:
        line = json.dumps({**figure, **about})
        print(line, flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.write(line + "\n")
    return 0 if all(figure["holds"] for figure in figures) else 1


def prove(place: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Make what is not there yet of both runs, and compare them."""
    steps = 40 + 8 * args.kills
    recipe = place / "recipe.toml"
    if not recipe.exists():
        glint("synth", place / "world", "--identities", 40, "--images", 6, "--unseen", 20,
              "--pairs", 60, "--conflicts", 3, "--lookalikes", 2)  # fmt: skip
        glint("shard", place / "world", place / "data")
        recipe.write_text(RECIPE.format(data=place / "data", steps=steps, every=args.every))
    subprocess.run(
        command(recipe, place / "whole", args.ranks), check=True, env=ENV, capture_output=True
    )
    kinds = {kind: KINDS[kind] for kind in args.kinds}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    kills = disturbed(recipe, place / "killed", args.ranks, args.kills, kinds, args.seed)
    after, took = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    expected, found = whole(place / "whole"), whole(place / "killed")
    left = [p.name for p in (place / "killed" / "checkpoints").glob(".*")]
    same = {name: expected["tensors"].get(name) == v for name, v in found["tensors"].items()}
    counts = {kind: sum(kill["kind"] == kind for kill in kills) for kind in kinds}
    inside = sum(kill["inside a save"] for kill in kills)
    seen = [kill["seen"] for kill in kills if kill["seen"] is not None]
    slowest = max(seen, default=0.0)
    return [
        {"figure": "ranks: killed at random", "value": len(kills), "target": f">= {args.kills}",
         "holds": len(kills) >= args.kills, "kinds": counts, "steps": steps,
         "cpu_s": round(cpu), "wall_s": round(took)},  # of this call
        {"figure": "ranks: killed inside a save", "value": inside,
         "target": f">= {counts.get('save', 0) // 2}",
         "holds": inside >= counts.get("save", 0) // 2},
        {"figure": "ranks: tensors that differ from the uninterrupted run",
         "value": sum(not s for s in same.values()) + abs(len(same) - len(expected["tensors"])),
         "target": "0", "holds": all(same.values()) and len(same) == len(expected["tensors"]) > 10},
        {"figure": "ranks: logged steps that differ",
         "value": sum(a != b for a, b in zip(expected["steps"], found["steps"]))
         + abs(len(expected["steps"]) - len(found["steps"])),
         "target": "0", "holds": expected["steps"] == found["steps"] and len(found["steps"]) > 10},
        {"figure": "ranks: slowest detection, s", "value": round(slowest, 3),
         "target": "<= 5", "holds": len(seen) == len(kills) > 0 and slowest <= 5},
        {"figure": "ranks: half-written checkpoints left", "value": len(left), "target": "0",
         "holds": not left},
    ]  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
