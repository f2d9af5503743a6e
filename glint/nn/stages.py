"""What of a net moves: its stages from the image on, those that stay, statistics that stay."""

from __future__ import annotations

from torch import nn

from glint.nn import lora


def stages(net: nn.Module) -> list[list[str]]:
    """Return the names of a net's parts, stage by stage, in the order in which it computes.

    A part that has parts ends a stage (each one of a list of blocks does), and single layers before
    it belong to it; those at the end are the last stage. The last one makes the embedding.
    """
    made: list[list[str]] = []
    waiting: list[str] = []
    for name, part in net.named_children():
        blocks = isinstance(part, nn.ModuleList) or name == "units"
        inner = [(f"{name}.{i}", m) for i, m in part.named_children()] if blocks else [(name, part)]
        for place, module in inner:
            waiting.append(place)
            if any(module.children()):
                made.append(waiting)
                waiting = []
    return [*made, waiting] if waiting else made


def freeze(net: nn.Module, count: int) -> None:
    """Keep the first `count` stages as they are: weights, norms, and nothing is dropped in them."""
    if count:
        for own in net.parameters(recurse=False):  # position embeddings, say, at the image's end
            own.requires_grad_(False)
    for place in [name for stage in stages(net)[:count] for name in stage]:
        part = net.get_submodule(place).requires_grad_(False)
        for module in part.modules():
            module.held = True  # type: ignore[assignment]


def adapt(net: nn.Module, rank: int, alpha: float) -> int:
    """Let nothing but factors (`lora`) of layers that are not frozen learn; return how many."""
    chosen = [one for one in lora.layers(net) if not getattr(one, "held", False)]
    net.requires_grad_(False)
    for layer in chosen:
        lora.adapt(layer, rank, alpha)
    return len(chosen)


def hold_norms(net: nn.Module) -> None:
    """Keep the running statistics of all batch norms as they are, and compute with them."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.held = True  # type: ignore[assignment]


def train(net: nn.Module) -> None:
    """Put a net into training mode, but for what is held."""
    net.train()
    for module in net.modules():
        if getattr(module, "held", False):
            module.eval()
