"""No screen misses a pair: the worst rounding there is, and rows drawn to be awkward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glint.search import faiss_index, pairs, screens

ENGINES = [
    "torch",
    *(["int8"] if screens.int8_is_fast() else []),
    *(["faiss"] if faiss_index.available() else []),
]
int8 = pytest.mark.skipif(not screens.int8_is_fast(), reason="no AVX512-VNNI")


def test_margin_bounds_float32_products() -> None:
    rng = np.random.default_rng(3)
    for dim in (8, 128, 512, 2048):
        x, y = pairs.unit64(rng.random((200, dim))), pairs.unit64(rng.random((200, dim)))
        exact = (x * y).sum(axis=1)
        rough = np.einsum("nd,nd->n", x.astype(np.float32), y.astype(np.float32))
        assert np.abs(rough - exact).max() < screens.margin(dim) < 1e-3


@int8
def test_products_of_int8_are_whole() -> None:
    """No sum saturates or is rounded on the way, whatever shape the tile has."""
    rng = np.random.default_rng(4)
    for rows, columns, dim in ((1, 1, 4), (2, 3, 8), (33, 1, 1024), (129, 700, 132), (64, 64, 512)):
        for least in (-127, 127):
            a, b = (rng.integers(least, 128, (n, dim)) for n in (rows, columns))
            a8, b8 = (torch.from_numpy(x.astype(np.int8)) for x in (a, b))
            got = torch.empty(rows, columns, dtype=torch.int32)
            torch._int_mm(a8, b8.T, out=got)
            np.testing.assert_array_equal(got.numpy(), a @ b.T)
            np.testing.assert_array_equal(torch._int_mm(a8, -b8.T).numpy(), -(a @ b.T))


@int8
def test_the_worst_that_int8_does_is_found() -> None:
    """Parts that all lie in the middle between two steps, so that two rows lose d twice."""
    dim = 1024
    x = np.full((2, dim), 100.499)
    x[:, 0] = 127  # the largest part, in steps
    unit = pairs.unit64(x)
    cosine = float((unit[0] * unit[1]).sum())
    screen = pairs.open_screen("int8", x, np.arange(2), cosine, 2)
    assert isinstance(screen, screens.Int8)
    off, step = screen._rows.table.off_b[0], screen._rows.table.step_b[0]
    whole = screen._rows.row_ND.numpy().astype(np.int64)
    lost = cosine - step**2 * float(whole[0] @ whole[1])
    assert 0.97 * 2 * off < lost <= off + (1 + off) * off
    assert lost > 0.009
    assert len(pairs.pairs_above(x, cosine, engine="int8").a) == 1


@int8
def test_products_are_off_by_less_than_the_cut_allows() -> None:
    rng = np.random.default_rng(4)
    coarse = []
    for count, dim, top in ((1, 1, 0), (2, 3, 0), (33, 1024, 0), (200, 512, 0), (129, 512, 300)):
        x = rng.standard_normal((count, dim))
        x[:, 0] += top  # the others are less than half a step
        good = pairs.in_order(x)
        screen = pairs.open_screen("int8", x, good, 0.4, 50)
        assert isinstance(screen, screens.Int8)
        unit = pairs.unit64(x)[good]
        block = np.arange(count) // 50
        step, off = screen._rows.table.step_b[block], screen._rows.table.off_b[block]
        whole = screen._rows.row_ND.numpy().astype(np.float64)
        lost = np.abs(unit @ unit.T - step[:, None] * step * (whole @ whole.T))
        assert (lost <= off[:, None] + (1 + off[:, None]) * off + screens.ROUNDING).all()
        coarse.append(bool((off > screens.COARSE / 2).any()))
    assert coarse == [False, False, False, False, True]


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_of_one_part(engine: str) -> None:
    """A product of int8 over one part is wrong in torch, more often than not."""
    x = np.array([[0.5], [-0.25], [2.0], [0.125]], np.float32)
    for _ in range(20):
        got = pairs.pairs_above(x, -1.0, engine=engine)
        assert got.cosine.tolist() == [-1, 1, 1, -1, -1, 1]


KINDS = ("plain", "one large", "denormal", "few", "alike", "steps", "one-hot", "huge")


@st.composite
def rows(draw: st.DrawFn) -> np.ndarray:
    """Draw 2 to 40 rows of 1 to 1024 parts, each of some kind, some almost on top of others."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, dim = draw(st.integers(2, 40)), draw(st.sampled_from([1, 2, 3, 16, 31, 128, 512, 1024]))
    x = np.empty((count, dim))
    for i in range(count):
        kind = draw(st.sampled_from(KINDS))
        x[i] = rng.standard_normal(dim)
        if kind == "one large":
            x[i] *= 1e-4
            x[i, rng.integers(dim)] = 1
        elif kind == "denormal":
            x[i] *= 1e-41
        elif kind == "few":
            x[i] *= rng.random(dim) < 0.02
        elif kind == "alike":
            x[i] = x[rng.integers(i)] + 10.0 ** rng.uniform(-9, 0) * x[i] if i else 1.0
        elif kind == "steps":  # in the middle between two steps of 1/127
            x[i] = np.sign(x[i]) * (rng.integers(60, 127, dim) + 0.5)
            x[i, 0] = 127
        elif kind == "one-hot":
            x[i] = 0
            x[i, rng.integers(dim)] = 1
        elif kind == "huge":
            x[i] *= 1e30
    return x.astype(draw(st.sampled_from([np.float32, np.float64])))


@settings(max_examples=25, deadline=None)
@given(rows(), st.data())
def test_pairs_are_those_of_a_float64_brute_force(x: np.ndarray, data: st.DataObject) -> None:
    """At the cosine of a pair itself, at the next float above it, and around it."""
    good = np.flatnonzero(pairs.usable(x))
    unit = pairs.unit64(x[good])
    i, j = np.triu_indices(len(good), 1)
    cosine = (unit[i] * unit[j]).sum(axis=1)
    near = data.draw(st.sampled_from([0.0, 1e-9, 1e-5, 2**-10, 2**-8, -(2**-9)]))
    threshold = 0.4 if not len(cosine) else float(data.draw(st.sampled_from(cosine.tolist())))
    block = data.draw(st.sampled_from([1, 7, 2048]))
    for at in (threshold, np.nextafter(threshold, 2), threshold - near):
        keep = cosine >= at
        for engine in ENGINES:
            got = pairs.pairs_above(x, at, engine=engine, block=block)
            np.testing.assert_array_equal(got.a, good[i[keep]])
            np.testing.assert_array_equal(got.b, good[j[keep]])
            np.testing.assert_array_equal(got.cosine, cosine[keep])


def test_a_fast_processor_is_known_by_its_instructions() -> None:
    with open("/proc/cpuinfo") as file:
        named = "avx512_vnni" in file.read()
    assert screens.int8_is_fast() == named


@int8
@pytest.mark.slow
def test_a_screen_of_many_rows_lets_little_else_through() -> None:
    """Of 20,000 rows with pairs planted, the pairs of float64, and few more to score."""
    rng = np.random.default_rng(5)
    x = pairs.unit64(rng.standard_normal((20000, 512)))
    t = rng.uniform(0.3, 0.9, 5000)[:, None]
    x[:5000] = t * x[5000:10000] + np.sqrt(1 - t * t) * x[:5000]
    want = [np.argwhere(np.triu(x[s : s + 500] @ x.T, s + 1) >= 0.4) + [s, 0]
            for s in range(0, 20000, 500)]  # fmt: skip
    screen = pairs.open_screen("int8", x, pairs.in_order(x), 0.4, 2048)
    near = sum(len(a) for first in range(0, 20000, 2048) for a, _ in screen.tiles(first))
    got = pairs.pairs_above(x, 0.4, engine="int8")
    np.testing.assert_array_equal(np.stack([got.a, got.b], axis=1), np.concatenate(want))
    assert len(got.a) < near < 1.1 * len(got.a)


@int8
def test_threads_share_the_tiles_and_leave_torch_as_it_was() -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((700, 32)).astype(np.float32)
    x[350:] += 3 * x[:350]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(pairs.pairs_above(x, 0.5, engine="int8", block=64))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for name in ("a", "b", "cosine"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))
    assert len(found[0].a) > 300
