"""Intervals: nearly the binomial one for people apart, wider for people in many pairs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from glint.evals.intervals import Intervals, bootstrap, wilson


def made(people: int, pairs: int, clustered: float, seed: int = 0) -> Intervals:
    rng = np.random.default_rng(seed)
    same = np.arange(2 * pairs) % 2 == 0
    a = rng.integers(0, people, 2 * pairs)
    b = np.where(same, a, (a + 1 + rng.integers(0, people - 1, 2 * pairs)) % people)
    hard = rng.normal(0, clustered, people)
    d = np.where(same, 1.0 + hard[a], 1.9 + hard[a] + hard[b]) + rng.normal(0, 0.2, 2 * pairs)
    fold = np.arange(2 * pairs) * 10 // (2 * pairs)
    return bootstrap(d.clip(0, 4), same, fold, a, b, fars=("1e-1", "1e-3"), draws=200)


def width(found: Intervals) -> float:
    return found.accuracy[1] - found.accuracy[0]


def test_of_people_apart_it_is_about_the_binomial_one() -> None:
    found = made(20_000, 2000, 0.0)
    middle = sum(found.accuracy) / 2
    exact = binomtest(round(middle * 4000), 4000).proportion_ci(method="wilson")
    assert width(found) == pytest.approx(exact.high - exact.low, rel=0.25)
    assert found.people > 5000 and found.draws == 200


def test_people_in_many_pairs_widen_it() -> None:
    assert width(made(40, 2000, 0.3)) > 2.5 * width(made(20_000, 2000, 0.3))


def test_few_accepted_impostors_give_no_interval() -> None:
    found = made(500, 2000, 0.1)
    assert found.tar["1e-3"] is None
    low, high = found.tar["1e-1"] or (1, 0)
    assert 0 < low < high <= 1


def test_a_perfect_set_has_an_interval() -> None:
    d = np.tile([0.1, 2.0], 50)
    at = np.arange(100)
    found = bootstrap(d, d < 1, at // 10, at, at)
    exact = binomtest(100, 100).proportion_ci(method="wilson")
    assert found.accuracy == pytest.approx((exact.low, exact.high))
    assert wilson(0.5, 0.25 / 100, 7) == pytest.approx(
        tuple(binomtest(50, 100).proportion_ci(method="wilson"))
    )


def test_the_same_seed_gives_the_same() -> None:
    assert made(300, 500, 0.2) == made(300, 500, 0.2)
