"""Whole copies of rows from fractional draws per identity."""

from __future__ import annotations

import numpy as np
import pytest

from glint.errors import UsageError
from glint.stream.class_rows import ClassRows
from glint.stream.coverage import coverage
from glint.stream.draws import Draws as FromClassRows
from glint.stream.plan import Plan


def Draws(identity, draws_C=None, seed=0):
    classes = None if draws_C is None else len(draws_C)
    return FromClassRows(ClassRows.of(identity, classes), draws_C, seed)


@pytest.fixture
def identity():
    rng = np.random.default_rng(0)
    identity = np.sort(rng.integers(0, 50, 400))[rng.permutation(400)]
    identity[::17] = -1
    return identity


def counts(identity, classes=50):
    return np.bincount(identity[identity >= 0], minlength=classes)


def test_draws_add_up_and_every_image_takes_its_turn(identity):
    draws_C = np.random.default_rng(1).random(50) * 16 * (counts(identity) > 0)
    draws = Draws(identity, draws_C, seed=5)
    plan = Plan(len(identity), 5, draws)
    assert plan.length == int(np.ceil(draws_C.sum()))
    total = np.zeros(len(identity), dtype=int)
    largest = int(np.argmax(draws_C))  # takes what makes the sum whole
    for epoch in range(60):
        rows = plan.rows(epoch, 0, plan.length)
        total += np.bincount(rows, minlength=len(identity))
        drawn = np.bincount(identity[rows], minlength=50)
        off = np.delete(drawn - draws_C, largest)
        assert (np.abs(off) < 1 + 1e-6).all()
        for c in range(50):  # at no time is one image two draws ahead of another
            assert np.ptp(total[identity == c]) <= 1
    assert total[identity < 0].sum() == 0
    per_identity = np.bincount(identity[identity >= 0], weights=total[identity >= 0])
    assert np.abs(np.delete(per_identity - 60 * draws_C, largest)).max() < 2.5
    assert (total[(identity >= 0) & (draws_C[identity] >= 1)] > 0).all()


def test_before_is_the_sum_of_epochs_in_any_order(identity):
    draws = Draws(identity, np.full(50, 2.3), seed=1)
    want = sum(draws.drawn(e) for e in range(9))
    assert (draws.drawn_before(9) == want).all()
    assert (draws.drawn_before(4) == sum(draws.drawn(e) for e in range(4))).all()
    assert (draws.drawn_before(9) == want).all()


def test_epochs_may_be_visited_in_any_order(identity):
    draws_C = np.full(50, 2.3)
    forward, backward = (Plan(400, 1, Draws(identity, draws_C, 1)) for _ in range(2))
    a = [forward.rows(e, 0, forward.length) for e in range(5)]
    b = [backward.rows(e, 0, backward.length) for e in reversed(range(5))][::-1]
    assert all((x == y).all() for x, y in zip(a, b))


def test_image_uniform_table_is_the_plain_epoch_without_dropped_rows(identity):
    plain = Plan(400, 3, Draws(identity))
    table = Plan(400, 3, Draws(identity, counts(identity).astype(float), 3))
    for epoch in range(2):
        rows = plain.rows(epoch, 0, plain.length)
        assert sorted(rows.tolist()) == np.flatnonzero(identity >= 0).tolist()
        assert sorted(rows.tolist()) == sorted(table.rows(epoch, 0, table.length).tolist())


@pytest.mark.parametrize("table", [True, False])
def test_slots_by_identity_hold_the_multiset_of_slots_by_row(identity, table):
    draws_C = np.random.default_rng(2).random(50) * 9 * (counts(identity) > 0) if table else None
    draws = Draws(identity, draws_C, 4)
    for epoch in (0, 3, 1):
        rows = draws.rows(epoch, np.arange(draws.length))
        times = draws.at(epoch).times_n[:400]
        assert (np.bincount(rows, minlength=400) == times).all()
        blocks = Plan(400, 4, draws, block=16)
        assert sorted(blocks.rows(epoch, 0, blocks.length).tolist()) == sorted(rows.tolist())


def test_no_dropped_row_and_no_table_is_the_o1_plan():
    every = np.zeros(123, dtype=int)
    for block in (None, 10):
        drawn, plain = Plan(123, 3, Draws(every), block), Plan(123, 3, None, block)
        assert (drawn.rows(1, 0, 123) == plain.rows(1, 0, 123)).all()


def test_order_inside_an_identity_is_keyed():
    first = [
        Draws(np.zeros(40, dtype=int), np.array([1.0]), seed).at(0).times_n.argmax()
        for seed in range(30)
    ]
    assert len(set(map(int, first))) > 10


def test_many_copies_of_one_image():
    plan = Plan(2, 0, Draws(np.array([0, 1]), np.array([1000.0, 1.0])))
    rows = plan.rows(0, 0, plan.length)
    assert np.bincount(rows).tolist() == [1000, 1]


@pytest.mark.parametrize(
    ("draws_C", "text"),
    [
        ([1.0, -1.0], "not negative"),
        ([1.0, np.nan], "finite"),
        ([1.0], "has 1"),
        ([1.0, 1.0, 1.0], "identity 2 has draws but no image"),
    ],
)
def test_bad_draws(draws_C, text):
    with pytest.raises(UsageError, match=text):
        Draws(np.array([0, 1, 1]), np.array(draws_C))


def test_nothing_to_draw():
    with pytest.raises(UsageError, match="no sample"):
        Plan(3, 0, Draws(np.array([0, 0, 1]), np.zeros(2)))


def test_coverage_counts_what_epochs_draw():
    identity = np.repeat([0, 1, 2], [10, 4, 2])
    plain = coverage(np.array([10, 4, 2]), None, 3)
    assert (plain.tail_images, plain.tail_share, plain.seen) == (6 / 16, 6 / 16, 1.0)
    draws = Draws(identity, np.array([2.0, 2.0, 2.0]), 0)
    equal = coverage(np.array([10, 4, 2]), draws, 3)
    assert equal.draws == 6 and equal.most_repeats == 1.0
    assert equal.tail_share == pytest.approx(4 / 6)
    assert equal.seen == pytest.approx((6 + 4 + 2) / 16)
    assert "66.7% of draws" in str(equal)
