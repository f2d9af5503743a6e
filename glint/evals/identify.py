"""Identification: probes looked up in a gallery, or among distractors, block by block."""

# p probes, g gallery, d distractors, D embedding, m pairs of a probe and its mate

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from glint.errors import InputError
from glint.evals.rates import unit
from glint.evals.roc import allowed
from glint.log import Progress, silent

BLOCK = 1024  # probes at most at once
CELLS = 1 << 24  # cosines at most at once
DISTRACTORS = 1 << 14  # at once
RANKS = (1, 5, 10)
FPIRS = ("1e-3", "1e-2", "1e-1")
FALSE_ALARMS = ("1e-2", "1e-1")  # a probe, as the field's script has them
KEPT = 1 << 24  # most impostor scores that are held


def _mates(
    probe_pD: np.ndarray, probe_p: np.ndarray, gallery_gD: np.ndarray, mate_p: np.ndarray,
    keep: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Score all probes against all of the gallery; mate_p = -1 where a probe has none.

    Returns, by probe, the mate's cosine (NaN without one), its rank (1 = best, ties lose; 0
    without one) and the best other cosine; and the `keep` greatest cosines of others, descending.
    """
    mate, other = np.full(len(probe_p), np.nan), np.empty(len(probe_p))
    rank = np.zeros(len(probe_p), np.int64)
    most = np.empty(0)
    step = max(1, min(BLOCK, CELLS // max(1, len(gallery_gD))))
    gallery_Dg = gallery_gD.T.astype(np.float64)
    for at in range(0, len(probe_p), step):
        part = slice(at, at + step)
        score_pg = probe_pD[part].astype(np.float64) @ gallery_Dg
        has = np.flatnonzero(mate_p[part] >= 0)
        own = mate_p[part][has]
        mate[at + has] = score_pg[has, own]
        score_pg[has, own] = -np.inf
        other[part] = score_pg.max(1)
        rank[at + has] = 1 + (score_pg[has] >= mate[at + has, None]).sum(1)
        if keep:
            flat = score_pg[np.isfinite(score_pg)]
            most = np.concatenate([most, flat])
            if len(most) > keep:
                most = np.partition(most, len(most) - keep)[-keep:]
    return mate, rank, other, np.sort(most)[::-1]


def _places(probe_p: np.ndarray, subject_g: np.ndarray) -> np.ndarray:
    """Return the place of each probe's subject in the gallery, -1 where it is not there."""
    order = np.argsort(subject_g, kind="stable")
    sorted_g = subject_g[order]
    at_p = np.minimum(np.searchsorted(sorted_g, probe_p), len(sorted_g) - 1)
    return np.where(sorted_g[at_p] == probe_p, order[at_p], -1)


def _cmc(rank_p: np.ndarray) -> dict[str, float]:
    return {str(rank): float(np.mean((rank_p > 0) & (rank_p <= rank))) for rank in RANKS}


def closed_set(
    probe_pD: np.ndarray, probe_p: np.ndarray, gallery_gD: np.ndarray, subject_g: np.ndarray,
    *, where: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Identify as the field's script does: every probe has one mate in the gallery.

    rank: share of probes whose mate is within the first 1, 5, 10. recall_at_false_alarms: share of
    mates above the k-th greatest cosine of all other comparisons, k = ceil(rate * probes): false
    alarms per probe, which is not FPIR. Embeddings of length 1. Raises InputError GL0802 for a
    subject without a mate, or with several.
    """
    values, counts = np.unique(subject_g, return_counts=True)
    if (counts > 1).any():
        what = f"subject {values[counts > 1][0]} stands in the galleries more than once"
        raise InputError("GL0802", what, where=where)
    mate_p = _places(probe_p, subject_g)
    if (mate_p < 0).any():
        what = f"subject {probe_p[mate_p < 0][0]} of the probes is in no gallery"
        raise InputError("GL0802", what, where=where)
    alarms = {far: int(np.ceil(float(far) * len(probe_p))) for far in FALSE_ALARMS}
    mate, rank, _, most = _mates(probe_pD, probe_p, gallery_gD, mate_p, max(alarms.values()))
    return {
        "rank": _cmc(rank),
        "recall_at_false_alarms": {
            far: float(np.mean(mate > most[k - 1])) if k <= len(most) else None
            for far, k in alarms.items()
        },
    }


def many_mates(
    probe_pD: np.ndarray, probe_p: np.ndarray, gallery_gD: np.ndarray, subject_g: np.ndarray,
    *, where: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Identify where a person has several images in the gallery, as TinyFace does.

    rank: share of probes whose nearest mate is among the first 1, 5, 10 of the whole gallery;
    ties lose. Embeddings of any length; subjects below 0 are distractors. Raises InputError GL0802
    for a probe without a mate.
    """
    if lost := sorted({*probe_p.tolist()} - {*subject_g.tolist()}):
        raise InputError("GL0802", f"person {lost[0]} of the probes is in no gallery", where=where)
    probe_pD, gallery_Dg = unit(probe_pD), unit(gallery_gD).T
    rank_p = np.empty(len(probe_p), np.int64)
    for at in range(0, len(probe_p), BLOCK):
        score_pg = probe_pD[at : at + BLOCK] @ gallery_Dg
        mate_pg = probe_p[at : at + BLOCK, None] == subject_g
        best_p = np.where(mate_pg, score_pg, -np.inf).max(1)
        rank_p[at : at + BLOCK] = 1 + ((score_pg >= best_p[:, None]) & ~mate_pg).sum(1)
    return {
        "probes": len(probe_p),
        "gallery": len(subject_g),
        "distractors": int((subject_g < 0).sum()),
        "rank": _cmc(rank_p),
    }


def open_set(
    probe_pD: np.ndarray, probe_p: np.ndarray, gallery_gD: np.ndarray, subject_g: np.ndarray
) -> dict[str, Any]:
    """Identify in one gallery with probes of strangers: TPIR at FPIR, rank 1, 5, 10.

    A false positive is a stranger's probe whose best cosine passes the threshold; a true one is a
    mated probe whose mate is first and passes it. The loosest threshold whose FPIR does not exceed
    the target, ties refused. Ranks are of the mated probes. None where probes of a kind lack.
    """
    mate_p = _places(probe_p, subject_g)
    mate, rank, other, _ = _mates(probe_pD, probe_p, gallery_gD, mate_p, 0)
    mated = mate_p >= 0
    alarm = np.sort(other[~mated])[::-1]
    tpir: dict[str, float | None] = dict.fromkeys(FPIRS)
    if len(alarm) and mated.any():
        for far in FPIRS:
            spare = allowed(far, len(alarm))
            limit = alarm[spare] if spare < len(alarm) else -np.inf
            tpir[far] = float(np.mean((mate[mated] > limit) & (rank[mated] == 1)))
    return {
        "mated": int(mated.sum()),
        "strangers": len(alarm),
        "tpir_at_fpir": tpir,
        "rank": _cmc(rank[mated]) if mated.any() else None,
    }


def distractors(
    probe_pD: np.ndarray,
    probe_p: np.ndarray,
    other_dD: np.ndarray,
    *,
    counts: Sequence[int] = (10, 100, 1000, 10_000, 100_000, 1_000_000),
    fars: Sequence[str] = ("1e-6", "1e-5"),
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Identify among distractors as MegaFace does: rank 1 by their number, and TAR at FAR.

    Each ordered pair of probes of one person succeeds where its cosine is above that of the probe
    with every distractor; the person's other images are no distractors. The first k of one random
    order (`seed`) are the distractors of count k, and all of them always. TAR: pairs of probes of
    one person against all comparisons of a probe with a distractor, ties refused. Rows that are
    not finite or zero are left out and counted. Raises InputError GL0402 where nothing is left.
    """
    probe_pD, probe_p, dropped = _sound(np.asarray(probe_pD, np.float32), np.asarray(probe_p))
    order = np.random.default_rng(seed).permutation(len(other_dD))
    steps = sorted({*(k for k in counts if k < len(order)), len(order)})
    size = np.unique(probe_p, return_counts=True)[1]
    if not len(order) or not len(size) or size.max() < 2:
        raise InputError("GL0402", "expected two probes of one person and a distractor")
    keep = {far: allowed(far, len(probe_p) * len(order)) + 1 for far in fars}
    held = min(max(keep.values(), default=1), KEPT)
    best_p = np.full(len(probe_p), -np.inf)
    most, used, rank, lost = np.empty(0), 0, {}, 0
    mates = _genuine(probe_pD, probe_p)
    for k in steps:
        while used < k:
            chosen = order[used : min(k, used + DISTRACTORS)]
            used += len(chosen)
            part_dD, _, bad = _sound(np.asarray(other_dD[np.sort(chosen)], np.float32), chosen)
            lost += bad
            if not len(part_dD):
                continue
            for at in range(0, len(probe_p), BLOCK):
                score_pd = probe_pD[at : at + BLOCK] @ part_dD.T
                best_p[at : at + BLOCK] = np.maximum(best_p[at : at + BLOCK], score_pd.max(1))
                least = most.min() if len(most) >= held else -np.inf
                most = np.concatenate([most, score_pd[score_pd > least].astype(np.float64)])
                if len(most) > held:
                    most = np.partition(most, len(most) - held)[-held:]
            progress(used, len(order), "distractors")
        right = sum(int((score > best_p[a]).sum()) for a, score in mates)
        rank[str(k)] = right / sum(len(score) for _, score in mates)
    impostors = len(probe_p) * (len(order) - lost)
    most = np.sort(most)[::-1]
    genuine = np.concatenate([score for _, score in mates])
    tar: dict[str, float | None] = dict.fromkeys(fars)
    for far in fars:
        spare = allowed(far, impostors)
        if spare < len(most):
            tar[far] = float(np.mean(genuine > most[spare]))
    return {
        "probes": len(probe_p),
        "identities": len(size),
        "pairs": len(genuine),
        "distractors": len(order) - lost,
        "dropped": dropped + lost,
        "rank1_by_distractors": rank,
        "tar_at_far": tar,
        "seed": seed,
    }


def _sound(x_nD: np.ndarray, label_n: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Drop rows that are not finite or zero, scale the rest to length 1: float32."""
    good_n = np.isfinite(x_nD).all(1) & (x_nD != 0).any(1)
    return unit(x_nD[good_n]).astype(np.float32), label_n[good_n], int((~good_n).sum())


def _genuine(probe_pD: np.ndarray, probe_p: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return, by probe that has mates, its cosines with them."""
    found = []
    for subject in np.unique(probe_p).tolist():
        row = np.flatnonzero(probe_p == subject)
        if len(row) > 1:
            score = probe_pD[row] @ probe_pD[row].T
            found += [(int(a), np.delete(score[i], i)) for i, a in enumerate(row)]
    return found
