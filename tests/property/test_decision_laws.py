"""Laws of relabelling: dense, order-free, idempotent, faithful to groups and masks."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glint.conflicts.decisions import Decision, settle, standing
from glint.conflicts.groups import components
from glint.errors import InputError
from glint.files import atomic
from glint.pipelines.conflicts.apply import relabel
from glint.shards import labels

CLASSES = 12
groups_of = st.lists(st.integers(0, CLASSES), min_size=CLASSES, max_size=CLASSES)
pairs_of = st.lists(
    st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)).filter(
        lambda p: p[0] < p[1]
    ),
    max_size=8,
)


def groups_from(owner: list[int]) -> list[np.ndarray]:
    """Labels with the same owner above 5 are one group."""
    owners = np.array(owner)
    found = [np.flatnonzero(owners == o) for o in range(6, CLASSES + 1)]
    return [g for g in found if len(g) > 1]


def as_masks(pairs: list[tuple[int, int]]) -> np.ndarray:
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def dense(target: list[int]) -> np.ndarray:
    """Turn any numbers into a valid label version; 0 is dropped."""
    value = np.array(target)
    out = np.full(len(value), -1)
    out[value > 0] = np.unique(value[value > 0], return_inverse=True)[1]
    return out


@settings(max_examples=80, deadline=None)
@given(
    start=groups_of,
    owner=groups_of,
    masks=pairs_of,
    old=pairs_of,
    order=st.randoms(use_true_random=False),
)
def test_relabelling(
    start: list[int],
    owner: list[int],
    masks: list[tuple[int, int]],
    old: list[tuple[int, int]],
    order,
) -> None:
    before = dense(start)
    classes = int(before.max(initial=-1)) + 1
    old_m2 = as_masks(sorted({p for p in old if p[1] < classes}))
    groups, mask_m2 = groups_from(owner), as_masks(masks)
    after, fresh = relabel(before, old_m2, groups, mask_m2)

    kept = np.unique(after[after >= 0])
    np.testing.assert_array_equal(kept, np.arange(len(kept)))  # dense
    np.testing.assert_array_equal(after == -1, before == -1)  # nothing dropped, nothing revived
    for group in groups:
        assert len(np.unique(after[group][before[group] >= 0])) <= 1  # merged
    for target in range(classes):
        assert len(np.unique(after[before == target])) == 1  # what was one stays one
    merged = sum(max(len(np.unique(before[g][before[g] >= 0])) - 1, 0) for g in groups)
    assert len(kept) >= classes - merged  # nothing else merges
    if not groups:
        np.testing.assert_array_equal(after, before)

    want = set()
    for a, b in mask_m2:
        want.add(tuple(sorted((int(after[a]), int(after[b])))))
    for a, b in old_m2:
        new = [int(after[np.flatnonzero(before == t)[0]]) for t in (a, b)]
        want.add(tuple(sorted(new)))
    assert {tuple(p) for p in fresh.tolist()} == {p for p in want if 0 <= p[0] < p[1]}

    shuffled = [group[::-1] for group in groups]
    order.shuffle(shuffled)
    rows = list(mask_m2[:, ::-1])
    order.shuffle(rows)
    turned_m2 = np.array(rows, dtype=np.int64).reshape(-1, 2)
    other, other_masks = relabel(before, old_m2, shuffled, turned_m2)
    np.testing.assert_array_equal(other, after)  # order of decisions does not matter
    np.testing.assert_array_equal(other_masks, fresh)
    twice, masks_twice = relabel(after, fresh, groups, mask_m2)
    np.testing.assert_array_equal(twice, after)  # idempotent
    np.testing.assert_array_equal(masks_twice, fresh)


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.tuples(groups_of, pairs_of), min_size=1, max_size=3))
def test_apply_then_undo_is_the_identity(steps: list) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        atomic.write_json(root / "manifest.json", {"identities": CLASSES})
        versions = [labels.current(root, CLASSES)]
        for owner, masks in steps:
            now = versions[-1]
            target, fresh = relabel(now.target, now.masks, groups_from(owner), as_masks(masks))
            labels.apply(root, target, fresh, {})
            versions.append(labels.current(root, CLASSES))
        for before in reversed(versions[:-1]):
            assert labels.undo(root) == before.version
            now = labels.current(root, CLASSES)
            np.testing.assert_array_equal(now.target, before.target)
            np.testing.assert_array_equal(now.masks, before.masks)


every_pair = [(a, b) for a in range(6) for b in range(a + 1, 6)]
lines_of = st.lists(
    st.builds(
        lambda pair, verdict, by, seq: Decision(*pair, verdict, by, seq),
        st.sampled_from(every_pair),
        st.sampled_from(["merge", "mask", "keep", "none"]),
        st.sampled_from(["alice", "bob"]),
        st.integers(0, 30),
    ),
    max_size=12,
)
found_of = st.lists(
    st.sampled_from(["keep", "keep", "mask", "merge"]),
    min_size=len(every_pair),
    max_size=len(every_pair),
)


def files_of_decisions(lines: list[Decision], found: list[str], order) -> None:
    """Settle, or refuse; the order of lines and their repetition change neither."""
    a, b = np.array(every_pair).T
    shuffled = [*lines, *order.sample(lines, len(lines) // 2)]
    order.shuffle(shuffled)
    try:
        after = settle(lines, a, b, np.array(found))
    except InputError as error:
        with pytest.raises(InputError) as again:
            settle(shuffled, a, b, np.array(found))
        assert str(again.value) == str(error)
        by_pair: dict[tuple, set] = {}
        top: dict[tuple, tuple] = {}
        for one in lines:
            key = (one.a, one.b, one.by)
            seq, verdicts = top.get(key, (-1, set()))
            if one.seq >= seq:
                top[key] = (one.seq, {one.verdict} | (verdicts if one.seq == seq else set()))
        for (x, y, _), (_, verdicts) in top.items():
            by_pair.setdefault((x, y), set()).update(verdicts - {"none"})
        twice = any(len(verdicts) > 1 for _, verdicts in top.values())
        apart = any(verdicts - {"merge"} for verdicts in by_pair.values())
        assert twice or any(len(v) > 1 for v in by_pair.values()) or apart
        return
    np.testing.assert_array_equal(settle(shuffled, a, b, np.array(found)), after)
    np.testing.assert_array_equal(settle(lines, a, b, after), after)  # idempotent
    said = standing(lines)
    place = dict(zip(every_pair, after.tolist()))
    for pair, verdict in zip(every_pair, found):
        assert place[pair] == next(iter(said.get(pair, {"": verdict}).values()))
    for piece in components(a[after == "merge"], b[after == "merge"]):
        inside = set(piece.tolist())
        for pair, names in said.items():
            assert not inside.issuperset(pair) or set(names.values()) == {"merge"}


@settings(max_examples=150, deadline=None)
@given(lines=lines_of, found=found_of, order=st.randoms(use_true_random=False))
def test_random_files_of_decisions(lines: list[Decision], found: list[str], order) -> None:
    files_of_decisions(lines, found, order)


@pytest.mark.faults
@pytest.mark.timeout(900)
@settings(max_examples=10_000, deadline=None)
@given(lines=lines_of, found=found_of, order=st.randoms(use_true_random=False))
def test_ten_thousand_files_of_decisions(lines: list[Decision], found: list[str], order) -> None:
    files_of_decisions(lines, found, order)
