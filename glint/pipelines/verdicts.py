"""Which pairs of identities are one person: search, verify by samples, judge, group."""

# N samples, C classes as sharded, K pairs, D embedding

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glint import log
from glint.errors import UsageError
from glint.log import Progress, logger
from glint.search import alike, calibrate, cross, evidence, groups, knn
from glint.search.calibrate import Drawn, Scale
from glint.search.evidence import Evidence, Reals, Samples
from glint.search.groups import Groups
from glint.search.knn import Pairs

LOW = 0.4  # pairs of centres below this cosine are not looked at, where the embedder allows
MAY_BE = 0.05  # least probability of a masked pair, and of any two members of a group
PER_IDENTITY = 10  # pairs by chance per identity that the search may return

Ints = npt.NDArray[np.int64]
Centres = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Options:
    """What a user may choose. threshold: merge at this centre cosine instead of the calibrated
    score. low: search from this cosine; None = from the dataset. cap: identities in one group.
    rate: expected share of wrong merges among all merges.
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
    model: alike.Mixture | None


@dataclass(frozen=True)
class Across:
    """Pairs of an identity here (a) and one of another dataset (b), judged as `Found` judges."""

    pairs: Pairs
    evidence: Evidence
    n_a: Ints
    n_b: Ints
    verdict: npt.NDArray[np.str_]
    probability: Reals


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
    model = alike.fit(samples, genuine, impostor, seed=options.seed)
    if model is not None:
        scale = replace(scale, model=True)
    if scale.genuine is None:
        logger.warning(
            "too few identities have two images (%d splits, at least %d needed): "
            "no pair merges by itself; give --threshold",
            scale.genuine_splits,
            calibrate.ENOUGH,
        )
    low = _low(options, genuine, impostor, int((samples.count_C > 0).sum()))
    pairs = knn.pairs_above(centre_CD, low, engine=options.engine, work=work, progress=progress)
    pairs = _open_pairs(pairs, target_C)
    proof = evidence.collect(
        samples, pairs.a, pairs.b, pairs.cosine, scale.prior, progress=progress
    )
    n_a, n_b = samples.count_C[pairs.a], samples.count_C[pairs.b]
    probability = np.full(len(pairs.a), np.nan)
    if model is not None:
        rho_C = alike.mean_cosines(samples, np.union1d(pairs.a, pairs.b))
        sides = alike.Sides(n_a, n_b, rho_C[pairs.a], rho_C[pairs.b], pairs.cosine)
        classes = int((samples.count_C > 0).sum())
        model = model.counted(sides, low, classes * (classes - 1) / 2)
        probability = model.probability(sides)
    verdict = judge(pairs.cosine, proof.score, probability, n_a, n_b, scale, options)

    def strength(a: Ints, b: Ints) -> tuple[Reals, Reals]:
        cosine = knn.cosines(centre_CD, a, b)
        if options.threshold is not None:
            return cosine, np.full(len(a), low)
        if model is not None:
            n, m = samples.count_C[a], samples.count_C[b]
            both = alike.Sides(n, m, rho_C[a], rho_C[b], cosine)
            return model.probability(both), np.full(len(a), MAY_BE)
        score = evidence.collect(samples, a, b, cosine, scale.prior).score
        return score, scale.mask_from(samples.count_C[a], samples.count_C[b])

    merge = verdict == "merge"
    made = groups.guarded(pairs.a[merge], pairs.b[merge], strength, cap=options.cap)
    reason = [""] * len(verdict)
    why = {int(label): text for piece, text in made.refused for label in piece}
    for k in np.flatnonzero(merge):
        if int(pairs.a[k]) in why:
            verdict[k], reason[k] = "mask", why[int(pairs.a[k])]
    wrong = float((1.0 - probability[verdict == "merge"]).sum())
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
    """Judge identities here against those of another dataset, on the scale of `found`.

    Thresholds, model and search threshold are this dataset's; identities that the labels in force
    drop are left out on both sides. also: pairs to judge below the search threshold, int64 [_, 2].
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
    probability = np.full(len(a), np.nan)
    if found.model is not None:
        here_C, there_C = alike.mean_cosines(samples, a), alike.mean_cosines(others, b)
        some_a, some_b = np.maximum(n_a, 1), np.maximum(n_b, 1)  # none: the cosine is NaN
        sides = alike.Sides(some_a, some_b, here_C[a], there_C[b], cosine)
        count = float((samples.count_C > 0).sum()) * float((others.count_C > 0).sum())
        probability = found.model.counted(sides, found.low, max(count, 1.0)).probability(sides)
    verdict = judge(cosine, proof.score, probability, n_a, n_b, found.scale, options)
    kept = Pairs(a, b, cosine, pairs.excluded, pairs.engine)
    return Across(kept, proof, n_a, n_b, verdict, probability)


def judge(
    cosine: Reals,
    score: Reals,
    probability: Reals,
    n_a: Ints,
    n_b: Ints,
    scale: Scale,
    options: Options,
) -> npt.NDArray[np.str_]:
    """Give each of K pairs its verdict: merge, mask or keep.

    With a model, the most probable pairs merge as long as the expected share of wrong merges is at
    most `options.rate`, but none that scores lower than one person does.
    """
    known = np.where(np.isnan(score), -np.inf, score)
    if scale.model:
        may_be = probability >= MAY_BE
        same = alike.accept(probability, options.rate) & (known >= scale.own_from(n_a, n_b))
    else:
        may_be = known >= scale.mask_from(n_a, n_b)
        same = known >= scale.merge_from(n_a, n_b)
    if options.threshold is not None:
        same = cosine >= options.threshold
    return np.where(same, "merge", np.where(may_be, "mask", "keep"))


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
