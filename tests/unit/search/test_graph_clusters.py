"""The graph of near faces against all pairs in float64, its clusters against average linkage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from glint.errors import ResourceError, UsageError
from glint.search import graph_clusters, near_pairs, neighbours
from glint.search.graph_clusters import GraphRules, cluster
from glint.search.neighbours import NearPairs

D = 24


def crowd(n: int, people: int, noise: float = 0.25, seed: int = 0) -> np.ndarray:
    """Rows of people, float16 and of any length; some without a direction."""
    rng = np.random.default_rng(seed)
    face = rng.normal(size=(people, D))[rng.integers(0, people, n)]
    face = face + noise * np.sqrt(D) * rng.normal(size=(n, D)) / 2
    face[:: n // 7 + 1] = np.nan
    face[3] = 0
    return face.astype(np.float16)


def truth(x: np.ndarray, edge: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    wide = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
        cosine = wide @ wide.T
        a, b = np.nonzero(np.triu(cosine >= edge, 1))
    return a, b, cosine[a, b]


def same(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether two labellings are one partition."""
    pairs = {*zip(one.tolist(), two.tolist())}
    return len(pairs) == len({*one.tolist()}) == len({*two.tolist()})


def averaged(x: np.ndarray, cut: float) -> np.ndarray:
    far = 1 - x.astype(np.float64) @ x.T.astype(np.float64)
    return fcluster(linkage(far[np.triu_indices(len(x), 1)], "average"), 1 - cut, "distance")


@pytest.mark.parametrize("batch", [1, 50, 1 << 20])
def test_clusters_are_those_of_average_linkage(tmp_path, monkeypatch, batch):
    """More faces than a chunk has pairs, components that are one batch, or a batch each."""
    monkeypatch.setattr(graph_clusters, "BATCH", batch)
    monkeypatch.setattr(graph_clusters, "CHUNK", 64)
    monkeypatch.setattr(near_pairs, "PAIRS", 501)
    monkeypatch.setattr(near_pairs, "ROWS", 77)
    x = crowd(1200, 90)
    good = neighbours.usable(x)
    unit = neighbours._unit32(x[good]).astype(np.float64)
    for join in (0.45, 0.6):
        rules = GraphRules(join=join, connect=1.0, extra=0.0, edge=min(join, 0.5))
        near = neighbours.exact(x, rules.edge)
        shot = cluster(x, near, rules, tmp_path)
        assert (shot.cluster_N[~good] == -1).all()
        expected = averaged(unit, join)
        assert len(np.unique(expected)) not in (1, len(unit))
        assert same(shot.cluster_N[good], expected)
        members = [np.flatnonzero(shot.cluster_N[good] == name) for name in shot.cluster_k]
        for rows, count, rho in zip(members, shot.count_k, shot.rho_k):
            cosine = unit[rows] @ unit[rows].T
            many = cosine[np.triu_indices(len(rows), 1)]
            assert len(rows) == count
            assert np.isnan(rho) if count == 1 else abs(rho - many.mean()) < 1e-5
    assert not list(tmp_path.glob("*.npy"))


def test_connected_are_near_clusters_of_near_means(tmp_path):
    x = crowd(900, 60, 0.3)
    rules = GraphRules(join=0.7, connect=0.55, extra=0.1, edge=0.5)
    near = neighbours.exact(x, rules.edge)
    shot = cluster(x, near, rules, tmp_path)
    good = neighbours.usable(x)
    unit = neighbours._unit32(np.where(good[:, None], x, 1)).astype(np.float64)
    mean = np.stack([unit[shot.cluster_N == name].sum(axis=0) for name in shot.cluster_k])
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    a, b, _ = truth(x, rules.edge)
    pairs = {tuple(sorted((shot.cluster_N[i], shot.cluster_N[j]))) for i, j in zip(a, b)}
    expected = sorted(
        (int(i), int(j))
        for i, j in pairs
        if i != j
        and mean[i] @ mean[j] >= 0.55 + 0.1 / np.sqrt(min(shot.count_k[i], shot.count_k[j]))
    )
    assert expected and [tuple(edge) for edge in shot.edge_m2.tolist()] == expected
    for i, j in expected:
        assert shot.identity_k[i] == shot.identity_k[j] <= min(i, j)
    assert len(np.unique(shot.identity_k)) < len(shot.cluster_k)


def test_all_pairs_and_most_pairs(tmp_path, monkeypatch):
    """Exact ones are those of float64; most ones are some of them, whatever the blocks."""
    x = crowd(2600, 400)
    a, b, cosine = truth(x, 0.5)
    near = neighbours.exact(x, 0.5)
    assert np.array_equal(near.a, a) and np.array_equal(near.b, b)
    assert np.abs(near.cosine - cosine).max() < 1e-6
    most = neighbours.nearly(x, 0.5, tmp_path / "one")
    key, all_key = most.a.astype(np.int64) * 2600 + most.b, a * 2600 + b
    assert len(np.unique(key)) == len(key) and np.isin(key, all_key).all()
    assert np.abs(most.cosine - cosine[np.isin(all_key, key)]).max() < 1e-6
    share = neighbours.recall(x, most, 0.5)
    assert share.pairs >= neighbours.PAIRS and abs(share.of_pairs - len(key) / len(a)) < 0.02
    assert share.of_pairs > 0.9
    monkeypatch.setattr(near_pairs, "ROWS", 77)
    for name, value in (("CELLS", 40), ("BLOCK", 700), ("TILE", 67), ("SCORES", 4000)):
        monkeypatch.setattr(neighbours, name, value)
    again = neighbours.nearly(x, 0.5, tmp_path / "two")
    assert np.array_equal(again.a, most.a) and np.array_equal(again.b, most.b)
    assert np.array_equal(again.cosine, most.cosine)
    other = neighbours.nearly(x, 0.5, tmp_path / "three", seed=1)
    assert not (np.array_equal(other.a, most.a) and np.array_equal(other.b, most.b))


def test_recall_says_what_is_missing():
    x = crowd(3000, 300)
    near = neighbours.exact(x, 0.5)
    keep = np.random.default_rng(1).random(len(near.a)) < 0.7
    some = NearPairs(near.a[keep], near.b[keep], near.cosine[keep], near.good_N)
    assert neighbours.recall(x, near, 0.5).of_pairs == 1.0
    share = neighbours.recall(x, some, 0.5, seed=3)
    assert 0.66 < share.of_pairs < 0.74 and 0.6 < share.of_faces < 0.8
    alone = np.eye(40, dtype=np.float16)
    none = neighbours.exact(alone, 0.5)
    assert neighbours.recall(alone, none, 0.5).pairs == 0


def test_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    for name, value in (("CELLS", 40), ("BLOCK", 700)):
        monkeypatch.setattr(neighbours, name, value)
    x = crowd(4000, 400)
    whole = neighbours.nearly(x, 0.5, tmp_path / "whole")
    steps, left = 0, 1

    class Stop(Exception):
        pass

    def progress(done, total, note=""):
        nonlocal steps
        steps += 1
        if steps == left:
            raise Stop

    while True:
        try:
            near = neighbours.nearly(x, 0.5, tmp_path / "part", progress=progress)
            break
        except Stop:
            assert left < 60
            steps, left = 0, left + 3  # what is kept is told, too
    assert left > 10
    assert np.array_equal(near.a, whole.a) and np.array_equal(near.cosine, whole.cosine)
    first = sorted((tmp_path / "part" / "cells").glob("*.pairs"))[0]
    first.write_bytes(first.read_bytes()[:-24])
    steps = -(10**9)
    mended = neighbours.nearly(x, 0.5, tmp_path / "part", progress=progress)
    assert np.array_equal(mended.a, whole.a) and np.array_equal(mended.b, whole.b)
    turned = neighbours.nearly(-x[::-1], 0.5, tmp_path / "part")  # other rows: nothing of the first
    fresh = neighbours.nearly(-x[::-1], 0.5, tmp_path / "fresh")
    assert np.array_equal(turned.a, fresh.a) and np.array_equal(turned.b, fresh.b)


def test_too_many_pairs_and_wrong_rules(monkeypatch, tmp_path):
    monkeypatch.setattr(neighbours, "_limit", lambda n: 10)
    with pytest.raises(ResourceError, match="GL0503") as caught:
        neighbours.exact(crowd(300, 3), 0.5)
    assert "--edge" in caught.value.hint
    with pytest.raises(ResourceError, match="GL0503"):
        neighbours.nearly(crowd(300, 3), 0.5, tmp_path)
    for wrong in ({"edge": 0.5}, {"join": 0}, {"recall": 0}, {"exact": -1}, {"extra": 2}):
        with pytest.raises(UsageError, match="GL0002"):
            GraphRules(**wrong)


@pytest.mark.parametrize("tiles", [True, False])
def test_no_pair_of_a_cell_is_lost(tmp_path, monkeypatch, tiles):
    """Whether products are in bfloat16 or not: cosines at the edge itself, cells over a tile."""
    monkeypatch.setattr(neighbours.screens, "bfloat16_is_fast", lambda: tiles)
    for name, value in (("CELLS", 3), ("TILE", 100), ("BLOCK", 500)):
        monkeypatch.setattr(neighbours, name, value)
    x = crowd(400, 6)
    a, b, cosine = truth(x, 0.2)
    edge = float(np.sort(cosine)[len(cosine) // 2])
    good = np.flatnonzero(neighbours.usable(x))
    join = neighbours._CellJoin(x, good, edge, tmp_path, 0, lambda *args: None)
    found = [(int(i), int(j)) for part in join.cells() for i, j in zip(part.a, part.b)]
    cells = np.full((len(x), join.probes), -1)
    cells[good] = join._assigned()
    inside = (cells[:, :, None] == np.arange(join.count)).any(axis=1).astype(int)
    shared = (inside @ inside.T)[a, b] > 0
    held = shared & (cosine >= edge + 1e-12)
    assert held.sum() > 2000 and len(set(found)) == len(found)
    assert {*zip(a[held].tolist(), b[held].tolist())} <= set(found)
    assert len(found) <= (shared & (cosine >= edge - 1e-12)).sum()


def test_faces_without_a_direction_have_no_pairs(tmp_path):
    x = np.full((40, D), np.nan, np.float16)
    assert len(neighbours.nearly(x, 0.5, tmp_path / "none").a) == 0
    x[3] = x[7] = 1
    near = neighbours.nearly(x, 0.5, tmp_path / "two")
    assert (near.a.tolist(), near.b.tolist()) == ([3], [7])
