"""All heads on one synthetic world at one image budget: accuracy on unseen people, memory, time.

    python benchmarks/heads_compared.py --quick
    python benchmarks/heads_compared.py --out FILE [--work FOLDER] [--only PART] [--cells N]

One JSON line a figure: {"figure", "value", "target", "holds"}; exit 1 where one falls short. A cell
is one head and one seed; those already in --out are not run again, so a run that was stopped goes
on (--work keeps the images too; --cells N stops after N new ones with exit code 3).

The world: `glint synth`, cleanly labelled, and another one of other people; images 112 x 112 are
averaged to 28 x 28. The net is a toy of three convolutions, batch norms and PReLU and a linear
layer to 64 numbers, trained from nothing on one thread. Every cell reads the same number of images
in batches of 96: for full softmax and Partial FC 96 samples, for F2C 32 single images and 32 pairs,
for DCQ 48 samples and one more image of each identity, for AttFC 32 and two more. All else is the
same: CosFace 0.3 at scale 32, SGD with momentum, warm-up and linear decay, a moving average of the
net, which is what is judged. F2C, DCQ and AttFC run the average forward besides, so equal images
are not equal time. TAR at FAR 1e-3 is over all pairs of the unseen people's images.

Rates: a loss of F2C is a sum of four means, centres of a table begin at a length of 0.08, so one
rate does not suit all. `--only rates` tries those of GRID for each kind of head, once, with a seed
of its own, half the steps, and judged on people who are neither trained nor tested on; RATES must
be the best of them, to a tenth of a point.
"""

# n images of a batch, D embedding, H W height and width

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from figures import ROOT, ceiling, floor, machine, told

sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from torch import Tensor, nn

from glint.evals.roc import above, allowed
from glint.nn.heads import options as head_options
from glint.nn.heads.class_pool import ClassPool
from glint.nn.heads.class_queue import ClassQueue
from glint.nn.heads.partial_fc import PartialFC
from glint.nn.margins import CosFace
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.stream.augment import flips
from glint.stream.class_rows import ClassRows
from glint.stream.identities import IdentityPlan
from glint.stream.loader import Images, Stream
from glint.stream.plan import Plan
from glint.stream.positives import PositivePlan
from glint.train import memory

BATCH, DIM, SIDE, SCALE, MARGIN, AVERAGE = 96, 64, 28, 32.0, 0.3, 0.99
MOMENTUM, DECAY, CLIP, WARM = 0.9, 5e-4, 5.0, 0.05
WIDTHS = (16, 32, 64)
FIXED = 1000  # slots of the heads without a table where step times are compared
# name: kind, share of the classes (rate or slots), gallery images
HEADS: dict[str, tuple[str, float, int]] = {
    "full softmax": ("partial_fc", 1.0, 0),
    "PFC 0.1": ("partial_fc", 0.1, 0),
    "F2C 1 %": ("class_pool", 0.01, 0),
    "F2C 10 %": ("class_pool", 0.1, 0),
    "DCQ 10 %": ("class_queue", 0.1, 1),
    "AttFC 10 %": ("class_queue", 0.1, 2),
}
# rate of the net, and that of the centres as a multiple of it
RATES: dict[str, tuple[float, float]] = {
    "full softmax": (0.1, 0.1),
    "PFC 0.1": (0.1, 0.1),
    "F2C 10 %": (0.05, 1.0),
    "DCQ 10 %": (0.1, 1.0),
}
LIKE = {"F2C 1 %": "F2C 10 %", "AttFC 10 %": "DCQ 10 %"}  # heads that take another one's rates
GRID = {
    "full softmax": [(0.1, 1.0), (0.1, 0.3), (0.1, 0.1), (0.1, 0.01), (0.3, 0.1)],
    "PFC 0.1": [(0.1, 1.0), (0.1, 0.3), (0.3, 1.0), (0.1, 0.1)],
    "F2C 10 %": [(0.0125, 1.0), (0.025, 1.0), (0.05, 1.0), (0.1, 1.0)],
    "DCQ 10 %": [(0.05, 1.0), (0.1, 1.0), (0.2, 1.0)],
}
TUNED = 100  # the seed of the grid
AnyHead = PartialFC | ClassPool | ClassQueue


@dataclass(frozen=True)
class Setting:
    """How large the comparison is."""

    people: int = 5000
    images: int = 8
    unseen: int = 1000
    unseen_images: int = 6
    tuned_on: int = 500  # people whom the grid is judged on
    steps: int = 1000
    seeds: int = 3
    classes: tuple[int, int] = (10_000, 1_000_000)
    rounds: int = 5

    def __str__(self) -> str:
        return (
            f"{self.people} people x {self.images}, {self.steps} steps of {BATCH}, "
            f"{self.unseen} unseen x {self.unseen_images}"
        )


QUICK = Setting(500, 4, 100, 4, 50, 25, 1, (1000, 20_000), 2)


# ---- the world ----------------------------------------------------------------------------------


def world(folder: Path, people: int, images: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Give all images of a synthetic world, uint8 (n, H, W, 3), and their labels."""
    kept = folder / f"{people}x{images}-{seed}.npz"
    if kept.exists():
        stored = np.load(kept)
        return torch.from_numpy(stored["image"]), stored["label"]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        made, data = Path(place) / "world", Path(place) / "data"
        options = ["--identities", people, "--images", images, "--seed", seed, "--conflicts", 0]
        options += ["--lookalikes", 0, "--noise", 0, "--damaged", 0, "--tail", 0]
        options += ["--unseen", 20, "--pairs", 20]
        for words in (["synth", made, *options], ["shard", made, data]):
            command = [sys.executable, "-m", "glint", *map(str, words), "--json"]
            subprocess.run(command, check=True, capture_output=True)
        dataset = Dataset(data)
        stream = Stream(
            dataset, labels=labels.current(dataset.root, dataset.classes), batch=200,
            images=Images(flip=False), drop_last=False,
        )  # fmt: skip
        image_nHWC = torch.empty((dataset.n, SIDE, SIDE, 3), dtype=torch.uint8)
        label_n = np.empty(dataset.n, dtype=np.int64)
        for batch in stream.batches(0):
            small = nn.functional.avg_pool2d(batch.image.permute(0, 3, 1, 2).float(), 112 // SIDE)
            image_nHWC[batch.row] = small.round().to(torch.uint8).permute(0, 2, 3, 1)
            label_n[batch.row] = batch.label.numpy()
    np.savez(kept, image=image_nHWC.numpy(), label=label_n)
    return image_nHWC, label_n


def to_input(image_nHWC: Tensor, flip_n: np.ndarray | None = None) -> Tensor:
    """Make floats from -1 to 1, (n, 3, H, W), some mirrored."""
    x_nCHW = image_nHWC.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    if flip_n is not None:
        x_nCHW = torch.where(torch.from_numpy(flip_n)[:, None, None, None], x_nCHW.flip(3), x_nCHW)
    return x_nCHW.contiguous()


def rows(plan: Plan | IdentityPlan | PositivePlan, start: int, stop: int) -> np.ndarray:
    """Give the rows at positions over all epochs."""
    parts = []
    while start < stop:
        epoch, first = divmod(start, plan.length)
        last = min(plan.length, first + stop - start)
        parts.append(plan.rows_at(epoch, np.arange(first, last)))
        start += last - first
    return np.concatenate(parts)


def batches(kind: str, images: int, label_n: np.ndarray, steps: int, seed: int) -> Iterator[Any]:
    """Give the rows of each step, as the stream that goes with a kind of head does."""
    people = np.arange(label_n.max() + 1)
    order_n = np.argsort(label_n, kind="stable")
    first = np.searchsorted(label_n[order_n], np.append(people, len(people)))
    members = ClassRows(order_n.astype(np.uint32), first, people, len(people))
    single = Plan(len(label_n), seed)
    pairs = IdentityPlan(members, 2, seed ^ 0x1DE47, endless=True)
    for step in range(steps):
        if kind == "class_pool":
            third = BATCH // 3
            pair_n = rows(pairs, 2 * third * step, 2 * third * (step + 1))
            yield np.concatenate([pair_n, rows(single, third * step, third * (step + 1))])
        else:
            mated = PositivePlan(single, members, label_n, images, seed) if images else single
            yield rows(mated, BATCH * step, BATCH * (step + 1))


# ---- a cell -------------------------------------------------------------------------------------


def toy() -> nn.Module:
    """Make the net: 28 x 28 to 64 numbers."""
    layers: list[nn.Module] = []
    for c_in, c_out in zip((3, *WIDTHS), WIDTHS):
        conv = nn.Conv2d(c_in, c_out, 3, 2, 1, bias=False)
        layers += [conv, nn.BatchNorm2d(c_out), nn.PReLU(c_out)]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(WIDTHS[-1] * 16, DIM), nn.BatchNorm1d(DIM)
    )


def slots_of(name: str, classes: int) -> int:
    """Give the slots of a head without a table: its share of the classes, or a step's rows."""
    return max(int(round(HEADS[name][1] * classes)), BATCH // 2)


def make(name: str, classes: int, slots: int, seed: int = 0) -> AnyHead:
    """Make a head."""
    kind, rate, images = HEADS[name]
    margin = CosFace(MARGIN)
    values = {"scale": SCALE, "slots": slots, "gallery": images, "rate": rate}
    options = head_options.chosen(kind, {**values, "rule": "none", "weight_decay": DECAY})
    if isinstance(options, head_options.ClassPoolOptions):
        return ClassPool(classes, DIM, options, margin=margin, singles=BATCH // 3)
    if isinstance(options, head_options.ClassQueueOptions):
        return ClassQueue(classes, DIM, options, margin=margin)
    return PartialFC(classes, DIM, options, margin=margin, seed=seed)


def one_step(
    head: AnyHead, net: nn.Module, judged: nn.Module, image: Tensor, label_n: Tensor, step: int
) -> Tensor:
    """Give the loss of a batch, its gradient in the net."""
    if isinstance(head, PartialFC):
        loss = head(net(image), label_n, step=step)
    else:
        sample, other = head.parts(image)
        with torch.no_grad():
            gallery_nD = judged(other)  # its batch norms take the statistics of the batch
        loss = head(net(sample), head.parts(label_n)[0], step=step, gallery_nD=gallery_nD)
    loss.backward()
    return loss.detach()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class World:
    """The images to train on and those to judge by, with their labels."""

    images: Tensor
    label_n: np.ndarray
    unseen: tuple[Tensor, np.ndarray]


def cell(
    name: str, seed: int, made_of: World, steps: int, rates: tuple[float, float]
) -> dict[str, float]:
    """Train one head with one seed; give the accuracy on unseen people and images per second."""
    images, label_n = made_of.images, made_of.label_n
    people, (rate, centres) = int(label_n.max()) + 1, rates
    torch.manual_seed(seed)
    net = toy()
    judged = copy.deepcopy(net)
    for norm in (m for m in judged.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)):
        norm.momentum = 0.0
    kind, _, gallery = HEADS[name]
    head = make(name, people, slots_of(name, people), seed)
    optimizer = torch.optim.SGD(net.parameters(), rate, MOMENTUM, weight_decay=DECAY)
    started = time.process_time()
    made = batches(kind, gallery, label_n, steps, seed)
    for step, row_n in enumerate(made):
        flip_n = flips(seed, 0, np.arange(step * BATCH, (step + 1) * BATCH))
        image, label = to_input(images[torch.from_numpy(row_n)], flip_n), label_n[row_n]
        done = (step + 1) / steps
        lr = rate * min(done / WARM, (1 - step / steps) / (1 - WARM))
        one_step(head, net, judged, image, torch.from_numpy(label), step)
        torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
        head.update(step=step, lr=lr * centres)
        with torch.no_grad():
            ours, theirs = judged.state_dict().values(), net.state_dict().values()
            for mine, its in zip(ours, theirs):
                if mine.is_floating_point():
                    mine.lerp_(its, 1 - AVERAGE if step else 1.0)
    spent = time.process_time() - started
    return {"tar": tar(judged, *made_of.unseen), "speed": steps * BATCH / spent}


@torch.no_grad()
def tar(net: nn.Module, image_nHWC: Tensor, label_n: np.ndarray) -> float:
    """Give TAR at FAR 1e-3 over all pairs."""
    net.eval()
    feature_nD = torch.cat([net(to_input(part)) for part in image_nHWC.split(500)])
    net.train()
    unit_nD = nn.functional.normalize(feature_nD).numpy()
    first, second = np.triu_indices(len(unit_nD), 1)
    cosine = (unit_nD @ unit_nD.T)[first, second]
    same = label_n[first] == label_n[second]
    genuine, impostor = np.sort(cosine[same]), cosine[~same]
    last = len(impostor) - 1 - allowed("1e-3", len(impostor))
    return above(genuine, np.partition(impostor, last)[last]) / len(genuine)


# ---- time and memory of the head alone ----------------------------------------------------------


def step_times(name: str, setting: Setting, slots: list[int]) -> list[float]:
    """Give the median seconds of a head's step, filled up, at both numbers of classes, by turns."""
    torch.manual_seed(0)
    heads = []
    for classes, count in zip(setting.classes, slots):
        head = make(name, classes, count)
        if isinstance(head, ClassQueue):
            head.label.random_(classes)
            head.weight.normal_()
            head.used = count
        elif isinstance(head, ClassPool):
            filled = torch.randperm(classes)[:count].tolist()
            head.directory.load(filled, range(count), [1] * count)
            head.weight.normal_()
        heads.append(head)
    spent: list[list[float]] = [[], []]
    for turn in range(2 + setting.rounds):
        for number, head in enumerate(heads):
            row_nD = torch.randn(BATCH, DIM)
            label_n = torch.randint(0, setting.classes[number], (BATCH,))
            if isinstance(head, ClassPool):
                paired = BATCH - BATCH // 3
                label_n[1:paired:2] = label_n[0:paired:2]
            started = time.process_time()
            for again in range(3 if HEADS[name][0] != "partial_fc" else 1):
                row_nD.requires_grad_()
                one_step(head, nn.Identity(), nn.Identity(), row_nD, label_n, 3 * turn + again)
                head.update(step=3 * turn + again, lr=0.1)
            if turn >= 2:
                each = 3 if HEADS[name][0] != "partial_fc" else 1
                spent[number].append((time.process_time() - started) / each)
    return [statistics.median(times) for times in spent]


def head_bytes(name: str, classes: int) -> int:
    """Count the bytes that a head takes in a step."""
    kind, rate, images = HEADS[name]
    slots = slots_of(name, classes) if kind != "partial_fc" else 0
    values: dict[str, Any] = {"kind": kind, "slots": slots, "gallery": max(images, 1)}
    if kind == "partial_fc":
        values["rate"] = rate
    return memory.memory(memory.head(values, classes, dim=DIM, batch=BATCH))["total"]


# ---- figures ------------------------------------------------------------------------------------


class Book:
    """Figures, printed as they come; those that --out already has are not made again."""

    def __init__(self, out: Path | None, setting: Setting, cells: int) -> None:
        self.out, self.setting, self.shown = out, str(setting), list[dict[str, Any]]()
        self.cells = cells  # left to run
        self.known: dict[str, dict[str, Any]] = {}
        if out is not None and out.exists():
            for line in map(json.loads, out.read_text().splitlines()):
                if line["setting"] == self.setting:
                    self.known[line["figure"]] = line

    def add(self, figure: dict[str, Any]) -> None:
        """Show a figure, and keep one that is new or another than before: the last one counts."""
        self.shown.append(figure)
        print(json.dumps(figure), flush=True)
        if self.known.get(figure["figure"], {}).get("value") == figure["value"]:
            return
        line = {**figure, "setting": self.setting, **machine("torch", "numpy")}
        self.known[figure["figure"]] = line
        if self.out is not None:
            with self.out.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def value(self, figure: str) -> float | None:
        """Give a figure that is known."""
        line = self.known.get(figure)
        return None if line is None else float(line["value"])

    def cell(self, figures: dict[str, str], run: Callable[[], dict[str, float]]) -> None:
        """Run a cell that is not known; add its figures, {part of the result: name}."""
        known = {name: self.value(name) for name in figures.values()}
        if None in known.values():
            if not self.cells:
                raise Left
            self.cells -= 1
            found = run()
            known = {name: found[part] for part, name in figures.items()}
        for name, value in known.items():
            self.add(told(name, float(value or 0.0)))


class Left(Exception):
    """Cells are left for the next call."""


def rates(book: Book, setting: Setting, work: Path) -> None:
    """Try the rates of the grid; hold those in use against the best of them."""
    made_of = World(
        *world(work, setting.people, setting.images, 1),
        world(work, setting.tuned_on, setting.unseen_images, 3),
    )
    for name, pairs in GRID.items():
        found: dict[tuple[float, float], float] = {}
        for pair in pairs:
            said = f"heads: rates: TAR at FAR 1e-3, %, {name}, net {pair[0]}, centres x {pair[1]}"

            def run(name: str = name, pair: tuple[float, float] = pair) -> dict[str, float]:
                return {"tar": 100 * cell(name, TUNED, made_of, setting.steps // 2, pair)["tar"]}

            book.cell({"tar": said}, run)
            found[pair] = book.value(said) or 0.0
        short = max(found.values()) - found[RATES[name]]
        what = f"heads: rates: points that those in use are below the best, {name}"
        book.add(ceiling(what, short, 0.1) if setting.seeds > 1 else told(what, short))


def accuracies(book: Book, setting: Setting, work: Path) -> None:
    """Run the cells that are missing; tell each, and their means."""
    unseen = world(work, setting.unseen, setting.unseen_images, 2)
    made_of = World(*world(work, setting.people, setting.images, 1), unseen)
    mean: dict[str, float] = {}
    torch.manual_seed(0)
    untrained = toy()
    with torch.no_grad():
        untrained(to_input(made_of.images[:2000]))  # statistics for its batch norms
    chance = tar(untrained, *unseen)
    book.add(told("heads: TAR at FAR 1e-3, %, not trained", 100 * chance))
    for seed in range(setting.seeds):  # whole rounds of heads first
        for name in HEADS:

            def run(name: str = name, seed: int = seed) -> dict[str, float]:
                found = cell(name, seed, made_of, setting.steps, RATES[LIKE.get(name, name)])
                return {**found, "tar": 100 * found["tar"]}

            book.cell(
                {
                    "speed": f"heads: images per second of CPU, {name}, seed {seed}",
                    "tar": f"heads: TAR at FAR 1e-3, %, {name}, seed {seed}",
                },
                run,
            )
    for name in HEADS:
        found = [
            book.value(f"heads: TAR at FAR 1e-3, %, {name}, seed {seed}") or 0.0
            for seed in range(setting.seeds)
        ]
        mean[name] = statistics.mean(found)
        book.add(told(f"heads: TAR at FAR 1e-3, %, {name}, mean of {setting.seeds}", mean[name]))
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        book.add(told(f"heads: TAR at FAR 1e-3, %, {name}, deviation of {setting.seeds}", spread))
    if setting.seeds > 1:
        for name in list(HEADS)[1:]:
            gap = mean[name] - mean["full softmax"]
            what = f"points over full softmax, {name}, mean of {setting.seeds}"
            book.add(floor(f"heads: TAR at FAR 1e-3, {what}", gap, -2))


def costs(book: Book, setting: Setting) -> None:
    """Tell memory and step time of each head, and how they grow with the classes."""
    few, many = setting.classes
    for name, (kind, _, _) in HEADS.items():
        for classes in dict.fromkeys((setting.people, *setting.classes)):
            book.add(
                told(f"heads: MB by count, {name}, {classes} classes",
                     head_bytes(name, classes) / 1e6)
            )  # fmt: skip
        share = [slots_of(name, classes) for classes in setting.classes]
        fixed = [min(FIXED, few)] * 2
        ways = {"": share} if kind == "partial_fc" else {"": share, f", {fixed[0]} slots": fixed}
        for way, slots in ways.items():
            if slots[0] < BATCH // 2:
                continue
            growth = f"heads: step time at {many} over {few} classes, {name}{way}"
            if (value := book.value(growth)) is None:
                before, after = step_times(name, setting, slots)
                book.add(told(f"heads: ms of a step, {name}{way}, {few} classes", 1000 * before))
                book.add(told(f"heads: ms of a step, {name}{way}, {many} classes", 1000 * after))
                value = after / before
            gate = way and setting.seeds > 1
            book.add(ceiling(growth, value, 1.25) if gate else told(growth, value))


def main() -> int:
    """Make the world, run the cells, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute, one seed, no gate")
    parser.add_argument("--seeds", type=int, help="runs of each head")
    parser.add_argument("--only", choices=["rates", "accuracy", "costs"])
    parser.add_argument("--cells", type=int, default=-1, help="run so many, then stop")
    parser.add_argument("--out", type=Path, help="keep the figures; finished cells are not rerun")
    parser.add_argument("--work", type=Path, help="keep the images here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    setting = QUICK if args.quick else Setting()
    setting = replace(setting, seeds=args.seeds or setting.seeds)
    book = Book(args.out, setting, args.cells)
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        try:
            if args.only == "rates":
                rates(book, setting, work)
            if args.only in ("accuracy", None):
                accuracies(book, setting, work)
            if args.only in ("costs", None):
                costs(book, setting)
        except Left:
            return 3
    return 1 if any(figure["holds"] is False for figure in book.shown) else 0


if __name__ == "__main__":
    raise SystemExit(main())
