"""How the class rows that played are updated: rules on (rows, state), never on the whole table.

`at` names the rows of one block (a slice, or sorted unique int64). g is the gradient, w a row, v
its momentum, mu the momentum factor, wd the weight decay, lr the rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from glint.errors import UsageError
from glint.nn.heads.options import RULES
from glint.nn.heads.storage import At, Store, cuts

# c class rows of this rank, k rows that play, b rows of one block, D embedding

State = dict[str, Tensor]  # by name, one row per class row
Rows = list[Tensor]  # one block's weights, then its state in the order of names

_BLOCK = 1024  # rows worked on at a time: bounds the temporary memory
_EXACT = {torch.float32: Store(torch.float32), torch.float64: Store(torch.float64)}


class RowRule(Protocol):
    """A way to move class rows.

    `state` makes the per-row tensors to keep beside the weights; `current` reads one block of rows
    as they are now, `read` also their state's; `move` moves what `read` gave in place (and may use
    up the gradient); `write` puts it back; `done` follows the last block of an update; `flush`
    brings all rows up to date, so that weights and state alone describe the table; `restart`
    follows a load.
    """

    def state(self, weight_cD: Tensor) -> dict[str, Tensor]: ...

    def current(self, weight_cD: Tensor, state: State, at: At, store: Store) -> Tensor: ...

    def read(self, weight_cD: Tensor, state: State, at: At, store: Store) -> Rows: ...

    def move(
        self,
        rows: Rows,
        state: State,
        at: At,
        grad_bD: Tensor,
        *,
        step: int,
        lr: float,
    ) -> None: ...

    def write(self, rows: Rows, weight_cD: Tensor, state: State, at: At, store: Store) -> None: ...

    def done(self, weight_cD: Tensor, state: State, store: Store, *, lr: float) -> None: ...

    def flush(self, weight_cD: Tensor, state: State, store: Store) -> None: ...

    def restart(self) -> None: ...


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


def apply(
    rule: RowRule,
    weight_cD: Tensor,
    state: State,
    index_k: Tensor | None,
    grad_kD: Tensor,
    *,
    step: int,
    lr: float,
    store: Store | None = None,
) -> None:
    """Move the rows `index_k` (None: all) by their gradient, one update in blocks."""
    store = _EXACT[weight_cD.dtype] if store is None else store
    store.step = step
    for at, piece in cuts(index_k, grad_kD.shape[0], _BLOCK):
        rows = rule.read(weight_cD, state, at, store)
        rule.move(rows, state, at, grad_kD[piece], step=step, lr=lr)
        rule.write(rows, weight_cD, state, at, store)
    rule.done(weight_cD, state, store, lr=lr)


class Playing:
    """The rows of a table that play a step, by block; index_k None means all of them."""

    def __init__(
        self,
        rule: RowRule,
        weight_cD: Tensor,
        state: State,
        store: Store,
        index_k: Tensor | None,
        block: int,
    ) -> None:
        self.rule, self.weight_cD, self.state, self.store = rule, weight_cD, state, store
        self.index_k, self.block = index_k, block
        self.count = weight_cD.shape[0] if index_k is None else index_k.numel()

    def __len__(self) -> int:
        return -(-self.count // self.block)

    def rows(self, number: int) -> slice:
        """Say which of the rows that play block `number` is."""
        return slice(number * self.block, min((number + 1) * self.block, self.count))

    def edges(self, device: torch.device) -> Tensor:
        """Give where blocks begin and the last one ends, (blocks + 1)."""
        return torch.arange(0, (len(self) + 1) * self.block, self.block, device=device)

    def take(self, number: int) -> Tensor:
        """Read block `number`, (b, D)."""
        return self.rule.current(self.weight_cD, self.state, self._at(number), self.store)

    def pick(self, row_t: Tensor) -> Tensor:
        """Read single rows by their place among those that play, (t, D), a copy."""
        at = row_t if self.index_k is None else self.index_k[row_t]
        return self.rule.current(self.weight_cD, self.state, at, self.store)

    def update(self, gradient: Callable[[int, Tensor], Tensor], *, step: int, lr: float) -> None:
        """Move all rows that play, block by block while a block is in cache.

        gradient(number, rows (b, D)) gives the gradient of a block and may not change the rows.
        """
        self.store.step = step
        for number in range(len(self)):
            at = self._at(number)
            rows = self.rule.read(self.weight_cD, self.state, at, self.store)
            self.rule.move(rows, self.state, at, gradient(number, rows[0]), step=step, lr=lr)
            self.rule.write(rows, self.weight_cD, self.state, at, self.store)
        self.rule.done(self.weight_cD, self.state, self.store, lr=lr)

    def _at(self, number: int) -> At:
        rows = self.rows(number)
        return rows if self.index_k is None else self.index_k[rows]


class _NeverBehind:
    """The parts of a rule whose rows are always up to date."""

    names: tuple[str, ...] = ()

    def current(self, weight_cD: Tensor, state: State, at: At, store: Store) -> Tensor:
        """Read the rows."""
        return store.take(weight_cD, at)

    def read(self, weight_cD: Tensor, state: State, at: At, store: Store) -> Rows:
        """Read the rows and their state."""
        return [store.take(weight_cD, at), *(store.take(state[name], at) for name in self.names)]

    def write(self, rows: Rows, weight_cD: Tensor, state: State, at: At, store: Store) -> None:
        """Put the rows and their state back."""
        for salt, (table_cD, rows_bD) in enumerate(
            zip((weight_cD, *(state[name] for name in self.names)), rows)
        ):
            store.put(table_cD, at, rows_bD, salt)

    def note(self, state: State, at: At, step: int) -> None:
        """Do nothing: no step is kept."""

    def done(self, weight_cD: Tensor, state: State, store: Store, *, lr: float) -> None:
        """Do nothing."""

    def flush(self, weight_cD: Tensor, state: State, store: Store) -> None:
        """Do nothing."""

    def restart(self) -> None:
        """Do nothing."""


class Plain(_NeverBehind):
    """SGD without momentum: w -= lr (g + wd w), on the rows that played and on no other."""

    def __init__(self, weight_decay: float) -> None:
        self.weight_decay = weight_decay

    def state(self, weight_cD: Tensor) -> State:
        """Keep nothing."""
        return {}

    def move(
        self,
        rows: Rows,
        state: State,
        at: At,
        grad_bD: Tensor,
        *,
        step: int,
        lr: float,
    ) -> None:
        """Move the rows."""
        rows[0].mul_(1 - lr * self.weight_decay).add_(grad_bD, alpha=-lr)


class Stale(_NeverBehind):
    """Momentum kept per row and used as it was left: v = mu v + g + wd w; w -= lr v.

    The semantics of Partial FC's first code (arXiv 2010.05222): rows that did not play stay.
    """

    names = ("momentum",)

    def __init__(self, momentum: float, weight_decay: float) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay

    def state(self, weight_cD: Tensor) -> State:
        """Keep one momentum row per class row."""
        return {"momentum": torch.zeros_like(weight_cD)}

    def move(
        self,
        rows: Rows,
        state: State,
        at: At,
        grad_bD: Tensor,
        *,
        step: int,
        lr: float,
    ) -> None:
        """Move the rows."""
        rows[1].mul_(self.momentum)
        _momentum_step(rows, grad_bD, lr, self.weight_decay)


class LazyDecay(_NeverBehind):
    """Momentum decayed by the steps a row sat out: v *= mu^gap first, then as `Stale`.

    gap = step - last - 1, last = the step at which the row last played (int32 per row).
    """

    names = ("momentum",)

    def __init__(self, momentum: float, weight_decay: float) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay

    def state(self, weight_cD: Tensor) -> State:
        """Keep one momentum row and one int32 step per class row."""
        last_c = torch.full((weight_cD.shape[0],), -1, dtype=torch.int32, device=weight_cD.device)
        return {"momentum": torch.zeros_like(weight_cD), "last": last_c}

    def move(
        self,
        rows: Rows,
        state: State,
        at: At,
        grad_bD: Tensor,
        *,
        step: int,
        lr: float,
    ) -> None:
        """Move the rows and note the step."""
        fade_b = torch.pow(self.momentum, self._gap(state, at, step) + 1).to(grad_bD.dtype)
        rows[1].mul_(fade_b[:, None])
        _momentum_step(rows, grad_bD, lr, self.weight_decay)
        self.note(state, at, step)

    def note(self, state: State, at: At, step: int) -> None:
        """Note the step."""
        state["last"][at] = step

    def owed(self, state: State, at: At, step: int) -> Tensor:
        """Give what brings (w, v) to the step, float32 (b, 4): ((1, 0), (0, mu^gap))."""
        owed_b4 = torch.eye(2, device=state["last"].device).view(1, 4)
        owed_b4 = owed_b4.repeat(state["last"][at].shape[0], 1)
        owed_b4[:, 3] = torch.pow(self.momentum, self._gap(state, at, step))
        return owed_b4

    def _gap(self, state: State, at: At, step: int) -> Tensor:
        return (step - 1 - state["last"][at]).clamp_min(0).to(torch.float64)


class DenseExact:
    """The rows that dense momentum SGD over the whole table would have, at sparse cost.

    A row without gradient moves by (w, v) <- A_s (w, v), A_s = ((1 - lr_s wd, -lr_s mu), (wd, mu)):
    torch's SGD with momentum and weight decay, g = 0. Rows that sat out are caught up, when they
    are next read, by the product of the matrices they missed; a table of such products by gap is
    rolled once per update, so the rate may move. `last` (int32 per row) counts updates since the
    last flush. Every `horizon` updates all rows are flushed, which bounds the table.
    """

    def __init__(self, momentum: float, weight_decay: float, horizon: int = 4096) -> None:
        self.momentum, self.weight_decay, self.horizon = momentum, weight_decay, horizon
        self.restart()

    def restart(self) -> None:
        """Begin a new count: every row is up to date."""
        self.now = 0
        self.missed_g4 = torch.eye(2, dtype=torch.float64).view(1, 4)  # products of the last g A_s
        self._placed: Tensor | None = None  # the same, where and as it was last needed

    def state(self, weight_cD: Tensor) -> State:
        """Keep one momentum row and one int32 count per class row."""
        last_c = torch.zeros(weight_cD.shape[0], dtype=torch.int32, device=weight_cD.device)
        return {"momentum": torch.zeros_like(weight_cD), "last": last_c}

    def current(self, weight_cD: Tensor, state: State, at: At, store: Store) -> Tensor:
        """Give the rows as they are now; what is stored stays behind."""
        weight_bD = store.take(weight_cD, at)
        if self.now == 0:
            return weight_bD
        ww_b1, wv_b1, _, _ = self._missed(state, at, store)
        return (weight_bD * ww_b1).addcmul_(store.take(state["momentum"], at), wv_b1)

    def read(self, weight_cD: Tensor, state: State, at: At, store: Store) -> Rows:
        """Give the rows and their momentum as they are now; what is stored stays behind."""
        weight_bD, momentum_bD = store.take(weight_cD, at), store.take(state["momentum"], at)
        if self.now == 0:
            return [weight_bD, momentum_bD]
        ww_b1, wv_b1, vw_b1, vv_b1 = self._missed(state, at, store)
        now_bD = (weight_bD * ww_b1).addcmul_(momentum_bD, wv_b1)
        return [now_bD, momentum_bD.mul_(vv_b1).addcmul_(weight_bD, vw_b1)]

    def move(
        self,
        rows: Rows,
        state: State,
        at: At,
        grad_bD: Tensor,
        *,
        step: int,
        lr: float,
    ) -> None:
        """Move the rows."""
        rows[1].mul_(self.momentum)
        _momentum_step(rows, grad_bD, lr, self.weight_decay)
        self.note(state, at, step)

    def note(self, state: State, at: At, step: int) -> None:
        """Note the update."""
        state["last"][at] = self.now + 1

    def owed(self, state: State, at: At, dtype: torch.dtype = torch.float32) -> Tensor:
        """Give each row's product of missed matrices, (b, 4)."""
        gap_b = self.now - state["last"][at]
        placed_g4 = self._placed
        if placed_g4 is None or placed_g4.dtype != dtype or placed_g4.device != gap_b.device:
            placed_g4 = self._placed = self.missed_g4.to(gap_b.device, dtype)
        return placed_g4[gap_b.to(torch.int64)]

    def write(self, rows: Rows, weight_cD: Tensor, state: State, at: At, store: Store) -> None:
        """Put the rows and their momentum back."""
        store.put(weight_cD, at, rows[0], 0)
        store.put(state["momentum"], at, rows[1], 1)

    def done(self, weight_cD: Tensor, state: State, store: Store, *, lr: float) -> None:
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
            self.flush(weight_cD, state, store)

    def flush(self, weight_cD: Tensor, state: State, store: Store) -> None:
        """Catch every row up and begin a new count."""
        if self.now:
            store.step = self.now
            for at, _ in cuts(None, weight_cD.shape[0], _BLOCK):
                rows = self.read(weight_cD, state, at, store)
                store.put(weight_cD, at, rows[0], 2)
                store.put(state["momentum"], at, rows[1], 3)
            state["last"].zero_()
        self.restart()

    def _missed(self, state: State, at: At, store: Store) -> tuple[Tensor, ...]:
        """Give the entries of each row's product of missed matrices, four of (b, 1)."""
        return self.owed(state, at, store.compute).unsqueeze(2).unbind(1)


class LazyAdamW(_NeverBehind):
    """AdamW (arXiv 1711.05101) on the rows that played, with one step count for all rows.

    Moments of a row that sits out stay as they are; bias is corrected by step + 1.
    """

    names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.weight_decay, self.betas, self.eps = weight_decay, betas, eps

    def state(self, weight_cD: Tensor) -> State:
        """Keep two moments per class row."""
        return {"exp_avg": torch.zeros_like(weight_cD), "exp_avg_sq": torch.zeros_like(weight_cD)}

    def move(
        self,
        rows: Rows,
        state: State,
        at: At,
        grad_bD: Tensor,
        *,
        step: int,
        lr: float,
    ) -> None:
        """Move the rows and their moments."""
        weight_bD, first_bD, second_bD = rows
        (beta1, beta2), time = self.betas, step + 1
        first_bD.mul_(beta1).add_(grad_bD, alpha=1 - beta1)
        second_bD.mul_(beta2).addcmul_(grad_bD, grad_bD, value=1 - beta2)
        below_bD = (second_bD / (1 - beta2**time)).sqrt_().add_(self.eps)
        weight_bD.mul_(1 - lr * self.weight_decay)
        weight_bD.addcdiv_(first_bD, below_bD, value=-lr / (1 - beta1**time))


def _momentum_step(rows: Rows, grad_bD: Tensor, lr: float, weight_decay: float) -> None:
    """Do v = (mu v) + g + wd w; w -= lr v in place, from (w, mu v): torch's SGD, dampening 0."""
    weight_bD, faded_bD = rows
    faded_bD.add_(grad_bD).add_(weight_bD, alpha=weight_decay)
    weight_bD.add_(faded_bD, alpha=-lr)
