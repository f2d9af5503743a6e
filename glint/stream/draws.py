"""How often each row appears in an epoch: exact, repeatable counts from draws per identity.

n rows, C identities. Draws are whole numbers of 2**-24 inside, so no result depends on how a
machine rounds.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from glint.errors import UsageError
from glint.stream.permute import I64, key_of

_BITS = 24
_ONE = 1 << _BITS
_STRIDE = 10_368_889  # 2**24 * (golden ratio - 1), odd: offsets of epochs spread evenly
_CHUNK = 64  # rows per entry of the running total


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

    identity_n: identity of each row, -1 for a row that is never drawn. draws_C: draws per epoch;
    None draws every such row once. An epoch gives identity c either floor or ceil of its draws
    (systematic sampling with one offset per epoch, so every epoch has the same length); the
    draws walk through the identity's images in a keyed order and go on where the last epoch
    stopped, so no image is drawn twice more often than another before all had their turn: over
    any run of epochs the counts inside one identity differ by at most one.
    The length of an epoch is the sum of draws, rounded up at the identity with most draws.
    Errors: UsageError GL0002.
    """

    def __init__(self, identity_n: npt.NDArray[Any], draws_C: npt.NDArray[Any] | None = None,
                 seed: int = 0) -> None:
        identity = np.asarray(identity_n)
        self.n = len(identity)
        self.kept = identity >= 0
        self._lock = threading.Lock()
        self._last: tuple[int, EpochCounts] | None = None
        self._table = draws_C is not None
        if draws_C is None:
            self.length = int(self.kept.sum())
            return
        draws = np.asarray(draws_C, dtype=np.float64)
        if not (np.isfinite(draws).all() and (draws >= 0).all() and draws.sum() < 2.0**38):
            raise UsageError("GL0002", "draws must be finite and not negative, and their sum "
                             "below 2**38", where="sampling table")
        if self.n >= 2**32 or (self.n and int(identity.max()) >= len(draws)):
            raise UsageError("GL0002", f"rows name identity {int(identity.max())}, the table has "
                             f"{len(draws)}", where="sampling table")
        self.identity_n = identity.astype(np.int32)
        count = np.bincount(identity[self.kept], minlength=len(draws))
        fixed = np.rint(draws * _ONE).astype(np.int64)
        fixed[(draws > 0) & (fixed == 0)] = 1
        if (fixed[count == 0] > 0).any():
            missing = int(np.flatnonzero((fixed > 0) & (count == 0))[0])
            raise UsageError("GL0002", f"identity {missing} has draws but no image",
                             where="sampling table")
        short = -int(fixed.sum()) % _ONE
        if short:
            fixed[int(np.argmax(fixed))] += short
        self.count_C = count.astype(np.int64)
        self._until_C = np.cumsum(fixed)
        self._from_C = self._until_C - fixed
        self.length = int(fixed.sum()) >> _BITS
        self._offset = key_of(seed, 0x0FF5E7) % _ONE
        self._order_n = _order(self.identity_n, self.kept, self.count_C, key_of(seed, 0x04DE4))
        self._before = (0, np.zeros(len(draws), dtype=np.int64))

    def drawn(self, epoch: int) -> I64:
        """Give the whole draws of each identity in one epoch."""
        offset = (self._offset + epoch * _STRIDE) % _ONE
        return np.asarray(((self._until_C + offset) >> _BITS) - ((self._from_C + offset) >> _BITS))

    def drawn_before(self, epoch: int) -> I64:
        """Give the draws of each identity in all epochs before this one; O(C) per new epoch."""
        with self._lock:
            done, total_C = self._before
            if done > epoch:
                done, total_C = 0, np.zeros_like(total_C)
            while done < epoch:
                total_C = total_C + self.drawn(done)
                done += 1
            self._before = done, total_C
            return total_C

    def at(self, epoch: int) -> EpochCounts:
        """Give the multiset of one epoch; the last one asked for is kept (about n bytes)."""
        name = epoch if self._table else 0
        with self._lock:
            if self._last is not None and self._last[0] == name:
                return self._last[1]
        counts = self._counts(epoch)
        with self._lock:
            self._last = name, counts
        return counts

    def _counts(self, epoch: int) -> EpochCounts:
        padded = -(-max(self.n, 1) // _CHUNK) * _CHUNK
        if not self._table:
            times = np.zeros(padded, dtype=np.uint8)
            times[:self.n] = self.kept
        else:
            drawn_C, before_C = self.drawn(epoch), self.drawn_before(epoch)
            count_C = np.maximum(self.count_C, 1)
            passes_C, rest_C = np.divmod(drawn_C, count_C)
            start_C = before_C % count_C
            most = int(passes_C.max(initial=0)) + 1
            kind = np.uint8 if most < 256 else np.uint16 if most < 65536 else np.int64
            times = np.zeros(padded, dtype=kind)
            for lo in range(0, self.n, 1 << 20):  # bounds the memory of the temporaries
                part = slice(lo, min(lo + (1 << 20), self.n))
                c_m = np.maximum(self.identity_n[part], 0)
                turn_m = self._order_n[part].astype(np.int64) - start_C[c_m]
                turn_m += np.where(turn_m < 0, count_C[c_m], 0)
                times_m = passes_C[c_m] + (turn_m < rest_C[c_m])
                times[part] = np.where(self.kept[part], times_m, 0)
        total = np.zeros(padded // _CHUNK, dtype=np.int64)
        np.cumsum(times.reshape(-1, _CHUNK).sum(axis=1, dtype=np.int64)[:-1], out=total[1:])
        return EpochCounts(times, total)


def _order(identity_n: npt.NDArray[np.int32], kept: npt.NDArray[np.bool_], count_C: I64,
           key: int) -> npt.NDArray[np.uint32]:
    """Give each row its turn, 0.. count-1, in a keyed order of its identity's images."""
    row_m = np.flatnonzero(kept)
    mixed = row_m.astype(np.uint32) ^ np.uint32(key & 0xFFFFFFFF)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):  # one to one on 32 bits
        mixed ^= mixed >> np.uint32(shift)
        mixed *= np.uint32(factor)
    name = (identity_n[row_m].astype(np.uint64) << np.uint64(32)) | mixed
    row_m = row_m[np.argsort(name)]  # all names differ: any sort gives the same order
    first_C = np.cumsum(count_C) - count_C
    turn = np.zeros(len(identity_n), dtype=np.uint32)
    turn[row_m] = np.arange(len(row_m)) - first_C[identity_n[row_m]]
    return turn
