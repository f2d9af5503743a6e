"""Margin softmax cross-entropy over class rows that lie on many ranks; logits are never stored.

One autograd function. Forward streams a log-sum-exp over blocks of class rows; backward computes
each block again. Three collectives a step, at any world size:

1. `gather_batch`: all_gather of unit features, their lengths and labels, packed into one buffer;
2. forward: all_gather of (largest negative, its sum of exponents, target cosine) per sample;
3. backward: reduce_scatter of the feature gradient.

The loss is the mean over the global batch and the same on every rank, to the bit. With ddp_mean the
feature gradient is multiplied by the world size, because DistributedDataParallel divides by it:
after its mean the backbone gets the exact gradient of the loss. The gradient of the class rows is
complete on the rank that owns them and needs no collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from glint.dist.collectives import all_gather_rows, even, reduce_scatter_rows
from glint.dist.world import World
from glint.errors import InputError
from glint.nn.margins import Margin

# n samples on this rank, N over all ranks, W ranks, D embedding,
# k class rows of this rank that play this step, b rows of one block, e masked entries

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


@dataclass(frozen=True)
class Masked:
    """Entries of the cosine matrix that leave the denominator, in order of class row.

    row_e: sample; column_e: class row; both int64. block: rows per block; bounds: where block i's
    entries lie, [bounds[i], bounds[i + 1]).
    """

    row_e: Tensor
    column_e: Tensor
    block: int
    bounds: tuple[int, ...]


@torch.no_grad()
def gather_batch(feature_nD: Tensor, label_n: Tensor, world: World, classes: int, *,
                 dtype: torch.dtype, counts: Sequence[int] | None = None) -> Batch:
    """Normalise this rank's features and gather everybody's, with their labels: one collective.

    counts: rows on each rank, known to all; None says that all hold n. Raises InputError (GL0222)
    for a label outside [0, classes); every rank raises the same. On a GPU labels are not looked at
    (that would wait for the device): there a bad label makes the loss infinite.
    """
    if feature_nD.ndim != 2 or label_n.shape != feature_nD.shape[:1]:
        raise ValueError(f"expected features (n, D) and labels (n), found "
                         f"{tuple(feature_nD.shape)} and {tuple(label_n.shape)}")
    counts = even(feature_nD.shape[0], world) if counts is None else tuple(counts)
    if sum(counts) == 0:
        raise ValueError("the batch is empty on every rank")
    unit_nD = feature_nD.detach().to(dtype)
    norm_n = torch.linalg.vector_norm(unit_nD, dim=1)
    unit_nD = unit_nD * _inverse(norm_n)[:, None]
    label_n = label_n.detach().to(unit_nD.device, torch.int64)
    if world.size > 1:
        unit_ND, norm_N, label_N = _gather(unit_nD, norm_n, label_n, world, counts)
    else:
        unit_ND, norm_N, label_N = unit_nD, norm_n, label_n
    if label_N.device.type == "cpu":
        _check_labels(label_N, classes, counts)
    return Batch(unit_ND, norm_N, label_N, counts, sum(counts[: world.rank]))


def margin_softmax(feature_nD: Tensor, centre_kD: Tensor, batch: Batch, target_N: Tensor, *,
                   margin: Margin, scale: float, world: World, threshold: float = 0.0,
                   masked: Masked | None = None, block: int = 16384, ddp_mean: bool = True,
                   ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give (loss, cosine_N, hardest_N, length_k); differentiable in features and centres.

    feature_nD: this rank's features, those given to `gather_batch`; centre_kD: this rank's class
    rows, any length; target_N: the class row of each label, or -1 where another rank has it.
    A negative with cosine above `threshold` (if > 0) and every `masked` entry leave the
    denominator: logit -inf, gradient exactly 0. cosine_N: target cosines; hardest_N: largest cosine
    of a negative that counts, -inf where there is none; length_k: lengths of the class rows.
    """
    loss, cosine_N, hardest_N, length_k = _MarginSoftmax.apply(  # type: ignore[no-untyped-call]
        feature_nD, centre_kD, batch, target_N, margin, scale, world, threshold, masked, block,
        ddp_mean)
    return loss, cosine_N, hardest_N, length_k


class _MarginSoftmax(torch.autograd.Function):
    """See `margin_softmax`."""

    @staticmethod
    def forward(ctx: Any, feature_nD: Tensor, centre_kD: Tensor, batch: Batch, target_N: Tensor,
                margin: Margin, scale: float, world: World, threshold: float,
                masked: Masked | None, block: int, ddp_mean: bool,
                ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.autocast(feature_nD.device.type, enabled=False):
            length_k = torch.linalg.vector_norm(centre_kD, dim=1)
            blocks = _Blocks(batch, centre_kD, length_k, target_N, scale, threshold, masked, block)
            largest_N, sum_N, cosine_N = _negatives(blocks)
            if world.size > 1:  # second collective
                part_3N = torch.stack([largest_N, sum_N, cosine_N])
                part_W3N = all_gather_rows(part_3N[None], world)
                largest_N, sum_N = _joined(part_W3N[:, 0], part_W3N[:, 1])
                cosine_N = part_W3N[:, 2].amax(0)  # -inf but on the owner
            with_margin_N, slope_N = margin(cosine_N, batch.norm_N)
            target_logit_N = scale * with_margin_N
            logsum_N = torch.logaddexp(largest_N + sum_N.log(), target_logit_N)
            loss = (logsum_N - target_logit_N).mean()
        hardest_N = largest_N / scale
        ctx.save_for_backward(centre_kD, length_k, target_N, logsum_N, target_logit_N, slope_N)
        ctx.batch, ctx.masked = batch, masked
        ctx.plain = scale, world, threshold, block, ddp_mean
        ctx.feature_dtype = feature_nD.dtype
        ctx.mark_non_differentiable(cosine_N, hardest_N, length_k)
        return loss, cosine_N, hardest_N, length_k

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        centre_kD, length_k, target_N, logsum_N, target_logit_N, slope_N = ctx.saved_tensors
        scale, world, threshold, block, ddp_mean = ctx.plain
        batch: Batch = ctx.batch
        with torch.autocast(centre_kD.device.type, enabled=False):
            blocks = _Blocks(batch, centre_kD, length_k, target_N, scale, threshold, ctx.masked,
                             block)
            weight = upstream.to(batch.unit_ND.dtype) * (scale / batch.size)  # stays on device
            at_target_N = (torch.exp(target_logit_N - logsum_N) - 1) * slope_N * weight
            unit_grad_ND, centre_grad_kD = _gradients(blocks, logsum_N, at_target_N, weight)
            unit_grad_nD = reduce_scatter_rows(unit_grad_ND, world, batch.counts)  # third
            if ddp_mean:
                unit_grad_nD = unit_grad_nD * world.size
            rows = slice(batch.start, batch.start + batch.counts[world.rank])
            unit_nD = batch.unit_ND[rows]
            along_n1 = (unit_grad_nD * unit_nD).sum(1, keepdim=True)
            feature_grad_nD = (unit_grad_nD - along_n1 * unit_nD) * _inverse(
                batch.norm_N[rows])[:, None]
        return (feature_grad_nD.to(ctx.feature_dtype), centre_grad_kD, *[None] * 9)


class _Blocks:
    """Logits of the negatives, one block of class rows at a time, in one reused buffer."""

    def __init__(self, batch: Batch, centre_kD: Tensor, length_k: Tensor, target_N: Tensor,
                 scale: float, threshold: float, masked: Masked | None, block: int) -> None:
        self.unit_ND = batch.unit_ND
        self.scale, self.scaled_ND = scale, batch.unit_ND * scale
        self.centre_kD, self.target_N, self.masked = centre_kD, target_N, masked
        self.inverse_k = _inverse(length_k)
        self.cut = scale * threshold if threshold > 0 else None
        self.k, self.n = centre_kD.shape[0], batch.size
        self.block = min(block, max(self.k, 1))
        self.buffer = self.unit_ND.new_empty(self.n * self.block)
        if masked is not None and masked.block != block:
            raise ValueError("masked entries were cut for another block size")

    def __len__(self) -> int:
        return -(-self.k // self.block)

    def rows(self, number: int) -> slice:
        """Give the class rows of a block."""
        return slice(number * self.block, min((number + 1) * self.block, self.k))

    def place(self, number: int) -> tuple[Tensor, Tensor]:
        """Say where targets lie in a block: column (N, 1), clamped, and whether it is there."""
        rows = self.rows(number)
        column_N = self.target_N - rows.start
        here_N = (column_N >= 0) & (column_N < rows.stop - rows.start)
        return column_N.clamp(0, rows.stop - rows.start - 1)[:, None], here_N[:, None]

    def negatives(self, number: int) -> tuple[Tensor, Tensor]:
        """Compute a block of logits (N, b), -inf at targets and at entries that leave.

        Also gives the logits that stood at the targets' columns (N, 1).
        """
        rows = self.rows(number)
        centre_bD = self.centre_kD[rows]
        logit_Nb = self.buffer[: self.n * centre_bD.shape[0]].view(self.n, -1)
        torch.mm(self.scaled_ND, centre_bD.t(), out=logit_Nb)
        logit_Nb.mul_(self.inverse_k[rows])
        column_N1, here_N1 = self.place(number)
        stood_N1 = logit_Nb.gather(1, column_N1)
        if self.cut is not None:
            logit_Nb.masked_fill_(logit_Nb > self.cut, -torch.inf)
        filtered_N1 = logit_Nb.gather(1, column_N1)
        logit_Nb.scatter_(1, column_N1, filtered_N1.masked_fill(here_N1, -torch.inf))
        if self.masked is not None:
            entries = slice(*self.masked.bounds[number : number + 2])
            logit_Nb[self.masked.row_e[entries], self.masked.column_e[entries] - rows.start] = (
                -torch.inf)
        return logit_Nb, stood_N1


def _negatives(blocks: _Blocks) -> tuple[Tensor, Tensor, Tensor]:
    """Stream over the blocks: largest negative logit, sum of exp(logit - largest), target cosine.

    All (N). Where this rank has no negative: -inf and 0; where it has no target: cosine -inf.
    """
    largest_N = blocks.unit_ND.new_full((blocks.n,), -torch.inf)
    sum_N = torch.zeros_like(largest_N)
    target_N = largest_N.clone()
    for number in range(len(blocks)):
        logit_Nb, stood_N1 = blocks.negatives(number)
        _, here_N1 = blocks.place(number)
        target_N = torch.where(here_N1, stood_N1, target_N[:, None])[:, 0]
        largest_so_far_N = torch.maximum(largest_N, logit_Nb.amax(1))
        from_N = _finite(largest_so_far_N)
        sum_N = sum_N * torch.exp(largest_N - from_N) + logit_Nb.sub_(from_N[:, None]).exp_().sum(1)
        largest_N = largest_so_far_N
    return largest_N, sum_N, target_N / blocks.scale


def _joined(largest_WN: Tensor, sum_WN: Tensor) -> tuple[Tensor, Tensor]:
    """Join the ranks' streams, in rank order on every rank."""
    largest_N = largest_WN.amax(0)
    return largest_N, (sum_WN * torch.exp(largest_WN - _finite(largest_N))).sum(0)


def _gradients(blocks: _Blocks, logsum_N: Tensor, at_target_N: Tensor, weight: Tensor,
               ) -> tuple[Tensor, Tensor]:
    """Compute the blocks again: gradients of unit features (N, D) and of class rows (k, D)."""
    unit_grad_ND = torch.zeros_like(blocks.unit_ND)
    centre_grad_kD = torch.empty_like(blocks.centre_kD)
    for number in range(len(blocks)):
        grad_Nb, _ = blocks.negatives(number)
        grad_Nb.sub_(logsum_N[:, None]).exp_().mul_(weight)
        column_N1, here_N1 = blocks.place(number)
        grad_Nb.scatter_(1, column_N1, torch.where(
            here_N1, at_target_N[:, None], grad_Nb.gather(1, column_N1)))
        rows = blocks.rows(number)
        inverse_b = blocks.inverse_k[rows]
        grad_Nb.mul_(inverse_b)
        centre_bD, out_bD = blocks.centre_kD[rows], centre_grad_kD[rows]
        unit_grad_ND.addmm_(grad_Nb, centre_bD)
        torch.mm(grad_Nb.t(), blocks.unit_ND, out=out_bD)
        along_b = (out_bD * centre_bD).sum(1) * inverse_b * inverse_b
        out_bD.addcmul_(centre_bD, along_b[:, None], value=-1)
    return unit_grad_ND, centre_grad_kD


def _gather(unit_nD: Tensor, norm_n: Tensor, label_n: Tensor, world: World,
            counts: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
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
    raise InputError("GL0222", f"expected a label from 0 to {classes - 1}, found "
                     f"{int(label_N[first])}", where=f"row {row} of the batch of rank {rank}",
                     hint="does the head have as many classes as the label table?")


def _inverse(length: Tensor) -> Tensor:
    """Give 1 / length, and 0 for a vector without direction."""
    return torch.where(length > _TINY, 1 / length, torch.zeros_like(length))


def _finite(largest_N: Tensor) -> Tensor:
    """Replace -inf by 0, so that differences stay defined."""
    return largest_N.masked_fill(largest_N == -torch.inf, 0.0)
