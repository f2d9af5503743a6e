"""The backbone's optimiser, and its state by parameter name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glint.errors import MismatchError
from glint.train.recipe import Optim


def optimizer(backbone: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """Build SGD or AdamW over every trainable parameter.

    Weight decay acts on all of them, as in the field's published recipes; with `optim.no_decay`
    not on vectors (biases, batch and layer norm, PReLU) nor on what the backbone's
    `no_weight_decay()` names (position embeddings), as is usual for ViT.
    """
    decayed, plain = _groups(backbone, optim.no_decay)
    groups = [{"params": [p for _, p in decayed], "weight_decay": optim.weight_decay}]
    if plain:
        groups.append({"params": [p for _, p in plain], "weight_decay": 0.0})
    if optim.kind == "adamw":
        betas = (optim.momentum, 0.999)
        return torch.optim.AdamW(groups, lr=optim.lr, betas=betas)
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov)


Named = list[tuple[str, nn.Parameter]]


def _groups(backbone: nn.Module, no_decay: bool) -> tuple[Named, Named]:
    """Return the trainable parameters with and without weight decay."""
    named = [(name, p) for name, p in backbone.named_parameters() if p.requires_grad]
    if not no_decay:
        return named, []
    names = getattr(backbone, "no_weight_decay", None)
    spared = set(names()) if callable(names) else set()

    def free(name: str, p: nn.Parameter) -> bool:
        return p.ndim <= 1 or name in spared

    return [n for n in named if not free(*n)], [n for n in named if free(*n)]


def _names(optimizer: torch.optim.Optimizer, backbone: nn.Module) -> list[str]:
    """Return the parameters' names in the order of the optimiser's own numbering."""
    name = {id(p): name for name, p in backbone.named_parameters()}
    return [name[id(p)] for group in optimizer.param_groups for p in group["params"]]


def state_by_name(optimizer: torch.optim.Optimizer, backbone: nn.Module) -> dict[str, Tensor]:
    """Flatten the optimiser's state to `PARAMETER/KEY` -> tensor."""
    names = _names(optimizer, backbone)
    return {
        f"{names[i]}/{key}": value
        for i, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
        if isinstance(value, Tensor)
    }


def load_by_name(
    optimizer: torch.optim.Optimizer, backbone: nn.Module, tensors: dict[str, Tensor]
) -> None:
    """Restore what `state_by_name` returned.

    Raises MismatchError GL0702 where a name is of no parameter of this backbone.
    """
    index = {name: i for i, name in enumerate(_names(optimizer, backbone))}
    parameters = dict(backbone.named_parameters())
    state: dict[int, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        name, key = full.rsplit("/", 1)
        if name not in index:
            raise MismatchError(
                "GL0702", f"the checkpoint's optimiser knows {name!r}, this backbone does not"
            )
        if tensor.shape == parameters[name].shape:  # laid out as its weight: channels_last too
            tensor = torch.empty_like(parameters[name], dtype=tensor.dtype).copy_(tensor)
        state.setdefault(index[name], {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
