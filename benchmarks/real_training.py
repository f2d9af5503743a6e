"""Real faces, `glint train` and two cores: what is learned about people that were never seen?

    GLINT_SHARED=../shared python benchmarks/real_training.py [--quick] [--minutes 8] [--out FILE]

Trains a narrow MobileFaceNet on people of LFW's DevTrain list with two images or more and on
`data/bollywood` (both under GLINT_SHARED, not part of this project), half of the steps in one
process of two threads and, resumed, half in two ranks of one, and verifies the 1,000 pairs of
DevTest as it goes. Beside it: the net untrained, and a plain loop (DataLoader over files, all
classes, autograd, AdamW over everything) for as many CPU seconds, verified as often. On both sides
all that their processes spend counts, start-up and verification too. One JSON line a figure; exit 1
where one falls short. Nothing of the images is kept.
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
from pathlib import Path
from typing import Any

from figures import ROOT, floor, machine, spent, told
from real_faces import SHARED, reader, run_glint

BATCH, DIM, SCALE, MARGIN, LR, DECAY = 32, 128, 32.0, 0.35, 0.004, 0.05
NET: dict[str, Any] = {"width": 0.25, "blocks": [1, 2, 3, 1]}
CHECKS = 6  # verifications on the way
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


def glint_side(place: Path, images: int, minutes: float) -> dict[str, Any]:
    """Train with glint, the second half on two ranks; give the curve and the CPU seconds.

    minutes: of two cores; 0 is one epoch.
    """
    steps = images // BATCH

    def probe(count: int) -> float:
        before = spent_below()
        path = write_recipe(place / "probe.toml", place, epochs=1, threads=2)
        run_glint("train", path, "--out", place / f"probe{count}", "--set", "run.val=[]", "--set",
                  f"schedule.max_steps={count}")  # fmt: skip
        return spent_below() - before

    epochs = 1
    if minutes:  # how fast is it here?
        first = probe(5)
        a_step = max(1e-3, (probe(25) - first) / 20)
        epochs = max(1, round((minutes * 120 - 2 * first) / a_step / steps))
    half, run = epochs * steps // 2, place / "run"
    path = write_recipe(
        place / "glint.toml", place, epochs=epochs, warmup=epochs / 10, threads=2,
        every=max(5, -(-epochs * steps // CHECKS)),
    )  # fmt: skip
    before = spent_below()
    run_glint("train", path, "--out", run, "--set", f"schedule.max_steps={half}")
    result = run_glint("train", path, "--out", run, "--nproc", "2", "--set", "run.threads=1")
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found = [e for e in entries if e["kind"] == "verification"]
    curve = {e["step"] * BATCH: e["accuracy"] for e in found}  # the halves may end on the same
    return {
        "curve": sorted(curve.items()), "seconds": spent_below() - before, "half": half,
        "resumed": result["resumed_from"], "world": result["world"], "epochs": epochs,
    }  # fmt: skip


def plain_side(place: Path, seconds: float) -> dict[str, Any]:
    """Train the same net for so many CPU seconds in a plain loop; give its curve."""
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader, Dataset

    from glint.evals.embed import verify
    from glint.evals.packs import read_bin
    from glint.nn import backbones

    torch.set_num_threads(2)
    torch.manual_seed(0)
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


def plot(ours: list[Any], plain: list[Any]) -> str:
    """Draw both curves: accuracy over images seen."""
    wide, tall, left, top = 480, 200, 50, 30
    most = max(x for x, _ in [*ours, *plain])
    low = min(y for _, y in [*ours, *plain]) // 0.05 * 0.05
    high = -(-max(y for _, y in [*ours, *plain]) // 0.05) * 0.05

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = wide * x / most, tall * (high - y) / (high - low)
        return round(left + across, 1), round(top + up, 1)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + wide + 20} 286" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{left}" y="18">Accuracy on 1,000 pairs of people never seen</text>',
        f'<rect x="{left}" y="{top}" width="{wide}" height="{tall}" fill="none" stroke="#999"/>',
    ]
    for mark in range(round(low * 20), round(high * 20) + 1):
        y = at(0, mark / 20)[1]
        out.append(
            f'<path d="M{left} {y}h{wide}" stroke="#e4e4e4"/>'
            f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{5 * mark} %</text>'
        )
    for number, (name, colour, curve) in enumerate(
        (("glint train, resumed half-way on two ranks", "#1b6ca8", ours),
         ("a plain loop, as many CPU seconds", "#d1781d", plain))
    ):  # fmt: skip
        points = [at(x, y) for x, y in curve]
        line = "L".join(f"{x} {y}" for x, y in points)
        out.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in points]
        x = left + 250 * number
        out.append(f'<path d="M{x} 274h18" stroke="{colour}" stroke-width="3"/>'
                   f'<text x="{x + 24}" y="278">{name}</text>')  # fmt: skip
    words = f"images seen, 0 to {most:,}"
    out.append(f'<text x="{left + wide}" y="{top + tall + 18}" text-anchor="end">{words}</text>')
    return "\n".join([*out, "</svg>\n"])


def main() -> int:
    """Make the material, train both ways, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="1,000 images, a minute or two in all")
    parser.add_argument("--minutes", type=float, default=8.0, help="of two cores, for each side")
    parser.add_argument("--out", type=Path, help="write the figures, with the machine's name")
    parser.add_argument("--picture", type=Path, help="draw the curves as an SVG")
    parser.add_argument("--plain", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if args.plain:
        case = json.loads(args.plain)
        print(json.dumps(plain_side(Path(case["place"]), case["seconds"])))
        return 0
    if not (SHARED / "data" / "lfw").is_dir():
        print(f"no real faces under {SHARED}: set GLINT_SHARED", file=sys.stderr)
        return 2
    os.environ["OMP_WAIT_POLICY"] = "passive"  # a thread that waits spends no CPU seconds
    minutes = 0.0 if args.quick else args.minutes
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        shard = material(place, 1000 if args.quick else 0)
        ours = glint_side(place, shard["written"], minutes)
        case_ = json.dumps({"place": temporary, "seconds": ours["seconds"]})
        done = subprocess.run(
            [sys.executable, __file__, "--plain", case_], stdout=subprocess.PIPE, check=True
        )
        plain = json.loads(done.stdout)["curve"]
    untrained, (seen, last) = ours["curve"][0][1], ours["curve"][-1]
    figures = [
        told("real faces: images", shard["written"]),
        told("real faces: people", shard["identities"]),
        told("real faces: accuracy on unseen people, untrained", untrained),
        {**told("real faces: accuracy, glint train", last), "curve": ours["curve"]},
        {**told("real faces: accuracy, plain loop", plain[-1][1]), "curve": plain},
        told("real faces: CPU seconds of each", ours["seconds"]),
        told("real faces: images seen, glint", seen),
        told("real faces: images seen, plain loop", plain[-1][0]),
        {"figure": "real faces: resumed half-way, on two ranks", "value": ours["resumed"],
         "target": f"step {ours['half']}, 2 ranks",
         "holds": ours["resumed"] == ours["half"] and ours["world"] == 2},
    ]  # fmt: skip
    if not args.quick:  # half a minute teaches nothing; 0.01 is a standard error of 1,000 pairs
        figures.append(floor("real faces: glint above untrained", last - untrained, 0.10))
        ahead = last - plain[-1][1]
        figures.append(floor("real faces: glint above the plain loop", ahead, -0.01))
    where = {**machine("torch"), "epochs": ours["epochs"]}
    for figure in figures:
        print(json.dumps(figure), flush=True)
    if args.out:
        args.out.write_text("".join(json.dumps({**f, **where}) + "\n" for f in figures))
    if args.picture:
        args.picture.write_text(plot(ours["curve"], plain))
    return 1 if any(figure["holds"] is False for figure in figures) else 0


if __name__ == "__main__":
    raise SystemExit(main())
