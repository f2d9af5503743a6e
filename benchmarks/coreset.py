"""Face-NMS: what choosing costs, and whether a chosen part of the images trains as well as all.

    python benchmarks/coreset.py [--quick] [--work FOLDER] [--out FILE]

Cost: 1,000,000 rows of 512 float16 in 50,000 identities of bursts (near-equal rows); one process
chooses 60 %. Worth: a world of people who do not exist, eight photographs of each and twice as many
further frames of them that hardly differ: about half of those follow one photograph, a quarter a
second, and so on. A proxy net trained on a random 30 % gives the embeddings. The same small net is
then trained for the same epochs on all images, on 60 % and 30 % by Face-NMS, and on 60 % and 30 %
by chance, three seeds each, and judged on people who were in no training: TAR at FAR 1e-3 over all
pairs of their images. One JSON line a figure, exit 1 where one falls short.
With --work, finished cells are kept there and the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import simplejpeg
from figures import ROOT, ceiling, floor, machine, told

from glint import schemas
from glint.files import parquet
from glint.log import silent
from glint.models.recogniser import open_model
from glint.pipelines import balance, coreset, embed
from glint.pipelines.dataset import shard
from glint.search import nms
from glint.shards.dataset import Dataset
from glint.shards.embeddings import load
from glint.synth import faces

ARMS = {"all": 1.0, "nms 60": 0.6, "random 60": 0.6, "nms 30": 0.3, "random 30": 0.3}
CHANGES = {
    "data.batch": 64,
    "data.workers": 0,
    "backbone.options.widths": [8, 16, 32, 64],
    "head.rate": 1.0,
    "head.threshold": 0.0,
    "optim.lr": 0.05,
    "run.tensorboard": "false",
    "run.save_every": 100000,
}

# ---- cost ---------------------------------------------------------------------------------------


def burst_rows(path: Path, n: int, dim: int, each: int) -> np.ndarray:
    """Write unit rows, identity by identity in a random order; give their identities."""
    rng = np.random.default_rng(0)
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(n, dim))
    label = np.repeat(np.arange(n // each), each)[rng.permutation(n)]
    person = rng.normal(size=(n // each, dim)).astype(np.float32)
    views = max(2, each // 3)
    for start in range(0, n, 20000):
        part = label[start : start + 20000]
        view = part * views + rng.integers(0, views, len(part))
        row = person[part].copy()
        for i, seed in enumerate(view.tolist()):  # one direction a photograph, a little a frame
            row[i] += 0.8 * np.random.default_rng([1, seed]).standard_normal(dim, np.float32)
        row += 0.25 * rng.standard_normal(row.shape, np.float32)
        rows[start : start + 20000] = row / np.linalg.norm(row, axis=1, keepdims=True)
    rows.flush()
    return label


def anonymous() -> float:
    """Give the memory of this process that is no mapped file, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return 0.0


def cost(n: int, dim: int, each: int) -> list[dict[str, Any]]:
    """Choose 60 % of the rows; give time, memory and what was kept."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        label = burst_rows(path, n, dim, each)
        sample = np.load(path, mmap_mode="r")
        before, most, done = anonymous(), [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                most[0] = max(most[0], anonymous())

        thread = threading.Thread(target=watch)
        thread.start()
        wall, cpu = time.perf_counter(), time.process_time()
        ranking = nms.rank(sample, label, n // each)
        chosen = nms.select_count(sample, ranking, round(0.6 * n))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        done.set()
        thread.join()
    name = f"{n:,} x {dim}: "
    return [
        ceiling(name + "seconds of CPU to choose 60 %", cpu, 120 * n / 1e6),
        told(name + "seconds of wall time", wall),
        ceiling(name + "MiB beside the mapped rows", most[0] - before, 1024),
        told(name + "MiB at most, mapped rows included", resource.getrusage(0).ru_maxrss / 1024),
        ceiling(
            name + "images off 60 %, exactly", abs(int(chosen.kept_N.sum()) - round(0.6 * n)), 0
        ),
        told(name + "threshold found", chosen.threshold),
        told(name + "restored to make it exact", int((chosen.reason_N == nms.RESTORED).sum())),
    ]


# ---- worth --------------------------------------------------------------------------------------


def frame(image: np.ndarray, rng: np.random.Generator) -> bytes:
    """Give the next frame: moved by up to two pixels, a little lighter or darker."""
    dy, dx = rng.integers(0, 5, 2)
    moved = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")[dy : dy + 112, dx : dx + 112]
    moved = np.clip(moved * rng.uniform(0.94, 1.06), 0, 255).astype(np.uint8)
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(moved), quality=90))


def world(out: Path, seed: int, people: int, photographs: int, bursts: bool) -> Dataset:
    """Shard people with so many photographs each and, with bursts, three times the images."""
    if not (out / "manifest.json").exists():
        rng = np.random.default_rng(seed)
        with tempfile.TemporaryDirectory() as folder:
            for number in range(people):
                home = Path(folder) / f"{number:05d}"
                home.mkdir()
                who = faces.person(seed, number)
                share = rng.permutation(0.5 ** np.arange(photographs))
                more = rng.multinomial(2 * photographs * bursts, share / share.sum())
                for photo in range(photographs):
                    data = faces.photograph(who, seed, number, photo)
                    image = simplejpeg.decode_jpeg(data)
                    (home / f"{photo:03d}_00.jpg").write_bytes(data)
                    for i in range(1, 1 + int(more[photo])):
                        (home / f"{photo:03d}_{i:02d}.jpg").write_bytes(frame(image, rng))
            shard.shard(folder, out, shard.Options(), workers=1, max_bad=0, progress=silent)
    return Dataset(out)


def by_chance(dataset: Dataset, path: Path, ratio: float, seed: int) -> None:
    """Write the sampling table of a random part, two images of each identity at least."""
    rng = np.random.default_rng(seed)
    rank = np.empty(dataset.n, np.int64)  # inside the identity, in a random order
    for label in range(dataset.classes):
        row = dataset.rows_of(label)
        rank[row] = rng.permutation(len(row))
    first = np.lexsort((rng.random(dataset.n), rank >= 2))
    left = np.sort(first[round(ratio * dataset.n) :])
    count = np.bincount(dataset.label, minlength=dataset.classes)
    rows = [left[dataset.label[left] == label].tolist() for label in range(dataset.classes)]
    kept = count - [len(one) for one in rows]
    one = np.ones(dataset.classes)
    table = pa.table(
        [np.arange(dataset.classes), kept, kept.astype(float), one, kept.astype(float)],
        schema=schemas.SAMPLING.with_metadata({"format": balance.FORMAT, "label_version": "0"}),
    )
    parquet.write(path, table.append_column(schemas.LEFT_OUT, pa.array(rows, pa.list_(pa.int64()))))


def train(data: Path, out: Path, sampling: Path | str, seed: int, epochs: int) -> dict[str, Any]:
    """Train by `glint train`; give its CPU and wall seconds."""
    changes = {
        **CHANGES, "data.path": data, "data.sampling": sampling, "run.seed": seed,
        "schedule.epochs": epochs,
    }  # fmt: skip
    told_ = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "glint", "train", ROOT / "train/synth_tiny.toml", *told_,
         "--out", out, "--json"],
        check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": cpu, "wall": time.perf_counter() - wall}


def judge(model: Path, held: Dataset, out: Path) -> dict[str, float]:
    """Give TAR at FAR 1e-3, and at 1e-2, over all pairs of the held-out images."""
    if not (out / "embeddings.json").exists():
        embed.embed(held, open_model(model, threads=1), out, dtype="float32", workers=1)
    row = np.load(out / "samples.npy")
    upper = np.triu_indices(len(row), 1)
    cosine, same = (row @ row.T)[upper], (held.label[:, None] == held.label)[upper]
    impostor = np.sort(cosine[~same])[::-1]
    return {
        f"tar_{far:g}": float((cosine[same] > impostor[int(far * len(impostor))]).mean())
        for far in (1e-3, 1e-2)
    }


def worth(
    work: Path, *, people: int, photographs: int, epochs: int, seeds: int, most: int
) -> list[Any]:
    """Train every arm and seed that `work` does not hold yet; give the figures.

    most: cells to train before giving up for now; then there are no figures.
    """
    data = world(work / "data", 1, people, photographs, True)
    held = world(work / "held", 2, max(20, people // 3), 10, False)
    proxy = work / "proxy"
    if not (proxy / "embeddings.json").exists():
        by_chance(data, work / "proxy.parquet", 0.3, 99)
        train(work / "data", work / "proxy_run", work / "proxy.parquet", 99, epochs)
        embed.embed(data, open_model(work / "proxy_run", threads=1), proxy, workers=1)
    emb = load(proxy, data.digest, images=data.n, classes=data.classes)
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    figures = [told("images of the burst world", data.n), told("identities", data.classes)]
    for seed in range(seeds):
        for arm, ratio in ARMS.items():
            cell = work / f"{arm.replace(' ', '_')}_{seed}.json"
            if not cell.exists():
                if not most:
                    return []
                most -= 1
                sampling: Path | str = ""
                if arm.startswith("nms"):
                    core = work / f"core_{arm[-2:]}"
                    coreset.run(data, emb, core, coreset.Options(ratio=ratio))
                    sampling = core / "sampling.parquet"
                elif arm.startswith("random"):
                    sampling = work / f"random_{arm[-2:]}_{seed}.parquet"
                    by_chance(data, sampling, ratio, seed)
                run = work / f"run_{arm.replace(' ', '_')}_{seed}"
                spent = train(work / "data", run, sampling, seed, epochs)
                tars = judge(run, held, work / f"held_{arm.replace(' ', '_')}_{seed}")
                cell.write_text(json.dumps({**tars, **spent}))
                print(f"# {arm} seed {seed}: {tars} {spent}", file=sys.stderr, flush=True)
            found[arm].append(json.loads(cell.read_text()))
    mean = {
        arm: {key: float(np.mean([one[key] for one in cells])) for key in cells[0]}
        for arm, cells in found.items()
    }
    for arm, cells in found.items():
        for key in ("tar_0.001", "tar_0.01"):
            values = [round(one[key], 4) for one in cells]
            figures.append({**told(f"{arm} %: {key}", mean[arm][key]), "seeds": values})
        figures.append(told(f"{arm} %: CPU seconds of training", mean[arm]["cpu"]))
    point = {arm: 100 * one["tar_0.001"] for arm, one in mean.items()}
    return [
        *figures,
        floor("60 %: NMS less random, points", point["nms 60"] - point["random 60"], 0.0),
        floor("30 %: NMS less random, points", point["nms 30"] - point["random 30"], 0.0),
        floor("60 % by NMS less all, points", point["nms 60"] - point["all"], -1.0),
        floor("all over 60 %, training time", mean["all"]["cpu"] / mean["nms 60"]["cpu"], 1.4),
    ]


def main() -> int:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute; says little")
    parser.add_argument("--work", type=Path, help="keep cells here, and go on from them")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=("cost", "worth"))
    parser.add_argument("--cells", type=int, default=1000, help="train so many, then stop")
    args = parser.parse_args()
    lines = []

    def show(figures: list[dict[str, Any]]) -> None:
        for line in figures:
            lines.append(line)
            print(json.dumps(line), flush=True)

    show([{"figure": "machine", "target": None, "holds": None,
           "value": machine("numpy", "torch")}])  # fmt: skip
    if args.only != "worth":
        show(cost(20_000, 128, 20) if args.quick else cost(1_000_000, 512, 20))
    if args.only != "cost":
        with tempfile.TemporaryDirectory() as temporary:
            work = args.work or Path(temporary)
            work.mkdir(parents=True, exist_ok=True)
            size = {"people": 20, "photographs": 4, "epochs": 1, "seeds": 1}
            if not args.quick:
                size = {"people": 100, "photographs": 8, "epochs": 7, "seeds": 3}
            show(found := worth(work, **size, most=args.cells))
            if not found:
                return 3  # cells are left: the same command goes on
    if args.out:
        args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    judged = [] if args.quick else lines
    return 0 if all(line["holds"] is not False for line in judged) else 1


if __name__ == "__main__":
    raise SystemExit(main())
