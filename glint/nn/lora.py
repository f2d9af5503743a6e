"""LoRA (arXiv 2106.09685): beside a layer's weight the product of two thin matrices, which learns.

A layer has `weight + scale * up @ down` for its weight, by torch's parametrization; `up` begins as
zeros, so that the net begins as it was. Checkpoints keep weight and factors, to go on exactly;
whoever uses the net reads the merged weight (`merged`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

FIRST, PARTS = ".parametrizations.weight.original", ("down", "up", "scale")


class LowRank(nn.Module):
    """The product of two matrices of `rank`, on top of a weight of any shape (out, ...)."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        out, wide = weight.shape[0], weight[0].numel()
        rank = min(rank, out, wide)
        self.down = nn.Parameter(torch.empty(rank, wide, dtype=weight.dtype, device=weight.device))
        self.up = nn.Parameter(torch.zeros(out, rank, dtype=weight.dtype, device=weight.device))
        self.register_buffer("scale", torch.tensor(alpha / rank, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return _sum(weight, self.down, self.up, self.get_buffer("scale"))


def _sum(weight: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
    with torch.autocast(weight.device.type, enabled=False):
        return weight + (scale.to(weight.dtype) * (up @ down)).reshape(weight.shape)


def layers(net: nn.Module) -> list[nn.Module]:
    """List what may be adapted: linear layers and 1 x 1 convolutions of all channels."""
    return [
        m
        for m in net.modules()
        if isinstance(m, nn.Linear)
        or (isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.groups == 1)
    ]


def adapt(layer: nn.Module, rank: int, alpha: float) -> None:
    """Give a layer of `layers` its factors: of `rank`, at most that of its weight."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    parametrize.register_parametrization(layer, "weight", LowRank(weight, rank, alpha))


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state as that of the net without factors; one that has none is returned as it is.

    Raises ValueError where a factor is missing or does not fit.
    """
    made = dict(state)
    for name in [name for name in state if name.endswith(FIRST)]:
        at = name.removesuffix("original")
        try:
            parts = [made.pop(f"{at}0.{part}") for part in PARTS]
            made[name.removesuffix(FIRST) + ".weight"] = _sum(made.pop(name), *parts)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"factors of {name.removesuffix(FIRST)}: {error}") from None
    return made


def spread(state: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Return the state of a net without factors by the names of `net`, which keeps its factors."""
    own = net.state_dict()
    where = {n.removesuffix(FIRST) + ".weight": n for n in own if n.endswith(FIRST)}
    kept = {n: own[n] for first in where.values() for n in own
            if n.startswith(first.removesuffix("original") + "0.")}  # fmt: skip
    return kept | {where.get(name, name): value for name, value in state.items()}
