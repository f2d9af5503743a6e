"""Exact self-join: every pair of rows whose cosine reaches a threshold.

An engine only *screens*: its products are rounded, and compared with the threshold less a bound of
what rounding can take away (`glint.search.screens`). Each candidate is then scored again in
float64, so the pair set is a function of the rows and the threshold alone: not of the engine, BLAS
kernel, block or thread count, nor of how often the search was stopped.
"""

# N all rows, n some of them, D embedding

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glint import log
from glint.errors import ResourceError, UsageError
from glint.log import Progress
from glint.search import faiss_index, screens
from glint.search.resume import BlockPairs, FinishedRows
from glint.search.screens import Screen

ENGINES = ("auto", "int8", "torch", "faiss")
BLOCK = 2048  # rows and columns of a tile
CHUNK = 4096  # pairs of rows that are held in float64
SHORT, LONG = 1e-150, 1e150  # lengths of rows whose squares float64 holds

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


def usable(x_nD: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Mark the rows that are finite and not zero, nor so in float64 once they are squared."""
    good = np.empty(len(x_nD), dtype=bool)
    for start in range(0, len(x_nD), 65536):
        block = np.asarray(x_nD[start : start + 65536])
        fine = np.isfinite(block).all(axis=1) & (block != 0).any(axis=1)
        if block.dtype.itemsize > 4:
            largest = np.abs(block).max(axis=1, initial=0)
            fine &= (largest > SHORT) & (largest < LONG)
        good[start : start + 65536] = fine
    return good


def table(x_ND: npt.ArrayLike, threshold: float) -> npt.NDArray[Any]:
    """Return rows as an array. Raises UsageError GL0002 for others, or what is no cosine."""
    x_ND = np.asarray(x_ND)
    if x_ND.ndim != 2 or x_ND.dtype.kind not in "fiub":
        what = f"expected an array (N, D) of floats, found {x_ND.dtype} {x_ND.shape}"
        raise UsageError("GL0002", what, where="pair search")
    if not -2 < threshold < 2:  # rounding may pass 1
        what = f"threshold is {threshold}, expected a cosine from -1 to 1"
        raise UsageError("GL0002", what, where="pair search")
    return x_ND


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
        for start in range(0, len(a), CHUNK):
            cut = slice(start, start + CHUNK)
            out[cut] = (unit64(x_ND[a[cut]]) * unit64(y_MD[b[cut]])).sum(axis=1)
    return out


def choose(engine: str) -> str:
    """Resolve `auto`: int8 where the processor is fast at it, else torch in float32.

    Raises UsageError for names that are unknown or do not work here.
    """
    if engine not in ENGINES:
        raise UsageError(
            "GL0002", f"expected one of {', '.join(ENGINES)}, found {engine!r}", where="--engine"
        )
    if engine == "faiss" and not faiss_index.available():
        raise UsageError(
            "GL0003",
            "faiss cannot be imported",
            where="--engine faiss",
            hint="pip install 'glint-faces[cpu]', or leave --engine at auto",
        )
    if engine == "int8" and not screens.int8_is_fast():
        raise UsageError(
            "GL0002",
            "this processor has no AVX512-VNNI for products of int8",
            where="--engine int8",
            hint="leave --engine at auto: it finds the same pairs",
        )
    if engine == "auto":
        return "int8" if screens.int8_is_fast() else "torch"
    return engine


def pairs_above(
    x_ND: npt.NDArray[np.floating],
    threshold: float,
    *,
    engine: str = "auto",
    block: int = BLOCK,
    device: str = "cpu",
    limit: int = 50_000_000,
    work: Path | None = None,
    progress: Progress = log.silent,
) -> Pairs:
    """Find every pair of rows with cosine >= `threshold`, exactly.

    x_ND: any float type, any length of rows; rows that are NaN, infinite or zero are left out (of
    float64 also those with a number beyond 1e150, or none beyond 1e-150). device: of the engine
    `torch`. work: a folder of this search alone, locked by whoever calls, that keeps the block rows
    that are done, from which the same call goes on.
    Raises ResourceError when more than `limit` pairs would be held, UsageError (GL0002) for what is
    no table, or a threshold that is no cosine.
    """
    engine, x_ND = choose(engine), table(x_ND, threshold)
    if block < 1:
        raise UsageError("GL0002", f"block is {block}, expected at least 1", where="pair search")
    good = np.flatnonzero(usable(x_ND)).astype(np.int64)
    rows = -(-len(good) // block)
    held: list[BlockPairs] = []
    began, pairs, tiles, new = time.monotonic(), 0, 0, 0
    screen = open_screen(engine, x_ND, good, threshold, block, device)
    kept = None if work is None else FinishedRows(work, _name(x_ND, threshold, block, screen.parts))
    for row in range(rows):
        found = None if kept is None else kept.load(row)
        if found is None:
            found = search_row(screen, row * block, x_ND, good, threshold)
            if kept is not None:
                kept.save(row, found)
            new += rows - row
        held.append(found)
        pairs += len(found.a)
        if pairs > limit:
            searched = f" ({min((row + 1) * block, len(good))} of {len(good)} rows searched)"
            raise too_many(limit, threshold, searched, where="pair search")
        tiles += rows - row
        total = rows * (rows + 1) // 2
        left = (time.monotonic() - began) / max(new, 1) * (total - tiles)
        progress(tiles, total, f"{pairs} pairs, {left / 60:.0f} min left" if new else "as kept")
    return joined(held, len(x_ND) - len(good), engine)


def joined(blocks: Sequence[BlockPairs], excluded: int, engine: str) -> Pairs:
    """Join the pairs of blocks, sorted by (a, b)."""
    none = np.empty(0, np.int64)
    a = np.concatenate([*(block.a for block in blocks), none])
    b = np.concatenate([*(block.b for block in blocks), none])
    cosine = np.concatenate([*(block.cosine for block in blocks), np.empty(0, np.float64)])
    order = np.lexsort((b, a))
    return Pairs(a[order], b[order], cosine[order], excluded, engine)


def too_many(limit: int, threshold: float, searched: str = "", *, where: str) -> ResourceError:
    """Return the error of a search that would hold more than `limit` pairs."""
    return ResourceError(
        "GL0503",
        f"more than {limit} pairs reach cosine {threshold:.3f}{searched}",
        where=where,
        hint="search at a higher cosine: --low",
    )


def open_screen(
    engine: str,
    x_ND: npt.NDArray[np.floating],
    good: Rows,
    threshold: float,
    block: int,
    device: str = "cpu",
) -> Screen:
    """Return a screen of the rows `good` for an engine that `choose` returned."""

    def take(rows: Rows) -> npt.NDArray[np.float64]:
        return unit64(x_ND[good[rows]])

    shape = len(good), x_ND.shape[1]
    if engine == "int8":
        return screens.Int8(take, *shape, threshold, block)
    if engine == "faiss":
        return screens.Faiss(take, *shape, threshold, block)
    return screens.Float32(take, *shape, threshold, block, device)


def search_row(
    screen: Screen, first: int, x_ND: npt.NDArray[np.floating], good: Rows, threshold: float
) -> BlockPairs:
    """Find the pairs of the block from `first` on, as rows of x_ND."""
    held = []
    for near_a, near_b in screen.tiles(first):
        a, b = good[near_a], good[near_b]
        cosine = cosines(x_ND, a, b)
        keep = cosine >= threshold
        held.append((a[keep], b[keep], cosine[keep]))
    a, b, cosine = (np.concatenate(part) for part in zip(*held))
    return BlockPairs(a, b, cosine)


def _name(x_ND: npt.NDArray[np.floating], threshold: float, block: int, parts: str) -> str:
    """Return a digest of all that the pairs of a block row depend on."""
    import xxhash

    about = f"{x_ND.dtype.str} {x_ND.shape} {float(threshold).hex()} {block} {parts}"
    state = xxhash.xxh3_128(about.encode())
    for start in range(0, len(x_ND), CHUNK):
        state.update(x_ND[start : start + CHUNK].tobytes())
    return str(state.hexdigest())
