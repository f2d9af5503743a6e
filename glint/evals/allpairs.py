"""Accept rates over every pair of a set: 10^12 pairs in blocks, counted, the thresholds exact.

A pair's score is the float64 product of its two rows, unit rows kept in float32, rounded to ten
decimals. A first pass multiplies blocks in float32 and counts the impostors in narrow bins. A
product of D terms is off by less than D * 2^-24, so the bins around the one that holds the
threshold of a FAR hold every pair that can decide it; a second pass scores these in float64 and
takes the threshold among them. Genuine pairs are scored in float64, all of them.
"""

# n rows sorted by identity, D embedding, r rows and c columns of a block, k pairs near a threshold

from __future__ import annotations

import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glint.errors import InputError, MismatchError, UsageError
from glint.evals.roc import BINS as COARSE
from glint.evals.roc import FARS, allowed, histogram
from glint.files import atomic
from glint.log import Progress, silent
from glint.search.screens import exactly

if TYPE_CHECKING:
    import torch

BLOCK = 4096  # rows and columns at once; 2^24 scores are the most that float32 counts can count
BINS = 1 << 17
EDGE = 1 + 2.0**-8  # the bins cover [-EDGE, EDGE]: room for what rounding puts above 1
WIDTH = 2 * EDGE / BINS
ROOM = 1 << 22  # pairs scored in float64 for one threshold
PARTS = 1 << 13  # of these at a time
PERSON = 2048  # rows of one person at once
DIGITS = 10  # decimals of a score: equal pairs stay equal, in whatever order their terms are added
SAVE_SECONDS = 20.0
FORMAT = "glint/all-pairs@1"


@dataclass(frozen=True)
class AllPairs:
    """Accept rates over all pairs.

    tar_at_far: share of genuine pairs above the threshold, at most the FAR of impostors above it,
    ties refused. tar_at_most: the same, except where `exact` is False: there the pairs around the
    threshold were too many to be scored again, the threshold is the upper edge of where it can be
    and tar_at_most is the TAR of the lower edge. dropped: rows without an embedding or identity.
    pairs_per_second: of the impostor passes of this call, None where nothing was left to do.
    """

    rows: int
    dropped: int
    identities: int
    genuine: int
    impostors: int
    tar_at_far: dict[str, float | None]
    tar_at_most: dict[str, float | None]
    threshold_at_far: dict[str, float | None]
    exact: dict[str, bool]
    histogram: dict[str, list[int]]
    roc: list[tuple[float, float]]
    pairs_per_second: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class _Rows:
    """The sorted unit rows in their file; a span is read when asked for."""

    path: Path
    label_n: np.ndarray
    dim: int

    def read(self, start: int, stop: int) -> np.ndarray:
        stop = min(stop, len(self.label_n))
        flat = np.fromfile(
            self.path, np.float32, (stop - start) * self.dim, offset=4 * start * self.dim
        )
        return flat.reshape(stop - start, self.dim)


def all_pairs(
    sample_nD: np.ndarray,
    label_n: np.ndarray,
    *,
    fars: Sequence[str] = FARS,
    work: Path | None = None,
    block: int = BLOCK,
    room: int = ROOM,
    device: str = "cpu",
    progress: Progress = silent,
) -> AllPairs:
    """Count every pair of the rows of `sample_nD` once; rows may be of any length.

    sample_nD: float array or memory map; label_n: identity, below 0 = left out, as are rows that
    are not finite or zero. work: folder that keeps what is done, from which the same call goes on,
    one row of blocks lost at most; else a temporary one. It takes 4 n D bytes of disk; memory is
    some 16 block^2 bytes and 8 `room` for each FAR. Raises InputError GL0402 where the arrays do
    not fit or no pair is of different people, UsageError GL0002, MismatchError GL0006 for the work
    of other inputs, ResourceError.
    """
    sample_nD = np.asanyarray(sample_nD)
    label_n = np.asarray(label_n, np.int64)
    if sample_nD.ndim != 2 or label_n.shape != sample_nD.shape[:1]:
        raise InputError(
            "GL0402", f"expected a row for each of {label_n.shape} labels, found {sample_nD.shape}"
        )
    if not 1 <= block <= BLOCK:
        raise UsageError("GL0002", f"expected a block of 1 to {BLOCK} rows, found {block}")
    if work is not None:
        atomic.make_dir(work)
        with atomic.lock(work / "lock"):
            return _run(sample_nD, label_n, fars, work, block, room, device, progress)
    with tempfile.TemporaryDirectory(prefix="glint-all-pairs-") as folder:
        return _run(sample_nD, label_n, fars, Path(folder), block, room, device, progress)


def _run(
    sample_nD: np.ndarray,
    label_n: np.ndarray,
    fars: Sequence[str],
    work: Path,
    block: int,
    room: int,
    device: str,
    progress: Progress,
) -> AllPairs:
    rows = _prepare(sample_nD, label_n, work, block)
    count = len(rows.label_n)
    size_c = np.unique(rows.label_n, return_counts=True)[1].astype(np.int64)
    genuine = int((size_c * (size_c - 1) // 2).sum())
    impostors = count * (count - 1) // 2 - genuine
    if not impostors:
        raise InputError("GL0402", f"{count} faces of {len(size_c)} identities: no pairs to tell")
    meter = _Meter(progress, -(-count // block))
    with exactly():
        count_b = _first_pass(rows, work, block, device, meter)
        wanted = {far: allowed(far, impostors) for far in fars}
        windows = _windows(count_b, wanted, rows.dim)
        few = {far: (low, high) for far, (low, high, near) in windows.items() if near <= room}
        exact = _second_pass(rows, work, block, device, few, wanted, meter)
    limit: dict[str, tuple[float, float]] = {}  # of each FAR: threshold, lowest it can be
    for far in fars:
        if wanted[far] >= impostors:
            limit[far] = (-np.inf, -np.inf)
        elif far in exact:
            limit[far] = (exact[far], exact[far])
        else:
            low, high, _ = windows[far]
            limit[far] = (high, low)
    curve = _curve(count_b)
    edges = np.array([*(e for pair in limit.values() for e in pair), *(t for _, t in curve)])
    above_e, coarse = _genuine(rows, edges)
    share_e = above_e / genuine if genuine else None
    found: dict[str, dict[str, Any]] = {name: {} for name in ("tar", "most", "cut", "exact")}
    for i, far in enumerate(fars):
        found["tar"][far] = None if share_e is None else float(share_e[2 * i])
        found["most"][far] = None if share_e is None else float(share_e[2 * i + 1])
        found["cut"][far] = max(limit[far][0], -1.0)
        found["exact"][far] = far in exact or wanted[far] >= impostors
    roc = []
    if share_e is not None:
        roc = [(far, float(tar)) for (far, _), tar in zip(curve, share_e[2 * len(fars) :])]
    return AllPairs(
        rows=count,
        dropped=len(label_n) - count,
        identities=len(size_c),
        genuine=genuine,
        impostors=impostors,
        tar_at_far=found["tar"],
        tar_at_most=found["most"],
        threshold_at_far=found["cut"],
        exact=found["exact"],
        histogram={"genuine": coarse.tolist(), "impostors": _coarse(count_b).tolist()},
        roc=roc,
        pairs_per_second=meter.rate(),
    )


def _prepare(sample_nD: np.ndarray, label_n: np.ndarray, work: Path, block: int) -> _Rows:
    """Write the unit rows sorted by identity. Raises MismatchError where `work` is of others."""
    order = np.argsort(label_n, kind="stable")
    order = order[label_n[order] >= 0]
    dim, crc = sample_nD.shape[1], 0
    step = max(1, (16 << 20) // max(1, 8 * dim))
    path, about = work / "rows.f32", work / "plan.json"
    kept = [np.empty(0, np.int64)]
    with atomic.replacing(path) as file:
        for at in range(0, len(order), step):
            chosen = order[at : at + step]
            part_nD = np.asarray(sample_nD[chosen], np.float64)
            length_n = np.sqrt(np.square(part_nD).sum(1))
            good_n = np.isfinite(length_n) & (length_n > 0)
            kept.append(label_n[chosen[good_n]])
            data = (part_nD[good_n] / length_n[good_n, None]).astype(np.float32).tobytes()
            crc = zlib.crc32(data, crc)
            file.write(data)
        kept_n = np.concatenate(kept)
        plan = {"format": FORMAT, "rows": len(kept_n), "dim": dim, "block": block, "crc32": crc,
                "labels": zlib.crc32(kept_n.tobytes())}  # fmt: skip
        if about.exists() and atomic.read_json(about, "GL0006") != plan:
            raise MismatchError(
                "GL0006", "begun from other embeddings, identities or blocks", where=str(work),
                hint="name another folder, or delete this one",
            )  # fmt: skip
    atomic.write_json(about, plan)
    return _Rows(path, kept_n, dim)


class _Meter:
    """Reports progress in rows of blocks, and measures pairs per second of the passes."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.total = total
        self._progress, self._pairs, self._seconds = progress, 0, 0.0

    def add(self, row: int, pairs: int, seconds: float, what: str) -> None:
        self._pairs += pairs
        self._seconds += seconds
        self._progress(row + 1, self.total, f"{what}, {pairs / max(seconds, 1e-9):.3g} pairs/s")

    def rate(self) -> float | None:
        return self._pairs / self._seconds if self._seconds else None


def _blocks(
    rows: _Rows, first: int, block: int, device: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Score one row of blocks from the diagonal on: float32 (r, D), (c, D), (r, c).

    Pairs that do not count are -9: the diagonal, what lies below it, pairs of one person.
    """
    import torch

    count, label_n = len(rows.label_n), rows.label_n
    a_rD = torch.from_numpy(rows.read(first, first + block)).to(device)
    a_r = torch.from_numpy(label_n[first : first + block]).to(device)
    for at in range(first, count, block):
        b_cD = torch.from_numpy(rows.read(at, at + block)).to(device)
        score_rc = a_rD @ b_cD.T
        if label_n[at] <= label_n[first + len(a_r) - 1]:  # sorted: else nobody is on both sides
            b_c = torch.from_numpy(label_n[at : at + block]).to(device)
            score_rc.masked_fill_(a_r[:, None] == b_c[None, :], -9.0)
        if at == first:
            score_rc.masked_fill_(torch.ones_like(score_rc, dtype=torch.bool).tril_(), -9.0)
        yield a_rD, b_cD, score_rc


def _first_pass(rows: _Rows, work: Path, block: int, device: str, meter: _Meter) -> np.ndarray:
    """Count the impostors in bins: int64 (BINS). The counts are kept with how far they reach."""
    import torch

    path, done = work / "counts.npy", 0
    count_b = np.zeros(BINS, np.int64)
    if path.exists():
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
        done, count_b = int(stored[0]), stored[1:].copy()
    saved = time.monotonic()
    for row in range(done, meter.total):
        began, pairs = time.monotonic(), 0
        for _, _, score_rc in _blocks(rows, row * block, block, device):
            found = torch.histc(score_rc, bins=BINS, min=-EDGE, max=EDGE).cpu().numpy()
            count_b += found.astype(np.int64)
            pairs += score_rc.numel()
        if time.monotonic() - saved > SAVE_SECONDS or row + 1 == meter.total:
            with atomic.replacing(path) as file:
                np.save(file, np.concatenate([[row + 1], count_b]))
            saved = time.monotonic()
        meter.add(row, pairs, time.monotonic() - began, "counting")
    return count_b


def _windows(
    count_b: np.ndarray, wanted: dict[str, int], dim: int
) -> dict[str, tuple[float, float, int]]:
    """Return, by FAR, the span of scores that its threshold lies in, and how many pairs do."""
    rising_b = np.cumsum(count_b[::-1])  # impostors in the uppermost b bins
    slack = 2.2 * dim * 2.0**-24 + 2 * WIDTH
    reach = int(np.ceil(slack / WIDTH)) + 1
    found = {}
    for far, spare in wanted.items():
        if spare < rising_b[-1]:
            holder = BINS - 1 - int(np.searchsorted(rising_b, spare, side="right"))
            near = int(count_b[max(0, holder - reach) : holder + reach + 1].sum())
            low = -EDGE + holder * WIDTH
            found[far] = (low - slack, low + WIDTH + slack, near)
    return found


def _second_pass(
    rows: _Rows,
    work: Path,
    block: int,
    device: str,
    windows: dict[str, tuple[float, float]],
    wanted: dict[str, int],
    meter: _Meter,
) -> dict[str, float]:
    """Find the exact threshold of each window: the impostor score that may not be accepted."""
    if not windows:
        return {}
    span_w2 = np.array(list(windows.values()))
    above_w = np.zeros(len(windows), np.int64)
    near: list[list[np.ndarray]] = [[] for _ in windows]
    for row in range(meter.total):
        path = work / f"near-{row:06d}.npz"
        kept = _kept(path, span_w2)
        if kept is None:
            began = time.monotonic()
            *kept, pairs = _near(rows, row * block, block, device, span_w2)
            with atomic.replacing(path) as file:
                parts = {f"near_{w}": part for w, part in enumerate(kept[1])}
                np.savez(file, span=span_w2, above=kept[0], **parts)
            meter.add(row, pairs, time.monotonic() - began, "refining")
        above_w += kept[0]
        for w, part in enumerate(kept[1]):
            near[w].append(part)
    found = {}
    for w, far in enumerate(windows):
        score_k = np.concatenate(near[w])
        place = len(score_k) - 1 - (wanted[far] - int(above_w[w]))
        if not 0 <= place < len(score_k):
            raise MismatchError(
                "GL0006", f"the counts of FAR {far} do not fit its pairs", where=str(work),
                hint="delete this folder and run the same command again",
            )  # fmt: skip
        found[far] = float(np.partition(score_k, place)[place])
    return found


def _kept(path: Path, span_w2: np.ndarray) -> list[Any] | None:
    """Return what an earlier call found in a row of blocks, if it looked for the same."""
    if not path.exists():
        return None
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        if not np.array_equal(stored["span"], span_w2):
            return None
        return [stored["above"], [stored[f"near_{w}"] for w in range(len(span_w2))]]


def _near(
    rows: _Rows, first: int, block: int, device: str, span_w2: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray], int]:
    """Count the pairs above each span, and score those within it in float64."""
    import torch

    above_w = np.zeros(len(span_w2), np.int64)
    near: list[list[np.ndarray]] = [[np.empty(0)] for _ in span_w2]
    pairs = 0
    for a_rD, b_cD, score_rc in _blocks(rows, first, block, device):
        pairs += score_rc.numel()
        flat = score_rc.flatten()
        at_k = torch.nonzero(flat >= float(span_w2.min()))[:, 0]
        rough_k = flat[at_k]
        inside_k = torch.zeros_like(at_k, dtype=torch.bool)
        for w, (low, high) in enumerate(span_w2.tolist()):
            above_w[w] += int((rough_k > high).sum())
            inside_k |= (rough_k >= low) & (rough_k <= high)
        at_k, rough_k = at_k[inside_k], rough_k[inside_k]
        for start in range(0, len(at_k), PARTS):
            some_k, rough = at_k[start : start + PARTS], rough_k[start : start + PARTS]
            a_kD = a_rD[some_k // len(b_cD)].double()
            exact_k = (a_kD * b_cD[some_k % len(b_cD)].double()).sum(1).cpu().numpy().round(DIGITS)
            for w, (low, high) in enumerate(span_w2.tolist()):
                near[w].append(exact_k[((rough >= low) & (rough <= high)).cpu().numpy()])
    return above_w, [np.concatenate(part) for part in near], pairs


def _curve(count_b: np.ndarray) -> list[tuple[float, float]]:
    """Return points (FAR, threshold) of the curve, up to 25 a decade, from the bins' edges."""
    rising_b = np.cumsum(count_b[::-1])
    total = int(rising_b[-1])
    points = max(2, int(25 * np.log10(total)) + 1)
    place_p = np.searchsorted(rising_b, np.geomspace(1, total, points), side="left")
    return [
        (int(rising_b[b]) / total, EDGE - (b + 1) * WIDTH)
        for b in np.unique(np.minimum(place_p, BINS - 1)).tolist()
    ]


def _coarse(count_b: np.ndarray) -> np.ndarray:
    """Add the narrow bins up to those that a result carries."""
    centre_b = np.clip(-EDGE + (np.arange(BINS) + 0.5) * WIDTH, -1, 1)
    sums = np.histogram(centre_b, COARSE, (-1, 1), weights=count_b)[0]
    return np.asarray(sums.astype(np.int64))


def _genuine(rows: _Rows, edge_e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Score the pairs of each person in float64: how many lie above each edge, and COARSE bins."""
    order = np.argsort(edge_e)
    rising_e = edge_e[order]
    below = np.zeros(len(edge_e) + 1, np.int64)  # by how many edges lie below a score
    coarse = np.zeros(COARSE, np.int64)

    def count(a_nD: np.ndarray, b_nD: np.ndarray, own: bool) -> None:
        score_nn = (a_nD @ b_nD.T).round(DIGITS)
        score_n = score_nn[np.triu_indices(len(a_nD), 1)] if own else score_nn.ravel()
        nonlocal below, coarse
        place_n = np.searchsorted(rising_e, score_n, side="left")
        below += np.bincount(place_n, minlength=len(below))
        coarse += histogram(score_n)

    start_c = np.flatnonzero(np.diff(rows.label_n, prepend=-1))
    stop_c = np.append(start_c[1:], len(rows.label_n))
    held, held_at = np.empty((0, rows.dim)), 0
    for start, stop in zip(start_c.tolist(), stop_c.tolist()):
        if stop - start > PERSON:
            for a in range(start, stop, PERSON):
                a_nD = rows.read(a, min(a + PERSON, stop)).astype(np.float64)
                for b in range(a, stop, PERSON):
                    b_nD = rows.read(b, min(b + PERSON, stop)).astype(np.float64)
                    count(a_nD, b_nD, own=a == b)
        elif stop - start > 1:
            if stop > held_at + len(held):
                held, held_at = rows.read(start, start + 4 * PERSON).astype(np.float64), start
            own_nD = held[start - held_at : stop - held_at]
            count(own_nD, own_nD, own=True)
    above_e = np.empty(len(edge_e), np.int64)
    above_e[order] = below[::-1].cumsum()[::-1][1:]
    return above_e, coarse
