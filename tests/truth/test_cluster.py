"""`glint cluster` against a loop over faces in float64 (docs/clustering.md), and its labels.

Constants, and what is put against them: `online_clusters.BLOCK` 256 faces (4,400); 64 places for
clusters at first (over 512); 2^14 pairs scored at a time (a block of a crowd whose faces are all
connected with each other: more than 2^15).
"""

# n faces, K clusters, D embedding

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from glint.pipelines import cluster as stage
from glint.search import online_clusters

D, CROWD = 384, 300
JOIN, CONNECT, EXTRA, MERGE, ENOUGH = 0.50, 0.45, 0.01, 0.75, 5  # docs/clustering.md has EXTRA 0.1
ROUND = 1e-6  # nothing may lie nearer to a threshold than float32 rounds


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def faces(count: int, seed: int) -> np.ndarray:
    """Draw float16 faces (n, D) as they come.

    First a crowd of faces of cosine 0.47 with each other, then people of one to three looks. Of 60
    of them the first twelve faces show two sides, which are two clusters, and the others what lies
    between, so that the two become one. A face in a hundred is NaN.
    """
    rng = np.random.default_rng(seed)
    axis = np.linalg.qr(rng.normal(size=(D, CROWD + 1)))[0].T
    crowd = np.sqrt(0.47) * axis[0] + np.sqrt(0.53) * axis[1:]
    often = np.where(np.arange(240) % 4 == 0, 5.0, 1.0)
    person_n = rng.choice(240, count - CROWD, p=often / often.sum())
    centre = unit(rng.normal(size=(240, D)))
    look = unit(centre[:, None] + 0.9 * unit(rng.normal(size=(240, 3, D))))
    side, seen, row = unit(rng.normal(size=(240, D))), np.zeros(240, int), []
    for person in person_n.tolist():
        shown = look[person, rng.integers(0, 1 + person % 3)]
        if person % 4 == 0:
            turn = (0.55, -0.55)[seen[person] % 2] if seen[person] < 12 else 0
            shown = unit(look[person, 0] + turn * side[person])
        seen[person] += 1
        row.append(unit(shown + 0.6 * unit(rng.normal(size=D))))
    row = np.concatenate([crowd, row])
    row[rng.permutation(count)[: count // 100]] = np.nan
    return row.astype(np.float16)


class Loop:
    """The four rules of docs/clustering.md, one face at a time."""

    def __init__(self) -> None:
        self.sum_KD = np.zeros((5000, D))
        self.mean_KD = np.zeros((5000, D))
        self.count_K = np.zeros(5000, int)
        self.name_n: list[int] = []
        self.edge, self.merges, self.used = np.inf, 0, 0

    def put(self, name: int, sum_D: np.ndarray, count: int) -> None:
        self.sum_KD[name], self.count_K[name] = sum_D, count
        self.mean_KD[name] = unit(sum_D)

    def insert(self, face_D: np.ndarray) -> None:
        """Rule 1: join the nearest mean, or begin a cluster."""
        if not np.isfinite(face_D).all():
            self.name_n.append(-1)
            return
        face_D, K = unit(face_D), self.used
        cosine_K = np.where(self.count_K[:K] > 0, self.mean_KD[:K] @ face_D, -2)
        best = np.sort(cosine_K)[-2:]
        self.edge = min([self.edge, *abs(best - JOIN)])
        if len(best) == 2 and best[1] >= JOIN:
            self.edge = min(self.edge, best[1] - best[0])
        name = int(cosine_K.argmax()) if K and best[-1] >= JOIN else K
        self.used = max(self.used, name + 1)
        self.put(name, self.sum_KD[name] + face_D, self.count_K[name] + 1)
        self.name_n.append(name)

    def merge(self) -> None:
        """Rule 3, after every 256 faces: the most alike first, under the smaller name."""
        while True:
            large = np.flatnonzero(self.count_K >= ENOUGH)
            cosine = np.triu(self.mean_KD[large] @ self.mean_KD[large].T, 1)
            self.edge = min(self.edge, np.abs(cosine - MERGE).min(initial=np.inf))
            if cosine.max(initial=0) < MERGE:
                return
            a, b = large[list(np.unravel_index(cosine.argmax(), cosine.shape))]
            self.put(a, self.sum_KD[a] + self.sum_KD[b], self.count_K[a] + self.count_K[b])
            self.mean_KD[b], self.count_K[b] = 0, 0
            self.merges += 1
            self.name_n = [int(a) if name == b else name for name in self.name_n]

    def identities(self) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
        """Rules 2 and 4: connect clusters; an identity is a component, named by its smallest."""
        name_K = np.flatnonzero(self.count_K)
        mean_KD, count_K = self.mean_KD[name_K], self.count_K[name_K]
        lack = (
            CONNECT + EXTRA / np.sqrt(np.minimum(count_K[:, None], count_K)) - mean_KD @ mean_KD.T
        )
        self.edge = min(self.edge, np.abs(lack)[np.triu_indices(len(name_K), 1)].min())
        a, b = np.nonzero(np.triu(lack <= 0, 1))
        edges = list(zip(name_K[a].tolist(), name_K[b].tolist()))
        identity = {int(name): int(name) for name in name_K}
        changed = True
        while changed:
            changed = False
            for x, y in edges:
                first = min(identity[x], identity[y])
                changed |= identity[x] != first or identity[y] != first
                identity[x] = identity[y] = first
        return name_K, np.array([identity[int(name)] for name in name_K]), edges


def test_clusters_identities_and_labels_are_those_of_a_loop(
    crawl, rows, copied, embedded, targets, tmp_path: Path
) -> None:
    root, found = copied(crawl.root), rows(crawl.root)
    row_nD = faces(len(found), seed=1)
    emb = embedded(root, [row.key for row in found], row_nD)
    told = stage.run([emb], tmp_path / "ids", online_clusters.ClusterRules(extra=EXTRA), save=0.0)

    loop, looked_at = Loop(), 0
    for at in range(0, len(row_nD), 256):
        for face_D in row_nD[at : at + 256].astype(np.float64):
            loop.insert(face_D)
        loop.merge()
        touched = [name for name in {*loop.name_n[at : at + 256]} if loop.count_K[name]]
        alike = loop.mean_KD[touched] @ loop.mean_KD[: loop.used].T >= CONNECT
        looked_at = max(looked_at, int(alike.sum()))
    name_K, identity_K, edges = loop.identities()
    assert loop.edge > ROUND, f"something lies {loop.edge} from an edge: draw with another seed"
    assert loop.merges > 10 and looked_at > 1 << 15 and len(name_K) > 512

    table = pq.read_table(tmp_path / "ids/faces.parquet")
    assert table["key"].to_pylist() == [row.key for row in found], "every image once, in order"
    assert table["source"].to_pylist() == [0] * len(found)
    assert table["cluster"].to_pylist() == loop.name_n
    of_name = {-1: -1, **dict(zip(name_K.tolist(), identity_K.tolist()))}
    identity_n = [of_name[name] for name in loop.name_n]
    assert table["identity"].to_pylist() == identity_n
    clusters = pq.read_table(tmp_path / "ids/clusters.parquet")
    assert clusters["cluster"].to_pylist() == name_K.tolist()
    assert clusters["identity"].to_pylist() == identity_K.tolist()
    assert clusters["count"].to_pylist() == loop.count_K[name_K].tolist()
    name_n, face_nD = np.array(loop.name_n), unit(row_nD.astype(np.float64))
    for name, count, rho in zip(*(clusters[c].to_pylist() for c in ("cluster", "count", "rho"))):
        own = face_nD[name_n == name]
        assert len(own) == count
        pairs = (own @ own.T)[np.triu_indices(count, 1)]
        assert rho is None if count == 1 else abs(rho - pairs.mean()) < 2 * ROUND
    written = pq.read_table(tmp_path / "ids/edges.parquet")
    assert list(zip(written["a"].to_pylist(), written["b"].to_pylist())) == edges
    assert told.identities == len({*identity_K.tolist()}) < told.clusters

    done = stage.apply(tmp_path / "ids", root, least=2)
    target_C, mask_m2 = targets(root, len(found))
    sizes = {one: identity_n.count(one) for one in sorted({*identity_n} - {-1})}
    large = {one: i for i, one in enumerate(one for one, n in sizes.items() if n >= 2)}
    assert sorted(row.label for row in found) == list(range(len(found))), "a label for each image"
    assert [int(target_C[row.label]) for row in found] == [large.get(one, -1) for one in identity_n]
    assert not len(mask_m2) and done.faces == sum(sizes[one] for one in large)
    assert done.faces + done.faces_dropped == len(found)
