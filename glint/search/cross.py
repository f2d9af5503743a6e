"""Exact join of two sets of rows: every pair, one of each, whose cosine reaches a threshold."""

# N rows here, M rows of the other set, n and m of one block, D embedding

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from glint import log
from glint.errors import UsageError
from glint.log import Progress
from glint.search import pairs, screens
from glint.search.pairs import Pairs
from glint.search.resume import BlockPairs

BLOCK = 4096

Floats = npt.NDArray[np.floating]


def pairs_across(
    x_ND: Floats,
    y_MD: Floats,
    threshold: float,
    *,
    limit: int = 50_000_000,
    progress: Progress = log.silent,
) -> Pairs:
    """Find every pair (a of x, b of y) with cosine >= `threshold`, exactly, sorted by (a, b).

    Screened in float32 below the threshold by `screens.margin`, scored in float64. Rows that are
    NaN, infinite or zero are left out and counted. Raises ResourceError GL0503 above `limit` pairs,
    UsageError (GL0002) for what are no tables of one width, or a threshold that is no cosine.
    """
    import torch

    x_ND, y_MD = (pairs.table(side, threshold) for side in (x_ND, y_MD))
    if x_ND.shape[1] != y_MD.shape[1]:
        what = f"rows have {x_ND.shape[1]} and {y_MD.shape[1]} numbers"
        raise UsageError("GL0002", what, where="pair search")
    good_n, good_m = (np.flatnonzero(pairs.usable(side)) for side in (x_ND, y_MD))
    found: list[BlockPairs] = []
    held = 0
    for at in range(0, len(good_m), BLOCK):
        row_m = good_m[at : at + BLOCK]
        wide_mD = pairs.unit64(y_MD[row_m])
        column_mD = torch.from_numpy(wide_mD.astype(np.float32))
        for start in range(0, len(good_n), BLOCK):
            row_n = good_n[start : start + BLOCK]
            wide_nD = pairs.unit64(x_ND[row_n])
            row_nD = torch.from_numpy(wide_nD.astype(np.float32))
            i_K, j_K = screens.wide(row_nD, column_mD, threshold)
            for cut in range(0, len(i_K), BLOCK):
                one, other = i_K[cut : cut + BLOCK], j_K[cut : cut + BLOCK]
                cosine = (wide_nD[one] * wide_mD[other]).sum(axis=1)
                keep = cosine >= threshold
                found.append(BlockPairs(row_n[one[keep]], row_m[other[keep]], cosine[keep]))
                held += int(keep.sum())
            if held > limit:
                raise pairs.too_many(limit, threshold, where="join of two datasets")
        progress(min(at + BLOCK, len(good_m)), len(good_m), f"{held} pairs")
    excluded = len(x_ND) - len(good_n) + len(y_MD) - len(good_m)
    return pairs.joined(found, excluded, "torch")
