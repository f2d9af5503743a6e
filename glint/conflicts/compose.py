"""Clusters of faces put on top of labels in force: what else was decided of them still holds."""

# C labels as sharded, N samples, m masked pairs

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from glint.conflicts.groups import components

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Kept:
    """What earlier versions decided that clusters do not say: a, b are one person; dropped_C."""

    a: Ints
    b: Ints
    dropped_C: Flags


def decided(steps: Sequence[tuple[Ints, Ints]], classes: int) -> Kept:
    """Collect what each step from the targets int64 [C] of one version to the next's did.

    steps: those of reviewers, reports, merges and take-downs; not those of clusters.
    """
    first, second, dropped_C = [], [], np.zeros(classes, np.bool_)
    for before, after in steps:
        dropped_C |= (before >= 0) & (after < 0)
        alive = np.flatnonzero((before >= 0) & (after >= 0))
        one = alive[np.unique(before[alive], return_index=True)[1]]  # a label of each target
        one = one[np.argsort(after[one], kind="stable")]
        same = after[one[1:]] == after[one[:-1]]
        first.append(one[:-1][same])
        second.append(one[1:][same])
    none = np.empty(0, np.int64)
    return Kept(np.concatenate([none, *first]), np.concatenate([none, *second]), dropped_C)


@dataclass(frozen=True)
class Composed:
    """Targets int64 [C], masks int64 [m, 2]; faces that have one; identities too small for one."""

    target_C: Ints
    mask_m2: Ints
    faces: int
    small: int


def compose(
    name_C: Ints, faces_C: Ints, images_C: Ints, now: tuple[Ints, Ints], kept: Kept, least: int
) -> Composed:
    """Number the identities of clusters, joined where `kept` joins them.

    now: targets and masks in force, as of `Composed`.
    name_C: cluster identity of each label, -1 = none; faces_C: its faces in clusters; images_C: all
    its images, that count where a label was joined to another. Fewer than `least`: dropped.
    """
    joined_C = np.zeros(len(name_C), np.bool_)
    joined_C[kept.a] = joined_C[kept.b] = True
    alive_C = ~kept.dropped_C & ((name_C >= 0) | joined_C)
    label = np.flatnonzero(alive_C & (name_C >= 0))
    label = label[np.argsort(name_C[label], kind="stable")]
    same = name_C[label[1:]] == name_C[label[:-1]]
    both = alive_C[kept.a] & alive_C[kept.b]
    head_C = np.where(alive_C, np.arange(len(name_C)), -1)
    for piece in components(
        np.concatenate([label[:-1][same], kept.a[both]]),
        np.concatenate([label[1:][same], kept.b[both]]),
    ):
        head_C[piece] = piece.min()
    here = np.flatnonzero(alive_C)
    heads, of_n = np.unique(head_C[here], return_inverse=True)
    size_C = np.where(joined_C, images_C, faces_C)
    size = np.bincount(of_n, size_C[here], minlength=len(heads)).astype(np.int64)
    last = int(name_C.max(initial=-1)) + 1  # joined, in no cluster: behind those that are
    order = np.full(len(heads), 2**62, np.int64)
    np.minimum.at(order, of_n, np.where(name_C[here] >= 0, name_C[here], last + here))
    large = size >= least
    rank = np.argsort(order, kind="stable")
    number = np.full(len(heads), -1, np.int64)
    number[rank[large[rank]]] = np.arange(int(large.sum()))
    target_C = np.full(len(name_C), -1, np.int64)
    target_C[here] = number[of_n]
    mask_m2 = _masks(*now, target_C)
    return Composed(target_C, mask_m2, int(size[large].sum()), int((~large).sum()))


def _masks(old_C: Ints, mask_m2: Ints, target_C: Ints) -> Ints:
    """Return the masks in force between the targets that theirs became: all of them, if several."""
    if not len(mask_m2):
        return np.empty((0, 2), np.int64)
    some = (old_C >= 0) & (target_C >= 0)
    pairs = np.unique(np.stack([old_C[some], target_C[some]], axis=1), axis=0)
    edge = np.searchsorted(pairs[:, 0], np.arange(int(old_C.max()) + 2))
    became = [pairs[lo:hi, 1].tolist() for lo, hi in pairwise(edge.tolist())]
    found = {
        (min(a, b), max(a, b))
        for one, two in mask_m2.tolist()
        for a in became[one]
        for b in became[two]
        if a != b
    }
    return np.array(sorted(found), np.int64).reshape(-1, 2)
