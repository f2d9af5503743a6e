"""How alike two identities are, judged by their samples, on a scale where the same person is 1.

Two disjoint sets of photographs of one person have a mean cross cosine of rho, the person's mean
pairwise cosine, however many photographs there are; their centres have the cosine
rho sqrt(n m) / sqrt((1 + (n-1) rho)(1 + (m-1) rho)), which shrinks with n and m. Dividing each by
what the same person would show gives two ratios; the score is the weaker one.
"""

# K pairs, C identities, n and m samples of the two identities of a pair, D embedding,
# g pairs of one batch (all of n against m samples), u identities of one

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from glint import log
from glint.log import Progress
from glint.search.pairs import usable

Labels = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]

SAMPLES = 32  # faces of an identity that take part
PRIOR_WEIGHT = 4.0  # the dataset's rho counts as much as this many photographs beyond the first
RHO_FLOOR = 0.05
ROOM = 1 << 22  # numbers of one batch: 16 MiB


class Samples:
    """Unit sample embeddings by identity; rows without a direction take no part.

    sample_ND: any float type, may be a memory map; label_N: identity of each row, 0 .. C-1,
    or -1 for none.
    """

    def __init__(self, sample_ND: npt.NDArray[np.floating], label_N: Labels, classes: int) -> None:
        self._sample_ND, self.dim = sample_ND, sample_ND.shape[1]
        row = np.flatnonzero(usable(sample_ND))
        self.excluded = len(sample_ND) - len(row)
        row = row[label_N[row] >= 0]
        self._row = row[np.argsort(label_N[row], kind="stable")]
        self.count_C = np.bincount(label_N[row], minlength=classes)
        self._start_C = np.concatenate([[0], np.cumsum(self.count_C)])

    def rows(self, label: int, most: int = SAMPLES) -> npt.NDArray[np.int64]:
        """List at most `most` rows of an identity, evenly spaced over all it has."""
        mine = self._row[self._start_C[label] : self._start_C[label + 1]]
        if len(mine) <= most:
            return mine
        picked: npt.NDArray[np.int64] = mine[np.arange(most) * len(mine) // most]
        return picked

    def unit_of(
        self, label_g: Labels, n: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]:
        """Read the rows of identities that have n: unit rows of each identity once, and whose.

        Returns x_unD and the place u of each of the g.
        """
        label_u, place_g = np.unique(label_g, return_inverse=True)
        at_un = np.arange(n) * self.count_C[label_u, None] // n + self._start_C[label_u, None]
        return self.unit(self._row[at_un.ravel()]).reshape(len(label_u), n, -1), place_g

    def unit(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Read rows and scale them to length one."""
        x_nD = np.asarray(self._sample_ND[rows], dtype=np.float32)
        scaled: npt.NDArray[np.float32] = x_nD / np.linalg.norm(x_nD, axis=1, keepdims=True)
        return scaled


@dataclass(frozen=True)
class Evidence:
    """What the samples of K pairs say. NaN where an identity has no usable sample.

    cross_mean, cross_q10: mean and 10 % quantile of all cross cosines. score: 1 for one person.
    """

    cross_mean: Reals
    cross_q10: Reals
    score: Reals


def mean_cosine(x_nD: npt.NDArray[np.float32]) -> float:
    """Return the mean pairwise cosine of unit rows, (|sum|^2 - n) / (n (n - 1)); NaN for one."""
    n = len(x_nD)
    if n < 2:
        return float("nan")
    total_D = x_nD.sum(axis=0, dtype=np.float64)
    return float((total_D @ total_D - n) / (n * (n - 1)))


def shrunk(rho: Any, n: Any, prior: float) -> Reals:
    """Pull mean pairwise cosines of n samples towards the dataset's, the less samples the more."""
    weight = np.where(np.isfinite(rho), np.maximum(np.asarray(n) - 1, 0), 0)
    known = np.where(weight > 0, rho, 0.0)
    pulled = (PRIOR_WEIGHT * prior + weight * known) / (PRIOR_WEIGHT + weight)
    return np.asarray(np.maximum(np.where(weight > 0, pulled, prior), RHO_FLOOR))


def centre_cosine(rho_a: Any, rho_b: Any, n: Any, m: Any) -> Reals:
    """Return the cosine expected between the means of n and m samples of one person."""
    together = np.sqrt(rho_a * rho_b) * np.sqrt(n * m)
    return np.asarray(together / np.sqrt((1 + (n - 1) * rho_a) * (1 + (m - 1) * rho_b)))


def prior_rho(samples: Samples, *, seed: int = 0, most: int = 2000) -> float:
    """Return the median mean pairwise cosine over identities with at least two samples.

    NaN where no identity has two.
    """
    many = np.flatnonzero(samples.count_C >= 2)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(many, min(most, len(many)), replace=False))
    rhos = [mean_cosine(samples.unit(samples.rows(int(label)))) for label in chosen]
    return float(np.median(rhos)) if rhos else float("nan")


def compare(
    x_nD: npt.NDArray[np.float32],
    y_mD: npt.NDArray[np.float32],
    prior: float,
    *,
    cosine: float,
    n: int,
    m: int,
) -> tuple[float, float]:
    """Return (cross mean, score) of two sets of unit rows.

    cosine: of the two centres, means over n and m samples, of which the rows may be a part.
    """
    x_1, y_1 = (_mean(side[None], prior) for side in (x_nD, y_mD))
    mean_1, score_1 = _compared(x_1, y_1, cosine, n, m)
    return float(mean_1[0]), float(score_1[0])


Means = tuple[Reals, Reals]  # the mean of each set of unit rows, and its rho


def _compared(x_g: Means, y_g: Means, cosine: Any, n: Any, m: Any) -> tuple[Reals, Reals]:
    """Return cross means and scores as `compare` does, of g pairs of sets."""
    (a_gD, rho_a), (b_gD, rho_b) = x_g, y_g
    mean_g = np.einsum("gd,gd->g", a_gD, b_gD)
    by_samples = mean_g / np.sqrt(rho_a * rho_b)
    by_centres = cosine / centre_cosine(rho_a, rho_b, n, m)
    return mean_g, np.minimum(by_samples, by_centres)


def _mean(x_unD: npt.NDArray[np.float32], prior: float) -> Means:
    """Return the mean of each set of rows, and its mean pairwise cosine, pulled to the prior."""
    n = x_unD.shape[1]
    total_uD = x_unD.sum(axis=1, dtype=np.float64)
    rho_u = np.einsum("ud,ud->u", total_uD, total_uD) - n
    return total_uD / n, shrunk(rho_u / max(n * (n - 1), 1), n, prior)


def score(samples: Samples, left: Labels, right: Labels, prior: float) -> tuple[float, float]:
    """Return (score, centre cosine) of two sets of rows, whose centres are over these rows."""
    x_nD, y_mD = samples.unit(left), samples.unit(right)
    a_D, b_D = x_nD.mean(axis=0), y_mD.mean(axis=0)
    cosine = float(a_D @ b_D / max(np.linalg.norm(a_D) * np.linalg.norm(b_D), 1e-12))
    n, m = len(left), len(right)
    _, value = compare(x_nD, y_mD, prior, cosine=cosine, n=n, m=m)
    return value, cosine


def collect(
    samples: Samples,
    a: Labels,
    b: Labels,
    cosine: Reals,
    prior: float,
    *,
    others: Samples | None = None,
    progress: Progress = log.silent,
) -> Evidence:
    """Score K pairs of identities, whose centres have `cosine`, by up to 32 samples of each.

    others: the samples of another dataset, whose identities b are.
    """
    others = others or samples
    n_K, m_K = samples.count_C[a], others.count_C[b]
    most_n, most_m = np.minimum(n_K, SAMPLES), np.minimum(m_K, SAMPLES)
    out_K3 = np.full((len(a), 3), np.nan)
    order = np.lexsort((b, a, most_m, most_n))
    order = order[(most_n[order] > 0) & (most_m[order] > 0)]
    done = len(a) - len(order)
    edge = np.flatnonzero(np.diff(most_n[order] * (SAMPLES + 1) + most_m[order])) + 1
    for alike in np.split(order, edge) if len(order) else []:
        n, m = int(most_n[alike[0]]), int(most_m[alike[0]])
        batch = max(1, ROOM // ((n + m) * samples.dim))
        for start in range(0, len(alike), batch):
            k = alike[start : start + batch]
            (x_unD, place_g), (y_umD, other_g) = (
                samples.unit_of(a[k], n),
                others.unit_of(b[k], m),
            )
            (x_uD, rho_x), (y_uD, rho_y) = _mean(x_unD, prior), _mean(y_umD, prior)
            x_g, y_g = (x_uD[place_g], rho_x[place_g]), (y_uD[other_g], rho_y[other_g])
            out_K3[k, 0], out_K3[k, 2] = _compared(x_g, y_g, cosine[k], n_K[k], m_K[k])
            cross_gnm = x_unD[place_g] @ y_umD[other_g].transpose(0, 2, 1)
            out_K3[k, 1] = np.quantile(cross_gnm.reshape(len(k), -1), 0.1, axis=1)
            done += len(k)
            progress(done, len(a))
    return Evidence(out_K3[:, 0], out_K3[:, 1], out_K3[:, 2])
