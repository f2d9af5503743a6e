"""An order of identities rather than of images: some images of each, then the next identity."""

# m positions asked for, C classes, i images of one identity

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from glint.errors import UsageError
from glint.rng import I64, U64, hash_at, key_of, mix, shuffle
from glint.stream.class_rows import ClassRows

_ORDER, _INSIDE, _ROUND = 0x1D0, 0x1D1, 0x1D2  # purposes of keys
_FEW = 64  # images up to which an identity's order is made by sorting hashes
ENDLESS = 1 << 62


class IdentityPlan:
    """Map positions to rows: `each` images of every identity per cycle, in a keyed order.

    A cycle is an epoch, unless `endless`: then one epoch holds all cycles one after another.
    An identity with at least `each` images gives different ones each time, and none again before
    all of its whole groups of `each` had their turn; one with fewer repeats them evenly.
    State: O(C). Errors: UsageError GL0002.
    """

    def __init__(
        self, class_rows: ClassRows, each: int, seed: int, kept_C: Any = None, endless: bool = False
    ) -> None:
        if each < 1:
            raise UsageError("GL0002", f"images per identity must be at least 1, found {each}")
        some_C = class_rows.count_C > 0
        self.class_c = np.flatnonzero(some_C if kept_C is None else some_C & kept_C)
        if not len(self.class_c):
            raise UsageError(
                "GL0002",
                "no identity with an image is left to draw",
                hint="check the label table and the sampling table",
            )
        self.class_rows, self.each, self.seed, self.endless = class_rows, each, seed, endless
        self.cycle = len(self.class_c) * each
        self.length = ENDLESS if endless else self.cycle

    def rows_at(self, epoch: int, position_m: npt.NDArray[Any]) -> I64:
        """Return the row at each position; one past the end of an epoch wraps to its beginning."""
        position_m = np.asarray(position_m, dtype=np.int64)
        if not self.endless:
            return self._rows(np.full_like(position_m, epoch), position_m % self.cycle)
        return self._rows(position_m // self.cycle, position_m % self.cycle)

    def drawn_before(self, epochs: int) -> I64:
        """Return the draws of each class in the first epochs (cycles)."""
        drawn = np.zeros(len(self.class_rows.count_C), dtype=np.int64)
        drawn[self.class_c] = self.each * epochs
        return drawn

    def _rows(self, cycle_m: I64, place_m: I64) -> I64:
        turn_m, within_m = np.divmod(place_m, self.each)
        class_m = np.empty_like(turn_m)
        for cycle in np.unique(cycle_m).tolist():
            here = cycle_m == cycle
            key = key_of(self.seed, _ORDER, cycle)
            class_m[here] = self.class_c[shuffle(turn_m[here], len(self.class_c), key)]
        count_m = self.class_rows.count_C[class_m]
        round_m, group_m = np.divmod(cycle_m, np.maximum(count_m // self.each, 1))
        key_m = mix(
            hash_at(key_of(self.seed, _INSIDE), class_m)
            ^ hash_at(key_of(self.seed, _ROUND), round_m)
        )
        image_m = _ordered((group_m * self.each + within_m) % count_m, count_m, key_m)
        return self.class_rows.row_of(class_m, image_m)


def _ordered(turn_m: I64, count_m: I64, key_m: U64) -> I64:
    """Permute range(count) by key, per element: sorted hashes where few, a network where many."""
    out = np.empty_like(turn_m)
    few = np.flatnonzero(count_m <= _FEW)
    if few.size:
        at_i = np.arange(int(count_m[few].max()), dtype=np.uint64)
        hash_fi = mix(mix(at_i) ^ key_m[few][:, None])
        hash_fi[at_i >= count_m[few][:, None].astype(np.uint64)] = np.uint64(2**64 - 1)
        order_fi = np.argsort(hash_fi, axis=1, kind="stable")
        out[few] = order_fi[np.arange(len(few)), turn_m[few]]
    many = np.flatnonzero(count_m > _FEW)
    if many.size:
        out[many] = shuffle(turn_m[many], count_m[many], key_m[many])
    return out
