"""People planted under two ids are found, look-alikes are not merged, for several embedders."""

# C identities, N samples, D embedding

from __future__ import annotations

import numpy as np
import pytest

from glint.conflicts.evidence import Samples
from glint.conflicts.verdicts import ConflictOptions, Found, find
from glint.search import faiss_index, pairs
from glint.shards.embeddings import centres


class World:
    """Identities with 2 to 30 samples; some split in two ids, some twins of others."""

    def __init__(
        self,
        seed: int,
        *,
        people: int = 300,
        splits: int = 30,
        twins: int = 30,
        dim: int = 128,
        rho: tuple[float, float] = (0.55, 0.8),
        least: int = 2,
        alike: tuple[float, float] = (0.5, 0.75),
    ) -> None:
        rng = np.random.default_rng(seed)
        middle = list(pairs.unit64(rng.standard_normal((people, dim))))
        self.alike = set()
        for k in range(twins):  # the last people resemble the first
            t = rng.uniform(*alike)
            own = pairs.unit64(rng.standard_normal((1, dim)))[0]
            middle[people - 1 - k] = pairs.unit64((t * middle[k] + np.sqrt(1 - t * t) * own)[None])[
                0
            ]
            self.alike.add((k, people - 1 - k))
        rows, label = [], []
        self.split = set()
        for who in range(people):
            n = int(np.clip(rng.geometric(0.12) + 1, least, 30))
            r = rng.uniform(*rho)
            noise = pairs.unit64(rng.standard_normal((n + 6, dim)))
            x = np.sqrt(r) * middle[who] + np.sqrt(1 - r) * noise
            if 100 <= who < 100 + splits:
                cut = int(rng.integers(3, n + 4))  # at least three on each side
                rows += [x[:cut], x[cut:]]
                label += [who] * cut + [people + who - 100] * (n + 6 - cut)
                self.split.add((who, people + who - 100))
            else:
                rows.append(x[:n])
                label += [who] * n
        self.x = pairs.unit64(np.concatenate(rows)).astype(np.float16)
        self.label = np.array(label)
        self.classes = people + splits

    def find(self, **options: object) -> Found:
        samples = Samples(self.x, self.label, self.classes)
        centre = centres(self.x, self.label, self.classes)
        return find(centre, samples, np.arange(self.classes), ConflictOptions(**options))


def with_verdict(found: Found, verdict: str) -> set[tuple[int, int]]:
    keep = found.verdict == verdict
    return set(zip(found.pairs.a[keep].tolist(), found.pairs.b[keep].tolist()))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("rho", "alike"),
    [
        ((0.55, 0.8), (0.5, 0.75)),
        ((0.85, 0.95), (0.5, 0.8)),
    ],
)
def test_splits_are_merged_and_look_alikes_are_not(
    seed: int, rho: tuple[float, float], alike: tuple[float, float]
) -> None:
    world = World(seed, rho=rho, alike=alike)
    found = world.find()
    merged = with_verdict(found, "merge")
    assert merged <= world.split
    assert len(merged) >= 0.95 * len(world.split)  # some are no more alike than look-alikes
    assert {tuple(g) for g in found.groups.merged} == merged
    assert found.groups.refused == []


@pytest.mark.parametrize("seed", range(3))
def test_a_weak_embedder_masks_what_it_cannot_tell(seed: int) -> None:
    world = World(seed, rho=(0.3, 0.5), alike=(0.4, 0.6))
    found = world.find()
    merged = with_verdict(found, "merge")
    assert merged <= world.split
    assert len(merged) >= 0.8 * len(world.split)
    seen = (merged | with_verdict(found, "mask")) & world.split
    assert len(seen) >= 0.95 * len(world.split)


@pytest.mark.parametrize("seed", range(2))
def test_close_look_alikes_with_many_samples_do_not_merge(seed: int) -> None:
    world = World(seed, alike=(0.75, 0.8), rho=(0.6, 0.7), least=8)
    merged = with_verdict(world.find(), "merge")
    assert merged == world.split


def test_a_person_under_three_ids_is_one_group() -> None:
    world = World(5)
    third = world.classes
    mine = np.flatnonzero(world.label == 130)
    extra = np.flatnonzero(np.isin(world.label, [100]))[:2]
    world.label[extra] = third
    world.classes += 1
    assert len(mine)
    found = world.find()
    assert [100, 300, third] in [g.tolist() for g in found.groups.merged]


def test_a_chain_is_masked_not_merged() -> None:
    """A bridge id holds half of one person and half of another."""
    world = World(6, splits=2)
    bridge = world.classes
    for who in (50, 60):
        rows = np.flatnonzero(world.label == who)
        extra = world.x[np.resize(rows, 8)]
        world.x = np.concatenate([world.x, extra])
        world.label = np.concatenate([world.label, np.full(8, bridge)])
    world.classes += 1
    found = world.find(threshold=0.6, low=0.4)
    assert (50, bridge) in with_verdict(found, "mask")
    assert (60, bridge) in with_verdict(found, "mask")
    [(piece, why)] = found.groups.refused
    assert piece.tolist() == [50, 60, bridge]
    assert why.startswith("a chain: 50 and 60 show ")
    assert why in found.reason


def test_the_engine_does_not_matter() -> None:
    if not faiss_index.available():
        pytest.skip("faiss is not installed")
    one, two = (World(7).find(engine=engine) for engine in ("faiss", "torch"))
    np.testing.assert_array_equal(one.pairs.a, two.pairs.a)
    np.testing.assert_array_equal(one.pairs.b, two.pairs.b)
    np.testing.assert_array_equal(one.verdict, two.verdict)


def test_the_threshold_overrides_the_score() -> None:
    found = World(8).find(threshold=0.7)
    np.testing.assert_array_equal(found.verdict == "merge", found.pairs.cosine >= 0.7)


def test_damaged_rows_take_no_part() -> None:
    world = World(9)
    world.x[np.flatnonzero(world.label == 100)[0]] = np.nan
    world.x[world.label == 5] = np.nan
    found = world.find()
    assert with_verdict(found, "merge") == world.split
    assert 5 not in found.pairs.a
    assert 5 not in found.pairs.b
    assert found.pairs.excluded == 1


def test_pairs_that_are_merged_already_do_not_come_back() -> None:
    world = World(10)
    target = np.arange(world.classes)
    target[300] = 100
    target[301] = -1
    samples = Samples(world.x, world.label, world.classes)
    found = find(centres(world.x, world.label, world.classes), samples, target, ConflictOptions())
    assert with_verdict(found, "merge") == world.split - {(100, 300), (101, 301)}


def test_without_calibration_nothing_merges_by_itself() -> None:
    rng = np.random.default_rng(0)
    x = pairs.unit64(rng.standard_normal((40, 16)))
    x[1] = x[0]
    samples = Samples(x, np.arange(40), 40)
    found = find(x.astype(np.float32), samples, np.arange(40), ConflictOptions())
    assert not found.calibration.calibrated
    assert set(found.verdict.tolist()) <= {"keep"}
    assert (0, 1) in with_verdict(found, "keep")
    chosen = find(x.astype(np.float32), samples, np.arange(40), ConflictOptions(threshold=0.9))
    assert with_verdict(chosen, "merge") == {(0, 1)}
