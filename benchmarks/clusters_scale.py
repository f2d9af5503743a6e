"""Clusters by the graph of near faces: cost at four sizes, F-measures beside OGMC and k-means.

    GLINT_SHARED=../shared python benchmarks/clusters_scale.py [--quick] [--large N] [--only PART]
                                                               [--work FOLDER] [--out FILE]

The people are those of `ogmc.py` (one to three looks, one in ten six tenths somebody else), ten
faces each on average, 512 numbers, float16 on disk, in no order; every run is a process of its own
with one thread. `--only lfw | made | cost | large`; `--large`: one more size, alone. LFW's
embeddings (GLINT_SHARED) judge too, in three orders for OGMC. The constants of the graph were
chosen on half of LFW's people and a made stream of seed 7; the other half and other seeds judge.
One JSON line a figure, exit 1 where one falls short.
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
from figures import ceiling, floor, machine, told
from ogmc import people

from glint.evals.clusters import bcubed, pairwise
from glint.search import graph_clusters, neighbours
from glint.search.graph_clusters import GraphRules
from glint.search.online_clusters import ClusterRules, OnlineClusters, components

SHARED = Path(os.environ.get("GLINT_SHARED", Path(__file__).parents[2] / "shared"))
SIZES = (25_000, 50_000, 100_000, 200_000)
DIM, EACH, PEOPLE = 512, 10, 10_000  # people made at once
STEP = 0.02  # seconds between two looks at the memory


def crowd(folder: Path, n: int, seed: int = 3) -> Path:
    """Write n faces in no order, float16, and who they are."""
    path = folder / f"{n}-{seed}.npy"
    if path.exists():
        return path
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    face = np.lib.format.open_memmap(folder / "new.npy", "w+", np.float16, (n, DIM))
    person = np.empty(n, np.int32)
    for at in range(0, n, EACH * PEOPLE):
        rows = order[at : at + EACH * PEOPLE]
        made, who = people(len(rows), len(rows) // EACH, DIM, seed * 1000 + at // len(rows))
        face[rows], person[rows] = made, who + at // EACH
    face.flush()
    np.save(folder / f"{n}-{seed}.who.npy", person)
    (folder / "new.npy").rename(path)
    return path


class Peak:
    """The most memory of a process that is not of files, in bytes, less what it had at first."""

    def __init__(self) -> None:
        self.first, self.most, self._done = self._now(), 0, threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _now(self) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

    def _look(self) -> None:
        while not self._done.wait(STEP):
            self.most = max(self.most, self._now())

    def end(self) -> int:
        self._done.set()
        return max(self.most, self._now()) - self.first


def single(x: np.ndarray, cut: float) -> np.ndarray:
    """Single linkage: the connected components of the pairs from a cosine on."""
    near = neighbours.exact(x, cut)
    return components(len(x), near.a, near.b).astype(np.int64)


def kmeans(x: np.ndarray, count: int) -> np.ndarray:
    """Run faiss k-means, told how many people there are; five rounds, all faces."""
    import faiss

    face = np.asarray(x, np.float32)
    found = faiss.Kmeans(DIM, count, niter=5, spherical=True, seed=1, max_points_per_centroid=10**9,
                         min_points_per_centroid=1)  # fmt: skip
    found.train(face)
    return np.asarray(found.index.search(face, 1)[1][:, 0], np.int64)


def one(path: Path, method: str, work: Path) -> dict[str, Any]:
    """Cluster by one method, in this process."""
    import torch

    torch.set_num_threads(1)
    x = np.load(path, mmap_mode="r")
    said: dict[str, Any] = {}
    peak, begun, wall = Peak(), time.process_time(), time.monotonic()
    if method in ("cells", "exact"):
        edge = GraphRules().edge
        near = neighbours.exact(x, edge) if method == "exact" else neighbours.nearly(x, edge, work)
        said["search"] = time.process_time() - begun
        share = neighbours.recall(x, near, edge)
        said |= {"recall": share.of_pairs, "recall_faces": share.of_faces, "pairs": len(near.a)}
        label = graph_clusters.cluster(x, near, GraphRules(), work).identity_N
    elif method == "online":
        stream = OnlineClusters(x.shape[1], ClusterRules())
        stream.insert(x)
        label = stream.snapshot().identity_N
    elif method == "kmeans":
        label = kmeans(x, len(np.unique(np.load(path.with_suffix(".who.npy")))))
    else:
        label = single(x, float(method))
    said |= {
        "cpu": time.process_time() - begun,
        "wall": time.monotonic() - wall,
        "bytes": peak.end(),
        "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    }
    truth = np.load(path.with_suffix(".who.npy")).astype(np.int64)
    pair, cube = pairwise(label, truth), bcubed(label, truth)
    return {**said, "precision": pair.precision, "recalled": pair.recall, "pairwise": pair.f,
            "bcubed": cube.f, "identities": len(np.unique(label))}  # fmt: skip


def run(path: Path, method: str) -> dict[str, Any]:
    """Cluster in a process of its own, with one thread."""
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(path), method, work],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def quality(
    path: Path, name: str, methods: dict[str, str], orders: tuple[Path, ...] = ()
) -> list[dict[str, Any]]:
    """Judge methods on one set; OGMC as the mean of more orders of it, as it depends on them."""
    found = {said: run(path, method) for said, method in methods.items()}
    online = [found["OGMC, online"], *(run(other, "online") for other in orders)]
    for key in ("pairwise", "bcubed"):
        found["OGMC, online"][key] = float(np.mean([one[key] for one in online]))
    figures = [
        {**told(f"{name}: {said}, {what} F", one[key]), "cpu_s": round(one["cpu"], 1)}
        for said, one in found.items()
        for what, key in (("pairwise", "pairwise"), ("BCubed", "bcubed"))
    ]
    graph, ogmc = found["graph, most pairs"], found["OGMC, online"]
    return [
        *figures,
        *(told(f"{name}: graph, {what}", graph[key])
          for what, key in (("precision", "precision"), ("recall", "recalled"),
                            ("near pairs found, of all", "recall"),
                            ("near pairs found, a face", "recall_faces"))),
        *(floor(f"{name}: graph's {key} F less OGMC's", graph[key] - ogmc[key], 0.0)
          for key in ("pairwise", "bcubed")),
    ]  # fmt: skip


def cost(name: str, found: dict[str, Any], n: int) -> list[dict[str, Any]]:
    """Tell what a run cost, a face."""
    return [
        told(f"{name}: CPU ms a face", found["cpu"] / n * 1e3),
        told(f"{name}: of it the search", found["search"] / n * 1e3),
        told(f"{name}: memory, bytes a face", found["bytes"] / n),
        told(f"{name}: near pairs found", found["recall"]),
        told(f"{name}: pairwise F", found["pairwise"]),
        told(f"{name}: BCubed F", found["bcubed"]),
    ]


def main() -> int:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute; says little")
    parser.add_argument("--only", choices=("lfw", "made", "cost", "large"))
    parser.add_argument("--large", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(Path(args.one[0]), args.one[1], Path(args.one[2]))))
        return 0
    lines: list[dict[str, Any]] = []

    def show(figures: list[dict[str, Any]]) -> None:
        for line in figures:
            lines.append(line)
            print(json.dumps(line), flush=True)
        if args.out:
            args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))

    said = machine("numpy", "scipy", "torch", "faiss-cpu")
    show([{"figure": "machine", "target": None, "holds": None, "value": said}])
    methods = {"graph, most pairs": "cells", "graph, all pairs": "exact", "OGMC, online": "online"}
    with tempfile.TemporaryDirectory(dir=args.work) as kept:
        folder = args.work or Path(kept)
        real = SHARED / "data" / "features"
        if args.only in ("lfw", None) and (real / "lfw_y1_l2_f16.npy").exists():
            who = np.load(real / "lfw_labels.npy")
            half = np.random.default_rng(0).random(who.max() + 1)[who] >= 0.5
            for name, keep in (("LFW", half | True), ("LFW, the half not tuned on", half)):
                orders = []
                for seed in range(3):
                    row = np.random.default_rng(seed).permutation(np.flatnonzero(keep))
                    orders.append(Path(kept) / f"{len(row)}-{seed}.npy")
                    np.save(orders[-1], np.load(real / "lfw_y1_l2_f16.npy")[row])
                    np.save(orders[-1].with_suffix(".who.npy"), who[row])
                cuts = {f"single linkage at {cut}": str(cut) for cut in (0.5, 0.55)}
                show(quality(orders[0], name, {**methods, **cuts}, tuple(orders[1:])))
        if args.only in ("made", None):
            n = 5000 if args.quick else 100_000
            more = {"faiss k-means, told how many": "kmeans", "single linkage at 0.45": "0.45"}
            show(quality(crowd(folder, n), f"{n:,} made faces", {**methods, **more}))
        if args.only in ("cost", None):
            spent = {}
            for n in (2500, 5000) if args.quick else SIZES:
                spent[n] = run(crowd(folder, n), "cells")
                show(cost(f"{n:,} faces", spent[n], n))
            ends = [spent[n]["cpu"] / n for n in (min(spent), max(spent))]
            times = f"{max(spent) // min(spent)} times the faces: CPU a face, times"
            show([ceiling(times, ends[1] / ends[0], 1.5)])
        if args.only in ("large", None) and not args.quick:
            found = run(crowd(folder, args.large), "cells")
            name = f"{args.large:,} faces"
            show([*cost(name, found, args.large),
                  *(told(f"{name}: {what}", found[key]) for what, key in (
                      ("wall, s", "wall"), ("CPU, s", "cpu"), ("precision", "precision"),
                      ("recall", "recalled"), ("people found", "identities"))),
                  told(f"{name}: most resident memory, mapped files too, GB",
                       found["rss"] / 1e9)])  # fmt: skip
    return 0 if args.quick or all(line["holds"] is not False for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
