"""What one person and two people look like, by draws from the dataset itself.

Identities split at random show one person under two ids (genuine); random pairs of identities show
two people (impostor). Both are fitted as a location and a spread that depend on how many samples
stand on each side: x = 1/n + 1/m.
"""

# C identities, S drawn pairs of sample sets

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from glint.conflicts import evidence
from glint.conflicts.evidence import SAMPLES, Reals, Samples

DRAWS = 2000  # identities split, at most
IMPOSTORS = 10000
ENOUGH = 20  # fewer genuine splits than this say nothing
TAILS = ((0.841, 1.0), (0.975, 1.96), (0.995, 2.576))  # 16 %, 2.5 % and 0.5 % of one side


@dataclass(frozen=True)
class Drawn:
    """Scores and centre cosines of S pairs of sample sets; x_S = 1/n + 1/m."""

    x_S: Reals
    score_S: Reals
    cosine_S: Reals


@dataclass(frozen=True)
class Fit:
    """location = place + tilt x; variance = floor + rise x."""

    place: float
    tilt: float
    floor: float
    rise: float

    def location(self, x_K: Reals) -> Reals:
        """Return the fitted median."""
        return self.place + self.tilt * x_K

    def spread(self, x_K: Reals) -> Reals:
        """Return the fitted standard deviation of the side that matters."""
        spread_K: Reals = np.sqrt(self.floor + self.rise * x_K)
        return spread_K


@dataclass(frozen=True)
class Scale:
    """What a score means on this dataset. The fits are None where too few identities can be split.

    prior: the median mean cosine between two images of one identity; 1 where none has two.
    """

    prior: float
    genuine: Fit | None
    impostor: Fit | None
    genuine_splits: int
    impostor_pairs: int

    @property
    def calibrated(self) -> bool:
        """Say whether enough draws were made."""
        return self.genuine is not None

    def about(self) -> dict[str, Any]:
        """Return plain numbers for conflicts.json."""
        return asdict(self)


def genuine(samples: Samples, prior: float, *, seed: int = 0) -> Drawn:
    """Split identities at random: one against one, one against the rest, half against half."""
    rng = np.random.default_rng([seed, 1])
    many = np.flatnonzero(samples.count_C >= 2)
    chosen = np.sort(rng.choice(many, min(DRAWS, len(many)), replace=False))
    found = []
    for label in chosen:
        row = rng.permutation(samples.rows(int(label), 2 * SAMPLES))
        n = len(row)
        for left, right in sorted({(1, 1), (1, n - 1), (n // 2, n - n // 2)}):
            found.append(judge(samples, row[:left], row[left : left + right], prior))
    return _drawn(found)


def impostor(samples: Samples, prior: float, *, seed: int = 0) -> Drawn:
    """Draw random pairs of identities, every other one cut down to one sample a side."""
    rng = np.random.default_rng([seed, 2])
    some = np.flatnonzero(samples.count_C >= 1)
    found = []
    if len(some) >= 2:
        for draw in range(min(IMPOSTORS, 10 * len(some))):
            a, b = rng.choice(len(some), 2, replace=False)
            most = 1 if draw % 2 else SAMPLES
            found.append(
                judge(
                    samples,
                    samples.rows(int(some[a]), most),
                    samples.rows(int(some[b]), most),
                    prior,
                )
            )
    return _drawn(found)


def judge(
    samples: Samples, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64], prior: float
) -> tuple[float, float, float]:
    """Return (x, score, centre cosine) of two sets of rows."""
    x_nD, y_mD = samples.unit(left), samples.unit(right)
    a_D, b_D = x_nD.mean(axis=0), y_mD.mean(axis=0)
    cosine = float(a_D @ b_D / max(np.linalg.norm(a_D) * np.linalg.norm(b_D), 1e-12))
    _, score = evidence.judge(x_nD, y_mD, prior, cosine=cosine, n=len(left), m=len(right))
    return 1 / len(left) + 1 / len(right), score, cosine


def _drawn(found: list[tuple[float, float, float]]) -> Drawn:
    return Drawn(*np.array(found, dtype=np.float64).reshape(-1, 3).T)


def fit(found: Drawn, *, upper: bool, tails: Sequence[tuple[float, float]] = TAILS) -> Fit:
    """Fit location and one-sided spread by quantiles of bins of equal size along x.

    tails: quantiles of that side and the spreads at which a normal tail has them. The spread is the
    widest that one of them asks for (those beyond 99 % where a bin has 500 draws), so a tail
    heavier than normal widens it. Farther out the draws hold conflicts and mislabelled images.
    """
    from scipy.optimize import nnls

    sign = 1.0 if upper else -1.0
    order = np.argsort(found.x_S, kind="stable")
    one_size = np.ptp(found.x_S) < 0.05  # nothing to say about other sizes
    bins = np.array_split(order, 1 if one_size else max(1, min(8, len(order) // 60)))
    middle, place, variance = [], [], []
    for chosen in bins:
        value = sign * found.score_S[chosen]
        median = float(np.median(value))
        enough = [(q, z) for q, z in tails if q < 0.99 or len(chosen) >= 500]
        spread = max((float(np.quantile(value, q)) - median) / z for q, z in enough)
        middle.append(float(found.x_S[chosen].mean()))
        place.append(sign * median)
        variance.append(max(spread, 1e-3) ** 2)
    x_B = np.array(middle)
    design_B2 = np.stack([np.ones_like(x_B), x_B], axis=1)
    if len(bins) == 1:
        return Fit(place[0], 0.0, variance[0], 0.0)
    (at, tilt), *_ = np.linalg.lstsq(design_B2, np.array(place), rcond=None)
    (floor, rise), _ = nnls(design_B2, np.array(variance))
    return Fit(float(at), float(tilt), float(floor), float(rise))


def calibrate(samples: Samples, *, seed: int = 0) -> tuple[Scale, Drawn, Drawn]:
    """Return the scale of this dataset and the genuine and impostor draws it rests on."""
    prior = evidence.prior_rho(samples, seed=seed)
    usable_prior = prior if np.isfinite(prior) else 1.0
    same, other = (
        genuine(samples, usable_prior, seed=seed),
        impostor(samples, usable_prior, seed=seed),
    )
    enough = len(same.x_S) >= ENOUGH and len(other.x_S) >= ENOUGH
    scale = Scale(
        usable_prior,
        fit(same, upper=False) if enough else None,
        fit(other, upper=True) if enough else None,
        len(same.x_S),
        len(other.x_S),
    )
    return scale, same, other
