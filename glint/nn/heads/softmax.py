"""Margin softmax cross-entropy over class rows that lie on many ranks; the logit matrix never is.

One autograd function works on blocks of class rows. Forward reads each block once: logits, a
streamed log-sum-exp, and the feature gradient, which accumulates beside it (FlashAttention, arXiv
2205.14135, without its running maximum: logits are bounded by the scale). Centre gradients are made
block by block where they are used (`SoftmaxPass.gradient`, called by the row update), so no (k, D)
gradient and no (k, D) copy of the rows exists. Exponentials are kept between the two while all of
them fit into `keep` bytes, and computed again otherwise. Logits are (b, N), classes down: that is
the order in which a CPU multiplies fastest. Three collectives a step, at any world size:

1. `gather_batch`: all_gather of unit features, their lengths and labels, packed into one buffer;
2. forward: all_gather of (largest negative, its sum of exponents, target cosine) per sample;
3. backward: reduce_scatter of the feature gradient.

The loss is the mean over the global batch and the same on every rank, to the bit. With ddp_mean the
feature gradient is multiplied by the world size, because DistributedDataParallel divides by it:
after its mean the backbone gets the exact gradient of the loss. The gradient of the class rows is
complete on the rank that owns them and needs no collective.

`SoftmaxPass` does the work in torch's operations, on any device: the reference. `fused.Fused` does
the same in Triton kernels.

gemm "bf16" rounds the operands of the three matrix products and their results to bf16 (sums inside
a product are float32); targets, maxima, exponentials and sums stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from glint.dist.collectives import all_gather_rows, reduce_scatter_rows
from glint.dist.world import World
from glint.nn.heads.batch import Batch, inverse
from glint.nn.heads.storage import Space
from glint.nn.heads.updates import ActiveRows, Gradient
from glint.nn.margins import Margin

# n samples on this rank, N over all ranks, W ranks, D embedding,
# k class rows of this rank that play this step, b rows of one block, e masked entries,
# t samples whose target is on this rank, in order of its row

WIDEST = 512  # numbers per row that kernels take: the gradient of a tile must fit into registers
STEEPEST = 64.0  # the largest scale that kernels take: exp(64) * 2^31 rows is still a float32


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


def margin_softmax(
    feature_nD: Tensor,
    active: ActiveRows,
    batch: Batch,
    target_N: Tensor,
    *,
    margin: Margin,
    scale: float,
    world: World,
    on_backward: Callable[[SoftmaxPass, Tensor], None],
    threshold: float = 0.0,
    masked: Masked | None = None,
    ddp_mean: bool = True,
    gemm: str = "float32",
    keep: int = 0,
    pass_type: type[SoftmaxPass] | None = None,
    own_centre_ND: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (loss, cosine_N, hardest_N, length_k); differentiable in features.

    feature_nD: this rank's features, those given to `gather_batch`; active: this rank's class
    rows, any length; target_N: the class row of each label, or -1 where another rank has it.
    A negative with cosine above `threshold` (if > 0) and every `masked` entry leave the
    denominator: logit -inf, gradient exactly 0. on_backward: called when backward has run, with
    the pass and its weight (see `SoftmaxPass`); keep: bytes of exponentials to hold until the row
    update; pass_type: `SoftmaxPass` or one that computes the same in another way; own_centre_ND:
    each sample's own class row, of unit length and without gradient, where it is none of those
    that play (one rank, every target -1). cosine_N: target cosines; hardest_N: largest cosine of a
    negative that counts, -inf where there is none; length_k: lengths of the class rows.
    """
    anchor = torch.zeros((), device=batch.unit_ND.device, requires_grad=True)  # so backward runs
    learn = torch.is_grad_enabled()
    kind = SoftmaxPass if pass_type is None else pass_type
    softmax_pass = kind(
        active,
        batch,
        target_N,
        scale=scale,
        threshold=threshold,
        masked=masked,
        gemm=gemm,
        keep=keep if learn else 0,
        own_centre_ND=own_centre_ND,
    )
    loss, cosine_N, hardest_N = _MarginSoftmax.apply(  # type: ignore[no-untyped-call]
        feature_nD, anchor, softmax_pass, margin, world, ddp_mean, learn, on_backward
    )
    return loss, cosine_N, hardest_N, softmax_pass.length_k


class _MarginSoftmax(torch.autograd.Function):
    """See `margin_softmax`."""

    @staticmethod
    def forward(
        ctx: Any,
        feature_nD: Tensor,
        anchor: Tensor,
        softmax_pass: SoftmaxPass,
        margin: Margin,
        world: World,
        ddp_mean: bool,
        learn: bool,
        on_backward: Callable[[SoftmaxPass, Tensor], None],
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, scale = softmax_pass.batch, softmax_pass.scale
        with torch.autocast(feature_nD.device.type, enabled=False):
            mine_N, sum_N, feature_grad_ND = softmax_pass.stream(learn)
            largest_N, cosine_N = mine_N, softmax_pass.target_cosine()
            if world.size > 1:  # second collective
                part_3N = torch.stack([mine_N, sum_N, cosine_N])
                part_W3N = all_gather_rows(part_3N[None], world)
                largest_N, sum_N = _joined(part_W3N[:, 0], part_W3N[:, 1])
                cosine_N = part_W3N[:, 2].amax(0)  # -inf but on the owner
            with_margin_N, slope_N = margin(cosine_N, batch.norm_N)
            # A label that is no rank's: margins clamp its -inf, and the loss would stay finite.
            target_logit_N = (scale * with_margin_N).masked_fill(cosine_N == -torch.inf, torch.nan)
            logsum_N = torch.logaddexp(largest_N + sum_N.log(), target_logit_N)
            loss = (logsum_N - target_logit_N).mean()
            if learn:  # the gradient of the unit features, but for the factor `upstream`
                feature_grad_ND.mul_(torch.exp(mine_N - logsum_N)[:, None])
                at_target_N = (torch.exp(target_logit_N - logsum_N) - 1) * slope_N
                softmax_pass.add_targets(feature_grad_ND, logsum_N, at_target_N)
        hardest_N = largest_N / scale
        ctx.save_for_backward(feature_grad_ND)
        ctx.plain = softmax_pass, world, ddp_mean, feature_nD.dtype, on_backward
        ctx.mark_non_differentiable(cosine_N, hardest_N)
        return loss, cosine_N, hardest_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        (feature_grad_ND,) = ctx.saved_tensors
        softmax_pass, world, ddp_mean, dtype, on_backward = ctx.plain
        batch: Batch = softmax_pass.batch
        with torch.autocast(feature_grad_ND.device.type, enabled=False):
            factor = softmax_pass.scale / batch.size
            weight = upstream.to(feature_grad_ND.dtype) * factor  # stays on the device
            unit_grad_nD = reduce_scatter_rows(  # third collective; its operand is not held
                feature_grad_ND * weight, world, batch.counts
            )
            if ddp_mean:
                unit_grad_nD = unit_grad_nD * world.size
            rows = slice(batch.start, batch.start + batch.counts[world.rank])
            unit_nD = batch.unit_ND[rows]
            along_n1 = (unit_grad_nD * unit_nD).sum(1, keepdim=True)
            feature_grad_nD = (unit_grad_nD - along_n1 * unit_nD) * inverse(batch.norm_N[rows])[
                :, None
            ]
        on_backward(softmax_pass, weight)
        return (feature_grad_nD.to(dtype), *[None] * 7)


class SoftmaxPass:
    """One pass over the class rows that play: what its loss, and later its row update, need.

    `stream` goes over the blocks for the loss and `add_targets` ends it; then `gradient` computes
    the gradient of one block's rows. Rows must be the same at both. Gradients are multiplied by a
    weight that backward knows: upstream gradient * scale / N.
    """

    def __init__(
        self,
        active: ActiveRows,
        batch: Batch,
        target_N: Tensor,
        *,
        scale: float,
        threshold: float = 0.0,
        masked: Masked | None = None,
        gemm: str = "float32",
        keep: int = 0,
        own_centre_ND: Tensor | None = None,
    ) -> None:
        self.active, self.batch, self.scale, self.masked = active, batch, scale, masked
        self.cut = scale * threshold if threshold > 0 else None
        self.half = gemm == "bf16"
        if masked is not None and masked.block != active.block:
            raise ValueError("masked entries were cut for another block size")
        unit_ND = batch.unit_ND
        self.operand_ND = self._operand(unit_ND * scale)
        self.length_k = unit_ND.new_empty(active.count)
        self.inverse_k = unit_ND.new_empty(active.count)
        order_N = torch.argsort(target_N, stable=True)
        bounds = torch.searchsorted(target_N[order_N], active.edges(target_N.device)).tolist()
        self.bounds = [bound - bounds[0] for bound in bounds]  # of block i: [i], [i + 1]
        self.sample_t = order_N[bounds[0] : bounds[-1]]
        self.row_t, self.target_N = target_N[self.sample_t], target_N
        own_tD = active.pick(self.row_t)
        self.own_tD = own_tD.mul_(inverse(torch.linalg.vector_norm(own_tD, dim=1))[:, None])
        self._reserve(keep)
        if own_centre_ND is not None:  # not moved: `gradient` knows the rows that play only
            self.sample_t = torch.arange(batch.size, device=own_centre_ND.device)
            self.own_tD = own_centre_ND

    def _reserve(self, keep: int) -> None:
        """Take the buffers of blocks, and of all exponentials where they fit into `keep` bytes."""
        samples, count = self.batch.size, self.active.count
        widest = min(self.active.block, count)
        self.kept = samples * count * self.operand_ND.element_size() <= keep
        self.exp_kN = self.operand_ND.new_empty((count if self.kept else widest, samples))
        self.logit_bN = self.length_k.new_empty((widest if self.half else 0, samples))
        self.at_t = self.row_t * samples + self.sample_t  # targets in a flat (k, N)
        self.from_N: Tensor | None = None  # what is taken off logits before their exponentials
        self.upstream: _Upstream | None = None

    def stream(self, learn: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return largest negative logit, sum of exp(logit - largest), and sum of exp * centres.

        (N), (N), (N, D). Where this rank has no negative: -inf, 0 and 0. Nothing is taken off a
        logit before its exponential, unless the scale is so large that the sum could leave float32.
        """
        unit_ND = self.batch.unit_ND
        largest_N = unit_ND.new_full((self.batch.size,), -torch.inf)
        sum_N, feature_grad_ND = torch.zeros_like(largest_N), torch.zeros_like(unit_ND)
        if steep := self.scale > STEEPEST:
            for _, _, logit_bN in self._blocks():
                largest_N = torch.maximum(largest_N, logit_bN.amax(0))
            self.from_N = _finite(largest_N)
        for number, operand_bD, logit_bN in self._blocks():
            if not steep:
                largest_N = torch.maximum(largest_N, logit_bN.amax(0))
            exp_bN = self._exp(logit_bN, self.from_N)
            sum_N += exp_bN.sum(0)
            if not learn:
                continue
            weighed_Nb = self._weighed(number, exp_bN).t()
            if self.half:
                feature_grad_ND += torch.mm(weighed_Nb, operand_bD)
            else:
                feature_grad_ND.addmm_(weighed_Nb, operand_bD)
        if not steep:
            share_N = torch.exp(-_finite(largest_N))
            sum_N, feature_grad_ND = sum_N * share_N, feature_grad_ND.mul_(share_N[:, None])
        return largest_N, sum_N, feature_grad_ND

    def _blocks(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield each block's number, its rows as products take them, and its logits (b, N)."""
        space = self.active.space()
        for number in range(len(self.active)):
            rows, centre_bD = self.active.rows(number), self.active.take(number, space.begin())
            length_b = torch.linalg.vector_norm(centre_bD, dim=1, out=self.length_k[rows])
            self.inverse_k[rows] = inverse(length_b)
            operand_bD = self._operand(centre_bD)
            yield number, operand_bD, self._logits(number, operand_bD)

    def target_cosine(self) -> Tensor:
        """Return each sample's cosine to its own class, (N), -inf where another rank has it."""
        cosine_t = (self.batch.unit_ND[self.sample_t] * self.own_tD).sum(1)
        return self.batch.unit_ND.new_full((self.batch.size,), -torch.inf).index_copy_(
            0, self.sample_t, cosine_t
        )

    def add_targets(self, feature_grad_ND: Tensor, logsum_N: Tensor, at_target_N: Tensor) -> None:
        """Add the targets' share to the gradient of unit features, and hold what `gradient` needs.

        at_target_N: d loss / d target cosine, but for the weight.
        """
        self.logsum_N, self.at_target_N = logsum_N, at_target_N
        feature_grad_ND.index_add_(
            0, self.sample_t, self.own_tD * at_target_N[self.sample_t][:, None]
        )

    def gradient(self, number: int, centre_bD: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of block `number`'s rows, (b, D), from the rows themselves."""
        space = self.active.space()
        return self._gradient(number, centre_bD, weight, space).whole(centre_bD)

    def _gradient(self, number: int, centre_bD: Tensor, weight: Tensor, space: Space) -> Gradient:
        rows = self.active.rows(number)
        inverse_b1 = self.inverse_k[rows, None]
        if self.upstream is None or self.upstream.weight is not weight:
            self.upstream = self._ready(weight)
        upstream = self.upstream
        if self.kept:
            weighed_bN = self.exp_kN[rows]
        else:
            logit_bN = self._logits(number, self._operand(centre_bD))
            weighed_bN = self._weighed(number, self._exp(logit_bN, self.logsum_N))
        grad_bD = space(len(centre_bD))
        if self.half:
            grad_bD.copy_(torch.mm(weighed_bN, upstream.unit_ND))
        else:
            torch.mm(weighed_bN, upstream.unit_ND, out=grad_bD)
        here = slice(self.bounds[number], self.bounds[number + 1])
        if here.stop > here.start:
            grad_bD.index_add_(0, self.row_t[here] - rows.start, upstream.target_tD[here])
        along_bD = torch.mul(grad_bD, centre_bD, out=space(len(centre_bD)))
        along_b1 = along_bD.sum(1, keepdim=True)
        return Gradient(grad_bD, along_b1.mul_(inverse_b1).mul_(inverse_b1))

    def _ready(self, weight: Tensor) -> _Upstream:
        """Multiply what all blocks' gradients are made of."""
        unit_ND = self.batch.unit_ND
        factor_N = weight
        if self.kept:
            factor_N = weight * torch.exp(
                (0.0 if self.from_N is None else self.from_N) - self.logsum_N
            )
        weighed_ND = self._operand(unit_ND * factor_N.expand(self.batch.size)[:, None])
        sample_t = self.sample_t[: self.bounds[-1]]
        factor_t = self.at_target_N[sample_t] * weight * self.inverse_k[self.row_t]
        return _Upstream(weight, weighed_ND, unit_ND[sample_t] * factor_t[:, None])

    def update(self, weight: Tensor, *, step: int, lr: float) -> None:
        """Move the rows that play by their gradients, block by block."""
        self.active.update(
            lambda number, rows_bD, space: self._gradient(number, rows_bD, weight, space),
            step=step,
            lr=lr,
        )

    def release(self) -> None:
        """Let go of the buffers: the row update is done."""
        self.exp_kN = self.logit_bN = self.length_k.new_empty(0)
        self.upstream = None

    def _operand(self, rows_D: Tensor) -> Tensor:
        """Return rows as the matrix products take them."""
        return rows_D.bfloat16() if self.half else rows_D

    def _place(self, rows: slice) -> Tensor:
        """Return where a block's exponentials are put, (b, N), as products take them."""
        return self.exp_kN[rows] if self.kept else self.exp_kN[: rows.stop - rows.start]

    def _logits(self, number: int, operand_bD: Tensor) -> Tensor:
        """Compute a block of logits (b, N), -inf at targets and at entries that leave."""
        rows = self.active.rows(number)
        logit_bN = torch.mm(operand_bD, self.operand_ND.t(), out=self._place(rows))
        if self.half:  # copied first: operations on mixed types are slow
            logit_bN = self.logit_bN[: rows.stop - rows.start].copy_(logit_bN)
        logit_bN.mul_(self.inverse_k[rows, None])
        if self.cut is not None:
            logit_bN.masked_fill_(logit_bN > self.cut, -torch.inf)
        here = slice(self.bounds[number], self.bounds[number + 1])
        if here.stop > here.start:
            first = rows.start * self.batch.size
            logit_bN.view(-1).index_fill_(0, self.at_t[here] - first, -torch.inf)
        if self.masked is not None:
            entries = slice(*self.masked.bounds[number : number + 2])
            column_e, row_e = self.masked.column_e[entries], self.masked.row_e[entries]
            logit_bN[column_e - rows.start, row_e] = -torch.inf
        return logit_bN

    @staticmethod
    def _exp(logit_bN: Tensor, from_N: Tensor | None) -> Tensor:
        """Return exp(logit - from), in place."""
        return (logit_bN if from_N is None else logit_bN.sub_(from_N)).exp_()

    def _weighed(self, number: int, exp_bN: Tensor) -> Tensor:
        """Divide exponentials by their centres' lengths, as the matrix products take them."""
        rows = self.active.rows(number)
        exp_bN.mul_(self.inverse_k[rows, None])
        return self._place(rows).copy_(exp_bN) if self.half else exp_bN


@dataclass(frozen=True)
class _Upstream:
    """A weight (see `SoftmaxPass`), and samples' and targets' parts times it."""

    weight: Tensor
    unit_ND: Tensor
    target_tD: Tensor


def _joined(largest_WN: Tensor, sum_WN: Tensor) -> tuple[Tensor, Tensor]:
    """Join the ranks' streams, in rank order on every rank."""
    largest_N = largest_WN.amax(0)
    return largest_N, (sum_WN * torch.exp(largest_WN - _finite(largest_N))).sum(0)


def _finite(largest_N: Tensor) -> Tensor:
    """Replace -inf by 0, so that differences stay defined."""
    return largest_N.masked_fill(largest_N == -torch.inf, 0.0)
