"""Which pairs of identities are one person: search, verify by samples, judge, group."""

# N samples, C classes as sharded, K pairs, D embedding

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glint import log
from glint.conflicts import calibrate, chance, evidence, groups
from glint.conflicts.calibrate import Calibration
from glint.conflicts.chance import Compared
from glint.conflicts.evidence import Evidence, Reals, Samples
from glint.conflicts.groups import Groups
from glint.conflicts.judge import Judge
from glint.errors import UsageError
from glint.log import Progress, logger
from glint.search import cross
from glint.search.pairs import Pairs, cosines, pairs_above

ACROSS = 20_000  # pairs of two datasets without which chance is not read off them

Ints = npt.NDArray[np.int64]
Centres = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ConflictOptions:
    """What a user may choose. threshold: merge at this centre cosine instead of the learned
    strength. low: search from this cosine; None = from the dataset. cap: identities in one group.
    rate: share of the merges that may be wrong, rounded down to whole pairs.
    """

    threshold: float | None = None
    low: float | None = None
    cap: int = 8
    engine: str = "auto"
    seed: int = 0
    rate: float = 0.01

    def __post_init__(self) -> None:
        for name, value in (("--threshold", self.threshold), ("--low", self.low)):
            if value is not None and not -1 <= value <= 1:
                raise UsageError(
                    "GL0002", f"expected a cosine, from -1 to 1, found {value}", where=name
                )
        if not 0 < self.rate < 1:
            raise UsageError(
                "GL0002",
                f"expected a share between 0 and 1, found {self.rate}",
                where="--false-merge-rate",
            )
        if self.seed < 0:
            raise UsageError("GL0002", f"expected at least 0, found {self.seed}", where="--seed")
        if self.cap < 2:
            raise UsageError("GL0002", f"expected at least 2, found {self.cap}", where="--cap")


@dataclass(frozen=True)
class Judged:
    """K pairs of an identity (a) and another one (b), perhaps of another dataset, with verdicts.

    n_a, n_b: usable images of either. probability: that a pair is one person, NaN where the judge
    has no model of likeness.
    """

    pairs: Pairs
    evidence: Evidence
    n_a: Ints
    n_b: Ints
    verdict: npt.NDArray[np.str_]
    probability: Reals
    judge: Judge


@dataclass(frozen=True)
class Found(Judged):
    """All conflicts of a dataset: its pairs as sharded, the groups, and what was calibrated.

    reason: why a pair that would merge by itself does not, empty for others.
    """

    reason: list[str]
    groups: Groups
    calibration: Calibration

    @property
    def wrong(self) -> float:
        """Return how many merges are expected to be wrong; NaN where there is no model."""
        likeness = self.judge.likeness
        if likeness is None or self.judge.threshold is not None:  # the law's cut is not the user's
            return float("nan")
        return likeness.wrong


def search_from(calibration: Calibration, samples: Samples, options: ConflictOptions) -> float:
    """Return the centre cosine to search pairs of identities from."""
    people = int((samples.count_C > 0).sum())
    low = calibration.search_from(people) if options.low is None else options.low
    return low if options.threshold is None else min(low, options.threshold)


def find(
    centre_CD: Centres,
    samples: Samples,
    target_C: Ints,
    options: ConflictOptions,
    *,
    work: Path | None = None,
    calibration: Calibration | None = None,
    device: str = "cpu",
    progress: Progress = log.silent,
) -> Found:
    """Search, verify and judge pairs of identities.

    target_C: the labels in force; pairs that they merge and identities they drop are left out.
    work: a folder that keeps what is searched, from which the same call goes on. calibration: of
    these samples by the seed of `options`, where it is there already. device: of the search.
    """
    calibration = calibration or calibrate.calibrate(samples, seed=options.seed)
    if not calibration.calibrated:
        logger.warning(
            "too few identities have two images (%d splits, at least %d needed): "
            "no pair merges by itself; give --threshold",
            len(calibration.genuine.score_S),
            calibrate.ENOUGH,
        )
    count_C = samples.count_C
    people = int((count_C > 0).sum())
    low = search_from(calibration, samples, options)
    pairs = pairs_above(
        centre_CD, low, engine=options.engine, device=device, work=work, progress=progress
    )
    pairs = _open_pairs(pairs, target_C)
    proof = evidence.collect(
        samples, pairs.a, pairs.b, pairs.cosine, calibration.prior, progress=progress
    )
    compared, likeness = Compared(pairs.cosine, count_C[pairs.a], count_C[pairs.b]), None
    if calibration.calibrated:
        seen = chance.sample(centre_CD, count_C, seed=options.seed)
        likeness = chance.fit(compared, low, seen, calibration.prior, people, options.rate)
    judge = Judge(likeness, low, options.threshold)
    verdict, probability = judge.judge(compared)

    def together(a: Ints, b: Ints) -> tuple[Reals, Reals]:
        cosine = cosines(centre_CD, a, b)
        return judge.together(Compared(cosine, count_C[a], count_C[b]))

    merge = verdict == "merge"
    joined = groups.guarded(pairs.a[merge], pairs.b[merge], together, cap=options.cap)
    reason = [""] * len(verdict)
    why = {int(label): text for piece, text in joined.refused for label in piece}
    for k in np.flatnonzero(merge):
        if int(pairs.a[k]) in why:
            verdict[k], reason[k] = "mask", why[int(pairs.a[k])]
    return Found(
        pairs, proof, compared.n_K, compared.m_K, verdict, probability, judge,
        reason, joined, calibration,
    )  # fmt: skip


def across(
    found: Found,
    centre_CD: Centres,
    samples: Samples,
    target_C: Ints,
    other_CD: Centres,
    others: Samples,
    other_target_C: Ints,
    options: ConflictOptions,
    *,
    also: Ints,
    progress: Progress = log.silent,
) -> Judged:
    """Judge identities here (a) against those of another dataset (b) as `find` judges one.

    Search threshold and rho are this dataset's; what chance makes of pairs across is learned from
    them. Identities that the labels in force drop are left out on both sides. also: pairs to judge
    below the search threshold, int64 [_, 2].
    """
    low, prior = found.judge.low, found.calibration.prior
    pairs = cross.pairs_across(centre_CD, other_CD, low, progress=progress)
    open_K = (target_C[pairs.a] >= 0) & (other_target_C[pairs.b] >= 0)
    both = np.stack([pairs.a[open_K], pairs.b[open_K]], axis=1)
    a, b = np.unique(np.concatenate([both, also]), axis=0).T
    cosine = cosines(centre_CD, a, b, other_CD)
    proof = evidence.collect(samples, a, b, cosine, prior, others=others, progress=progress)
    compared, likeness = Compared(cosine, samples.count_C[a], others.count_C[b]), None
    here, there = (int((one.count_C > 0).sum()) for one in (samples, others))
    if found.judge.likeness is not None and min(here, there):
        seen = chance.sample(
            centre_CD, samples.count_C, other_CD, others.count_C, seed=options.seed
        )
        laws = None
        if here * there < ACROSS:  # too few to tell: chance is as in this dataset
            laws = found.judge.likeness.among(here * there / (here * (here - 1) / 2))
        likeness = chance.fit(compared, low, seen, prior, min(here, there), options.rate, laws=laws)
    judge = Judge(likeness, low, options.threshold)
    verdict, probability = judge.judge(compared)
    kept = Pairs(a, b, cosine, pairs.excluded, pairs.engine)
    return Judged(kept, proof, compared.n_K, compared.m_K, verdict, probability, judge)


def _open_pairs(pairs: Pairs, target_C: Ints) -> Pairs:
    """Leave out pairs that the labels in force have merged already, and dropped identities."""
    one, two = target_C[pairs.a], target_C[pairs.b]
    keep = (one != two) & (one >= 0) & (two >= 0)
    return Pairs(pairs.a[keep], pairs.b[keep], pairs.cosine[keep], pairs.excluded, pairs.engine)
