from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glint.dist.span import span
from glint.errors import InputError
from glint.nn.heads import sample
from glint.nn.heads.sample import Nearest, permute, sample_size, sampled_classes
from glint.rng import hash_31, stream_key


@given(st.integers(1, 12), st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_permutation_is_one(bits, key):
    values = permute(torch.arange(1 << bits), bits, key)
    assert torch.equal(torch.sort(values).values, torch.arange(1 << bits))


def test_permutation_of_a_large_domain_stays_inside_and_apart():
    values = permute(torch.arange(200_000), 33, stream_key(1, 2))
    assert int(values.min()) >= 0 and int(values.max()) < 1 << 33
    assert torch.unique(values).numel() == 200_000


@given(
    st.integers(1, 400),
    st.floats(0, 0.99),
    st.lists(st.integers(0, 10**9), min_size=1, max_size=20),
    st.integers(0, 10**6),
)
@settings(max_examples=150, deadline=None)
def test_positives_always_play_and_the_size_is_right(classes, rate, labels, step):
    label = torch.tensor([value % classes for value in labels])
    playing = sampled_classes(label, classes, rate, seed=3, step=step)
    assert torch.equal(playing, torch.unique(playing))  # sorted, each once
    assert torch.isin(label, playing).all()
    assert int(playing[0]) >= 0 and int(playing[-1]) < classes
    positives = torch.unique(label).numel()
    assert playing.numel() == sample_size(classes, rate, positives)
    assert playing.numel() >= positives


@given(st.integers(1, 300), st.integers(1, 9), st.floats(0, 0.99))
@settings(max_examples=100, deadline=None)
def test_the_set_does_not_depend_on_the_world(classes, world, rate):
    label = torch.arange(5) * 7 % classes
    whole = sampled_classes(label, classes, rate, seed=0, step=4)
    parts = [
        sampled_classes(label, classes, rate, seed=0, step=4, span=span(classes, world, rank))
        for rank in range(world)
    ]
    assert torch.equal(torch.cat(parts), whole)


def by_hand(labels, classes, rate, seed, step, block):
    """Give the set one block and one class after the other, in whole numbers."""
    positives = {*labels}
    size = 0 if rate <= 0 else max(1, min(classes, int(rate * classes)))
    key, plays = stream_key(seed, step), {*positives}
    for begin in range(0, classes if size else 0, block):
        wide, most = min(block, classes - begin), min(block, classes)
        bits = max(1, (most - 1).bit_length())
        turn = hash_31(torch.tensor(begin // block), key).item() & block - 1
        turn *= classes >= block
        mine = {one for one in positives if begin <= one < begin + wide}
        wanted = size * (begin + wide) // classes - size * begin // classes - len(mine)
        for place in permute(torch.arange(1 << bits), bits, key).tolist():
            place ^= turn
            if wanted > 0 and place < wide and begin + place not in mine:
                plays.add(begin + place)
                wanted -= 1
    return sorted(plays)


@given(
    st.integers(1, 400),
    st.integers(1, 9),
    st.floats(0, 0.99),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=60),
    st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_many_blocks_by_hand_and_on_every_world(classes, world, rate, labels, step):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "BLOCK", 32)
        label = torch.tensor([value % classes for value in labels])
        options = {"seed": 3, "step": step}
        whole = sampled_classes(label, classes, rate, **options)
        assert whole.tolist() == by_hand(label.tolist(), classes, rate, 3, step, 32)
        positives = torch.unique(label).numel()
        assert whole.numel() >= sample_size(classes, rate, positives)
        parts = [
            sampled_classes(label, classes, rate, span=span(classes, world, rank), **options)
            for rank in range(world)
        ]
        assert torch.equal(torch.cat(parts), whole)


def test_blocks_are_drawn_apart(monkeypatch):
    """Classes at one place of two blocks play together as often as any two; each as often."""
    monkeypatch.setattr(sample, "BLOCK", 32)
    seen = draw(320, 0.25, 1500, torch.tensor([0]))[:, 32:].view(1500, 9, 32).double()
    assert (seen.sum(2) == 8).all()  # a quarter of each block
    together = (seen[:, :-1] * seen[:, 1:]).sum()
    expected = 1500 * 8 * 32 / 16
    assert abs(float(together) - expected) < 6 * math.sqrt(expected)
    count = seen.sum(0)
    assert float((count - 375).abs().max()) < 5 * math.sqrt(1500 * 0.25 * 0.75)


def test_a_rank_draws_for_its_own_classes(monkeypatch):
    """Of a million classes, an eighth is looked at, not all."""
    looked = []
    real = sample._first_free

    def noted(blocks, class_bi, *rest):
        looked.append(class_bi.numel())
        return real(blocks, class_bi, *rest)

    monkeypatch.setattr(sample, "_first_free", noted)
    label = torch.arange(64)
    mine = sampled_classes(label, 1_000_000, 0.1, seed=0, step=0, span=span(1_000_000, 8, 3))
    assert abs(mine.numel() - 12_500) < 500 and sum(looked) < 20_000


def test_rate_0_is_the_positives_and_rate_1_is_all():
    label = torch.tensor([5, 2, 5])
    assert sampled_classes(label, 10, 0.0, seed=0, step=0).tolist() == [2, 5]
    assert sampled_classes(label, 10, 1.0, seed=0, step=0) is None


def test_more_positives_than_the_rate_allows():
    assert sampled_classes(torch.arange(8), 100, 0.02, seed=0, step=0).tolist() == list(range(8))


def draw(classes, rate, steps, label, seed=0):
    seen = torch.zeros(steps, classes, dtype=torch.bool)
    for step in range(steps):
        seen[step, sampled_classes(label, classes, rate, seed=seed, step=step)] = True
    return seen


@pytest.mark.parametrize(("classes", "rate"), [(50, 0.2), (64, 0.1), (97, 0.5)])
def test_negatives_are_uniform_and_pairs_independent(classes, rate):
    """Chi-square of inclusion counts and of pair counts, each within 5 standard deviations."""
    steps, label = 1200, torch.tensor([0, 1])
    seen = draw(classes, rate, steps, label)[:, 2:].double()
    wanted, others = int(rate * classes) - 2, classes - 2
    assert (seen.sum(1) == wanted).all()
    chance = wanted / others
    count = seen.sum(0)
    # hypergeometric draws: counts of classes have variance steps p (1 - p), sum fixed
    chi = float(((count - steps * chance) ** 2).sum() / (steps * chance * (1 - chance)))
    freedom = others - 1
    assert abs(chi * freedom / others - freedom) < 5 * math.sqrt(2 * freedom)
    pairs = (seen.T @ seen)[torch.triu(torch.ones(others, others), 1).bool()]
    both = chance * (wanted - 1) / (others - 1)
    z = (pairs - steps * both) / math.sqrt(steps * both * (1 - both))
    assert float(z.abs().max()) < 5.5 and abs(float(z.var()) - 1) < 0.2


def test_steps_and_seeds_are_unrelated():
    """Overlap of two steps' samples, and of two seeds', is what chance gives."""
    classes, rate, label = 10_000, 0.1, torch.tensor([0])
    one = draw(classes, rate, 20, label)
    other = draw(classes, rate, 20, label, seed=1)
    expected = classes * rate * rate
    for a, b in ((one[:-1], one[1:]), (one, other)):
        overlap = (a & b).sum(1).double().mean()
        assert abs(float(overlap) - expected) < 5 * math.sqrt(expected / len(a))


def test_neighbouring_classes_are_not_drawn_together():
    seen = draw(4096, 0.1, 50, torch.tensor([0]))
    together = (seen[:, 1:] & seen[:, :-1]).sum()
    expected = 50 * 4095 * 0.01
    assert abs(float(together) - expected) < 5 * math.sqrt(expected)


def test_frozen_values():
    """A sample is part of a run's identity: it must not change between versions."""
    assert sampled_classes(torch.tensor([7, 3]), 1000, 0.008, seed=1, step=2).tolist() == FROZEN
    assert stream_key(1, 2) == FROZEN_KEY


FROZEN = [3, 7, 128, 277, 287, 337, 712, 838]
FROZEN_KEY = 0xBCD9DBB49673066B


def ring(classes, reach=2):
    """Neighbours on a ring: c + 1, c - 1, c + 2, ..: nearest first."""
    step = [sign * far for far in range(1, reach + 1) for sign in (1, -1)]
    return ((torch.arange(classes)[:, None] + torch.tensor(step)) % classes).int()


@given(
    st.integers(1, 300), st.integers(1, 7), st.floats(0, 0.99), st.floats(0, 1), st.integers(0, 99)
)
@settings(max_examples=100, deadline=None)
def test_hard_negatives_play_and_the_set_does_not_depend_on_the_world(
    classes, world, rate, hard, step
):
    label, near = torch.tensor([0, 3, 11, 3]) % classes, Nearest(ring(classes))
    options = {"seed": 5, "step": step, "neighbours": near, "hard_ratio": hard}
    whole = sampled_classes(label, classes, rate, **options)
    assert torch.equal(whole, torch.unique(whole)) and torch.isin(label, whole).all()
    positives = torch.unique(label)
    size = sample_size(classes, rate, positives.numel())
    assert whole.numel() == size
    every = torch.unique(near.near_CK[positives].long())
    every = every[~torch.isin(every, positives)]
    wanted = min(int(hard * (size - positives.numel())), every.numel())
    assert int(torch.isin(every, whole).sum()) >= wanted
    parts = [
        sampled_classes(label, classes, rate, span=span(classes, world, rank), **options)
        for rank in range(world)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_nearest_come_first_and_chance_decides_among_equals():
    near, positive = Nearest(ring(10_000, 3)), torch.arange(100, 2100, 20)
    first = torch.cat([positive + 1, positive - 1]).sort().values  # places 0 and 1
    assert torch.equal(near.among(positive, 200, 7), first)
    assert torch.equal(near.among(positive, 10_000, 7), near.among(positive, 600, 8))
    assert near.among(positive, 0, 7).numel() == 0
    seen = torch.zeros(10_000)
    for key in range(100):
        some = near.among(positive, 50, key)
        assert some.numel() == 50 and torch.isin(some, positive + 1).all()
        seen[some] += 1
    count = seen[positive + 1]  # each drawn with chance 1/2
    assert abs(float(count.mean()) - 50) < 1e-3 and float((count - 50).abs().max()) < 5 * 5
    assert int((count - 50).abs().max()) > 3  # and not the same half by rule


def test_uniform_negatives_stay_uniform_beside_hard_ones():
    classes, steps, label, near = 97, 600, torch.tensor([10, 50]), Nearest(ring(97))
    seen = torch.zeros(classes)
    for step in range(steps):
        seen[
            sampled_classes(label, classes, 0.3, seed=1, step=step, neighbours=near, hard_ratio=0.3)
        ] += 1
    hard = near.among(torch.tensor([10, 50]), 99, 0)
    assert hard.numel() == 8 and int(0.3 * (29 - 2)) == 8
    assert (seen[hard] == steps).all() and (seen[label] == steps).all()
    others = torch.ones(classes, dtype=torch.bool)
    others[torch.cat([hard, label])] = False
    chance = (29 - 2 - 8) / int(others.sum())
    spread = math.sqrt(steps * chance * (1 - chance))
    assert abs(float(seen[others].mean()) - steps * chance) < 1e-3
    assert float((seen[others] - steps * chance).abs().max()) < 4.5 * spread


def test_known_conflicts_and_the_batch_are_no_hard_negatives():
    near = Nearest(ring(20), known=[(4, 5), (6, 4)])
    assert near.near_CK[4].tolist() == [-1, 3, -1, 2]
    assert near.near_CK[5].tolist() == [6, -1, 7, 3] and near.near_CK[6].tolist() == [7, 5, 8, -1]
    assert near.among(torch.tensor([4]), 9, 0).tolist() == [2, 3]
    assert near.among(torch.tensor([3, 4]), 9, 0).tolist() == [1, 2, 5]  # 5 is near 3 too


def test_a_table_may_be_mapped_short_or_empty(tmp_path):
    np.save(tmp_path / "near.npy", ring(30).numpy())
    mapped = Nearest(np.load(tmp_path / "near.npy", mmap_mode="c"), known=[(1, 2)])
    assert mapped.near_CK[1].tolist() == [-1, 0, 3, 29]
    assert np.load(tmp_path / "near.npy")[1].tolist() == [2, 0, 3, 29]  # the file stays
    empty = Nearest(torch.empty((30, 0), dtype=torch.int32))
    label = torch.tensor([1, 9])
    same = sampled_classes(label, 30, 0.5, seed=0, step=0, neighbours=empty, hard_ratio=1.0)
    assert torch.equal(same, sampled_classes(label, 30, 0.5, seed=0, step=0))
    with pytest.raises(InputError, match=r"GL0304 .*from -1 to 29, found 0 to 30"):
        Nearest(torch.full((30, 2), 30, dtype=torch.int32) * torch.arange(2).int())
