"""Decode images straight into the batch."""

# H height, W width

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from glint.errors import InputError, UsageError
from glint.shards import pixels

if TYPE_CHECKING:
    import torch

# (stored bytes of n images, (height, width), names image i in an error) -> uint8 nHW3
LEAVE_OUT = "glint drop DATASET --key KEY --reason WHY leaves it out; verify --decode lists all"
Decoder = Callable[[Sequence[bytes], tuple[int, int], Callable[[int], str]], "torch.Tensor"]


def decode_into(data: bytes | memoryview, out_HW3: pixels.Pixels, where: str = "") -> None:
    """Decode an image as RGB into contiguous uint8 memory of exactly its size.

    Raises InputError GL0303 with `where` for bytes that give no picture and for another size.
    """
    found = _decoded(data, where, out_HW3)
    if found.shape != out_HW3.shape:
        raise _wrong_size(found.shape, out_HW3.shape, where)
    if not np.may_share_memory(found, out_HW3):
        out_HW3[:] = found


def _decoded(
    data: bytes | memoryview, where: str, out_HW3: pixels.Pixels | None = None
) -> pixels.Pixels:
    try:
        return pixels.rgb(data, out_HW3)
    except ValueError as error:
        size = pixels.size(data) if out_HW3 is not None else None
        if out_HW3 is not None and size is not None and size != out_HW3.shape[:2]:
            raise _wrong_size(size, out_HW3.shape, where) from None
        what = f"not a decodable JPEG, PNG or WebP ({len(data)} bytes): {error}"
        raise InputError("GL0303", what, where=where, hint=LEAVE_OUT) from None


def on_gpu(device: torch.device) -> Decoder:
    """Decode on a GPU, by torchvision's nvJPEG. Pixels may differ from the processor's by rounding.

    Raises UsageError GL0003 without torchvision, GL0002 for a device that is no GPU.
    """
    import torch

    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:
        raise UsageError(
            "GL0003", 'data.decode = "gpu" needs torchvision', hint="pip install torchvision"
        ) from None
    if device.type != "cuda":
        raise UsageError(
            "GL0002", f"data.decode = \"gpu\" needs a GPU, the run is on {device}",
            hint="--set data.decode=cpu",
        )  # fmt: skip

    def decode(
        data: Sequence[bytes], size: tuple[int, int], where: Callable[[int], str]
    ) -> torch.Tensor:
        rgb = ImageReadMode.RGB
        stored = [torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in data]
        try:
            found = decode_jpeg(stored, mode=rgb, device=device)
        except RuntimeError:  # PNG, WebP, or a JPEG with a warning: those the processor decodes
            found = []
            for i, one in enumerate(stored):
                try:
                    found += decode_jpeg([one], mode=rgb, device=device)
                except RuntimeError:
                    image = torch.from_numpy(_decoded(data[i], where(i)).copy())
                    found.append(image.permute(2, 0, 1).to(found[0].device if found else device))
        for i, image in enumerate(found):
            if tuple(image.shape[1:]) != size:
                raise _wrong_size(tuple(image.shape[1:]), size, where(i))
        return torch.stack(list(found)).permute(0, 2, 3, 1)

    return decode


def _wrong_size(found: tuple[int, ...], expected: tuple[int, ...], where: str) -> InputError:
    return InputError(
        "GL0303",
        f"expected {expected[1]}x{expected[0]} pixels, found {found[1]}x{found[0]}",
        where=where,
        hint="align and crop the faces before sharding",
    )
