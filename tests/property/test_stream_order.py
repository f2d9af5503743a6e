"""The order is one: any world size, any batch, any chain of stops and resumes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from glint.stream.class_rows import ClassRows
from glint.stream.draws import Draws as FromClassRows
from glint.stream.plan import Plan, Slice, batch_positions


def Draws(identity, draws_C=None, seed=0):
    classes = None if draws_C is None else len(draws_C)
    return FromClassRows(ClassRows.of(identity, classes), draws_C, seed)


@st.composite
def plans(draw):
    n = draw(st.integers(1, 300))
    seed = draw(st.integers(0, 2**32))
    block = draw(st.none() | st.integers(1, 64))
    window = draw(st.integers(1, 5))
    kind = draw(st.sampled_from(["plain", "dropped", "table"]))
    if kind == "plain":
        return Plan(n, seed, None, block, window)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    identity = rng.integers(-1 if n > 1 else 0, 9, n)
    identity[0] = 0
    draws_C = None
    if kind == "table":
        draws_C = rng.random(9) * 7
        draws_C[np.bincount(identity[identity >= 0], minlength=9) == 0] = 0
    return Plan(n, seed, Draws(identity, draws_C, seed), block, window)


@settings(max_examples=80, deadline=None)
@given(plan=plans(), epoch=st.integers(0, 4), data=st.data())
def test_chains_of_resumes_take_every_position_once_in_order(plan, epoch, data):
    """World 1..8 and the batch change at every resume; ranks together follow the one order."""
    canonical = plan.rows(epoch, 0, plan.length)
    seen, position = [], 0
    while position < plan.length:
        world = data.draw(st.integers(1, 8))
        batch = world * data.draw(st.integers(1, 12))
        ranks = [
            Slice(plan.length, batch, r, world, position, drop_last=False) for r in range(world)
        ]
        assert len({part.steps for part in ranks}) == 1
        steps = data.draw(st.integers(1, ranks[0].steps))
        taken = []
        for step in range(steps):
            shares = [part.positions(step) for part in ranks]
            assert {len(share) for share in shares} == {batch // world}
            taken += shares
            if (shares[-1] >= plan.length).any():  # flagged repeats fill only the last batch
                assert step == ranks[0].steps - 1
        whole = np.concatenate(taken)
        seen += plan.rows_at(epoch, whole)[whole < plan.length].tolist()
        position = ranks[0].position(steps)
        assert len(seen) == position
    assert seen == canonical.tolist()
    if plan.draws is None:
        assert sorted(seen) == list(range(plan.n))
    else:
        times = plan.draws.at(epoch).times_n[: plan.n]
        assert np.bincount(seen, minlength=plan.n).tolist() == times.tolist()


@settings(max_examples=60, deadline=None)
@given(plan=plans(), epoch=st.integers(0, 3), data=st.data())
def test_any_range_is_that_part_of_the_epoch(plan, epoch, data):
    whole = plan.rows(epoch, 0, plan.length)
    start = data.draw(st.integers(0, plan.length))
    stop = data.draw(st.integers(start, plan.length))
    assert (plan.rows(epoch, start, stop) == whole[start:stop]).all()


@given(length=st.integers(1, 500), world=st.integers(1, 8), each=st.integers(1, 40))
def test_drop_last_leaves_less_than_one_global_batch(length, world, each):
    part = Slice(length, world * each, 0, world)
    assert part.steps == length // (world * each)
    full = Slice(length, world * each, 0, world, drop_last=False)
    assert full.steps == -(-length // (world * each))


@given(step=st.integers(0, 10**9), world=st.integers(1, 8), each=st.integers(1, 512))
def test_ranks_tile_the_global_batch(step, world, each):
    parts = [batch_positions(step, world * each, rank, world) for rank in range(world)]
    assert parts[0][0] == step * world * each and parts[-1][1] == (step + 1) * world * each
    assert all(a[1] == b[0] for a, b in pairwise(parts))
