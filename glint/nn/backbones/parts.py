"""What every backbone shares: the face size it takes and a last layer kept in full precision."""

# n batch, C channels, H W height and width, D features in, E embedding

from __future__ import annotations

import torch
from torch import Tensor, nn

from glint.errors import InputError

SIZE = 112  # pixels; the field's aligned face crop


def require_faces(image_nCHW: Tensor) -> None:
    """Check the shape once per call; InputError GL0401 names expected and found."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return
    if image_nCHW.ndim != 4 or tuple(image_nCHW.shape[1:]) != (3, SIZE, SIZE):
        raise InputError(
            "GL0401",
            f"expected images of shape (n, 3, {SIZE}, {SIZE}), found {tuple(image_nCHW.shape)}",
            hint=f"backbones take aligned RGB crops of {SIZE}x{SIZE}, as (pixel - 127.5) / 127.5",
        )


def full_precision(layers: nn.Module, x_nD: Tensor, weight: Tensor) -> Tensor:
    """Run the embedding layers in their own precision, also under autocast.

    Activations become `weight`'s dtype first, so that an embedding is float32
    wherever the parameters are (arcface_torch computes its last layer so).
    """
    device = x_nD.device.type
    if x_nD.dtype == weight.dtype and not (device != "meta" and torch.is_autocast_enabled(device)):
        result: Tensor = layers(x_nD)
        return result
    with torch.autocast(device, enabled=False):
        result = layers(x_nD.to(weight.dtype))
    return result
