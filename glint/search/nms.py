"""Face-NMS: of faces of one identity that look alike, keep one, by greedy suppression.

Source: Face-NMS (arXiv 2109.04698), reconstructed from its abstract: faces are ranked by what they
add to the overall sparsity of an identity, and of a pair with high similarity the superfluous one
goes. Scores, thresholds and guards are ours: docs/coreset.md.
"""

# N samples, D embedding, C identities, m samples in a ranking, g identities of one batch,
# n samples of the largest of them, p some of those, t thresholds tried together

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glint import log
from glint.errors import UsageError
from glint.log import Progress

ROOM = 1 << 23  # numbers of one array of a batch: 32 MiB in float32
TRIES = 32  # thresholds tried in one pass over the samples
PASSES = 4  # each narrows the threshold by TRIES: to 2e-6 of cosine
ROUNDS = 10  # of moving sub-centres to the mean of the faces nearest to them

KEPT, RESTORED, SIMILAR, OUTLIER, NO_EMBEDDING, NO_IDENTITY, POOR = range(7)
REASONS = ("kept", "restored", "similar", "outlier", "no-embedding", "no-identity", "low-quality")

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Samples = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Ranking:
    """The samples that take part, identity by identity, the greatest contribution first.

    row_m: their rows; first_C: where each identity begins, C + 1; score_N: minus the mean cosine
    to the other faces of the identity, NaN where a sample takes no part; reason_N: of `REASONS`,
    KEPT for those that take part; uncleaned: identities left as they were, as cleaning would have
    left fewer than `least` faces.
    """

    row_m: Ints
    first_C: Ints
    score_N: F32
    reason_N: npt.NDArray[np.uint8]
    uncleaned: int


@dataclass(frozen=True)
class Selection:
    """What became of every sample.

    threshold: of the cosine; reason_N: of `REASONS`; killer_N: the row of the kept face that a
    sample is too similar to, -1 for none; similarity_N: the cosine to it, NaN for none.
    """

    threshold: float
    reason_N: npt.NDArray[np.uint8]
    killer_N: Ints
    similarity_N: F32
    ranking: Ranking

    @property
    def kept_N(self) -> Bools:
        """The samples to train on."""
        return self.reason_N <= RESTORED


def rank(
    sample_ND: Samples,
    target_N: Ints,
    classes: int,
    *,
    degrees: float = 75.0,
    centres: int = 1,
    least: int = 2,
    progress: Progress = log.silent,
) -> Ranking:
    """Clean every identity of outliers and order its faces by their contribution.

    target_N: identity of each sample, -1 for none; degrees: faces farther than this from the mean
    of their identity are outliers, 180 lets all pass. An outlier would rank first otherwise.
    centres: above 1, from the dominant of so many sub-centres instead, which wrong faces do not
    pull at.
    """
    row_m = np.argsort(target_N, kind="stable")
    row_m = row_m[np.searchsorted(target_N[row_m], 0) :]
    first_C = _edges(np.bincount(target_N[row_m], minlength=classes))
    score_N = np.full(len(target_N), np.nan, np.float32)
    reason_N = np.full(len(target_N), NO_IDENTITY, np.uint8)
    cosine = np.cos(np.radians(degrees)) if degrees < 180 else -np.inf
    uncleaned = 0
    for row_gn in _batches(row_m, first_C, sample_ND, progress, "rank"):
        f_gnD, real_gn = _gather(sample_ND, row_gn)
        sum_gD = _dominant(f_gnD, real_gn, centres, cosine)
        dot_gn = np.einsum("gnd,gd->gn", f_gnD, sum_gD)
        far_gn = real_gn & (dot_gn < cosine * np.linalg.norm(sum_gD, axis=1)[:, None])
        few_g = (real_gn & ~far_gn).sum(axis=1) < least
        uncleaned += int((far_gn.any(axis=1) & few_g).sum())
        far_gn &= ~few_g[:, None]
        in_gn = real_gn & ~far_gn
        f_gnD *= in_gn[:, :, None]
        sum_gD = f_gnD.sum(axis=1)
        own_gn = np.einsum("gnd,gnd->gn", f_gnD, f_gnD)
        others_g1 = np.maximum(in_gn.sum(axis=1) - 1, 1)[:, None]
        score_gn = (own_gn - np.einsum("gnd,gd->gn", f_gnD, sum_gD)) / others_g1
        score_N[row_gn[in_gn]] = score_gn[in_gn]
        reason_N[row_gn[in_gn]] = KEPT
        reason_N[row_gn[far_gn]] = OUTLIER
        reason_N[row_gn[(row_gn >= 0) & ~real_gn]] = NO_EMBEDDING
    row_m = row_m[reason_N[row_m] == KEPT]
    target_m = target_N[row_m]
    row_m = row_m[np.lexsort((row_m, -score_N[row_m], target_m))]
    first_C = _edges(np.bincount(target_m, minlength=classes))
    return Ranking(row_m, first_C, score_N, reason_N, uncleaned)


def _dominant(f_gnD: F32, real_gn: Bools, centres: int, cosine: float) -> F32:
    """Return the sum of the faces of each identity, or of those near its dominant sub-centre.

    Sub-centres are spherical k-means', begun at the face nearest to the mean and then the face
    least like all chosen. Dominant is the one with most faces within the angle, not the one that
    most are nearest to (Deng et al., ECCV 2020): two sub-centres may share one person.
    """
    sum_gD: F32 = f_gnD.sum(axis=1)
    if centres < 2 or not np.isfinite(cosine):
        return sum_gD
    here_g = np.arange(len(f_gnD))
    first_g = np.where(real_gn, np.einsum("gnd,gd->gn", f_gnD, sum_gD), -np.inf).argmax(1)
    centre_gkD = f_gnD[here_g, first_g][:, None]
    for _ in range(centres - 1):
        like_gn = (f_gnD @ centre_gkD.transpose(0, 2, 1)).max(axis=2)
        next_g = np.where(real_gn, like_gn, np.inf).argmin(axis=1)
        centre_gkD = np.concatenate([centre_gkD, f_gnD[here_g, next_g][:, None]], axis=1)
    for _ in range(ROUNDS):
        own_gn = (f_gnD @ centre_gkD.transpose(0, 2, 1)).argmax(axis=2)
        own_gkn = (own_gn[:, None] == np.arange(centres)[:, None]) & real_gn[:, None]
        moved_gkD = own_gkn.astype(np.float32) @ f_gnD
        norm_gk1 = np.linalg.norm(moved_gkD, axis=2, keepdims=True)
        centre_gkD = np.where(norm_gk1 > 0, moved_gkD / np.maximum(norm_gk1, 1e-12), centre_gkD)
    near_gkn = (centre_gkD @ f_gnD.transpose(0, 2, 1) >= cosine) & real_gn[:, None]
    most_g = near_gkn.sum(axis=2).argmax(axis=1)
    inside_gn = near_gkn[here_g, most_g]
    found_gD: F32 = np.einsum("gn,gnd->gd", inside_gn.astype(np.float32), f_gnD)
    return np.where(inside_gn.any(axis=1)[:, None], found_gD, sum_gD)


def select(
    sample_ND: Samples,
    ranking: Ranking,
    threshold: float,
    *,
    least: int = 2,
    progress: Progress = log.silent,
) -> Selection:
    """Suppress faces whose cosine to a kept one is over `threshold`, the first in rank kept first.

    Kept faces of an identity are pairwise at most `threshold` alike, every suppressed one is more
    alike to its killer, both to the rounding of float32; then `least` faces of each identity are
    restored, in rank order, where it has so many.
    """
    reason_N = ranking.reason_N.copy()
    killer_N = np.full(len(reason_N), -1, np.int64)
    similarity_N = np.full(len(reason_N), np.nan, np.float32)
    for row_gn in _batches(ranking.row_m, ranking.first_C, sample_ND, progress, "select"):
        f_gnD, real_gn = _gather(sample_ND, row_gn)
        dead_gn = ~real_gn
        killer_gn = np.full(row_gn.shape, -1)
        for p, cosine_gn in _cosines(f_gnD):
            dies_gn = ~dead_gn[:, p, None] & ~dead_gn & (cosine_gn > threshold)
            dies_gn[:, : p + 1] = False
            dead_gn |= dies_gn
            killer_gn[dies_gn] = p
            similarity_N[row_gn[dies_gn]] = cosine_gn[dies_gn]
        killed_gn = killer_gn >= 0
        reason_N[row_gn[killed_gn]] = SIMILAR
        killer_N[row_gn[killed_gn]] = row_gn[np.nonzero(killed_gn)[0], killer_gn[killed_gn]]
        lack_g1 = np.maximum(least - (~dead_gn).sum(axis=1), 0)[:, None]
        back_gn = killed_gn & (np.cumsum(killed_gn, axis=1) <= lack_g1)
        reason_N[row_gn[back_gn]] = RESTORED
    return Selection(threshold, reason_N, killer_N, similarity_N, ranking)


def select_count(
    sample_ND: Samples,
    ranking: Ranking,
    count: int,
    *,
    least: int = 2,
    progress: Progress = log.silent,
) -> Selection:
    """Keep exactly `count` faces, by one threshold for all identities.

    The threshold is the largest found that keeps no more than `count`; the faces that it lacks are
    restored, the least similar to their killers first. Raises UsageError GL0002 where `count`
    cannot be reached.
    """
    size_C = np.diff(ranking.first_C)
    fewest, most = int(np.minimum(size_C, max(least, 1)).sum()), len(ranking.row_m)
    if not fewest <= count <= most:
        images = int((ranking.reason_N != NO_IDENTITY).sum())
        raise UsageError(
            "GL0002",
            f"expected a ratio that keeps {fewest} to {most} of {images} images "
            f"({fewest / max(images, 1):.4f} to {most / max(images, 1):.4f}), found {count}",
            where="--keep-ratio",
            hint="each identity keeps its least, and outliers go first",
        )
    low, high = -1.0, 1.0
    for number in range(PASSES):
        try_t = np.linspace(low, high, TRIES + 2)[1:-1].astype(np.float32)
        kept_t = _counts(sample_ND, ranking, try_t, least, progress, f"threshold {number + 1}")
        fits_t = np.flatnonzero(kept_t <= count)
        at = int(fits_t[-1]) if len(fits_t) else -1
        low, high = (
            float(try_t[at]) if at >= 0 else low,
            float(try_t[at + 1]) if at + 1 < TRIES else high,
        )
        if at >= 0 and kept_t[at] == count:
            break
    # At -1 an identity keeps its least and no more, at 1 all: what cannot be passed over.
    low = 1.0 if count == most else low
    chosen = select(sample_ND, ranking, low, least=least, progress=progress)
    lack = count - int(chosen.kept_N.sum())
    killed = np.flatnonzero(chosen.reason_N == SIMILAR)
    back = killed[np.lexsort((killed, chosen.similarity_N[killed]))[:lack]]
    chosen.reason_N[back] = RESTORED
    return chosen


def _counts(
    sample_ND: Samples,
    ranking: Ranking,
    try_t: F32,
    least: int,
    progress: Progress,
    note: str,
) -> Ints:
    """Count the faces that each threshold keeps."""
    total_t = np.zeros(len(try_t), np.int64)
    for row_gn in _batches(ranking.row_m, ranking.first_C, sample_ND, progress, note):
        f_gnD, real_gn = _gather(sample_ND, row_gn)
        dead_tgn = np.repeat(~real_gn[None], len(try_t), axis=0)
        for p, cosine_gn in _cosines(f_gnD):
            lives_tg = ~dead_tgn[:, :, p]
            rest_gn = cosine_gn[:, p + 1 :]
            dead_tgn[:, :, p + 1 :] |= lives_tg[:, :, None] & (rest_gn > try_t[:, None, None])
        kept_tg = (~dead_tgn).sum(axis=2)
        total_t += np.maximum(kept_tg, np.minimum(real_gn.sum(axis=1), least)).sum(axis=1)
    return total_t


def _edges(size_C: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(size_C)]).astype(np.int64)


def _batches(
    row_m: Ints, first_C: Ints, sample_ND: Samples, progress: Progress, note: str
) -> Iterator[Ints]:
    """Yield the rows of identities of about one size together, one a line, -1 where short."""
    size_C, width = np.diff(first_C), max(sample_ND.shape[1], TRIES)
    order = np.argsort(size_C, kind="stable")
    order = order[np.searchsorted(size_C[order], 1) :]
    at = done = 0
    while at < len(order):
        some = order[at : at + max(1, ROOM // width)]
        room_i = np.arange(1, len(some) + 1) * size_C[some] * width  # grows with i
        class_g = some[: max(1, int(np.searchsorted(room_i, ROOM, side="right")))]
        size_g = size_C[class_g]
        place_n = np.arange(int(size_g[-1]))
        at_gn = first_C[class_g][:, None] + np.minimum(place_n, size_g[:, None] - 1)
        row_gn = np.where(place_n < size_g[:, None], row_m[at_gn], -1)
        yield row_gn
        at += len(class_g)
        done += int(size_g.sum())
        progress(done, len(row_m), note)


def _gather(sample_ND: Samples, row_gn: Ints) -> tuple[F32, Bools]:
    """Return unit rows in float32 and which are real: those that are short or NaN are zeros."""
    f_gnD = sample_ND[row_gn].astype(np.float32)
    norm_gn = np.sqrt(np.einsum("gnd,gnd->gn", f_gnD, f_gnD))
    real_gn = (row_gn >= 0) & np.isfinite(norm_gn) & (norm_gn > 0)
    f_gnD[~real_gn] = 0
    f_gnD /= np.where(real_gn, norm_gn, 1)[:, :, None]
    return f_gnD, real_gn


def _cosines(f_gnD: F32) -> Iterator[tuple[int, F32]]:
    """Yield, face after face of all identities, its cosines to all of them, at most 1."""
    g, n, _ = f_gnD.shape
    step = max(1, min(n, ROOM // (g * n)))
    for start in range(0, n, step):
        part_gpn = f_gnD[:, start : start + step] @ f_gnD.transpose(0, 2, 1)
        np.minimum(part_gpn, 1, out=part_gpn)
        for p in range(part_gpn.shape[1]):
            yield start + p, part_gpn[:, p]
