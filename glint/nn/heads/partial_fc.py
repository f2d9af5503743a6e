"""Partial FC: what is stored, and one step of it (arXiv 2010.05222, arXiv 2203.15565).

Which classes are mine: `dist.span`; which play: `sample`; what the loss is: `softmax`; how rows
move: `rows`; who must not repel whom: `masks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from glint.dist.span import span
from glint.dist.world import World
from glint.errors import UsageError
from glint.nn.heads.masks import KnownPairs
from glint.nn.heads.rows import row_rule
from glint.nn.heads.sample import sampled_classes, stream_key
from glint.nn.heads.softmax import gather_batch, margin_softmax
from glint.nn.margins import Margin

# n samples on this rank, N over all ranks, C classes, c on this rank, k rows that play, D embedding

_INIT_STD = 0.01
_INIT_BLOCK = 1024  # classes that share one generator


class PartialFC(nn.Module):
    """A margin softmax head over `classes` identities, their centres split over the ranks.

    A step is `loss = head(feature, label, step=s); loss.backward(); head.update(step=s, lr=...)`.
    Centres are a buffer, not a parameter: no optimiser and no DDP sees them. The head must not lie
    inside a module that DDP wraps. What a step does is a function of (seed, step, global batch):
    the same for every world size.
    """

    def __init__(self, classes: int, dim: int, *, margin: Margin, scale: float = 64.0,
                 rate: float = 1.0, rule: str = "none", momentum: float = 0.9,
                 weight_decay: float = 5e-4, threshold: float = 0.0, masks: Any = None,
                 world: World | None = None, seed: int = 0, dtype: torch.dtype = torch.float32,
                 block: int = 16384, ddp_mean: bool = True) -> None:
        """Make the head; classes and dim are those of the whole table.

        rate: share of classes that play at a step, 0 = those of the batch, 1 = all; rule: a name of
        `rows.RULES`; threshold: drop negatives of a higher cosine, 0 = none; masks: (m, 2) labels
        known to be one person; block: class rows per block of logits; ddp_mean: multiply feature
        gradients by the world size (see `softmax`). Raises UsageError (GL0002) for an option out
        of range, InputError (GL0304) for bad masks.
        """
        super().__init__()
        _check_options(classes, dim, rate, scale, block, dtype)
        self.classes, self.dim, self.margin, self.scale = classes, dim, margin, scale
        self.rate, self.threshold, self.seed, self.block = rate, threshold, seed, block
        self.ddp_mean = ddp_mean
        self.world = World() if world is None else world
        self.span = span(classes, self.world.size, self.world.rank)
        self.rule = row_rule(rule, momentum=momentum, weight_decay=weight_decay)
        self.weight: Tensor
        self.register_buffer("weight", initial_centres(
            self.span.start, self.span.stop, dim, seed=seed, dtype=dtype,
            device=self.world.device))
        self._names = tuple(state := self.rule.state(self.weight))
        for name in self._names:
            self.register_buffer(name, state[name])
        self._pairs = None
        if masks is not None and len(masks):
            self._pairs = KnownPairs(masks, classes, self.span, self.world.device)
        self._pending: list[tuple[Tensor | None, Tensor]] = []
        self._seen: list[Tensor] = []

    def forward(self, feature_nD: Tensor, label_n: Tensor, *, step: int,
                counts: Sequence[int] | None = None) -> Tensor:
        """Give the mean loss of the global batch, the same on every rank.

        counts: rows per rank where they differ, known to all ranks. Raises InputError (GL0222) for
        a label outside [0, classes). The backward pass keeps the centre gradients for `update`.
        """
        batch = gather_batch(feature_nD, label_n, self.world, self.classes,
                             dtype=self.weight.dtype, counts=counts)
        playing_k = sampled_classes(batch.label_N, self.classes, self.rate, seed=self.seed,
                                    step=step, span=self.span)
        index_k = None if playing_k is None else playing_k - self.span.start
        self.rule.ready(self.weight, self._state(), index_k)
        centre_kD = self.weight.detach() if index_k is None else (
            self.weight.index_select(0, index_k))
        if torch.is_grad_enabled():
            centre_kD.requires_grad_()
            centre_kD.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                self._keeper(index_k))
        masked = None
        if self._pairs is not None:
            masked = self._pairs.entries(batch.label_N, playing_k, self.block)
        loss, *self._seen = margin_softmax(
            feature_nD, centre_kD, batch, self._targets(batch.label_N, playing_k),
            margin=self.margin, scale=self.scale, world=self.world, threshold=self.threshold,
            masked=masked, block=self.block, ddp_mean=self.ddp_mean)
        return loss

    @torch.no_grad()
    def update(self, *, step: int, lr: float, divide: float = 1.0) -> None:
        """Move the rows of all backward passes since the last update.

        divide: what their gradients were multiplied by (passes accumulated, loss scale). Call it
        once per optimiser step, with steps that rise.
        """
        index_k, grad_kD = self._collected()
        if divide != 1.0:
            grad_kD = grad_kD / divide
        self.rule.apply(self.weight, self._state(), index_k, grad_kD, step=step, lr=lr)

    def drop(self) -> None:
        """Forget the gradients since the last update: the step is skipped."""
        self._pending.clear()

    @torch.no_grad()
    def state_rows(self) -> tuple[int, int, dict[str, Tensor]]:
        """Give (start, stop, rows): this rank's weights and rule state, brought up to date.

        Rows that a `dense_exact` head owes are paid here, which may move later results by rounding:
        two runs are equal to the bit when they save at the same steps.
        """
        self.rule.flush(self.weight, self._state())
        return self.span.start, self.span.stop, {"weight": self.weight, **self._state()}

    @torch.no_grad()
    def load_rows(self, fetch: Callable[[str, int, int], Tensor]) -> None:
        """Fill this rank's rows; fetch(name, start, stop) gives rows of the global table."""
        for name in ("weight", *self._names):
            getattr(self, name).copy_(fetch(name, self.span.start, self.span.stop))
        self.drop()
        self.rule.restart()

    def statistics(self) -> dict[str, float]:
        """Give figures of the last batch; waits for the device.

        positive_cosine: mean over the batch of the cosine to the own centre, before the margin;
        hardest_negative: mean of the largest cosine to another class that counts; centre_norm:
        mean length of this rank's rows that played. Absent where there is nothing to average.
        """
        if not self._seen:
            return {}
        cosine_N, hardest_N, length_k = self._seen
        found = {"positive_cosine": cosine_N,
                 "hardest_negative": hardest_N[hardest_N > -torch.inf],
                 "centre_norm": length_k}
        return {name: float(value.mean()) for name, value in found.items() if value.numel()}

    def _state(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self._names}

    def _keeper(self, index_k: Tensor | None) -> Callable[[Tensor], None]:
        """Give a hook that keeps the gradient of the rows `index_k` once backward has made it."""

        def keep(centre_kD: Tensor) -> None:
            assert centre_kD.grad is not None
            self._pending.append((index_k, centre_kD.grad))
            centre_kD.grad = None

        return keep

    def _collected(self) -> tuple[Tensor | None, Tensor]:
        """Take the kept gradients, those of one row added up."""
        pending, self._pending = self._pending, []
        if not pending:
            none = torch.empty(0, dtype=torch.int64, device=self.weight.device)
            return none, self.weight.new_empty((0, self.dim))
        index_k, grad_kD = pending[0]
        if len(pending) == 1:
            return index_k, grad_kD
        if index_k is None:
            for _, more_kD in pending[1:]:
                grad_kD.add_(more_kD)
            return None, grad_kD
        joined_k = torch.unique(torch.cat([i for i, _ in pending if i is not None]))
        total_kD = grad_kD.new_zeros((joined_k.numel(), self.dim))
        for some_k, more_kD in pending:
            assert some_k is not None
            total_kD.index_add_(0, torch.searchsorted(joined_k, some_k), more_kD)
        return joined_k, total_kD

    def _targets(self, label_N: Tensor, playing_k: Tensor | None) -> Tensor:
        """Give the row of each label among those that play on this rank, -1 elsewhere."""
        mine_N = (label_N >= self.span.start) & (label_N < self.span.stop)
        row_N = (label_N - self.span.start if playing_k is None
                 else torch.searchsorted(playing_k, label_N))
        return torch.where(mine_N, row_N, -1)


def initial_centres(start: int, stop: int, dim: int, *, seed: int, dtype: torch.dtype,
                    device: torch.device) -> Tensor:
    """Draw the rows [start, stop) of the table, N(0, 0.01^2), (stop - start, dim).

    A row depends on (seed, class, dim) only: classes share a CPU generator by fixed blocks.
    """
    rows_cD = torch.empty((stop - start, dim), dtype=dtype, device=device)
    for first in range(start // _INIT_BLOCK * _INIT_BLOCK, stop, _INIT_BLOCK):
        generator = torch.Generator()
        generator.manual_seed(stream_key(seed, 1, first // _INIT_BLOCK) >> 1)
        block_bD = torch.empty((_INIT_BLOCK, dim)).normal_(0, _INIT_STD, generator=generator)
        low, high = max(first, start), min(first + _INIT_BLOCK, stop)
        rows_cD[low - start : high - start] = block_bD[low - first : high - first].to(dtype)
    return rows_cD


def _check_options(classes: int, dim: int, rate: float, scale: float, block: int,
                   dtype: torch.dtype) -> None:
    checks = (("classes", classes, classes >= 1, "at least 1"),
              ("dim", dim, dim >= 1, "at least 1"),
              ("rate", rate, 0 <= rate <= 1, "0 to 1"), ("scale", scale, scale > 0, "above 0"),
              ("block", block, block >= 1, "at least 1"),
              ("dtype", dtype, dtype in (torch.float32, torch.float64), "float32 or float64"))
    for name, value, good, expected in checks:
        if not good:
            raise UsageError("GL0002", f"{name} is {value}, expected {expected}", where="head")
