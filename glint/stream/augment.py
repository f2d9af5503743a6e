"""Augmentation decided by counters, and the step from stored pixels to a network's input."""

# n images, H height, W width, C channels (3)

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from glint.errors import UsageError
from glint.rng import hash_at, key_of

_FLIP = 0xF11B  # purpose of the key


def flips(seed: int, epoch: int, position_n: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Decide for each position of an epoch whether its image is mirrored: half of them are.

    A function of (seed, epoch, position) alone: the same for every world size and worker count.
    """
    bit = hash_at(key_of(seed, _FLIP, epoch), position_n) >> np.uint64(63)
    return np.asarray(bit == 1)


def mirrored(image_nHWC: torch.Tensor, flip_n: torch.Tensor) -> torch.Tensor:
    """Mirror the images that `flip_n` names left to right, in new memory, on their device."""
    turned_nCHW = image_nHWC.permute(0, 3, 1, 2).flip(3)  # the layout torch flips fast
    turned_nHWC = turned_nCHW.permute(0, 2, 3, 1).reshape(len(image_nHWC), -1)
    flat = image_nHWC.reshape(len(image_nHWC), -1)
    flip = flip_n.to(image_nHWC.device, non_blocking=True)[:, None]
    return torch.where(flip, turned_nHWC, flat).view(image_nHWC.shape)


def to_input(
    image_nHWC: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    flip: torch.Tensor | None = None,
) -> torch.Tensor:
    """Turn uint8 pixels into (x / 255 - 0.5) / 0.5, shape nCHW, on the device they lie on.

    flip: bool n, the images to mirror (`Batch.flip`); None mirrors none. Raises UsageError (GL0002)
    for other pixels, such as floats, which would be scaled twice, or (n, 3, H, W).
    """
    shape, flips = tuple(image_nHWC.shape), None if flip is None else tuple(flip.shape)
    if image_nHWC.dtype != torch.uint8 or shape[3:] != (3,) or flips not in (None, shape[:1]):
        what = f"expected uint8 (n, H, W, 3) and flip (n), found {image_nHWC.dtype} {shape}"
        raise UsageError("GL0002", f"{what}, flip {flips}", where="to_input")
    if flip is not None:
        image_nHWC = mirrored(image_nHWC, flip)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x_nCHW = image_nHWC.permute(0, 3, 1, 2).to(dtype=dtype, memory_format=layout)
    return x_nCHW.div_(255).sub_(0.5).div_(0.5)
