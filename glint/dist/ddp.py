"""DistributedDataParallel as glint uses it, under the option names of every torch it supports."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from glint.dist.world import World


def data_parallel(backbone: nn.Module, world: World) -> nn.Module:
    """Wrap a backbone so that its gradients are averaged over the ranks; at size 1 return it.

    Batch norm statistics stay each rank's own: they are shared where the net is evaluated.
    """
    if world.size == 1:
        return backbone
    options: dict[str, Any] = {"gradient_as_bucket_view": True, "process_group": world.group}
    known = inspect.signature(DistributedDataParallel).parameters
    new = "forward_sync_buffers"  # torch 2.13 renamed it
    options[new if new in known else "broadcast_buffers"] = False
    if world.device.type == "cuda":
        options["device_ids"] = [world.device]
    else:  # keeps the first buckets: a restart then adds gradients in the order it always did
        options["find_unused_parameters"] = True
    return DistributedDataParallel(backbone, **options)
