"""Names hidden: does clustering give them back, and does a net learn as much from the clusters?

    GLINT_SHARED=../shared python benchmarks/hidden_names.py [--quick] [--seeds 3] [--out FILE]

Every crop of LFW (under GLINT_SHARED, not part of this project) in one heap, under numbers drawn at
random, through glint's commands as shipped: `shard --unlabelled`, `embed` with a published
1 M-parameter recogniser, `cluster`. Its clusters are held against the names by counting pairs here,
and no threshold is chosen by them. Then people of DevTrain with two images or more and
`data/bollywood`, without names, the same way and `cluster apply`: a narrow net trained on the
clusters and one trained on the names, with the same steps, verify DevTest's 1,000 pairs of people
never seen. One JSON line a figure; exit 1 where one falls short. Nothing of the images is kept.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from figures import floor, machine, told
from real_faces import SHARED, reader, run_glint
from real_training import lay_out, write_pairs, write_recipe

MODEL = "mobilefacenet_y1_128d.onnx"
STEPS = 200  # of 32 images


def heap(images: list[tuple[str, bytes]], folder: Path) -> dict[str, str]:
    """Write images under numbers drawn at random; give file name -> person."""
    (folder / "all").mkdir(parents=True)
    order = np.random.default_rng(0).permutation(len(images))
    name_of = {}
    for number, i in enumerate(order.tolist()):
        person, data = images[i]
        name_of[f"{number:06d}.jpg"] = person
        (folder / "all" / f"{number:06d}.jpg").write_bytes(data)
    return name_of


def lfw(most: int) -> list[tuple[str, bytes]]:
    """Give every image of LFW with its person; `most` at most, 0 = all."""
    home = SHARED / "data" / "lfw"
    image_of = reader(home)
    rows = list(csv.DictReader((home / "images.tsv").open(), delimiter="\t"))
    return [(row["person"], image_of(row["key"])) for row in rows[: most or None]]


def clustered(place: Path, source: Path) -> tuple[Path, Path]:
    """Shard a heap without names, embed and cluster it; give the dataset and the clusters."""
    data, emb, found = place / "data", place / "emb", place / "clusters"
    run_glint("shard", source, data, "--unlabelled")
    run_glint("embed", data, "--model", SHARED / "data" / "models" / MODEL, "--out", emb)
    run_glint("cluster", emb, "--out", found)
    return data, found


def agreement(data: Path, found: Path, name_of: dict[str, str]) -> tuple[float, float]:
    """Give the pairwise and the BCubed F-measure of clusters, counted plainly."""
    rows = pq.read_table(data / "samples.parquet", columns=["key", "source"]).to_pylist()
    person_of = {row["key"]: name_of[Path(row["source"]).name] for row in rows}
    faces = pq.read_table(found / "faces.parquet", columns=["key", "identity"]).to_pylist()
    both = [(face["identity"], person_of[face["key"]]) for face in faces]
    cell, cluster, person = Counter(both), Counter(a for a, _ in both), Counter(b for _, b in both)

    def pairs(counts: Counter[Any]) -> float:
        return sum(n * (n - 1) / 2 for n in counts.values())

    precision, recall = pairs(cell) / pairs(cluster), pairs(cell) / pairs(person)
    bp = sum(n * n / cluster[a] for (a, _), n in cell.items()) / len(both)
    br = sum(n * n / person[b] for (_, b), n in cell.items()) / len(both)
    return 2 * precision * recall / (precision + recall), 2 * bp * br / (bp + br)


def main() -> int:
    """Cluster, hold against the names, train, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="400 images, 10 steps, one seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures, with the machine's name")
    args = parser.parse_args()
    if not (SHARED / "data" / "lfw").is_dir():
        print(f"no real faces under {SHARED}: set GLINT_SHARED", file=sys.stderr)
        return 2
    figures: list[dict[str, Any]] = []

    def say(figure: dict[str, Any]) -> None:
        figures.append(figure)
        print(json.dumps(figure), flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        images = lfw(400 if args.quick else 0)
        name_of = heap(images, place / "lfw")
        data, found = clustered(place / "of lfw", place / "lfw")
        pairwise, bcubed = agreement(data, found, name_of)
        say(told("LFW without names: images", len(images)))
        say(floor("LFW without names: pairwise F", pairwise, 0.99))
        say(floor("LFW without names: BCubed F", bcubed, 0.98))

        lay_out(place / "people", 400 if args.quick else 0)
        write_pairs(place / "pairs.bin")
        run_glint("shard", place / "people", place / "named")
        people = [(home.name, file.read_bytes()) for home in sorted((place / "people").iterdir())
                  for file in sorted(home.iterdir())]  # fmt: skip
        name_of = heap(people, place / "heap")
        data, found = clustered(place / "of heap", place / "heap")
        pairwise, bcubed = agreement(data, found, name_of)
        say(told("to train on: images", len(people)))
        say(told("to train on: pairwise F", pairwise))
        say(told("to train on: BCubed F", bcubed))
        applied = run_glint("cluster", "apply", found, data)
        say(told("to train on: identities found", applied["classes"]))
        accuracy: dict[str, list[float]] = {"names": [], "clusters": []}
        for seed in range(1 if args.quick else args.seeds):
            for kind, root in (("names", place / "named"), ("clusters", data)):
                path = write_recipe(place / "it.toml", place, data=root, epochs=100)
                got = run_glint(
                    "train", path, "--out", place / f"{kind} {seed}", "--set", f"run.seed={seed}",
                    "--set", f"schedule.max_steps={10 if args.quick else STEPS}",
                )  # fmt: skip
                accuracy[kind].append(got["accuracy"])
        for kind, values in accuracy.items():
            say({**told(f"accuracy on people never seen, trained on {kind}, mean",
                        float(np.mean(values))), "seeds": values})  # fmt: skip
        less = np.array(accuracy["names"]) - np.array(accuracy["clusters"])
        if len(less) > 1:
            error = float(less.std(ddof=1) / len(less) ** 0.5)
            say(told("what clusters cost, standard error", error))
            say(told("what clusters cost in accuracy", float(less.mean())))
    head = {"benchmark": "hidden_names", "quick": args.quick, **machine("numpy", "torch")}
    if args.out:
        args.out.write_text("".join(json.dumps(line) + "\n" for line in [head, *figures]))
    return 1 if not args.quick and any(figure["holds"] is False for figure in figures) else 0


if __name__ == "__main__":
    raise SystemExit(main())
