"""How often each row appears in an epoch: exact, repeatable counts from draws per identity.

n rows, L labels, C identities. Draws are whole numbers of 2**-24 inside, so no result depends on
how a machine rounds.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from glint.errors import UsageError
from glint.rng import I64, hash_at, key_of
from glint.stream.class_rows import ClassRows

_BITS = 24
_ONE = 1 << _BITS
_STRIDE = 10_368_889  # 2**24 * (golden ratio - 1), odd: offsets of epochs spread evenly
_CHUNK = 64  # rows per entry of the running total
_PART = 1 << 22  # rows handled at once


@dataclass(frozen=True)
class EpochCounts:
    """The multiset of one epoch: times_n copies of each row, in row order."""

    times_n: npt.NDArray[np.integer[Any]]  # padded with zeros to a multiple of _CHUNK
    total_k: I64  # copies before chunk k

    def row_of(self, slot_m: I64) -> I64:
        """Find the row that fills each slot when rows stand in order, repeated times_n times."""
        chunk_m = np.searchsorted(self.total_k, slot_m, side="right") - 1
        running = np.cumsum(self.times_n.reshape(-1, _CHUNK)[chunk_m], axis=1, dtype=np.int64)
        within = (running <= (slot_m - self.total_k[chunk_m])[:, None]).sum(axis=1)
        return np.asarray(chunk_m * _CHUNK + within, dtype=np.int64)


class Draws:
    """Turn draws per identity and epoch (fractions allowed) into whole copies of rows.

    class_rows: the rows of each identity. draws_C: draws per epoch; None draws every row of theirs
    once. In an epoch identity c has either floor or ceil of its draws (systematic sampling with one
    offset per epoch, so every epoch has the same length); the draws walk round the identity's
    images, from a keyed start, and go on where the last epoch stopped, so no image is drawn twice
    more often than another before all had their turn: over any run of epochs the counts inside
    one identity differ by at most one. (`glint shard` has permuted the samples, so row order is no
    order of the source's.) The length of an epoch is the sum of draws, rounded up at the identity
    with most draws. State: O(C), and with `at` one byte per row for the epoch in use.
    Errors: UsageError GL0002.
    """

    def __init__(
        self, class_rows: ClassRows, draws_C: npt.NDArray[Any] | None = None, seed: int = 0
    ) -> None:
        self.class_rows, self.n = class_rows, class_rows.n
        self.count_C = class_rows.count_C
        self._lock = threading.Lock()
        self._last: tuple[int, EpochCounts] | None = None
        self._turns: tuple[int, I64, I64 | None] | None = None
        self._table = draws_C is not None
        if draws_C is None:
            self.length = int(self.count_C.sum())
            return
        draws = np.asarray(draws_C, dtype=np.float64)
        if not (np.isfinite(draws).all() and (draws >= 0).all() and draws.sum() < 2.0**38):
            raise UsageError(
                "GL0002",
                "draws must be finite and not negative, and their sum below 2**38",
                where="sampling table",
            )
        if len(draws) != len(self.count_C):
            raise UsageError(
                "GL0002",
                f"rows name {len(self.count_C)} identities, the table has {len(draws)}",
                where="sampling table",
            )
        fixed = np.rint(draws * _ONE).astype(np.int64)
        fixed[(draws > 0) & (fixed == 0)] = 1
        if (fixed[self.count_C == 0] > 0).any():
            missing = int(np.flatnonzero((fixed > 0) & (self.count_C == 0))[0])
            raise UsageError(
                "GL0002", f"identity {missing} has draws but no image", where="sampling table"
            )
        short = -int(fixed.sum()) % _ONE
        if short:
            fixed[int(np.argmax(fixed))] += short
        self.length = int(fixed.sum()) >> _BITS
        self._edge = _edges(fixed)  # C + 1
        self._offset = key_of(seed, 0x0FF5E7) % _ONE
        turn = hash_at(key_of(seed, 0x04DE4), np.arange(len(draws)))
        turn %= np.maximum(self.count_C, 1).astype(np.uint64)
        self._first_C = turn.astype(np.uint32)
        self._before = (0, np.zeros(len(draws), dtype=np.int64))

    def drawn(self, epoch: int) -> I64:
        """Return the whole draws of each identity in one epoch."""
        offset = (self._offset + epoch * _STRIDE) % _ONE
        return np.diff((self._edge + offset) >> _BITS)

    def drawn_before(self, epoch: int) -> I64:
        """Return the draws of each identity in all epochs before this one; O(C) per new epoch."""
        with self._lock:
            done, total_C = self._before
            if done > epoch:
                done, total_C = 0, np.zeros_like(total_C)
            while done < epoch:
                total_C = total_C + self.drawn(done)
                done += 1
            self._before = done, total_C
            return total_C

    def rows(self, epoch: int, slot_m: I64) -> I64:
        """Find the row of each slot of an epoch when slots stand identity by identity; O(C) state.

        The same multiset as `at`, in another order.
        """
        with self._lock:
            turns = self._turns if self._turns is not None and self._turns[0] == epoch else None
        if turns is None:
            drawn_C = self.drawn(epoch) if self._table else self.count_C
            first_C = (self.drawn_before(epoch) + self._first_C) if self._table else None
            turns = epoch, _edges(drawn_C), first_C
            with self._lock:
                self._turns = turns
        _, edge, first_C = turns
        class_m = np.searchsorted(edge, slot_m, side="right") - 1
        turn_m = slot_m - edge[class_m]
        if first_C is not None:
            turn_m = (turn_m + first_C[class_m]) % self.count_C[class_m]
        return self.class_rows.row_of(class_m, turn_m)

    def at(self, epoch: int) -> EpochCounts:
        """Return the multiset of one epoch; the last one asked for is kept (about n bytes)."""
        name = epoch if self._table else 0
        with self._lock:
            if self._last is not None and self._last[0] == name:
                return self._last[1]
        counts = self._counts(epoch)
        with self._lock:
            self._last = name, counts
        return counts

    def _counts(self, epoch: int) -> EpochCounts:
        """Mark, in every label's run of rows, the cyclic interval of turns that the epoch takes."""
        class_rows, target_L = self.class_rows, self.class_rows.target_L
        kept_L = target_L >= 0
        class_L = np.where(kept_L, target_L, 0)
        if self._table:
            count_C = np.maximum(self.count_C, 1)
            passes_C, rest_C = np.divmod(self.drawn(epoch), count_C)
            start_C = (self.drawn_before(epoch) + self._first_C) % count_C
            passes_L = np.where(kept_L, passes_C[class_L], 0)
        else:
            passes_L = kept_L.astype(np.int64)
        most = int(passes_L.max(initial=0)) + 1
        kind = np.uint8 if most < 256 else np.uint16 if most < 65536 else np.int64
        padded = -(-max(self.n, 1) // _CHUNK) * _CHUNK
        times = np.zeros(padded, dtype=kind)
        edges = np.searchsorted(
            class_rows.first_L, np.arange(0, class_rows.first_L[-1], _PART), side="left"
        )
        for lo, hi in zip(edges, [*edges[1:], len(target_L)]):  # bounds the temporaries
            if lo == hi:
                continue
            label = slice(lo, hi)
            begin, end = int(class_rows.first_L[lo]), int(class_rows.first_L[hi])
            times_m = np.repeat(passes_L[label].astype(kind), class_rows.size_L[label])
            if self._table:
                start_l, rest_l = start_C[class_L[label]], rest_C[class_L[label]]
                count_l = count_C[class_L[label]]
                base_l, first_l = class_rows.base(label), class_rows.first_L[label] - begin
                size_l = np.where(kept_L[label], class_rows.size_L[label], 0)
                change = np.zeros(end - begin + 1, dtype=np.int8)
                for a_l, b_l in (
                    (start_l, np.minimum(start_l + rest_l, count_l)),
                    (np.zeros_like(start_l), start_l + rest_l - count_l),
                ):
                    a_l = np.clip(a_l - base_l, 0, size_l)
                    b_l = np.clip(b_l - base_l, a_l, size_l)
                    some = a_l < b_l
                    np.add.at(change, (first_l + a_l)[some], 1)
                    np.subtract.at(change, (first_l + b_l)[some], 1)
                times_m += np.cumsum(change[:-1], dtype=np.int8).astype(kind)
            times[class_rows.row_n[begin:end]] = times_m
        total = np.zeros(padded // _CHUNK, dtype=np.int64)
        np.cumsum(times.reshape(-1, _CHUNK).sum(axis=1, dtype=np.int64)[:-1], out=total[1:])
        return EpochCounts(times, total)


def _edges(count_C: I64) -> I64:
    """Return the running total, from 0."""
    edge = np.zeros(len(count_C) + 1, dtype=np.int64)
    np.cumsum(count_C, out=edge[1:])
    return edge
