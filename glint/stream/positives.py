"""An order of samples, each followed by other images of its identity."""

# m positions asked for, n rows

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from glint.errors import UsageError
from glint.rng import I64, hash_at, key_of
from glint.stream.class_rows import ClassRows
from glint.stream.plan import Plan

_POSITIVE = 0x3A7E5  # purpose of a key


class PositivePlan:
    """Map positions to rows: every sample of `plan`, then `positives` images of its identity.

    Positives are drawn with replacement, as a function of (seed, epoch, position): one may be the
    sample itself, and is where its identity has no other image. An epoch is a pass of `plan`.
    label_n: the label of each row, of those that `class_rows` groups by. Errors: UsageError GL0002.
    """

    def __init__(
        self,
        plan: Plan,
        class_rows: ClassRows,
        label_n: npt.NDArray[Any],
        positives: int,
        seed: int,
    ) -> None:
        if positives < 1:
            raise UsageError(
                "GL0002", f"positives of a sample must be at least 1, found {positives}"
            )
        self.plan, self.class_rows, self.label_n = plan, class_rows, label_n
        self.each, self.seed = 1 + positives, seed
        self.length = plan.length * self.each

    def rows_at(self, epoch: int, position_m: npt.NDArray[Any]) -> I64:
        """Return the row at each position; one past the end of an epoch wraps to its beginning."""
        position_m = np.asarray(position_m, dtype=np.int64)
        turn_m, within_m = np.divmod(position_m, self.each)
        row_m = self.plan.rows_at(epoch, turn_m)
        other = np.flatnonzero(within_m)
        class_o = self.class_rows.target_L[self.label_n[row_m[other]]]
        draw_o = hash_at(key_of(self.seed, _POSITIVE, epoch), position_m[other])
        draw_o %= self.class_rows.count_C[class_o].astype(np.uint64)
        row_m[other] = self.class_rows.row_of(class_o, draw_o.astype(np.int64))
        return row_m
