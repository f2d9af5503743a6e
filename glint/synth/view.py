"""The paper that faces are painted on: where a head stands in the picture, windows of it, colours.

What an image's dice say besides (light, occluders, camera) is thrown where it is painted, always in
the same order: the pictures of a seed never change.
"""

# h, w rows and columns of a window of the picture; 3 = R, G, B, planar, float32 in 0..1

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]  # float32
Colour = NDArray[np.float64]
Latents = NDArray[np.float64]

SIDE = 112

# One latent each, uniform in -1..1.
LATENTS = (
    *("face_width", "face_height", "jaw_taper", "jaw_square", "chin", "cheek_shade"),
    *("skin_light", "skin_hue", "skin_red"),
    *("eye_gap", "eye_y", "eye_width", "eye_height", "eye_tilt"),
    *("iris_size", "iris_hue", "iris_light", "lid"),
    *("brow_gap", "brow_thick", "brow_angle", "brow_curve", "brow_length", "brow_dark"),
    *("nose_length", "nose_width", "nose_bridge", "nostril"),
    *("mouth_width", "mouth_y", "lip_upper", "lip_lower", "lip_red", "mouth_curve"),
    *("hairline", "hair_part", "hair_peak", "hair_volume", "hair_length"),
    *("hair_light", "hair_red", "hair_grey", "beard", "moustache"),
    *("ear_size", "ear_y", "freckles"),
    *("mole1_x", "mole1_y", "mole1_dark", "mole2_x", "mole2_y", "mole2_dark"),
)

_X = np.arange(SIDE, dtype=np.float32)[None, :]
_Y = np.arange(SIDE, dtype=np.float32)[:, None]
_DOMAINS = {"person": 1, "lookalike": 2, "image": 3, "world": 4, "label": 5, "pairs": 6}


def stream(seed: int, domain: str, a: int = 0, b: int = 0) -> np.random.Philox:
    """Open the counter-based stream of (seed, domain, a, b): independent of every other one."""
    return np.random.Philox(key=[seed, _DOMAINS[domain]], counter=[0, 0, a, b])


def uniform(bits: np.random.Philox, count: int) -> NDArray[np.float64]:
    """Draw `count` numbers, uniform in 0..1, from the raw 64-bit words of a stream."""
    words: NDArray[np.uint64] = bits.random_raw(count)
    numbers: NDArray[np.float64] = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


class View:
    """One image in the making: where the head stands, what the dice said, and the canvas.

    Face coordinates: x right, y down, the half height of a mean face = 1; `place` puts a point
    of the curved face into the picture under yaw and pitch.
    """

    def __init__(self, latents: Latents, bits: np.random.Philox) -> None:
        self.p = p = SimpleNamespace(**dict(zip(LATENTS, latents.tolist())))
        self._dice: Iterator[float] = iter(uniform(bits, 160).tolist())
        yaw, pitch, roll = 0.52 * self.spread(), 0.34 * self.spread(), 0.26 * self.spread()
        self.scale = 43.0 * (1.0 + 0.13 * self.spread())
        self.cx = 55.5 + 6.5 * self.spread()
        self.cy = 58.0 + 6.5 * self.spread()
        self.cos_roll, self.sin_roll = math.cos(roll), math.sin(roll)
        self.cos_yaw, self.sin_yaw = math.cos(yaw), math.sin(yaw)
        self.cos_pitch, self.sin_pitch = math.cos(pitch), math.sin(pitch)
        self.width, self.height = 0.75 + 0.10 * p.face_width, 1.0 + 0.08 * p.face_height
        self.smile, self.open = self.spread(), max(0.0, self.spread())
        self.brow_raise, self.squint = self.spread(), 1.0 - 0.45 * max(0.0, self.spread())
        light = 0.5 + 0.5 * p.skin_light
        self.skin = mix(rgb(0.30, 0.19, 0.14), rgb(0.94, 0.77, 0.67), light)
        self.skin *= rgb(1.0 + 0.08 * p.skin_red, 1.0, 1.0 - 0.16 * p.skin_hue)
        tone, red = 0.5 + 0.5 * p.hair_light, 0.30 * max(0.0, p.hair_red)
        brown = rgb(0.36, 0.22, 0.12)
        if tone < 0.5:
            hair = mix(rgb(0.05, 0.04, 0.04), brown, 2.0 * tone)
        else:
            hair = mix(brown, rgb(0.86, 0.70, 0.42), 2.0 * tone - 1.0)
        hair *= rgb(1.0 + red, 1.0, 1.0 - red)
        mean = 0.35 + 0.4 * tone
        self.hair = mix(hair, rgb(mean, mean, mean), max(0.0, p.hair_grey * 1.6 - 0.6))
        base, knots = self.rolls(3), uniform(bits, 75).reshape(3, 5, 5)
        contrast = 0.15 + 0.5 * self.roll()
        back = field(base[:, None, None] * (1 - contrast) + knots * contrast)
        self.canvas: Pixels = np.clip(back, 0.0, 1.0)

    def roll(self) -> float:
        """Throw the next die: uniform in 0..1."""
        return next(self._dice)

    def rolls(self, count: int) -> NDArray[np.float64]:
        """Throw the next dice."""
        return np.array([next(self._dice) for _ in range(count)])

    def spread(self) -> float:
        """Throw two dice: triangular in -1..1."""
        return next(self._dice) + next(self._dice) - 1.0

    def place(self, x: float, y: float, lift: float = 0.0) -> NDArray[np.float64]:
        """Project a point of the face (`lift` above its surface) into the picture, in pixels."""
        z = 0.72 * math.sqrt(max(0.02, 1.0 - 0.75 * x * x - 0.55 * y * y)) + lift
        across = x * self.cos_yaw + z * self.sin_yaw
        depth = z * self.cos_yaw - x * self.sin_yaw
        return self.turn(across, y * self.cos_pitch + depth * self.sin_pitch)

    def turn(self, x: float, y: float) -> NDArray[np.float64]:
        """Put a point of the head as a whole, seen from the front, into the picture."""
        across = self.cx + self.scale * (x * self.cos_roll - y * self.sin_roll)
        return np.array([across, self.cy + self.scale * (x * self.sin_roll + y * self.cos_roll)])

    def face(self, x: float, y: float, half_x: float, half_y: float, lift: float = 0.0) -> Window:
        """Open the window around a face point, with coordinates in its tangent plane.

        It is empty where that is turned away from the camera.
        """
        u = (self.place(x + 0.04, y, lift) - self.place(x - 0.04, y, lift)) / 0.08
        v = (self.place(x, y + 0.04, lift) - self.place(x, y - 0.04, lift)) / 0.08
        return Window(self, self.place(x, y, lift), u, v, half_x, half_y)

    def flat(self, x: float, y: float, half_x: float, half_y: float) -> Window:
        """Open a window with coordinates of the head as a whole: outline, hair, ears."""
        cos, sin = self.scale * self.cos_roll, self.scale * self.sin_roll
        return Window(
            self, self.turn(x, y), np.array([cos, sin]), np.array([-sin, cos]), half_x, half_y
        )


class Window:
    """A rectangle of the picture with the face coordinates (u, v) of its pixels.

    centre, and the steps u and v of the face coordinates: pixels across and down.
    """

    def __init__(
        self, view: View, centre: Any, u: Any, v: Any, half_x: float, half_y: float
    ) -> None:
        (cx, cy), (xx, xy), (yx, yy) = centre.tolist(), u.tolist(), v.tolist()
        area = xx * yy - xy * yx
        reach_x = abs(xx) * half_x + abs(yx) * half_y + 1.5
        reach_y = abs(xy) * half_x + abs(yy) * half_y + 1.5
        left, top = max(0, int(cx - reach_x)), max(0, int(cy - reach_y))
        right = max(left, min(SIDE, int(cx + reach_x) + 2))
        bottom = max(top, min(SIDE, int(cy + reach_y) + 2))
        if area < 0.08 * view.scale * view.scale:  # turned away from the camera
            area, right = 1.0, left
        self.where = slice(top, bottom), slice(left, right)
        self.part = view.canvas[:, top:bottom, left:right]
        self.scale = np.float32(math.sqrt(area))
        across, down = _X[:, left:right] - cx, _Y[top:bottom] - cy
        self.u_hw: Pixels = across * (yy / area) - down * (yx / area)
        self.v_hw: Pixels = down * (xx / area) - across * (xy / area)

    def cover(self, distance_hw: Pixels, soft: float = 1.0) -> Pixels:
        """Turn a signed distance in face units into coverage 0..1, `soft` pixels wide."""
        cover_hw: Pixels = np.clip(0.5 - distance_hw * (self.scale / np.float32(soft)), 0.0, 1.0)
        return cover_hw

    def blend(self, cover_hw: Pixels, colour: Colour) -> None:
        """Lay a colour over the canvas with the given coverage."""
        self.part += cover_hw * (colour.astype(np.float32)[:, None, None] - self.part)

    def paint(
        self, distance_hw: Pixels, colour: Colour, soft: float = 1.0, strength: float = 1.0
    ) -> None:
        """Lay a colour where a signed distance is negative."""
        self.blend(self.cover(distance_hw, soft) * strength, colour)


def rgb(red: float, green: float, blue: float) -> Colour:
    return np.array([red, green, blue])


def mix(a: Colour, b: Colour, t: float) -> Colour:
    return a + (b - a) * t


def ellipse(u_hw: Pixels, v_hw: Pixels, wide: float = 1.0, high: float = 1.0) -> Pixels:
    """Return the distance from the middle of an ellipse, 1 on its edge."""
    return np.sqrt((u_hw / wide) ** 2 + (v_hw / high) ** 2)


def _resample(cells: int) -> Pixels:
    """Build the (SIDE, cells) matrix of smooth interpolation from `cells` knots."""
    at = np.arange(SIDE)[:, None] * ((cells - 1) / (SIDE - 1)) - np.arange(cells)[None, :]
    near = np.clip(1.0 - np.abs(at), 0.0, 1.0)
    smooth: Pixels = (near * near * (3.0 - 2.0 * near)).astype(np.float32)
    return smooth


_COARSE = _resample(5)


def field(knots_k55: NDArray[np.float64]) -> Pixels:
    smooth: Pixels = _COARSE @ knots_k55.astype(np.float32) @ _COARSE.T
    return smooth
