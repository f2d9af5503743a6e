"""Greedy suppression inside identities: coverage, separation, exact counts, guards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glint.errors import UsageError
from glint.search import nms
from glint.search.nms import KEPT, NO_EMBEDDING, NO_IDENTITY, OUTLIER, RESTORED, SIMILAR

ROUNDING = 1e-5


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def crowd(seed: int, sizes: list[int], spread: float = 0.6, dim: int = 16):
    """Faces of identities of these sizes, shuffled; the spread decides how alike they are."""
    rng = np.random.default_rng(seed)
    target = np.repeat(np.arange(len(sizes)), sizes)
    centre = rng.normal(size=(len(sizes), dim))
    face = unit(centre[target] + spread * rng.normal(size=(len(target), dim)))
    order = rng.permutation(len(target))
    return face[order].astype(np.float32), target[order]


def chosen(face, target, threshold, **options) -> nms.Selection:
    classes = int(target.max(initial=-1)) + 1
    ranking = nms.rank(face, target, classes, degrees=options.pop("degrees", 180.0))
    return nms.select(face, ranking, threshold, **options)


def plain(face: np.ndarray, threshold: float) -> set[int]:
    """The same in float64, as written in the paper's sense, one pair at a time."""
    cosine = unit(face.astype(np.float64)) @ unit(face.astype(np.float64)).T
    score = -(cosine.sum(axis=1) - 1) / max(len(face) - 1, 1)
    kept: list[int] = []
    for i in np.argsort(-score, kind="stable").tolist():
        if all(cosine[i, j] <= threshold for j in kept):
            kept.append(i)
    return set(kept)


def test_copies_leave_one() -> None:
    rng = np.random.default_rng(0)
    distinct = unit(rng.normal(size=(6, 64)))
    face = np.concatenate([np.repeat(distinct[:1], 10, axis=0), distinct[1:]])
    got = chosen(face, np.zeros(15, np.int64), 0.9)
    assert got.kept_N.sum() == 6
    assert got.kept_N[:10].sum() == 1 and got.kept_N[10:].all()
    assert (got.killer_N[:10][~got.kept_N[:10]] == np.flatnonzero(got.kept_N)[0]).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    spread=st.floats(0.0, 2.0),
    threshold=st.floats(-1.0, 1.0),
    least=st.integers(1, 3),
)
def test_every_dropped_face_is_covered_and_kept_ones_are_apart(
    seed, sizes, spread, threshold, least
) -> None:
    face, target = crowd(seed, sizes, spread)
    got = chosen(face, target, threshold, least=least)
    cosine = face.astype(np.float64) @ face.T.astype(np.float64)
    for c, size in enumerate(sizes):
        row = np.flatnonzero(target == c)
        apart = row[got.reason_N[row] == KEPT]
        pair = cosine[np.ix_(apart, apart)][np.triu_indices(len(apart), 1)]
        assert (pair <= threshold + ROUNDING).all()
        assert got.kept_N[row].sum() >= min(least, size)
        if (got.reason_N[row] == RESTORED).any():
            assert got.kept_N[row].sum() == min(least, size)
    for i in np.flatnonzero(np.isin(got.reason_N, (SIMILAR, RESTORED))):
        killer = got.killer_N[i]
        assert got.reason_N[killer] == KEPT and target[killer] == target[i]
        assert cosine[i, killer] > threshold - ROUNDING
        assert got.similarity_N[i] == pytest.approx(cosine[i, killer], abs=ROUNDING)
    assert (got.killer_N[got.reason_N == KEPT] == -1).all()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.integers(1, 15), min_size=1, max_size=8),
    share=st.floats(0, 1),
    least=st.integers(1, 3),
)
def test_a_count_is_kept_exactly(seed, sizes, share, least) -> None:
    face, target = crowd(seed, sizes)
    ranking = nms.rank(face, target, len(sizes), degrees=180)
    fewest = int(np.minimum(sizes, least).sum())
    count = fewest + round(share * (sum(sizes) - fewest))
    got = nms.select_count(face, ranking, count, least=least)
    assert got.kept_N.sum() == count
    assert (np.bincount(target[got.kept_N], minlength=len(sizes)) >= np.minimum(sizes, least)).all()
    dropped = got.reason_N == SIMILAR
    assert (got.reason_N[got.killer_N[dropped]] == KEPT).all()
    assert (got.similarity_N[dropped] > got.threshold).all()


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.7])
def test_it_is_the_greedy_of_a_plain_loop(threshold, monkeypatch) -> None:
    face, target = crowd(4, [1, 30, 7, 0, 22, 7])
    got = chosen(face, target, threshold, least=1)
    for c in range(6):
        row = np.flatnonzero(target == c)
        assert set(row[got.kept_N[row]]) == {int(row[i]) for i in plain(face[row], threshold)}
    monkeypatch.setattr(nms, "ROOM", 40)  # an identity at a time, a few rows at a time
    again = chosen(face, target, threshold, least=1)
    assert (again.reason_N == got.reason_N).all() and (again.killer_N == got.killer_N).all()


def test_the_order_of_the_input_changes_nothing() -> None:
    face, target = crowd(7, [25, 25, 9])
    order = np.random.default_rng(1).permutation(len(target))
    got, other = chosen(face, target, 0.6), chosen(face[order], target[order], 0.6)
    assert (got.kept_N[order] == other.kept_N).all()
    assert 6 < got.kept_N.sum() < 50


def test_the_ends_of_the_threshold() -> None:
    face, target = crowd(2, [9, 4, 1])
    face = np.concatenate([face, face[:3]])  # equal ones, whose cosine rounds to about 1
    target = np.concatenate([target, target[:3]])
    assert chosen(face, target, 1.0).kept_N.all()
    left = chosen(face, target, -1.0, least=2)
    assert (np.bincount(target[left.kept_N]) == [2, 2, 1]).all()


def test_outliers_go_before_they_rank_first() -> None:
    rng = np.random.default_rng(5)
    face = unit(np.eye(32)[0] + 0.05 * rng.normal(size=(12, 32)))
    face[3] = np.eye(32)[9]  # a stranger: 90 degrees from the rest
    target = np.zeros(12, np.int64)
    kept = chosen(face, target, 0.99)
    assert kept.reason_N[3] == KEPT and np.argmax(kept.ranking.score_N) == 3
    got = chosen(face, target, 0.99, degrees=75.0)
    assert got.reason_N[3] == OUTLIER and np.isnan(got.ranking.score_N[3])
    assert (np.delete(got.reason_N, 3) != OUTLIER).all()


def test_an_identity_of_strangers_is_left_as_it_is() -> None:
    face, target = np.eye(40)[:20], np.zeros(20, np.int64)  # each 77 degrees from the mean
    got = chosen(face, target, 0.5, degrees=75.0)
    assert got.kept_N.all() and got.ranking.uncleaned == 1


def test_faces_without_embedding_or_identity_take_no_part() -> None:
    face, target = crowd(3, [5, 5])
    face[[1, 4]] = np.nan
    target[[2, 4]] = -1
    got = chosen(face.astype(np.float16), target, 1.0)
    assert got.reason_N[1] == NO_EMBEDDING
    assert (got.reason_N[[2, 4]] == NO_IDENTITY).all()
    assert got.kept_N.sum() == 7


def test_a_ratio_out_of_reach_is_refused() -> None:
    face, target = crowd(6, [10, 10])
    ranking = nms.rank(face, target, 2, degrees=180)
    with pytest.raises(UsageError, match=r"--keep-ratio.*4 to 20 of 20 images.*found 3"):
        nms.select_count(face, ranking, 3)


@pytest.mark.parametrize("share", [0.3, 0.45])
@pytest.mark.parametrize("one", [True, False], ids=["one other person", "strangers"])
def test_the_dominant_sub_centre_finds_the_wrong_faces(share: float, one: bool) -> None:
    rng = np.random.default_rng(1)
    people, each, dim = 40, 20, 256
    target = np.repeat(np.arange(people), each)
    wrong = np.tile(np.arange(each), people) < share * each
    away = rng.integers(1, people, len(target))
    away = away.reshape(people, each)[:, 0].repeat(each) if one else away
    who = np.where(wrong, (target + away) % people, target)
    centre = unit(rng.normal(size=(people, dim)))[who]
    face = unit(centre + unit(rng.normal(size=(len(who), dim)))).astype(np.float32)  # 45 degrees
    order = rng.permutation(len(who))
    mean, three = (
        nms.rank(face[order], target[order], people, centres=k).reason_N == OUTLIER for k in (1, 3)
    )
    assert (three == wrong[order]).mean() > 0.99
    assert not (mean & ~wrong[order]).any()
    if one:  # the mean lies between two people: both are near it
        assert mean.sum() < 0.5 * wrong.sum()


def test_sub_centres_leave_clean_identities_and_small_ones_alone() -> None:
    face, target = crowd(3, [1, 2, 3, 30, 200], spread=0.4, dim=64)
    face[np.flatnonzero(target == 3)[0]] = np.nan
    for centres in (1, 3, 16):
        ranking = nms.rank(face, target, 5, centres=centres)
        assert OUTLIER not in ranking.reason_N, centres
        assert (ranking.reason_N == NO_EMBEDDING).sum() == 1
