"""Statistics of two sets of samples, against brute force and against what one person gives."""

from __future__ import annotations

import numpy as np
import pytest

from glint.conflicts import evidence
from glint.conflicts.evidence import Samples
from glint.search import pairs


def person(
    rng: np.random.Generator, n: int, rho: float, dim: int = 64, middle: np.ndarray | None = None
) -> np.ndarray:
    """Draw n unit rows whose mean pairwise cosine is about rho."""
    middle = pairs.unit64(rng.standard_normal((1, dim)))[0] if middle is None else middle
    noise = pairs.unit64(rng.standard_normal((n, dim)))
    return pairs.unit64(np.sqrt(rho) * middle + np.sqrt(1 - rho) * noise).astype(np.float32)


def test_mean_cosine_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 3, 17):
        x = person(rng, n, 0.5)
        table = x.astype(np.float64) @ x.T.astype(np.float64)
        want = table[np.triu_indices(n, 1)].mean()
        assert evidence.mean_cosine(x) == pytest.approx(want, abs=1e-6)
    assert np.isnan(evidence.mean_cosine(x[:1]))


def test_centre_cosine_formula_is_exact() -> None:
    """With the sets' own statistics the formula is an identity, not an approximation."""
    rng = np.random.default_rng(1)
    middle = pairs.unit64(rng.standard_normal((1, 64)))[0]
    x, y = person(rng, 5, 0.6, middle=middle), person(rng, 9, 0.4, middle=middle)
    rho_a, rho_b = evidence.mean_cosine(x), evidence.mean_cosine(y)
    cross = float((x @ y.T).mean())
    a, b = x.mean(0), y.mean(0)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    expected = evidence.centre_cosine(rho_a, rho_b, 5, 9) * cross / np.sqrt(rho_a * rho_b)
    assert cosine == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 8), (3, 3), (20, 4)])
def test_one_person_scores_about_one_whatever_the_counts(n: int, m: int) -> None:
    rng = np.random.default_rng(2)
    scores = []
    for _ in range(300):
        middle = pairs.unit64(rng.standard_normal((1, 64)))[0]
        x, y = person(rng, n, 0.6, middle=middle), person(rng, m, 0.6, middle=middle)
        a, b = x.mean(0), y.mean(0)
        cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        scores.append(evidence.compare(x, y, 0.6, cosine=cosine, n=n, m=m)[1])
    assert np.median(scores) == pytest.approx(1, abs=0.04)


def test_shrinking() -> None:
    assert evidence.shrunk(float("nan"), 1, 0.6) == 0.6
    assert evidence.shrunk(0.2, 5, 0.6) == pytest.approx((4 * 0.6 + 4 * 0.2) / 8)
    assert evidence.shrunk(0.2, 10**6, 0.6) == pytest.approx(0.2, abs=1e-4)
    assert evidence.shrunk(-0.9, 100, 0.1) == evidence.RHO_FLOOR


def test_collect_by_hand() -> None:
    x = np.array([[1, 0], [0, 1], [np.nan, 1], [1, 1], [3, 4]], np.float64)
    samples = Samples(x, np.array([0, 0, 1, 2, 2]), 4)
    assert samples.count_C.tolist() == [2, 0, 2, 0]
    assert samples.excluded == 1
    got = evidence.collect(samples, np.array([0, 0]), np.array([2, 1]), np.array([0.9, np.nan]), 1)
    cross = np.array([[1, 0], [0, 1.0]]) @ np.array([[0.5**0.5] * 2, [0.6, 0.8]]).T
    assert got.cross_mean[0] == pytest.approx(cross.mean())
    assert got.cross_q10[0] == pytest.approx(np.quantile(cross, 0.1))
    assert np.isnan([got.cross_mean[1], got.cross_q10[1], got.score[1]]).all()


def test_at_most_32_samples_evenly_spread() -> None:
    samples = Samples(np.ones((100, 3), np.float16), np.zeros(100, np.int64), 1)
    rows = samples.rows(0)
    assert len(rows) == 32
    assert (np.diff(rows) >= 3).all()
    assert len(samples.rows(0, 10**6)) == 100
