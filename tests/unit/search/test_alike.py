"""Pairs of people weighed against look-alikes: the expected cosines, the counts, the promise."""

from __future__ import annotations

import numpy as np
import pytest

from glint.pipelines.embed import centres
from glint.pipelines.verdicts import Found, Options, find
from glint.search import alike, calibrate, knn
from glint.search.evidence import Samples


def people(
    count: int, seed: int, *, twins: int = 0, splits: int = 0, dim: int = 96
) -> tuple[np.ndarray, np.ndarray]:
    """Draw photographs of people; the first `twins` are 0.6 to 0.75 like the last ones.

    The `splits` people after them have a second label each, from `count` on.
    """
    rng = np.random.default_rng(seed)
    middle = knn.unit64(rng.standard_normal((count, dim)))
    t = rng.uniform(0.6, 0.75, (twins, 1))
    middle[count - twins :] = t * middle[:twins] + np.sqrt(1 - t * t) * middle[count - twins :]
    middle = knn.unit64(middle)
    size = np.clip(rng.geometric(0.15, count) + 1, 2, 20)
    who = np.repeat(np.arange(count), size)
    r = rng.uniform(0.5, 0.75, count)[who][:, None]
    x = np.sqrt(r) * middle[who] + np.sqrt(1 - r) * knn.unit64(rng.standard_normal((len(who), dim)))
    label = who.copy()
    for new, one in enumerate(range(twins, twins + splits)):
        rows = np.flatnonzero(who == one)
        label[rows[: rng.integers(1, len(rows))]] = count + new
    return knn.unit64(x).astype(np.float32), label


def searched(x: np.ndarray, label: np.ndarray, **options: float) -> Found:
    classes = int(label.max()) + 1
    samples = Samples(x, label, classes)
    return find(centres(x, label, classes), samples, np.arange(classes), Options(**options))


def test_cosines_lie_where_the_model_expects_them() -> None:
    rng = np.random.default_rng(0)
    x, label = people(400, 1)
    samples = Samples(x, label, 400)
    _, genuine, impostor = calibrate.calibrate(samples)
    model = alike.fit(samples, genuine, impostor)
    assert model is not None
    assert model.place == pytest.approx(0.625, abs=0.02)
    assert np.sqrt(model.spread) == pytest.approx(0.25 / np.sqrt(12), rel=0.25)
    n, m, draws = 3, 7, 800
    for likeness in (0.5, 0.75, 1.0):
        r = rng.uniform(0.5, 0.75, (2, draws))
        r[1] = r[0] if likeness == 1 else r[1]
        one = knn.unit64(rng.standard_normal((draws, 96)))
        own = knn.unit64(rng.standard_normal((draws, 96)))
        two = likeness * one + np.sqrt(1 - likeness**2) * own
        found = []
        for side, middle, size in ((0, one, n), (1, two, m)):
            noise = knn.unit64(rng.standard_normal((draws * size, 96))).reshape(draws, size, 96)
            part = r[side][:, None, None]
            found.append(knn.unit64((np.sqrt(part) * middle[:, None] + np.sqrt(1 - part) * noise
                                     ).reshape(-1, 96)).reshape(draws, size, 96))  # fmt: skip
        centre = [knn.unit64(part.mean(axis=1)) for part in found]
        total = [np.linalg.norm(part.sum(axis=1), axis=1) ** 2 for part in found]
        sides = alike.Sides(
            np.full(draws, float(n)), np.full(draws, float(m)), (total[0] - n) / (n * (n - 1)),
            (total[1] - m) / (m * (m - 1)), (centre[0] * centre[1]).sum(axis=1),
        )  # fmt: skip
        mean, variance = model.expect(sides, likeness)
        off = (np.arctanh(sides.cosine_K) - mean) / np.sqrt(variance)
        assert np.median(off) == pytest.approx(0, abs=0.25)
        assert 0.6 < np.quantile(np.abs(off), 0.95) / 1.96 < 1.15


def test_look_alikes_are_counted_and_the_promise_is_kept() -> None:
    x, label = people(1000, 1, twins=100, splits=80)
    found = searched(x, label)
    model = found.model
    assert model is not None
    assert model.count_T[-1] == pytest.approx(80, rel=0.2)
    assert model.count_T[9:-1].sum() == pytest.approx(100, rel=0.3)  # 0.5 and more
    right = (found.pairs.b >= 1000) & (found.pairs.b - 1000 + 100 == found.pairs.a)
    merged = found.verdict == "merge"
    assert right[merged].mean() >= 0.98
    assert merged[right].sum() >= 64
    assert found.wrong <= 0.01 * merged.sum()
    known = right[found.probability > 0.5].mean()  # what is more likely than not mostly is
    assert known >= 0.85


def test_more_look_alikes_ask_for_more_evidence() -> None:
    sides = alike.Sides(*(np.full(1, v) for v in (2.0, 2.0, 0.6, 0.6, 0.6)))
    told = []
    for twins in (0, 100):
        x, label = people(500, 3, twins=twins, splits=20)
        model = searched(x, label).model
        assert model is not None
        told.append(float(model.probability(sides)[0]))
    assert told[1] < 0.8 * told[0]


def test_a_world_without_conflicts_merges_nothing() -> None:
    x, label = people(400, 4, twins=40)
    found = searched(x, label)
    assert found.model is not None
    assert (found.verdict == "merge").sum() == 0
    assert found.model.count_T[-1] < 5


def test_too_few_people_give_no_model_and_missing_cosines_no_probability() -> None:
    x, label = people(40, 5)
    assert searched(x, label).model is None
    x, label = people(300, 5, splits=20)
    model = searched(x, label).model
    assert model is not None
    sides = alike.Sides(*(np.array([v, v]) for v in (1.0, 2.0, 0.6, 0.6)), np.array([0.9, np.nan]))
    p = model.probability(sides)
    assert p[0] > 0.5 and p[1] == 0.0


def test_the_more_alike_the_more_probable() -> None:
    x, label = people(400, 6, twins=40, splits=30)
    model = searched(x, label).model
    assert model is not None
    cosine = np.linspace(0.2, 0.99, 200)
    for n, m, r in ((1.0, 1.0, np.nan), (1.0, 30.0, 0.6), (8.0, 8.0, 0.7)):
        p = model.probability(alike.Sides(*(np.full(200, v) for v in (n, m, r, r)), cosine))
        assert (np.diff(p) >= -1e-9).all()


def test_accept_stops_where_the_expected_error_passes_the_rate() -> None:
    taken = alike.accept(np.array([0.5, 0.999, 0.98, 0.9]), 0.03)
    assert taken.tolist() == [False, True, True, False]
    assert alike.accept(np.array([0.999, 0.98, 0.95]), 0.03).all()
