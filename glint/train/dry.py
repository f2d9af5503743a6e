"""What a run would hold on each rank, found without allocating it: tensors without data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from glint.errors import UsageError
from glint.nn import backbones
from glint.nn.backbones.parts import SIZE
from glint.results import models as results
from glint.train import memory, sense
from glint.train.build import tuned
from glint.train.recipe import Recipe
from glint.train.teacher import weight_bytes

STATES = {"sgd": 1, "adamw": 2}  # tensors of a weight's size that the optimiser keeps


def run(recipe: Recipe, classes: int, world: int) -> results.TrainPlan:
    """Return the counts of the backbone and the bytes that a rank of `world` holds in a step.

    The backbone is built and run forward on one batch of tensors that have shapes and no data;
    activations are what autograd then keeps for the backward pass, by CPU autocast's rules, which
    are nearly CUDA's. Not counted: workspaces, the allocator's gaps, batches waiting. checkpoint:
    what the first rank saves, and with `run.async_save` keeps a copy of in the host's memory.
    Raises UsageError as building the run would.
    """
    if classes < 1:
        raise UsageError("GL0002", f"--classes must be at least 1, found {classes}")
    sense.require_step(recipe, world)
    table, size = recipe.backbone, 8 if recipe.run.precision == "float64" else 4
    with torch.device("meta"):
        net = backbones.create(table.name, table.embedding, **table.options)
    if recipe.tune is not None:
        tuned(net, recipe.tune)
    every = sum(p.numel() for p in net.parameters())
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    buffers = sum(b.numel() * b.element_size() for b in net.buffers())
    states = STATES[recipe.optim.kind]
    if recipe.optim.kind == "sgd" and recipe.optim.momentum == 0:
        states = 0
    head = memory.head(
        recipe.head.options(),
        classes,
        dim=table.embedding,
        world=world,
        batch=recipe.data.batch,
    )
    held = memory.memory(head)
    parts = {
        "weights": every * size + buffers,
        "gradients": trained * size,
        "optimiser": trained * size * states,
        "average": every * size + buffers if recipe.run.ema else 0,
        **({"teacher": weight_bytes(recipe.teacher, table.embedding)} if recipe.teacher else {}),
        "images": recipe.data.batch * 3 * SIZE * SIZE * size,
        "activations": activations(recipe),
        "head": held["total"],
    }
    saved = parts["weights"] + parts["optimiser"] + parts["average"]
    return results.TrainPlan(
        backbone=table.name,
        parameters=every,
        trained=trained,
        macs=_macs(net),
        classes=classes,
        world=world,
        batch=recipe.data.batch,
        global_batch=recipe.data.batch * world * recipe.run.accumulate,
        memory={**parts, "total": sum(parts.values())},
        checkpoint=saved + held["weights"] + held["state"],
    )


def _macs(net: nn.Module) -> int:
    """Multiply-adds of one image; convolutions, linear layers and attention."""
    device = next(net.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.empty(1, 3, SIZE, SIZE, device=device))
    return int(counter.get_total_flops()) // 2


def activations(recipe: Recipe) -> int:
    """Count the bytes that autograd keeps of one batch, weights and images left out.

    Where blocks are computed again, what one of them keeps meanwhile is in it.
    """
    table, wide = recipe.backbone, 2 if recipe.run.precision == "float64" else 1
    options = dict(table.options)
    total = _kept(recipe, options)
    if options.pop("checkpoint", False):
        with torch.device("meta"):
            net: Any = backbones.create(table.name, table.embedding, **options)
        total += _kept(recipe, options) // len(net.blocks)
    return wide * total


def _kept(recipe: Recipe, options: dict[str, Any]) -> int:
    with torch.device("meta"):
        net = backbones.create(recipe.backbone.name, recipe.backbone.embedding, **options)
    with FakeTensorMode():
        _hollow(net)
        image_nCHW = torch.empty(recipe.data.batch, 3, SIZE, SIZE)
        return kept(net, image_nCHW, mixed=recipe.run.precision in ("bf16", "fp16"))


def _hollow(net: nn.Module) -> None:
    """Replace the net's own tensors by ones without data that claim to be on the CPU."""
    for module in net.modules():
        for name, old in module.named_parameters(recurse=False):
            new = torch.empty(old.shape, dtype=old.dtype)
            setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def kept(net: nn.Module, image_nCHW: Tensor, *, mixed: bool) -> int:
    """Count the bytes that autograd keeps of a forward pass beside weights and images."""
    own = {t.untyped_storage()._cdata for t in (*net.parameters(), *net.buffers(), image_nCHW)}
    seen: dict[int, Any] = {}  # the storages stay alive, so that no two share an address

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            seen[storage._cdata] = storage
        return tensor

    with (
        saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
    ):
        net.train()(image_nCHW)
    return sum(storage.nbytes() for storage in seen.values())
