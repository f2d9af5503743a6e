"""One judge: by the model, by a user's threshold, or by neither."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from glint.conflicts.chance import MAY_BE, Compared, Likeness, Tail
from glint.conflicts.judge import Judge

RNG = np.random.default_rng(0)
PAIRS = Compared(RNG.uniform(0.2, 1.0, 500), RNG.integers(1, 40, 500), RNG.integers(1, 40, 500))


def likeness(least: float = 0.0) -> Likeness:
    edge = np.arange(0.4, 1.0, 0.02)
    probability = np.clip((edge - 0.44) / 0.2, 0.0, 1.0)
    return Likeness(
        0.6, 0.5, Tail(5.0, 30.0, 0.4), 0.55, least, "halves", edge, probability, 0.1, 1
    )


@pytest.mark.parametrize("least", [0.0, 0.9])
def test_what_merges_is_what_reaches_the_cosine_shown_for_its_counts(least: float) -> None:
    judge = Judge(likeness(least), 0.3)
    verdict, probability = judge.judge(PAIRS)
    over = PAIRS.cosine_K - judge.merge_cosine(PAIRS.n_K, PAIRS.m_K)
    clear = np.abs(over) > 1e-12
    np.testing.assert_array_equal((verdict == "merge")[clear], (over >= 0)[clear])
    assert {"merge", "mask", "keep"} == set(verdict.tolist())
    assert (probability[verdict == "mask"] >= MAY_BE).all()
    strength = judge.likeness.strength(PAIRS)
    assert strength[verdict == "merge"].min() >= judge.likeness.cut
    assert strength[verdict == "mask"].min() >= judge.likeness.mask_cut
    if not least:  # one line parts them, whatever the counts
        assert strength[verdict != "merge"].max() < judge.likeness.cut
    value, need = judge.together(PAIRS)
    np.testing.assert_array_equal(value, probability)
    assert set(need.tolist()) == {MAY_BE}


def test_a_threshold_says_what_merges_and_the_model_what_masks() -> None:
    verdict, probability = Judge(likeness(), 0.3, 0.7).judge(PAIRS)
    np.testing.assert_array_equal(verdict == "merge", PAIRS.cosine_K >= 0.7)
    rest = verdict != "merge"
    np.testing.assert_array_equal((verdict == "mask")[rest], (probability >= MAY_BE)[rest])
    value, need = Judge(likeness(), 0.3, 0.7).together(PAIRS)
    assert value is PAIRS.cosine_K and set(need.tolist()) == {0.3}
    assert set(Judge(likeness(), 0.3, 0.7).merge_cosine(PAIRS.n_K, PAIRS.m_K).tolist()) == {0.7}


def test_without_a_model_nothing_merges_but_by_a_threshold() -> None:
    none = Judge(None, 0.3)
    verdict, probability = none.judge(PAIRS)
    assert set(verdict.tolist()) == {"keep"} and np.isnan(probability).all()
    assert np.isinf(none.merge_cosine(PAIRS.n_K, PAIRS.m_K)).all() and none.note == ""
    verdict, _ = Judge(None, 0.3, 0.7).judge(PAIRS)
    assert set(verdict.tolist()) == {"merge", "keep"}


def test_what_is_rare_among_two_people_does_not_depend_on_who_else_is_one_person() -> None:
    some, none = likeness(), likeness()
    none = dataclasses.replace(none, probability_B=np.zeros_like(none.probability_B), cut=np.inf)
    n, m = np.ones(3, np.int64), np.array([1, 5, 40])
    rare = Judge(none, 0.3).rare_cosine(n, m)
    np.testing.assert_array_equal(rare, Judge(some, 0.3).rare_cosine(n, m))
    strength = none.strength(Compared(rare, n, m))
    np.testing.assert_allclose(strength, none.tail.stop)
