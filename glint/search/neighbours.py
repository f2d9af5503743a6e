"""Near pairs of very many faces: all of them, or most of them in time about linear in the faces.

Up to a size the exact join of `pairs` is cheaper and misses nothing. Above, every face goes to the
nearest few of a seeded sample of the faces (cells; all of the sample is compared), faces of one
cell are compared with each other, and neighbours of neighbours twice more (NN-descent, Dong et al.
2011). `cells` says how many: so that both comparisons of a face are about sqrt(n). Cosines are
exact; which pairs are missing is measured by `recall`, on seeded faces against all others.
"""

# N all rows, n some of them, m pairs, c cells, P probes, D embedding

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from glint import log, rng
from glint.errors import InputError, ResourceError
from glint.files import atomic
from glint.files.strings import new_array
from glint.log import Progress
from glint.search import near_pairs, pairs, screens
from glint.search.near_pairs import NearPairs
from glint.search.pairs import cosines, usable
from glint.search.resume import BlockPairs, FinishedRows

PROBES, PROBED = 16, 200_000  # cells of a face, up to so many faces; more from there on
SHORT = 3 * 2.0**-8  # what bfloat16 takes from a cosine: of rows, of a product, of the bound
SCORES = 1 << 23  # cosines of faces and cells held at once
CELLS = 2048  # cells joined between two files
BLOCK = 16384  # faces assigned, or expanded, between two marks
TILE = 2048  # rows and columns of a product in a cell
KNOWN = 16  # neighbours of a face whose neighbours are looked at
ROUNDS = 2
SAMPLE, ENOUGH = 256, 4096  # faces asked at once, at most
CONSTANTS = (PROBES, PROBED, CELLS, BLOCK, TILE, KNOWN)  # that kept blocks rest on
PAIRS = 1000  # true pairs that a measured recall rests on, where there are so many
LIMIT = 64  # pairs a face, on average

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Recall:
    """How many of the near pairs of some faces were found: of the pairs, and a face on average."""

    faces: int
    pairs: int
    of_pairs: float
    of_faces: float


def exact(
    x_ND: Floats, edge: float, *, work: Path | None = None, progress: Progress = log.silent
) -> NearPairs:
    """Find all pairs of rows from the cosine `edge` on. Raises ResourceError GL0503."""
    try:
        found = pairs.pairs_above(x_ND, edge, limit=_limit(len(x_ND)), work=work, progress=progress)
    except ResourceError as error:
        if error.code != "GL0503":
            raise
        raise _too_many(len(x_ND), edge) from None
    small = (found.a.astype(np.int32), found.b.astype(np.int32), found.cosine.astype(np.float32))
    return NearPairs(*small, np.flatnonzero(usable(x_ND)))


def cells(n: int) -> tuple[int, int]:
    """Return how many cells n faces have, and in how many of them each is.

    Probes grow with n^(1/4): two near faces of more cells share one less often.
    """
    probes = max(PROBES, round(PROBES * (n / PROBED) ** 0.25))
    count = max(1, round(probes * n**0.5))
    return min(count, max(1, n // 8)), min(probes, count, max(1, n // 8))


def nearly(
    x_ND: Floats, edge: float, work: Path, *, seed: int = 0, progress: Progress = log.silent
) -> NearPairs:
    """Find most pairs of rows from the cosine `edge` on; `work` keeps what is done.

    Raises ResourceError GL0503 for too many.
    """
    good_n = np.flatnonzero(usable(x_ND))
    join = _CellJoin(x_ND, good_n, edge, work, seed, progress)
    for _ in join.cells():
        pass
    for turn in range(ROUNDS):
        for _ in join.completed(turn):
            pass
    found = near_pairs.graph(join.blocks, len(x_ND), work, both=False)
    return found.pairs(work, good_n)


def recall(x_ND: Floats, near: NearPairs, edge: float, *, seed: int = 0) -> Recall:
    """Measure near pairs on seeded rows against all rows, each scored in float64.

    Rows are asked until `PAIRS` true pairs are known, at most `ENOUGH`.
    """
    n = len(near.good_N)
    order = np.argsort(rng.mix(np.arange(n, dtype=np.uint64) + np.uint64(_key(seed, 2))))
    hits = true = asked = 0
    shares: list[npt.NDArray[np.float64]] = []
    while true < PAIRS and asked < min(n, ENOUGH):
        ask = np.sort(near.good_N[order[asked : asked + SAMPLE]])
        asked += len(ask)
        of, other = _all_near(x_ND, ask, near.good_N, edge)
        found = _among(near, np.minimum(ask[of], other), np.maximum(ask[of], other))
        true, hits = true + len(of), hits + int(found.sum())
        all_n = np.bincount(of, minlength=len(ask))
        hit_n = np.bincount(of[found], minlength=len(ask))
        shares.append(hit_n[all_n > 0] / all_n[all_n > 0])
    share = np.concatenate([np.empty(0), *shares])
    if not true:
        return Recall(asked, 0, float("nan"), float("nan"))
    return Recall(asked, true, hits / true, float(share.mean()))


def _all_near(x_ND: Floats, ask: Ints, good_N: Ints, edge: float) -> tuple[Ints, Ints]:
    """Compare some rows with all: (which of `ask`, other row) of every pair from `edge` on."""
    ask_nD = pairs.unit64(x_ND[ask]).astype(np.float32)
    parts = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for at in range(0, len(good_N), BLOCK):
        rows = good_N[at : at + BLOCK]
        of, column = np.nonzero(ask_nD @ _unit32(x_ND[rows]).T >= edge - _slack(x_ND))
        other = rows[column]
        keep = other != ask[of]
        of, other = of[keep], other[keep]
        keep = cosines(x_ND, ask[of], other) >= edge
        parts.append((of[keep], other[keep]))
    return tuple(np.concatenate(part) for part in zip(*parts))  # type: ignore[return-value]


class _CellJoin:
    """The blocks of an approximate join, each kept in `work` once it is done."""

    def __init__(
        self,
        x_ND: Floats,
        good_n: Ints,
        edge: float,
        work: Path,
        seed: int,
        progress: Progress,
    ) -> None:
        self.x_ND, self.good_n, self.edge, self.work = x_ND, good_n, edge, work
        self.progress, self.pairs = progress, 0
        self.kept: list[tuple[FinishedRows, int]] = []
        self.count, self.probes = cells(len(good_n))
        key = rng.mix(np.arange(len(good_n), dtype=np.uint64) + np.uint64(_key(seed, 1)))
        self.pick_c = np.sort(np.argsort(key)[: self.count])
        state = xxhash.xxh3_128(f"{x_ND.dtype.str} {x_ND.shape} {edge} {seed} {CONSTANTS}".encode())
        for at in range(0, len(x_ND), BLOCK):
            state.update(x_ND[at : at + BLOCK].tobytes())
        self.name = state.hexdigest()
        atomic.own_dir(work)

    def cells(self) -> Iterator[BlockPairs]:
        """Yield the near pairs of faces that share a cell, in the first cell that they share."""
        kept, total = self._keep("cells", -(-self.count // CELLS))
        near_nP: Any = None
        for number in range(total):
            found = kept.load(number)
            if found is None:
                near_nP = self._assigned() if near_nP is None else near_nP
                found = self._join(near_nP, number * CELLS)
                kept.save(number, found)
            self._counted(found)
            self.progress(number + 1, total, f"{self.pairs} pairs")
            yield found

    def completed(self, turn: int) -> Iterator[BlockPairs]:
        """Yield near pairs among neighbours of neighbours that are not known."""
        from scipy.sparse import csr_matrix

        n, known = len(self.x_ND), self.blocks
        kept, total = self._keep(f"round-{turn}", -(-n // BLOCK))
        full: near_pairs.Graph | None = None
        few: Any = None
        for number in range(total):
            found = kept.load(number)
            if found is None:
                if full is None:
                    full = near_pairs.graph(lambda: known(turn + 1), n, self.work, both=True)
                    near = near_pairs.nearest(full, KNOWN, self.work)
                    ones, start = np.ones(len(near.other), np.int8), near.start_N.astype(np.int32)
                    few = csr_matrix((ones, near.other, start), shape=(n, n))
                found = self._expanded(few, full, number * BLOCK)
                kept.save(number, found)
            self._counted(found)
            self.progress(number + 1, total, f"{self.pairs} pairs")
            yield found

    def blocks(self, steps: int | None = None) -> Iterator[BlockPairs]:
        """Yield what the first steps found, from the disk. Raises InputError GL0501."""
        for kept, total in self.kept[:steps]:
            for number in range(total):
                found = kept.load(number)
                if found is None:
                    raise InputError(
                        "GL0501",
                        f"block {number} of near pairs is not as it was written a moment ago",
                        where=str(self.work),
                        hint="run the same command again: it makes what is not whole",
                    )
                yield found

    def _keep(self, name: str, total: int) -> tuple[FinishedRows, int]:
        kept = FinishedRows(self.work / name, self.name), total
        self.kept.append(kept)
        return kept

    def _counted(self, found: BlockPairs) -> None:
        self.pairs += len(found.a)
        if self.pairs > _limit(len(self.x_ND)):
            raise _too_many(len(self.x_ND), self.edge)

    def _assigned(self) -> npt.NDArray[np.int32]:
        """Return the nearest cells of every face, ascending; mapped from a file."""
        n = len(self.good_n)
        journal = atomic.Journal(self.work / "near.jsonl")
        path = self.work / "near.npy"
        try:
            if path.is_file() and journal.lines and journal.lines[0] == {"join": self.name}:
                near_nP: Any = np.load(path, mmap_mode="r+", allow_pickle=False)
            else:  # there is none, or of other rows
                journal.close()
                with atomic.writing(path):
                    (self.work / "near.jsonl").unlink()
                    near_nP = new_array(path, np.int32, (n, self.probes))
                journal = atomic.Journal(self.work / "near.jsonl")
                journal.append({"join": self.name})
            done = {line["block"]: line["xxh3"] for line in journal.lines[1:]}
            cell_cD: Any = None
            for at in range(0, n, BLOCK):
                if done.get(at) == xxhash.xxh3_128_hexdigest(near_nP[at : at + BLOCK].tobytes()):
                    continue
                if cell_cD is None:
                    cell_cD = _coarse(self.x_ND[self.good_n[self.pick_c]])
                rows = self.good_n[at : at + BLOCK]
                near_nP[at : at + BLOCK] = _top(self.x_ND, rows, cell_cD, self.probes)
                near_nP.flush()
                mark = xxhash.xxh3_128_hexdigest(near_nP[at : at + BLOCK].tobytes())
                journal.append({"block": at, "xxh3": mark})
                self.progress(min(at + BLOCK, n), n, "faces in cells")
        finally:
            journal.close()
        return near_nP  # type: ignore[no-any-return]

    def _join(self, near_nP: npt.NDArray[np.int32], first: int) -> BlockPairs:
        """Join the cells from `first` on."""
        face, cell = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
        for at in range(0, len(near_nP), 8 * BLOCK):
            part_nP = np.asarray(near_nP[at : at + 8 * BLOCK])
            i, p = np.nonzero((part_nP >= first) & (part_nP < first + CELLS))
            face.append(i + at)
            cell.append(part_nP[i, p])
        face_m, cell_m = np.concatenate(face), np.concatenate(cell)
        order = np.argsort(cell_m, kind="stable")
        face_m, cell_m = face_m[order], cell_m[order]
        parts: list[tuple[Ints, Ints]] = []
        for some_m in np.split(np.arange(len(cell_m)), np.flatnonzero(np.diff(cell_m)) + 1):
            if len(some_m):
                parts += self._pairs(near_nP, face_m[some_m], int(cell_m[some_m[0]]))
        a, b = (np.concatenate([np.empty(0, np.int64), *(p[i] for p in parts)]) for i in (0, 1))
        return self._scored(self.good_n[a], self.good_n[b])

    def _pairs(
        self, near_nP: npt.NDArray[np.int32], face_n: Ints, cell: int
    ) -> list[tuple[Ints, Ints]]:
        """Screen one cell: pairs a < b whose first common cell it is."""
        parts = []
        bound = self.edge - _slack(self.x_ND) - (SHORT if screens.bfloat16_is_fast() else 0)
        for i in range(0, len(face_n), TILE):
            rows = face_n[i : i + TILE]
            left_nD = _coarse(self.x_ND[self.good_n[rows]], pad=True)
            for j in range(i, len(face_n), TILE):
                columns = face_n[j : j + TILE]
                right_nD = left_nD
                if i != j:
                    right_nD = _coarse(self.x_ND[self.good_n[columns]], pad=True)
                cosine_nn = (left_nD @ right_nD.T)[: len(rows), : len(columns)]
                a, b = np.divmod(np.flatnonzero((cosine_nn >= bound).numpy()), len(columns))
                keep = a + i < b + j
                a, b = face_n[a[keep] + i], face_n[b[keep] + j]
                first = np.ones(len(a), bool)
                for at in range(0, len(a), BLOCK):
                    cut = slice(at, at + BLOCK)
                    one, two = near_nP[a[cut]], near_nP[b[cut]]
                    both = (one[:, :, None] == two[:, None, :]).any(axis=2)
                    first[cut] = ~(both & (one < cell)).any(axis=1)
                parts.append((a[first], b[first]))
        return parts

    def _expanded(self, few: Any, full: near_pairs.Graph, first: int) -> BlockPairs:
        """Score the neighbours of neighbours of the rows from `first` on."""
        n = len(self.x_ND)
        reach = (few[first : first + BLOCK] @ few).tocoo()
        row, column = reach.row.astype(np.int64), reach.col.astype(np.int64)
        keep = column > row + first
        start_n = full.start_N[first : first + BLOCK + 1]
        old_row = np.repeat(np.arange(len(start_n) - 1), np.diff(start_n))
        old_key = old_row * n + full.other[start_n[0] : start_n[-1]]
        key = np.setdiff1d(row[keep] * n + column[keep], old_key, assume_unique=True)
        a, b = key // n + first, key % n
        held = np.zeros(len(a), bool)
        for at in range(0, len(a), BLOCK):
            cut = slice(at, at + BLOCK)
            cosine = np.einsum("nd,nd->n", _unit32(self.x_ND[a[cut]]), _unit32(self.x_ND[b[cut]]))
            held[cut] = cosine >= self.edge - _slack(self.x_ND)
        return self._scored(a[held], b[held])

    def _scored(self, a: Ints, b: Ints) -> BlockPairs:
        cosine = cosines(self.x_ND, a, b)
        keep = cosine >= self.edge
        return BlockPairs(a[keep], b[keep], cosine[keep])


def _top(x_ND: Floats, rows: Ints, cell_cD: Any, count: int) -> npt.NDArray[np.int32]:
    """Return the nearest cells of some rows, ascending."""
    import torch

    near_nP = np.empty((len(rows), count), np.int32)
    step = max(64, SCORES // len(cell_cD))
    for at in range(0, len(rows), step):
        cosine_nc = _coarse(x_ND[rows[at : at + step]]) @ cell_cD.T
        near_nP[at : at + step] = torch.topk(cosine_nc, count, sorted=False).indices.sort()[0]
    return near_nP


def _among(near: NearPairs, low_m: Ints, high_m: Ints) -> npt.NDArray[np.bool_]:
    """Return which pairs are among the near ones."""
    low_m, high_m = low_m.astype(np.int32), high_m.astype(np.int32)  # or all of them are copied
    begin, end = (np.searchsorted(near.a, low_m, side) for side in ("left", "right"))
    held = np.zeros(len(low_m), bool)
    for i, (first, last) in enumerate(zip(begin.tolist(), end.tolist())):
        held[i] = high_m[i] in near.b[first:last]
    return held


def _unit32(x_nD: Floats) -> F32:
    """Scale rows to length one in float32."""
    row_nD = np.asarray(x_nD, np.float32)
    scaled: F32 = row_nD / np.sqrt(np.einsum("nd,nd->n", row_nD, row_nD))[:, None]
    return scaled


def _coarse(x_nD: Floats, pad: bool = False) -> Any:
    """Scale rows to length one, as torch has products of quickly: in bfloat16, or float32.

    pad: to a multiple of 128 rows; there is a program to make for each new shape.
    """
    import torch

    row_nD = torch.from_numpy(_unit32(x_nD))
    if not screens.bfloat16_is_fast():
        return row_nD
    return torch.nn.functional.pad(row_nD.bfloat16(), (0, 0, 0, -len(x_nD) % 128 if pad else 0))


def _slack(x_ND: Floats) -> float:
    """Bound what float32 takes from a cosine: of the product, and of lengths found in float32."""
    return 2 * screens.margin(x_ND.shape[1])


def _limit(n: int) -> int:
    return min(max(1_000_000, LIMIT * n), 2**30 - 1)  # scipy counts both ends of them in 31 bits


def _key(seed: int, purpose: int) -> int:
    return rng.key_of(seed, purpose)


def _too_many(n: int, edge: float) -> ResourceError:
    return ResourceError(
        "GL0503",
        f"more than {_limit(n)} pairs of {n} faces reach cosine {edge:.3f}",
        where="--method graph",
        hint="a higher --edge; many copies of one image? glint drop takes them out",
    )
