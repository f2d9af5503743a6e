"""Accept rates of scored pairs: TAR at FAR two ways, the curve, the histograms.

A pair is called the same person where its score is above the threshold; scores are cosines.
"""

# n scores, g genuine pairs, i impostor pairs, p points of the curve

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

FARS = ("1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "1e-1")
BINS = 200  # of the histograms that a result carries, over cosines -1 to 1


def allowed(far: float | str, impostors: int) -> int:
    """Return how many of the impostor pairs may be accepted at a false accept rate."""
    return int(np.floor(float(far) * impostors * (1 + 1e-12)))


def accept_rates(
    genuine_g: np.ndarray, impostor_i: np.ndarray, fars: Sequence[str] = FARS
) -> dict[str, Any]:
    """Return both kinds of TAR at each FAR, the thresholds, the curve and the histograms.

    `tar_at_far` is conservative: the loosest threshold whose FAR does not exceed the target, ties
    refused. `tar_at_nearest_far` is the field's: the TAR of the point of the ROC whose FAR is
    nearest to the target, which may lie above it, among the points that remain when those on
    straight runs are dropped. Rates are None where there are no pairs of a kind.
    """
    genuine_g = np.sort(np.asarray(genuine_g, np.float64))
    impostor_i = np.sort(np.asarray(impostor_i, np.float64))
    result: dict[str, Any] = {
        "genuine": len(genuine_g),
        "impostors": len(impostor_i),
        "tar_at_far": dict.fromkeys(fars),
        "tar_at_nearest_far": dict.fromkeys(fars),
        "threshold_at_far": dict.fromkeys(fars),
    }
    if len(genuine_g) and len(impostor_i):
        far_p, tar_p = _corners(genuine_g, impostor_i)
        for far in fars:
            spare = allowed(far, len(impostor_i))
            threshold = -np.inf if spare >= len(impostor_i) else impostor_i[-spare - 1]
            result["tar_at_far"][far] = above(genuine_g, threshold) / len(genuine_g)
            result["threshold_at_far"][far] = max(float(threshold), -1.0)
            gap_p = np.abs(far_p - float(far))
            near = len(gap_p) - 1 - int(np.argmin(gap_p[::-1]))
            result["tar_at_nearest_far"][far] = float(tar_p[near])
    result["histogram"] = {
        "genuine": histogram(genuine_g).tolist(), "impostors": histogram(impostor_i).tolist(),
    }  # fmt: skip
    result["roc"] = _curve(genuine_g, impostor_i)
    return result


def above(sorted_n: np.ndarray, threshold: float) -> int:
    """Count the values of an ascending list above a threshold."""
    return len(sorted_n) - int(np.searchsorted(sorted_n, threshold, side="right"))


def histogram(score_n: np.ndarray) -> np.ndarray:
    """Count cosines in BINS bins over [-1, 1]; what rounding puts outside counts at the ends."""
    count: np.ndarray = np.histogram(np.clip(score_n, -1, 1), BINS, (-1, 1))[0]
    return count


def _corners(genuine_g: np.ndarray, impostor_i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return points (FAR, TAR) of the ROC, thresholds falling, without those on straight runs."""
    score_p = np.unique(np.concatenate([genuine_g, impostor_i]))[::-1]
    false_p = len(impostor_i) - np.searchsorted(impostor_i, score_p, side="left")
    true_p = len(genuine_g) - np.searchsorted(genuine_g, score_p, side="left")
    if len(score_p) > 2:
        bend = (np.diff(false_p, 2) != 0) | (np.diff(true_p, 2) != 0)
        kept = np.concatenate([[True], bend, [True]])
        false_p, true_p = false_p[kept], true_p[kept]
    far_p = np.concatenate([[0], false_p]) / len(impostor_i)
    return far_p, np.concatenate([[0], true_p]) / len(genuine_g)


def _curve(genuine_g: np.ndarray, impostor_i: np.ndarray) -> list[tuple[float, float]]:
    """Return up to 25 points (FAR, TAR) a decade, from one accepted impostor up."""
    if not len(genuine_g) or not len(impostor_i):
        return []
    total = len(impostor_i)
    points = max(2, int(25 * np.log10(total)) + 1)
    spare_p = np.unique(np.geomspace(1, total, points).astype(np.int64))
    found = []
    for spare in spare_p.tolist():
        threshold = -np.inf if spare >= total else impostor_i[-spare - 1]
        found.append((spare / total, above(genuine_g, threshold) / len(genuine_g)))
    return found
