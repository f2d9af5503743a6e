"""How the class rows that played are updated: rules on (rows, state), never on the whole table.

`at` names the rows of one block (a slice, or sorted unique int64). g is the gradient, w a row, v
its momentum, mu the momentum factor, wd the weight decay, lr the rate.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from glint.errors import UsageError
from glint.nn.heads.storage import At, Store, cuts

# c class rows of this rank, k rows that play, b rows of one block, D embedding

RULES = ("none", "v1_stale", "lazy_decay", "dense_exact", "adamw")
_BLOCK = 1024  # rows worked on at a time: bounds the temporary memory
_EXACT = {torch.float32: Store(torch.float32), torch.float64: Store(torch.float64)}


class RowRule(Protocol):
    """A way to move class rows.

    `state` makes the per-row tensors to keep beside the weights; `ready` brings rows up to date
    before they are read; `move` moves one block of rows in place, and their state in its tables
    (it may use up the gradient); `done` follows the last block of an update; `flush` brings all
    rows up to date, so that weights and state alone describe the table; `restart` follows a load.
    """

    def state(self, weight_cD: Tensor) -> dict[str, Tensor]: ...

    def ready(self, weight_cD: Tensor, state: dict[str, Tensor], index_k: Tensor | None,
              store: Store) -> None: ...

    def move(self, weight_bD: Tensor, state: dict[str, Tensor], at: At, grad_bD: Tensor,
             store: Store, *, step: int, lr: float) -> None: ...

    def done(self, weight_cD: Tensor, state: dict[str, Tensor], index_k: Tensor | None,
             store: Store, *, step: int, lr: float) -> None: ...

    def flush(self, weight_cD: Tensor, state: dict[str, Tensor], store: Store) -> None: ...

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


def apply(rule: RowRule, weight_cD: Tensor, state: dict[str, Tensor], index_k: Tensor | None,
          grad_kD: Tensor, *, step: int, lr: float, store: Store | None = None) -> None:
    """Move the rows `index_k` (None: all) by their gradient, one update in blocks."""
    store = _EXACT[weight_cD.dtype] if store is None else store
    store.step = step
    for at, piece in cuts(index_k, grad_kD.shape[0], _BLOCK):
        weight_bD = store.take(weight_cD, at)
        rule.move(weight_bD, state, at, grad_kD[piece], store, step=step, lr=lr)
        store.put(weight_cD, at, weight_bD, 0)
    rule.done(weight_cD, state, index_k, store, step=step, lr=lr)


class _NeverBehind:
    """The parts of a rule whose rows are always up to date."""

    def ready(self, weight_cD: Tensor, state: dict[str, Tensor], index_k: Tensor | None,
              store: Store) -> None:
        """Do nothing."""

    def done(self, weight_cD: Tensor, state: dict[str, Tensor], index_k: Tensor | None,
             store: Store, *, step: int, lr: float) -> None:
        """Do nothing."""

    def flush(self, weight_cD: Tensor, state: dict[str, Tensor], store: Store) -> None:
        """Do nothing."""

    def restart(self) -> None:
        """Do nothing."""


class Plain(_NeverBehind):
    """SGD without momentum: w -= lr (g + wd w), on the rows that played and on no other."""

    def __init__(self, weight_decay: float) -> None:
        self.weight_decay = weight_decay

    def state(self, weight_cD: Tensor) -> dict[str, Tensor]:
        """Keep nothing."""
        return {}

    def move(self, weight_bD: Tensor, state: dict[str, Tensor], at: At, grad_bD: Tensor,
             store: Store, *, step: int, lr: float) -> None:
        """Move the rows."""
        weight_bD.mul_(1 - lr * self.weight_decay).add_(grad_bD, alpha=-lr)


class Stale(_NeverBehind):
    """Momentum kept per row and used as it was left: v = mu v + g + wd w; w -= lr v.

    The semantics of Partial FC's first code (arXiv 2010.05222): rows that did not play stay.
    """

    def __init__(self, momentum: float, weight_decay: float) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay

    def state(self, weight_cD: Tensor) -> dict[str, Tensor]:
        """Keep one momentum row per class row."""
        return {"momentum": torch.zeros_like(weight_cD)}

    def move(self, weight_bD: Tensor, state: dict[str, Tensor], at: At, grad_bD: Tensor,
             store: Store, *, step: int, lr: float) -> None:
        """Move the rows."""
        momentum_bD = store.take(state["momentum"], at).mul_(self.momentum)
        _momentum_step(weight_bD, momentum_bD, grad_bD, lr, self.weight_decay)
        store.put(state["momentum"], at, momentum_bD, 1)


class LazyDecay(_NeverBehind):
    """Momentum decayed by the steps a row sat out: v *= mu^gap first, then as `Stale`.

    gap = step - last - 1, last = the step at which the row last played (int32 per row).
    """

    def __init__(self, momentum: float, weight_decay: float) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay

    def state(self, weight_cD: Tensor) -> dict[str, Tensor]:
        """Keep one momentum row and one int32 step per class row."""
        last_c = torch.full((weight_cD.shape[0],), -1, dtype=torch.int32, device=weight_cD.device)
        return {"momentum": torch.zeros_like(weight_cD), "last": last_c}

    def move(self, weight_bD: Tensor, state: dict[str, Tensor], at: At, grad_bD: Tensor,
             store: Store, *, step: int, lr: float) -> None:
        """Move the rows and note the step."""
        gap_b = (step - 1 - state["last"][at]).clamp_min(0).to(torch.float64)
        fade_b = torch.pow(self.momentum, gap_b + 1).to(weight_bD.dtype)
        momentum_bD = store.take(state["momentum"], at).mul_(fade_b[:, None])
        _momentum_step(weight_bD, momentum_bD, grad_bD, lr, self.weight_decay)
        store.put(state["momentum"], at, momentum_bD, 1)
        state["last"][at] = step


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
        self.missed_g22 = torch.eye(2, dtype=torch.float64)[None]  # product of the last g matrices

    def state(self, weight_cD: Tensor) -> dict[str, Tensor]:
        """Keep one momentum row and one int32 count per class row."""
        last_c = torch.zeros(weight_cD.shape[0], dtype=torch.int32, device=weight_cD.device)
        return {"momentum": torch.zeros_like(weight_cD), "last": last_c}

    def ready(self, weight_cD: Tensor, state: dict[str, Tensor], index_k: Tensor | None,
              store: Store) -> None:
        """Catch the rows up with the updates they missed."""
        if self.now == 0:
            return
        store.step = self.now
        table_g22 = self.missed_g22.to(weight_cD.device)
        count = weight_cD.shape[0] if index_k is None else index_k.numel()
        for at, _ in cuts(index_k, count, _BLOCK):
            gap_b = self.now - state["last"][at]
            if not bool((gap_b > 0).any()):
                continue
            product_b22 = table_g22[gap_b.to(torch.int64)].to(store.compute)
            weight_bD, momentum_bD = store.take(weight_cD, at), store.take(state["momentum"], at)
            caught_up_bD = (product_b22[:, 0, 0, None] * weight_bD).addcmul_(
                product_b22[:, 0, 1, None], momentum_bD)
            momentum_bD.mul_(product_b22[:, 1, 1, None]).addcmul_(
                product_b22[:, 1, 0, None], weight_bD)
            store.put(state["momentum"], at, momentum_bD, 3)
            store.put(weight_cD, at, caught_up_bD, 2)
            state["last"][at] = self.now

    def move(self, weight_bD: Tensor, state: dict[str, Tensor], at: At, grad_bD: Tensor,
             store: Store, *, step: int, lr: float) -> None:
        """Move the rows, which `ready` has caught up."""
        momentum_bD = store.take(state["momentum"], at).mul_(self.momentum)
        _momentum_step(weight_bD, momentum_bD, grad_bD, lr, self.weight_decay)
        store.put(state["momentum"], at, momentum_bD, 1)
        state["last"][at] = self.now + 1

    def done(self, weight_cD: Tensor, state: dict[str, Tensor], index_k: Tensor | None,
             store: Store, *, step: int, lr: float) -> None:
        """Count the update for all rows that did not play."""
        self.now += 1
        idle_22 = torch.tensor([[1 - lr * self.weight_decay, -lr * self.momentum],
                                [self.weight_decay, self.momentum]], dtype=torch.float64)
        self.missed_g22 = torch.cat([torch.eye(2, dtype=torch.float64)[None],
                                     idle_22 @ self.missed_g22])
        if self.now >= self.horizon:
            self.flush(weight_cD, state, store)

    def flush(self, weight_cD: Tensor, state: dict[str, Tensor], store: Store) -> None:
        """Catch every row up and begin a new count."""
        self.ready(weight_cD, state, None, store)
        state["last"].zero_()
        self.restart()


class LazyAdamW(_NeverBehind):
    """AdamW (arXiv 1711.05101) on the rows that played, with one step count for all rows.

    Moments of a row that sits out stay as they are; bias is corrected by step + 1.
    """

    def __init__(self, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8) -> None:
        self.weight_decay, self.betas, self.eps = weight_decay, betas, eps

    def state(self, weight_cD: Tensor) -> dict[str, Tensor]:
        """Keep two moments per class row."""
        return {"exp_avg": torch.zeros_like(weight_cD), "exp_avg_sq": torch.zeros_like(weight_cD)}

    def move(self, weight_bD: Tensor, state: dict[str, Tensor], at: At, grad_bD: Tensor,
             store: Store, *, step: int, lr: float) -> None:
        """Move the rows and their moments."""
        (beta1, beta2), time = self.betas, step + 1
        first_bD = store.take(state["exp_avg"], at).mul_(beta1).add_(grad_bD, alpha=1 - beta1)
        second_bD = store.take(state["exp_avg_sq"], at).mul_(beta2).addcmul_(
            grad_bD, grad_bD, value=1 - beta2)
        below_bD = (second_bD / (1 - beta2 ** time)).sqrt_().add_(self.eps)
        weight_bD.mul_(1 - lr * self.weight_decay)
        weight_bD.addcdiv_(first_bD, below_bD, value=-lr / (1 - beta1 ** time))
        store.put(state["exp_avg"], at, first_bD, 1)
        store.put(state["exp_avg_sq"], at, second_bD, 2)


def _momentum_step(weight_bD: Tensor, faded_bD: Tensor, grad_bD: Tensor, lr: float,
                   weight_decay: float) -> None:
    """Do v = (mu v) + g + wd w; w -= lr v in place: torch's SGD, dampening 0."""
    faded_bD.add_(grad_bD).add_(weight_bD, alpha=weight_decay)
    weight_bD.add_(faded_bD, alpha=-lr)
