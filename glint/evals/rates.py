"""Error rates of scored pairs: exact counts at every threshold, from one sort or histogram.

A pair is called the same person where its distance is below the threshold. Distances are squared
Euclidean ones between unit vectors, 0 to 4, so that cosine = 1 - distance / 2.
"""

# n pairs, D embedding, t thresholds, f folds

from __future__ import annotations

import numpy as np

from glint.errors import InputError
from glint.evals.roc import allowed

FINE = np.arange(0, 4, 0.001)  # thresholds of VAL@FAR
COARSE = np.arange(0, 4, 0.01)  # thresholds of accuracy


def unit(x_nD: np.ndarray) -> np.ndarray:
    """Scale rows to length 1 in float64; a row of zeros stays one."""
    x_nD = np.asarray(x_nD, dtype=np.float64)
    length_n = np.sqrt(np.square(x_nD).sum(1))
    length_n[length_n == 0] = 1
    result: np.ndarray = x_nD / length_n[:, None]
    return result


def squared_distance(a_nD: np.ndarray, b_nD: np.ndarray, block: int = 512) -> np.ndarray:
    """Measure each pair in float64, `block` pairs at a time; rows need not have length 1.

    A row of zeros is a face that was not found: no pair of it is alike (4, the largest).
    """
    distance_n = np.empty(len(a_nD))
    for at in range(0, len(a_nD), block):
        part = slice(at, at + block)
        a_mD, b_mD = unit(a_nD[part]), unit(b_nD[part])
        distance_m = np.square(a_mD - b_mD).sum(1)
        distance_m[~(a_mD.any(1) & b_mD.any(1))] = 4
        distance_n[part] = distance_m
    return distance_n


def accepted(
    distance_n: np.ndarray, fold_n: np.ndarray, folds: int, threshold_t: np.ndarray
) -> np.ndarray:
    """Count the pairs of each fold below each threshold: int64 (f, t)."""
    steps = len(threshold_t)
    first_n = np.searchsorted(threshold_t, distance_n, side="right")  # first t that accepts
    cells = np.bincount(fold_n * (steps + 1) + first_n, minlength=folds * (steps + 1))
    counts_ft: np.ndarray = cells.reshape(folds, steps + 1)[:, :steps].cumsum(1)
    return counts_ft


def threshold_at(accepted_t: np.ndarray, negatives: int, far: float, grid_t: np.ndarray) -> float:
    """Interpolate the threshold at which the share of accepted negatives reaches `far`.

    Linear between the last grid step below `far` and the first at or above it; 0 where no step
    reaches it.
    """
    if negatives == 0:
        return 0.0
    far_t = accepted_t / negatives
    after = int(np.searchsorted(far_t, far, side="left"))
    if after == len(far_t):
        return 0.0
    if after == 0:
        return float(grid_t[0])
    low, high = far_t[after - 1], far_t[after]
    share = (far - low) / (high - low)
    return float(grid_t[after - 1] + share * (grid_t[after] - grid_t[after - 1]))


def answers(same_n: np.ndarray) -> np.ndarray:
    """Return whether pairs are of one person. Raises InputError GL0802 for others than 0 and 1."""
    found_n = np.asarray(same_n)
    if not (sound_n := np.isin(found_n, (0, 1))).all():
        what = f"expected True or False for each pair, found {found_n[~sound_n][0]}"
        raise InputError("GL0802", what, hint="-1 and 1 are both true to Python: same == 1")
    return found_n.astype(bool)


def tar_at_far(distance_n: np.ndarray, same_n: np.ndarray, far: float | str) -> float | None:
    """Return the share of same pairs accepted where at most `far` of the different pairs are.

    distance_n: squared distances of unit vectors, 2 - 2 cosine; same_n: whether each pair is one
    person. Conservative: the loosest threshold whose measured false accept rate does not exceed
    `far`, ties refused. None where there are no same or no different pairs. Raises InputError
    (GL0802) for a distance that is none, such as a cosine below 0, and for shapes that differ.
    """
    distance_n, same_n = np.asarray(distance_n), answers(same_n)
    if distance_n.shape != same_n.shape:
        what = f"found {distance_n.shape} distances and {same_n.shape} answers"
        raise InputError("GL0802", what)
    if not (distance_n >= 0).all():
        raise InputError(
            "GL0802",
            f"expected squared distances from 0 to 4, found {distance_n.min()}",
            hint="of cosines: 2 - 2 * cosine",
        )
    genuine, impostor = distance_n[same_n], distance_n[~same_n]
    if not len(genuine) or not len(impostor):
        return None
    spare = allowed(far, len(impostor))
    if spare >= len(impostor):
        return 1.0
    return float(np.mean(genuine < np.partition(impostor, spare)[spare]))
