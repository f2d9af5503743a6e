"""How the class rows that played are updated: rules on rows and their state, block by block.

`at` names the rows of one block (a slice, or sorted unique int64). g is the gradient, w a row, v
its momentum, mu the momentum factor, wd the weight decay, lr the rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from glint.errors import UsageError
from glint.nn.heads.options import RULES
from glint.nn.heads.storage import At, Space, Store, rows_at

# c class rows of this rank, k rows that play, b rows of one block, D embedding

State = dict[str, Tensor]  # by name, one row per class row
Rows = list[Tensor]  # one block's weights, then its state in the order of a rule's names

# rows worked on at a time: bounds the temporary memory; on a GPU few launches count for more
_BLOCK = {"cpu": 1024, "cuda": 16384}


@dataclass(frozen=True)
class Table:
    """The class rows of this rank, what a rule keeps beside them, and how both are stored."""

    weight_cD: Tensor
    state: State
    store: Store

    def take(self, name: str, at: At, space: Space | None = None) -> Tensor:
        """Read rows of the weights ("") or of a state; space: where copies may be put."""
        return self.store.take(self.state[name] if name else self.weight_cD, at, space)

    def put(self, name: str, at: At, rows_bD: Tensor, *, salt: int, step: int) -> None:
        """Write rows of the weights ("") or of a state; salt and step draw the rounding."""
        table_cD = self.state[name] if name else self.weight_cD
        self.store.put(table_cD, at, rows_bD, salt=salt, step=step)


@dataclass(frozen=True)
class Gradient:
    """The gradient of a block of rows: grad_bD less along_b1 times the row, if it is there.

    The second part lies along each row, as a weight decay does; rules add the two up.
    """

    grad_bD: Tensor
    along_b1: Tensor | None = None

    def decay(self, weight_decay: float) -> Tensor | float:
        """Return what of each row is to be added to grad_bD."""
        return weight_decay if self.along_b1 is None else weight_decay - self.along_b1

    def whole(self, weight_bD: Tensor) -> Tensor:
        """Return the two parts as one, in the memory of the first."""
        if self.along_b1 is None:
            return self.grad_bD
        return self.grad_bD.addcmul_(weight_bD, self.along_b1, value=-1)


class RowRule:
    """A way to move class rows; this one reads and writes rows that are always up to date."""

    names: tuple[str, ...] = ()  # the states that have a row of numbers per class row

    def __init__(self, weight_decay: float) -> None:
        self.weight_decay = weight_decay

    def state(self, weight_cD: Tensor) -> State:
        """Make the per-row tensors to keep beside the weights."""
        return {name: torch.zeros_like(weight_cD) for name in self.names}

    def current(self, table: Table, at: At, space: Space | None = None) -> Tensor:
        """Read one block of rows as they are now."""
        return table.take("", at, space)

    def read(self, table: Table, at: At, space: Space | None = None) -> Rows:
        """Read one block of rows and their state as they are now."""
        return [table.take(name, at, space) for name in ("", *self.names)]

    def move(
        self, rows: Rows, table: Table, at: At, grad: Gradient, *, step: int, lr: float
    ) -> None:
        """Move what `read` returned, in place; may use up the gradient."""
        raise NotImplementedError

    def write(self, rows: Rows, table: Table, at: At, *, step: int, salt: int = 0) -> None:
        """Put rows and their state back; salt: where the tables' own numbers begin."""
        for number, (name, rows_bD) in enumerate(zip(("", *self.names), rows)):
            table.put(name, at, rows_bD, salt=salt + number, step=step)

    def note(self, table: Table, at: At, step: int) -> None:
        """Note that rows were moved, where a rule keeps count."""

    def done(self, table: Table, *, lr: float) -> None:
        """Follow the last block of an update."""

    def flush(self, table: Table) -> None:
        """Bring all rows up to date, so that weights and state alone describe the table."""

    def restart(self) -> None:
        """Follow a load of rows and state."""


class Plain(RowRule):
    """SGD without momentum: w -= lr (g + wd w), on the rows that played and on no other."""

    def move(
        self, rows: Rows, table: Table, at: At, grad: Gradient, *, step: int, lr: float
    ) -> None:
        """Move the rows."""
        rows[0].mul_(1 - lr * grad.decay(self.weight_decay)).add_(grad.grad_bD, alpha=-lr)


class Stale(RowRule):
    """Momentum kept per row and used as it was left: v = mu v + g + wd w; w -= lr v.

    The semantics of Partial FC's first code (arXiv 2010.05222): rows that did not play stay.
    """

    names = ("momentum",)

    def __init__(self, momentum: float, weight_decay: float) -> None:
        super().__init__(weight_decay)
        self.momentum = momentum

    def move(
        self, rows: Rows, table: Table, at: At, grad: Gradient, *, step: int, lr: float
    ) -> None:
        """Move the rows as torch's SGD does, dampening 0."""
        weight_bD, momentum_bD = rows
        momentum_bD.mul_(self._fade(table, at, step, weight_bD.dtype)).add_(grad.grad_bD)
        decay = grad.decay(self.weight_decay)
        if isinstance(decay, Tensor):
            momentum_bD.addcmul_(weight_bD, decay)
        else:
            momentum_bD.add_(weight_bD, alpha=decay)
        weight_bD.add_(momentum_bD, alpha=-lr)
        self.note(table, at, step)

    def _fade(self, table: Table, at: At, step: int, dtype: torch.dtype) -> Tensor | float:
        """Return what momentum is multiplied by."""
        return self.momentum


class LazyDecay(Stale):
    """Momentum decayed by the steps a row sat out: v *= mu^gap first, then as `Stale`.

    gap = step - last - 1, last = the step at which the row last played (int32 per row).
    """

    def state(self, weight_cD: Tensor) -> State:
        """Keep one momentum row and one int32 step per class row."""
        last_c = torch.full((weight_cD.shape[0],), -1, dtype=torch.int32, device=weight_cD.device)
        return {**super().state(weight_cD), "last": last_c}

    def note(self, table: Table, at: At, step: int) -> None:
        """Note the step."""
        table.state["last"][at] = step

    def missed_decay(self, table: Table, at: At, step: int) -> Tensor:
        """Return what brings (w, v) to the step, float32 (b, 4): ((1, 0), (0, mu^gap))."""
        gap_b = self._gap(table, at, step)
        missed_b4 = torch.eye(2, device=gap_b.device).view(1, 4).repeat(gap_b.shape[0], 1)
        missed_b4[:, 3] = torch.pow(self.momentum, gap_b)
        return missed_b4

    def _fade(self, table: Table, at: At, step: int, dtype: torch.dtype) -> Tensor | float:
        return torch.pow(self.momentum, self._gap(table, at, step) + 1).to(dtype)[:, None]

    def _gap(self, table: Table, at: At, step: int) -> Tensor:
        last_b = rows_at(table.state["last"], at)
        return (step - 1 - last_b).clamp_min(0).to(torch.float64)


class DenseExact(Stale):
    """The rows that dense momentum SGD over the whole table would have, at sparse cost.

    A row without gradient moves by (w, v) <- A_s (w, v), A_s = ((1 - lr_s wd, -lr_s mu), (wd, mu)):
    torch's SGD with momentum and weight decay, g = 0. Rows that sat out are caught up, when they
    are next read, by the product of the matrices they missed; a table of such products by gap is
    rolled once per update, so the rate may move. `last` (int32 per row) counts updates since the
    last flush. Every `horizon` updates all rows are flushed, which bounds the table.
    """

    def __init__(self, momentum: float, weight_decay: float, horizon: int = 4096) -> None:
        super().__init__(momentum, weight_decay)
        self.horizon = horizon
        self.restart()

    def restart(self) -> None:
        """Begin a new count: every row is up to date."""
        self.now = 0
        self.missed_g4 = torch.eye(2, dtype=torch.float64).view(1, 4)  # products of the last g A_s
        self._placed: Tensor | None = None  # the same, where and as it was last needed

    def state(self, weight_cD: Tensor) -> State:
        """Keep one momentum row and one int32 count per class row."""
        last_c = torch.zeros(weight_cD.shape[0], dtype=torch.int32, device=weight_cD.device)
        return {**super().state(weight_cD), "last": last_c}

    def current(self, table: Table, at: At, space: Space | None = None) -> Tensor:
        """Return the rows as they are now; what is stored stays behind."""
        weight_bD = table.take("", at, space)
        if self.now == 0:
            return weight_bD
        ww_b1, wv_b1, _, _ = self._missed(table, at)
        now_bD = torch.mul(weight_bD, ww_b1, out=None if space is None else space(len(weight_bD)))
        return now_bD.addcmul_(table.take("momentum", at, space), wv_b1)

    def read(self, table: Table, at: At, space: Space | None = None) -> Rows:
        """Return the rows and their momentum as they are now; what is stored stays behind."""
        weight_bD, momentum_bD = super().read(table, at, space)
        if self.now == 0:
            return [weight_bD, momentum_bD]
        ww_b1, wv_b1, vw_b1, vv_b1 = self._missed(table, at)
        now_bD = torch.mul(weight_bD, ww_b1, out=None if space is None else space(len(weight_bD)))
        now_bD.addcmul_(momentum_bD, wv_b1)
        return [now_bD, momentum_bD.mul_(vv_b1).addcmul_(weight_bD, vw_b1)]

    def note(self, table: Table, at: At, step: int) -> None:
        """Note the update."""
        table.state["last"][at] = self.now + 1

    def missed_decay(self, table: Table, at: At, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return each row's product of missed matrices, (b, 4)."""
        gap_b = self.now - rows_at(table.state["last"], at)
        placed_g4 = self._placed
        if placed_g4 is None or placed_g4.dtype != dtype or placed_g4.device != gap_b.device:
            placed_g4 = self._placed = self.missed_g4.to(gap_b.device, dtype)
        return placed_g4.index_select(0, gap_b)

    def done(self, table: Table, *, lr: float) -> None:
        """Count the update for all rows that did not play."""
        self.now += 1
        idle_22 = torch.tensor(
            [[1 - lr * self.weight_decay, -lr * self.momentum], [self.weight_decay, self.momentum]],
            dtype=torch.float64,
        )
        self._placed = None
        self.missed_g4 = torch.cat(
            [
                torch.eye(2, dtype=torch.float64).view(1, 4),
                (idle_22 @ self.missed_g4.view(-1, 2, 2)).view(-1, 4),
            ]
        )
        if self.now >= self.horizon:
            self.flush(table)

    def flush(self, table: Table) -> None:
        """Catch every row up and begin a new count."""
        if self.now:
            every = ActiveRows(self, table, None, _BLOCK[table.weight_cD.device.type])
            for number in range(len(every)):
                at = every.at(number)
                self.write(self.read(table, at), table, at, step=self.now, salt=2)
            table.state["last"].zero_()
        self.restart()

    def _missed(self, table: Table, at: At) -> tuple[Tensor, ...]:
        """Return the entries of each row's product of missed matrices, four of (b, 1)."""
        return self.missed_decay(table, at, table.store.compute).unsqueeze(2).unbind(1)


class LazyAdamW(RowRule):
    """AdamW (arXiv 1711.05101) on the rows that played, with one step count for all rows.

    Moments of a row that sits out stay as they are; bias is corrected by step + 1.
    """

    names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(weight_decay)
        self.betas, self.eps = betas, eps

    def move(
        self, rows: Rows, table: Table, at: At, grad: Gradient, *, step: int, lr: float
    ) -> None:
        """Move the rows and their moments."""
        weight_bD, first_bD, second_bD = rows
        (beta1, beta2), time = self.betas, step + 1
        grad_bD = grad.whole(weight_bD)
        first_bD.mul_(beta1).add_(grad_bD, alpha=1 - beta1)
        second_bD.mul_(beta2).addcmul_(grad_bD, grad_bD, value=1 - beta2)
        below_bD = (second_bD / (1 - beta2**time)).sqrt_().add_(self.eps)
        weight_bD.mul_(1 - lr * self.weight_decay)
        weight_bD.addcdiv_(first_bD, below_bD, value=-lr / (1 - beta1**time))


def row_rule(name: str, *, momentum: float = 0.9, weight_decay: float = 5e-4) -> RowRule:
    """Make the rule of a name in `RULES`; raises UsageError (GL0002) for another name.

    For "adamw" momentum is beta1.
    """
    if name == "none":
        return Plain(weight_decay)
    if name == "v1_stale":
        return Stale(momentum, weight_decay)
    if name == "lazy_decay":
        return LazyDecay(momentum, weight_decay)
    if name == "dense_exact":
        return DenseExact(momentum, weight_decay)
    if name == "adamw":
        return LazyAdamW(weight_decay, (momentum, 0.999))
    raise UsageError("GL0002", f"rule is {name!r}, expected one of {', '.join(RULES)}")


class ActiveRows:
    """The rows of a table that play a step, by block; index_k None means all of them."""

    def __init__(self, rule: RowRule, table: Table, index_k: Tensor | None, block: int) -> None:
        self.rule, self.table, self.index_k, self.block = rule, table, index_k, block
        self.count = table.weight_cD.shape[0] if index_k is None else index_k.numel()

    def __len__(self) -> int:
        return -(-self.count // self.block)

    def rows(self, number: int) -> slice:
        """Return which of the rows that play block `number` is."""
        return slice(number * self.block, min((number + 1) * self.block, self.count))

    def at(self, number: int) -> At:
        """Return which rows of the table block `number` is."""
        rows = self.rows(number)
        return rows if self.index_k is None else self.index_k[rows]

    def edges(self, device: torch.device) -> Tensor:
        """Return where blocks begin and the last one ends, (blocks + 1)."""
        return torch.arange(0, (len(self) + 1) * self.block, self.block, device=device)

    def space(self) -> Space:
        """Make memory for one block after another, in the type that is computed in."""
        block = min(self.block, self.count)
        return Space(self.table.weight_cD, block, self.table.store.compute)

    def take(self, number: int, space: Space | None = None) -> Tensor:
        """Read block `number`, (b, D)."""
        return self.rule.current(self.table, self.at(number), space)

    def pick(self, row_t: Tensor) -> Tensor:
        """Read single rows by their place among those that play, (t, D), a copy."""
        at = row_t if self.index_k is None else self.index_k[row_t]
        return self.rule.current(self.table, at)

    def update(
        self, gradient: Callable[[int, Tensor, Space], Gradient], *, step: int, lr: float
    ) -> None:
        """Move all rows that play, block by block while a block is in cache.

        gradient(number, rows (b, D), space) returns the gradient of a block and may not change the
        rows.
        """
        space = self.space()
        for number in range(len(self)):
            at = self.at(number)
            rows = self.rule.read(self.table, at, space.begin())
            grad = gradient(number, rows[0], space)
            self.rule.move(rows, self.table, at, grad, step=step, lr=lr)
            self.rule.write(rows, self.table, at, step=step)
        self.rule.done(self.table, lr=lr)


def apply(
    rule: RowRule, table: Table, index_k: Tensor | None, grad_kD: Tensor, *, step: int, lr: float
) -> None:
    """Move the rows `index_k` (None: all) by their gradient, one update in blocks."""
    active = ActiveRows(rule, table, index_k, _BLOCK[table.weight_cD.device.type])
    active.update(lambda number, *_: Gradient(grad_kD[active.rows(number)]), step=step, lr=lr)
