"""A student alone, distilled, and in two generations, at one budget of images, on unseen people.

    python benchmarks/distill.py --quick
    python benchmarks/distill.py --work FOLDER [--out FILE] [--minutes N]

One JSON line a figure: {"figure", "value", "target", "holds"}; exit 1 where one falls short. The
worlds are `glint synth`'s, cleanly labelled, one of other people; every net is trained by what
`glint train` calls, from recipes that differ in nothing but their length, `[teacher]` and
`run.finetune`. The teacher is a wider net trained for more images, once. Seeds draw the student,
its centres and the order. FOLDER keeps runs: a run that was stopped goes on from its checkpoint,
one that ended is only read; with --minutes it stops between two runs, exit code 75.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import ROOT, floor, machine, told

sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from glint.dist.world import World
from glint.errors import Stopped
from glint.evals.allpairs import all_pairs
from glint.models import checkpoint, recogniser
from glint.recipes.load import load
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.stream.loader import Images, Stream
from glint.train import loop
from glint.train.build import build
from glint.train.recipe import Recipe

FAR = "1e-3"
RECIPE = """
[data]
path = "{data}"
batch = 64
[backbone]
name = "iresnet"
embedding = 128
options = {{ layers = [1, 1, 1, 1], widths = {widths}, stem_stride = 2 }}
[head]
margin = "arcface"
m = 0.3
scale = 32.0
rule = "dense_exact"
[optim]
lr = 0.1
[schedule]
kind = "cosine"
epochs = {epochs}
warmup = 0.5
[run]
seed = {seed}
device = "cpu"
threads = 1
log_every = 20
save_every = 50
keep = 1
tensorboard = false
val = ["{pairs}"]
eval_every = 100000
"""
STUDENT, TEACHER = [4, 8, 8, 16], [16, 32, 64, 128]
# name: epochs of each generation, as shares of the budget; whether there is a teacher
WAYS: dict[str, tuple[tuple[float, ...], bool]] = {
    "alone": ((1.0,), False),
    "distilled": ((1.0,), True),
    "two generations of half the images": ((0.5, 0.5), True),
    "two halves alone": ((0.5, 0.5), False),
}


@dataclass(frozen=True)
class Setting:
    """How large it is. epochs: the budget of a student; times: the teacher's, over that."""

    people: int = 300
    images: int = 12
    unseen: int = 250
    epochs: int = 6
    times: int = 2
    seeds: int = 3

    def __str__(self) -> str:
        return (
            f"{self.people} people x {self.images}, {self.epochs} epochs, teacher "
            f"{self.times * self.epochs}, {self.unseen} unseen"
        )


QUICK = Setting(20, 8, 20, 2, 1, 1)


class Bench:
    """The worlds and runs of a folder."""

    def __init__(self, work: Path, setting: Setting, minutes: float) -> None:
        self.work, self.setting = work, setting
        self.until = time.monotonic() + 60 * minutes if minutes else None

    def world(self, name: str, people: int, images: int, seed: int) -> Path:
        """Give the dataset of a synthetic world, made now where it is not there."""
        made, data = self.work / f"{name}-world", self.work / name
        if not (data / "manifest.json").exists():
            options = ["--identities", people, "--images", images, "--seed", seed]
            options += ["--conflicts", 0, "--lookalikes", 0, "--damaged", 0, "--tail", 0]
            others = max(20, self.setting.unseen // 2)
            options += ["--unseen", others, "--pairs", min(1200, 20 * others)]
            for words in (["synth", made, *options], ["shard", made, data]):
                command = [sys.executable, "-m", "glint", *map(str, words), "--json"]
                subprocess.run(command, check=True, capture_output=True, cwd=self.work)
        return data

    def run(
        self, name: str, widths: list[int], epochs: int, seed: int, *changes: str
    ) -> dict[str, Any]:
        """Train a net, or go on with it; give what it reached on people it has not seen."""
        out = self.work / name
        result = out / "result.json"
        if result.exists():
            return dict(json.loads(result.read_text()))
        if self.until is not None and time.monotonic() > self.until:
            print(f"stopped before {name}: the same command goes on", file=sys.stderr)
            raise SystemExit(75)
        data = self.world("seen", self.setting.people, self.setting.images, 1)
        text = RECIPE.format(
            data=data, widths=widths, epochs=epochs, seed=seed,
            pairs=self.work / "seen-world" / "pairs.bin",
        )  # fmt: skip
        begin = time.process_time()
        try:
            trained = loop.train(build(load(text, Recipe, changes), World(), out))
        except Stopped as stopped:  # a signal: the state is saved
            raise SystemExit(75) from stopped
        entries = map(json.loads, (out / "log.jsonl").read_text().splitlines())
        apart = [entry["distill"] for entry in entries if "distill" in entry]
        made = {
            "run": name, "images": trained.images, "accuracy": 100 * trained.accuracy,
            "tar": 100 * self.tar(out), "loss": trained.loss, "cpu": time.process_time() - begin,
            **({"distance": statistics.mean(apart[-5:])} if apart else {}),
        }  # fmt: skip
        print(json.dumps(made), file=sys.stderr, flush=True)
        result.write_text(json.dumps(made))
        return made

    def tar(self, out: Path) -> float:
        """Give TAR at FAR 1e-3 over all pairs of the images of the other world."""
        dataset = Dataset(self.world("unseen", self.setting.unseen, 6, 2))
        net = recogniser.open_model(out, threads=1, device="cpu")
        stream = Stream(
            dataset, labels=labels.current(dataset.root, dataset.classes), batch=100,
            images=Images(flip=False), drop_last=False,
        )  # fmt: skip
        feature, label = [], []
        for batch in stream.batches(0):
            feature.append(net.embed(batch.image.numpy()))
            label.append(batch.label.numpy())
        found = all_pairs(np.concatenate(feature), np.concatenate(label), fars=(FAR,))
        return float(found.tar_at_far[FAR])

    def way(self, name: str, seed: int, teacher: Path) -> dict[str, Any]:
        """Give the last generation of a way to train the student, and the images of all of them."""
        shares, taught = WAYS[name]
        common = [f"teacher.model={teacher}"] if taught else []
        images, made, before = 0, {}, ""
        for number, share in enumerate(shares):
            changes = [*common]
            if before:
                changes += [f"run.finetune={self.work / before}", "run.finetune_head=true"]
            before = f"{name.replace(' ', '-')}-{seed}-{number}"
            epochs = max(1, round(share * self.setting.epochs))
            made = self.run(before, STUDENT, epochs, seed, *changes)
            images += made["images"]
        return {**made, "images": images}


def figures(bench: Bench) -> list[dict[str, Any]]:
    """Run what is missing; give every figure, what is claimed as targets last."""
    setting, lines = bench.setting, []
    best = bench.run("teacher", TEACHER, setting.epochs * setting.times, 0)
    teacher = checkpoint.find(bench.work / "teacher")
    seeds = range(setting.seeds)
    rows = {(way, seed): bench.way(way, seed, teacher) for seed in seeds for way in WAYS}
    budget = {row["images"] for row in rows.values()}
    assert len(budget) == 1, budget
    lines.append(told("distill: images of a student", budget.pop()))
    lines.append(told("distill: images of the teacher", best["images"]))
    mean: dict[tuple[str, str], float] = {}
    for part, words in (("tar", f"TAR at FAR {FAR}, %"), ("accuracy", "accuracy of pairs, %")):
        lines.append(told(f"distill: {words}, teacher", best[part]))
        for way in WAYS:
            values = [rows[way, seed][part] for seed in seeds]
            mean[part, way] = statistics.mean(values)
            figure = told(f"distill: {words}, {way}, mean of {len(values)}", mean[part, way])
            lines.append({**figure, "seeds": [round(value, 2) for value in values]})
    for way in ("distilled", "two generations of half the images"):
        values = [rows[way, seed]["distance"] for seed in seeds]
        lines.append(told(f"distill: distance to the teacher, {way}", statistics.mean(values)))
    if setting.seeds > 1:
        for better, worse in (
            ("distilled", "alone"),
            ("two generations of half the images", "alone"),
            ("two generations of half the images", "distilled"),
        ):
            gap = mean["tar", better] - mean["tar", worse]
            lines.append(floor(f"distill: points of TAR, [{better}] - [{worse}]", gap, 0))
    return lines


def main() -> int:
    """Make the worlds, train, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small, one seed: says nothing")
    parser.add_argument("--seeds", type=int, help="students of each way")
    parser.add_argument("--work", type=Path, help="keep worlds and runs here, and go on with them")
    parser.add_argument("--out", type=Path, help="write the figures here")
    parser.add_argument("--minutes", type=float, default=0, help="begin no run after so many")
    args = parser.parse_args()
    torch.set_num_threads(1)
    setting = QUICK if args.quick else Setting(seeds=args.seeds or Setting.seeds)
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        about = work / "setting"
        if about.exists() and about.read_text() != str(setting):
            raise SystemExit(f"{work}: holds runs of another size")
        about.write_text(str(setting))
        lines = figures(Bench(work, setting, args.minutes))
    where = machine("torch", "numpy")
    for line in lines:
        print(json.dumps(line))
    if args.out is not None:
        made = [{**line, "setting": str(setting), **where} for line in lines]
        args.out.write_text("".join(json.dumps(line) + "\n" for line in made))
    return int(any(line["holds"] is False for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
