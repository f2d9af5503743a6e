"""Which rows belong to which class, under the labels in force."""

# n rows, L labels as sharded, C classes (targets), m asked for

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from glint.errors import UsageError
from glint.rng import I64


class ClassRows:
    """The rows of each class, in row order inside each label and label after label.

    row_n: rows grouped by label; first_L: where each label's rows begin, L + 1 (rows behind the
    last belong to none); target_L: the class of each label, -1 where it is dropped. Nothing here
    grows with n.
    """

    def __init__(self, row_n: npt.NDArray[Any], first_L: I64, target_L: I64, classes: int) -> None:
        self.n, self.row_n, self.first_L, self.target_L = (
            len(row_n),
            row_n,
            first_L,
            target_L,
        )
        self.size_L = np.diff(first_L)
        self._plain = classes == len(target_L) and bool((target_L == np.arange(classes)).all())
        if self._plain:  # a class is a label: nothing else to keep
            self.count_C = self.size_L
            return
        kept_L = target_L >= 0
        count = np.bincount(target_L[kept_L], self.size_L[kept_L], minlength=classes)
        self.count_C = count.astype(np.int64)
        # Labels in the order of their targets: a merged class is a run of labels.
        self._label_l = np.flatnonzero(kept_L)
        target_l = target_L[self._label_l]
        if len(target_l) and (np.diff(target_l) < 0).any():
            self._label_l = self._label_l[np.argsort(target_l, kind="stable")]
        self._end_l = np.cumsum(self.size_L[self._label_l])
        self._start_C = np.cumsum(self.count_C) - self.count_C
        self._base_L = np.zeros(len(target_L), dtype=np.int64)
        self._base_L[self._label_l] = (
            self._end_l - self.size_L[self._label_l] - self._start_C[target_L[self._label_l]]
        )

    def base(self, label: slice) -> I64:
        """Return the place of each label's first row among the rows of its class."""
        if self._plain:
            return np.zeros(len(self.size_L[label]), dtype=np.int64)
        return np.asarray(self._base_L[label])

    @classmethod
    def of(cls, identity_n: npt.NDArray[Any], classes: int | None = None) -> ClassRows:
        """Group rows by identity, -1 for a row that belongs to none. Raises UsageError GL0002."""
        identity = np.asarray(identity_n)
        most = int(identity.max(initial=-1)) + 1
        classes = most if classes is None else classes
        if len(identity) >= 2**32 or most > classes:
            raise UsageError(
                "GL0002",
                f"rows name identity {most - 1}, the table has {classes}",
                where="sampling table",
            )
        order = np.argsort(identity, kind="stable")
        first = np.searchsorted(identity[order], np.arange(-1, classes + 1))
        target = np.arange(-1, classes, dtype=np.int64)
        return cls(order.astype(np.uint32), first.astype(np.int64), target, classes)

    def row_of(self, class_m: npt.NDArray[Any], index_m: npt.NDArray[Any]) -> I64:
        """Return the index-th row of each class, 0 <= index < its count."""
        if self._plain:
            return np.asarray(self.row_n[self.first_L[class_m] + index_m], dtype=np.int64)
        place_m = self._start_C[class_m] + index_m
        at_m = np.searchsorted(self._end_l, place_m, side="right")
        label_m = self._label_l[at_m]
        within_m = index_m - self._base_L[label_m]
        return np.asarray(self.row_n[self.first_L[label_m] + within_m], dtype=np.int64)
