"""Block shuffle, seeking, and what a slice refuses."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from glint.errors import UsageError
from glint.stream.plan import Plan, Slice


@pytest.mark.parametrize("n", [1, 2, 17, 100, 1003])
@pytest.mark.parametrize("block", [None, 1, 7, 64, 2000])
@pytest.mark.parametrize("window", [1, 3])
def test_an_epoch_is_every_row_once(n, block, window):
    plan = Plan(n, 3, block=block, window=window)
    epochs = [plan.rows(epoch, 0, n) for epoch in range(2)]
    assert all(sorted(rows.tolist()) == list(range(n)) for rows in epochs)
    if n == 1003:
        assert (epochs[0] != epochs[1]).mean() > 0.9


def test_blocks_bound_what_is_open_at_a_time():
    plan = Plan(10_000, 1, block=50, window=4)
    rows = plan.rows(0, 0, 10_000)
    for start in range(0, 10_000, 200):  # 200 positions touch four blocks, one more at the seam
        assert len(np.unique(rows[start : start + 200] // 50)) <= 8
    assert len(np.unique(rows[:200] // 50)) == 4


def test_the_seed_decides():
    assert (Plan(500, 1).rows(0, 0, 500) != Plan(500, 2).rows(0, 0, 500)).mean() > 0.9


def test_positions_past_the_end_wrap():
    plan = Plan(10, 0)
    assert (plan.rows(0, 8, 23) == plan.rows(0, 0, 10)[np.arange(8, 23) % 10]).all()


def test_seek_in_a_huge_epoch_needs_no_memory():
    plan = Plan(42_500_000, 0)
    tracemalloc.start()
    began = time.process_time()
    rows = plan.rows(7, 42_000_000, 42_000_128)
    spent = time.process_time() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(rows)) == 128 and rows.max() < 42_500_000
    assert peak < 1 << 20 and spent < 0.05


def test_order_is_pinned():
    # A change here breaks the resume of every run in progress.
    assert Plan(1000, 42).rows(0, 0, 6).tolist() == [306, 646, 449, 38, 648, 363]
    assert Plan(1000, 42, block=32).rows(3, 500, 506).tolist() == [151, 899, 840, 229, 266, 923]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch": 7, "world": 2}, "not a positive multiple of the world size 2"),
        ({"batch": 0}, "not a positive multiple"),
        ({"batch": 4, "rank": 2, "world": 2}, "rank 2 of 2 does not exist"),
        ({"batch": 4, "origin": 101}, "outside an epoch of 100"),
    ],
)
def test_bad_slices(options, text):
    with pytest.raises(UsageError, match=text):
        Slice(100, **options)


def test_bad_plans():
    with pytest.raises(UsageError, match="no sample"):
        Plan(0, 1)
    with pytest.raises(UsageError, match="at least 1"):
        Plan(10, 1, block=0)


def test_position_of_a_step():
    part = Slice(100, 8, origin=20, drop_last=False)
    assert [part.position(s) for s in (0, 1, part.steps)] == [20, 28, 100]
