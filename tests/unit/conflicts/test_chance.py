"""Pairs of two people follow one law; what stands out beyond it is one person."""

from __future__ import annotations

import numpy as np
import pytest

from glint.conflicts import chance
from glint.conflicts.chance import Compared, Sample, Tail
from glint.search.pairs import unit64


def world(
    people: int, splits: int, seed: int, *, dim: int = 64, elsewhere: float = 0.0, twins: int = 0,
    most: int = 20,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Draw (centres, images of each, who each is) at rho 0.65; ids from `people` on are splits."""
    rng = np.random.default_rng(seed)
    person = unit64(rng.standard_normal((people, dim)))
    person[people - twins :] = unit64(0.7 * person[:twins] + 0.71 * person[people - twins :])
    who = np.r_[np.arange(people), np.arange(splits) + twins]
    t = np.ones((len(who), 1))
    t[people:, 0] = 1 - np.minimum(np.abs(rng.normal(0, elsewhere, splits)), 0.6)
    seen = t * person[who] + np.sqrt(1 - t * t) * unit64(rng.standard_normal((len(who), dim)))
    count = np.clip(rng.geometric(0.2, len(who)), 1, most)
    noise = unit64(rng.standard_normal((len(who), dim)))
    centre = np.sqrt(0.65) * seen + np.sqrt(0.35 / count)[:, None] * noise
    return unit64(centre).astype(np.float32), count, who


def learned(
    centre: np.ndarray, count: np.ndarray, who: np.ndarray, *, low: float = 0.4, rate: float = 0.01
) -> tuple[chance.Likeness, Compared, np.ndarray]:
    a, b = np.triu_indices(len(who), 1)
    cosine = (centre @ centre.T)[a, b].astype(np.float64)
    near = cosine >= low
    pairs = Compared(cosine[near], count[a[near]], count[b[near]])
    likeness = chance.fit(pairs, low, chance.sample(centre, count), 0.65, len(who), rate)
    return likeness, pairs, (who[a] == who[b])[near]


def test_the_law_is_that_of_random_directions() -> None:
    from scipy.stats import beta

    dim, pairs = 64, 1e6
    half = (dim - 3) / 2
    # A bin of STEP at 0 holds pairs x density x STEP of them.
    density = beta(half + 1, half + 1, loc=-1, scale=2)
    tail = Tail(float(np.log(pairs * density.pdf(0.0) * chance.STEP)), half, 0.3)
    for s in (-0.2, 0.0, 0.3, 0.5):
        assert tail.above(s) == pytest.approx(pairs * density.sf(s), rel=1e-6)
    assert tail.above(1.0) == 0


def test_its_dimensions_are_read_off_the_pairs() -> None:
    centre, count, who = world(1500, 0, 0, dim=96)
    likeness, _, _ = learned(centre, count, who, low=0.3)
    assert 2 * likeness.tail.dims + 3 == pytest.approx(96, rel=0.12)
    cosine = (centre @ centre.T)[np.triu_indices(1500, 1)]
    assert likeness.tail.above(0.3) == pytest.approx((cosine >= 0.3).sum(), rel=0.35)


@pytest.mark.parametrize("elsewhere", [0.0, 0.15])
def test_one_person_is_found_from_the_same_camera_and_from_others(elsewhere: float) -> None:
    found, wrong = [], 0
    for seed in range(4):
        likeness, pairs, right = learned(*world(900, 150, seed, elsewhere=elsewhere))
        merged = likeness.merges(pairs)
        found.append((merged & right).sum() / 150)
        wrong += int((merged & ~right).sum())
        assert likeness.fits == "halves"
    assert np.mean(found) >= (0.95 if not elsewhere else 0.85)
    assert wrong <= 4


def test_nothing_merges_where_there_is_no_conflict() -> None:
    assert sum(learned(*world(900, 0, seed))[0].cut < 1 for seed in range(8)) <= 1


def test_look_alikes_among_halves_do_not_merge() -> None:
    likeness, pairs, right = learned(*world(900, 100, 1, twins=150, most=30))
    assert likeness.fits == "mixed"
    merged = likeness.merges(pairs)
    assert right[merged].mean() >= 0.98
    assert (merged & right).sum() >= 75
    assert "look-alikes" in likeness.about()["note"]


def test_a_few_pairs_like_siblings_are_masked() -> None:
    likeness, pairs, _ = learned(*world(900, 0, 2, twins=8, most=30))
    assert likeness.fits == "few"
    assert not likeness.merges(pairs).any()
    assert (likeness.probability(pairs) >= chance.MAY_BE).sum() >= 5


def test_many_pairs_unlike_halves_merge_by_the_simple_rule() -> None:
    """One person from the front and in profile: no pair is like two halves of one folder."""
    centre, count, who = world(800, 0, 3, twins=200)
    who[600:] = who[:200]
    likeness, pairs, right = learned(centre, count, who)
    assert likeness.fits == "unlike"
    assert "simple rule" in likeness.about()["note"]
    merged = likeness.merges(pairs)
    assert (merged & right).sum() >= 120
    assert right[merged].mean() >= 0.98


def test_the_more_alike_the_more_probable() -> None:
    likeness, _, _ = learned(*world(900, 100, 4))
    cosine = np.linspace(-0.2, 1.0, 200)
    for n, m in ((1, 1), (1, 30), (8, 8)):
        pairs = Compared(cosine, np.full(200, n), np.full(200, m))
        assert (np.diff(likeness.probability(pairs)) >= 0).all()
        assert (np.diff(likeness.merges(pairs).astype(int)) >= 0).all()
        least = float(likeness.merge_from(n, m))
        reach = cosine / Compared(cosine, pairs.n_K, pairs.m_K).alike(0.65)
        assert cosine[likeness.merges(pairs)].min() == pytest.approx(least * reach[-1], abs=0.007)
        assert likeness.mask_from(n, m) <= likeness.merge_from(n, m)
    none = Compared(np.array([np.nan]), np.ones(1, int), np.ones(1, int))
    assert likeness.probability(none) == 0 and not likeness.merges(none).any()


def test_few_images_count() -> None:
    pairs = Compared(np.full(3, 0.5), np.array([1, 1, 9]), np.array([1, 9, 9]))
    assert pairs.strength(0.6, 0.5)[0] == pytest.approx(0.5)
    assert (np.diff(pairs.strength(0.6, 0.5)) < 0).all()
    np.testing.assert_array_equal(pairs.strength(0.6, 0.0), 0.5)
    assert pairs.alike(0.6)[0] == pytest.approx(0.5 / 0.6)


def test_accept_keeps_the_rate_at_its_confidence() -> None:
    s = np.linspace(1.0, 0.5, 400)

    class Flat(Tail):
        def at_most(self, s: object) -> np.ndarray:  # one wrong pair in 0.1
            return (1.0 - np.asarray(s)) / 0.1

    _, none = chance.accept(s, Flat(0, 1, 0), 0.01)
    assert none == 5  # 0.05 wrong pairs are expected, none allowed
    cut, some = chance.accept(s, Flat(0, 1, 0), 0.5)
    assert 5 < some <= 400 and s[some - 1] == cut
    assert chance.accept(s[:0], Flat(0, 1, 0), 0.1) == (float("inf"), 0)


def test_the_sample_holds_every_pair_above_its_least() -> None:
    centre, count, _ = world(300, 0, 5)
    count[7] = 0  # without a usable image
    seen = chance.sample(centre, count)
    some = np.delete(np.arange(300), 7)
    cosine = (centre[some] @ centre[some].T)[np.triu_indices(299, 1)]
    assert seen.share == 2.0
    assert len(seen.pairs.cosine_K) == 2 * (cosine >= seen.least).sum()
    other, number, _ = world(200, 0, 6)
    across = chance.sample(centre, count, other, number)
    assert across.share == 1.0
    assert len(across.pairs.cosine_K) == ((centre[some] @ other.T) >= across.least).sum()


def test_a_tail_of_nothing_does_not_fail() -> None:
    none = Compared(np.empty(0), np.empty(0, int), np.empty(0, int))
    likeness = chance.fit(none, 0.4, Sample(none, 0.1, 1.0), 0.7, 0, 0.01)
    assert not np.isfinite(likeness.cut)
    assert likeness.about()["cut"] is None


def test_where_all_are_alike_nothing_merges_and_the_report_says_so() -> None:
    """A net that hardly tells people apart leaves no room between chance and one person."""
    draw = np.random.default_rng(0)
    centre_CD = (1 + 0.01 * draw.standard_normal((12, 64))).astype(np.float32)
    count_C = np.full(12, 6)
    seen = chance.sample(centre_CD, count_C, seed=0)
    pairs = Compared(np.full(66, 0.999), np.full(66, 6), np.full(66, 6))
    model = chance.fit(pairs, 0.4, seen, 0.9, 12, 0.01)
    assert (model.cut, model.fits) == (float("inf"), "blind")
    assert "--threshold" in model.about()["note"]
    assert not np.asarray(model.probability(pairs)).any()
