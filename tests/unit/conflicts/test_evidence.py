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


def one_by_one(samples: Samples, a: np.ndarray, b: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """Score pairs in a plain loop, by the formulas, in float64 but for the products of float32."""

    def rho(x: np.ndarray, prior: float) -> float:
        n = len(x)
        if n < 2:
            return max(prior, 0.05)
        total = x.sum(0, dtype=np.float64)
        return max((4 * prior + (total @ total - n) / n) / (n + 3), 0.05)

    rows = []
    for one, other, centres in zip(a.tolist(), b.tolist(), cosine.tolist()):
        x, y = (samples.unit(samples.rows(label)) for label in (one, other))
        if not len(x) or not len(y):
            rows.append([np.nan] * 3)
            continue
        mean = float(x.mean(0, dtype=np.float64) @ y.mean(0, dtype=np.float64))
        r, s = rho(x, 0.6), rho(y, 0.6)
        n, m = int(samples.count_C[one]), int(samples.count_C[other])
        expected = np.sqrt(r * s * n * m / ((1 + (n - 1) * r) * (1 + (m - 1) * s)))
        cross = x.astype(np.float64) @ y.T.astype(np.float64)
        q10 = np.quantile(cross, 0.1)
        rows.append([mean, q10, min(mean / np.sqrt(r * s), centres / expected)])
    return np.array(rows)


def test_batches_give_what_a_plain_loop_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts from none to more than take part, batches of a few pairs, labels out of order."""
    rng = np.random.default_rng(5)
    count = np.r_[0, 1, 32, 33, 70, rng.integers(0, 6, 60)]
    label = rng.permutation(np.repeat(np.arange(65), count))
    x = rng.standard_normal((len(label), 48)) + 2 * rng.standard_normal((65, 48))[label]
    samples = Samples(x.astype(np.float16), label, 65)
    a, b = rng.integers(0, 65, (2, 900))
    a[:50], b[:50] = 4, rng.integers(0, 65, 50)
    cosine = rng.uniform(0, 1, 900)
    want = one_by_one(samples, a, b, cosine)
    told: list[int] = []
    for room in (evidence.ROOM, 2000, 1):
        monkeypatch.setattr(evidence, "ROOM", room)
        told.clear()
        got = evidence.collect(samples, a, b, cosine, 0.6, progress=lambda n, *_: told.append(n))
        np.testing.assert_allclose(got.cross_mean, want[:, 0], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(got.score, want[:, 2], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(got.cross_q10, want[:, 1], atol=3e-7)  # products of float32
        assert told[-1] == 900 and told == sorted(told)
    assert 20 < np.isnan(want[:, 0]).sum() < 600


def test_at_most_32_samples_evenly_spread() -> None:
    samples = Samples(np.ones((100, 3), np.float16), np.zeros(100, np.int64), 1)
    rows = samples.rows(0)
    assert len(rows) == 32
    assert (np.diff(rows) >= 3).all()
    assert len(samples.rows(0, 10**6)) == 100
