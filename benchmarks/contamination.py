"""Half of a made test set planted into a training set: found with what recall and precision?

LFW with its y1 embeddings (GLINT_SHARED): 400 people with two images or more make a test; half of
them keep their other images in the training set, the rest of LFW is trained on as it is. 50 images
of the test are also copied into the training set byte for byte; all others of the planted people
are found by the search alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from figures import floor, machine, told
from numpy.random import default_rng

from glint.evals.packs import Pairs
from glint.evals.pairs import ten_fold
from glint.evals.sets import Part
from glint.pipelines import embed
from glint.pipelines.bench.contamination import TrainedOn
from glint.pipelines.dataset.shard import shard
from glint.shards.dataset import Dataset

SHARED = Path(os.environ.get("GLINT_SHARED", "../shared")) / "data"
PEOPLE = 400


class Looked:
    """A recogniser that looks up the embeddings that are there already, by the pixels."""

    dim, size, name, digest = 128, 112, "y1, looked up", "y1-lookup"

    def __init__(self) -> None:
        self.known: dict[int, np.ndarray] = {}

    def embed(self, image_nHWC: np.ndarray) -> np.ndarray:
        return np.stack([self.known[hash(one.tobytes())] for one in image_nHWC])


def lfw() -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """Read images, people and features, in the order of the record file."""
    from glint.shards.sources import open_source

    source = open_source(SHARED / "lfw" / "train.rec")
    images = [source.read(i) for i in range(source.n)]
    files = (SHARED / "features" / "lfw_files.txt").read_text().split()
    table = [line.split("\t") for line in (SHARED / "lfw" / "images.tsv").read_text().splitlines()]
    row_of = {name: i for i, name in enumerate(files)}
    file_of = {int(row[0]): row[3] for row in table[1:]}
    order = [row_of[file_of[int(source.name(i))]] for i in range(source.n)]
    features = np.load(SHARED / "features" / "lfw_y1_l2_f16.npy").astype(np.float32)[order]
    return images, source.label, features


def figures(people: int) -> Iterator[dict[str, Any]]:
    from glint.shards import pixels

    images, label, feature = lfw()
    rng = default_rng(0)
    value, count = np.unique(label, return_counts=True)
    chosen = rng.permutation(value[count >= 4])[:people]
    planted = set(chosen[: people // 2].tolist())
    test: list[int] = []
    train = [i for i in range(len(images)) if label[i] not in {*chosen.tolist()}]
    for person in chosen.tolist():
        own = rng.permutation(np.flatnonzero(label == person)).tolist()
        test += own[:2]
        train += own[2:] if person in planted else []
    copied = [test[2 * k] for k in range(0, people // 2, max(1, people // 100))]
    with tempfile.TemporaryDirectory() as folder:
        root, model = Path(folder), Looked()
        for number, i in enumerate([*train, *copied]):
            place = root / "src" / f"{label[i]:05d}" / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(images[i])
            model.known[hash(pixels.rgb(images[i]).tobytes())] = feature[i]
        shard(root / "src", root / "data", workers=1)
        embed.embed(Dataset(root / "data"), model, root / "emb", workers=1)
        trained = TrainedOn(root / "data", root / "emb", [model.digest])
        n = len(test) // 2
        same = np.tile([True, False], n)
        first = np.repeat(np.arange(n) * 2, 2)
        second = np.stack([np.arange(n) * 2 + 1, (np.arange(n) * 2 + 3) % (2 * n)], 1).reshape(-1)
        pairs = Pairs([images[i] for i in test], same, first, second)
        person = np.repeat(np.arange(n), 2)
        part = Part("made", "pairs", Path("made"), "")
        found = trained.known(part, pairs, feature[test], person)
    truth = np.array([int(label[i]) in planted for i in test])
    hit = found["people"]
    yield told("contamination_people_of_test", n)
    yield floor("contamination_recall", float((hit & truth).sum() / truth.sum()), 0.9)
    yield floor("contamination_precision", float((hit & truth).sum() / max(1, hit.sum())), 0.98)
    yield floor("contamination_images_found", found["images_found"] / len(copied), 1.0)
    x = feature[test]
    keep = ~(hit[first] | hit[second])
    yield told("contamination_accuracy_all", ten_fold(x[first], x[second], same).accuracy)
    clean = ten_fold(x[first][keep], x[second][keep], same[keep])
    yield told("contamination_pairs_without", int(keep.sum()))
    yield told("contamination_accuracy_without", clean.accuracy)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    missed = 0
    for figure in figures(100 if chosen.quick else PEOPLE):
        print(json.dumps({**figure, **machine("numpy")}), flush=True)
        missed += figure["holds"] is False
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
