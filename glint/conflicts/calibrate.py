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

from glint.conflicts import evidence
from glint.conflicts.chance import Compared
from glint.conflicts.evidence import SAMPLES, Labels, Reals, Samples

DRAWS = 2000  # identities split, at most
IMPOSTORS = 10000
ENOUGH = 20  # fewer draws than this say nothing
LOW = 0.4  # the search starts here at the latest, where the embedder allows
PER_IDENTITY = 10  # pairs by chance per identity that the search may return
TAILS = ((0.841, 1.0), (0.975, 1.96), (0.995, 2.576))  # 16 %, 2.5 % and 0.5 % of one side


@dataclass(frozen=True)
class Draws:
    """S pairs of sample sets, compared by their centres and scored."""

    pairs: Compared
    score_S: Reals

    @property
    def x_S(self) -> Reals:
        """Return 1/n + 1/m of each pair."""
        return np.asarray(1 / self.pairs.n_K + 1 / self.pairs.m_K)

    @property
    def enough(self) -> bool:
        """Return whether there are draws enough to conclude anything."""
        return len(self.score_S) >= ENOUGH


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
class Calibration:
    """What one person and two people look like in this dataset.

    prior: the median mean cosine between two images of one identity; 1 where none has two.
    """

    prior: float
    genuine: Draws
    impostor: Draws

    @property
    def calibrated(self) -> bool:
        """Return whether enough pairs of both kinds could be drawn."""
        return self.genuine.enough and self.impostor.enough

    def search_from(self, people: int) -> float:
        """Return the centre cosine to search from: low enough for one person, high against chance.

        At most 0.4; lower where 1 % of split identities lie lower; higher where more than ten pairs
        per identity would come by chance.
        """
        from scipy.stats import norm

        low = LOW
        if self.genuine.enough:
            low = min(low, float(np.quantile(self.genuine.pairs.cosine_K, 0.01)))
        if self.impostor.enough:
            middle, high = np.quantile(self.impostor.pairs.cosine_K, [0.5, 0.975])
            rate = min(2 * PER_IDENTITY / max(people, 1), 0.5)
            low = max(low, float(middle + norm.isf(rate) * (high - middle) / 1.96))
        return low

    def about(self) -> dict[str, Any]:
        """Return plain numbers for conflicts.json; no fits where too little was drawn."""
        fits = [
            asdict(fit(draws.x_S, draws.score_S, upper=upper)) if self.calibrated else None
            for draws, upper in ((self.genuine, False), (self.impostor, True))
        ]
        return {
            "prior": self.prior,
            "genuine": fits[0],
            "impostor": fits[1],
            "genuine_splits": len(self.genuine.score_S),
            "impostor_pairs": len(self.impostor.score_S),
        }


def genuine(samples: Samples, prior: float, *, seed: int = 0) -> Draws:
    """Split identities at random: one against one, one against the rest, half against half."""
    rng = np.random.default_rng([seed, 1])
    many = np.flatnonzero(samples.count_C >= 2)
    chosen = np.sort(rng.choice(many, min(DRAWS, len(many)), replace=False))
    sets = []
    for label in chosen:
        row = rng.permutation(samples.rows(int(label), 2 * SAMPLES))
        n = len(row)
        for left, right in sorted({(1, 1), (1, n - 1), (n // 2, n - n // 2)}):
            sets.append((row[:left], row[left : left + right]))
    return _scored(samples, sets, prior)


def impostor(samples: Samples, prior: float, *, seed: int = 0) -> Draws:
    """Draw random pairs of identities, every other one cut down to one sample a side."""
    rng = np.random.default_rng([seed, 2])
    some = np.flatnonzero(samples.count_C >= 1)
    sets = []
    if len(some) >= 2:
        for draw in range(min(IMPOSTORS, 10 * len(some))):
            a, b = rng.choice(len(some), 2, replace=False)
            most = 1 if draw % 2 else SAMPLES
            sets.append((samples.rows(int(some[a]), most), samples.rows(int(some[b]), most)))
    return _scored(samples, sets, prior)


def _scored(samples: Samples, sets: Sequence[tuple[Labels, Labels]], prior: float) -> Draws:
    """Compare and score pairs of sets of rows."""
    scored = [evidence.score(samples, left, right, prior) for left, right in sets]
    score_S, cosine_S = np.array(scored, np.float64).reshape(-1, 2).T
    size_S2 = np.array([[len(side) for side in pair] for pair in sets], np.int64).reshape(-1, 2)
    return Draws(Compared(cosine_S, size_S2[:, 0], size_S2[:, 1]), score_S)


def fit(
    x_S: Reals, score_S: Reals, *, upper: bool, tails: Sequence[tuple[float, float]] = TAILS
) -> Fit:
    """Fit location and one-sided spread of scores by quantiles of bins of equal size along x.

    tails: quantiles of that side and the spreads at which a normal tail has them. The spread is the
    widest that one of them asks for (those beyond 99 % where a bin has 500 draws), so a tail
    heavier than normal widens it. Farther out the draws hold conflicts and mislabelled images.
    """
    from scipy.optimize import nnls

    sign = 1.0 if upper else -1.0
    order = np.argsort(x_S, kind="stable")
    one_size = np.ptp(x_S) < 0.05  # nothing to say about other sizes
    bins = np.array_split(order, 1 if one_size else max(1, min(8, len(order) // 60)))
    middle, place, variance = [], [], []
    for chosen in bins:
        value = sign * score_S[chosen]
        median = float(np.median(value))
        enough = [(q, z) for q, z in tails if q < 0.99 or len(chosen) >= 500]
        spread = max((float(np.quantile(value, q)) - median) / z for q, z in enough)
        middle.append(float(x_S[chosen].mean()))
        place.append(sign * median)
        variance.append(max(spread, 1e-3) ** 2)
    x_B = np.array(middle)
    design_B2 = np.stack([np.ones_like(x_B), x_B], axis=1)
    if len(bins) == 1:
        return Fit(place[0], 0.0, variance[0], 0.0)
    (at, tilt), *_ = np.linalg.lstsq(design_B2, np.array(place), rcond=None)
    (floor, rise), _ = nnls(design_B2, np.array(variance))
    return Fit(float(at), float(tilt), float(floor), float(rise))


def calibrate(samples: Samples, *, seed: int = 0) -> Calibration:
    """Draw what one person and two people look like in this dataset."""
    prior = evidence.prior_rho(samples, seed=seed)
    prior = prior if np.isfinite(prior) else 1.0
    return Calibration(
        prior, genuine(samples, prior, seed=seed), impostor(samples, prior, seed=seed)
    )
