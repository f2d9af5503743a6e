"""A full training step, loader included, against the reference loop; and what verification costs.

    python benchmarks/train.py --quick
    python benchmarks/train.py --peer CHECKOUT/recognition/arcface_torch

One JSON line a figure: {"figure", "value", "target", "holds"}; exit 1 where one falls short. Both
sides train the demo's toy iresnet (stem of stride 2) on the same images, one to an identity: batch
128, embedding 512, rate 0.1, SGD with momentum and decay, clipping, one compute thread, one loader
worker. glint reads its shards through `glint train`'s own step; the reference is train_v2.py's loop
moved to the CPU: torch's DataLoader over the RecordIO (decoded by simplejpeg, then flip, to float
and normalised one by one), DDP of one rank, the peer's partial_fc_v2.py with `--peer` and our dense
code of its semantics otherwise, `loss.item()` every step. Processes of their own, by turns; medians
over rounds of CPU time (workers included) and of wall time per step, after warming up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import ROOT, ceiling, floor, machine, spent, told
from head import ported
from shard import pictures, write_records

BATCH, DIM, RATE, LR = 128, 512, 0.1, 0.01
NET = {"layers": [1, 1, 1, 1], "widths": [8, 16, 32, 64], "stem_stride": 2}
RECIPE = """
[data]
path = "{data}"
batch = {batch}
workers = 1
[backbone]
name = "iresnet"
embedding = {dim}
options = {{ layers = {layers}, widths = {widths}, stem_stride = {stem_stride} }}
[head]
margin = "cosface"
rate = {rate}
rule = "{rule}"
[optim]
lr = {lr}
[schedule]
epochs = 10
[run]
device = "cpu"
threads = 1
log_every = 5
tensorboard = false
"""

# ---- sides, each in a process of its own --------------------------------------------------------


class Watch:
    """Notes the time of every step after the first few."""

    def __init__(self, warm: int, steps: int) -> None:
        self.warm, self.steps, self.count = warm, steps, 0
        self.begin = (0.0, 0.0)

    def step(self) -> bool:
        """Count a step; say whether that was enough."""
        self.count += 1
        if self.count == self.warm:
            self.begin = spent(), time.perf_counter()
        return self.count == self.warm + self.steps

    def result(self) -> dict[str, float]:
        """Give seconds per step."""
        cpu, wall = spent() - self.begin[0], time.perf_counter() - self.begin[1]
        return {"cpu": cpu / self.steps, "wall": wall / self.steps}


def glint_side(case: dict[str, Any]) -> dict[str, Any]:
    """Time `glint train`'s own step and give the split that its log tells."""
    from glint.dist.world import World
    from glint.recipes.load import load
    from glint.train import loop, metrics
    from glint.train.build import build
    from glint.train.recipe import Recipe

    out = Path(case["place"]) / "run"
    run = build(load(Path(case["recipe"]), Recipe, []), World(), out)
    log, watch = metrics.Log(run), Watch(case["warm"], case["steps"])
    for step, batches in loop.planned(run, 0, case["warm"] + case["steps"]):
        loss = loop.train_step(run, batches, step, LR, log).loss
        log.step(step, 0, LR, loss)
        if watch.step():
            break
    result: dict[str, Any] = watch.result()
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    result["time"] = lines[-1]["time"]
    os._exit(print(json.dumps(result), flush=True) or 0)  # type: ignore[func-returns-value]


def reference_side(case: dict[str, Any]) -> dict[str, Any]:
    """Time the reference's loop."""
    import simplejpeg
    import torch
    import torch.distributed as dist
    from torch.utils.data import DataLoader, Dataset

    from glint.nn import backbones
    from glint.shards import recordio

    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = (Path(case["source"]) / "train.idx").read_text().split("\n")
    offsets = [int(line.split("\t")[1]) for line in lines if line]

    class Images(Dataset[Any]):
        def __len__(self) -> int:
            return len(offsets)

        def __getitem__(self, index: int) -> Any:
            stop = offsets[index + 1] if index + 1 < len(offsets) else 1 << 62
            with open(Path(case["source"]) / "train.rec", "rb") as file:
                file.seek(offsets[index])
                record = file.read(min(stop - offsets[index], 1 << 16))
            length = int.from_bytes(record[4:8], "little") & (1 << 29) - 1
            header, jpeg = recordio.unpack(record[8 : 8 + length])
            label = int(header.label)
            pixels = simplejpeg.decode_jpeg(jpeg, "RGB")
            image = torch.from_numpy(pixels)
            if torch.rand(1) < 0.5:
                image = image.flip(1)
            image = image.permute(2, 0, 1).contiguous().float().div(255)
            return image.sub_(0.5).div_(0.5), torch.tensor(label, dtype=torch.long)

    loader: Any = DataLoader(Images(), BATCH, shuffle=True, num_workers=1, drop_last=True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    backbone = backbones.create("iresnet", embedding=DIM, **NET)
    model = torch.nn.parallel.DistributedDataParallel(
        backbone, broadcast_buffers=False, bucket_cap_mb=16, find_unused_parameters=True
    )
    model._set_static_graph()
    if case["peer"]:
        folder = Path(case["peer"])
        loss_of = ported(folder, "losses").CombinedMarginLoss(64, 1.0, 0.0, 0.4, 0)
        make = ported(folder, "partial_fc_v2").PartialFC_V2
        head = make(loss_of, DIM, case["classes"], RATE, False)
        weights = list(head.parameters())
    else:
        head, weights = dense_head(case["classes"])
    opt = torch.optim.SGD(
        [{"params": model.parameters()}, {"params": weights}],
        lr=LR, momentum=0.9, weight_decay=5e-4,
    )  # fmt: skip
    watch = Watch(case["warm"], case["steps"])
    while True:
        for image, label in loader:
            loss = head(model(image), label)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5)
            opt.step()
            opt.zero_grad()
            loss.item()
            if watch.step():
                result = watch.result()
                os._exit(print(json.dumps(result), flush=True) or 0)  # type: ignore[func-returns-value]


def dense_head(classes: int) -> Any:
    """Give a head with the peer's semantics in our own plain code, and its weights."""
    import torch
    import torch.nn.functional as F

    weight_CD = torch.nn.Parameter(torch.normal(0, 0.01, (classes, DIM)))
    k = int(RATE * classes)

    def head(feature_nD: Any, label_n: Any) -> Any:
        with torch.no_grad():
            score_C = torch.rand(classes)
            score_C[label_n] = 2.0
            index_k = torch.topk(score_C, k)[1].sort()[0]
            target_n = torch.searchsorted(index_k, label_n)
        cosine_nk = F.linear(F.normalize(feature_nD), F.normalize(weight_CD[index_k])).clamp(-1, 1)
        margin_nk = torch.zeros_like(cosine_nk).scatter_(1, target_n[:, None], 0.4)
        return F.cross_entropy(64 * (cosine_nk - margin_nk), target_n)

    return head, [weight_CD]


PARTS = ("step", "verification")
SIDES = {"glint": glint_side, "reference": reference_side}


# ---- figures ------------------------------------------------------------------------------------


def run_side(side: str, case: dict[str, Any]) -> dict[str, Any]:
    """Run one side and give what it said."""
    done = subprocess.run(
        [sys.executable, __file__, "--side", json.dumps({**case, "side": side})],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    said: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return said


def verification_side(case: dict[str, Any]) -> dict[str, Any]:
    """Verify a .bin of 6,000 pairs with a toy net; time the threshold search against the loop."""
    import numpy as np
    import torch

    from glint.evals.embed import verify
    from glint.evals.packs import read_bin
    from glint.evals.pairs import ten_fold
    from glint.nn import backbones

    net = backbones.create("iresnet", embedding=64, **NET).eval()

    def embed(image_nHWC: Any) -> Any:
        with torch.inference_mode():
            image = torch.from_numpy(image_nHWC).permute(0, 3, 1, 2).float().div(127.5).sub(1)
            return net(image).numpy()

    verify(embed, read_bin(case["bin"]))
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    draw = np.random.default_rng(0)
    same = np.arange(6000) % 600 < 300
    a_nD = draw.normal(size=(6000, 64))
    b_nD = np.where(
        same[:, None], a_nD + 2 * draw.normal(size=a_nD.shape), draw.normal(size=a_nD.shape)
    )
    found, took = ten_fold(a_nD, b_nD, same), []  # what it loads is not counted
    for _ in range(5):
        started = time.process_time()
        ten_fold(a_nD, b_nD, same)
        took.append(time.process_time() - started)
    ours = statistics.median(took)
    started = time.process_time()
    accuracy = reference_accuracy(a_nD, b_nD, same)
    loop = time.process_time() - started
    val = reference_val(a_nD, b_nD, same)
    theirs = time.process_time() - started
    return {"peak": peak, "ratio": theirs / ours, "loop": loop / ours, "accuracy": accuracy,
            "val": val, "equal": accuracy == found.accuracy and val == found.val}  # fmt: skip


def reference_distance(a_nD: Any, b_nD: Any) -> Any:
    """Give the squared distances of unit vectors."""
    import numpy as np

    a_nD = a_nD / np.linalg.norm(a_nD, axis=1, keepdims=True)
    b_nD = b_nD / np.linalg.norm(b_nD, axis=1, keepdims=True)
    return np.square(a_nD - b_nD).sum(1)


def reference_accuracy(a_nD: Any, b_nD: Any, same: Any) -> float:
    """Follow the field's procedure step by step: ten folds, 400 thresholds, one at a time."""
    import numpy as np

    distance = reference_distance(a_nD, b_nD)
    thresholds, n = np.arange(0, 4, 0.01), len(same)

    def accuracy(threshold: float, index: Any) -> float:
        said = distance[index] < threshold
        right = np.sum(np.logical_and(said, same[index])) + np.sum(
            np.logical_and(~said, ~same[index])
        )
        return float(right) / len(index)

    folds = np.array_split(np.arange(n), 10)
    found = []
    for fold in folds:
        rest = np.setdiff1d(np.arange(n), fold)
        best = int(np.argmax([accuracy(t, rest) for t in thresholds]))
        every = [accuracy(t, fold) for t in thresholds]  # as the field computes, and plots, them
        found.append(every[best])
    return float(np.mean(found))


def reference_val(a_nD: Any, b_nD: Any, same: Any) -> float:
    """Follow its second part: VAL at a FAR of 1e-3, 4,000 thresholds a fold, one at a time."""
    import numpy as np

    distance = reference_distance(a_nD, b_nD)
    thresholds, n = np.arange(0, 4, 0.001), len(same)

    def val_far(threshold: float, index: Any) -> tuple[float, float]:
        said = distance[index] < threshold
        true_accept = np.sum(np.logical_and(said, same[index]))
        false_accept = np.sum(np.logical_and(said, ~same[index]))
        return true_accept / np.sum(same[index]), false_accept / np.sum(~same[index])

    found = []
    for fold in np.array_split(np.arange(n), 10):
        rest = np.setdiff1d(np.arange(n), fold)
        far = np.array([val_far(t, rest)[1] for t in thresholds])
        limit = 0.0
        if far.max() >= 1e-3:
            after = int(np.argmax(far >= 1e-3))
            limit = np.interp(1e-3, far[after - 1 : after + 1], thresholds[after - 1 : after + 1])
        found.append(val_far(limit, fold)[0])
    return float(np.mean(found))


def write_bin(path: Path, images: list[bytes]) -> None:
    """Write a .bin of 6,000 pairs of JPEGs: a pickle of plain bytes and bools."""
    import pickle

    bins = [images[i % len(images)] + b"%d" % i for i in range(12_000)]  # all different
    path.write_bytes(pickle.dumps((bins, [i % 600 < 300 for i in range(6000)]), protocol=2))


def step_figures(
    place: Path, rounds: int, steps: int, quick: bool, peer: str
) -> list[dict[str, Any]]:
    """Run both sides of the step by turns."""
    classes, figures = 20_000 if quick else 100_000, []
    source, data = place / "source", place / "data"
    write_records(source, classes, pictures(), each=1, mark=False)
    subprocess.run(
        [sys.executable, "-m", "glint", "shard", source, data, "--json"],
        check=True, capture_output=True,
    )  # fmt: skip
    peer = str(Path(peer).resolve()) if peer else ""
    case = {"place": str(place), "source": str(source), "classes": classes, "warm": 5}
    case |= {"steps": steps, "peer": peer}
    cases: dict[str, tuple[str, dict[str, Any]]] = {"reference": ("reference", case)}
    for rule in ("none", "lazy_decay"):
        recipe = place / f"{rule}.toml"
        values = {"data": data, "batch": BATCH, "dim": DIM, "rate": RATE, "lr": LR, **NET}
        recipe.write_text(RECIPE.format(rule=rule, **values))
        cases[f"glint, {rule}"] = ("glint", {**case, "recipe": str(recipe)})
    costs: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, (side, made) in cases.items():
            costs[name].append(run_side(side, made))
    for name, found in costs.items():
        for kind in ("cpu", "wall"):
            rate = BATCH / statistics.median(cost[kind] for cost in found)
            figures.append(told(f"train: samples per second of {kind}, {name}", rate))
    for name in ("glint, none", "glint, lazy_decay"):
        for kind in ("cpu", "wall"):
            ratio = statistics.median(
                a[kind] / b[kind] for a, b in zip(costs["reference"], costs[name])
            )
            what = f"train: {name} over the reference, {kind}, {classes} classes"
            # the target is for 100,000 classes
            figures.append(told(what, ratio) if quick else floor(what, ratio, 1.5))
    for part in costs["glint, none"][0]["time"]:
        share = statistics.median(c["time"].get(part, 0.0) for c in costs["glint, none"])
        figures.append(told(f"train: share of wall time, {part}", share))
    return figures


def verification_figures(place: Path) -> list[dict[str, Any]]:
    """Tell what verifying 6,000 pairs costs."""
    figures = []
    write_bin(place / "pairs.bin", pictures())
    found = run_side("verification", {"bin": str(place / "pairs.bin")})
    figures.append(ceiling("verification: peak MiB of 6,000 pairs", found["peak"], 1024))
    figures.append(
        floor("verification: accuracy and VAL over the field's loops", found["ratio"], 100)
    )
    figures.append(told("verification: the same over its accuracy loop alone", found["loop"]))
    figures.append(
        {"figure": "verification: same accuracy and VAL to the last digit",
         "value": [found["accuracy"], found["val"]], "target": "equal",
         "holds": found["equal"]}
    )  # fmt: skip
    return figures


def main() -> int:
    """Make the material, run both sides by turns, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--peer", default="", help="a checkout of recognition/arcface_torch")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the figures, with the machine's name")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if args.side:
        case = json.loads(args.side)
        sides = {**SIDES, "verification": verification_side}
        print(json.dumps(sides[case["side"]](case)))
        return 0
    rounds, steps = args.rounds or (1 if args.quick else 3), args.steps or (8 if args.quick else 20)
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        if "step" in args.parts:
            figures += step_figures(Path(temporary), rounds, steps, args.quick, args.peer)
        if "verification" in args.parts:
            figures += verification_figures(Path(temporary))
    where = {**machine("torch", "numpy"), "rounds": rounds, "steps": steps, "peer": bool(args.peer)}
    for figure in figures:
        print(json.dumps(figure), flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps({**figure, **where}) + "\n")
    return 1 if any(figure["holds"] is False for figure in figures) else 0


if __name__ == "__main__":
    raise SystemExit(main())
