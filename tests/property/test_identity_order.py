"""The order of identities: every cycle all of them, every image its turn, any world the same."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from glint.stream.class_rows import ClassRows
from glint.stream.identities import IdentityPlan
from glint.stream.plan import Slice


@st.composite
def plans(draw, endless=None):
    count = draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 8, 70]), min_size=1, max_size=12))
    if not sum(count):
        count[0] = 2
    identity = np.repeat(np.arange(len(count)), count)
    identity = identity[np.random.default_rng(draw(st.integers(0, 99))).permutation(len(identity))]
    each = draw(st.integers(1, 4))
    some = draw(st.booleans()) if endless is None else endless
    members = ClassRows.of(identity, len(count))
    return IdentityPlan(members, each, draw(st.integers(0, 2**32)), endless=some), identity


@settings(max_examples=50, deadline=None)
@given(made=plans(endless=False), first=st.integers(0, 5))
def test_groups_and_turns(made, first):
    plan, identity = made
    count = np.bincount(identity)
    seen = {c: [] for c in range(len(count))}
    cycles = 6
    for cycle in range(first, first + cycles):
        group = plan.rows_at(cycle, np.arange(plan.length)).reshape(-1, plan.each)
        label = identity[group]
        assert (label == label[:, :1]).all()
        assert sorted(label[:, 0].tolist()) == np.flatnonzero(count).tolist()
        for c, rows in zip(label[:, 0].tolist(), group.tolist()):
            distinct = min(plan.each, count[c])
            assert len(set(rows)) == distinct  # as many different ones as there are
            assert max(np.bincount(np.unique(rows, return_inverse=True)[1])) <= -(
                -plan.each // distinct
            )
            seen[c].append((cycle, rows))
    for c, groups in seen.items():  # no image again inside a round of whole groups
        length = max(count[c] // plan.each, 1)
        for number in {cycle // length for cycle, _ in groups}:
            inside = [r for cycle, rows in groups if cycle // length == number for r in rows]
            if count[c] >= plan.each:
                assert len(set(inside)) == len(inside)


@settings(max_examples=50, deadline=None)
@given(made=plans(), data=st.data())
def test_chains_of_resumes_follow_the_one_order(made, data):
    plan, _ = made
    stop = 3 * plan.cycle if plan.endless else plan.length
    want = plan.rows_at(1, np.arange(stop))
    got, position = [], 0
    while position < stop:
        world = data.draw(st.integers(1, 8))
        batch = world * plan.each * data.draw(st.integers(1, 6))
        ranks = [
            Slice(plan.length, batch, r, world, position, drop_last=False) for r in range(world)
        ]
        steps = data.draw(st.integers(1, min(ranks[0].steps, 5)))
        for step in range(steps):
            shares = [part.positions(step) for part in ranks]
            assert {len(share) for share in shares} == {batch // world}
            got += plan.rows_at(1, np.concatenate(shares)).tolist()
        position = ranks[0].position(steps)
    assert got[:stop] == want.tolist()


@settings(max_examples=30, deadline=None)
@given(made=plans(endless=True), data=st.data())
def test_endless_is_cycle_after_cycle(made, data):
    plan, _ = made
    cycles = IdentityPlan(plan.class_rows, plan.each, plan.seed)
    start = data.draw(st.integers(0, 4 * plan.cycle))
    at = np.arange(start, start + 2 * plan.cycle)
    want = [int(cycles.rows_at(p // plan.cycle, np.array([p % plan.cycle]))[0]) for p in at]
    assert plan.rows_at(0, at).tolist() == want


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_members_of_merged_and_dropped_labels(data):
    labels = data.draw(st.integers(1, 8))
    label = np.array(data.draw(st.lists(st.integers(0, labels - 1), max_size=60)), dtype=int)
    target = np.array(data.draw(st.lists(st.integers(-1, 3), min_size=labels, max_size=labels)))
    order = np.argsort(label, kind="stable")
    first = np.searchsorted(label[order], np.arange(labels + 1))
    members = ClassRows(order.astype(np.uint32), first, target, 4)
    for c in range(4):
        rows = np.flatnonzero((target[label] == c) if len(label) else np.zeros(0, bool))
        assert members.count_C[c] == len(rows)
        index = np.arange(len(rows))
        got = members.row_of(np.full(len(rows), c), index)
        assert sorted(got.tolist()) == rows.tolist()
