"""`PartialFC_V2` of `arcface_torch`, held by the trainer's own optimiser, at sparse cost.

The original's gradient is dense: at rate < 1 its optimiser moves every row at every step, those
that did not play by their momentum and weight decay. Here the gradient of `weight` is a sparse
tensor of the rows that played, so that scaling, accumulation and `zero_grad` work as ever. Before
torch's SGD takes a step, a hook takes the gradient over, moves those rows by the rule `dense_exact`
(`nn.heads.updates`), and leaves the others for when they are next needed; the momentum is kept in
the optimiser's own state, as torch keeps it. Any other optimiser gets the dense gradient.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim import SGD, Optimizer
from torch.optim import optimizer as torch_optimizer

from glint.compat.margin_loss import Call, Zeroed, numbers, understood
from glint.dist.span import span
from glint.dist.world import present
from glint.errors import UsageError
from glint.nn.heads.batch import gather_batch
from glint.nn.heads.options import PartialFCOptions
from glint.nn.heads.partial_fc import pass_type
from glint.nn.heads.softmax import SoftmaxPass, margin_softmax
from glint.nn.heads.storage import Space, Store
from glint.nn.heads.updates import ActiveRows, DenseExact, Gradient, RowRule, Table

# n samples on this rank, N over all ranks, c classes of this rank, k rows that play, D embedding

_INIT_STD = 0.01
_HEADS: weakref.WeakSet[PartialFC_V2] = weakref.WeakSet()
_BLOCK = {"cpu": 512, "cuda": 16384}
_HOOKS: list[Any] = []
_MOST = -math.log(1e-30)  # what a sample adds to the loss at most
_WHERE = "PartialFC_V2"


class PartialFC_V2(nn.Module):
    """A Partial FC head with the signature, parameters, draws and state file of `arcface_torch`'s.

    A step is `loss = head(features (n, D), labels (n)); loss.backward(); optimizer.step()` with an
    optimiser over `head.parameters()`, on each rank of the live process group (or alone). SGD with
    momentum moves rows at sparse cost where sample_rate < 1; another optimiser, or SGD without
    momentum, with dampening or Nesterov's, gets the dense gradient, as in the original. `weight`
    (c, D) read by its name, `state_dict()` and the optimiser's are up to date; a reference to the
    parameter from elsewhere (`parameters()`) may hold rows from when they last played.

    margin_loss: CombinedMarginLoss, ArcFace or CosFace of `arcface_torch`, or what acts like them;
    fp16: products of bfloat16. Raises UsageError (GL0002) for another margin_loss, a rate outside
    (0, 1], or a batch of another size than the first; InputError (GL0222) for a label that is no
    class, which the original takes for nobody's.
    """

    _version = 2
    _copied: _Copied | None  # the rows of the last forward pass
    _spare: list[Tensor]  # memory of copies that were used up

    def __init__(
        self,
        margin_loss: Call,
        embedding_size: int,
        num_classes: int,
        sample_rate: float = 1.0,
        fp16: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < sample_rate <= 1:
            what = f"sample_rate is {sample_rate}, expected above 0 to 1"
            raise UsageError("GL0002", what, where=_WHERE)
        world = present()
        self.rank, self.world_size = world.rank, world.size
        self.embedding_size, self.num_classes = embedding_size, num_classes
        self.sample_rate, self.fp16 = float(sample_rate), fp16
        mine = span(num_classes, world.size, world.rank)
        self.class_start, self.num_local = mine.start, mine.size
        self.num_sample, self.last_batch_size = int(self.sample_rate * mine.size), 0
        self.margin_softmax = margin_loss
        self._understood = numbers(margin_loss), understood(margin_loss)
        weight_cD = torch.normal(0, _INIT_STD, (mine.size, embedding_size))
        self._parameters["weight"] = nn.Parameter(weight_cD)
        self.weight_index: Tensor | None = None
        self._forget()
        if not _HOOKS:
            _HOOKS.append(torch_optimizer.register_optimizer_step_pre_hook(_before_step))
            _HOOKS.append(torch_optimizer.register_optimizer_step_post_hook(_after_step))

    @property
    def weight(self) -> nn.Parameter:
        """Return the centres of this rank, (c, D), all of them brought up to date."""
        self.flush()
        return self._rows

    @property
    def _rows(self) -> nn.Parameter:
        rows = self._parameters["weight"]
        assert rows is not None
        return rows

    def forward(self, local_embeddings: Tensor, local_labels: Tensor) -> Tensor:
        """Return the mean loss of the global batch, the same on every rank.

        local_embeddings (n, D), local_labels (n) or (n, 1); n the same on every rank and at every
        step. The gradient of the embeddings is multiplied by the number of ranks, for DDP's mean.
        """
        count = local_embeddings.shape[0]
        self.last_batch_size = self.last_batch_size or count
        if count != self.last_batch_size:
            raise UsageError(
                "GL0002",
                f"the batch has {count} samples, expected {self.last_batch_size} as before",
                where=_WHERE,
                hint="drop_last=True; ranks must hold the same number of samples",
            )
        _HEADS.add(self)
        if numbers(self.margin_softmax) != self._understood[0]:
            self._understood = numbers(self.margin_softmax), understood(self.margin_softmax)
        margin, scale, threshold = self._understood[1]
        rows_cD = self._rows
        world = replace(present(), device=rows_cD.device)
        table = self._table()
        batch = gather_batch(
            local_embeddings,
            local_labels.reshape(-1),
            world,
            self.num_classes,
            dtype=table.store.compute,
        )
        local_N = batch.label_N - self.class_start
        mine_N = (local_N >= 0) & (local_N < self.num_local)
        index_k = self._drawn(local_N[mine_N]) if self.sample_rate < 1 else None
        self.weight_index = index_k
        row_N = local_N if index_k is None else torch.searchsorted(index_k, local_N)
        options = PartialFCOptions(scale=scale, gemm="bf16" if self.fp16 else "float32")
        kind = pass_type(options, self.embedding_size, table.store.compute, rows_cD.device)
        passes: list[SoftmaxPass] = []

        def begin(*given: Any, **more: Any) -> SoftmaxPass:
            passes.append((Zeroed if threshold > 0 else kind)(*given, **more))
            return passes[0]

        if index_k is None:
            active = ActiveRows(RowRule(0.0), table, None, self._block)
        else:
            active = self._copied = _Copied(self._rule, table, index_k, self._block, self._spare)
            self._spare = []
        with torch.enable_grad():
            loss, cosine_N, _, _ = margin_softmax(
                local_embeddings,
                active,
                batch,
                torch.where(mine_N, row_N, -1),
                margin=margin,
                scale=scale,
                world=world,
                on_backward=lambda *_: None,
                threshold=threshold,
                gemm=options.gemm,
                keep=options.keep,
                pass_type=begin,  # type: ignore[arg-type]
            )
        with torch.no_grad():  # a sample counts as 69.08 at most, its gradient is whole
            own_N = passes[0].logsum_N - scale * margin(cosine_N, batch.norm_N)[0]
            shown = own_N.clamp_max(_MOST).mean()
        if not torch.is_grad_enabled():
            return shown
        result: Tensor = _Centres.apply(loss, shown, rows_cD, passes[0])  # type: ignore[no-untyped-call]
        return result

    def flush(self) -> None:
        """Bring every row and its momentum up to date."""
        if self._rule.now:
            with torch.no_grad():
                self._rule.flush(self._table())

    def extra_repr(self) -> str:
        """Return what it was made with."""
        return f"{self.embedding_size}, {self.num_classes}, sample_rate={self.sample_rate}"

    def _drawn(self, positive: Tensor) -> Tensor:
        """Draw the rows that play, sorted, as the original does: the same calls in the same order.

        positive: rows of this rank that the batch has.
        """
        positive = torch.unique(positive)
        if self.num_sample < positive.numel():
            return positive
        chance_c = torch.rand(self.num_local).to(positive.device)
        chance_c[positive] = 2.0
        return chance_c.topk(self.num_sample, sorted=False)[1].sort()[0]

    # ---- what the optimiser's hook does ---------------------------------------------------------

    def _table(self) -> Table:
        rows_cD = self._rows
        return Table(rows_cD.detach(), self._state, Store(rows_cD.dtype))

    def _forget(self) -> None:
        """Follow no optimiser: every row is up to date."""
        self._rule = DenseExact(0.0, 0.0)
        self._state: dict[str, Tensor] = {}
        self._optimiser: weakref.ref[Optimizer] | None = None
        self._taken: Tensor | None = None
        self._copied = None
        self._spare = []

    @property
    def _block(self) -> int:
        """Return how many rows are worked on at a time: what a core's cache holds."""
        return _BLOCK.get(self._rows.device.type, 1024)

    def _follow(self, optimiser: Optimizer, group: dict[str, Any]) -> None:
        """Make sure that rule and momentum are those of a group of an optimiser."""
        state = optimiser.state[self._rows]
        momentum_cD = state.get("momentum_buffer")
        rule = self._rule
        known = self._optimiser is not None and self._optimiser() is optimiser
        same = (rule.momentum, rule.weight_decay) == (group["momentum"], group["weight_decay"])
        if known and same and momentum_cD is self._state.get("momentum"):
            return
        self.flush()
        if momentum_cD is None:
            momentum_cD = state["momentum_buffer"] = torch.zeros_like(self._rows)
        self._rule = DenseExact(group["momentum"], group["weight_decay"])
        last_c = torch.zeros(self.num_local, dtype=torch.int32, device=momentum_cD.device)
        self._state = {"momentum": momentum_cD, "last": last_c}
        if not known:
            held = weakref.ref(self)
            optimiser.register_state_dict_pre_hook(lambda *_: _flush(held))
            optimiser.register_load_state_dict_pre_hook(lambda *_: _flush(held))
            self._optimiser = weakref.ref(optimiser)

    @torch.no_grad()
    def _step(self, optimiser: Optimizer, group: dict[str, Any]) -> None:
        """Take a step of the optimiser over, where it is SGD's; else make the gradient dense."""
        rows_cD = self._rows
        grad = rows_cD.grad
        if grad is None or not grad.is_sparse:
            return self.flush() if grad is not None else None
        if not _sparsely(optimiser, group):
            self.flush()
            rows_cD.grad = grad.to_dense()
            return
        index_k = grad._indices()[0]
        if not bool((index_k[1:] > index_k[:-1]).all()):  # several passes
            grad = grad.coalesce()
            index_k = grad._indices()[0]
        self._follow(optimiser, group)
        table, value_kD = self._table(), grad._values()
        active: ActiveRows = ActiveRows(self._rule, table, index_k, self._block)
        if self._copied is not None and self._copied.fits(self._rule, table, index_k):
            active = self._copied
        active.update(
            lambda number, *_: Gradient(value_kD[active.rows(number)]),
            step=self._rule.now,
            lr=float(group["lr"]),
        )
        self._spare = active.copies if isinstance(active, _Copied) else []
        self._copied = None
        self._taken, rows_cD.grad = rows_cD.grad, None

    def _save_to_state_dict(self, *given: Any) -> None:
        self.flush()
        super()._save_to_state_dict(*given)

    def _load_from_state_dict(self, *given: Any) -> None:
        self.flush()
        super()._load_from_state_dict(*given)

    def _apply(self, *given: Any, **more: Any) -> PartialFC_V2:
        self.flush()
        self._forget()
        super()._apply(*given, **more)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of: up to date, and with no optimiser."""
        self.flush()
        copied = PartialFC_V2.__new__(PartialFC_V2)
        copied.__dict__ = {**self.__dict__, "weight_index": None}
        copied._forget()
        return copied.__dict__


class _Copied(ActiveRows):
    """Rows that play and their momentum, brought up to date once, in memory of their own."""

    def __init__(
        self, rule: RowRule, table: Table, index_k: Tensor, block: int, spare: list[Tensor]
    ) -> None:
        super().__init__(rule, table, index_k, block)
        kept = [table.weight_cD, *(table.state[name] for name in rule.names if table.state)]
        self.versions = [(one.data_ptr(), one._version) for one in kept]
        shape = (self.count, table.weight_cD.shape[1])
        if [(one.shape, one.dtype, one.device) for one in spare] != [
            (shape, one.dtype, one.device) for one in kept
        ]:
            spare = [one.new_empty(shape) for one in kept]
        self.copies = spare
        with torch.no_grad():
            for number in range(len(self)):
                at = self.at(number)
                now = rule.read(table, at) if table.state else [rule.current(table, at)]
                for copy_kD, rows_bD in zip(self.copies, now):
                    copy_kD[self.rows(number)] = rows_bD

    def fits(self, rule: RowRule, table: Table, index_k: Tensor) -> bool:
        """Say whether nothing moved since, and the same rows play."""
        kept = [table.weight_cD, *(table.state[name] for name in rule.names)]
        return (
            rule is self.rule
            and self.index_k is not None
            and [(one.data_ptr(), one._version) for one in kept] == self.versions
            and torch.equal(index_k, self.index_k)
        )

    def take(self, number: int, space: Space | None = None) -> Tensor:
        """Return block `number`, (b, D)."""
        return self.copies[0][self.rows(number)]

    def pick(self, row_t: Tensor) -> Tensor:
        """Return single rows by their place among those that play, (t, D), a copy."""
        return self.copies[0][row_t]

    def update(
        self, gradient: Callable[[int, Tensor, Space], Gradient], *, step: int, lr: float
    ) -> None:
        """Move the copies and write them back; they are used up."""
        space = self.space()
        for number in range(len(self)):
            at = self.at(number)
            rows = [copy_kD[self.rows(number)] for copy_kD in self.copies]
            grad = gradient(number, rows[0], space.begin())
            self.rule.move(rows, self.table, at, grad, step=step, lr=lr)
            self.rule.write(rows, self.table, at, step=step)
        self.rule.done(self.table, lr=lr)


class _Centres(torch.autograd.Function):
    """Show a loss's value as the original does, and give the centres that played their gradient."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, shown: Tensor, rows_cD: Tensor, softmax_pass: SoftmaxPass
    ) -> Tensor:
        ctx.save_for_backward(rows_cD)  # torch refuses where they moved since
        ctx.softmax_pass = softmax_pass
        return shown.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (rows_cD,), softmax_pass = ctx.saved_tensors, ctx.softmax_pass
        active: ActiveRows = softmax_pass.active
        if not ctx.needs_input_grad[2]:
            return upstream, None, None, None
        weight = upstream * (softmax_pass.scale / softmax_pass.batch.size)
        grad_kD = torch.empty(
            (active.count, rows_cD.shape[1]), dtype=rows_cD.dtype, device=rows_cD.device
        )
        for number in range(len(active)):
            grad_bD = softmax_pass.gradient(number, active.take(number), weight)
            grad_kD[active.rows(number)] = grad_bD
        softmax_pass.release()
        if active.index_k is None:
            return upstream, None, grad_kD, None
        index_1k = active.index_k[None]
        grad = torch.sparse_coo_tensor(index_1k, grad_kD, rows_cD.shape, check_invariants=False)
        return upstream, None, grad, None


def _sparsely(optimiser: Optimizer, group: dict[str, Any]) -> bool:
    """Say whether a step of a group is one that `DenseExact` takes."""
    off = ("dampening", "nesterov", "maximize", "fused", "differentiable")
    return type(optimiser) is SGD and group["momentum"] > 0 and not any(map(group.get, off))


def _held(optimiser: Optimizer) -> Iterator[tuple[PartialFC_V2, dict[str, Any]]]:
    heads = {id(head._parameters["weight"]): head for head in _HEADS}
    for group in optimiser.param_groups if heads else ():
        for one in group["params"]:
            if id(one) in heads:
                yield heads[id(one)], group


def _before_step(optimiser: Optimizer, given: tuple[Any, ...], more: dict[str, Any]) -> None:
    for head, group in _held(optimiser):
        if [*given[1:], *filter(None, more.values())]:
            raise UsageError("GL0002", "optimizer.step(closure) is not known here", where=_WHERE)
        head._step(optimiser, group)


def _after_step(optimiser: Optimizer, given: tuple[Any, ...], more: dict[str, Any]) -> None:
    for head, _ in _held(optimiser):
        if head._taken is not None:
            head._rows.grad, head._taken = head._taken, None


def _flush(held: weakref.ref[PartialFC_V2]) -> None:
    if (head := held()) is not None:
        head.flush()
