"""Accept rates of scored pairs against the definitions written out."""

from __future__ import annotations

import numpy as np
import pytest

from glint.evals.roc import BINS, FARS, accept_rates


def curve(genuine: np.ndarray, impostor: np.ndarray) -> tuple[list[float], list[float]]:
    """The ROC as the field's library walks it: every threshold, then straight runs thinned."""
    points = [
        (sum(s >= t for s in impostor.tolist()), sum(s >= t for s in genuine.tolist()))
        for t in sorted({*genuine.tolist(), *impostor.tolist()}, reverse=True)
    ]
    kept = []
    for i, (false, true) in enumerate(points):
        if 0 < i < len(points) - 1:
            (f0, t0), (f2, t2) = points[i - 1], points[i + 1]
            if false - f0 == f2 - false and true - t0 == t2 - true:
                continue
        kept.append((false, true))
    kept = [(0, 0), *kept]
    return [f / len(impostor) for f, _ in kept], [t / len(genuine) for _, t in kept]


@pytest.mark.parametrize("seed", range(6))
def test_nearest_and_conservative_are_as_defined(seed: int) -> None:
    rng = np.random.default_rng(seed)
    genuine = rng.normal(0.5, 0.2, 150).round(2 if seed % 2 else 9)
    impostor = rng.normal(0.1, 0.2, 500).round(2 if seed % 2 else 9)
    found = accept_rates(genuine, impostor)
    far_p, tar_p = curve(genuine, impostor)
    for far in FARS:
        # The field turns the curve round and takes the first of the nearest.
        gaps = [abs(value - float(far)) for value in far_p[::-1]]
        assert found["tar_at_nearest_far"][far] == tar_p[::-1][gaps.index(min(gaps))]
        best = max(
            np.mean(genuine > t)
            for t in [*impostor, *genuine, 9.0]
            if np.mean(impostor > t) <= float(far)
        )
        assert found["tar_at_far"][far] == best
        assert np.mean(impostor > found["threshold_at_far"][far]) <= float(far)


def test_perfect_scores_and_none() -> None:
    told = accept_rates(np.full(5, 0.9), np.full(7, 0.105))
    assert set(told["tar_at_far"].values()) == {1.0}
    assert sum(told["histogram"]["genuine"]) == 5
    assert told["histogram"]["impostors"].index(7) == int(1.105 / 2 * BINS)
    none = accept_rates(np.empty(0), np.full(7, 0.1))
    assert set(none["tar_at_far"].values()) == {None}
    assert none["roc"] == []


def test_a_face_without_a_direction_is_like_nobody() -> None:
    import numpy as np

    from glint.evals.rates import squared_distance

    zero, one = np.zeros(3), np.array([1.0, 0, 0])
    a, b = np.stack([zero, zero, one, one]), np.stack([zero, one, zero, one])
    assert squared_distance(a, b).tolist() == [4, 4, 4, 0]
