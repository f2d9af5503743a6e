"""The two-covariance model against brute force, and what it is for: telling people apart."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from glint.search import plda
from glint.search.evidence import Samples


def world(people: int, images: int, dim: int, seed: int, spread: float = 0.5) -> tuple:
    """Draw people and photographs on the unit sphere; label 2i and 2i + 1 are one person."""
    rng = np.random.default_rng(seed)
    person = rng.normal(size=(people, dim))
    label = np.repeat(np.arange(2 * people), images)
    x = person[label // 2] + spread * rng.normal(size=(len(label), dim))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32), label


def test_the_ratio_is_that_of_the_two_gaussians() -> None:
    rng = np.random.default_rng(0)
    between = rng.uniform(0.1, 4.0, 3)
    for n, m in [(1, 1), (3, 8), (40, 2)]:
        a, b = rng.normal(size=(2, 3))
        got = plda.log_ratio(a[None], b[None], np.array([n]), np.array([m]), between)[0]
        want = 0.0
        for i in range(3):
            apart = np.diag([between[i] + 1 / n, between[i] + 1 / m])
            same = apart + between[i] * (1 - np.eye(2))
            x = [a[i], b[i]]
            want += multivariate_normal.logpdf(x, cov=same) - multivariate_normal.logpdf(
                x, cov=apart
            )
        assert got == pytest.approx(want, abs=1e-10)


def test_planted_pairs_stand_apart_and_the_error_is_foretold() -> None:
    x, label = world(people=150, images=4, dim=24, seed=1)
    samples = Samples(x, label, 300)
    model = plda.fit(samples)
    assert model is not None
    a, b = np.triu_indices(300, 1)
    ratio = model.ratio(a, b)
    planted = (a // 2) == (b // 2)
    part = plda.share(ratio, len(a))
    assert part * len(a) == pytest.approx(150, rel=0.1)
    taken = plda.accept(plda.probability(ratio, part), 0.01)
    assert planted[taken].mean() >= 0.97
    assert taken[planted].mean() >= 0.95


def test_a_world_without_conflicts_merges_nothing() -> None:
    x, label = world(people=200, images=8, dim=24, seed=2)
    samples = Samples(x, label // 2, 200)
    model = plda.fit(samples)
    assert model is not None
    a, b = np.triu_indices(200, 1)
    ratio = model.ratio(a, b)
    part = plda.share(ratio, len(a))
    assert part * len(a) < 1.5
    assert not plda.accept(plda.probability(ratio, part), 0.01).any()


def test_too_few_photographs_give_no_model_and_missing_ones_no_ratio() -> None:
    x, label = world(people=5, images=1, dim=8, seed=3)
    assert plda.fit(Samples(x, label, 10)) is None
    x, label = world(people=30, images=6, dim=8, seed=3)
    samples = Samples(x, label, 61)  # label 60 has no photograph
    model = plda.fit(samples)
    assert model is not None
    ratio = model.ratio(np.array([0, 0]), np.array([1, 60]))
    assert np.isfinite(ratio[0]) and np.isnan(ratio[1])
    assert plda.probability(ratio, 0.1)[1] == 0.0


def test_accept_stops_where_the_expected_error_passes_the_rate() -> None:
    taken = plda.accept(np.array([0.5, 0.999, 0.98, 0.9]), 0.03)
    assert taken.tolist() == [False, True, True, False]
    assert plda.accept(np.array([0.999, 0.98, 0.95]), 0.03).all()
