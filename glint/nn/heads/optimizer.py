"""A torch optimiser for centres that are no parameters, so that a loop needs no call of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from glint.errors import DivergedError, MismatchError, UsageError

MARK = 2.0**60  # no gradient is as long: whoever clips this one changes it
LARGEST = 40  # |log2| of a factor that is taken for a loss scale


class Handle:
    """The tensor that an optimiser holds in place of the centres; its gradient is a factor.

    Centres have no gradient before they move (`softmax`). What loops do to gradients between
    backward and step, a loss scale taken out, is done to this one, and read off it.
    """

    def __init__(self, device: torch.device) -> None:
        self.leaf = torch.zeros(1, device=device, requires_grad=True)
        self._upstream: Tensor | None = None

    def watch(self, loss: Tensor) -> None:
        """Note the gradient that a loss gets; NaN where the loss is not finite."""
        gone = loss.detach() * 0

        def note(upstream: Tensor) -> None:
            factor = (upstream + gone).reshape(1).to(self.leaf.device, torch.float32) * MARK
            grad = self.leaf.grad
            self.leaf.grad = factor.clone() if grad is None else grad + factor
            before = self._upstream
            self._upstream = factor if before is None else before + factor

        loss.register_hook(note)  # type: ignore[no-untyped-call]

    def factor(self) -> float:
        """Return what gradients were multiplied by since backward; waits for the device.

        Raises UsageError (GL0002) for what is no power of two: a clipped gradient; DivergedError
        (GL0703) where the loss was not finite.
        """
        now, then = self.leaf.grad, self._upstream
        if now is None or then is None:
            return 1.0
        made, given = torch.cat([now, then]).tolist()
        if not math.isfinite(given):
            raise DivergedError(
                "GL0703",
                "the loss, or its gradient, is not finite",
                where="head.optimizer",
                hint="zero_grad() instead of step() skips a step",
            )
        if made == given:
            return 1.0
        found = made / given if given else math.nan
        mantissa, exponent = math.frexp(found)
        if mantissa != 0.5 or abs(exponent) > LARGEST:
            raise UsageError(
                "GL0002",
                f"gradients of the centres were multiplied by {found:.6g} since the backward pass",
                where="head.optimizer",
                hint="clip the gradients of the backbone alone: those of centres lie on all ranks, "
                "and are not there yet; the scale of a GradScaler must be a power of two",
            )
        return found

    def clear(self) -> None:
        """Forget the passes so far."""
        self.leaf.grad = self._upstream = None

    def to(self, device: torch.device) -> None:
        """Move the tensor in place, as a module moves its parameters."""
        self.clear()
        self.leaf.data = self.leaf.data.to(device)


class Moved(Protocol):
    """What the optimiser asks of a head."""

    steps: int

    @property
    def pending(self) -> int: ...
    def update(self, *, lr: float, divide: float) -> None: ...
    def drop(self) -> None: ...


class CentreOptimizer(torch.optim.Optimizer):
    """Move a head's centres where a loop calls `step`; `PartialFC.optimizer` makes it.

    The rule, its momentum and its weight decay are the head's options, and their tables are in the
    head's state. The state of the optimiser is the rate, which schedulers may move, and the count
    of steps. Goes with GradScaler (whose scale is a power of two); a step whose loss is not finite
    is skipped by it. Gradients of centres cannot be clipped: that is an error at `step`.
    """

    def __init__(self, head: Moved, handle: Handle, lr: float) -> None:
        """Make it; lr: learning rate, at least 0. Raises UsageError (GL0002)."""
        if not float(lr) >= 0:
            raise UsageError("GL0002", f"lr is {lr}, expected at least 0", where="head.optimizer")
        self._head, self._handle = head, handle
        super().__init__([handle.leaf], {"lr": lr, "step": head.steps})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse a second group: other parameters have optimisers of their own."""
        if self.param_groups:
            raise UsageError("GL0002", "centres are its only group", where="head.optimizer")
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the rows of all backward passes since the last step; without any, do nothing.

        Raises UsageError (GL0002) where their gradients were clipped, DivergedError (GL0703) where
        the loss was not finite, MismatchError (GL0702) where the optimiser's state was loaded, and
        the head's was not.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        if group["step"] > self._head.steps:
            raise MismatchError(
                "GL0702",
                f"its state is of step {group['step']}, the head stands at {self._head.steps}",
                where="head.optimizer",
                hint="load the state of the head, too: its centres are in no other",
            )
        if self._head.pending:
            self._head.update(lr=float(group["lr"]), divide=1 / self._handle.factor())
        group["step"] = self._head.steps
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients since the last step."""
        self._head.drop()
