"""Degradations of images, decided by counters and computed in whole numbers.

What happens to a sample is a function of (seed, epoch, position) alone, to the last bit: weights
are multiples of 2**-14, so float32 products and sums are exact in any order of summation.
"""

# n images, H = W = S pixels, u uniform numbers of one image

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from glint.rng import I64, hash_at, key_of, uniform_at

Kind = Literal["none", "insightface", "lowlight"]
KINDS: tuple[Kind, ...] = ("none", "insightface", "lowlight")

_CHOICE, _NOISE = 0xDE62ADE, 0x201CE  # purposes of keys
_EACH = 8  # uniform numbers per sample
_BITS = 14
_ONE = 1 << _BITS

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


class Degrade:
    """Degrade some images of a batch, in place.

    insightface: a fifth goes down to 28 to 112 pixels and up again, a tenth is blurred, a fifth
    changes brightness, contrast and saturation, a tenth turns grey; each independently.
    lowlight: three in ten are darkened (gamma 1.5 to 3.5, then 0.2 to 0.7 of the light, with shot
    noise), three in ten go down to 14 to 42 pixels and up again, a tenth is blurred.
    """

    def __init__(self, kind: Kind, seed: int) -> None:
        self.kind, self.seed = kind, seed

    def __call__(self, image_nSS3: U8, epoch: int, position_n: I64) -> None:
        """Change images as their positions in the epoch say; O(1) memory beside them."""
        counter = np.asarray(position_n, dtype=np.int64)[:, None] * _EACH + np.arange(_EACH)
        chance_nu = uniform_at(key_of(self.seed, _CHOICE, epoch), counter)
        change = _insightface if self.kind == "insightface" else _lowlight
        for image_SS3, u, position in zip(image_nSS3, chance_nu.tolist(), position_n.tolist()):
            change(image_SS3, u, (self.seed, epoch, position))


def _insightface(image_SS3: U8, u: list[float], name: tuple[int, int, int]) -> None:
    size = len(image_SS3)
    if u[0] < 0.2:
        _apply(image_SS3, resize(size, size // 4 + int(u[0] * 5 * (size - size // 4))))
    if u[1] < 0.1:
        _apply(image_SS3, blur(size, 1 + int(u[1] * 10 * 8)))
    if u[2] < 0.2:
        colour(image_SS3, 0.6 + 0.8 * u[3], 0.6 + 0.8 * u[4], 0.6 + 0.8 * u[5])
    if u[6] < 0.1:
        colour(image_SS3, 1.0, 1.0, 0.0)


def _lowlight(image_SS3: U8, u: list[float], name: tuple[int, int, int]) -> None:
    size = len(image_SS3)
    if u[0] < 0.3:
        smallest, most = size // 8, size * 3 // 8
        _apply(image_SS3, resize(size, smallest + int(u[0] / 0.3 * (most - smallest + 1))))
    if u[1] < 0.1:
        _apply(image_SS3, blur(size, 1 + int(u[1] * 10 * 8)))
    if u[2] < 0.3:
        darken(
            image_SS3, 1.5 + 2.0 * u[3], 0.2 + 0.5 * u[4], 0.3 + 0.9 * u[5], key_of(_NOISE, *name)
        )


def darken(image_SS3: U8, gamma: float, gain: float, noise: float, key: int) -> None:
    """Take light away and add grain: 255 * gain * (v / 255)**gamma, sigma noise * sqrt(value)."""
    level = np.arange(256) / 255
    table = np.rint(255 * gain * level**gamma).astype(np.uint8)
    # The sum of four bytes is near enough a normal number, of sigma 147.8.
    sigma = np.rint(noise * np.sqrt(table + 1.0) * 256 / 147.8).astype(np.int32)
    count = image_SS3.size
    bits = hash_at(key, np.arange(-(-count // 2))).view(np.uint8)[: 4 * count]
    grain = bits.reshape(count, 4).sum(axis=1, dtype=np.int32) - 510
    flat = image_SS3.reshape(-1)
    value = table[flat].astype(np.int32) + ((grain * sigma[flat] + 128) >> 8)
    image_SS3[...] = np.clip(value, 0, 255).astype(np.uint8).reshape(image_SS3.shape)


def colour(image_SS3: U8, brightness: float, contrast: float, saturation: float) -> None:
    """Scale light, distance from the mean, and distance from grey (0 = a grey picture)."""
    b, c, s = (int(round(x * 256)) for x in (brightness, contrast, saturation))
    value = image_SS3.astype(np.int32)
    mean = int(value.sum()) // value.size
    if (b, c) != (256, 256):
        value = np.clip((((value - mean) * c + (mean << 8)) * b + (1 << 15)) >> 16, 0, 255)
    luma = (value @ np.array([77, 150, 29], dtype=np.int32) + 128) >> 8
    value = luma[..., None] + (((value - luma[..., None]) * s + 128) >> 8)
    image_SS3[...] = np.clip(value, 0, 255).astype(np.uint8)


@lru_cache(maxsize=512)
def resize(size: int, small: int) -> F32:
    """Return the S x S weights of going down to `small` pixels and up again, in units of 2**-14."""
    return _whole(_triangle(size, small) @ _triangle(small, size))


@lru_cache(maxsize=64)
def blur(size: int, level: int) -> F32:
    """Return the S x S weights of a Gaussian of sigma level / 4 pixels, in units of 2**-14."""
    at = np.arange(size)
    return _whole(np.exp(-0.5 * ((at[:, None] - at) / (level / 4)) ** 2))


def _triangle(out: int, into: int) -> npt.NDArray[np.float64]:
    """Return out x into weights of linear resampling, widened where it makes pictures smaller."""
    scale = into / out
    reach = max(scale, 1.0)
    centre = (np.arange(out) + 0.5) * scale - 0.5
    return np.asarray(np.maximum(0.0, 1 - np.abs(np.arange(into) - centre[:, None]) / reach))


def _whole(weight: npt.NDArray[np.float64]) -> F32:
    """Round weights to multiples of 2**-14 whose rows sum to one exactly."""
    weight = weight / weight.sum(axis=1, keepdims=True)
    whole = np.rint(weight * _ONE)
    whole[np.arange(len(whole)), whole.argmax(axis=1)] += _ONE - whole.sum(axis=1)
    return whole.astype(np.float32)


def _apply(image_SS3: U8, weight_SS: F32) -> None:
    """Filter rows, then columns."""
    size = len(image_SS3)
    picture: npt.NDArray[Any] = image_SS3
    for _ in range(2):
        lines = picture.astype(np.float32).reshape(size, -1)
        lines = np.floor((weight_SS @ lines + _ONE // 2) / _ONE)
        picture = lines.reshape(size, size, 3).transpose(1, 0, 2)
    image_SS3[...] = picture
