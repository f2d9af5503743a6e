"""Online clustering of faces against clustering them at once: F-measures, orders, faces per second.

    GLINT_SHARED=../shared python benchmarks/ogmc.py [--quick] [--peer-python PYTHON] [--out FILE]
                                        [--only lfw|synthetic|speed] [--work FOLDER]

Real: LFW's embeddings under GLINT_SHARED (features/lfw_y1_l2_f16.npy, not part of this project).
Synthetic: 10,000 faces of 1,000 people with one to three ways to look, 512 numbers. `glint`'s
clusters run with the constants that it is shipped with, in several orders; the others get the
threshold that fits this very truth best: single-centroid leader clustering (a face joins the
nearest mean or begins one), DBSCAN and average-linkage HAC of scikit-learn, which is looked for in
--peer-python (its own interpreter, as glint does not need it) and left out, with a word, where it
is not. One JSON line a figure, exit 1 where one falls short.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from figures import ceiling, floor, machine, told

from glint.evals.clusters import bcubed, pairwise
from glint.search.online_clusters import ClusterRules, OnlineClusters

SHARED = Path(os.environ.get("GLINT_SHARED", Path(__file__).parents[2] / "shared"))
EXTRAS = (0.05, 0.0)  # beside the shipped one
CUTS = [round(0.25 + 0.05 * i, 3) for i in range(8)]
PEER = """
import sys
import numpy as np
from sklearn.cluster import DBSCAN, AgglomerativeClustering
from scipy.cluster.hierarchy import fcluster
path, kind = sys.argv[1], sys.argv[2]
cuts = [float(x) for x in sys.argv[3:]]
row = np.load(path).astype(np.float32)
far = np.maximum(1 - row @ row.T, 0).astype(np.float64)
if kind == "hac":
    tree = AgglomerativeClustering(
        n_clusters=None, distance_threshold=0.0, metric="precomputed", linkage="average",
        compute_distances=True, compute_full_tree=True,
    ).fit(far)
    size = np.ones(2 * len(row) - 1)
    link = np.empty((len(row) - 1, 4))
    for i, (a, b) in enumerate(tree.children_):
        size[len(row) + i] = size[a] + size[b]
        link[i] = a, b, tree.distances_[i], size[len(row) + i]
    np.save(path + ".out.npy", [fcluster(link, 1 - cut, "distance") for cut in cuts])
else:
    found = []
    for cut in cuts:
        label = DBSCAN(eps=1 - cut, min_samples=int(kind), metric="precomputed").fit(far).labels_
        alone = label < 0
        label[alone] = len(row) + np.arange(alone.sum())
        found.append(label)
    np.save(path + ".out.npy", found)
"""


def people(n: int, count: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make faces of people who look one, two or three ways, some much more often than others.

    One in ten is six tenths somebody else.
    """
    rng = np.random.default_rng(seed)
    share = np.exp(0.8 * rng.standard_normal(count))
    person = rng.choice(count, n, p=share / share.sum())
    who = rng.standard_normal((count, dim), np.float32)
    alike = rng.permutation(count)[: count // 5].reshape(2, -1)
    who[alike[1]] = 0.6 * who[alike[0]] + 0.8 * who[alike[1]]
    ways = rng.integers(1, 4, count)
    way = person * 3 + (rng.random(n) * ways[person]).astype(int)
    look = 0.9 * rng.standard_normal((count * 3, dim), np.float32) + np.repeat(who, 3, axis=0)
    face = look[way] + 0.8 * rng.standard_normal((n, dim), np.float32)
    return face / np.linalg.norm(face, axis=1, keepdims=True), person


def scored(label: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Give pairwise and BCubed F."""
    return pairwise(label, truth).f, bcubed(label, truth).f


def online(
    face: np.ndarray, options: ClusterRules | None = None
) -> tuple[np.ndarray, OnlineClusters, float]:
    """Cluster, with the shipped constants or others; give identities, clusters and CPU seconds."""
    begun, stream = time.process_time(), OnlineClusters(face.shape[1], options)
    stream.insert(face)
    found = stream.snapshot().identity_N
    return found, stream, time.process_time() - begun


def leader(cut: float) -> ClusterRules:
    """Single-centroid leader clustering: the same program without connections and merges."""
    return ClusterRules(join=cut, connect=1.0, extra=1.0, merge=2.0)


class Runs:
    """Runs over one set in several orders, each made once and kept in `work`."""

    def __init__(self, name: str, face: np.ndarray, truth: np.ndarray, work: Path | None) -> None:
        self.name, self.face, self.truth, self.work = name, face, truth, work

    def run(self, seed: int, options: ClusterRules) -> dict[str, float]:
        """Give F-measures, clusters and identities of one order."""
        said = "-".join(str(value) for value in asdict(options).values())
        kept = self.work and self.work / f"{self.name}-{len(self.face)}-{seed}-{said}.json"
        if kept and kept.exists():
            return dict(json.loads(kept.read_text()))
        order = np.random.default_rng(seed).permutation(len(self.face))
        label, stream, _ = online(self.face[order], options)
        pair, cubed = pairwise(label, self.truth[order]), bcubed(label, self.truth[order])
        found = {
            "precision": pair.precision, "recall": pair.recall, "pairwise": pair.f,
            "BCubed": cubed.f, "clusters": stream.clusters, "identities": len(np.unique(label)),
        }  # fmt: skip
        if kept:
            kept.write_text(json.dumps(found))
        return found

    def table(self, orders: int, options: Sequence[ClusterRules], *what: str) -> np.ndarray:
        """Give figures of all orders and options: (orders, options, what)."""
        runs = [[self.run(seed, one) for one in options] for seed in range(orders)]
        return np.array([[[run[key] for key in what] for run in row] for row in runs])


def peer(python: str, face: np.ndarray, kind: str) -> list[np.ndarray] | None:
    """Cluster by scikit-learn at all cuts; None where it cannot."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        np.save(path, face)
        done = subprocess.run(
            [python, "-c", PEER, str(path), kind, *map(str, CUTS)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            print(f"# {kind}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            return None
        return list(np.load(f"{path}.out.npy"))


def best_cut(runs: Runs, orders: int) -> list[dict[str, Any]]:
    """Give glint the cut that fits this truth best, too: `connect` stays 0.05 below `join`."""
    options = [ClusterRules(join=cut, connect=round(cut - 0.05, 3)) for cut in CUTS]
    found = runs.table(orders, options, "pairwise", "BCubed")
    mean = found.mean(axis=0)
    figures = []
    for k, what in enumerate(("pairwise", "BCubed")):
        at = int(mean[:, k].argmax())
        line = told(f"{runs.name}: glint at its best cut, {what} F", mean[at, k])
        figures.append({**line, "cut": CUTS[at], "orders": found[:, at, k].round(4).tolist()})
    return figures


def few_faces(runs: Runs, orders: int) -> list[dict[str, Any]]:
    """Tell what the demand on clusters of few faces costs and brings: other values of `extra`."""
    options = [ClusterRules(), *(ClusterRules(extra=extra) for extra in EXTRAS)]
    found = runs.table(orders, options, "precision", "recall", "BCubed").mean(axis=0)
    return [
        told(f"{runs.name}: glint, extra {one.extra}, {what}", value)
        for one, values in zip(options, found)
        for what, value in zip(("pairwise precision", "pairwise recall", "BCubed F"), values)
    ]


def compare(runs: Runs, orders: int, python: str) -> list[dict[str, Any]]:
    """Judge all methods on one set."""
    name, face, truth = runs.name, runs.face, runs.truth
    figures = [told(f"{name}: faces", len(face)), told(f"{name}: people", len(np.unique(truth)))]
    shipped = runs.table(orders, [ClusterRules()], "pairwise", "BCubed", "clusters", "identities")
    pairs, cubes, clusters, identities = shipped[:, 0].T
    leaders = runs.table(orders, [leader(cut) for cut in CUTS], "pairwise", "BCubed")
    figures += [
        {**told(f"{name}: glint, pairwise F, mean of orders", np.mean(pairs)),
         "orders": pairs.round(4).tolist()},
        {**told(f"{name}: glint, BCubed F, mean of orders", np.mean(cubes)),
         "orders": cubes.round(4).tolist()},
        ceiling(f"{name}: glint, spread of pairwise F over orders", max(pairs) - min(pairs), 0.01),
        told(f"{name}: glint, clusters", np.mean(clusters)),
        told(f"{name}: glint, identities", np.mean(identities)),
    ]  # fmt: skip
    mean = leaders.mean(axis=0)
    best = int(mean[:, 0].argmax())
    figures += [
        {**told(f"{name}: leader at its best cut, pairwise F", mean[best, 0]), "cut": CUTS[best],
         "orders": leaders[:, best, 0].round(4).tolist()},
        {**told(f"{name}: leader, best BCubed F", mean[:, 1].max()),
         "cut": CUTS[int(mean[:, 1].argmax())]},
        {**told(f"{name}: leader at glint's own cut, pairwise F", mean[CUTS.index(0.5), 0]),
         "cut": 0.5},
    ]  # fmt: skip
    for kind, said in (("hac", "HAC"), ("1", "DBSCAN of 1"), ("3", "DBSCAN of 3")):
        found = peer(python, face, kind) if python else None
        if found is None:
            print(f"# {name}: {said} left out: no scikit-learn", file=sys.stderr)
            continue
        pair, cube = (list(x) for x in zip(*(scored(label, truth) for label in found)))
        for what, values in (("pairwise", pair), ("BCubed", cube)):
            at = int(np.argmax(values))
            figures.append(
                {**told(f"{name}: {said} at its best cut, {what} F", values[at]), "cut": CUTS[at]}
            )
    figures += few_faces(runs, orders)
    figures += best_cut(runs, orders)
    own = np.mean(pairs) - mean[CUTS.index(0.5), 0]
    return [
        *figures,
        floor(f"{name}: glint's pairwise F less the best leader's", np.mean(pairs) - mean[best, 0],
              -0.005),
        floor(f"{name}: glint's pairwise F less the leader's at the same cut", own, 0.0),
    ]  # fmt: skip


def speed(n: int, count: int, dim: int) -> list[dict[str, Any]]:
    """Time a long stream: in blocks, and its last thousand faces one by one."""
    face, truth = people(n, count, dim, 3)
    label, stream, cpu = online(face)
    again = OnlineClusters.resume(stream.state(), stream.options)
    few = min(1000, n)
    begun = time.process_time()
    for row in face[:few]:
        again.insert(row[None])
    single = time.process_time() - begun
    return [
        told(f"{n:,} faces of {count:,} people, {dim} numbers: clusters", stream.clusters),
        told(f"{n:,}: pairwise F", scored(label, truth)[0]),
        floor(f"{n:,}: faces a CPU second, in blocks", n / cpu, 500),
        told(f"{n:,}: faces a CPU second, one by one at the end", few / single),
    ]


def main() -> int:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute; says little")
    parser.add_argument("--peer-python", default="", help="an interpreter with scikit-learn")
    parser.add_argument("--only", choices=("lfw", "synthetic", "speed"))
    parser.add_argument("--work", type=Path, help="keep finished runs in this folder, go on there")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.work:
        args.work.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []

    def show(figures: list[dict[str, Any]]) -> None:
        for line in figures:
            lines.append(line)
            print(json.dumps(line), flush=True)

    show([{"figure": "machine", "target": None, "holds": None, "value": machine("numpy", "scipy")}])
    real = SHARED / "data" / "features"
    orders = 1 if args.quick else 3
    if args.only not in ("lfw", None):
        pass
    elif (real / "lfw_y1_l2_f16.npy").exists():
        face = np.load(real / "lfw_y1_l2_f16.npy").astype(np.float32)
        truth = np.load(real / "lfw_labels.npy")
        if args.quick:
            face, truth = face[:2000], truth[:2000]
        show(compare(Runs("LFW", face, truth, args.work), orders, args.peer_python))
    else:
        print(f"# no real faces under {SHARED}: set GLINT_SHARED", file=sys.stderr)
    if args.only in ("synthetic", None):
        size = (2000, 200, 128) if args.quick else (10_000, 1000, 512)
        runs = Runs("synthetic", *people(*size, 1), args.work)
        show(compare(runs, orders, args.peer_python))
    if args.only in ("speed", None):
        show(speed(*((5000, 500, 128) if args.quick else (100_000, 10_000, 512))))
    if args.out:
        args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0 if args.quick or all(line["holds"] is not False for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
