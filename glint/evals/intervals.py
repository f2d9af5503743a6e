"""Intervals of verification figures, by a bootstrap over people.

Pairs that share a person are not independent, so people are drawn, not pairs: each draw gives every
person a weight of mean 1 (gamma, the Bayesian bootstrap: Rubin 1981), a pair of one person is
weighted with that person's and a pair of two with the mean of both (exchangeable weights for
dyadic data: Davezies, D'Haultfoeuille, Guyonvarch 2021). A pair of two people would count its own
noise twice if those weights had variance 2 whatever the data; `_shape` lowers it to what the
dyadic variance (Fafchamps and Gubert 2007) of this set asks for.
"""

# n pairs, P people, f folds, t thresholds, d draws

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glint.evals import rates
from glint.evals.roc import allowed

DRAWS = 1000
LEVEL = 0.95
FEW = 10  # accepted impostors below which a TAR has no interval: its threshold is a guess
Z = 1.959963984540054  # of LEVEL
Interval = tuple[float, float]


@dataclass(frozen=True)
class Intervals:
    """95 % intervals, shares from 0 to 1. tar: by FAR, None where too few impostors decide."""

    accuracy: Interval
    tar: dict[str, Interval | None]
    people: int
    draws: int


def bootstrap(
    distance_n: np.ndarray, same_n: np.ndarray, fold_n: np.ndarray,
    a_n: np.ndarray, b_n: np.ndarray, *,
    fars: Sequence[str] = (), draws: int = DRAWS, seed: int = 0,
) -> Intervals:  # fmt: skip
    """Draw people and verify in folds again, thresholds chosen anew in each draw.

    distance_n: squared distances; fold_n: 0, 1, ..; a_n, b_n: the person of each side, any
    integers. The spread of the draws gives a number of independent pairs, and that Wilson's score
    interval, which stays sound near 100 % where a percentile of draws does not.
    """
    person = np.unique(np.concatenate([a_n, b_n]), return_inverse=True)
    count, n = len(person[0]), len(same_n)
    a_n, b_n = person[1].reshape(2, n)
    folds = int(fold_n.max()) + 1
    step_n = np.searchsorted(rates.COARSE, distance_n, side="right")
    steps = len(rates.COARSE)
    cell_n = fold_n * (steps + 1) + step_n
    sign_n = np.where(same_n, 1.0, -1.0)
    true_n, order_g = np.flatnonzero(same_n), np.argsort(distance_n[same_n], kind="stable")
    false_n, order_i = np.flatnonzero(~same_n), np.argsort(distance_n[~same_n], kind="stable")
    near_g, near_i = distance_n[true_n[order_g]], distance_n[false_n[order_i]]

    def accuracy(w_n: np.ndarray) -> float:
        gain_ft = np.bincount(cell_n, w_n * sign_n, folds * (steps + 1)).reshape(folds, -1)
        size_f = np.bincount(fold_n, w_n, folds)
        diff_f = np.bincount(fold_n[false_n], w_n[false_n], folds)
        right_ft = gain_ft[:, :steps].cumsum(1) + diff_f[:, None]
        best_f = np.round(right_ft.sum(0) - right_ft, 9).argmax(1)
        right_f, full_f = right_ft[np.arange(folds), best_f], size_f > 0
        return float(np.mean(right_f[full_f] / size_f[full_f]))

    def tars(w_n: np.ndarray) -> list[float]:
        sum_g, sum_i = w_n[true_n[order_g]].cumsum(), w_n[false_n[order_i]].cumsum()
        found = []
        for far in fars:
            at = int(np.searchsorted(sum_i, float(far) * sum_i[-1] * (1 + 1e-12), side="right"))
            limit = near_i[at] if at < len(near_i) else np.inf
            passed = int(np.searchsorted(near_g, limit, side="left"))
            found.append(float(sum_g[passed - 1] / sum_g[-1]) if passed else 0.0)
        return found

    both = len(true_n) > 0 and len(false_n) > 0
    one_n = np.ones(n)
    point, point_tar = accuracy(one_n), tars(one_n) if both else []
    rng = np.random.default_rng(seed)
    error_n = (distance_n >= best_threshold(distance_n, same_n)) == same_n
    shape = _shape(error_n[false_n].astype(float), a_n[false_n], b_n[false_n], count)
    drawn, drawn_tar = np.empty(draws), np.empty((draws, len(point_tar)))
    for d in range(draws):
        g_P = rng.standard_gamma(shape, count) / shape
        w_n = np.where(same_n, 1 + np.sqrt(shape) * (g_P[a_n] - 1), (g_P[a_n] + g_P[b_n]) / 2)
        drawn[d] = accuracy(w_n)
        if point_tar:
            drawn_tar[d] = tars(w_n)
    singles = len(np.unique(a_n[true_n]))
    tar: dict[str, Interval | None] = dict.fromkeys(fars)
    for k, far in enumerate(fars if both else ()):
        if allowed(far, len(false_n)) >= FEW:
            tar[far] = wilson(point_tar[k], float(drawn_tar[:, k].var()), singles)
    return Intervals(wilson(point, float(drawn.var()), min(n, count)), tar, count, draws)


def wilson(share: float, variance: float, most: int) -> Interval:
    """Return Wilson's score interval of a share whose estimate has this variance.

    most: independent trials where the variance tells none, at a share of 0 or 1.
    """
    trials = share * (1 - share) / variance if variance > 0 and 0 < share < 1 else float(most)
    trials = max(trials, 1.0)
    middle = (share + Z * Z / (2 * trials)) / (1 + Z * Z / trials)
    half = Z / (1 + Z * Z / trials)
    half *= np.sqrt(share * (1 - share) / trials + Z * Z / (4 * trials * trials))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def best_threshold(distance_n: np.ndarray, same_n: np.ndarray) -> float:
    """Return the threshold that is best on all pairs, the first such."""
    counts = rates.accepted(distance_n, same_n.astype(np.int64), 2, rates.COARSE)
    return float(rates.COARSE[(counts[1] - counts[0]).argmax()])


def _shape(error_i: np.ndarray, a_i: np.ndarray, b_i: np.ndarray, count: int) -> float:
    """Return the gamma shape k of the weights: pairs that share no person have variance 1.

    A pair's weight (g_a + g_b) / 2 has variance 1 / 2k and covariance 1 / 4k with one that shares
    a person: k = 1/2 where no pairs share any, 1/4 where the sharing is all there is.
    """
    e_i = error_i - error_i.mean() if len(error_i) else error_i
    own = float((e_i**2).sum())
    if own == 0:
        return 0.5
    by_P = np.bincount(a_i, e_i, count) + np.bincount(b_i, e_i, count)
    twice = a_i == b_i
    by_P -= np.bincount(a_i[twice], e_i[twice], count)
    shared = float((by_P**2).sum())
    return 1 / (4 * float(np.clip(1 - own / shared, 0.5, 1.0))) if shared > 0 else 0.5
