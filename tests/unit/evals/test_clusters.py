"""F-measures of clusters against the definition, face by face and pair by pair."""

from __future__ import annotations

import numpy as np
import pytest

from glint.evals.clusters import bcubed, pairwise


def brute(cluster: np.ndarray, truth: np.ndarray) -> tuple[float, float, float, float]:
    same, true = cluster[:, None] == cluster, truth[:, None] == truth
    both = same & true
    upper = np.triu_indices(len(cluster), 1)
    return (
        both[upper].sum() / same[upper].sum(),
        both[upper].sum() / true[upper].sum(),
        float((both.sum(axis=1) / same.sum(axis=1)).mean()),
        float((both.sum(axis=1) / true.sum(axis=1)).mean()),
    )


@pytest.mark.parametrize("seed", range(4))
def test_against_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cluster, truth = rng.integers(-1, 9, 80) * 7, rng.integers(0, 12, 80)
    p, b = pairwise(cluster, truth), bcubed(cluster, truth)
    got = (p.precision, p.recall, b.precision, b.recall)
    np.testing.assert_allclose(got, brute(cluster, truth), rtol=1e-12)
    assert p.f == pytest.approx(2 * got[0] * got[1] / (got[0] + got[1]))


def test_the_ends() -> None:
    truth = np.array([0, 0, 1, 1])
    for judge in (pairwise, bcubed):
        assert judge(truth * 5, truth).f == 1.0
    alone = pairwise(np.arange(4), truth)
    assert (alone.precision, alone.recall, alone.f) == (1.0, 0.0, 0.0)
    assert pairwise(np.zeros(4, int), truth).precision == pytest.approx(1 / 3)
    assert bcubed(np.zeros(4, int), truth).precision == 0.5
    assert pairwise(np.zeros(3, int), np.arange(3)).recall == 1.0
