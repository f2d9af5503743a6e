"""How alike two identities are, judged by their samples, on a scale where the same person is 1.

Two disjoint sets of photographs of one person have a mean cross cosine of rho, the person's mean
pairwise cosine, however many photographs there are; their centres have the cosine
rho sqrt(n m) / sqrt((1 + (n-1) rho)(1 + (m-1) rho)), which shrinks with n and m. Dividing each by
what the same person would show gives two ratios; the score is the weaker one.
"""

# K pairs, C identities, n and m samples of the two identities of a pair, D embedding

from __future__ import annotations

from dataclasses import dataclass

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


class Samples:
    """Unit sample embeddings by identity; rows without a direction take no part.

    sample_ND: any float type, may be a memory map; label_N: identity of each row, 0 .. C-1,
    or -1 for none.
    """

    def __init__(self, sample_ND: npt.NDArray[np.floating], label_N: Labels, classes: int) -> None:
        self._sample_ND = sample_ND
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


def shrunk(rho: float, n: int, prior: float) -> float:
    """Pull a mean pairwise cosine of n samples towards the dataset's, the less samples the more."""
    weight = max(n - 1, 0)
    if weight == 0 or not np.isfinite(rho):
        return max(prior, RHO_FLOOR)
    return max((PRIOR_WEIGHT * prior + weight * rho) / (PRIOR_WEIGHT + weight), RHO_FLOOR)


def centre_cosine(rho_a: float, rho_b: float, n: int, m: int) -> float:
    """Return the cosine expected between the means of n and m samples of one person."""
    together = np.sqrt(rho_a * rho_b) * np.sqrt(n * m)
    return float(together / np.sqrt((1 + (n - 1) * rho_a) * (1 + (m - 1) * rho_b)))


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
    a_D, b_D = x_nD.mean(axis=0, dtype=np.float64), y_mD.mean(axis=0, dtype=np.float64)
    mean = float(a_D @ b_D)
    rho_a = shrunk(mean_cosine(x_nD), len(x_nD), prior)
    rho_b = shrunk(mean_cosine(y_mD), len(y_mD), prior)
    by_samples = mean / np.sqrt(rho_a * rho_b)
    by_centres = cosine / centre_cosine(rho_a, rho_b, n, m)
    return mean, float(min(by_samples, by_centres))


def score(samples: Samples, left: Labels, right: Labels, prior: float) -> tuple[float, float]:
    """Return (score, centre cosine) of two sets of rows, whose centres are over these rows."""
    x_nD, y_mD = samples.unit(left), samples.unit(right)
    a_D, b_D = x_nD.mean(axis=0), y_mD.mean(axis=0)
    cosine = float(a_D @ b_D / max(np.linalg.norm(a_D) * np.linalg.norm(b_D), 1e-12))
    _, value = compare(x_nD, y_mD, prior, cosine=cosine, n=len(left), m=len(right))
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
    out_K3 = np.full((len(a), 3), np.nan)
    held, x_nD = -1, np.empty((0, 0), np.float32)
    for done, k in enumerate(np.lexsort((b, a)), 1):
        label, other = int(a[k]), int(b[k])
        if label != held:
            held, x_nD = label, samples.unit(samples.rows(label))
        y_mD = others.unit(others.rows(other))
        if len(x_nD) and len(y_mD):
            mean, score = compare(
                x_nD,
                y_mD,
                prior,
                cosine=float(cosine[k]),
                n=int(samples.count_C[label]),
                m=int(others.count_C[other]),
            )
            out_K3[k] = mean, np.quantile(x_nD @ y_mD.T, 0.1), score
        progress(done, len(a))
    return Evidence(out_K3[:, 0], out_K3[:, 1], out_K3[:, 2])
