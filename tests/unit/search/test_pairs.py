"""The pair set is that of a float64 brute force, whatever the engine and the block."""

from __future__ import annotations

import numpy as np
import pytest

from glint.errors import ResourceError, UsageError
from glint.search import faiss_index, pairs, screens


def cloud(n: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    middle = rng.standard_normal((n // 5 + 1, dim))
    return middle[rng.integers(0, len(middle), n)] + 0.8 * rng.standard_normal((n, dim))


def brute(x: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    unit = pairs.unit64(x)
    a, b = np.triu_indices(len(x), 1)
    cosine = (unit[a] * unit[b]).sum(axis=1)
    keep = cosine >= threshold
    return a[keep], b[keep], cosine[keep]


int8 = pytest.mark.skipif(not screens.int8_is_fast(), reason="no AVX512-VNNI")
ENGINES = [
    pytest.param("int8", marks=int8),
    "torch",
    pytest.param(
        "faiss",
        marks=pytest.mark.skipif(not faiss_index.available(), reason="faiss is not installed"),
    ),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("block", [37, 4096])
def test_pairs_equal_brute_force(engine: str, dtype: type, block: int) -> None:
    x = cloud(400, 33, 0).astype(dtype)
    want_a, want_b, want_cosine = brute(x, 0.4)
    got = pairs.pairs_above(x, 0.4, engine=engine, block=block)
    assert len(want_a) > 100
    np.testing.assert_array_equal(got.a, want_a)
    np.testing.assert_array_equal(got.b, want_b)
    np.testing.assert_array_equal(got.cosine, want_cosine)
    assert got.engine == engine
    assert got.excluded == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_pairs_on_the_threshold_itself(engine: str) -> None:
    """A threshold equal to a float64 cosine keeps that pair; the next float above drops it."""
    x = cloud(60, 16, 1)
    _, _, cosine = brute(x, 0.2)
    for value in np.sort(cosine)[::7]:
        assert len(pairs.pairs_above(x, value, engine=engine).a) == (cosine >= value).sum()
        above = np.nextafter(value, 2)
        assert len(pairs.pairs_above(x, above, engine=engine).a) == (cosine >= above).sum()


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_without_direction_take_no_part(engine: str) -> None:
    x = cloud(100, 8, 2)
    x[3], x[50, 2], x[99] = np.nan, np.inf, 0
    x[60], x[70] = x[60] * 1e-200, x[70] * 1e200  # whose squares are zero and infinite
    got = pairs.pairs_above(x, 0.3, engine=engine)
    rest = np.setdiff1d(np.arange(100), [3, 50, 60, 70, 99])
    a, b, _ = brute(x[rest], 0.3)
    np.testing.assert_array_equal(got.a, rest[a])
    np.testing.assert_array_equal(got.b, rest[b])
    assert got.excluded == 5


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_to_search(engine: str) -> None:
    for rows in (0, 1):
        got = pairs.pairs_above(np.ones((rows, 4), np.float32), 0.5, engine=engine)
        assert len(got.a) == len(got.b) == len(got.cosine) == 0


def test_auto_takes_int8_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, engine in ((True, "int8"), (False, "torch")):
        monkeypatch.setattr(screens, "int8_is_fast", lambda fast=fast: fast)
        assert pairs.choose("auto") == engine
    with pytest.raises(UsageError, match=r"GL0002.*no AVX512-VNNI"):
        pairs.choose("int8")


def test_too_many_pairs_is_an_error() -> None:
    with pytest.raises(ResourceError, match=r"GL0503.*more than 10 pairs reach cosine 0\.100"):
        pairs.pairs_above(np.ones((50, 4)), 0.1, engine="torch", limit=10)


def test_unknown_engine() -> None:
    with pytest.raises(UsageError, match="expected one of auto, int8, torch, faiss, found 'hnsw'"):
        pairs.pairs_above(np.ones((5, 4)), 0.1, engine="hnsw")


def test_cosines_of_a_nan_row_are_nan() -> None:
    x = np.array([[1.0, 0], [np.nan, 1], [1, 1]])
    got = pairs.cosines(x, np.array([0, 0]), np.array([1, 2]))
    assert np.isnan(got[0])
    assert got[1] == pytest.approx(np.sqrt(0.5), abs=1e-15)
