"""Inside an identity: images that show somebody else, and two people under one label.

An image that is like a stranger to its own identity and may be one of another one's is flagged by
that alone. For who stands nowhere else, and for two people under one label:
both are scored as `conflicts.evidence` does, where one person is 1, against two draws from the
same dataset: what images and halves of its identities show, and what strangers show. A photograph
that is merely hard lies far from its own kind, but not as far as a stranger.
"""

# n images of an identity, S draws, f images found, D embedding

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from glint import log
from glint.conflicts import calibrate, evidence
from glint.conflicts.evidence import Reals, Samples
from glint.log import Progress

LEAST = 3  # images without which nothing is concluded: of an identity, of a side of a split
MORE = 0.1  # of cosine, that an image is nearer to another identity than to its own
LOOKED = 128  # images of an identity that are compared all with all, at most
TRIM = 0.25  # of an identity's images, the farthest, are left out of its mean
FALSE_FLAGS = 0.001  # of right images, and of identities of one person, that are flagged
WRONG_FLAGS = 0.05  # or, of those that are flagged
SPREADS = 4.0  # below what the dataset's own images and cuts show, at least
STEP = 0.5  # spreads, of the histogram that the cut is read off
STRANGERS = 2.326  # spreads above strangers' location: 99 % of images score lower
STRANGER_SETS = 3.09  # 99.9 % of pairs of identities do
ROBUST = ((0.841, 1.0),)  # the tail that shows a spread, of the half that nothing spoils

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Elsewhere = Callable[[Ints, Reals], Flags]
Units = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Outliers:
    """f images far from their identity's other images, the farthest first.

    cosine: to the trimmed mean of the others; score: that over what one person shows; z: spreads
    below the dataset's own images; elsewhere: may be one of another identity, and is nearer to it.
    """

    row: Ints
    cosine: Reals
    score: Reals
    z: Reals
    elsewhere: Flags


@dataclass(frozen=True)
class Mixed:
    """An identity whose images fall into two sets (the larger first) that are strangers.

    cosine: mean over pairs across; within: the same inside the looser set.
    """

    label: int
    one: Ints
    two: Ints
    cosine: float
    within: float
    score: float
    z: float


def find_outliers(
    samples: Samples,
    prior: float,
    *,
    elsewhere: Elsewhere | None = None,
    mixed: Sequence[Mixed] = (),
    seed: int = 0,
    progress: Progress = log.silent,
) -> Outliers:
    """Find images that score as strangers do, and who are somebody else or farther off than others.

    elsewhere: says of rows, with their cosines to their own identity, which may be one of another
    identity, and are nearer to it by `MORE`. Without: farther off than the dataset's own images,
    in identities of 3 images or more. `mixed` identities are left out, whose images lie far from
    both. None where fewer than 20 can be drawn.
    """
    rng = np.random.default_rng([seed, 3])
    two = [one.label for one in mixed]
    many = np.setdiff1d(np.flatnonzero(samples.count_C >= (2 if elsewhere else LEAST)), two)
    other = rng.permutation(many)  # whose image is the stranger
    rows, x, score, cosine, strange = [], [], [], [], []
    for done, (label, guest) in enumerate(zip(many.tolist(), other.tolist()), 1):
        row_n = samples.rows(label, int(samples.count_C[label]))
        x_nD = samples.unit(row_n)
        mean_nD, count_n, rho = _others(x_nD, prior)
        cosine_n = (x_nD * mean_nD).sum(axis=1).astype(np.float64)
        size, place_n = np.unique(count_n, return_inverse=True)  # two at most
        own_n = np.array([evidence.centre_cosine(rho, rho, 1, int(k)) for k in size])[place_n]
        rows.append(row_n)
        x.append(1.0 + 1.0 / count_n)
        cosine.append(cosine_n)
        score.append(cosine_n / own_n)
        if guest != label:
            [g_D] = samples.unit(samples.rows(guest, 1))
            last = int(np.argmax(count_n))  # its mean is over most images
            strange.append((float(x[-1][last]), float(mean_nD[last] @ g_D / own_n[last])))
        progress(done, len(many))
    if len(strange) < calibrate.ENOUGH:
        none = np.empty(0, np.float64)
        return Outliers(np.empty(0, np.int64), none, none, none, np.empty(0, bool))
    x_S, score_S, cosine_S = (np.concatenate(each) for each in (x, score, cosine))
    own = calibrate.fit(x_S, score_S, upper=True, tails=ROBUST)
    foe = calibrate.fit(*np.array(strange).T, upper=True, tails=ROBUST)
    z_S = (own.location(x_S) - score_S) / own.spread(x_S)
    far = score_S <= foe.location(x_S) + STRANGERS * foe.spread(x_S)
    flagged_S = (z_S >= far_from(z_S)) & far & (x_S < 2.0)  # of two images neither is alone
    other_S = np.zeros(len(far), bool)
    if elsewhere is not None:
        look = np.flatnonzero(far)
        other_S[look] = elsewhere(np.concatenate(rows)[look], cosine_S[look])
    found = np.flatnonzero(flagged_S | other_S)
    found = found[np.lexsort((np.concatenate(rows)[found], -z_S[found]))]
    row_f, other_f = np.concatenate(rows)[found], other_S[found]
    return Outliers(row_f, cosine_S[found], score_S[found], z_S[found], other_f)


def far_from(z_S: Reals) -> float:
    """Return the distance from which images or cuts are flagged, 4 spreads or more.

    z_S: distances from the median of all, the wrong ones too. What is right gets rarer with the
    distance, so there is no more of it than the least that was seen nearer by; a hump beyond is of
    the wrong. Beyond the cut lie at most one right in 1,000, or one in 20 of all that lie there.
    """
    edge = np.arange(0.0, max(float(z_S.max()), SPREADS) + 2 * STEP, STEP)
    count = np.histogram(z_S, edge)[0].astype(np.float64)
    right = np.minimum.accumulate(count)[::-1].cumsum()[::-1]  # at most, from each edge on
    beyond = count[::-1].cumsum()[::-1]
    allowed = np.maximum(FALSE_FLAGS * len(z_S), WRONG_FLAGS * beyond)
    cut = edge[:-1][(right <= allowed) & (edge[:-1] >= SPREADS)]
    return float(cut[0]) if len(cut) else float(edge[-1])


def _others(x_nD: Units, prior: float) -> tuple[Units, Ints, float]:
    """Return for each image the unit mean of the others, trimmed, over how many; and their rho."""
    whole_n = x_nD @ x_nD.sum(axis=0)
    most = max(2, int(np.ceil(len(x_nD) * (1 - TRIM))))
    kept = np.argsort(-whole_n, kind="stable")[:most]
    inside_n1 = np.zeros((len(x_nD), 1), np.float32)
    inside_n1[kept] = 1
    sum_nD = x_nD[kept].sum(axis=0) - inside_n1 * x_nD
    norm_n1 = np.linalg.norm(sum_nD, axis=1, keepdims=True)
    count_n = len(kept) - inside_n1[:, 0].astype(np.int64)
    rho = float(evidence.shrunk(evidence.mean_cosine(x_nD[kept]), len(kept), prior))
    return sum_nD / np.maximum(norm_n1, 1e-12), count_n, rho


def find_mixed(
    samples: Samples, prior: float, *, seed: int = 0, progress: Progress = log.silent
) -> list[Mixed]:
    """Find identities that are two people, by the best cut of average linkage, strangest first.

    A cut leaves at least 3 images on either side; an identity is mixed where its sides score no
    higher than 99.9 % of pairs of identities do, and lower than the cuts of the dataset's own
    identities. None where fewer than 20 identities of 6 images, or pairs, can be drawn.
    """
    rng = np.random.default_rng([seed, 4])
    many = np.flatnonzero(samples.count_C >= 2 * LEAST)
    drawn = set(rng.choice(many, min(calibrate.DRAWS, len(many)), replace=False).tolist())
    strangers = calibrate.impostor(samples, prior, seed=seed)
    if not strangers.enough or len(drawn) < calibrate.ENOUGH:
        return []
    foe = calibrate.fit(strangers.x_S, strangers.score_S, upper=True, tails=ROBUST)
    limit = float((foe.location(np.ones(1)) + STRANGER_SETS * foe.spread(np.ones(1)))[0])
    cuts: list[tuple[float, Mixed]] = []
    own: list[float] = []
    for done, label in enumerate(many.tolist(), 1):
        row_n = samples.rows(label, LOOKED)
        x_nD = samples.unit(row_n)
        cosine_nn = x_nD @ x_nD.T
        # A cut scores no less than the two images farthest apart: most labels end here.
        near = float(cosine_nn.min()) > limit
        if not near or label in drawn:
            one, two = _cut(cosine_nn)
            score, _ = evidence.score(samples, row_n[one], row_n[two], prior)
            if label in drawn:
                own.append(score)
            if len(two) >= LEAST:
                within = min(evidence.mean_cosine(x_nD[side]) for side in (one, two))
                across = float(cosine_nn[np.ix_(one, two)].mean())
                x = 1 / len(one) + 1 / len(two)
                cuts.append((x, Mixed(label, row_n[one], row_n[two], across, within, score, 0.0)))
        progress(done, len(many))
    x_K, score_K = np.array([(x, cut.score) for x, cut in cuts]).reshape(-1, 2).T
    # One place and spread for all: people's own cuts are lopsided, so by x mixed ones would rule.
    place, high = np.quantile(own, [0.5, ROBUST[0][0]])
    spread = max(high - place, 1e-3)
    z_K = (place - score_K) / spread
    least = far_from((place - np.array(own)) / spread)
    far_K = score_K <= foe.location(x_K) + STRANGER_SETS * foe.spread(x_K)
    kept = [
        replace(cut, z=float(z))
        for (_, cut), z, far in zip(cuts, z_K, far_K)
        if z >= least and far and cut.within > cut.cosine
    ]
    return sorted(kept, key=lambda cut: (cut.score, cut.label))


def _cut(cosine_nn: Units) -> tuple[Ints, Ints]:
    """Cut two images or more in two by average linkage, the larger side first.

    The topmost join of two sets of 3 or more, or of sets as near to that as there are. Images that
    join above it lie far from both and are left out.
    """
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    apart_nn = np.clip(1.0 - cosine_nn.astype(np.float64), 0.0, 2.0)
    np.fill_diagonal(apart_nn, 0.0)
    members: list[list[int]] = [[i] for i in range(len(cosine_nn))]
    best: tuple[list[int], list[int]] = ([], [])
    for left, right, _, _ in linkage(squareform(apart_nn, checks=False), "average"):
        a, b = members[int(left)], members[int(right)]
        if min(len(a), len(b), LEAST) >= min(len(best[0]), len(best[1]), LEAST):
            best = (a, b)  # joins come from the nearest on: the last is the topmost
        members.append(a + b)
    one, two = (np.array(sorted(side), np.int64) for side in sorted(best, key=len, reverse=True))
    return one, two
