"""Pixels of an encoded image: JPEG by libjpeg-turbo, PNG, WebP and odd JPEGs by Pillow."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from glint.shards.image import MAX_PIXELS, Rejected, kind

Pixels = npt.NDArray[np.uint8]  # RGB, (height, width, 3)
READ = ("JPEG", "PNG", "WEBP")  # what embed, eval and train decode
OTHERS = (*READ, "TIFF", "BMP", "GIF", "PPM", "JPEG2000")  # what can be made a JPEG
_HARMLESS = "extraneous bytes before marker"  # a warning of libjpeg that costs no pixel


def rgb(data: bytes | memoryview, out_HW3: Pixels | None = None) -> Pixels:
    """Decode a JPEG, PNG or WebP as it is stored, into `out_HW3` where that has its size.

    Grey is repeated, alpha left out, 16 bits are cut to 8, Exif is not applied; what libjpeg only
    warns of is decoded. Raises ValueError where no picture comes out.
    """
    return look(data, out_HW3)[0]


def look(data: bytes | memoryview, out_HW3: Pixels | None = None) -> tuple[Pixels, str]:
    """Decode as `rgb` does; return what libjpeg says of a picture that is not whole, too."""
    import simplejpeg

    said = ""
    if bytes(data[:3]) == b"\xff\xd8\xff":
        try:
            return simplejpeg.decode_jpeg(data, "RGB", buffer=out_HW3), ""
        except ValueError as error:
            said = str(error)
    try:
        pixels_HW3 = by_pillow(data, READ)
    except ValueError as error:
        raise ValueError(said or error) from None
    lost = "premature end" in said or ("Corrupt JPEG" in said and _HARMLESS not in said)
    return pixels_HW3, said if lost else ""


def by_pillow(data: bytes | memoryview, formats: tuple[str, ...]) -> Pixels:
    """Decode one of some formats by Pillow. Raises ValueError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of what is refused here
            image: Any = Image.open(io.BytesIO(data), formats=formats)
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels")
            if image.format == "TIFF" and image.mode[0] in "IF":
                _require_16_bits(image.tag_v2)
            if image.mode.startswith("I"):  # 16 bits of grey
                grey_HW = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
                return np.repeat(grey_HW.astype(np.uint8)[..., None], 3, axis=2)
            return np.asarray(image.convert("RGB"))
    except ValueError:
        raise
    except UnidentifiedImageError:
        found = kind(bytes(data[:32])) or "no image"
        raise ValueError(f"{found} of {len(data)} bytes") from None
    except Exception as error:  # decoders share no base class; they run no code of the data
        raise ValueError(str(error) or type(error).__name__) from None


def thumbnail(data: bytes, side: int) -> bytes:
    """Make a small JPEG of an image of any kind, upright. Raises ValueError."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Any = Image.open(io.BytesIO(data), formats=OTHERS)
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels")
            image.draft("RGB", (side, side))  # a JPEG is decoded smaller
            image = ImageOps.exif_transpose(image).convert("RGB")
            image.thumbnail((side, side))
            made = io.BytesIO()
            image.save(made, "JPEG", quality=85)
            return made.getvalue()
    except ValueError:
        raise
    except Exception as error:  # decoders share no base class; they run no code of the data
        raise ValueError(str(error) or type(error).__name__) from None


def _require_16_bits(tags: Any) -> None:
    """Refuse grey whose numbers do not say what is white: floats, 32 or 12 bits, or signed."""
    bits, sign, zero = tags.get(258, (1,)), tags.get(339, (1,)), tags.get(262, 1)
    if (bits, sign, zero) != ((16,), (1,), 1):
        kinds = {2: "signed integers", 3: "floats"}
        said = kinds.get(sign[0], "integers") + ("" if zero else ", 0 for white")
        raise ValueError(f"grey of {bits[0]} bits, {said}: make it one of 8 bits")


def _orientation(data: bytes) -> int:
    """Return the Exif orientation of an image that Pillow opens; 1 for as it is stored."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return int(Image.open(io.BytesIO(data), formats=OTHERS).getexif().get(0x0112, 1))
    except Exception:  # that it does not open is told by the decoder
        return 1


def as_jpeg(data: bytes, quality: int, notes: Counter[str], turned: bool = True) -> bytes:
    """Return a JPEG as it is, and any other image as one, its colours not subsampled.

    turned: let in images that their Exif record asks to turn, as they are stored; no TIFF, which
    Pillow turns. Notes: made-jpeg, exif-rotated. Raises Rejected undecodable, exif-rotated.
    """
    import simplejpeg

    if kind(data) == "jpg":
        return data
    asked = _orientation(data)
    if asked in range(2, 9) and not (turned and kind(data) in ("png", "webp")):
        raise Rejected("exif-rotated", f"orientation {asked}")
    try:
        pixels = np.ascontiguousarray(by_pillow(data, OTHERS))
    except ValueError as error:
        raise Rejected("undecodable", str(error)) from None
    notes["made-jpeg"] += 1
    notes["exif-rotated"] += asked in range(2, 9)
    encoded: bytes = simplejpeg.encode_jpeg(pixels, quality, "RGB", "444")
    return encoded


def turned(pixels_HW3: Pixels, orientation: int) -> Pixels:
    """Return pixels as an Exif orientation (1 to 8) asks to show them."""
    if orientation in (5, 6, 7, 8):
        pixels_HW3 = pixels_HW3.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels_HW3 = pixels_HW3[::-1]
    if orientation in (2, 3, 6, 7):
        pixels_HW3 = pixels_HW3[:, ::-1]
    return np.ascontiguousarray(pixels_HW3)


def require_picture(data: bytes, notes: Counter[str]) -> None:
    """Decode an image. Note: not-whole, a part of it is lost. Raises Rejected undecodable."""
    try:
        notes["not-whole"] += bool(look(data)[1])
    except ValueError as error:
        raise Rejected("undecodable", str(error)) from None


def size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Return (height, width), None where no header says them."""
    import simplejpeg
    from PIL import Image

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        return int(height), int(width)
    except ValueError:
        pass
    try:
        image = Image.open(io.BytesIO(data), formats=READ)
    except Exception:
        return None
    return image.height, image.width
