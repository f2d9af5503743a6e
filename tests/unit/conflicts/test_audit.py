"""The audit of merges: a fair draw, and a bound that is right."""

from __future__ import annotations

import math

import numpy as np
import pytest

from glint.conflicts import audit

REPORT = "sha256:" + "0123456789abcdef" * 4


def seen(wrong: int, drawn: int, share: float) -> float:
    """Give the chance of `wrong` or fewer of `drawn`, term by term."""
    terms = (math.comb(drawn, x) * share**x * (1 - share) ** (drawn - x) for x in range(wrong + 1))
    return math.fsum(terms)


@pytest.mark.parametrize(
    ("wrong", "drawn"), [(0, 1), (0, 100), (1, 100), (3, 40), (39, 40), (7, 300)]
)
def test_a_share_above_the_bound_is_seen_once_in_twenty(wrong: int, drawn: int) -> None:
    bound = audit.wrong_at_most(wrong, drawn, 10_000)
    assert seen(wrong, drawn, bound) == pytest.approx(0.05, rel=1e-9)
    assert seen(wrong, drawn, min(bound * 1.01, 1)) < 0.05 < seen(wrong, drawn, bound * 0.99)


def test_bounds_known_by_heart_and_at_the_ends() -> None:
    assert audit.wrong_at_most(0, 100, 5_000) == pytest.approx(1 - 0.05**0.01)
    assert audit.wrong_at_most(5, 5, 100) == 1.0
    assert audit.wrong_at_most(3, 20, 20) == 3 / 20  # all were seen: no chance is left
    assert audit.wrong_at_most(0, 0, 0) == 0.0


def test_the_bound_holds_for_draws_from_a_small_total() -> None:
    """Of 60 merges of which 6 are wrong, at most 5 % of the samples of 20 say less than 10 %."""
    rng = np.random.default_rng(0)
    wrong = np.arange(60) < 6
    said = [
        audit.wrong_at_most(int(wrong[rng.permutation(60)[:20]].sum()), 20, 60)
        for _ in range(2_000)
    ]
    assert np.mean(np.array(said) < 0.1) <= 0.05


def test_the_draw_is_fair_seeded_and_grows() -> None:
    a = np.repeat(np.arange(40), 5)
    b = a + np.tile(np.arange(1, 6), 40)
    drawn = audit.draw(a, b, 30, REPORT)
    assert len(set(drawn.tolist())) == 30
    assert audit.draw(a, b, 12, REPORT).tolist() == drawn[:12].tolist()
    assert sorted(audit.draw(a, b, 900, REPORT).tolist()) == list(range(200))
    turned = np.random.default_rng(1).permutation(200)
    again = turned[audit.draw(a[turned], b[turned], 30, REPORT)]
    assert again.tolist() == drawn.tolist()  # the order of the table does not matter
    others = [REPORT[:-4] + f"{i:04x}" for i in range(2_000)]
    count = np.zeros(200)
    for report in others:
        count[audit.draw(a, b, 20, report)] += 1
    assert abs(count - 200).max() < 5 * np.sqrt(200 * 0.9)  # each as often as any other
    assert audit.draw(a[:0], b[:0], 5, REPORT).tolist() == []


def test_one_reviewer_is_enough_to_call_a_merge_wrong_and_doubt_counts_against() -> None:
    pairs = [(0, 1), (2, 3), (4, 5), (6, 7)]
    said = {
        (0, 1): {"ann": "merge", "bob": "keep"},
        (2, 3): {"ann": "mask"},
        (4, 5): {"bob": "merge"},
        (8, 9): {"ann": "keep"},
    }
    half = audit.judge(pairs, said, 90)
    assert (half.drawn, half.decided, half.wrong, half.unsure) == (4, 3, 1, 1)
    assert (half.wrong_at_most, half.kind) == (None, "estimate")
    assert "3 of 4 drawn pairs decided" in audit.sentence(half)
    done = audit.judge(pairs, said | {(6, 7): {"ann": "merge"}}, 90)
    assert (done.wrong_at_most, done.kind) == (audit.wrong_at_most(2, 4, 90), "audit")
    assert audit.sentence(done) == (
        "of 4 drawn, 1 wrong, 1 unsure (counted as wrong): at most 90.2 % of the merges are wrong, "
        "at 95 % confidence"
    )
    hundred = [(2 * k, 2 * k + 1) for k in range(100)]
    clean = audit.judge(hundred, {pair: {"ann": "merge"} for pair in hundred}, 5_000)
    assert audit.sentence(clean) == (
        "of 100 drawn, 0 wrong: at most 3.0 % of the merges are wrong, at 95 % confidence"
    )
    whole = audit.judge(pairs[2:3], said, 1)
    assert audit.sentence(whole) == (
        "of 1 drawn, 0 wrong: 0.0 % of the merges are wrong (all were reviewed)"
    )
    assert "nothing to audit" in audit.sentence(audit.judge([], {}, 0))
