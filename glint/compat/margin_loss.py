"""Which of glint's margins a `margin_loss` of `arcface_torch` is: looked up, then proven."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glint.errors import UsageError
from glint.nn.heads.softmax import SoftmaxPass
from glint.nn.margins import ArcFace, CosFace, Margin

# N samples, k class rows, D embedding

Call = Callable[[Tensor, Tensor], Tensor]  # (cosines (N, k), labels (N, 1), -1 = elsewhere)
NUMBERS = ("s", "m1", "m2", "m3", "m", "margin", "interclass_filtering_threshold")


class Found(NamedTuple):
    """A margin, its scale, and the cosine above which a negative becomes 0 (0: none does)."""

    margin: Margin
    scale: float
    threshold: float


def numbers(call: Call) -> tuple[Any, ...]:
    """Return the numbers that a margin loss keeps: where one changes it is another margin."""
    return tuple(getattr(call, name, None) for name in NUMBERS)


def understood(call: Call) -> Found:
    """Return what a margin loss is, after it gave the same logits and gradients on made cosines.

    Raises UsageError (GL0002) for one that acts like none of CombinedMarginLoss, ArcFace, CosFace.
    """
    scale, m1, m2, m3, m, angle, threshold = numbers(call)
    margin: Margin | None = None
    if m3 is not None and m3 > 0:
        margin = CosFace(m3)
    elif m2 is not None and m1 == 1.0 and m3 == 0.0:
        margin = ArcFace(m2, straight_through=True)
    elif angle is not None:
        margin = ArcFace(angle, straight_through=True)
    elif m is not None:
        margin = CosFace(m)
    if margin is not None and scale:
        found = Found(margin, float(scale), float(threshold or 0.0))
        if _same(call, found):
            return found
    raise UsageError(
        "GL0002",
        f"margin_loss {type(call).__name__} acts like none of arcface_torch's CombinedMarginLoss, "
        f"ArcFace or CosFace ({', '.join(f'{n}={v}' for n, v in zip(NUMBERS, numbers(call)))})",
        where="PartialFC_V2",
        hint="glint.nn.heads.partial_fc.PartialFC takes a margin of your own (docs/partial_fc.md)",
    )


def _same(call: Call, found: Found) -> bool:
    """Compare logits and gradients on cosines all over [-1, 1], float64."""
    cosine = torch.linspace(-0.999, 0.999, 35 * 5, dtype=torch.float64)
    cosine = cosine[torch.arange(35 * 5) * 44 % (35 * 5)].view(35, 5)  # 44 has no factor 5 or 7
    label = (torch.arange(35) % 6 - 1)[:, None]
    weight = torch.linspace(1, 2, 35 * 5, dtype=torch.float64).view(35, 5)
    results = []
    for act in (call, lambda cosine, label: _logits(cosine, label, found)):
        leaf = cosine.clone().requires_grad_()
        with torch.enable_grad():
            try:
                logit = act(leaf.clamp(-1, 1), label.clone())
                (grad,) = torch.autograd.grad((logit * weight).sum(), leaf)
            except (RuntimeError, TypeError, AttributeError, IndexError, ValueError):
                return False
        results.append(torch.cat([logit.detach(), grad]))
    first, second = results
    return first.shape == second.shape and torch.allclose(
        first, second, rtol=0, atol=1e-9 * found.scale
    )


def _logits(cosine: Tensor, label: Tensor, found: Found) -> Tensor:
    """Compute all logits as glint understands them."""
    row = (label[:, 0] >= 0).nonzero()[:, 0]
    own = cosine[row, label[row, 0]]
    value, slope = found.margin(own.detach(), torch.ones_like(own))
    target = value + slope * (own - own.detach())
    if found.threshold > 0:
        cosine = cosine.masked_fill(cosine > found.threshold, 0.0)
    return found.scale * cosine.index_put((row, label[row, 0]), target)


class Zeroed(SoftmaxPass):
    """A pass in which a negative above the threshold has logit 0 and no gradient.

    glint's own threshold takes it out of the denominator; in `arcface_torch` exp(0) stays there.
    """

    filtered: dict[int, Tensor] | None = None  # of a block's number: how many, (N)

    def stream(self, learn: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Add exp(0) for each filtered negative to the sums."""
        self.filtered = {}
        largest_N, sum_N, feature_grad_ND = super().stream(learn)
        filtered_N = torch.zeros_like(sum_N)
        for one_N in self.filtered.values():
            filtered_N += one_N
        self.filtered = None
        filtered_N[self.sample_t] -= 1  # targets are no negatives
        zero_N = torch.where(filtered_N > 0, 0.0, -math.inf).to(largest_N.dtype)
        joined_N = torch.maximum(largest_N, zero_N)
        from_N = joined_N.masked_fill(joined_N == -math.inf, 0.0)
        faded_N = torch.exp(largest_N - from_N)
        sum_N = sum_N * faded_N + filtered_N * torch.exp(zero_N - from_N)
        return joined_N, sum_N, feature_grad_ND.mul_(faded_N[:, None])

    def _logits(self, number: int, operand_bD: Tensor) -> Tensor:
        logit_bN = super()._logits(number, operand_bD)
        if self.filtered is not None:  # a block may be passed over twice
            self.filtered[number] = (logit_bN == -math.inf).sum(0)
        return logit_bN
