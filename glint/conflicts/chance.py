"""Which pairs of identities are more alike than two people are: a cosine, counts, and one law.

The centre of n photographs whose mean pairwise cosine is rho lies sqrt(n rho / (1 + (n - 1) rho))
of the way to the person, so few photographs make even one person's centres less alike. A pair's
strength is its cosine with some of that given back, on the scale of two single photographs.

How many pairs of two people reach a strength is read off the dataset's own pairs. Their strengths
fall as cosines of random directions do, density (1 - s^2)^d: count and d are fitted just below the
place where one person's pairs begin to show, and the law is extended upwards. What is found beyond
what it expects is one person; nothing is assumed of how alike the photographs of one person are
across cameras, poses or years. Pairs merge from the least strength on at which the wrong ones, a
Poisson number, are at most the stated share of all that merge, at 95 % confidence.
"""

# K pairs, C identities, B bins of strength, D embedding

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from glint.conflicts.evidence import Reals
from glint.search.pairs import unit64, usable

Ints = npt.NDArray[np.int64]
Centres = npt.NDArray[np.float32]

POWERS = (0.0, 0.25, 0.5)  # of what few photographs cost: how much is given back
STEP = 0.02  # of a bin
FEW = 60  # pairs in a bin of the tail, at least
MATES = 4.0  # times as many as where one person's pairs take over, too
WIDTH = 0.12  # of the part of the tail that the law is fitted to, at least
PAIRS = 2000  # in it, at least
SURE = 0.95  # confidence in the stated rate, given what the tail expects
DOUBT = 1.0  # standard errors that are added to that
MAY_BE = 0.05  # least probability of a masked pair, and of any two members of a group
UNLIKE, ALIKE, SAME = 0.8, 0.9, 0.95  # of what two random halves of one identity show
MANY_UNLIKE, FEW_SAME = 0.3, 0.2  # shares of the merges
FEW_PEOPLE = 0.02  # of identities
NOTES = {
    "halves": "",
    "mixed": "Pairs are less alike than two halves of one identity here, and others are as alike: "
    "look-alikes may be among them, so only pairs at least 0.9 as alike as halves merge.",
    "unlike": "The pairs are less alike than two halves of one identity here, as one person is "
    "from other cameras or poses: the simple rule decides, on cosine and counts alone.",
    "blind": "Nearly all pairs are as alike as one person's: what chance does cannot be told here, "
    "and none merges by itself; give --threshold.",
    "few": "The few pairs that stand out are less alike than two halves of one identity here, as "
    "siblings are: they are masked, and none merges by itself.",
}
NEAREST = 30  # sampled pairs of an identity, of the most alike
BLOCK = 8192  # identities that are compared at once
SAMPLED = 200_000_000  # pairs of centres compared to find them, at most


@dataclass(frozen=True)
class Compared:
    """K pairs of centres: their cosines and how many images either side has."""

    cosine_K: Reals
    n_K: Ints
    m_K: Ints

    def alike(self, rho: float) -> Reals:
        """Return the cosine over what two random halves of one identity show: 1 for those."""
        return np.asarray(self.cosine_K / halves_cosine(rho, self.n_K, self.m_K))

    def strength(self, rho: float, power: float) -> Reals:
        """Return the cosine, `power` of what few photographs cost given back; 1 x 1 keeps its own.

        So it is at most the cosine.
        """
        halves_K = halves_cosine(rho, self.n_K, self.m_K)
        return np.asarray(self.cosine_K * (rho / halves_K) ** power)


def halves_cosine(rho: float, n: Any, m: Any) -> Reals:
    """Return the centre cosine that n and m images of one identity, halved at random, show."""
    return np.asarray(_reach(n, rho) * _reach(m, rho))


def _reach(n: Any, rho: float) -> Reals:
    n_K = np.maximum(n, 1)
    return np.asarray(np.sqrt(n_K * rho / (1 + (n_K - 1) * rho)))


@dataclass(frozen=True)
class Sample:
    """The most alike of a random share of all pairs: every one from `least` on."""

    pairs: Compared
    least: float
    share: float


@dataclass(frozen=True)
class Tail:
    """Expected pairs of two people by strength: exp(place) (1 - s^2)^dims a bin of `STEP`.

    stop: the strength up to which it was fitted. middle, spread_3: of the law there, and the
    variances of place and dims about it and what they share.
    """

    place: float
    dims: float
    stop: float
    middle: float = 0.0
    spread_3: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def above(self, s: Any) -> Reals:
        """Return how many are expected to be as strong or stronger."""
        from scipy.special import betainc, betaln

        s_K = np.clip(np.asarray(s, np.float64), -1.0, 1.0)
        half = self.dims + 1.0
        whole = np.exp(self.place + betaln(0.5, half)) / STEP  # over all of -1 .. 1
        upper_K = 0.5 * betainc(half, 0.5, 1.0 - s_K**2)
        return np.asarray(whole * np.where(s_K >= 0, upper_K, 1.0 - upper_K))

    def at_most(self, s: Any) -> Reals:
        """Return the same with `DOUBT` standard errors of the fit on top."""
        far_K = np.log(1 - np.clip(s, -0.999, 0.999) ** 2) - self.middle
        place, dims, both = self.spread_3
        error_K = np.sqrt(np.maximum(place + dims * far_K**2 + 2 * both * far_K, 0.0))
        return np.asarray(self.above(s) * np.exp(np.minimum(DOUBT * error_K, 20.0)))


BLIND = Tail(40.0, 1.0, 1.0)  # chance makes any number of pairs of any strength


@dataclass(frozen=True)
class Likeness:
    """How strong a pair must be to merge, and how likely it is one person.

    fits: `halves`, the merges look like halves of one identity, and so do the `few` there are;
    `mixed`, look-alikes among them; `unlike`, they look like one person seen elsewhere. cut: the
    least strength that merges; least: and the least likeness. wrong: merges expected to be wrong
    by the law, and `most` at 95 %.
    """

    rho: float
    power: float
    tail: Tail
    cut: float
    least: float
    fits: str
    edge_B: Reals
    probability_B: Reals
    wrong: float
    most: int

    def merges(self, pairs: Compared) -> npt.NDArray[np.bool_]:
        """Return which pairs merge; not those whose cosine is NaN."""
        strong_K = self.strength(pairs) >= self.cut
        return np.asarray(strong_K & (pairs.alike(self.rho) >= self.least))

    def strength(self, pairs: Compared) -> Reals:
        """Return the strength of pairs at this model's rho and power."""
        return pairs.strength(self.rho, self.power)

    def probability(self, pairs: Compared) -> Reals:
        """Return P(one person), never less for a stronger pair; 0 where the tail was fitted."""
        s_K = np.nan_to_num(self.strength(pairs), nan=-2.0)
        place_K = np.searchsorted(self.edge_B, s_K, side="right") - 1
        return np.where(place_K < 0, 0.0, self.probability_B[np.maximum(place_K, 0)])

    @property
    def mask_cut(self) -> float:
        """Return the least strength of a pair that may be one person; infinite for none."""
        good_B = np.flatnonzero(self.probability_B >= MAY_BE)
        return float(self.edge_B[good_B[0]]) if len(good_B) else np.inf

    def merge_from(self, n: Any, m: Any) -> Reals:
        """Return the least likeness (1: two halves of one identity) at which n and m images merge.

        Infinite where nothing does.
        """
        return np.asarray(np.maximum(self._alike(self.cut, n, m), self.least))

    def mask_from(self, n: Any, m: Any) -> Reals:
        """Return the same of pairs that may be one person."""
        return np.asarray(np.maximum(self._alike(self.mask_cut, n, m), 0.0))

    def rare_from(self, n: Any, m: Any) -> Reals:
        """Return the same of pairs as strong as hardly any two people's are."""
        return self._alike(self.tail.stop, n, m)

    def _alike(self, strength: float, n: Any, m: Any) -> Reals:
        """Return the likeness of a pair of n and m images of this strength."""
        halves = Compared(halves_cosine(self.rho, n, m), np.asarray(n), np.asarray(m))
        return np.asarray(strength / self.strength(halves))

    def among(self, share: float) -> list[tuple[float, Tail]]:
        """Return the power and the law of `share` times as many pairs, as `fit` takes them."""
        place = self.tail.place + float(np.log(share))
        return [(self.power, replace(self.tail, place=place))]

    def about(self) -> dict[str, Any]:
        """Return plain numbers for conflicts.json."""
        return {
            "fits": self.fits, "note": NOTES[self.fits],
            "power": self.power, "dimensions": 2 * self.tail.dims + 3,
            "fitted_to": self.tail.stop, "cut": self.cut if np.isfinite(self.cut) else None,
            "least_likeness": self.least if np.isfinite(self.least) else None,
            "expected_wrong": self.wrong, "wrong_at_most": self.most, "confidence": SURE,
            "kind": "estimate",
        }  # fmt: skip


def sample(
    centre_CD: Centres, count_C: Ints, other_CD: Centres | None = None,
    other_C: Ints | None = None, *, seed: int = 0,
) -> Sample:  # fmt: skip
    """Compare some identities with all (of the other dataset), and keep the most alike pairs."""
    here = np.flatnonzero((count_C > 0) & usable(centre_CD))
    there_CD, there_C = (centre_CD, count_C) if other_CD is None else (other_CD, other_C)
    assert there_C is not None
    there = np.flatnonzero((there_C > 0) & usable(there_CD))
    some = min(len(here), 2000, max(64, SAMPLED // max(len(there), 1)))
    rows = np.sort(np.random.default_rng([seed, 6]).choice(here, some, replace=False))
    rows_D = unit64(centre_CD[rows]).astype(np.float32)
    least, cosine, n, m = -1.0, [], [], []
    for at in range(0, len(there), BLOCK):
        block = there[at : at + BLOCK]
        cosine_nC = rows_D @ unit64(there_CD[block]).astype(np.float32).T
        if other_CD is None:
            cosine_nC[rows[:, None] == block] = -2.0
        if at == 0:
            top = min(0.5, NEAREST / max(len(there), 1))
            least = float(np.quantile(cosine_nC, 1 - top))
        i, j = np.nonzero(cosine_nC >= least)
        cosine.append(cosine_nC[i, j].astype(np.float64))
        n.append(count_C[rows[i]])
        m.append(there_C[block[j]])
    ordered = 2.0 if other_CD is None else 1.0  # each pair of one dataset can be met twice
    kept = Compared(*(np.concatenate([*part, np.empty(0)]) for part in (cosine, n, m)))
    return Sample(kept, least, ordered * some / max(len(here), 1))


def _fit_law(strength_K: Reals, low: float, strength_S: Reals, least: float, share: float) -> Tail:
    """Fit the law to bins from `least` on: the sample's below `low`, from there all pairs."""
    edge_B = np.arange(np.ceil(least / STEP), np.ceil(1 / STEP) + 1) * STEP
    full_B = edge_B[:-1] >= low - 1e-9
    n_B = np.where(
        full_B, np.histogram(strength_K, edge_B)[0], np.histogram(strength_S, edge_B)[0]
    ).astype(np.float64)  # fmt: skip
    part_B = np.where(full_B, 1.0, share)
    if len(n_B) < 4:  # no room for a law
        return BLIND
    stop = _stop(n_B / part_B)
    first = max(0, stop - round(WIDTH / STEP))
    while first and n_B[first:stop].sum() < PAIRS:
        first -= 1
    here = slice(first, stop)
    law_B = np.log(1 - np.minimum((edge_B[:-1] + edge_B[1:]) / 2, 0.999) ** 2)
    return _poisson(n_B[here], part_B[here], law_B[here], float(edge_B[stop]))


def _stop(n_B: Reals) -> int:
    """Return the bin, at least the third, where the tail ends.

    That is where few pairs are left; and, where more follow, as one person's do, while there are
    still `MATES` times as many as in the valley before those.
    """
    few = min(FEW, max(10.0, 0.02 * float(n_B.sum())))
    three_B = np.convolve(n_B, np.ones(3), "valid")
    later_B = np.maximum.accumulate(three_B[::-1])[::-1]
    valley_B = three_B[later_B >= 2 * three_B + 10]
    if len(valley_B):
        few = max(few, MATES * float(valley_B.min()) / 3)
    low = np.flatnonzero(n_B < few)
    return max(int(low[0]) if len(low) else len(n_B) - 1, 3)


def _poisson(n_B: Reals, part_B: Reals, law_B: Reals, stop: float) -> Tail:
    """Fit log(n / part) = place + dims law by maximum likelihood, by Newton's method."""
    middle = float(law_B.mean())
    x_B2 = np.stack([np.ones_like(law_B), law_B - middle], axis=1)
    b_2 = np.array([np.log(max(float((n_B / part_B).mean()), 1e-9)), 30.0])
    for _ in range(200):
        mean_B = np.exp(np.clip(x_B2 @ b_2, -40, 40)) * part_B
        bend_22 = x_B2.T @ (mean_B[:, None] * x_B2) + 1e-9 * np.eye(2)
        move_2 = np.linalg.solve(bend_22, x_B2.T @ (n_B - mean_B))
        b_2 = b_2 + np.clip(move_2, -20, 20)
        if np.abs(move_2).max() < 1e-7:
            break
    dims = max(float(b_2[1]), 1.0)
    (place_, both), (_, dims_) = np.linalg.inv(bend_22).tolist()
    return Tail(float(b_2[0]) - dims * middle, dims, stop, middle, (place_, dims_, both))


def fit(
    pairs: Compared, low: float, seen: Sample, rho: float, people: int, rate: float,
    *, laws: Sequence[tuple[float, Tail]] | None = None,
) -> Likeness:  # fmt: skip
    """Learn from all pairs from cosine `low` on, and a sample of those below, what merges.

    Of three powers the one that merges most. people: identities that the pairs are of. laws:
    powers and the law of chance at each, where they are known already.
    """
    if laws is None:
        laws = []
        for power in POWERS:
            s_K, s_S = (one.strength(rho, power) for one in (pairs, seen.pairs))
            laws.append((power, _fit_law(s_K, low, s_S, seen.least, seen.share)))
    best: tuple[int, float, Tail, float] = (-1, 0.0, Tail(0.0, 1.0, 1.0), float("inf"))
    for power, tail in laws:
        s_K = pairs.strength(rho, power)
        cut, count = accept(s_K[s_K >= low], tail, rate)
        if count > best[0]:
            best = (count, power, tail, cut)
    _, power, tail, cut = best
    s_K, alike_K = pairs.strength(rho, power), pairs.alike(rho)
    fits, least = _fits(alike_K[s_K >= cut], people) if tail is not BLIND else ("blind", 0.0)
    edge_B, p_B = _probability(s_K, low, tail)
    merged = int(((s_K >= cut) & (alike_K >= least)).sum())
    wrong = float(tail.above(cut)) if merged else 0.0
    return Likeness(rho, power, tail, cut if np.isfinite(least) else np.inf, least, fits, edge_B,
                    p_B, wrong, _most(wrong) if merged else 0)  # fmt: skip


def accept(s_K: Reals, tail: Tail, rate: float) -> tuple[float, int]:
    """Return the least strength that merges and how many do: wrong ones at most the share `rate`.

    At 95 % confidence, where their number is Poisson with the mean that
    the tail expects.
    """
    from scipy.stats import poisson

    order_K = np.sort(s_K)[::-1]
    count_K = np.arange(1, len(order_K) + 1)
    good_K = poisson.cdf(np.floor(rate * count_K + 1e-9), tail.at_most(order_K)) >= SURE
    last = np.append(order_K[1:] != order_K[:-1], True)[: len(order_K)]  # equal ones together
    best = np.flatnonzero(good_K & last)
    return (float(order_K[best[-1]]), int(best[-1]) + 1) if len(best) else (float("inf"), 0)


def _most(wrong: float) -> int:
    from scipy.stats import poisson

    return int(poisson.ppf(SURE, wrong))


def _fits(alike_K: Reals, people: int) -> tuple[str, float]:
    """Return how the pairs above the cut look, and from which likeness on they merge."""
    if not len(alike_K) or float((alike_K < UNLIKE).mean()) <= MANY_UNLIKE:
        return "halves", 0.0
    if float((alike_K >= SAME).mean()) >= FEW_SAME:
        return "mixed", ALIKE
    return ("unlike", 0.0) if len(alike_K) >= FEW_PEOPLE * people else ("few", float("inf"))


def _probability(s_K: Reals, low: float, tail: Tail) -> tuple[Reals, Reals]:
    """Return bins from `low` on and one less the share that chance expects in each, rising.

    0 up to where the tail was fitted: what is there is chance by assumption.
    """
    edge_B = np.arange(np.ceil(low / STEP - 1e-9), round(1 / STEP) + 1) * STEP
    n_B = np.histogram(s_K, np.append(edge_B, np.inf))[0].astype(np.float64)
    above_B = np.append(tail.above(edge_B), 0.0)
    chance_B = above_B[:-1] - above_B[1:]
    blocks: list[list[float]] = []  # found, expected, bins: pooled until the share falls
    for found, expected in zip(n_B.tolist(), chance_B.tolist()):
        blocks.append([found, expected, 1.0])
        while len(blocks) > 1 and blocks[-1][1] * blocks[-2][0] >= blocks[-2][1] * blocks[-1][0]:
            last = blocks.pop()
            blocks[-1] = [x + y for x, y in zip(blocks[-1], last)]
    share_B = np.repeat(
        [min(expected / max(found, 1e-12), 1.0) for found, expected, _ in blocks],
        [int(bins) for *_, bins in blocks],
    )
    p_B: Reals = np.where(edge_B < tail.stop - 1e-9, 0.0, 1.0 - np.asarray(share_B))
    return edge_B.astype(np.float64), p_B
