"""Ten-fold verification against the protocol written out as loops, figure for figure."""

# n pairs, D embedding, t thresholds

from __future__ import annotations

import math

import numpy as np
import pytest

from glint.errors import InputError
from glint.evals import rates
from glint.evals.pairs import ten_fold


def draw(pairs: int, dim: int, seed: int, noise: float = 0.9) -> tuple[np.ndarray, ...]:
    """Pairs of float32 embeddings of any length, half the same person, in random order."""
    rng = np.random.default_rng(seed)
    a_nD = rng.normal(size=(pairs, dim)).astype(np.float32)
    same_n = rng.random(pairs) < 0.5
    other_nD = np.where(same_n[:, None], a_nD, rng.normal(size=(pairs, dim)))
    b_nD = (other_nD + noise * rng.normal(size=(pairs, dim))).astype(np.float32)
    return a_nD * rng.uniform(0.5, 9, (pairs, 1)).astype(np.float32), b_nD, same_n


def slow(a_nD: np.ndarray, b_nD: np.ndarray, same_n: np.ndarray, fold_n: np.ndarray) -> dict:
    """The protocol as the field's script walks it: fold by fold, threshold by threshold."""
    distance = []
    for a, b in zip(a_nD.astype(np.float64), b_nD.astype(np.float64)):
        difference = a / math.sqrt((a * a).sum()) - b / math.sqrt((b * b).sum())
        distance.append(float((difference * difference).sum()))
    accuracy, chosen, val, far = [], [], [], []
    grid = [k * 0.01 for k in range(400)]
    fine = [k * 0.001 for k in range(4000)]
    for fold in sorted(set(fold_n.tolist())):
        test = [i for i in range(len(same_n)) if fold_n[i] == fold]
        train = [i for i in range(len(same_n)) if fold_n[i] != fold]
        best, best_right = None, -1
        for threshold in grid:
            right = sum((distance[i] < threshold) == same_n[i] for i in train)
            if right > best_right:
                best, best_right = threshold, right
        chosen.append(best)
        accuracy.append(sum((distance[i] < best) == same_n[i] for i in test) / len(test))
        limit, before = 0.0, (0.0, 0.0)
        others = np.sort([distance[i] for i in train if not same_n[i]])
        for threshold in fine:
            share = int(np.searchsorted(others, threshold)) / max(1, len(others))
            if share >= 1e-3:
                low, low_at = before
                limit = low_at + (1e-3 - low) / (share - low) * (threshold - low_at)
                break
            before = (share, threshold)
        yes = [distance[i] < limit for i in test if same_n[i]]
        no = [distance[i] < limit for i in test if not same_n[i]]
        val += [sum(yes) / len(yes)] if yes else []
        far += [sum(no) / len(no)] if no else []
    return {
        "folds": accuracy,
        "threshold": float(np.mean(chosen)),
        "val": float(np.mean(val)),
        "val_far": float(np.mean(far)),
    }


def runs(pairs: int, folds: int) -> np.ndarray:
    """K-fold without shuffling: consecutive runs, the longer ones first."""
    fold_n = np.empty(pairs, int)
    start = 0
    for fold in range(folds):
        stop = start + pairs // folds + (fold < pairs % folds)
        fold_n[start:stop] = fold
        start = stop
    return fold_n


@pytest.mark.parametrize(("pairs", "seed"), [(240, 0), (137, 1), (60, 2), (11, 3)])
def test_equals_the_loops(pairs: int, seed: int) -> None:
    a_nD, b_nD, same_n = draw(pairs, 24, seed)
    expected = slow(a_nD, b_nD, same_n, runs(pairs, 10))
    found = ten_fold(a_nD, b_nD, same_n)
    assert found.folds == expected["folds"]
    assert found.accuracy == np.mean(expected["folds"])
    assert found.std == np.std(expected["folds"])
    assert found.threshold == pytest.approx(expected["threshold"], abs=1e-12)
    assert found.val == pytest.approx(expected["val"], abs=1e-12)
    assert found.val_far == pytest.approx(expected["val_far"], abs=1e-12)
    assert (found.pairs, found.same) == (pairs, int(same_n.sum()))


@pytest.mark.parametrize("pairs", [2, 3, 7, 9])
def test_fewer_pairs_than_folds(pairs: int) -> None:
    a_nD, b_nD, same_n = draw(pairs, 8, pairs)
    same_n[:2] = True, False
    found = ten_fold(a_nD, b_nD, same_n)
    assert found.folds == slow(a_nD, b_nD, same_n, np.arange(pairs))["folds"]
    assert len(found.folds) == pairs


def test_folds_of_any_size_and_number() -> None:
    a_nD, b_nD, same_n = draw(150, 16, 5)
    fold_n = np.random.default_rng(0).choice([3, 7, 8, 40], 150, p=[0.1, 0.2, 0.3, 0.4])
    found = ten_fold(a_nD, b_nD, same_n, fold_n)
    assert found.folds == slow(a_nD, b_nD, same_n, fold_n)["folds"]
    assert len(found.folds) == 4


def test_one_fold_number_is_cut_into_ten() -> None:
    a_nD, b_nD, same_n = draw(50, 16, 6)
    assert ten_fold(a_nD, b_nD, same_n, np.full(50, 9)) == ten_fold(a_nD, b_nD, same_n)


def test_tar_at_far_equals_trying_every_threshold() -> None:
    a_nD, b_nD, same_n = draw(3000, 12, 7, noise=1.4)
    distance_n = np.round(rates.squared_distance(a_nD, b_nD), 2)  # many ties
    genuine, impostor = distance_n[same_n], distance_n[~same_n]
    for far in (0.5, 1e-1, 1e-2, 1e-3, 1e-4, 0.0):
        best = 0.0
        for limit in [*np.unique(distance_n), np.inf]:
            if np.mean(impostor < limit) <= far:
                best = max(best, float(np.mean(genuine < limit)))
        assert rates.tar_at_far(distance_n, same_n, far) == best
    assert rates.tar_at_far(distance_n, same_n, 1.0) == 1.0


def test_false_accepts_of_exactly_the_target_are_allowed() -> None:
    distance_n = np.concatenate([np.full(10, 0.5), np.linspace(0.1, 1.0, 10)])
    same_n = np.arange(20) < 10
    assert rates.tar_at_far(distance_n, same_n, 0.3) == 0.0  # 4 of 10 lie below 0.5
    assert rates.tar_at_far(distance_n, same_n, 0.5) == 1.0
    assert rates.tar_at_far(distance_n, np.ones(20, bool), 0.1) is None


def test_perfect_and_useless_embeddings() -> None:
    rng = np.random.default_rng(1)
    person_nD = rng.normal(size=(400, 64))
    same_n = np.arange(400) % 2 == 0
    other_nD = np.where(same_n[:, None], person_nD, rng.normal(size=(400, 64)))
    found = ten_fold(person_nD, other_nD, same_n)
    assert (found.accuracy, found.std, found.val) == (1.0, 0.0, 1.0)
    assert set(found.tar_at_far.values()) == {1.0}
    assert found.cosine_same == pytest.approx(1)
    chance = ten_fold(rng.normal(size=(400, 64)), rng.normal(size=(400, 64)), same_n)
    assert 0.35 < chance.accuracy < 0.65
    blank = ten_fold(np.zeros((400, 4)), np.zeros((400, 4)), same_n)
    assert blank.accuracy == 0.5


def test_rotation_and_length_do_not_matter() -> None:
    a_nD, b_nD, same_n = draw(300, 32, 9)
    turn_DD, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(32, 32)))
    plain = ten_fold(a_nD, b_nD, same_n)
    turned = ten_fold(
        a_nD.astype(np.float64) @ turn_DD * 7, b_nD.astype(np.float64) @ turn_DD, same_n
    )
    assert turned.folds == plain.folds
    assert turned.tar_at_far == plain.tar_at_far


def test_only_same_or_only_different_pairs() -> None:
    a_nD, b_nD, _ = draw(40, 8, 3)
    found = ten_fold(a_nD, b_nD, np.ones(40, bool))
    assert found.accuracy > 0.8
    assert found.tar_at_far["1e-3"] is None
    assert found.cosine_different is None
    found = ten_fold(a_nD, b_nD, np.zeros(40, bool))
    assert (found.accuracy, found.val, found.cosine_same) == (1.0, None, None)


def test_embeddings_that_are_not_finite_are_counted_and_refused() -> None:
    a_nD, b_nD, same_n = draw(20, 8, 4)
    a_nD[3, 2], b_nD[3], b_nD[9, 0] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"), pytest.raises(InputError, match=r"GL0402.*2 of 20 pairs"):
        ten_fold(a_nD, b_nD, same_n)


def test_sizes_must_fit() -> None:
    a_nD, b_nD, same_n = draw(20, 8, 4)
    with pytest.raises(InputError, match=r"expected 20 embeddings on each side, found \(19, 8\)"):
        ten_fold(a_nD[1:], b_nD, same_n)
    with pytest.raises(InputError, match="at least two pairs, found 1"):
        ten_fold(a_nD[:1], b_nD[:1], same_n[:1])
    with pytest.raises(InputError, match="expected 20 fold numbers, found 3"):
        ten_fold(a_nD, b_nD, same_n, np.arange(3))
