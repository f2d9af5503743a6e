"""Exact self-join: every pair of rows whose cosine reaches a threshold.

An engine only *screens*: its products are rounded, and compared with the threshold less a bound of
what rounding can take away (`glint.search.screens`). Each candidate is then scored again in
float64, so the pair set is a function of the rows and the threshold alone: not of the engine, BLAS
kernel, block or thread count, nor of how often the search was stopped.
"""

# N all rows, n some of them, D embedding

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glint import log
from glint.errors import MismatchError, ResourceError, UsageError
from glint.files import atomic
from glint.files.strings import write_array
from glint.log import Progress
from glint.search import faiss_index, screens
from glint.search.resume import BlockPairs, FinishedRows, row_path
from glint.search.screens import Screen

ENGINES = ("auto", "int8", "torch", "faiss")
BLOCK = 2048  # rows and columns of a tile
CHUNK = 4096  # pairs of rows that are held in float64
SOME = 512  # rows that stay in a cache
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


def choose(engine: str, device: str = "cpu") -> str:
    """Resolve `auto`: int8 where the processor, or the card, is fast at it, else torch in float32.

    Raises UsageError for names that are unknown or do not work here, ResourceError for no card.
    """
    on_card = not device.startswith("cpu")
    if on_card and not screens.card_is_there(device):
        what = f"device {device} was asked for, torch finds none"
        raise ResourceError("GL0002", what, where="--device", hint="`glint doctor` says why")
    int8 = screens.card_has_int8(device) if on_card else screens.int8_is_fast()
    if engine not in ENGINES:
        raise UsageError(
            "GL0002", f"expected one of {', '.join(ENGINES)}, found {engine!r}", where="--screen"
        )
    if engine == "faiss" and not faiss_index.available():
        raise UsageError(
            "GL0003",
            "faiss cannot be imported",
            where="--screen faiss",
            hint="pip install 'glint-faces[cpu]', or leave --screen at auto",
        )
    if engine == "faiss" and on_card:
        hint = "faiss has no exact range search on a card (docs/conflicts.md): leave it at auto"
        raise UsageError("GL0002", f"does not run on {device}", where="--screen faiss", hint=hint)
    if engine == "int8" and not int8:
        raise UsageError(
            "GL0002",
            "this processor has no AVX512-VNNI for products of int8"
            if not on_card
            else f"{device} has no products of int8: expected compute capability 7.5",
            where="--screen int8",
            hint="leave --screen at auto: it finds the same pairs",
        )
    if engine == "auto":
        return "int8" if int8 else "torch"
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
    float64 also those with a number beyond 1e150, or none beyond 1e-150). device: of the engines
    `int8` and `torch`. work: a folder of this search alone, locked by whoever calls, that keeps the
    block rows that are done, from which the same call goes on.
    Raises ResourceError when more than `limit` pairs would be held, UsageError (GL0002) for what is
    no table, or a threshold that is no cosine.
    """
    engine, x_ND = choose(engine, device), table(x_ND, threshold)
    if block < 1:
        raise UsageError("GL0002", f"block is {block}, expected at least 1", where="pair search")
    kept = None if work is None else _finished(work, x_ND, threshold, block)
    good = in_order(x_ND) if kept is None else kept.order
    rows = -(-len(good) // block)
    held: list[BlockPairs] = []
    began, pairs, tiles, new = time.monotonic(), 0, 0, 0
    screen: Screen | None = None
    for row in range(rows):
        found = None if kept is None else kept.load(row)
        if found is None:
            if screen is None:
                screen = open_screen(engine, x_ND, good, threshold, block, device)
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


@dataclass(frozen=True)
class Search:
    """A search that many processes do, a block row at a time: what each of them needs. Pickles.

    rows: the .npy of all rows; name: a digest of all that the pairs of a block row depend on.
    """

    folder: str
    rows: str
    name: str
    threshold: float
    block: int
    block_rows: int
    engine: str
    device: str = "cpu"
    threads: int = 0  # of each process, 0 = torch's own choice

    def missing(self) -> list[int]:
        """List the block rows that are not done."""
        paths = [row_path(Path(self.folder), self.name, row) for row in range(self.block_rows)]
        return [row for row, path in enumerate(paths) if not path.is_file()]

    def tiles(self, rows: Iterable[int]) -> int:
        """Count the tiles of block rows: what they cost."""
        return sum(self.block_rows - row for row in rows)


def begin(
    x_ND: npt.NDArray[np.floating],
    threshold: float,
    work: Path,
    *,
    engine: str = "auto",
    block: int = BLOCK,
    device: str = "cpu",
) -> Search:
    """Begin, or go on with, a search that many processes do; whoever calls holds `work` alone.

    `search_piece` does a block row; `pairs_above` with the same `work` joins them.
    """
    engine, rows_ND = choose(engine, device), table(x_ND, threshold)
    kept = _finished(work, rows_ND, threshold, block)
    rows = _on_disk(x_ND) or work / "rows.npy"
    if rows == work / "rows.npy":
        with atomic.replacing(rows) as file:
            write_array(file, rows_ND)
    if engine == "int8" and kept.kept(block) is None:
        shape = len(kept.order), rows_ND.shape[1]
        kept.keep(screens.whole(taker(rows_ND, kept.order), *shape, block))
    count = -(-len(kept.order) // block)
    return Search(str(work.absolute()), str(Path(rows).absolute()), kept.search, float(threshold),
                  block, count, engine, device)  # fmt: skip


def search_piece(search: Search, row: int) -> int:
    """Search a block row, unless it is done; return how many pairs it has.

    Raises MismatchError GL0006 where this process sees other rows than those of the search.
    """
    kept, x_ND = _rows_of(search)
    found = kept.load(row)
    if found is None:
        screen = _screen_of(search)
        found = search_row(screen, row * search.block, x_ND, kept.order, search.threshold)
        kept.save(row, found)
    return len(found.a)


@lru_cache(maxsize=1)
def _rows_of(search: Search) -> tuple[FinishedRows, npt.NDArray[np.floating]]:
    """Open what is kept of a search, and its rows, once in a process."""
    try:
        x_ND = np.load(search.rows, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        raise _other_rows(search.rows) from None
    name = _name(x_ND, search.threshold, search.block)

    def there(found: Rows | None) -> Rows:
        if found is None:
            raise _other_rows(search.rows)
        return found

    kept = FinishedRows(Path(search.folder), name, there, sweep=False)
    if kept.search != search.name:
        raise _other_rows(search.rows)
    return kept, x_ND


@lru_cache(maxsize=1)
def _screen_of(search: Search) -> Screen:
    """Open the screen of a search once in a process, in float32 where int8 is none of its own."""
    import torch

    if search.threads:
        torch.set_num_threads(search.threads)
    kept, x_ND = _rows_of(search)
    engine = choose("auto" if search.engine == "int8" else search.engine, search.device)
    whole = kept.kept(search.block) if engine == "int8" else None
    return open_screen(
        engine, x_ND, kept.order, search.threshold, search.block, search.device, whole
    )


def close() -> None:
    """Let go of what `search_piece` opened in this process."""
    _screen_of.cache_clear()
    _rows_of.cache_clear()


def _other_rows(where: str) -> MismatchError:
    what = "these are not the rows of the search that was begun"
    hint = "every machine has to see the same files under the same paths"
    return MismatchError("GL0006", what, where=where, hint=hint)


def _finished(
    work: Path, x_ND: npt.NDArray[np.floating], threshold: float, block: int
) -> FinishedRows:
    """Open the folder of a search that this process holds alone."""

    def order(found: Rows | None) -> Rows:
        good = np.flatnonzero(usable(x_ND))
        whole = found is not None and np.array_equal(np.sort(found), good)
        return found if found is not None and whole else in_order(x_ND)

    return FinishedRows(work, _name(x_ND, threshold, block), order)


def _on_disk(x_ND: Any) -> Path | None:
    """Return the .npy that an array is the map of; None where it is no whole file."""
    path = getattr(x_ND, "filename", None)
    if path is None or x_ND.ndim != 2:
        return None
    try:
        there = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    whole = (there.shape, there.dtype, there.strides, getattr(there, "offset", 0))
    return Path(path) if whole == (x_ND.shape, x_ND.dtype, x_ND.strides, x_ND.offset) else None


def in_order(x_ND: npt.NDArray[np.floating]) -> Rows:
    """Return the usable rows, those of like largest parts beside each other: see `screens`."""
    good = np.flatnonzero(usable(x_ND)).astype(np.int64)
    peak_N = np.empty(len(good))
    with np.errstate(all="ignore"):  # a length that float32 does not hold costs time, no pair
        for start in range(0, len(good), SOME):
            cut = slice(start, start + SOME)
            x_nD = np.asarray(x_ND[good[cut]], np.result_type(x_ND, np.float32))
            peak_N[cut] = np.abs(x_nD).max(axis=1, initial=0)
            peak_N[cut] /= np.sqrt(np.einsum("nd,nd->n", x_nD, x_nD))
    return good[np.argsort(peak_N, kind="stable")]


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


def taker(x_ND: npt.NDArray[np.floating], good: Rows) -> screens.Take:
    """Return a function that gives the unit rows of some of `good`."""
    return lambda rows: unit64(x_ND[good[rows]])


def open_screen(
    engine: str,
    x_ND: npt.NDArray[np.floating],
    good: Rows,
    threshold: float,
    block: int,
    device: str = "cpu",
    whole: screens.Whole | None = None,
) -> Screen:
    """Return a screen of the rows `good` for an engine that `choose` returned.

    whole: these rows in int8, where they are made already.
    """
    take, shape = taker(x_ND, good), (len(good), x_ND.shape[1])
    if engine == "int8":
        whole = whole or screens.whole(take, *shape, block)
        return screens.Int8(take, whole, threshold, device)
    if engine == "faiss":
        return screens.Faiss(take, *shape, threshold, block)
    return screens.Float32(take, *shape, threshold, block, device)


def search_row(
    screen: Screen, first: int, x_ND: npt.NDArray[np.floating], good: Rows, threshold: float
) -> BlockPairs:
    """Find the pairs of the block from `first` on, as rows of x_ND."""
    held = []
    for near_a, near_b in screen.tiles(first):
        one, two = good[near_a], good[near_b]
        a, b = np.minimum(one, two), np.maximum(one, two)
        cosine = cosines(x_ND, a, b)
        keep = cosine >= threshold
        held.append((a[keep], b[keep], cosine[keep]))
    a, b, cosine = (np.concatenate(part) for part in zip(*held))
    return BlockPairs(a, b, cosine)


def _name(x_ND: npt.NDArray[np.floating], threshold: float, block: int) -> str:
    """Return a digest of what the pairs depend on."""
    import xxhash

    about = f"{x_ND.dtype.str} {x_ND.shape} {float(threshold).hex()} {block}"
    state = xxhash.xxh3_128(about.encode())
    for start in range(0, len(x_ND), CHUNK):
        state.update(x_ND[start : start + CHUNK].tobytes())
    return str(state.hexdigest())
