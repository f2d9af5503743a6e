"""How likely two identities are one person, weighed against people who merely look alike.

Every pair of identities has a likeness t: 1 for one person, near 0 for most others, in between for
look-alikes. The centre of n photographs whose mean pairwise cosine is r lies k = sqrt(n r / (1 +
(n - 1) r)) of the way to the person, so two centres have a cosine around t k_a k_b; its spread
is even on Fisher's scale z = atanh(cosine), but for what is not known of r. All of that is read off
the dataset: r of its identities, z of identities split in two and of random pairs.

How many pairs there are of each likeness is then estimated from the candidates themselves by EM,
with the pairs counted in that lie below the search threshold: the prior of a mixture by maximum
likelihood (Kiefer and Wolfowitz, 1956) and the local false discovery rate (Efron, 2004). So a
dataset full of look-alikes asks for more evidence than one without.
"""

# K pairs, T likenesses from 0 to 1, S draws, C identities

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from glint.search.calibrate import Drawn
from glint.search.evidence import Reals, Samples, mean_cosine

Ints = npt.NDArray[np.int64]

LIKENESS = np.r_[0.0, np.arange(2, 17) / 20, 1.0]  # two people are at most 0.8 alike
ENOUGH = 200  # splits of identities: fewer do not tell the spreads
DOUBT = 0.5  # pairs of look-alikes that are expected before any is seen, and of one person
ROUNDS = 200
TAILS = ((0.683, 1.0), (0.95, 1.96), (0.99, 2.576))  # of both sides
LEAST_R, MOST_R, MOST_K = 0.03, 0.97, 0.995


@dataclass(frozen=True)
class Sides:
    """What is known of K pairs of identities: n and m photographs, their mean pairwise cosines.

    cosine_K: of the centres. r is NaN for one photograph.
    """

    n_K: npt.NDArray[Any]
    m_K: npt.NDArray[Any]
    r_K: Reals
    q_K: Reals
    cosine_K: Reals


@dataclass(frozen=True)
class Mixture:
    """The fitted model.

    place, spread, image: of r over identities, variance, and what an image more or less makes of
    it: variance of r found / (n - 1). offset: z of random pairs. bias: of one person, on top.
    floor + rise (t k_a k_b)^2: variance of z. random: pairs of identities drawn at random. count_T:
    estimated pairs of each likeness.
    """

    place: float
    spread: float
    image: float
    offset: float
    bias: float
    floor: float
    rise: float
    random: Sides
    count_T: Reals = field(default_factory=lambda: np.empty(0))

    def expect(self, sides: Sides, likeness: float) -> tuple[Reals, Reals]:
        """Return the mean and the variance of z for K pairs of this likeness."""
        r_K, doubt_K = self._r(sides.n_K, sides.r_K)
        q_K, other_K = self._r(sides.m_K, sides.q_K)
        if likeness == 1.0:  # both r are one person's
            weight_K = 1 / doubt_K + 1 / other_K - 1 / self.spread
            both_K = (r_K / doubt_K + q_K / other_K - self.place / self.spread) / weight_K
            r_K = q_K = np.clip(both_K, LEAST_R, MOST_R)
            slope_K = _slope(sides.n_K, r_K) + _slope(sides.m_K, q_K)
            log_K = slope_K**2 / weight_K
        else:
            log_K = _slope(sides.n_K, r_K) ** 2 * doubt_K + _slope(sides.m_K, q_K) ** 2 * other_K
        k_K = np.minimum(likeness * _reach(sides.n_K, r_K) * _reach(sides.m_K, q_K), MOST_K)
        mean_K = np.arctanh(k_K) + self.offset + likeness * (self.bias - self.offset)
        return mean_K, self.floor + self.rise * k_K**2 + (k_K / (1 - k_K**2)) ** 2 * log_K

    def _r(self, n_K: npt.NDArray[Any], r_K: Reals) -> tuple[Reals, Reals]:
        """Return r as it is expected of identities of n photographs, and its variance."""
        more_K = (n_K - 1) / self.image
        weight_K = 1 / self.spread + more_K
        told_K = np.where(n_K > 1, np.nan_to_num(r_K), 0.0)
        r_K = (self.place / self.spread + more_K * told_K) / weight_K
        return np.clip(r_K, LEAST_R, MOST_R), 1 / weight_K

    def densities(self, sides: Sides) -> Reals:
        """Return the log density of z of K pairs under each likeness over that of one, [T, K].

        Where z is so large that a wider spread would speak against one person, it does not.
        """
        one_K, variance_K = self.expect(sides, 1.0)
        rows = []
        for likeness in LIKENESS.tolist():
            mean_K, wide_K = self.expect(sides, likeness)
            more_K = np.maximum(wide_K - variance_K, 1e-9)
            turn_K = (wide_K * one_K - variance_K * mean_K) / more_K
            turn_K = np.where(wide_K > variance_K, np.maximum(turn_K, one_K), np.inf)
            z_K = np.minimum(_z(sides.cosine_K), turn_K)
            own_K = np.log(variance_K) + (z_K - one_K) ** 2 / variance_K
            rows.append(0.5 * (own_K - np.log(wide_K) - (z_K - mean_K) ** 2 / wide_K))
        return np.stack(rows)

    def counted(self, sides: Sides, low: float, pairs: float) -> Mixture:
        """Return the model with its estimate of how many of `pairs` pairs have each likeness.

        sides: the candidates, whose centres have a cosine of `low` or more.
        """
        from scipy.stats import norm

        log_TK = self.densities(sides)
        part_TK = np.exp(log_TK - log_TK.max(axis=0, initial=-np.inf)).astype(np.float32)
        seen_T = np.empty(len(LIKENESS))
        for i, likeness in enumerate(LIKENESS.tolist()):
            mean_S, variance_S = self.expect(self.random, likeness)
            above_S = norm.sf(_z(np.array(low)), mean_S, np.sqrt(variance_S))
            seen_T[i] = max(float(above_S.mean()), 1e-3)
        count_T = np.ones(len(LIKENESS))
        least_T = np.full(len(LIKENESS), DOUBT / (len(LIKENESS) - 2))
        for _ in range(ROUNDS):
            count_T[0] = pairs
            all_K = count_T.astype(np.float32) @ part_TK
            found_T = count_T * (part_TK @ (1.0 / np.maximum(all_K, 1e-30))) / seen_T + least_T
            found_T[-1] = max(found_T[-1] - least_T[-1], DOUBT)
            found_T[0] = pairs
            still = np.abs(found_T - count_T).max() < 1e-4 * max(found_T[1:].max(), 1.0)
            count_T = found_T
            if still:
                break
        return replace(self, count_T=count_T)

    def probability(self, sides: Sides) -> Reals:
        """Give P(one person) of K pairs, once likenesses are counted; 0 where z is NaN."""
        from scipy.special import logsumexp

        log_TK = self.densities(sides) + np.log(self.count_T)[:, None]
        p_K: Reals = np.exp(log_TK[-1] - logsumexp(log_TK, axis=0))
        return np.nan_to_num(p_K)

    def about(self) -> dict[str, Any]:
        """Return plain numbers for conflicts.json."""
        pairs = {f"{t:.2f}": round(float(n), 2) for t, n in zip(LIKENESS, self.count_T)}
        names = ("place", "spread", "image", "offset", "bias", "floor", "rise")
        return {"pairs_by_likeness": pairs, **{name: getattr(self, name) for name in names}}


def _z(cosine_K: Reals) -> Reals:
    return np.asarray(np.arctanh(np.clip(cosine_K, -0.999, 0.999)))


def _reach(n_K: npt.NDArray[Any], r_K: Reals) -> Reals:
    """Return the cosine of the centre of n photographs with the person."""
    return np.asarray(np.sqrt(n_K * r_K / (1 + (n_K - 1) * r_K)))


def _slope(n_K: npt.NDArray[Any], r_K: Reals) -> Reals:
    """Return the derivative of the logarithm of `_reach` by r."""
    return np.asarray(1 / (2 * r_K * (1 + (n_K - 1) * r_K)))


def sides(drawn: Drawn) -> Sides:
    """Read what is known of draws of `calibrate`."""
    n_S, m_S, r_S, q_S = drawn.sides_S4.T
    return Sides(n_S, m_S, r_S, q_S, drawn.cosine_S)


def fit(samples: Samples, genuine: Drawn, impostor: Drawn, *, seed: int = 0) -> Mixture | None:
    """Read the model off identities split in two and random pairs; None where they are too few."""
    from scipy.optimize import nnls

    if len(genuine.x_S) < ENOUGH or len(impostor.x_S) < ENOUGH:
        return None
    many = np.flatnonzero(samples.count_C >= 2)
    rng = np.random.default_rng([seed, 5])
    chosen = np.sort(rng.choice(many, min(4000, len(many)), replace=False))
    r_S = mean_cosines(samples, chosen)[chosen]
    n_S = np.minimum(samples.count_C[chosen], 32).astype(np.float64)
    place = float(np.median(r_S))
    square_S = (r_S - place) ** 2
    square_S = np.minimum(square_S, 20 * np.median(square_S))  # a mislabelled one moves nothing
    design_S2 = np.stack([np.ones_like(n_S), 1 / (n_S - 1)], axis=1)
    (spread, image), _ = nnls(design_S2, square_S)
    one, two = sides(genuine), sides(impostor)
    z_S = _z(two.cosine_K)
    offset = float(np.median(z_S))
    off_S = np.abs(z_S - offset)
    floor = max(float(np.quantile(off_S, q)) / z for q, z in TAILS) ** 2
    random = Sides(*(np.asarray(v)[::2] for v in vars(two).values()))  # the others are cut down
    about_r = place, max(spread, 1e-5), max(image, 1e-5)
    model = Mixture(*about_r, offset, 0.0, floor, 0.0, random)
    mean_S, variance_S = model.expect(one, 1.0)
    far_S = _z(one.cosine_K) - mean_S
    bias = float(np.median(far_S))
    far_S = np.abs(far_S - bias)
    k_S = np.tanh(mean_S)
    low, high = -0.99 * floor, 50.0 * floor
    for _ in range(40):
        rise = (low + high) / 2
        spread_S = np.sqrt(np.maximum(variance_S + rise * k_S**2, 1e-9))
        if any(float(np.quantile(far_S / spread_S, q)) > z for q, z in TAILS):
            low = rise
        else:
            high = rise
    return replace(model, bias=bias, rise=high)


def mean_cosines(samples: Samples, labels: Ints) -> Reals:
    """Return the mean pairwise cosine of some identities, [C], from up to 32 photographs each."""
    r_C = np.full(len(samples.count_C), np.nan)
    for label in np.unique(labels).tolist():
        if samples.count_C[label] > 1:
            r_C[label] = mean_cosine(samples.unit(samples.rows(label)))
    return r_C


def accept(p_K: Reals, rate: float) -> npt.NDArray[np.bool_]:
    """Take the most likely pairs as long as the expected share of wrong ones is at most `rate`."""
    order = np.argsort(-p_K, kind="stable")
    wrong = np.cumsum(1.0 - p_K[order]) / np.arange(1, len(order) + 1)
    taken = np.zeros(len(order), bool)
    taken[order[: int(np.count_nonzero(wrong <= rate))]] = True
    return taken
