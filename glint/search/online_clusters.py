"""OGMC: clusters of a stream of faces, and identities as clusters that are connected.

Source: Online Gaussian mixture clustering (arXiv 2103.17272), reconstructed from its abstract: an
identity may be several clusters; they are connected by proximity and robustness, and whenever a
cluster changes, its connections are found anew. Rules and constants are ours: docs/clustering.md.
"""

# n faces of one block, D embedding, K places for clusters (some free), k clusters, m pairs

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from glint.errors import InputError, UsageError

BLOCK = 256  # faces whose cosines to all clusters are found in one product
SLACK = 1e-4  # of a screen in float32; what passes is found again in float64

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClusterRules:
    """When a face joins a cluster, two clusters are connected, and two become one; all cosines.

    join: of a face to the nearest mean. connect, extra: means of n and m faces are connected from
    connect + extra / sqrt(min(n, m)) on: few faces make a mean that is worth less. merge: two
    clusters of `enough` faces each become one from there on.
    """

    join: float = 0.50
    connect: float = 0.45
    extra: float = 0.1
    merge: float = 0.75
    enough: int = 5

    def __post_init__(self) -> None:
        for name, good, want in (
            ("join", 0 < self.join <= 1, "above 0, at most 1"),
            ("connect", 0 < self.connect <= 1, "above 0, at most 1"),
            ("extra", 0 <= self.extra <= 1, "from 0 to 1"),
            ("merge", self.merge > 0, "above 0; more than 1 merges none"),
            ("enough", self.enough >= 1, "at least 1"),
        ):
            if not good:
                raise UsageError(
                    "GL0002", f"expected {want}, found {getattr(self, name)}", where=f"--{name}"
                )


@dataclass(frozen=True)
class Snapshot:
    """What the stream is at one moment; more faces may change any of it.

    cluster_N, identity_N: of every face, -1 for one without an embedding. cluster_k: names of the
    clusters, ascending; count_k: their faces; rho_k: mean cosine of two of them, NaN for one face;
    identity_k: the name of the identity: of its smallest cluster; edge_m2: connected clusters.
    """

    cluster_N: Ints
    identity_N: Ints
    cluster_k: Ints
    count_k: Ints
    rho_k: F64
    identity_k: Ints
    edge_m2: Ints


def components(count: int, a_m: npt.NDArray[Any], b_m: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Return the connected component of each of `count` nodes, given pairs of them."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    link = coo_matrix((np.ones(len(a_m), np.int8), (a_m, b_m)), shape=(count, count))
    part: npt.NDArray[np.int32] = connected_components(link, directed=False)[1]
    return part


class OnlineClusters:
    """Clusters of a stream: each a number of unit vectors and their sum.

    A cluster keeps its name, counted from 0 in order of appearance, until it becomes part of one
    with a smaller name. Connections are a function of the clusters alone.
    """

    def __init__(self, dim: int, options: ClusterRules | None = None) -> None:
        self.options = options or ClusterRules()
        self.dim, self.used = dim, 0
        self.sum_KD = np.zeros((64, dim))
        self.mean_KD = np.zeros((64, dim), np.float32)  # zeros where a place is free
        self.count_K = np.zeros(64, np.int64)
        self.name_K = np.full(64, -1, np.int64)
        self.free: list[int] = []
        self.near: dict[int, set[int]] = {}  # connected places
        self._became: list[int] = []  # of each name: itself, or a smaller one
        self._place: dict[int, int] = {}
        self._faces: list[Ints] = []

    @property
    def faces(self) -> int:
        """Faces seen."""
        return sum(map(len, self._faces))

    @property
    def clusters(self) -> int:
        """Clusters that stand."""
        return len(self._place)

    def insert(self, face_nD: npt.NDArray[np.floating]) -> Ints:
        """Add faces to clusters one after the other; return the names of the clusters at that time.

        face_nD: any length; a face with NaN or without direction joins nothing: -1. Clusters are
        merged and connections found anew after every `BLOCK` faces and at the end of the call;
        blocks change nothing else, to the rounding of float32.
        """
        parts = [
            self._insert(np.asarray(face_nD[at : at + BLOCK], dtype=np.float32))
            for at in range(0, len(face_nD), BLOCK)
        ]
        name_n = np.concatenate([np.empty(0, np.int64), *parts])
        self._faces.append(name_n)
        return name_n

    def name(self, name: int) -> int:
        """Return what a cluster is called now."""
        while self._became[name] != name:
            self._became[name] = name = self._became[self._became[name]]
        return name

    def identity(self, name: int) -> int:
        """Return the identity of a cluster now: the smallest name that it is connected with."""
        start = self._place[self.name(name)]
        seen, todo = {start}, [start]
        while todo:
            fresh = self.near[todo.pop()] - seen
            seen |= fresh
            todo += fresh
        return int(self.name_K[list(seen)].min())

    def snapshot(self) -> Snapshot:
        """Return clusters, connections and identities as they are now; O(faces + connections)."""
        place_k = np.flatnonzero(self.count_K[: self.used])
        place_k = place_k[np.argsort(self.name_K[place_k])]
        row_K = np.zeros(self.used, np.int64)
        row_K[place_k] = np.arange(len(place_k))
        edge_m2 = np.unique(np.sort(row_K[self._edges()], axis=1), axis=0)
        part_k = components(len(place_k), edge_m2[:, 0], edge_m2[:, 1])
        cluster_k, count_k = self.name_K[place_k], self.count_K[place_k]
        _, first = np.unique(part_k, return_index=True)
        identity_k = cluster_k[first][part_k] if len(part_k) else cluster_k
        square_k = np.einsum("kd,kd->k", self.sum_KD[place_k], self.sum_KD[place_k])
        pairs_k = np.where(count_k > 1, count_k * (count_k - 1.0), np.nan)
        rho_k = (square_k - count_k) / pairs_k
        now = np.array([self.name(name) for name in range(len(self._became))] + [-1], np.int64)
        cluster_N = now[self._all()]
        at_N = np.searchsorted(cluster_k, cluster_N)
        identity_N = np.where(cluster_N < 0, -1, np.append(identity_k, -1)[at_N])
        return Snapshot(
            cluster_N, identity_N, cluster_k, count_k, rho_k, identity_k, cluster_k[edge_m2]
        )

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return all that `resume` needs to go on, to the bit."""
        used = slice(self.used)
        return {
            "sum": self.sum_KD[used],
            "mean": self.mean_KD[used],
            "count": self.count_K[used],
            "name": self.name_K[used],
            "free": np.array(self.free, np.int64),
            "became": np.array(self._became, np.int64),
            "edge": self._edges(),
            "faces": self._all(),
        }

    @classmethod
    def resume(
        cls, state: dict[str, npt.NDArray[Any]], options: ClusterRules | None = None
    ) -> OnlineClusters:
        """Go on from a state. Raises InputError GL0501 for one that contradicts itself."""
        clusters = cls(int(state["sum"].shape[1]), options)
        clusters.used = len(state["sum"])
        clusters._grow(clusters.used)
        used = slice(clusters.used)
        clusters.sum_KD[used], clusters.mean_KD[used] = state["sum"], state["mean"]
        clusters.count_K[used], clusters.name_K[used] = state["count"], state["name"]
        clusters.free, clusters._became = state["free"].tolist(), state["became"].tolist()
        place_k = np.flatnonzero(clusters.count_K[used])
        clusters._place = dict(zip(clusters.name_K[place_k].tolist(), place_k.tolist()))
        clusters.near = {place: set() for place in place_k.tolist()}
        try:
            for a, b in state["edge"].tolist():
                clusters.near[a].add(b)
            if any(clusters._became[name] != name for name in clusters._place):
                raise KeyError("a name")
        except (KeyError, IndexError) as error:
            raise InputError("GL0501", f"the state of the clusters lacks {error}") from None
        clusters._faces = [np.asarray(state["faces"], np.int64)]
        return clusters

    def _edges(self) -> Ints:
        """Return the connected places, each pair in both orders."""
        edge = [(a, b) for a in sorted(self.near) for b in sorted(self.near[a])]
        return np.array(edge, np.int64).reshape(-1, 2)

    def _all(self) -> Ints:
        """Return the names that faces got when they joined."""
        self._faces = [np.concatenate([np.empty(0, np.int64), *self._faces])]
        return self._faces[0]

    def _insert(self, face_nD: F32) -> Ints:
        norm_n = np.sqrt(np.einsum("nd,nd->n", face_nD, face_nD))
        real_n = np.isfinite(norm_n) & (norm_n > 0)
        face_nD = np.where(real_n[:, None], face_nD / np.where(real_n, norm_n, 1)[:, None], 0)
        n, before = len(face_nD), self.used
        self._grow(before + n)
        cosine_nK = np.zeros((n, before + n), np.float32)
        cosine_nK[:, :before] = face_nD @ self.mean_KD[:before].T
        name_n = np.full(n, -1, np.int64)
        touched: set[int] = set()
        for i in np.flatnonzero(real_n).tolist():
            place = int(cosine_nK[i].argmax())
            if cosine_nK[i, place] < self.options.join:
                place = self._new()
            self._set(place, self.sum_KD[place] + face_nD[i], int(self.count_K[place]) + 1)
            cosine_nK[i + 1 :, place] = face_nD[i + 1 :] @ self.mean_KD[place]
            name_n[i] = self.name_K[place]
            touched.add(place)
        self._settle(touched)
        return name_n

    def _new(self) -> int:
        place = self.free.pop() if self.free else self.used
        self.used = max(self.used, place + 1)
        name = len(self._became)
        self._became.append(name)
        self._place[name], self.name_K[place], self.near[place] = place, name, set()
        return place

    def _set(self, place: int, sum_D: F64, count: int) -> None:
        self.sum_KD[place], self.count_K[place] = sum_D, count
        length = np.sqrt(sum_D @ sum_D)
        self.mean_KD[place] = sum_D / length if length > 0 else 0

    def _settle(self, touched: set[int]) -> None:
        """Merge what became alike, then find the connections of clusters that changed."""
        least = min(self.options.merge, self.options.connect)
        changed, todo = set(touched), sorted(touched)
        while True:
            a_m, b_m, cosine_m = self._alike(todo, least)
            again = self._merged(a_m, b_m, cosine_m)
            if not again:
                break
            changed |= again
            todo = sorted(place for place in changed if self.count_K[place])
            changed = set(todo)
        few_m = np.minimum(self.count_K[a_m], self.count_K[b_m])
        held_m = cosine_m >= self.options.connect + self.options.extra / np.sqrt(few_m)
        fresh: dict[int, set[int]] = {place: set() for place in todo}
        for a, b in zip(a_m[held_m].tolist(), b_m[held_m].tolist()):
            fresh[a].add(b)
        for place, now in fresh.items():
            for other in self.near[place] - now:
                self.near[other].discard(place)
            for other in now - self.near[place]:
                self.near[other].add(place)
            self.near[place] = now

    def _alike(self, place: Iterable[int], least: float) -> tuple[Ints, Ints, F64]:
        """Find the clusters whose means are at least so alike to some; the cosines in float64."""
        place_k = np.fromiter(place, np.int64)
        parts: list[tuple[Ints, Ints]] = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        for at in range(0, len(place_k), BLOCK):
            some = place_k[at : at + BLOCK]
            cosine = self.mean_KD[some] @ self.mean_KD[: self.used].T
            a, b = np.nonzero(cosine >= least - SLACK)
            parts.append((some[a], b))
        a_m, b_m = (np.concatenate(one) for one in zip(*parts))
        other_m = a_m != b_m
        a_m, b_m = a_m[other_m], b_m[other_m]
        cosine_m = np.empty(len(a_m))
        for at in range(0, len(a_m), 1 << 14):
            cut = slice(at, at + (1 << 14))
            a, b = (self.mean_KD[one[cut]].astype(np.float64) for one in (a_m, b_m))
            cosine_m[cut] = (a * b).sum(axis=1)
        held_m = cosine_m >= least
        return a_m[held_m], b_m[held_m], cosine_m[held_m]

    def _merged(self, a_m: Ints, b_m: Ints, cosine_m: F64) -> set[int]:
        """Merge clusters that are alike enough, the most alike first; return what they became."""
        enough_m = np.minimum(self.count_K[a_m], self.count_K[b_m]) >= self.options.enough
        pick = np.flatnonzero(enough_m & (cosine_m >= self.options.merge))
        name_a, name_b = self.name_K[a_m[pick]], self.name_K[b_m[pick]]
        pick = pick[
            np.lexsort((np.maximum(name_a, name_b), np.minimum(name_a, name_b), -cosine_m[pick]))
        ]
        gone: set[int] = set()
        kept: set[int] = set()
        for a, b in zip(a_m[pick].tolist(), b_m[pick].tolist()):
            if {a, b} & (gone | kept):
                continue  # what one of them became is looked at again
            if self.name_K[a] > self.name_K[b]:
                a, b = b, a
            kept.add(a)
            gone.add(b)
            self._set(a, self.sum_KD[a] + self.sum_KD[b], int(self.count_K[a] + self.count_K[b]))
            self._became[int(self.name_K[b])] = int(self.name_K[a])
            del self._place[int(self.name_K[b])]
            for other in self.near.pop(b):
                self.near[other].discard(b)
            self._set(b, np.zeros(self.dim), 0)
            self.name_K[b] = -1
            self.free.append(b)
        return kept

    def _grow(self, places: int) -> None:
        """Make room for so many places."""
        if places <= len(self.count_K):
            return
        more = max(places, 2 * len(self.count_K)) - len(self.count_K)
        self.sum_KD = np.concatenate([self.sum_KD, np.zeros((more, self.dim))])
        self.mean_KD = np.concatenate([self.mean_KD, np.zeros((more, self.dim), np.float32)])
        self.count_K = np.concatenate([self.count_K, np.zeros(more, np.int64)])
        self.name_K = np.concatenate([self.name_K, np.full(more, -1, np.int64)])
