"""Noise in labels and what a head does about it: the Partial FC paper's experiments in miniature.

    python benchmarks/robustness.py --out FOLDER [--quick]

Worlds (after arXiv 2203.15565): clean; conflict, a third of the people under three labels each;
flip, 40 % of the images under a label of somebody else; tail, few people of many images and many
of two or three. Heads: a margin softmax (rate 1: full softmax, below it Partial FC), with the
threshold filter, with the table of known conflicts. Then what cleaning a conflict world is worth:
nothing done, threshold, mask, merged labels, and the last two as glint's own search finds them.

Small on purpose, and vectors, not pictures: the people are `glint synth`'s (their latents); a view
is those and latents of its own that say nothing about the person, through a fixed random layer,
with noise; a net of two layers learns to embed views. Heads are glint's. Every cell has the same
number of steps; the centres' learning rate of each rate is the one of CENTRE_LR that is best for
softmax alone with clean labels, on people kept for that, with seed 0; figures are TAR@FAR=1e-3 over
all pairs of views of other people, mean of three seeds. A seed draws the net, the centres, the
order and which labels are spoiled; the views are the same. Beside them, hard-aware negatives at
rate 0.1: three tenths are nearest to the batch, by the centres of a net trained without them.

FOLDER keeps finished cells: the same command goes on where it was stopped. One JSON
line a figure: {"figure", "value", "target", "holds"}; exit 1 where one falls short.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import PAPER, floor, machine, told
from torch import nn

from glint.conflicts import verdicts
from glint.conflicts.evidence import Samples
from glint.evals.roc import accept_rates
from glint.nn.heads.options import PartialFCOptions
from glint.nn.heads.partial_fc import PartialFC
from glint.nn.margins import margin
from glint.synth.faces import person
from glint.synth.view import LATENTS

# n views, C labels, F components of a view, D embedding

FAR = "1e-3"
RATES = (1.0, 0.1, 0.3)
CENTRE_LR = (0.1, 0.3, 1.0)
SEEDS = (0, 1, 2)
THRESHOLD, MARGIN, SCALE = 0.4, 0.4, 32.0
HEADS = {
    "clean": ("plain",),
    "conflict": ("plain", "threshold", "mask"),
    "flip": ("plain", "threshold"),
    "tail": ("plain", "threshold"),
}
AFTER = {  # parts that need a net trained before: world, head, rate
    "search": (("conflict", "mask found", 1.0), ("conflict", "merge found", 1.0)),
    "hard": (("clean", "hard", 0.1),),
}
PARTS = (*HEADS, *AFTER)
HARD, NEAR = 0.3, 8


@dataclass(frozen=True)
class Size:
    """How much is made and trained."""

    people: int = 2000
    images: int = 9  # of each
    tail: int = 1500  # more people, of three images each
    head: int = 300  # people of the long tail's world who keep all images
    tune: int = 200  # people that learning rates are chosen by
    test: int = 300
    seen: int = 6  # views of each of those
    components: int = 96
    own: int = 24  # latents of a view
    strength: float = 1.3  # of those
    noise: float = 0.5
    hidden: int = 256
    embedding: int = 64
    batch: int = 64
    steps: int = 1200
    lr: float = 0.1
    seeds: tuple[int, ...] = SEEDS
    centre_lr: tuple[float, ...] = CENTRE_LR
    rates: tuple[float, ...] = RATES


QUICK = Size(
    people=150, images=6, tail=60, head=30, tune=30, test=40, steps=60, seeds=(0,),
    centre_lr=(1.0,), rates=(1.0, 0.1),
)  # fmt: skip

# ---- views --------------------------------------------------------------------------------------


class Faces:
    """Views of people, float32 (n, F), and who is on them: to train on, to tune by, to test on."""

    def __init__(self, size: Size) -> None:
        self.size, draw = size, np.random.default_rng(99)
        self.people = draw.normal(size=(len(LATENTS), 2 * size.components)) / np.sqrt(
            len(LATENTS) / 3  # latents are uniform in -1..1: of variance 1/3
        )
        self.nuisance = draw.normal(size=(size.own, 2 * size.components)) / np.sqrt(size.own)
        self.out = draw.normal(size=(2 * size.components, size.components)) / np.sqrt(
            2 * size.components
        )
        main, self.person = self.views(0, size.people, size.images, 1)
        tail, other = self.views(size.people, size.tail, 3, 2)
        self.main = len(main)
        both = torch.cat([main, tail])
        mean, std = both.mean(0), both.std(0)
        self.train, self.person = (both - mean) / std, np.concatenate([self.person, other])
        tune, who = self.views(1 << 30, size.tune, size.seen, 3)
        self.tune = (tune - mean) / std, who
        test, who = self.views(1 << 31, size.test, size.seen, 4)
        self.test = (test - mean) / std, who

    def views(
        self, first: int, people: int, each: int, seed: int
    ) -> tuple[torch.Tensor, np.ndarray]:
        """Make `each` views of the people first, first + 1, ..; give them and their people."""
        draw, size = np.random.default_rng(seed), self.size
        latents = np.stack([person(0, first + number) for number in range(people)])
        own = draw.normal(size=(people * each, size.own))
        seen = np.tanh(
            1.5 * (latents @ self.people).repeat(each, 0) + size.strength * (own @ self.nuisance)
        )
        view = seen @ self.out + size.noise * draw.normal(size=(len(own), size.components))
        return torch.from_numpy(view.astype(np.float32)), first + np.arange(people).repeat(each)


# ---- worlds -------------------------------------------------------------------------------------


@dataclass
class World:
    """Rows of the views, the label of each, pairs of labels known to be one person."""

    row_n: np.ndarray
    label_n: np.ndarray
    pair_m2: np.ndarray

    @property
    def classes(self) -> int:
        return int(self.label_n.max()) + 1


def world(name: str, faces: Faces, size: Size, seed: int) -> World:
    """Make a world; which labels are spoiled depends on the seed."""
    draw = np.random.default_rng([seed, 7])
    row_n = np.arange(faces.main)
    label_n = faces.person[row_n].copy()
    pair_m2 = np.empty((0, 2), np.int64)
    if name == "conflict":  # WebFace12M-Conflict: 200 of 618 thousand identities become 600
        chosen = draw.permutation(size.people)[: size.people // 3]
        for number, who in enumerate(chosen.tolist()):
            mine = draw.permutation(np.flatnonzero(faces.person[row_n] == who))
            third = len(mine) // 3
            label_n[mine[:third]] = size.people + 2 * number
            label_n[mine[third : 2 * third]] = size.people + 2 * number + 1
        second = size.people + 2 * np.arange(len(chosen))
        pair_m2 = np.concatenate(
            [np.stack(pair, 1) for pair in
             ((chosen, second), (chosen, second + 1), (second, second + 1))]
        )  # fmt: skip
    if name == "flip":
        wrong = draw.random(len(label_n)) < 0.4
        moved = label_n + draw.integers(1, size.people, len(label_n))
        label_n[wrong] = (moved % size.people)[wrong]
    if name == "tail":
        order = draw.permutation(size.people)
        most = np.full(size.people + size.tail, 3)
        most[order[: size.people // 2]] = 2
        most[order[-size.head :]] = size.images
        within = np.arange(len(faces.person)) - np.searchsorted(faces.person, faces.person)
        row_n = np.flatnonzero(within < most[faces.person])
        label_n = faces.person[row_n].copy()
    return World(row_n, label_n, pair_m2)


# ---- a cell -------------------------------------------------------------------------------------


def network(size: Size) -> nn.Module:
    """Build the net: two layers, batch norms as in face nets."""
    return nn.Sequential(
        nn.Linear(size.components, size.hidden, bias=False), nn.BatchNorm1d(size.hidden),
        nn.PReLU(size.hidden), nn.Linear(size.hidden, size.embedding, bias=False),
        nn.BatchNorm1d(size.embedding, affine=False),
    )  # fmt: skip


def train(
    faces: Faces,
    size: Size,
    data: World,
    head: str,
    rate: float,
    lr: float,
    seed: int,
    near_CK: np.ndarray | None = None,
) -> tuple[nn.Module, float]:
    """Train net and head; give the net and the loss of the last tenth of the steps.

    lr: of the centres, over the net's; near_CK: the classes nearest to each.
    """
    torch.manual_seed(seed)
    net = network(size)
    top = PartialFC(
        data.classes,
        size.embedding,
        PartialFCOptions(
            scale=SCALE,
            rate=rate,
            rule="none",
            weight_decay=5e-4,
            threshold=THRESHOLD if head == "threshold" else 0.0,
            hard_ratio=HARD if near_CK is not None else 0.0,
        ),
        margin=margin("cosface", m=MARGIN),
        masks=data.pair_m2 if "mask" in head else None,
        neighbours=near_CK,
        seed=seed,
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=size.lr, momentum=0.9, weight_decay=5e-4)
    label_n = torch.from_numpy(data.label_n)
    row_n = torch.from_numpy(data.row_n)
    losses = []
    for step, batch in enumerate(batches(len(row_n), size, seed)):
        now = size.lr * (1 - step / size.steps)
        optimizer.param_groups[0]["lr"] = now
        loss = top(net(faces.train[row_n[batch]]), label_n[batch], step=step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        top.update(step=step, lr=now * lr)
        losses.append(loss.item())
    return net.eval(), float(np.mean(losses[-max(1, size.steps // 10) :]))


def batches(n: int, size: Size, seed: int) -> Iterator[torch.Tensor]:
    """Yield the images of every step: permutations, one after the other."""
    draw = torch.Generator().manual_seed(1000 + seed)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(size.steps):
        if len(order) < size.batch:
            order = torch.cat([order, torch.randperm(n, generator=draw)])
        batch, order = order[: size.batch], order[size.batch :]
        yield batch


@torch.no_grad()
def embed(net: nn.Module, view_nF: torch.Tensor) -> np.ndarray:
    """Embed views, unit float32 (n, D)."""
    parts = [nn.functional.normalize(net(part)) for part in view_nF.split(4096)]
    return torch.cat(parts).numpy()


def tar(net: nn.Module, people: tuple[torch.Tensor, np.ndarray]) -> float:
    """Give TAR@FAR=1e-3 over all pairs of views."""
    unit, who = embed(net, people[0]), people[1]
    i, j = np.triu_indices(len(unit), 1)
    score, same = (unit @ unit.T)[i, j], who[i] == who[j]
    value = accept_rates(score[same], score[~same], fars=(FAR,))["tar_at_far"][FAR]
    return float(value)


def centres(faces: Faces, data: World, net: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Embed a world: its views, and the unit means of its labels."""
    unit = embed(net, faces.train[data.row_n])
    centre = np.zeros((data.classes, unit.shape[1]), np.float32)
    np.add.at(centre, data.label_n, unit)
    return unit, centre / np.linalg.norm(centre, axis=1, keepdims=True)


def nearest(faces: Faces, data: World, net: nn.Module) -> np.ndarray:
    """List the classes nearest to each by a net's centres, int32 (C, NEAR)."""
    _, centre = centres(faces, data, net)
    cosine = centre @ centre.T
    np.fill_diagonal(cosine, -2)
    return np.argsort(-cosine, axis=1)[:, :NEAR].astype(np.int32)


def find(faces: Faces, data: World, net: nn.Module, seed: int) -> verdicts.Found:
    """Search the world for conflicts with a net trained on it, as `glint dedup-conflicts` does."""
    unit, centre = centres(faces, data, net)
    samples = Samples(unit, data.label_n, data.classes)
    return verdicts.find(
        centre, samples, np.arange(data.classes), verdicts.ConflictOptions(seed=seed)
    )


def cleaned(data: World, found: verdicts.Found, head: str) -> tuple[World, dict[str, float]]:
    """Apply what was found; give the world and how good the search was."""
    told_ = np.stack([found.pairs.a, found.pairs.b], 1)
    known = {tuple(sorted(pair)) for pair in data.pair_m2.tolist()}
    suspect, merge = found.verdict != "keep", found.verdict == "merge"
    right = np.array([tuple(pair) in known for pair in told_.tolist()])
    quality = {
        "merges": int(merge.sum()),
        "merge_precision": float(right[merge].sum() / max(1, merge.sum())),
        "merge_recall": float(right[merge].sum() / len(known)),
        "precision": float(right[suspect].sum() / max(1, suspect.sum())),
        "recall": float(right[suspect].sum() / len(known)),
    }
    if head == "mask found":
        return World(data.row_n, data.label_n, told_[suspect]), quality
    target_C = np.arange(data.classes)
    for group in found.groups.merged:
        target_C[group] = group[0]
    _, target_C = np.unique(target_C, return_inverse=True)
    return World(data.row_n, target_C[data.label_n], data.pair_m2[:0]), quality


# ---- all cells ----------------------------------------------------------------------------------


class Cells:
    """The finished cells of a folder, and how to make one more."""

    def __init__(self, folder: Path, size: Size) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.size, self.path = folder, size, folder / "cells.jsonl"
        self.known: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                cell = json.loads(line)
                self.known[cell["cell"]] = cell
        self._faces: Faces | None = None
        self._nets: dict[tuple[str, float, int], nn.Module] = {}  # plain ones, for what comes after
        about = folder / "size.json"
        text = json.dumps(asdict(size))
        if about.exists() and about.read_text() != text:
            raise SystemExit(f"{folder}: holds cells of another size")
        about.write_text(text)

    @property
    def faces(self) -> Faces:
        if self._faces is None:
            self._faces = Faces(self.size)
        return self._faces

    def cell(self, name: str, head: str, rate: float, lr: float, seed: int) -> dict[str, Any]:
        """Give a finished cell, trained now where it is not."""
        key = json.dumps([name, head, rate, lr, seed])
        if key in self.known:
            return self.known[key]
        begin, extra, near_CK = time.process_time(), {}, None
        data = world(name, self.faces, self.size, seed)
        if "found" in head or "hard" in head:
            before = self.plain(name, rate, seed)
            if "found" in head:
                data, extra = cleaned(data, find(self.faces, data, before, seed), head)
            else:
                near_CK = nearest(self.faces, data, before)
        net, loss = train(self.faces, self.size, data, head, rate, lr, seed, near_CK)
        made = {
            "cell": key, "world": name, "head": head, "rate": rate, "centre_lr": lr, "seed": seed,
            "classes": data.classes, "images": len(data.row_n),
            "tune": tar(net, self.faces.tune), "test": tar(net, self.faces.test),
            "loss": loss, **extra, "cpu": round(time.process_time() - begin, 1),
        }  # fmt: skip
        with self.path.open("a") as file:
            file.write(json.dumps(made) + "\n")
        print(json.dumps(made), file=sys.stderr, flush=True)
        self.known[key] = made
        return made

    def tuned(self, rate: float) -> float:
        """Choose the centres' learning rate, on the people kept for that, with the first seed."""
        first = self.size.seeds[0]
        tries = {
            lr: self.cell("clean", "plain", rate, lr, first)["tune"] for lr in self.size.centre_lr
        }
        return max(tries, key=lambda lr: tries[lr])

    def plain(self, name: str, rate: float, seed: int) -> nn.Module:
        """Train a world's plain net (again), for what is made with it."""
        key = name, rate, seed
        if key not in self._nets:
            data, lr = world(name, self.faces, self.size, seed), self.tuned(rate)
            self._nets[key], _ = train(self.faces, self.size, data, "plain", rate, lr, seed)
        return self._nets[key]

    def row(self, name: str, head: str, rate: float) -> list[dict[str, Any]]:
        """Give the cells of all seeds."""
        lr = self.tuned(rate)
        return [self.cell(name, head, rate, lr, seed) for seed in self.size.seeds]


# ---- figures ------------------------------------------------------------------------------------


def mean(rows: list[dict[str, Any]], part: str) -> float:
    """Give the mean over seeds."""
    return float(np.mean([row[part] for row in rows]))


def about(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Give the seeds' values, the learning rate, and how good a search for conflicts was."""
    search = ("merge_precision", "merge_recall", "precision", "recall")
    return {
        "seeds": [round(row["test"], 4) for row in rows],
        "centre_lr": rows[0]["centre_lr"],
        **{part: round(mean(rows, part), 4) for part in search if part in rows[0]},
    }


def figures(cells: Cells, parts: list[str]) -> list[dict[str, Any]]:
    """Run what is missing of these parts; give every figure, what is claimed as targets last."""
    table = [
        (name, head, rate)
        for name in HEADS
        if name in parts
        for head in HEADS[name]
        for rate in cells.size.rates
    ]
    table += [row for part, rows in AFTER.items() if part in parts for row in rows]
    told_ = []
    for name, head, rate in table:
        rows = cells.row(name, head, rate)
        figure = f"{name}, {head}, r={rate:g}: TAR@FAR={FAR}"
        told_.append({**told(figure, mean(rows, "test")), **about(rows)})
    value = {line["figure"].rsplit(":", 1)[0]: line["value"] for line in told_}
    for what, better, worse, spare in CLAIMS:
        if better not in value or worse not in value:
            continue
        gap = value[better] - value[worse]
        told_.append(floor(f"{what}: [{better}] - [{worse}]", gap, spare))
    return told_


CLAIMS = (  # what the paper or glint's documentation says; the least gap that agrees
    ("sampling costs nothing on clean labels", "clean, plain, r=0.1", "clean, plain, r=1", -0.01),
    ("sampling helps under conflicts", "conflict, plain, r=0.1", "conflict, plain, r=1", 0.0),
    ("the filter helps under conflicts", "conflict, threshold, r=1", "conflict, plain, r=1", 0.0),
    ("known pairs help under conflicts", "conflict, mask, r=1", "conflict, plain, r=1", 0.0),
    ("known pairs beat the filter", "conflict, mask, r=1", "conflict, threshold, r=1", 0.0),
    ("sampling and filter help under flips", "flip, threshold, r=0.1", "flip, plain, r=1", 0.0),
    ("sampling helps a long tail", "tail, plain, r=0.1", "tail, plain, r=1", 0.0),
    ("masking what is found helps", "conflict, mask found, r=1", "conflict, plain, r=1", 0.0),
    ("merging what is found helps", "conflict, merge found, r=1", "conflict, plain, r=1", 0.0),
    ("hard negatives help", "clean, hard, r=0.1", "clean, plain, r=0.1", 0.0),
)


# ---- the plot -----------------------------------------------------------------------------------

COLOUR = {"plain": "#1b6ca8", "threshold": "#d1781d", "mask": "#2f8f4e"}
NAME = {"plain": "softmax alone", "threshold": "filter at 0.4", "mask": "known pairs"}


def plot(told_: list[dict[str, Any]], rates: tuple[float, ...], worlds: list[str]) -> str:
    """Draw a panel a world: TAR over the rate, a line a head, bars from least to most of seeds."""
    values = {line["figure"].rsplit(":", 1)[0]: line for line in told_ if "seeds" in line}
    every = [v for line in values.values() for v in line["seeds"]]
    low, high = np.floor(min(every) * 10) / 10, np.ceil(max(every) * 10) / 10
    wide, tall, left, top = 170, 170, 46, 46
    right = max(left + len(worlds) * (wide + 20), 480)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right} 290" '
        'font-family="sans-serif" font-size="12">',
        PAPER,
        f'<text x="{left}" y="18">TAR at FAR {FAR} on people never seen</text>',
    ]

    def y(value: float) -> float:
        return round(top + tall * (high - value) / (high - low), 1)

    marks = np.linspace(low, high, round((high - low) * 10) + 1)
    for number, world_ in enumerate(worlds):
        heads = HEADS[world_]
        x0 = left + number * (wide + 20)
        out.append(
            f'<rect x="{x0}" y="{top}" width="{wide}" height="{tall}" fill="none" stroke="#999"/>'
            f'<text x="{x0}" y="{top - 8}">{world_}</text>'
        )
        for mark in marks:
            out.append(f'<path d="M{x0} {y(mark)}h{wide}" stroke="#e4e4e4"/>')
            if not number:
                out.append(f'<text x="{x0 - 8}" y="{y(mark) + 4}" text-anchor="end">'
                           f"{mark:.1f}</text>")  # fmt: skip
        order = sorted(rates)
        for place, head in enumerate(heads):
            at = []
            for step, rate in enumerate(order):
                line = values[f"{world_}, {head}, r={rate:g}"]
                x = x0 + 25 + step * (wide - 50) / max(1, len(order) - 1) + 5 * (place - 1)
                at.append(f"{x:.1f} {y(line['value'])}")
                out.append(
                    f'<path d="M{x:.1f} {y(min(line["seeds"]))}V{y(max(line["seeds"]))}" '
                    f'stroke="{COLOUR[head]}" stroke-width="2"/>'
                    f'<circle cx="{x:.1f}" cy="{y(line["value"])}" r="3" fill="{COLOUR[head]}"/>'
                )
            out.append(f'<path d="M{"L".join(at)}" fill="none" stroke="{COLOUR[head]}"/>')
        for step, rate in enumerate(order):
            x = x0 + 25 + step * (wide - 50) / max(1, len(order) - 1)
            out.append(f'<text x="{x:.1f}" y="{top + tall + 16}" text-anchor="middle">'
                       f"{rate:g}</text>")  # fmt: skip
    out.append(
        f'<text x="{left}" y="{top + tall + 34}">share of class centres used in a step</text>'
    )
    for number, (head, name) in enumerate(NAME.items()):
        x = left + number * 150
        out.append(f'<path d="M{x} 268h18" stroke="{COLOUR[head]}" stroke-width="3"/>'
                   f'<text x="{x + 24}" y="272">{name}</text>')  # fmt: skip
    return "\n".join([*out, "</svg>\n"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="cells, figures, plot")
    parser.add_argument("--quick", action="store_true", help="small, one seed: says nothing")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if args.quick else Size()
    cells = Cells(args.out / "quick" if args.quick else args.out, size)
    told_ = figures(cells, args.parts)
    about = {"benchmark": "robustness", **machine("torch", "numpy"), "size": asdict(size)}
    lines = [about, *told_]
    for line in lines:
        print(json.dumps(line))
    (cells.folder / "robustness.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    (cells.folder / "robustness.svg").write_text(
        plot(told_, size.rates, [w for w in HEADS if w in args.parts])
    )
    return int(not args.quick and any(line["holds"] is False for line in told_))


if __name__ == "__main__":
    sys.exit(main())
