"""Ranks killed at random: the run starts itself again and ends as if nothing had happened.

    python tests/faults/prove_ranks.py --kills 50 --ranks 4 [--seed 0] [--out FILE]

trains a small net on a synthetic world, uninterrupted and with ranks killed at random instants
(inside steps, collectives, saves and starts), prints one JSON line a figure and leaves with 1 where
one falls short.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
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


def disturbed(recipe: Path, out: Path, ranks: int, kills: int, chance: random.Random) -> Any:
    """Run to the end while ranks are killed; give how many were, and the slowest detection."""
    process = subprocess.Popen(
        command(recipe, out, ranks), stderr=subprocess.PIPE, text=True, env=ENV
    )
    told: list[float] = []
    said: list[str] = []

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if "starting again" in line:
                told.append(time.monotonic())

    threading.Thread(target=listen, daemon=True).start()
    done, slowest, starting = 0, 0.0, 0
    while process.poll() is None and done < kills:
        before = last_step(out)
        early = chance.random() < 0.1  # while ranks start and meet
        deadline = time.monotonic() + (2 + 4 * chance.random() if early else 120)
        while process.poll() is None and time.monotonic() < deadline and last_step(out) <= before:
            time.sleep(0.01)
        starting += early
        time.sleep(chance.random() * 1.0)
        living = children(process.pid) if process.poll() is None else []
        if not living:
            continue
        seen = len(told)
        try:
            os.kill(chance.choice(living), signal.SIGKILL)
        except ProcessLookupError:
            continue
        at = time.monotonic()
        done += 1
        while process.poll() is None and len(told) == seen and time.monotonic() - at < 60:
            time.sleep(0.005)
        if len(told) > seen:
            slowest = max(slowest, told[seen] - at)
    code = process.wait(timeout=900)
    if code:
        raise SystemExit(f"the run ended with {code}:\n{''.join(said[-20:])}")
    return {"kills": done, "while starting": starting, "seen": len(told), "slowest": slowest}


def whole(out: Path) -> dict[str, Any]:
    """Give everything that a run leaves and that must not depend on kills."""
    from safetensors.numpy import load_file

    from glint.evals.stored import all_in

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
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the figures")
    args = parser.parse_args()
    steps = args.steps or 40 + 12 * args.kills
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        glint("synth", place / "world", "--identities", 40, "--images", 6, "--unseen", 20,
              "--pairs", 60, "--conflicts", 3, "--lookalikes", 2)  # fmt: skip
        glint("shard", place / "world", place / "data")
        recipe = place / "recipe.toml"
        recipe.write_text(RECIPE.format(data=place / "data", steps=steps, every=args.every))
        subprocess.run(
            command(recipe, place / "whole", args.ranks), check=True, env=ENV, capture_output=True
        )
        chance = random.Random(args.seed)
        happened = disturbed(recipe, place / "killed", args.ranks, args.kills, chance)
        expected, found = whole(place / "whole"), whole(place / "killed")
        left = [p.name for p in (place / "killed" / "checkpoints").glob(".*")]
    same = {name: expected["tensors"].get(name) == v for name, v in found["tensors"].items()}
    figures = [
        {"figure": "ranks: killed at random", "value": happened["kills"],
         "target": f">= {args.kills}", "holds": happened["kills"] >= args.kills,
         "while starting": happened["while starting"]},
        {"figure": "ranks: tensors that differ from the uninterrupted run",
         "value": sum(not s for s in same.values()) + abs(len(same) - len(expected["tensors"])),
         "target": "0", "holds": all(same.values()) and len(same) == len(expected["tensors"]) > 10},
        {"figure": "ranks: logged steps that differ",
         "value": sum(a != b for a, b in zip(expected["steps"], found["steps"]))
         + abs(len(expected["steps"]) - len(found["steps"])),
         "target": "0", "holds": expected["steps"] == found["steps"] and len(found["steps"]) > 10},
        {"figure": "ranks: slowest detection, s", "value": round(happened["slowest"], 3),
         "target": "<= 5", "holds": happened["seen"] > 0 and happened["slowest"] <= 5},
        {"figure": "ranks: half-written checkpoints left", "value": len(left), "target": "0",
         "holds": not left},
    ]  # fmt: skip
    about = {"ranks": args.ranks, "steps": steps, "save_every": args.every, "seed": args.seed}
    for figure in figures:
        line = json.dumps({**figure, **about})
        print(line, flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.write(line + "\n")
    return 0 if all(figure["holds"] for figure in figures) else 1


if __name__ == "__main__":
    raise SystemExit(main())
