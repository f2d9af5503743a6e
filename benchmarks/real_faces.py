"""Real faces, a real recogniser, glint's own commands: does the road give known figures?

    GLINT_SHARED=../shared python benchmarks/real_faces.py [--quick] [--out FILE]

Reads `data/lfw/train.rec` and `data/models/*.onnx` under GLINT_SHARED (not part of this project),
lays the images out as identity folders with every second identity of two or more images split in
two, and runs shard, eval, embed and dedup-conflicts. One JSON line a figure; exit 1 where one falls
short. Nothing of the images is kept.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from glint.shards import recordio

SHARED = Path(os.environ.get("GLINT_SHARED", Path(__file__).parents[2] / "shared"))
MODEL = "mobilefacenet_y1_128d.onnx"
STATED = 0.9938  # ten folds, no flip, from the README beside the data


def run_glint(*args: str | Path) -> dict[str, Any]:
    """Run one command and give its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "glint", *map(str, args), "--json"],
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def reader(lfw: Path) -> Callable[[str], bytes]:
    """Give what reads an encoded image by its key."""
    lines = (line.split("\t") for line in (lfw / "train.idx").open())
    offsets = {int(key): int(offset) for key, offset in lines}
    with (lfw / "train.rec").open("rb") as file:
        data = mmap(file.fileno(), 0, access=ACCESS_READ)
    return lambda key: recordio.unpack(recordio.parse(data, offsets[int(key)])[0])[1]


def lay_out(lfw: Path, folder: Path, people: int | None) -> tuple[dict[str, str], set[str]]:
    """Write identity folders, some split in two; give (file -> new path, names split)."""
    rows = list(csv.DictReader((lfw / "images.tsv").open(), delimiter="\t"))
    by_person: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_person.setdefault(row["person"], []).append(row)
    if people:
        by_person = dict(list(by_person.items())[:people])
    image_of = reader(lfw)
    rng = np.random.default_rng(0)
    where: dict[str, str] = {}
    split: set[str] = set()
    for person, images in by_person.items():
        cut = len(images)
        if len(images) >= 2 and rng.random() < 0.5:
            cut = int(rng.integers(1, len(images)))
            images = [images[i] for i in rng.permutation(len(images))]
            split.add(person)
        for number, row in enumerate(images):
            home = folder / (person if number < cut else f"{person}__second")
            home.mkdir(parents=True, exist_ok=True)
            path = home / Path(row["file"]).name
            path.write_bytes(image_of(row["key"]))
            where[row["file"]] = f"{home.name}/{path.name}"
    return where, split


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="1,000 people, no accuracy")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lfw, model = SHARED / "data" / "lfw", SHARED / "data" / "models" / MODEL
    if not model.exists():
        print(f"no real faces under {SHARED}: set GLINT_SHARED", file=sys.stderr)
        return 2
    lines: list[dict[str, Any]] = []

    def figure(name: str, value: float, target: str, holds: bool) -> None:
        lines.append({"figure": name, "value": value, "target": target, "holds": holds})
        print(json.dumps(lines[-1]), flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        where, split = lay_out(lfw, work / "people", 1000 if args.quick else None)
        shard = run_glint("shard", work / "people", work / "data")
        figure(
            "images written of read",
            shard["written"],
            f"{shard['read']}",
            shard["written"] == shard["read"] == len(where),
        )
        if not args.quick:
            pairs = list(csv.DictReader((lfw / "pairs.tsv").open(), delimiter="\t"))
            with (work / "pairs.tsv").open("w") as file:
                file.write("fold\ta\tb\tsame\n")
                for row in pairs:
                    file.write(
                        f"{row['fold']}\t{where[row['a']]}\t{where[row['b']]}\t{row['same']}\n"
                    )
            got = run_glint(
                "eval",
                "--model",
                model,
                "--dataset",
                work / "data",
                "--pairs",
                work / "pairs.tsv",
                "--no-flip",
            )
            figure(
                "LFW accuracy, 6000 pairs, no flip",
                got["accuracy"],
                f"{STATED} +- 0.005",
                abs(got["accuracy"] - STATED) <= 0.005,
            )
        run_glint("embed", work / "data", "--model", model, "--out", work / "emb")
        run_glint(
            "dedup-conflicts",
            work / "data",
            "--embeddings",
            work / "emb",
            "--out",
            work / "conflicts",
            "--no-thumbs",
        )
        names = pq.read_table(work / "data" / "identities.parquet")["source_label"].to_pylist()
        rows = pq.read_table(work / "conflicts" / "pairs.parquet").to_pylist()
        planted = {frozenset((person, f"{person}__second")) for person in split}
        counts = dict(
            zip(*np.unique([Path(p).parent.name for p in where.values()], return_counts=True))
        )
        merged = {
            frozenset((names[r["a"]], names[r["b"]])) for r in rows if r["verdict"] == "merge"
        }
        found = merged & planted
        several = {p for p in planted if min(counts[name] for name in p) >= 2}
        figure("planted splits", len(planted), "-", True)
        figure(
            "recall of planted splits, auto-merge",
            len(found) / len(planted),
            ">= 0.90",
            len(found) / len(planted) >= 0.90,
        )
        figure(
            "recall where both halves have two faces or more",
            len(found & several) / len(several),
            ">= 0.95",
            len(found & several) / len(several) >= 0.95,
        )
        figure(
            "precision of merges (known duplicates of LFW counted as wrong)",
            len(found) / len(merged),
            ">= 0.93",
            len(found) / len(merged) >= 0.93,
        )
    if args.out:
        args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0 if all(line["holds"] for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
