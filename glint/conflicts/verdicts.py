"""Which pairs of identities are one person: search, verify by samples, judge, group."""

# N samples, C classes as sharded, K pairs, D embedding

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glint import log
from glint.conflicts import calibrate, chance, evidence, groups
from glint.conflicts.calibrate import Drawn, Scale
from glint.conflicts.chance import MAY_BE, Compared, Judge
from glint.conflicts.evidence import Evidence, Reals, Samples
from glint.conflicts.groups import Groups
from glint.errors import UsageError
from glint.log import Progress, logger
from glint.search import cross
from glint.search import pairs as knn
from glint.search.pairs import Pairs

LOW = 0.4  # pairs of centres below this cosine are not looked at, where the embedder allows
ACROSS = 20_000  # pairs of two datasets without which chance is not read off them
PER_IDENTITY = 10  # pairs by chance per identity that the search may return

Ints = npt.NDArray[np.int64]
Centres = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Options:
    """What a user may choose. threshold: merge at this centre cosine instead of the learned
    strength. low: search from this cosine; None = from the dataset. cap: identities in one group.
    rate: share of the merges that may be wrong, rounded up to whole pairs.
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
class Found:
    """All that was found: K pairs as sharded with verdicts, the groups, and how it was judged.

    probability: that a pair is one person, NaN where there is no `model`. wrong: merges expected to
    be wrong by it.
    """

    pairs: Pairs
    evidence: Evidence
    n_a: Ints
    n_b: Ints
    verdict: npt.NDArray[np.str_]
    reason: list[str]
    groups: Groups
    scale: Scale
    genuine: Drawn
    low: float
    probability: Reals
    wrong: float
    model: Judge | None


@dataclass(frozen=True)
class Across:
    """Pairs of an identity here (a) and one of another dataset (b), judged as `Found` judges.

    model: learned from these pairs.
    """

    pairs: Pairs
    evidence: Evidence
    n_a: Ints
    n_b: Ints
    verdict: npt.NDArray[np.str_]
    probability: Reals
    model: Judge | None


def find(
    centre_CD: Centres,
    samples: Samples,
    target_C: Ints,
    options: Options,
    *,
    work: Path | None = None,
    progress: Progress = log.silent,
) -> Found:
    """Search, verify and judge pairs of identities.

    target_C: the labels in force; pairs that they merge and identities they drop are left out.
    work: a folder that keeps what is searched, from which the same call goes on.
    """
    scale, genuine, impostor = calibrate.calibrate(samples, seed=options.seed)
    if not scale.calibrated:
        logger.warning(
            "too few identities have two images (%d splits, at least %d needed): "
            "no pair merges by itself; give --threshold",
            scale.genuine_splits,
            calibrate.ENOUGH,
        )
    people = int((samples.count_C > 0).sum())
    low = _low(options, genuine, impostor, people)
    pairs = knn.pairs_above(centre_CD, low, engine=options.engine, work=work, progress=progress)
    pairs = _open_pairs(pairs, target_C)
    proof = evidence.collect(
        samples, pairs.a, pairs.b, pairs.cosine, scale.prior, progress=progress
    )
    n_a, n_b = samples.count_C[pairs.a], samples.count_C[pairs.b]
    compared, model = Compared(pairs.cosine, n_a, n_b), None
    if scale.calibrated:
        seen = chance.sample(centre_CD, samples.count_C, seed=options.seed)
        model = chance.learn(compared, low, seen, scale.prior, people, options.rate)
    verdict, probability = judge(compared, model, options)

    def strength(a: Ints, b: Ints) -> tuple[Reals, Reals]:
        cosine = knn.cosines(centre_CD, a, b)
        if options.threshold is not None or model is None:
            return cosine, np.full(len(a), low)
        both = Compared(cosine, samples.count_C[a], samples.count_C[b])
        return model.probability(both), np.full(len(a), MAY_BE)

    merge = verdict == "merge"
    made = groups.guarded(pairs.a[merge], pairs.b[merge], strength, cap=options.cap)
    reason = [""] * len(verdict)
    why = {int(label): text for piece, text in made.refused for label in piece}
    for k in np.flatnonzero(merge):
        if int(pairs.a[k]) in why:
            verdict[k], reason[k] = "mask", why[int(pairs.a[k])]
    wrong = float("nan") if model is None else model.wrong
    return Found(
        pairs, proof, n_a, n_b, verdict, reason, made, scale, genuine, low, probability, wrong,
        model,
    )  # fmt: skip


def across(
    found: Found,
    centre_CD: Centres,
    samples: Samples,
    target_C: Ints,
    other_CD: Centres,
    others: Samples,
    other_target_C: Ints,
    options: Options,
    *,
    also: Ints,
    progress: Progress = log.silent,
) -> Across:
    """Judge identities here against those of another dataset as `find` judges one.

    Search threshold and rho are this dataset's; what chance makes of pairs across is learned from
    them. Identities that the labels in force drop are left out on both sides. also: pairs to judge
    below the search threshold, int64 [_, 2].
    """
    pairs = cross.pairs_across(centre_CD, other_CD, found.low, progress=progress)
    open_K = (target_C[pairs.a] >= 0) & (other_target_C[pairs.b] >= 0)
    both = np.stack([pairs.a[open_K], pairs.b[open_K]], axis=1)
    a, b = np.unique(np.concatenate([both, also]), axis=0).T
    cosine = knn.cosines(centre_CD, a, b, other_CD)
    proof = evidence.collect(
        samples, a, b, cosine, found.scale.prior, others=others, progress=progress
    )
    n_a, n_b = samples.count_C[a], others.count_C[b]
    compared, model = Compared(cosine, n_a, n_b), None
    here, there = (int((one.count_C > 0).sum()) for one in (samples, others))
    if found.model is not None and min(here, there):
        seen = chance.sample(
            centre_CD, samples.count_C, other_CD, others.count_C, seed=options.seed
        )
        tails = None
        if here * there < ACROSS:  # too few to tell: chance is as in this dataset
            tails = found.model.among(here * there / (here * (here - 1) / 2))
        model = chance.learn(
            compared, found.low, seen, found.model.rho, min(here, there), options.rate, tails=tails
        )
    verdict, probability = judge(compared, model, options)
    kept = Pairs(a, b, cosine, pairs.excluded, pairs.engine)
    return Across(kept, proof, n_a, n_b, verdict, probability, model)


def judge(
    pairs: Compared, model: Judge | None, options: Options
) -> tuple[npt.NDArray[np.str_], Reals]:
    """Give each of K pairs its verdict (merge, mask or keep) and P(one person), NaN for no model.

    `options.threshold` replaces what the model merges, not what it masks.
    """
    probability = np.full(len(pairs.cosine_K), np.nan)
    same = np.zeros(len(probability), bool)
    if model is not None:
        probability, same = model.probability(pairs), model.merges(pairs)
    if options.threshold is not None:
        same = pairs.cosine_K >= options.threshold
    may_be = probability >= MAY_BE
    return np.where(same, "merge", np.where(may_be, "mask", "keep")), probability


def _low(options: Options, genuine: Drawn, impostor: Drawn, classes: int) -> float:
    """Choose the search threshold: low enough for one person, high enough against chance.

    At most 0.4; lower where 1 % of split identities lie lower; higher where more than ten pairs
    per identity would come by chance.
    """
    from scipy.stats import norm

    if options.low is not None:
        low = options.low
    else:
        low = LOW
        if len(genuine.cosine_S) >= calibrate.ENOUGH:
            low = min(low, float(np.quantile(genuine.cosine_S, 0.01)))
        if len(impostor.cosine_S) >= calibrate.ENOUGH:
            middle, high = np.quantile(impostor.cosine_S, [0.5, 0.975])
            rate = min(2 * PER_IDENTITY / max(classes, 1), 0.5)
            low = max(low, float(middle + norm.isf(rate) * (high - middle) / 1.96))
    return low if options.threshold is None else min(low, options.threshold)


def _open_pairs(pairs: Pairs, target_C: Ints) -> Pairs:
    """Leave out pairs that the labels in force have merged already, and dropped identities."""
    one, two = target_C[pairs.a], target_C[pairs.b]
    keep = (one != two) & (one >= 0) & (two >= 0)
    return Pairs(pairs.a[keep], pairs.b[keep], pairs.cosine[keep], pairs.excluded, pairs.engine)
