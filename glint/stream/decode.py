"""Decode JPEG bytes straight into the batch."""

# H height, W width

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import simplejpeg

from glint.errors import InputError, UsageError

if TYPE_CHECKING:
    import torch

# (stored bytes of n images, (height, width), names image i in an error) -> uint8 nHW3
Decoder = Callable[[Sequence[bytes], tuple[int, int], Callable[[int], str]], "torch.Tensor"]


def decode_into(jpeg: bytes | memoryview, out_HW3: npt.NDArray[np.uint8], where: str = "") -> None:
    """Decode a JPEG as RGB into contiguous uint8 memory of exactly its size.

    Raises InputError GL0303 with `where` for bytes that are no whole JPEG and for another size.
    """
    try:
        found = simplejpeg.decode_jpeg(jpeg, "RGB", buffer=out_HW3)
    except ValueError as error:
        size = _size(jpeg)
        if size is not None and size != out_HW3.shape[:2]:
            raise _wrong_size(size, out_HW3.shape, where) from None
        raise InputError(
            "GL0303", f"not a decodable JPEG ({len(jpeg)} bytes): {error}", where=where
        ) from None
    if found.shape != out_HW3.shape:
        raise _wrong_size(found.shape, out_HW3.shape, where)


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
        stored = [torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in data]
        try:
            found = decode_jpeg(stored, mode=ImageReadMode.RGB, device=device)
        except RuntimeError as error:
            for i, one in enumerate(stored):  # which one?
                try:
                    decode_jpeg([one], mode=ImageReadMode.RGB, device=device)
                except RuntimeError as its:
                    what = f"not a decodable JPEG ({len(data[i])} bytes): {its}"
                    raise InputError("GL0303", what, where=where(i)) from None
            what = f"these {len(data)} JPEGs do not decode together, each alone does: {error}"
            raise InputError("GL0303", what, where=where(0), hint="data.decode=cpu") from None
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


def _size(jpeg: bytes | memoryview) -> tuple[int, int] | None:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError:
        return None
    return int(height), int(width)
