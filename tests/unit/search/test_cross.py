"""The join of two sets of rows equals float64 brute force."""

from __future__ import annotations

import numpy as np
import pytest

from glint.errors import ResourceError
from glint.search import cross, pairs


@pytest.mark.parametrize(
    ("n", "m", "dim"), [(1, 1, 1), (300, 170, 16), (90, 5000, 128), (5000, 3, 7)]
)
def test_the_pairs_equal_brute_force(n: int, m: int, dim: int) -> None:
    rng = np.random.default_rng(n)
    x, y = (rng.standard_normal((k, dim)).astype(np.float32) for k in (n, m))
    y[: min(n, m) // 2] = x[: min(n, m) // 2]
    if n > 10:
        x[3], x[7], y[0] = np.nan, 0, np.inf
    with np.errstate(invalid="ignore"):
        whole = pairs.unit64(x) @ pairs.unit64(y).T
    edge = np.sort(whole[np.isfinite(whole)])[-min(50, n * m) :][0]
    found = cross.pairs_across(x, y, float(edge) - 1e-12)
    expected = np.argwhere(whole >= edge - 1e-12)
    np.testing.assert_array_equal(np.stack([found.a, found.b], 1), expected)
    np.testing.assert_allclose(found.cosine, whole[found.a, found.b], atol=1e-12)
    assert found.excluded == (3 if n > 10 else 0)


def test_too_many_pairs_and_empty_sets() -> None:
    x = np.ones((40, 4), np.float32)
    with pytest.raises(ResourceError, match=r"GL0503.*more than 100 pairs reach cosine 0.500"):
        cross.pairs_across(x, x, 0.5, limit=100)
    assert len(cross.pairs_across(x, x[:0], 0.5).a) == 0
