"""Online clusters: sums, connections, merges and names, one face at a time or in blocks."""

from __future__ import annotations

import numpy as np
import pytest

from glint.errors import UsageError
from glint.evals.clusters import pairwise
from glint.search import online_clusters
from glint.search.online_clusters import ClusterRules, OnlineClusters


def stream(seed: int, people: int = 25, faces: int = 12, modes: int = 2, dim: int = 128):
    """Faces of people who look one of a few ways each, in random order."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(people), faces)
    who = rng.normal(size=(people, dim))
    way = who[:, None] + 0.75 * rng.normal(size=(people, modes, dim))
    face = way[person, rng.integers(0, modes, len(person))]
    face = face + 0.6 * rng.normal(size=face.shape)
    order = rng.permutation(len(person))
    face /= np.linalg.norm(face, axis=1, keepdims=True)
    return face[order].astype(np.float32), person[order]


def unit(face: np.ndarray) -> np.ndarray:
    face = face.astype(np.float64)
    return face / np.linalg.norm(face, axis=1, keepdims=True)


def from_scratch(got: OnlineClusters, face: np.ndarray) -> None:
    """Compare everything kept with what the members alone say."""
    shot, o = got.snapshot(), got.options
    mean, count = [], []
    for row, name in enumerate(shot.cluster_k):
        member = unit(face[shot.cluster_N == name])
        count.append(len(member))
        mean.append(member.sum(axis=0))
        if len(member) > 1:
            cosine = member @ member.T
            rho = cosine[np.triu_indices(len(member), 1)].mean()
            assert shot.rho_k[row] == pytest.approx(rho, abs=1e-6)
        else:
            assert np.isnan(shot.rho_k[row])
    assert shot.count_k.tolist() == count and sum(count) == (shot.cluster_N >= 0).sum()
    mean, n = unit(np.array(mean)), np.array(count)
    held = mean @ mean.T >= o.connect + o.extra / np.sqrt(np.minimum(n[:, None], n))
    a, b = np.nonzero(np.triu(held, 1))
    edges = np.stack([shot.cluster_k[a], shot.cluster_k[b]], axis=1)
    assert edges.tolist() == shot.edge_m2.tolist()
    identity = {name: name for name in shot.cluster_k.tolist()}
    for _ in identity:
        for x, y in edges.tolist():
            identity[x] = identity[y] = min(identity[x], identity[y])
    assert shot.identity_k.tolist() == list(identity.values())
    assert [got.identity(name) for name in shot.cluster_k.tolist()] == shot.identity_k.tolist()
    for place, others in got.near.items():
        assert all(place in got.near[other] for other in others)


@pytest.mark.parametrize("block", [1, 7, 300])
def test_a_snapshot_is_what_its_members_say(block: int) -> None:
    face, person = stream(0)
    got = OnlineClusters(128, ClusterRules(merge=0.7))
    for at in range(0, len(face), block):
        got.insert(face[at : at + block])
        if at in (0, 70, 140):
            from_scratch(got, face[: at + block])
    from_scratch(got, face)
    shot = got.snapshot()
    assert pairwise(shot.identity_N, person).f > 0.97
    assert len(np.unique(shot.identity_N)) < len(shot.cluster_k)  # some people look two ways


def test_blocks_change_nothing_but_when_merges_happen() -> None:
    face, _ = stream(1)
    plain = ClusterRules(merge=2.0)
    one, whole = OnlineClusters(128, plain), OnlineClusters(128, plain)
    names = [int(one.insert(f[None])[0]) for f in face]
    assert whole.insert(face).tolist() == names
    a, b = one.snapshot(), whole.snapshot()
    assert (a.identity_N == b.identity_N).all() and (a.edge_m2 == b.edge_m2).all()


def test_only_connections_of_what_was_touched_change() -> None:
    face, _ = stream(2, people=8)
    got = OnlineClusters(128, ClusterRules(merge=2.0))
    changed = 0
    for f in face:
        before = {(a, b) for a, others in got.near.items() for b in others}
        name = int(got.insert(f[None])[0])
        after = {(a, b) for a, others in got.near.items() for b in others}
        place = got._place[name]
        assert all(place in pair for pair in before ^ after)
        changed += before != after
    assert changed > 3


def test_a_connection_that_goes_splits_an_identity() -> None:
    """Two clusters just near enough; new faces draw one away from the other."""
    angle = np.radians([0, 0, 0, 0, 61, 61, 61, 61])  # cosine 0.485: not less than 0.45 + 0.01
    face = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    got = OnlineClusters(2, ClusterRules(extra=0.02, merge=2.0))
    first, *_, last = got.insert(face).tolist()
    assert got.identity(first) == got.identity(last) and got.clusters == 2
    away = np.radians([-25, -25, -25, -25])
    assert set(got.insert(np.stack([np.cos(away), np.sin(away)], axis=1)).tolist()) == {first}
    assert got.identity(first) == first and got.identity(last) == last
    assert got.snapshot().edge_m2.tolist() == []


def test_a_merge_keeps_faces_and_sums() -> None:
    dim = 40
    base = np.eye(dim)[0]
    left, right = base + 0.7 * np.eye(dim)[1], base - 0.7 * np.eye(dim)[1]
    far = np.repeat([left, right], 6, axis=0)
    got = OnlineClusters(dim, ClusterRules(join=0.5, connect=0.4, merge=0.75))
    got.insert(far)
    assert got.clusters == 2
    total = got.sum_KD.sum(axis=0)
    middle = np.repeat(base[None], 40, axis=0)  # draws the first cluster to the second
    names = got.insert(middle)
    assert got.clusters == 1 and got.name(1) == 0 and len(got.free) == 1
    np.testing.assert_allclose(got.sum_KD.sum(axis=0), total + 40 * base, atol=1e-9)
    shot = got.snapshot()
    assert shot.count_k.tolist() == [52] and (shot.cluster_N == 0).all() and len(names) == 40
    other = got.insert(np.eye(dim)[5:6])  # takes the free place, under a name of its own
    assert other.tolist() == [2] and got.free == [] and got.snapshot().cluster_k.tolist() == [0, 2]


def test_a_state_goes_on_to_the_bit() -> None:
    face, _ = stream(4)
    whole, part = (
        OnlineClusters(128, ClusterRules(merge=0.7)),
        OnlineClusters(128, ClusterRules(merge=0.7)),
    )
    for start in range(0, 300, 50):
        whole.insert(face[start : start + 50])
        state = {k: v.copy() for k, v in part.state().items()}
        part = OnlineClusters.resume(state, part.options)
        part.insert(face[start : start + 50])
    a, b = whole.state(), part.state()
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype and (a[key] == b[key]).all(), key


def test_the_order_matters_little() -> None:
    face, person = stream(5, people=40)
    scores = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(face))
        got = OnlineClusters(128)
        got.insert(face[order])
        scores.append(pairwise(got.snapshot().identity_N, person[order]).f)
    assert min(scores) > 0.97


def test_faces_without_embedding_join_nothing() -> None:
    face, _ = stream(6, people=4)
    face[[0, 9]] = np.nan
    face[3] = 0
    got = OnlineClusters(128)
    got.insert(face)
    shot = got.snapshot()
    lost = shot.cluster_N < 0
    assert np.flatnonzero(lost).tolist() == [0, 3, 9] and (shot.identity_N[lost] == -1).all()
    assert got.faces == len(face) and OnlineClusters(128).snapshot().identity_N.tolist() == []


def test_a_block_of_the_size_of_the_constant(monkeypatch) -> None:
    face, _ = stream(7)
    want = OnlineClusters(128)
    want.insert(face)
    monkeypatch.setattr(online_clusters, "BLOCK", 16)
    got = OnlineClusters(128)
    got.insert(face)
    assert pairwise(got.snapshot().identity_N, want.snapshot().identity_N).f > 0.99


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ({"join": 0.0}, "--join: expected above 0, at most 1, found 0.0"),
        ({"connect": float("nan")}, "--connect: expected above 0"),
        ({"extra": -1.0}, "--extra: expected from 0 to 1"),
        ({"enough": 0}, "--enough: expected at least 1"),
    ],
)
def test_bad_options(option, what) -> None:
    with pytest.raises(UsageError, match=what):
        ClusterRules(**option)
