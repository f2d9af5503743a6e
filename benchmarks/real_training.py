"""Real faces, `glint train` and two cores: what is learned about people that were never seen?

    GLINT_SHARED=../shared python benchmarks/real_training.py [--quick] [--seeds 3] [--minutes 4]
        [--out FILE] [--picture FILE]

Trains a narrow MobileFaceNet on people of LFW's DevTrain list with two images or more and on
`data/bollywood` (both under GLINT_SHARED, not part of this project), in one process and in two
ranks, and verifies the 1,000 pairs of DevTest as it goes. Beside each run a plain loop (DataLoader
over files, all classes, autograd, AdamW over everything, one process) of the same seed, for as many
CPU seconds, verified as often. On both sides all that their processes spend counts, start-up and
verification too. One JSON line a figure; exit 1 where one falls short. Nothing of the images is
kept.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from figures import PAPER, ROOT, floor, machine, spent, told
from real_faces import SHARED, reader, run_glint

BATCH, DIM, SCALE, MARGIN, LR, DECAY = 32, 128, 32.0, 0.35, 0.004, 0.05
NET: dict[str, Any] = {"width": 0.25, "blocks": [1, 2, 3, 1]}
CHECKS = 3  # verifications on the way
RECIPE = """
[data]
path = "{data}"
batch = {batch}
workers = 1
[backbone]
name = "{net}"
embedding = {dim}
options = {{ {options} }}
[head]
margin = "cosface"
m = {margin}
scale = {scale}
rule = "adamw"
[optim]
kind = "adamw"
lr = {lr}
weight_decay = {decay}
[schedule]
epochs = {epochs}
warmup = {warmup}
[run]
device = "cpu"
save_every = 100000
eval_every = {every}
threads = {threads}
channels_last = true
val = ["{pairs}"]
tensorboard = false
"""


def lay_out(folder: Path, most: int) -> None:
    """Write one folder per person to train on; `most` images at most, 0 = all."""
    lfw, count = SHARED / "data" / "lfw", 0
    image_of = reader(lfw)
    people = csv.DictReader((lfw / "peopleDevTrain.csv").open())
    taken = {row["name"] for row in people if int(row["images"]) >= 2}
    for row in csv.DictReader((lfw / "images.tsv").open(), delimiter="\t"):
        if row["person"] in taken and not 0 < most <= count:
            home = folder / f"lfw_{row['person']}"
            home.mkdir(parents=True, exist_ok=True)
            (home / Path(row["file"]).name).write_bytes(image_of(row["key"]))
            count += 1
    with tarfile.open(SHARED / "data" / "bollywood" / "bollywood112.tar") as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".jpg") and not 0 < most <= count:
                path = Path(member.name)
                home = folder / f"bollywood_{path.parent.name}"
                home.mkdir(parents=True, exist_ok=True)
                file = archive.extractfile(member)
                assert file is not None
                (home / path.name).write_bytes(file.read())
                count += 1


def write_pairs(path: Path) -> None:
    """Write DevTest's pairs as a pack: in each of ten runs as many of one person as of two."""
    from glint.evals.packs import write_bin

    lfw = SHARED / "data" / "lfw"
    image_of = reader(lfw)
    rows = csv.DictReader((lfw / "images.tsv").open(), delimiter="\t")
    key_of = {row["file"]: row["key"] for row in rows}

    def image(name: str, number: str) -> bytes:
        return image_of(key_of[f"{name}/{name}_{int(number):04d}.jpg"])

    images, flags = [], []
    same = list(csv.reader((lfw / "matchpairsDevTest.csv").open()))[1:]
    other = list(csv.reader((lfw / "mismatchpairsDevTest.csv").open()))[1:]
    for (name, i, j), (a, k, b, m) in zip(same, (row[:4] for row in other)):
        images += [image(name, i), image(name, j), image(a, k), image(b, m)]
        flags += [True, False]
    write_bin(path, images, flags)


def material(place: Path, most: int) -> dict[str, Any]:
    """Lay out people, pairs and the dataset made of them, unless they are there."""
    if not (place / "data" / "manifest.json").exists():
        lay_out(place / "people", most)
        write_pairs(place / "pairs.bin")
        run_glint("shard", place / "people", place / "data")
    told: dict[str, Any] = json.loads((place / "data" / "manifest.json").read_text())
    return told


def write_recipe(path: Path, place: Path, **values: Any) -> Path:
    """Write a recipe for the material of a place; `values` go before what is fixed here."""
    fixed = {"data": place / "data", "pairs": place / "pairs.bin", "batch": BATCH, "dim": DIM,
             "margin": MARGIN, "scale": SCALE, "lr": LR, "decay": DECAY, "net": "mobilefacenet",
             "options": NET, "warmup": 0.0, "every": 0, "threads": 1}  # fmt: skip
    known = {**fixed, **values}
    known["options"] = ", ".join(f"{k} = {json.dumps(v)}" for k, v in known["options"].items())
    path.write_text(RECIPE.format(**known))
    return path


def spent_below() -> float:
    """Give the CPU seconds of all processes below this one that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def epochs_of(place: Path, images: int, minutes: float) -> int:
    """Give the epochs that so many minutes of CPU pay for here, start-up included."""

    def probe(count: int) -> float:
        before = spent_below()
        path = write_recipe(place / "probe.toml", place, epochs=1)
        run_glint("train", path, "--out", place / f"probe{count}", "--set", "run.val=[]", "--set",
                  f"schedule.max_steps={count}")  # fmt: skip
        return spent_below() - before

    first = probe(5)
    a_step = max(1e-3, (probe(45) - first) / 40)
    return max(1, round((minutes * 60 - first) / a_step / (images // BATCH)))


def glint_side(place: Path, images: int, epochs: int, seed: int, ranks: int) -> dict[str, Any]:
    """Train with glint on so many ranks; give the curve and the CPU seconds."""
    steps, run = epochs * (images // BATCH), place / f"run {seed} {ranks}"
    path = write_recipe(place / "glint.toml", place, epochs=epochs, warmup=epochs / 10,
                        every=max(5, -(-steps // CHECKS)))  # fmt: skip
    before = spent_below()
    more = ["--nproc", str(ranks)] if ranks > 1 else []
    run_glint("train", path, "--out", run, *more, "--set", f"run.seed={seed}",
              "--set", f"data.batch={BATCH // ranks}")  # fmt: skip
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    curve = [[e["step"] * BATCH, e["accuracy"]] for e in entries if e["kind"] == "verification"]
    return {"curve": curve, "seconds": spent_below() - before}


def plain_side(place: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Train the same net for so many CPU seconds in a plain loop; give its curve."""
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader, Dataset

    from glint.evals.embed import verify
    from glint.evals.packs import read_bin
    from glint.nn import backbones

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    folders = sorted((place / "people").iterdir())
    files = [(path, i) for i, folder in enumerate(folders) for path in sorted(folder.iterdir())]
    pairs = read_bin(place / "pairs.bin")

    class Images(Dataset[Any]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> Any:
            import simplejpeg

            path, label = files[index]
            pixels = torch.from_numpy(simplejpeg.decode_jpeg(path.read_bytes(), "RGB"))
            if torch.rand(1) < 0.5:
                pixels = pixels.flip(1)
            return pixels.permute(2, 0, 1).float().div(127.5).sub(1), label

    layout: Any = {"memory_format": torch.channels_last}
    net = backbones.create("mobilefacenet", DIM, **NET).train().to(**layout)
    weight_CD = torch.nn.Parameter(torch.normal(0, 0.01, (len(folders), DIM)))
    params = [*net.parameters(), weight_CD]
    optimizer = torch.optim.AdamW(params, lr=LR, weight_decay=DECAY)
    loader: Any = DataLoader(
        Images(), BATCH, shuffle=True, num_workers=1, drop_last=True, persistent_workers=True
    )

    def embed(image_nHWC: Any) -> Any:
        with torch.inference_mode():
            image = torch.from_numpy(image_nHWC).permute(0, 3, 1, 2).float().div(127.5).sub(1)
            return net(image.contiguous(**layout)).numpy()

    def check() -> None:
        net.eval()
        curve.append((step * BATCH, verify(embed, pairs).accuracy))
        net.train()

    curve: list[tuple[int, float]] = []
    began, step, share = spent(), 0, 0.0
    check()
    seconds -= spent() - began  # what the last check will take
    while share < 1:
        for image_nCHW, label_n in loader:
            share = spent() / seconds
            if share >= len(curve) / CHECKS:
                check()
            if share >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = LR * min(1, 0.01 + 10 * share, (1 - share) / 0.9)
            cosine_nC = F.linear(F.normalize(net(image_nCHW.contiguous(**layout))),
                                 F.normalize(weight_CD))  # fmt: skip
            margin_nC = torch.zeros_like(cosine_nC).scatter_(1, label_n[:, None], MARGIN)
            loss = F.cross_entropy(SCALE * (cosine_nC - margin_nC), label_n)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            step += 1
    return {"curve": curve}


def plot(curves: dict[str, list[list[Any]]]) -> str:
    """Draw accuracy over images seen, a line for each run."""
    wide, tall, left, top = 480, 200, 50, 30
    points = [point for some in curves.values() for curve in some for point in curve]
    most = max(x for x, _ in points)
    low = min(y for _, y in points) // 0.05 * 0.05
    high = -(-max(y for _, y in points) // 0.05) * 0.05

    def at(x: float, y: float) -> str:
        across, up = wide * x / most, tall * (high - y) / (high - low)
        return f"{round(left + across, 1)} {round(top + up, 1)}"

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + wide + 20} 286" '
        'font-family="sans-serif" font-size="12">',
        PAPER,
        f'<text x="{left}" y="18">Accuracy on 1,000 pairs of people never seen</text>',
        f'<rect x="{left}" y="{top}" width="{wide}" height="{tall}" fill="none" stroke="#999"/>',
    ]
    for mark in range(round(low * 20), round(high * 20) + 1):
        y = float(at(0, mark / 20).split()[1])
        out.append(
            f'<path d="M{left} {y}h{wide}" stroke="#e4e4e4"/>'
            f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{5 * mark} %</text>'
        )
    for number, (name, colour) in enumerate(
        (("glint, one rank", "#1b6ca8"), ("glint, two ranks", "#5aa469"), ("plain loop", "#d1781d"))
    ):
        for curve in curves[name]:
            line = "L".join(at(x, y) for x, y in curve)
            out.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x = left + 160 * number
        out.append(f'<path d="M{x} 274h18" stroke="{colour}" stroke-width="3"/>'
                   f'<text x="{x + 24}" y="278">{name}</text>')  # fmt: skip
    words = f"images seen, 0 to {most:,}"
    out.append(f'<text x="{left + wide}" y="{top + tall + 18}" text-anchor="end">{words}</text>')
    return "\n".join([*out, "</svg>\n"])


def compared(ranks: int, ours: list[Any], plain: list[Any]) -> list[dict[str, Any]]:
    """Give the figures of some runs and of the plain loops beside them, one of each a seed."""
    name = "one rank" if ranks == 1 else "two ranks"
    last = {"glint": np.array([one["curve"][-1] for one in ours]),
            "plain loop": np.array([one["curve"][-1] for one in plain])}  # fmt: skip
    figures = [told(f"{name}: CPU seconds of each", float(np.mean([o["seconds"] for o in ours])))]
    for side, runs in (("glint", ours), ("plain loop", plain)):
        figures += [
            {**told(f"{name}: accuracy, {side}, mean", float(last[side][:, 1].mean())),
             "curves": [one["curve"] for one in runs]},
            told(f"{name}: images seen, {side}, mean", float(last[side][:, 0].mean())),
        ]  # fmt: skip
    ahead = last["glint"][:, 1] - last["plain loop"][:, 1]
    if len(ahead) > 1:  # the standard error of the mean difference, seeds paired
        error = float(ahead.std(ddof=1) / len(ahead) ** 0.5)
        figures.append(told(f"{name}: standard error of the difference", error))
        least = -max(error, 0.005)
        figures.append(floor(f"{name}: glint above the plain loop", float(ahead.mean()), least))
    return figures


def main() -> int:
    """Make the material, train both ways, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="1,000 images, one seed, one epoch")
    parser.add_argument("--minutes", type=float, default=4.0, help="of CPU, for each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--within", type=float, help="begin no seed after so many minutes")
    parser.add_argument("--out", type=Path, help="write the figures, with the machine's name")
    parser.add_argument("--picture", type=Path, help="draw the curves as an SVG")
    parser.add_argument("--plain", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if args.plain:
        case = json.loads(args.plain)
        print(json.dumps(plain_side(Path(case["place"]), case["seconds"], case["seed"])))
        return 0
    if not (SHARED / "data" / "lfw").is_dir():
        print(f"no real faces under {SHARED}: set GLINT_SHARED", file=sys.stderr)
        return 2
    os.environ["OMP_WAIT_POLICY"] = "passive"  # a thread that waits spends no CPU seconds
    figures: list[dict[str, Any]] = []

    def say(some: list[dict[str, Any]]) -> None:
        figures.extend(some)
        for figure in some:
            print(json.dumps(figure), flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        shard = material(place, 1000 if args.quick else 0)
        images = shard["written"]
        epochs = 1 if args.quick else epochs_of(place, images, args.minutes)
        say([told("images", images), told("people", shard["identities"]), told("epochs", epochs)])
        runs: dict[int, tuple[list[Any], list[Any]]] = {1: ([], []), 2: ([], [])}
        began = time.monotonic()
        for seed in range(1 if args.quick else args.seeds):
            if seed and args.within and time.monotonic() - began > 60 * args.within:
                break
            for ranks, (ours, plain) in runs.items():  # in turns: the machine's mood meets both
                ours.append(glint_side(place, images, epochs, seed, ranks))
                given = {"place": temporary, "seconds": ours[-1]["seconds"], "seed": seed}
                command = [sys.executable, __file__, "--plain", json.dumps(given)]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
                plain.append(json.loads(done.stdout))
                print(seed, ranks, ours[-1], plain[-1], file=sys.stderr, flush=True)
        say([told("seeds", len(runs[1][0]))])
        say([told("accuracy on unseen people, untrained", runs[1][0][0]["curve"][0][1])])
        for ranks, (ours, plain) in runs.items():
            say(compared(ranks, ours, plain))
    head = {"benchmark": "real_training", "quick": args.quick, **machine("torch")}
    if args.out:
        args.out.write_text("".join(json.dumps(line) + "\n" for line in [head, *figures]))
    if args.picture:
        drawn = {
            "glint, one rank": [one["curve"] for one in runs[1][0]],
            "glint, two ranks": [one["curve"] for one in runs[2][0]],
            "plain loop": [one["curve"] for some in (1, 2) for one in runs[some][1]],
        }
        args.picture.write_text(plot(drawn))
    return 1 if any(figure["holds"] is False for figure in figures) else 0


if __name__ == "__main__":
    raise SystemExit(main())
