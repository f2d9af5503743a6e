"""How the class rows that played are updated: rules on (rows, state), never on the whole table.

`index_k` names the rows to touch (sorted, unique, int64); None means all of them. g is the
gradient, w a row, v its momentum, mu the momentum factor, wd the weight decay, lr the rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from glint.errors import UsageError

# c class rows of this rank, k rows that play, b rows of one block, D embedding

RULES = ("none", "v1_stale", "lazy_decay", "dense_exact", "adamw")
_BLOCK = 1024  # rows worked on at a time: bounds the temporary memory


class RowRule(Protocol):
    """A way to move class rows.

    `state` makes the per-row tensors to keep beside the weights; `ready` brings rows up to date
    before they are read; `apply` moves rows by their gradient; `flush` brings all rows up to date,
    so that weights and state alone describe the table; `restart` follows a load.
    """

    def state(self, weight_cD: Tensor) -> dict[str, Tensor]: ...

    def ready(self, weight_cD: Tensor, state: dict[str, Tensor], index_k: Tensor | None) -> None:
        ...

    def apply(self, weight_cD: Tensor, state: dict[str, Tensor], index_k: Tensor | None,
              grad_kD: Tensor, *, step: int, lr: float) -> None: ...

    def flush(self, weight_cD: Tensor, state: dict[str, Tensor]) -> None: ...

    def restart(self) -> None: ...


def row_rule(name: str, *, momentum: float = 0.9, weight_decay: float = 5e-4) -> RowRule:
    """Make the rule of a name in `RULES`; raises UsageError (GL0002) for another name."""
    if name == "none":
        return Plain(weight_decay)
    if name == "v1_stale":
        return Stale(momentum, weight_decay)
    if name == "lazy_decay":
        return LazyDecay(momentum, weight_decay)
    if name == "dense_exact":
        return DenseExact(momentum, weight_decay)
    if name == "adamw":
        return LazyAdamW(weight_decay)
    raise UsageError("GL0002", f"rule is {name!r}, expected one of {', '.join(RULES)}")


class _NeverBehind:
    """The parts of a rule whose rows are always up to date."""

    def ready(self, weight_cD: Tensor, state: dict[str, Tensor], index_k: Tensor | None) -> None:
        """Do nothing."""

    def flush(self, weight_cD: Tensor, state: dict[str, Tensor]) -> None:
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

    def apply(self, weight_cD: Tensor, state: dict[str, Tensor], index_k: Tensor | None,
              grad_kD: Tensor, *, step: int, lr: float) -> None:
        """Move the rows."""
        for at, grad_bD in _blocks(index_k, grad_kD):
            weight_bD = _take(weight_cD, at)
            weight_bD.mul_(1 - lr * self.weight_decay).add_(grad_bD, alpha=-lr)
            _put(weight_cD, at, weight_bD)


class Stale(_NeverBehind):
    """Momentum kept per row and used as it was left: v = mu v + g + wd w; w -= lr v.

    The semantics of Partial FC's first code (arXiv 2010.05222): rows that did not play stay.
    """

    def __init__(self, momentum: float, weight_decay: float) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay

    def state(self, weight_cD: Tensor) -> dict[str, Tensor]:
        """Keep one momentum row per class row."""
        return {"momentum": torch.zeros_like(weight_cD)}

    def apply(self, weight_cD: Tensor, state: dict[str, Tensor], index_k: Tensor | None,
              grad_kD: Tensor, *, step: int, lr: float) -> None:
        """Move the rows."""
        _momentum_step(weight_cD, state["momentum"], index_k, grad_kD, lr=lr,
                       momentum=self.momentum, weight_decay=self.weight_decay)


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

    def apply(self, weight_cD: Tensor, state: dict[str, Tensor], index_k: Tensor | None,
              grad_kD: Tensor, *, step: int, lr: float) -> None:
        """Move the rows and note the step."""
        gap_k = (step - 1 - _take(state["last"], _whole(index_k))).clamp_min(0)
        fade_k = torch.pow(self.momentum, gap_k.to(torch.float64)).to(weight_cD.dtype)
        _momentum_step(weight_cD, state["momentum"], index_k, grad_kD, lr=lr, fade_k=fade_k,
                       momentum=self.momentum, weight_decay=self.weight_decay)
        state["last"][_whole(index_k)] = step


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

    def ready(self, weight_cD: Tensor, state: dict[str, Tensor], index_k: Tensor | None) -> None:
        """Catch the rows up with the updates they missed."""
        if self.now == 0:
            return
        table_g22 = self.missed_g22.to(weight_cD.device)
        count = weight_cD.shape[0] if index_k is None else index_k.numel()
        for at in _cuts(index_k, count):
            gap_b = self.now - state["last"][at]
            behind_b = gap_b > 0
            if not bool(behind_b.any()):
                continue
            product_b22 = table_g22[gap_b.to(torch.int64)].to(weight_cD.dtype)
            weight_bD, momentum_bD = weight_cD[at], state["momentum"][at]
            caught_up_bD = (product_b22[:, 0, 0, None] * weight_bD
                            + product_b22[:, 0, 1, None] * momentum_bD)
            state["momentum"][at] = (product_b22[:, 1, 0, None] * weight_bD
                                     + product_b22[:, 1, 1, None] * momentum_bD)
            weight_cD[at] = caught_up_bD
            state["last"][at] = self.now

    def apply(self, weight_cD: Tensor, state: dict[str, Tensor], index_k: Tensor | None,
              grad_kD: Tensor, *, step: int, lr: float) -> None:
        """Move the rows, which `ready` has caught up, and count the update for all others."""
        _momentum_step(weight_cD, state["momentum"], index_k, grad_kD, lr=lr,
                       momentum=self.momentum, weight_decay=self.weight_decay)
        self.now += 1
        state["last"][_whole(index_k)] = self.now
        idle_22 = torch.tensor([[1 - lr * self.weight_decay, -lr * self.momentum],
                                [self.weight_decay, self.momentum]], dtype=torch.float64)
        self.missed_g22 = torch.cat([torch.eye(2, dtype=torch.float64)[None],
                                     idle_22 @ self.missed_g22])
        if self.now >= self.horizon:
            self.flush(weight_cD, state)

    def flush(self, weight_cD: Tensor, state: dict[str, Tensor]) -> None:
        """Catch every row up and begin a new count."""
        self.ready(weight_cD, state, None)
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

    def apply(self, weight_cD: Tensor, state: dict[str, Tensor], index_k: Tensor | None,
              grad_kD: Tensor, *, step: int, lr: float) -> None:
        """Move the rows and their moments."""
        (beta1, beta2), time = self.betas, step + 1
        for at, grad_bD in _blocks(index_k, grad_kD):
            weight_bD = _take(weight_cD, at)
            first_bD, second_bD = _take(state["exp_avg"], at), _take(state["exp_avg_sq"], at)
            first_bD.mul_(beta1).add_(grad_bD, alpha=1 - beta1)
            second_bD.mul_(beta2).addcmul_(grad_bD, grad_bD, value=1 - beta2)
            below_bD = (second_bD / (1 - beta2 ** time)).sqrt_().add_(self.eps)
            weight_bD.mul_(1 - lr * self.weight_decay)
            weight_bD.addcdiv_(first_bD, below_bD, value=-lr / (1 - beta1 ** time))
            _put(weight_cD, at, weight_bD)
            _put(state["exp_avg"], at, first_bD)
            _put(state["exp_avg_sq"], at, second_bD)


def _momentum_step(weight_cD: Tensor, momentum_cD: Tensor, index_k: Tensor | None,
                   grad_kD: Tensor, *, lr: float, momentum: float, weight_decay: float,
                   fade_k: Tensor | None = None) -> None:
    """Do v = mu fade v + g + wd w; w -= lr v on the rows: torch's SGD, dampening 0."""
    done = 0
    for at, grad_bD in _blocks(index_k, grad_kD):
        weight_bD, momentum_bD = _take(weight_cD, at), _take(momentum_cD, at)
        momentum_bD.mul_(momentum)
        if fade_k is not None:
            momentum_bD.mul_(fade_k[done : done + grad_bD.shape[0], None])
        momentum_bD.add_(grad_bD).add_(weight_bD, alpha=weight_decay)
        weight_bD.add_(momentum_bD, alpha=-lr)
        _put(weight_cD, at, weight_bD)
        _put(momentum_cD, at, momentum_bD)
        done += grad_bD.shape[0]


def _cuts(index_k: Tensor | None, count: int) -> Iterator[slice | Tensor]:
    """Cut the rows into blocks: slices of the whole table or pieces of the index."""
    for start in range(0, count, _BLOCK):
        piece = slice(start, min(start + _BLOCK, count))
        yield piece if index_k is None else index_k[piece]


def _blocks(index_k: Tensor | None, grad_kD: Tensor) -> Iterator[tuple[slice | Tensor, Tensor]]:
    start = 0
    for at in _cuts(index_k, grad_kD.shape[0]):
        size = at.stop - at.start if isinstance(at, slice) else at.numel()
        yield at, grad_kD[start : start + size]
        start += size


def _whole(index_k: Tensor | None) -> slice | Tensor:
    return slice(None) if index_k is None else index_k


def _take(table_cD: Tensor, at: slice | Tensor) -> Tensor:
    """Read rows: a view for a slice, a copy for an index."""
    return table_cD[at] if isinstance(at, slice) else table_cD.index_select(0, at)


def _put(table_cD: Tensor, at: slice | Tensor, rows_bD: Tensor) -> None:
    """Write back rows that `_take` read and that were changed in place."""
    if not isinstance(at, slice):
        table_cD.index_copy_(0, at, rows_bD)
