"""JPEG bytes to pixels, straight into the batch."""

# H height, W width

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import simplejpeg

from glint.errors import InputError


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
