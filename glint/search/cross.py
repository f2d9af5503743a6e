"""Exact join of two sets of rows: every pair, one of each, whose cosine reaches a threshold."""

# N rows here, M rows of the other set, n and m of one block, D embedding

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from glint import log
from glint.errors import UsageError
from glint.log import Progress
from glint.search import pairs, screens
from glint.search.pairs import Pairs
from glint.search.resume import BlockPairs
from glint.search.screens import Rows

BLOCK = 2048

Floats = npt.NDArray[np.floating]


def pairs_across(
    x_ND: Floats,
    y_MD: Floats,
    threshold: float,
    *,
    engine: str = "auto",
    device: str = "cpu",
    limit: int = 50_000_000,
    progress: Progress = log.silent,
) -> Pairs:
    """Find every pair (a of x, b of y) with cosine >= `threshold`, exactly, sorted by (a, b).

    Screened below the threshold by the engine `int8` or `torch`, scored in float64. Rows that are
    NaN, infinite or zero are left out and counted. Raises ResourceError GL0503 above `limit` pairs,
    UsageError (GL0002) for what are no tables of one width, or a threshold that is no cosine.
    """
    engine = pairs.choose(engine, device)
    x_ND, y_MD = (pairs.table(side, threshold) for side in (x_ND, y_MD))
    if x_ND.shape[1] != y_MD.shape[1]:
        what = f"rows have {x_ND.shape[1]} and {y_MD.shape[1]} numbers"
        raise UsageError("GL0002", what, where="pair search")
    good_n, good_m = (pairs.in_order(side) for side in (x_ND, y_MD))
    tiles = _whole if engine == "int8" else _float32
    found: list[BlockPairs] = []
    held = 0
    for done, (near_a, near_b) in tiles(x_ND, y_MD, good_n, good_m, threshold, device):
        a, b = good_n[near_a], good_m[near_b]
        cosine = pairs.cosines(x_ND, a, b, y_MD)
        keep = cosine >= threshold
        found.append(BlockPairs(a[keep], b[keep], cosine[keep]))
        held += int(keep.sum())
        if held > limit:
            raise pairs.too_many(limit, threshold, where="join of two datasets")
        progress(done, len(good_n), f"{held} pairs")
    excluded = len(x_ND) - len(good_n) + len(y_MD) - len(good_m)
    return pairs.joined(found, excluded, engine if engine == "int8" else "torch")


Near = tuple[Rows, Rows]  # candidates of a tile: places in good_n and good_m


def _whole(
    x_ND: Floats, y_MD: Floats, good_n: Rows, good_m: Rows, threshold: float, device: str
) -> Iterator[tuple[int, Near]]:
    """Yield the candidates of tiles, screened in int8, and how many rows they end."""
    takes = [pairs.taker(x_ND, good_n), pairs.taker(y_MD, good_m)]
    tables = [
        screens.whole(take, len(good), x_ND.shape[1], BLOCK)
        for take, good in zip(takes, (good_n, good_m))
    ]
    if not len(good_n) or not len(good_m):
        return
    screen = screens.Int8(takes[0], tables[0], threshold, device, (takes[1], tables[1]))
    for first in range(0, len(good_n), BLOCK):
        for near in screen.tiles(first):
            yield min(first + BLOCK, len(good_n)), near


def _float32(
    x_ND: Floats, y_MD: Floats, good_n: Rows, good_m: Rows, threshold: float, device: str
) -> Iterator[tuple[int, Near]]:
    """Yield the same by products in float32, of rows that are scaled block by block."""
    import torch

    def part(rows_ND: Floats, good: Rows) -> torch.Tensor:
        return torch.from_numpy(pairs.unit64(rows_ND[good]).astype(np.float32)).to(device)

    for first in range(0, len(good_n), BLOCK):
        row_nD = part(x_ND, good_n[first : first + BLOCK])
        for start in range(0, len(good_m), BLOCK):
            i_K, j_K = screens.wide(row_nD, part(y_MD, good_m[start : start + BLOCK]), threshold)
            yield min(first + BLOCK, len(good_n)), (i_K + first, j_K + start)
