"""One version of the labels as arrays: what each label and each image means, and what follows."""

# N samples, C labels as sharded, m masked pairs, k images with a label of their own

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from glint.errors import InputError

Ints = npt.NDArray[np.int64]


def _none() -> Ints:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class LabelTable:
    """One version: `target` int64 [C] is 0..classes-1 or -1 (dropped).

    `masks` int64 [m, 2] are pairs of targets (a < b) kept apart in the softmax denominator.
    `row`, `label` int64 [k]: samples, ascending, whose label is another one than as sharded, and
    which: a label as sharded, or -1 for an image that is left out.
    """

    version: int
    target: Ints
    classes: int
    masks: Ints
    row: Ints = field(default_factory=_none)
    label: Ints = field(default_factory=_none)

    @property
    def images(self) -> str:
        """Name what is said of single images: "" where nothing is."""
        if not len(self.row):
            return ""
        both = np.stack([self.row, self.label]).astype("<i8")
        return "sha256:" + hashlib.sha256(both.tobytes()).hexdigest()

    @property
    def digest(self) -> str:
        """Name what the version says, whatever its number: SHA-256 of all of it."""
        parts = (self.target, _pairs(self.masks), self.row, self.label)
        state = hashlib.sha256()
        for part in parts:
            state.update(b"%d;" % part.size + np.ascontiguousarray(part, "<i8").tobytes())
        return "sha256:" + state.hexdigest()

    def sample_label(self, label_N: Ints) -> Ints:
        """Return the label of every sample, as labels were sharded; -1 = image left out.

        label_N: that of the tars, of all samples of the dataset.
        """
        if not len(self.row):
            return label_N
        out_N: Ints = label_N.copy()
        out_N[self.row] = self.label
        return out_N

    def sample_target(self, label_N: Ints) -> Ints:
        """Return the target of every sample; -1 = image left out, or its identity dropped."""
        return self._through(self.target, label_N)

    def sample_person(self, label_N: Ints) -> Ints:
        """Return the identity of every sample by the first label of its target; -1 = none."""
        return self._through(self.first(), label_N)

    def _through(self, to_C: Ints, label_N: Ints) -> Ints:
        out_N: Ints = to_C[label_N]
        if len(self.row):
            out_N[self.row] = np.where(self.label < 0, -1, to_C[self.label])
        return out_N

    def first(self) -> Ints:
        """Return the first label of the target of each label, int64 [C]; -1 = dropped."""
        some = np.flatnonzero(self.target >= 0)
        first = np.full(self.classes, -1, np.int64)
        first[self.target[some][::-1]] = some[::-1]
        return np.where(self.target < 0, -1, first[self.target]) if self.classes else self.target

    def same(self, other: LabelTable) -> bool:
        """Return whether both say the same, under whatever number."""
        return (
            np.array_equal(self.target, other.target)
            and np.array_equal(_pairs(self.masks), _pairs(other.masks))
            and np.array_equal(self.row, other.row)
            and np.array_equal(self.label, other.label)
        )

    def moved(self, row_k: Ints, label_k: Ints, label_N: Ints) -> LabelTable:
        """Return the table in which images have these labels, -1 = left out.

        label_N: the labels of all samples as sharded, to which an image may go back.
        """
        both = np.concatenate([row_k, self.row])
        row, first = np.unique(both, return_index=True)
        label = np.concatenate([label_k, self.label])[first]
        other = label != label_N[row]
        return replace(self, row=row[other], label=label[other])

    def without(self, gone: Sequence[int] | Ints) -> LabelTable:
        """Return the table in which `gone` are dropped and the rest stays dense, in order."""
        target_C = self.target.copy()
        target_C[np.asarray(gone, np.int64)] = -1
        kept = np.unique(target_C[target_C >= 0])
        new = np.full(int(self.target.max(initial=-1)) + 2, -1, np.int64)  # index -1 stays -1
        new[kept] = np.arange(len(kept))
        mask_m2 = new[np.where(np.isin(self.masks, kept), self.masks, -1)].reshape(-1, 2)
        mask_m2 = mask_m2[(mask_m2 >= 0).all(axis=1)]
        return replace(self, target=new[target_C], classes=len(kept), masks=mask_m2)

    def emptied(self, label_N: Ints) -> Ints:
        """Return the labels of targets that what is said of single images left without any."""
        before_C = np.bincount(label_N, minlength=len(self.target))
        after_C = np.bincount(
            self.sample_label(label_N)[self.sample_label(label_N) >= 0],
            minlength=len(self.target),
        )
        some = self.target >= 0
        before, after = (
            np.bincount(self.target[some], count_C[some], minlength=self.classes)
            for count_C in (before_C, after_C)
        )
        gone: Ints = np.flatnonzero(
            np.isin(self.target, np.flatnonzero((before > 0) & (after == 0)))
        )
        return gone


def _pairs(mask_m2: Ints) -> Ints:
    return np.unique(mask_m2.reshape(-1, 2), axis=0)


def checked(table: LabelTable, classes: int, images: int, where: str) -> LabelTable:
    """Validate one version for `classes` labels and `images` samples; count its targets.

    Raises InputError GL0304.
    """

    def bad(what: str) -> InputError:
        return InputError("GL0304", what, where=where)

    target_C, mask_m2, row, label = table.target, table.masks, table.row, table.label
    if target_C.ndim != 1 or len(target_C) != classes:
        raise bad(f"expected one target for each of {classes} labels, found {target_C.shape}")
    kept = np.unique(target_C)
    if len(kept) and kept[0] < -1:
        raise bad(f"a target is -1 (dropped) or a class, found {kept[0]}")
    kept = kept[kept >= 0]
    if len(kept) and kept[-1] != len(kept) - 1:
        hole = int(np.flatnonzero(kept != np.arange(len(kept)))[0])
        raise bad(f"targets must be 0..{len(kept) - 1} without a hole, {hole} is not used")
    if mask_m2.ndim != 2 or mask_m2.shape[1] != 2:
        raise bad(f"masks must be pairs, found shape {mask_m2.shape}")
    if len(mask_m2):
        if mask_m2.min() < 0 or mask_m2.max() >= len(kept):
            raise bad(f"a mask names a target outside 0..{len(kept) - 1}")
        if (mask_m2[:, 0] >= mask_m2[:, 1]).any():
            raise bad("a masked pair must have a < b")
        if len(np.unique(mask_m2, axis=0)) != len(mask_m2):
            raise bad("a masked pair stands twice")
    if row.ndim != 1 or row.shape != label.shape:
        raise bad(f"expected a label for each image, found {row.shape} and {label.shape}")
    if len(row):
        if (np.diff(row) <= 0).any():
            raise bad("images must ascend, none twice")
        if row[0] < 0 or row[-1] >= images:
            raise bad(f"an image is outside 0..{images - 1}")
        if label.min() < -1 or label.max() >= classes:
            raise bad(f"an image's label is -1 (left out) or one of 0..{classes - 1}")
    return replace(table, classes=len(kept))
