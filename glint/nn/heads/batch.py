"""The global batch of a head: everybody's unit features, lengths and labels, one collective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glint.dist.collectives import all_gather_rows, even
from glint.dist.world import World
from glint.errors import InputError

# n samples on this rank, N over all ranks, D embedding

_TINY = 1e-12  # a shorter feature or centre counts as zero: no direction, no gradient


@dataclass(frozen=True)
class Batch:
    """The global batch, the same on every rank: unit features, lengths, labels, rows per rank."""

    unit_ND: Tensor
    norm_N: Tensor
    label_N: Tensor
    counts: tuple[int, ...]
    start: int  # this rank's first row

    @property
    def size(self) -> int:
        """Count the samples over all ranks."""
        return self.label_N.shape[0]


@torch.no_grad()
def gather_batch(
    feature_nD: Tensor,
    label_n: Tensor,
    world: World,
    classes: int,
    *,
    dtype: torch.dtype,
    counts: Sequence[int] | None = None,
) -> Batch:
    """Normalise this rank's features and gather everybody's, with their labels: one collective.

    counts: rows on each rank, known to all; None says that all hold n. Raises InputError (GL0222)
    for a label outside [0, classes); every rank raises the same. On a GPU labels are not looked at
    (that would wait for the device): there a bad label makes the loss NaN.
    """
    if feature_nD.ndim != 2 or label_n.shape != feature_nD.shape[:1]:
        raise ValueError(
            f"expected features (n, D) and labels (n), found "
            f"{tuple(feature_nD.shape)} and {tuple(label_n.shape)}"
        )
    counts = even(feature_nD.shape[0], world) if counts is None else tuple(counts)
    if sum(counts) == 0:
        raise ValueError("the batch is empty on every rank")
    unit_nD = feature_nD.detach().to(dtype)
    norm_n = torch.linalg.vector_norm(unit_nD, dim=1)
    unit_nD = unit_nD * inverse(norm_n)[:, None]
    label_n = label_n.detach().to(unit_nD.device, torch.int64)
    if world.size > 1:
        unit_ND, norm_N, label_N = _gather(unit_nD, norm_n, label_n, world, counts)
    else:
        unit_ND, norm_N, label_N = unit_nD, norm_n, label_n
    if label_N.device.type == "cpu":
        _check_labels(label_N, classes, counts)
    return Batch(unit_ND, norm_N, label_N, counts, sum(counts[: world.rank]))


def _gather(
    unit_nD: Tensor, norm_n: Tensor, label_n: Tensor, world: World, counts: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gather features, lengths and labels in one buffer; the labels' bits ride as floats."""
    packed_n = torch.cat([unit_nD, norm_n[:, None], label_n[:, None].view(unit_nD.dtype)], 1)
    packed_N = all_gather_rows(packed_n, world, counts)
    width = unit_nD.shape[1]
    label_N = packed_N[:, width + 1 :].contiguous().view(torch.int64)[:, 0]
    return packed_N[:, :width].contiguous(), packed_N[:, width].contiguous(), label_N


def _check_labels(label_N: Tensor, classes: int, counts: tuple[int, ...]) -> None:
    bad_N = (label_N < 0) | (label_N >= classes)
    if not bool(bad_N.any()):
        return
    first = int(bad_N.nonzero()[0, 0])
    rank, row = 0, first
    while row >= counts[rank]:
        rank, row = rank + 1, row - counts[rank]
    raise InputError(
        "GL0222",
        f"expected a label from 0 to {classes - 1}, found {int(label_N[first])}",
        where=f"row {row} of the batch of rank {rank}",
        hint="does the head have as many classes as the label table?",
    )


def inverse(length: Tensor) -> Tensor:
    """Return 1 / length, and 0 for a vector without direction."""
    return torch.where(length > _TINY, 1 / length, torch.zeros_like(length))
