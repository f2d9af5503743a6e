"""Clusters of all faces at once, on the graph of those that are near: average linkage, then OGMC.

Pairs whose two mean cosines are each other's best become one, round after round (reciprocal
agglomeration, arXiv 2105.11653), as long as the mean cosine of their faces allows it; it comes from
the sums of their unit vectors, so it counts pairs without an edge too. Then clusters whose means
are near are connected, as in `online_clusters`.
"""

# N faces, k clusters, K places for sums, m pairs, D embedding

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glint.errors import UsageError
from glint.files import atomic
from glint.files.strings import new_array
from glint.search.near_pairs import CountingSort, NearPairs, new_file
from glint.search.online_clusters import Snapshot, components
from glint.search.pairs import unit64

BATCH = 1 << 18  # pairs of whole components that are agglomerated at once
CHUNK = 4096  # pairs whose vectors are held in float64

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class GraphRules:
    """How faces become clusters and clusters identities; all cosines.

    edge: two faces are near. join, extra: two clusters of n and m faces become one where the mean
    cosine of their faces is join + extra / sqrt(min(n, m)). connect: the same of their means, for
    an identity of two clusters that have near faces. exact: so many faces are searched exactly;
    with more, at least the share `recall` of the pairs near a seeded sample must be found.
    """

    join: float = 0.45
    connect: float = 0.45
    extra: float = 0.05
    edge: float = 0.40
    exact: int = 200_000
    recall: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, want in (
            ("join", 0 < self.join <= 1, "above 0, at most 1"),
            ("connect", 0 < self.connect <= 1, "above 0, at most 1"),
            ("extra", 0 <= self.extra <= 1, "from 0 to 1"),
            ("edge", 0 < self.edge <= min(self.join, self.connect),
             "above 0, at most --join and --connect"),
            ("exact", self.exact >= 0, "at least 0"),
            ("recall", 0 < self.recall <= 1, "above 0, at most 1"),
        ):  # fmt: skip
            if not good:
                raise UsageError(
                    "GL0002", f"expected {want}, found {getattr(self, name)}", where=f"--{name}"
                )


class _Sums:
    """Sums of the unit vectors of clusters: in a file, those of single faces as they are."""

    def __init__(self, x_ND: Floats, path: Path) -> None:
        self._x_ND, self._path = x_ND, path
        self.place_N = np.full(len(x_ND), -1, np.int32)  # by the smallest face of a cluster
        self.count_N = np.ones(len(x_ND), np.int32)
        self._free: list[int] = []
        self._used = 0
        self._room = 0
        self._sum_KD: npt.NDArray[np.float32] = np.empty((0, x_ND.shape[1]), np.float32)

    def of(self, face_k: Ints) -> F64:
        """Return the sums of some clusters, in float64."""
        place_k = self.place_N[face_k]
        sum_kD = np.empty((len(face_k), self._x_ND.shape[1]))
        many_k = place_k >= 0
        sum_kD[many_k] = self._sum_KD[place_k[many_k]]
        sum_kD[~many_k] = unit64(self._x_ND[face_k[~many_k]])
        return sum_kD

    def merge(self, into_k: Ints, from_k: Ints) -> None:
        """Add clusters to others, no cluster twice."""
        for at in range(0, len(into_k), CHUNK):
            a, b = into_k[at : at + CHUNK], from_k[at : at + CHUNK]
            sum_kD = self.of(a) + self.of(b)
            place_a, place_b = self.place_N[a], self.place_N[b]
            self._free += place_b[(place_a >= 0) & (place_b >= 0)].tolist()
            place = np.where(place_a >= 0, place_a, place_b)
            fresh = np.flatnonzero(place < 0)
            place[fresh] = [self._new() for _ in fresh]
            self.place_N[a], self.place_N[b] = place, -1
            self.count_N[a] += self.count_N[b]
            self._sum_KD[place] = sum_kD

    def _new(self) -> int:
        if self._free:
            return self._free.pop()
        if self._used == self._room:
            self._grow()
        self._used += 1
        return self._used - 1

    def _grow(self) -> None:
        """Double the file: most faces share their cluster with several."""
        self._room = min(max(1024, 2 * self._room), max(1, len(self._x_ND) // 2))
        path = self._path.with_suffix(f".{self._room}.npy")
        with atomic.writing(path):
            more_KD = new_array(path, np.float32, (self._room, self._x_ND.shape[1]))
        more_KD[: len(self._sum_KD)] = self._sum_KD
        self._sum_KD = more_KD
        self.close(keep=path)

    def close(self, keep: Path | None = None) -> None:
        """Remove the file, or the smaller ones before it."""
        for path in self._path.parent.glob(f"{self._path.stem}.*.npy"):
            if path != keep:
                path.unlink()


def cluster(x_ND: Floats, near: NearPairs, rules: GraphRules, work: Path) -> Snapshot:
    """Cluster the rows of x_ND by their near pairs; `work`: a folder for the sums of clusters.

    near: all pairs from `rules.edge` on, or most. With all of them, and `extra` = 0, clusters are
    those of average linkage cut at `join`: two clusters of that mean cosine hold a pair of it.
    Rows without a direction join nothing: -1.
    """
    sums = _Sums(x_ND, work / "sums.npy")
    try:
        root_N = np.arange(len(x_ND), dtype=np.int64)
        for strong_m in _batches(len(x_ND), near, rules.join, work):
            _agglomerate(sums, root_N, near, strong_m, rules)
        return _connected(sums, root_N, near, rules, x_ND.shape[1])
    finally:
        sums.close()


def _batches(n: int, near: NearPairs, least: float, work: Path) -> Iterator[Ints]:
    """Yield the strong pairs of whole components of theirs, some at a time."""

    def strong() -> Iterator[Ints]:
        for where in near.parts():
            yield np.flatnonzero(near.cosine[where] >= least) + where.start

    part_N = np.arange(n, dtype=np.int32)
    for some in strong():
        part_N = components(n, part_N[near.a[some]], part_N[near.b[some]])[part_N]
    count_N = np.zeros(n, np.int64)
    for some in strong():
        np.add.at(count_N, part_N[near.a[some]], 1)
    ends_N = np.cumsum(count_N)
    batch_N = ((ends_N - count_N) // BATCH).astype(np.int32)
    sizes = np.bincount(batch_N, count_N).astype(np.int64)
    del count_N, ends_N
    sort = CountingSort(sizes)
    pair = new_file(work / "strong.npy", np.int64, int(sort.start[-1]))
    for some in strong():
        pair[sort.place(batch_N[part_N[near.a[some]]])] = some
    del part_N, batch_N
    for first, last in itertools.pairwise(sort.start.tolist()):
        if last > first:
            yield pair[first:last]
    (work / "strong.npy").unlink(missing_ok=True)


def _agglomerate(sums: _Sums, root_N: Ints, near: NearPairs, some: Ints, rules: GraphRules) -> None:
    """Merge the clusters of whole components; write the smallest face of each into `root_N`."""
    face_n, end = np.unique(np.concatenate([near.a[some], near.b[some]]), return_inverse=True)
    a_m, b_m = end.reshape(2, -1)
    n, mean_m = len(face_n), near.cosine[some].astype(np.float64)
    root_n = np.arange(n)
    while len(a_m):
        count_n = sums.count_N[face_n]
        few_m = np.minimum(count_n[a_m], count_n[b_m])
        more_m = mean_m - rules.extra / np.sqrt(few_m)
        best_n = _best(n, a_m, b_m, more_m, rules.join)
        into = np.flatnonzero((best_n > np.arange(n)) & (best_n[best_n] == np.arange(n)))
        if not len(into):
            break
        sums.merge(face_n[into], face_n[best_n[into]])
        now_n, changed_n = np.arange(n), np.zeros(n, bool)
        now_n[best_n[into]], changed_n[into] = into, True
        root_n = now_n[root_n]
        a_m, b_m = now_n[a_m], now_n[b_m]
        low_m, high_m = np.minimum(a_m, b_m), np.maximum(a_m, b_m)
        pair_m, first = np.unique(low_m * n + high_m, return_index=True)
        a_m, b_m, mean_m = pair_m // n, pair_m % n, mean_m[first]
        fresh_m = (changed_n[a_m] | changed_n[b_m]) & (a_m != b_m)
        mean_m[fresh_m] = _means(sums, face_n[a_m[fresh_m]], face_n[b_m[fresh_m]])
        held_m = (a_m != b_m) & (mean_m >= rules.join)
        a_m, b_m, mean_m = a_m[held_m], b_m[held_m], mean_m[held_m]
    root_N[face_n] = face_n[root_n]


def _best(n: int, a_m: Ints, b_m: Ints, score_m: F64, least: float) -> Ints:
    """Return the best other of each cluster, of equals the smallest; itself where none is."""
    held_m = score_m >= least
    a_m, b_m, score_m = a_m[held_m], b_m[held_m], score_m[held_m]
    from_m, to_m = np.concatenate([a_m, b_m]), np.concatenate([b_m, a_m])
    order = np.lexsort((to_m, -np.concatenate([score_m, score_m]), from_m))
    from_m, to_m = from_m[order], to_m[order]
    first = np.flatnonzero(np.r_[True, from_m[1:] != from_m[:-1]]) if len(order) else order
    best_n = np.arange(n)
    best_n[from_m[first]] = to_m[first]
    return best_n


def _means(sums: _Sums, a_m: Ints, b_m: Ints, *, length: bool = False) -> F64:
    """Return the mean cosine of two faces, one of each cluster; or the cosine of the means."""
    out_m = np.empty(len(a_m))
    for at in range(0, len(a_m), CHUNK):
        cut = slice(at, at + CHUNK)
        sum_aD, sum_bD = sums.of(a_m[cut]), sums.of(b_m[cut])
        dot = (sum_aD * sum_bD).sum(axis=1)
        if length:
            size = np.sqrt((sum_aD**2).sum(axis=1) * (sum_bD**2).sum(axis=1))
        else:
            size = sums.count_N[a_m[cut]].astype(np.float64) * sums.count_N[b_m[cut]]
        out_m[cut] = np.divide(dot, size, out=np.zeros_like(dot), where=size > 0)
    return out_m


def _connected(sums: _Sums, root_N: Ints, near: NearPairs, rules: GraphRules, dim: int) -> Snapshot:
    """Connect clusters that have near faces by their means, and name everything."""
    some_N = near.good_N
    is_first_N = np.zeros(len(root_N), bool)
    is_first_N[root_N[some_N]] = True
    first_k = np.flatnonzero(is_first_N)
    cluster_N = np.full(len(root_N), -1, np.int64)
    cluster_N[some_N] = (np.cumsum(is_first_N, dtype=np.int32) - 1)[root_N[some_N]]
    k = len(first_k)
    apart = [np.empty(0, np.int64)]
    for where in near.parts():
        a_m, b_m = (cluster_N[rows[where]] for rows in (near.a, near.b))
        key_m = np.minimum(a_m, b_m) * k + np.maximum(a_m, b_m)
        apart.append(np.unique(key_m[a_m != b_m]))
    pair_m = np.unique(np.concatenate(apart))
    a_m, b_m = pair_m // max(k, 1), pair_m % max(k, 1)
    count_k = sums.count_N[first_k].astype(np.int64)
    cosine_m = _means(sums, first_k[a_m], first_k[b_m], length=True)
    need_m = rules.connect + rules.extra / np.sqrt(np.minimum(count_k[a_m], count_k[b_m]))
    held_m = cosine_m >= need_m
    edge_m2 = np.stack([a_m[held_m], b_m[held_m]], axis=1)
    part_k = components(k, edge_m2[:, 0], edge_m2[:, 1])
    _, smallest = np.unique(part_k, return_index=True)
    identity_k = smallest[part_k].astype(np.int64)
    square_k = np.empty(k)
    for at in range(0, k, CHUNK):
        square_k[at : at + CHUNK] = (sums.of(first_k[at : at + CHUNK]) ** 2).sum(axis=1)
    pairs_k = np.where(count_k > 1, count_k * (count_k - 1.0), np.nan)
    return Snapshot(
        cluster_N,
        np.where(cluster_N < 0, -1, np.append(identity_k, -1)[cluster_N]),
        np.arange(k),
        count_k,
        (square_k - count_k) / pairs_k,
        identity_k,
        edge_m2,
    )
