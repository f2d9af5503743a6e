"""Partial FC: what is stored, and one step of it (arXiv 2010.05222, arXiv 2203.15565).

Which classes are mine: `dist.span`; which play: `sample`; what the loss is: `softmax`; how rows
move: `updates`; how they are kept: `storage`; who must not repel whom: `masks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from glint.dist.collectives import differing
from glint.dist.span import span
from glint.dist.world import World, present
from glint.errors import MismatchError, UsageError
from glint.nn.heads.batch import gather_batch
from glint.nn.heads.masks import KnownPairs
from glint.nn.heads.optimizer import CentreOptimizer, Handle
from glint.nn.heads.options import PartialFCOptions
from glint.nn.heads.sample import Nearest, sampled_classes
from glint.nn.heads.sharded import Sharded
from glint.nn.heads.softmax import STEEPEST, WIDEST, SoftmaxPass, margin_softmax
from glint.nn.heads.statistics import Tally
from glint.nn.heads.storage import Store
from glint.nn.heads.updates import ActiveRows, State, Table, apply, row_rule
from glint.nn.margins import Margin
from glint.rng import stream_key

# n samples on this rank, N over all ranks, C classes, c on this rank, k rows that play, D embedding

_INIT_STD = 0.01
_INIT_BLOCK = 1024  # classes that share one generator


class PartialFC(nn.Module):
    """A margin softmax head over `classes` identities, their centres split over the ranks.

    A step is `loss = head(feature, label); loss.backward(); head.update(lr=...)`, or the `step` of
    `head.optimizer(lr=...)`. Centres are no parameter and no buffer: no other optimiser sees them,
    and DDP does not overwrite those of one rank by another's, also where the head lies inside the
    module that it wraps. `state_dict` holds this rank's rows and the count of steps, `sharded()`
    gives pieces that any number of ranks loads; `.to` moves rows and keeps their type. What a step
    does is a function of (seed, step, global batch): the same for every world size.

    passes: forward passes with a gradient that an update follows. One more is an error.
    """

    weight: Tensor

    def __init__(
        self,
        classes: int,
        dim: int,
        options: PartialFCOptions | None = None,
        *,
        margin: Margin,
        masks: Any = None,
        neighbours: Any = None,
        world: World | dist.ProcessGroup | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        ddp_mean: bool = True,
        tally: bool = False,
    ) -> None:
        """Make the head; classes and dim are those of the whole table.

        masks: (m, 2) labels known to be one person; neighbours: a table of nearest classes
        (`sample.Nearest`) for `hard_ratio` of the negatives, known pairs left out; world: the ranks
        that share the table, those of the live process group unless said; dtype: what is
        computed in; ddp_mean: multiply feature gradients by the world size (see `softmax`); tally:
        count each row's steps (`statistics.Tally`). Raises UsageError (GL0002) for an option out
        of range, InputError (GL0304) for bad masks or neighbours.
        """
        super().__init__()
        self.options = options = PartialFCOptions() if options is None else options
        options.check(classes, dim, dtype)
        self.classes, self.dim, self.margin = classes, dim, margin
        self.seed, self.ddp_mean = seed, ddp_mean
        self.world, self._found, self._met = present(world), world is None, False
        self.passes, self.steps = 1, 0
        self.pass_type = pass_type(options, dim, dtype, self.world.device)
        self.span = span(classes, self.world.size, self.world.rank)
        self.rule = row_rule(
            options.rule, momentum=options.momentum, weight_decay=options.weight_decay
        )
        weight_cD = initial_centres(
            self.span.start,
            self.span.stop,
            dim,
            seed=seed,
            dtype=torch.bfloat16 if options.storage == "bf16" else dtype,
            device=self.world.device,
        )
        self.store = Store(dtype, seed=seed, first=self.span.start)
        self._rows: State = {"weight": weight_cD, **self.rule.state(weight_cD)}
        self._pairs = None
        if masks is not None and len(masks):
            self._pairs = KnownPairs(masks, classes, self.span, self.world.device)
        self.neighbours = None
        if neighbours is not None and options.hard_ratio:
            self.neighbours = Nearest(neighbours, masks)
            if (found := self.neighbours.near_CK.shape[0]) != classes:
                raise UsageError(
                    "GL0002",
                    f"the table has {found} classes, expected {classes}",
                    where="nearest classes",
                )
        self.tally = Tally(self.span.size, self.world.device) if tally else None
        self._pending: list[tuple[SoftmaxPass, Tensor]] = []  # with their weights
        self._seen: list[Tensor] = []
        self._handle: Handle | None = None

    def optimizer(self, lr: float) -> CentreOptimizer:
        """Return a torch optimiser whose `step` is `update`, for loops, schedulers and GradScaler.

        lr: learning rate, at least 0. Raises UsageError (GL0002).
        """
        self._handle = self._handle or Handle(self.world.device)
        return CentreOptimizer(self, self._handle, lr)

    def sharded(self) -> Sharded:
        """Return the state for `torch.distributed.checkpoint`, for any number of ranks."""
        return Sharded(self)

    @property
    def pending(self) -> int:
        """Return the backward passes that no update followed yet."""
        return len(self._pending)

    def forward(
        self,
        feature_nD: Tensor,
        label_n: Tensor,
        *,
        step: int | None = None,
        counts: Sequence[int] | None = None,
        rate: float | None = None,
    ) -> Tensor:
        """Return the mean loss of the global batch, the same on every rank.

        step: what the sampled classes are drawn for, by default one more for each pass; counts:
        rows per rank where they differ, known to all ranks; rate: the share of classes that plays,
        where it is not the options'. The backward pass keeps the centre gradients for `update`.
        Raises InputError (GL0222) for a label outside [0, classes), UsageError (GL0002) where
        `passes` passes wait for an update, MismatchError (GL0602) at the first pass where ranks
        were made with other classes, options, masks or seeds, or give other counts of rows.
        """
        self._ready(feature_nD, counts, step, rate)
        step = self.steps * self.passes + len(self._pending) if step is None else step
        batch = gather_batch(
            feature_nD, label_n, self.world, self.classes, dtype=self.store.compute, counts=counts
        )
        playing_k = sampled_classes(
            batch.label_N,
            self.classes,
            self.options.rate if rate is None else rate,
            seed=self.seed,
            step=step,
            span=self.span,
            neighbours=self.neighbours,
            hard_ratio=self.options.hard_ratio,
        )
        index_k = None if playing_k is None else playing_k - self.span.start
        masked = None
        if self._pairs is not None:
            masked = self._pairs.entries(batch.label_N, playing_k, self.options.block)
        target_N = self._targets(batch.label_N, playing_k)
        if self.tally is not None and torch.is_grad_enabled():
            self.tally.note(index_k, target_N[target_N >= 0])
        active = ActiveRows(self.rule, self._table(), index_k, self.options.block)
        pending = self._pending
        loss, *self._seen = margin_softmax(
            feature_nD,
            active,
            batch,
            target_N,
            margin=self.margin,
            scale=self.options.scale,
            world=self.world,
            on_backward=lambda *passed: pending.append(passed),
            threshold=self.options.threshold,
            masked=masked,
            ddp_mean=self.ddp_mean,
            gemm=self.options.gemm,
            keep=self.options.keep,
            pass_type=self.pass_type,
        )
        if self._handle is not None and loss.requires_grad:
            self._handle.watch(loss)
        return loss

    @torch.no_grad()
    def update(self, *, step: int | None = None, lr: float, divide: float = 1.0) -> None:
        """Move the rows of all backward passes since the last update.

        step: of the optimiser, counted by default; where it is given it must rise. divide: what
        gradients were multiplied by (passes accumulated, loss scale), above 0. Once per step.
        """
        if not (lr >= 0 and divide > 0):  # not so for NaN
            raise UsageError("GL0002", f"lr is {lr}, divide {divide}", where="head.update")
        step = self.steps if step is None else step
        self.steps = step + 1
        pending = [*self._pending]
        self.drop()
        if len(pending) == 1:
            softmax_pass, weight = pending[0]
            softmax_pass.update(weight / divide, step=step, lr=lr)
            softmax_pass.release()
            return
        index_k, grad_kD = self._joined(pending)
        apply(self.rule, self._table(), index_k, grad_kD.div_(divide), step=step, lr=lr)

    @torch.no_grad()
    def gradient(self) -> tuple[Tensor | None, Tensor]:
        """Return (rows, their gradient (k, D)) since the last update; rows None are all of them.

        For looking at: `update` does not need it and works block by block.
        """
        return self._joined(self._pending)

    def drop(self) -> None:
        """Forget the gradients since the last update: the step is skipped."""
        self._pending.clear()
        if self._handle is not None:
            self._handle.clear()

    @torch.no_grad()
    def state_rows(self) -> tuple[int, int, dict[str, Tensor]]:
        """Return (start, stop, rows): this rank's weights and rule state, brought up to date.

        Rows of a `dense_exact` head are caught up here, which may move later results by rounding:
        two runs are equal to the bit when they save at the same steps.
        """
        self.rule.flush(self._table())
        return self.span.start, self.span.stop, dict(self._rows)

    @torch.no_grad()
    def load_rows(self, fetch: Callable[[str, int, int], Tensor]) -> None:
        """Fill this rank's rows; fetch(name, start, stop) gives rows of the global table."""
        for name, rows in self._rows.items():
            rows.copy_(fetch(name, self.span.start, self.span.stop))
        self.drop()
        self.rule.restart()

    def statistics(self) -> dict[str, float]:
        """Return figures of the last batch; waits for the device.

        positive_cosine: mean over the batch of the cosine to the own centre, before the margin;
        hardest_negative: mean of the largest cosine to another class that counts; accuracy: share
        of samples with the own centre nearest of those that count; centre_norm: mean length of this
        rank's rows that played. Absent where there is nothing to average.
        """
        if not self._seen:
            return {}
        cosine_N, hardest_N, length_k = self._seen
        found = {
            "positive_cosine": cosine_N,
            "hardest_negative": hardest_N[hardest_N > -torch.inf],
            "accuracy": (cosine_N > hardest_N).float(),
            "centre_norm": length_k,
        }
        return {name: float(value.mean()) for name, value in found.items() if value.numel()}

    def _table(self) -> Table:
        return Table(self.weight, self._state(), self.store)

    def _state(self) -> State:
        return {name: rows for name, rows in self._rows.items() if name != "weight"}

    def __getattr__(self, name: str) -> Any:
        """Find rows by their names: weight, and what its rule keeps beside it."""
        rows = self.__dict__.get("_rows", {})
        return rows[name] if name in rows else super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of: all but gradients that wait, and its optimiser."""
        return {**self.__dict__, "_pending": [], "_seen": [], "_handle": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PartialFC:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0, device=self.weight.device)).device
        self._rows = {name: rows.to(device) for name, rows in self._rows.items()}
        for part in (self._pairs, self.tally, self._handle):
            if part is not None:
                part.to(device)
        if device != self.world.device:
            self.world = replace(self.world, device=device)
            self.pass_type = pass_type(self.options, self.dim, self.store.compute, device)
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        start, stop, rows = self.state_rows()
        destination.update({prefix + name: one for name, one in rows.items()})
        destination[prefix + "place"] = torch.tensor([start, stop, self.classes, self.steps])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        _, _, missing, unexpected, *_ = rest
        names = [*self._rows, "place"]
        lost = [prefix + name for name in names if prefix + name not in state_dict]
        known = {prefix + name for name in names}
        unexpected += [k for k in state_dict if k.startswith(prefix) and k not in known]
        if lost:
            missing += lost
            return
        start, stop, classes, self.steps = state_dict[prefix + "place"].tolist()
        if (start, stop, classes) != (self.span.start, self.span.stop, self.classes):
            raise MismatchError(
                "GL0702",
                f"expected the rows {self.span.start} to {self.span.stop} of {self.classes} "
                f"classes, found {start} to {stop} of {classes}",
                where="state of the head",
                hint="each rank loads its own rows; for another number of ranks put them together "
                "and give them to load_rows",
            )
        self.load_rows(lambda name, first, last: state_dict[prefix + name])

    def _ready(self, feature_nD: Tensor, counts: Sequence[int] | None, *step: Any) -> None:
        """Make sure that no update was forgotten, and once that ranks are of one table."""
        if torch.is_grad_enabled() and len(self._pending) >= self.passes:
            raise UsageError(
                "GL0002",
                f"gradients of {len(self._pending)} passes wait, and no update came",
                where="head",
                hint="call the step of head.optimizer(lr=...), or head.update(lr=...), after each "
                "pass (head.drop() skips one), or set head.passes to the passes of a step",
            )
        if self._met:
            return
        if self._found and self.world.size == 1 and present().size > 1:
            raise UsageError(
                "GL0002",
                "it was made before the process group: every rank would train a whole head",
                where="head",
                hint="make it after init_process_group, or pass world=",
            )
        rows = feature_nD.shape[0] if counts is None else tuple(counts)
        made = self.classes, self.dim, self.seed, self.options, self.margin, self.ddp_mean
        said = f"{made} {(self.store.compute, self._pairs and self._pairs.digest, step, rows)}"
        if other := differing(said, self.world):
            raise MismatchError(
                "GL0602",
                f"ranks have other classes, options, margins, masks, seeds, or batches without "
                f"counts=, such as rank {other[0]} and rank 0; this one: {said}",
                where=f"head of rank {self.world.rank}",
            )
        self._met = True

    def _joined(
        self, pending: Sequence[tuple[SoftmaxPass, Tensor]]
    ) -> tuple[Tensor | None, Tensor]:
        """Return the gradient of several passes, those of one row added up."""
        if not pending:
            none = torch.empty(0, dtype=torch.int64, device=self.weight.device)
            return none, torch.empty(
                (0, self.dim), dtype=self.store.compute, device=self.weight.device
            )
        indices = [softmax_pass.active.index_k for softmax_pass, _ in pending]
        every = [index for index in indices if index is not None]
        joined_k = torch.unique(torch.cat(every)) if every else None
        rows = self.weight.shape[0] if joined_k is None else joined_k.numel()
        total_kD = torch.zeros(
            (rows, self.dim), dtype=self.store.compute, device=self.weight.device
        )
        for (softmax_pass, weight), index_k in zip(pending, indices):
            active = softmax_pass.active
            for number in range(len(active)):
                grad_bD = softmax_pass.gradient(number, active.take(number), weight)
                piece = active.rows(number)
                if index_k is None or joined_k is None:
                    total_kD[piece] += grad_bD
                else:
                    total_kD.index_add_(0, torch.searchsorted(joined_k, index_k[piece]), grad_bD)
        return joined_k, total_kD

    def _targets(self, label_N: Tensor, playing_k: Tensor | None) -> Tensor:
        """Return the row of each label among those that play on this rank, -1 elsewhere."""
        mine_N = (label_N >= self.span.start) & (label_N < self.span.stop)
        row_N = (
            label_N - self.span.start
            if playing_k is None
            else torch.searchsorted(playing_k, label_N)
        )
        return torch.where(mine_N, row_N, -1)


def pass_type(
    options: PartialFCOptions, dim: int, dtype: torch.dtype, device: torch.device
) -> type[SoftmaxPass]:
    """Choose who does the work of a step: torch's operations, or Triton's kernels.

    "auto" takes the kernels on a GPU of compute capability 8.0 or more, where Triton is there (3.3
    or newer: 3.2 ends the process while it compiles them for sm_90), the products are "bf16" or
    "tf32", rows have 512 numbers at most and the scale is 64 at most. "triton" asks for them;
    raises UsageError (GL0002) where they cannot run.
    """
    kernels, gemm = options.kernels, options.gemm
    if kernels == "torch":
        return SoftmaxPass
    fits = dim <= WIDEST and options.scale <= STEEPEST
    here = _release("triton") >= (3, 3)
    if kernels == "auto":
        suits = here and device.type == "cuda" and dtype == torch.float32 and gemm != "float32"
        if not suits or not fits or torch.cuda.get_device_capability(device) < (8, 0):
            return SoftmaxPass
    wants = {
        "the package triton, 3.3 or newer": here,
        "float32 rows": dtype == torch.float32,
        f"at most {WIDEST} numbers per row": dim <= WIDEST,
        f"a scale of {STEEPEST:g} at most": options.scale <= STEEPEST,
    }
    if here:
        from glint.nn.heads.fused import INTERPRETED, fused

        wants["a CUDA device (or TRITON_INTERPRET=1)"] = device.type == "cuda" or INTERPRETED
    for want, good in wants.items():
        if not good:
            raise UsageError("GL0002", f'kernels = "triton" needs {want}', where="head")
    return fused(gemm)


def _release(package: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version(package).split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return (0, 0)


def initial_centres(
    start: int, stop: int, dim: int, *, seed: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
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
