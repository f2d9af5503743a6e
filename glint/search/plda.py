"""How likely two sets of faces are one person: the two-covariance model (PLDA).

An embedding is x = y + e: y ~ N(mean, B) belongs to the person, e ~ N(0, W) to the photograph
(Ioffe, ECCV 2006; Bruemmer and de Villiers, Odyssey 2010). B and W are estimated from the dataset's
own labels, so a weak embedder or a small set is judged by what it can tell apart. The ratio of the
likelihoods of "one person" and "two" has a closed form in the means of both sets, and weighs how
many photographs stand on each side by itself.
"""

# N samples, C identities, K pairs, D embedding, d directions in which people differ

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from glint.search.evidence import Samples

Reals = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RIDGE = 1e-3  # of W's mean variance, added to it
LEAST_BETWEEN = 1e-3  # directions where people differ by less of W's variance say nothing
ENOUGH = 3  # photographs beyond each identity's first, per dimension: fewer do not tell W
BLOCK = 65536


@dataclass(frozen=True)
class TwoCovariance:
    """The fitted model: between_d is B's variance where W's is 1; mean_Cd the identities' means.

    basis_Dd, centre_D: what turned embeddings into these axes.
    """

    between_d: Reals
    mean_Cd: Reals
    count_C: Ints
    basis_Dd: Reals
    centre_D: Reals

    def ratio(self, a: Ints, b: Ints, other: TwoCovariance | None = None) -> Reals:
        """Give the natural log likelihood ratio of "one person" against "two" for K pairs.

        other: what `placed` made of another dataset, whose identities b are. NaN where an identity
        has no usable photograph.
        """
        other = other or self
        out_K = np.full(len(a), np.nan)
        some_K = np.flatnonzero((self.count_C[a] > 0) & (other.count_C[b] > 0))
        for at in range(0, len(some_K), BLOCK):
            k = some_K[at : at + BLOCK]
            out_K[k] = log_ratio(
                self.mean_Cd[a[k]], other.mean_Cd[b[k]],
                self.count_C[a[k]], other.count_C[b[k]], self.between_d,
            )  # fmt: skip
        return out_K

    def placed(self, samples: Samples) -> TwoCovariance:
        """Return this model with the identities of another dataset in place of its own."""
        count_C = samples.count_C.astype(np.int64)
        mean_Cd = np.zeros((len(count_C), len(self.between_d)))
        for label in np.flatnonzero(count_C).tolist():
            x_nD = samples.unit(samples.rows(label, int(count_C[label]))).astype(np.float64)
            mean_Cd[label] = (x_nD.mean(axis=0) - self.centre_D) @ self.basis_Dd
        return replace(self, mean_Cd=mean_Cd, count_C=count_C)


def log_ratio(a_Kd: Reals, b_Kd: Reals, n_K: Ints, m_K: Ints, between_d: Reals) -> Reals:
    """Compare means of n and m photographs where W is the identity and B diagonal."""
    own_Kd = between_d + 1.0 / n_K[:, None]
    other_Kd = between_d + 1.0 / m_K[:, None]
    det_Kd = own_Kd * other_Kd - between_d**2
    square = other_Kd * a_Kd**2 - 2.0 * between_d * a_Kd * b_Kd + own_Kd * b_Kd**2
    same_Kd = -0.5 * (np.log(det_Kd) + square / det_Kd)
    two_Kd = -0.5 * (np.log(own_Kd * other_Kd) + a_Kd**2 / own_Kd + b_Kd**2 / other_Kd)
    ratio_K: Reals = (same_Kd - two_Kd).sum(axis=1)
    return ratio_K


def fit(samples: Samples) -> TwoCovariance | None:
    """Estimate the model by moments from the labelled photographs, one identity at a time.

    None where the identities or their photographs are too few for the embedding's dimensions.
    """
    from scipy.linalg import eigh

    count_C = samples.count_C.astype(np.int64)
    some = np.flatnonzero(count_C)
    spare = int((count_C[some] - 1).sum())
    mean_CD: Reals | None = None
    scatter_DD: Reals | None = None
    for label in some.tolist():
        x_nD = samples.unit(samples.rows(label, int(count_C[label]))).astype(np.float64)
        if mean_CD is None or scatter_DD is None:
            if spare < ENOUGH * x_nD.shape[1] or len(some) < x_nD.shape[1]:
                return None
            mean_CD = np.zeros((len(count_C), x_nD.shape[1]))
            scatter_DD = np.zeros((x_nD.shape[1],) * 2)
        mean_CD[label] = x_nD.mean(axis=0)
        off_nD = x_nD - mean_CD[label]
        scatter_DD += off_nD.T @ off_nD
    if mean_CD is None or scatter_DD is None:
        return None
    within_DD = scatter_DD / spare
    within_DD += RIDGE * np.trace(within_DD) / len(within_DD) * np.eye(len(within_DD))
    centre_D = mean_CD[some].mean(axis=0)
    centred_CD = mean_CD - centre_D
    between_DD = np.cov(centred_CD[some].T) - within_DD * float(np.mean(1.0 / count_C[some]))
    between_D, basis_DD = eigh(between_DD, within_DD)
    kept = between_D > LEAST_BETWEEN
    if not kept.any():
        return None
    basis_Dd = basis_DD[:, kept]
    return TwoCovariance(between_D[kept], centred_CD @ basis_Dd, count_C, basis_Dd, centre_D)


def share(ratio_K: Reals, pairs: float, rounds: int = 50) -> float:
    """Estimate which share of all `pairs` pairs is one person, from K candidates (EM).

    Never below half a pair: a set without conflicts has one yet to be found.
    """
    part = 1.0 / pairs
    for _ in range(rounds):
        found = float(probability(ratio_K, part).sum())
        part = min(max(found, 0.5) / pairs, 0.5)
    return part


def probability(ratio_K: Reals, part: float) -> Reals:
    """Give P(one person) where `part` of all pairs is; 0 where the ratio is NaN."""
    from scipy.special import expit

    known_K = np.where(np.isnan(ratio_K), -np.inf, ratio_K)
    p_K: Reals = expit(known_K + np.log(part) - np.log1p(-part))
    return p_K


def accept(p_K: Reals, rate: float) -> npt.NDArray[np.bool_]:
    """Take the most likely pairs as long as the expected share of wrong ones is at most `rate`."""
    order = np.argsort(-p_K, kind="stable")
    wrong = np.cumsum(1.0 - p_K[order]) / np.arange(1, len(order) + 1)
    taken = np.zeros(len(order), bool)
    taken[order[: int(np.count_nonzero(wrong <= rate))]] = True
    return taken
