"""Exact self-join: every pair of rows whose cosine reaches a threshold.

Both engines only *screen*, in float32 at `threshold - margin`, where the margin bounds the rounding
of a float32 inner product. Each candidate is then scored again in float64, so the pair set is a
function of the rows and the threshold alone: not of the engine, BLAS kernel, block or thread count.
"""

# N all usable rows, n rows of one block, D embedding

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glint import log
from glint.errors import ResourceError, UsageError
from glint.log import Progress
from glint.search import door

ENGINES = ("auto", "faiss", "torch")

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Row pairs a < b with their cosine (float64), sorted by (a, b).

    excluded: rows without a direction (NaN, infinite or zero), which took no part.
    """

    a: Rows
    b: Rows
    cosine: npt.NDArray[np.float64]
    excluded: int
    engine: str


def margin(dim: int) -> float:
    """Bound the error of a float32 inner product of two unit rows of length `dim`.

    |fl(x.y) - x.y| <= gamma_D * sum|x_i y_i| <= gamma_D, gamma_D = D u / (1 - D u), u = 2^-24
    (Higham, Accuracy and Stability, 3.5), plus the rounding of the rows themselves; doubled.
    """
    return 2.0 * (dim + 4) * 2.0**-24


def usable(x_nD: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Mark the rows that are finite and not zero."""
    good = np.empty(len(x_nD), dtype=bool)
    for start in range(0, len(x_nD), 65536):
        block = np.asarray(x_nD[start : start + 65536])
        good[start : start + 65536] = np.isfinite(block).all(axis=1) & (block != 0).any(axis=1)
    return good


def unit64(x_nD: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Scale rows to length one in float64."""
    wide = np.asarray(x_nD, dtype=np.float64)
    scaled: npt.NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return scaled


def cosines(
    x_ND: npt.NDArray[np.floating],
    a: Rows,
    b: Rows,
    other_MD: npt.NDArray[np.floating] | None = None,
) -> npt.NDArray[np.float64]:
    """Score the given row pairs in float64; NaN where a row has no direction.

    other_MD: the set that b are rows of, where it is another one.
    """
    y_MD = x_ND if other_MD is None else other_MD
    out = np.empty(len(a), dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        for start in range(0, len(a), 16384):
            cut = slice(start, start + 16384)
            out[cut] = (unit64(x_ND[a[cut]]) * unit64(y_MD[b[cut]])).sum(axis=1)
    return out


def choose(engine: str) -> str:
    """Resolve `auto`: faiss where it loads, else torch. Raises UsageError for unknown names."""
    if engine not in ENGINES:
        raise UsageError(
            "GL0002", f"expected one of {', '.join(ENGINES)}, found {engine!r}", where="--engine"
        )
    if engine == "faiss" and not door.available():
        raise UsageError(
            "GL0003",
            "faiss cannot be imported",
            where="--engine faiss",
            hint="pip install 'glint-faces[cpu]', or leave --engine at auto",
        )
    if engine == "auto":
        return "faiss" if door.available() else "torch"
    return engine


def pairs_above(
    x_ND: npt.NDArray[np.floating],
    threshold: float,
    *,
    engine: str = "auto",
    block: int = 2048,
    device: str = "cpu",
    limit: int = 50_000_000,
    progress: Progress = log.silent,
) -> Pairs:
    """Find every pair of rows with cosine >= `threshold`, exactly.

    x_ND: any float type, any length of rows; rows that are NaN, infinite or zero are left out.
    Raises ResourceError when more than `limit` pairs would be held.
    """
    engine = choose(engine)
    good = np.flatnonzero(usable(x_ND)).astype(np.int64)
    unit_ND = np.empty((len(good), x_ND.shape[1]), dtype=np.float32)
    for start in range(0, len(good), 16384):
        unit_ND[start : start + 16384] = unit64(x_ND[good[start : start + 16384]])
    bound = threshold - margin(x_ND.shape[1])
    screen = (
        _faiss(unit_ND, bound, block)
        if engine == "faiss"
        else _torch(unit_ND, bound, block, device)
    )

    kept_a, kept_b, kept_cosine, held = [], [], [], 0
    for done, a, b in screen:
        a, b = good[a], good[b]
        cosine = cosines(x_ND, a, b)
        keep = cosine >= threshold
        kept_a.append(a[keep])
        kept_b.append(b[keep])
        kept_cosine.append(cosine[keep])
        held += int(keep.sum())
        if held > limit:
            raise ResourceError(
                "GL0503",
                f"more than {limit} pairs reach cosine {threshold:.3f} "
                f"({done} of {len(good)} rows searched)",
                where="pair search",
                hint="search at a higher cosine: --low",
            )
        progress(done, len(good), f"{held} pairs")
    a = np.concatenate([*kept_a, np.empty(0, np.int64)])
    b = np.concatenate([*kept_b, np.empty(0, np.int64)])
    cosine = np.concatenate([*kept_cosine, np.empty(0, np.float64)])
    order = np.lexsort((b, a))
    return Pairs(a[order], b[order], cosine[order], len(x_ND) - len(good), engine)


def _faiss(
    unit_ND: npt.NDArray[np.float32], bound: float, block: int
) -> Iterator[tuple[int, Rows, Rows]]:
    """Yield (rows done, a, b) with a < b from faiss range search."""
    index = door.FlatIndex(unit_ND)
    for start in range(0, len(unit_ND), block):
        a, b = index.above(unit_ND[start : start + block], bound)
        a += start
        upper = a < b
        yield min(start + block, len(unit_ND)), a[upper], b[upper]


def _torch(
    unit_ND: npt.NDArray[np.float32], bound: float, block: int, device: str
) -> Iterator[tuple[int, Rows, Rows]]:
    """Yield (rows done, a, b) with a < b from the upper triangle of blocked products."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # the margin is that of float32, not TF32
    try:
        x_ND = torch.from_numpy(unit_ND).to(device)
        for start in range(0, len(x_ND), block):
            row_nD = x_ND[start : start + block]
            found_a, found_b = [], []
            for other in range(start, len(x_ND), block):
                hit = (row_nD @ x_ND[other : other + block].T > bound).nonzero().cpu().numpy()
                a, b = hit[:, 0] + start, hit[:, 1] + other
                upper = a < b
                found_a.append(a[upper])
                found_b.append(b[upper])
            yield (min(start + block, len(x_ND)), np.concatenate(found_a), np.concatenate(found_b))
    finally:
        torch.set_float32_matmul_precision(before)
