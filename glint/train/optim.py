"""The backbone's optimiser, and its state by parameter name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glint.errors import MismatchError
from glint.train.recipe import Optim


def optimizer(backbone: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """Build SGD or AdamW over every trainable parameter, weight decay on all of them.

    Decay on batch norm and bias too is what the field's published recipes do.
    """
    params = [p for p in backbone.parameters() if p.requires_grad]
    if optim.kind == "adamw":
        return torch.optim.AdamW(params, lr=optim.lr, weight_decay=optim.weight_decay)
    return torch.optim.SGD(
        params,
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        nesterov=optim.nesterov,
    )


def _names(backbone: nn.Module) -> list[str]:
    return [name for name, p in backbone.named_parameters() if p.requires_grad]


def state_by_name(optimizer: torch.optim.Optimizer, backbone: nn.Module) -> dict[str, Tensor]:
    """Flatten the optimiser's state to `PARAMETER/KEY` -> tensor."""
    names = _names(backbone)
    return {
        f"{names[i]}/{key}": value
        for i, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
        if isinstance(value, Tensor)
    }


def load_by_name(
    optimizer: torch.optim.Optimizer, backbone: nn.Module, tensors: dict[str, Tensor]
) -> None:
    """Put back what `state_by_name` gave.

    Raises MismatchError GL0702 where a name is of no parameter of this backbone.
    """
    index = {name: i for i, name in enumerate(_names(backbone))}
    state: dict[int, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        name, key = full.rsplit("/", 1)
        if name not in index:
            raise MismatchError(
                "GL0702", f"the checkpoint's optimiser knows {name!r}, this backbone does not"
            )
        state.setdefault(index[name], {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
