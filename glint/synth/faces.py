"""Procedural face-like images: a person is a vector of latents, an image is one view of it.

A person's latents fix geometry and colours; everything else in an image (pose, light, expression,
hair in the wind, occluders, camera) is nuisance drawn from the image's own counter-based stream.
Only raw uniform numbers are drawn, so the streams do not depend on numpy's distributions.
"""

# h, w rows and columns of a window of the picture; 3 = R, G, B, planar, float32 in 0..1

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

Pixels = NDArray[np.float32]
Latents = NDArray[np.float64]

SIDE = 112

# One latent each, uniform in -1..1.
LATENTS = (
    "face_width",
    "face_height",
    "jaw_taper",
    "jaw_square",
    "chin",
    "cheek_shade",
    "skin_light",
    "skin_hue",
    "skin_red",
    "eye_gap",
    "eye_y",
    "eye_width",
    "eye_height",
    "eye_tilt",
    "iris_size",
    "iris_hue",
    "iris_light",
    "lid",
    "brow_gap",
    "brow_thick",
    "brow_angle",
    "brow_curve",
    "brow_length",
    "brow_dark",
    "nose_length",
    "nose_width",
    "nose_bridge",
    "nostril",
    "mouth_width",
    "mouth_y",
    "lip_upper",
    "lip_lower",
    "lip_red",
    "mouth_curve",
    "hairline",
    "hair_part",
    "hair_peak",
    "hair_volume",
    "hair_length",
    "hair_light",
    "hair_red",
    "hair_grey",
    "beard",
    "moustache",
    "ear_size",
    "ear_y",
    "freckles",
    "mole1_x",
    "mole1_y",
    "mole1_dark",
    "mole2_x",
    "mole2_y",
    "mole2_dark",
)

_X = np.arange(SIDE, dtype=np.float32)[None, :]
_Y = np.arange(SIDE, dtype=np.float32)[:, None]
_LEVELS = 1024
_RAMP = np.linspace(0.0, 1.0, _LEVELS)
_DOMAINS = {"person": 1, "lookalike": 2, "image": 3, "world": 4, "label": 5, "pairs": 6}


def stream(seed: int, domain: str, a: int = 0, b: int = 0) -> np.random.Philox:
    """Open the counter-based stream of (seed, domain, a, b): independent of every other one."""
    return np.random.Philox(key=[seed, _DOMAINS[domain]], counter=[0, 0, a, b])


def uniform(bits: np.random.Philox, count: int) -> NDArray[np.float64]:
    """Draw `count` numbers, uniform in 0..1, from the raw 64-bit words of a stream."""
    words: NDArray[np.uint64] = bits.random_raw(count)
    numbers: NDArray[np.float64] = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def person(seed: int, number: int) -> Latents:
    """Draw the latents of one person: float64 in -1..1, in the order of `LATENTS`."""
    drawn: Latents = uniform(stream(seed, "person", number), len(LATENTS)) * 2.0 - 1.0
    return drawn


def lookalike(seed: int, number: int, of: Latents, share: float) -> Latents:
    """Draw person `number` as a double of another: `share` of the latents are drawn afresh."""
    draw = uniform(stream(seed, "lookalike", number), len(LATENTS))
    fresh = np.argsort(draw, kind="stable")[: max(1, round(share * len(LATENTS)))]
    own: Latents = of.copy()
    own[fresh] = person(seed, number)[fresh]
    return own


def jpeg(picture: NDArray[np.uint8], quality: int) -> bytes:
    """Encode an RGB picture (h, w, 3) as a 4:2:0 JPEG."""
    data: bytes = simplejpeg.encode_jpeg(
        picture, quality=quality, colorspace="RGB", colorsubsampling="420", fastdct=False
    )
    return data


def photograph(latents: Latents, seed: int, number: int, image: int) -> bytes:
    """Render view `image` of person `number` as a JPEG of quality 85 to 95."""
    bits = stream(seed, "image", number, image)
    picture = render(latents, bits)
    return jpeg(picture, 85 + int(uniform(bits, 1)[0] * 11))


def render(latents: Latents, bits: np.random.Philox) -> NDArray[np.uint8]:
    """Render one view of a person as RGB (112, 112, 3); `bits` supplies the nuisance."""
    p = dict(zip(LATENTS, latents.tolist()))
    take = iter(uniform(bits, 160).tolist())
    view = _View(p, take)
    canvas = _background(take, bits)
    _hair_back(canvas, view)
    _body(canvas, view)
    _ears(canvas, view)
    head_hw = _head(canvas, view)
    _skin_marks(canvas, view, head_hw)
    _nose(canvas, view)
    _mouth(canvas, view)
    _eyes(canvas, view)
    _hair_front(canvas, view)
    _light(canvas, view)
    _occlude(canvas, view)
    return _camera(canvas, view, bits)


class _View:
    """Where one person's head stands in one image, and what the image's dice said.

    Face coordinates: x right, y down, the half height of a mean face = 1; `place` puts a point
    of the curved face into the picture under yaw and pitch.
    """

    def __init__(self, p: dict[str, float], take: Iterator[float]) -> None:
        self.p, self.take = p, take
        self.yaw = 0.52 * self.spread()
        self.pitch = 0.34 * self.spread()
        roll = 0.26 * self.spread()
        self.scale = 43.0 * (1.0 + 0.13 * self.spread())
        self.cx = 55.5 + 6.5 * self.spread()
        self.cy = 58.0 + 6.5 * self.spread()
        self.cos_roll, self.sin_roll = math.cos(roll), math.sin(roll)
        self.cos_yaw, self.sin_yaw = math.cos(self.yaw), math.sin(self.yaw)
        self.cos_pitch, self.sin_pitch = math.cos(self.pitch), math.sin(self.pitch)
        self.width = 0.75 + 0.10 * p["face_width"]
        self.height = 1.0 + 0.08 * p["face_height"]
        self.smile = self.spread()
        self.open = max(0.0, self.spread())
        self.brow_raise = self.spread()
        self.squint = 1.0 - 0.45 * max(0.0, self.spread())
        light = 0.5 + 0.5 * p["skin_light"]
        self.skin = _mix((0.30, 0.19, 0.14), (0.94, 0.77, 0.67), light)
        self.skin = (
            self.skin[0] * (1.0 + 0.08 * p["skin_red"]),
            self.skin[1],
            self.skin[2] * (1.0 - 0.16 * p["skin_hue"]),
        )
        tone = 0.5 + 0.5 * p["hair_light"]
        hair = (
            _mix((0.05, 0.04, 0.04), (0.36, 0.22, 0.12), 2.0 * tone)
            if tone < 0.5
            else _mix((0.36, 0.22, 0.12), (0.86, 0.70, 0.42), 2.0 * tone - 1.0)
        )
        hair = (
            hair[0] * (1.0 + 0.30 * max(0.0, p["hair_red"])),
            hair[1],
            hair[2] * (1.0 - 0.30 * max(0.0, p["hair_red"])),
        )
        grey = max(0.0, p["hair_grey"] * 1.6 - 0.6)
        mean = 0.35 + 0.4 * tone
        self.hair = _mix(hair, (mean, mean, mean), grey)

    def roll(self) -> float:
        """Throw the next die: uniform in 0..1."""
        return next(self.take)

    def spread(self) -> float:
        """Throw two dice: triangular in -1..1."""
        return next(self.take) + next(self.take) - 1.0

    def place(self, x: float, y: float, lift: float = 0.0) -> tuple[float, float]:
        """Project a point of the face (`lift` above its surface) into the picture, in pixels."""
        z = 0.72 * math.sqrt(max(0.02, 1.0 - 0.75 * x * x - 0.55 * y * y)) + lift
        across = x * self.cos_yaw + z * self.sin_yaw
        depth = z * self.cos_yaw - x * self.sin_yaw
        down = y * self.cos_pitch + depth * self.sin_pitch
        return (
            self.cx + self.scale * (across * self.cos_roll - down * self.sin_roll),
            self.cy + self.scale * (across * self.sin_roll + down * self.cos_roll),
        )

    def window(
        self,
        x: float,
        y: float,
        half_x: float,
        half_y: float,
        lift: float = 0.0,
        flat: bool = False,
    ) -> _Window | None:
        """Open the window around a face point, with coordinates in its tangent plane.

        flat: coordinates of the head as a whole (outline, hair, ears) instead.
        """
        if flat:
            cx = self.cx + self.scale * (x * self.cos_roll - y * self.sin_roll)
            cy = self.cy + self.scale * (x * self.sin_roll + y * self.cos_roll)
            xx, xy = self.scale * self.cos_roll, self.scale * self.sin_roll
            yx, yy = -self.scale * self.sin_roll, self.scale * self.cos_roll
        else:
            cx, cy = self.place(x, y, lift)
            ax, ay = self.place(x + 0.04, y, lift)
            bx, by = self.place(x - 0.04, y, lift)
            xx, xy = (ax - bx) / 0.08, (ay - by) / 0.08
            ax, ay = self.place(x, y + 0.04, lift)
            bx, by = self.place(x, y - 0.04, lift)
            yx, yy = (ax - bx) / 0.08, (ay - by) / 0.08
        area = xx * yy - xy * yx
        if area < 0.08 * self.scale * self.scale:  # turned away from the camera
            return None
        reach_x = abs(xx) * half_x + abs(yx) * half_y + 1.5
        reach_y = abs(xy) * half_x + abs(yy) * half_y + 1.5
        left, right = max(0, int(cx - reach_x)), min(SIDE, int(cx + reach_x) + 2)
        top, bottom = max(0, int(cy - reach_y)), min(SIDE, int(cy + reach_y) + 2)
        if left >= right or top >= bottom:
            return None
        across = _X[:, left:right] - np.float32(cx)
        down = _Y[top:bottom] - np.float32(cy)
        u_hw = across * np.float32(yy / area) - down * np.float32(yx / area)
        v_hw = down * np.float32(xx / area) - across * np.float32(xy / area)
        return _Window((slice(top, bottom), slice(left, right)), u_hw, v_hw, math.sqrt(area))


class _Window:
    """A rectangle of the picture with the face coordinates of its pixels."""

    def __init__(
        self, where: tuple[slice, slice], u_hw: Pixels, v_hw: Pixels, scale: float
    ) -> None:
        self.where, self.u_hw, self.v_hw, self.scale = where, u_hw, v_hw, np.float32(scale)

    def cover(self, distance_hw: Pixels, soft: float = 1.0) -> Pixels:
        """Turn a signed distance in face units into coverage 0..1, `soft` pixels wide."""
        cover_hw: Pixels = np.clip(0.5 - distance_hw * (self.scale / np.float32(soft)), 0.0, 1.0)
        return cover_hw

    def blend(self, canvas: Pixels, cover_hw: Pixels, colour: tuple[float, float, float]) -> None:
        """Lay a colour over the canvas with the given coverage."""
        part = canvas[:, self.where[0], self.where[1]]
        part += cover_hw * (np.array(colour, np.float32)[:, None, None] - part)


def _mix(
    a: tuple[float, float, float], b: tuple[float, float, float], t: float
) -> tuple[float, float, float]:
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)


def _dim(colour: tuple[float, float, float], by: float) -> tuple[float, float, float]:
    return (colour[0] * by, colour[1] * by, colour[2] * by)


def _resample(cells: int) -> Pixels:
    """Build the (SIDE, cells) matrix of smooth interpolation from `cells` knots."""
    at = np.arange(SIDE)[:, None] * ((cells - 1) / (SIDE - 1)) - np.arange(cells)[None, :]
    near = np.clip(1.0 - np.abs(at), 0.0, 1.0)
    smooth: Pixels = (near * near * (3.0 - 2.0 * near)).astype(np.float32)
    return smooth


_COARSE = _resample(5)


def _field(knots_k55: NDArray[np.float64]) -> Pixels:
    field: Pixels = _COARSE @ knots_k55.astype(np.float32) @ _COARSE.T
    return field


def _background(take: Iterator[float], bits: np.random.Philox) -> Pixels:
    base = np.array([next(take), next(take), next(take)])
    knots = uniform(bits, 75).reshape(3, 5, 5)
    contrast = 0.15 + 0.5 * next(take)
    return np.clip(_field(base[:, None, None] * (1 - contrast) + knots * contrast), 0.0, 1.0)


def _hair_back(canvas: Pixels, view: _View) -> None:
    p = view.p
    length = 0.25 + 0.85 * max(0.0, p["hair_length"] + 0.15 * view.spread())
    volume = 0.12 + 0.09 * p["hair_volume"] + 0.03 * view.spread()
    if p["hair_length"] < -0.55:
        volume *= 0.4
    window = view.window(-0.10 * view.sin_yaw, -0.10, 1.5, 1.75, flat=True)
    if window is None:
        return
    u_hw, v_hw = window.u_hw, window.v_hw
    wide = view.width + volume
    low_hw = np.maximum(v_hw, 0.0) / np.float32(max(0.3, length))
    high_hw = np.minimum(v_hw, 0.0) / np.float32(view.height + volume - 0.10)
    reach_hw = np.sqrt((u_hw / np.float32(wide)) ** 2 + low_hw**4 + high_hw**2)
    cover_hw = window.cover((reach_hw - 1.0) * np.float32(0.9))
    window.blend(canvas, cover_hw, _dim(view.hair, 0.8))


def _body(canvas: Pixels, view: _View) -> None:
    cloth = (view.roll(), view.roll(), view.roll())
    window = view.window(0.0, 1.35, 1.6, 0.9, flat=True)
    if window is None:
        return
    neck_hw = np.abs(window.u_hw - np.float32(0.1 * view.sin_yaw)) - np.float32(
        0.36 + 0.12 * view.p["face_width"] + 0.06 * view.p["jaw_square"]
    )
    window.blend(canvas, window.cover(neck_hw + (window.v_hw < -0.9)), _dim(view.skin, 0.72))
    collar = np.float32(-0.05 + 0.12 * view.spread())
    chest_hw = collar + np.float32(0.10) * window.u_hw * window.u_hw - window.v_hw
    window.blend(canvas, window.cover(chest_hw), cloth)


def _ears(canvas: Pixels, view: _View) -> None:
    size = 0.16 + 0.05 * view.p["ear_size"]
    y = 0.02 + 0.06 * view.p["ear_y"] + 0.25 * view.sin_pitch
    for side in (-1.0, 1.0):
        seen = 1.0 - 1.3 * side * view.sin_yaw  # the far ear hides behind the head
        if seen < 0.55:
            continue
        x = side * (view.width + 0.02) - 0.12 * view.sin_yaw
        window = view.window(x, y, 0.3, 0.4, flat=True)
        if window is None:
            continue
        round_hw = np.sqrt((window.u_hw / np.float32(0.55)) ** 2 + window.v_hw**2)
        window.blend(canvas, window.cover(round_hw - np.float32(size)), _dim(view.skin, 0.86))
        window.blend(
            canvas, window.cover(round_hw - np.float32(size * 0.55), 2.0), _dim(view.skin, 0.68)
        )


def _head(canvas: Pixels, view: _View) -> Pixels:
    """Paint the skin of the head and return its coverage of the whole picture."""
    p = view.p
    cover = np.zeros((SIDE, SIDE), np.float32)
    window = view.window(0.0, 0.0, 1.15, 1.35, flat=True)
    if window is None:
        return cover
    v_hw = window.v_hw
    tall = view.height * (1.0 + 0.06 * p["chin"] + 0.05 * view.open)
    t_hw = np.clip(v_hw / np.float32(tall), 0.0, 1.1)
    taper = 0.24 + 0.14 * p["jaw_taper"]
    lean_hw = t_hw * t_hw
    u_hw = window.u_hw - lean_hw * np.float32(0.30 * view.sin_yaw)
    a_hw = (u_hw / (np.float32(view.width) * (1.0 - np.float32(taper) * lean_hw))) ** 2
    b_hw = np.where(v_hw > 0, v_hw / np.float32(tall), v_hw / np.float32(view.height)) ** 2
    square = np.float32(0.30 + 0.26 * p["jaw_square"])
    reach_hw = np.sqrt((1.0 - square) * (a_hw + b_hw) + square * (a_hw * a_hw + b_hw * b_hw))
    cover_hw = window.cover((reach_hw - 1.0) * np.float32(0.42 * (view.width + view.height)))
    window.blend(canvas, cover_hw, view.skin)
    cover[window.where] = cover_hw
    return cover


def _skin_marks(canvas: Pixels, view: _View, head_hw: Pixels) -> None:
    p, skin = view.p, view.skin
    for side in (-1.0, 1.0):  # cheeks
        window = view.window(side * 0.40, 0.28, 0.26, 0.26)
        if window is not None:
            fall_hw = np.clip(1.0 - (window.u_hw**2 + window.v_hw**2) * np.float32(16), 0, 1)
            tint = (skin[0], skin[1] * 0.78, skin[2] * 0.74)
            window.blend(canvas, fall_hw * np.float32(0.25 + 0.25 * p["cheek_shade"]), tint)
    beard, moustache = max(0.0, p["beard"] * 1.5 - 0.5), max(0.0, p["moustache"] * 1.5 - 0.5)
    trim = 0.75 + 0.25 * view.roll()
    if beard > 0:
        window = view.window(0.0, 0.72, 0.8, 0.55)
        if window is not None:
            edge_hw = np.float32(0.02) - window.v_hw - np.float32(0.9) * window.u_hw**2
            cover_hw = window.cover(edge_hw, 5.0) * head_hw[window.where]
            window.blend(canvas, cover_hw * np.float32(0.75 * beard * trim), _dim(view.hair, 0.8))
    if moustache > 0:
        window = view.window(0.0, 0.40 + 0.06 * p["nose_length"], 0.34, 0.12, 0.08)
        if window is not None:
            arch_hw = np.abs(window.v_hw - np.float32(0.5) * window.u_hw**2) - np.float32(0.05) * (
                1.0 - (window.u_hw / np.float32(0.34)) ** 2
            )
            window.blend(
                canvas,
                window.cover(arch_hw, 2.0) * np.float32(0.85 * moustache * trim),
                _dim(view.hair, 0.8),
            )
    spots = [
        (0.5 * p["mole1_x"], 0.15 + 0.6 * p["mole1_y"], p["mole1_dark"]),
        (0.55 * p["mole2_x"], 0.1 + 0.65 * p["mole2_y"], p["mole2_dark"]),
    ]
    for x, y, dark in spots:
        if dark > -0.2:
            _dot(canvas, view, x, y, 0.028 + 0.02 * dark, 0.55 + 0.4 * dark)
    dense = max(0.0, p["freckles"])
    if dense > 0.2:
        for step in range(8):  # a fixed spiral, so that only its strength is a latent
            angle, radius = 2.4 * step, 0.06 + 0.022 * step
            for side in (-1.0, 1.0):
                _dot(
                    canvas,
                    view,
                    side * 0.34 + radius * math.cos(angle),
                    0.24 + 0.7 * radius * math.sin(angle),
                    0.018,
                    0.55 * dense,
                )


def _dot(canvas: Pixels, view: _View, x: float, y: float, radius: float, strength: float) -> None:
    window = view.window(x, y, radius, radius)
    if window is not None:
        round_hw = np.sqrt(window.u_hw**2 + window.v_hw**2) - np.float32(radius)
        window.blend(
            canvas, window.cover(round_hw, 1.5) * np.float32(strength), _dim(view.skin, 0.35)
        )


def _eyes(canvas: Pixels, view: _View) -> None:
    p = view.p
    gap, y = 0.34 + 0.065 * p["eye_gap"], -0.10 + 0.06 * p["eye_y"]
    wide, high = 0.155 + 0.035 * p["eye_width"], 0.070 + 0.026 * p["eye_height"]
    high *= view.squint
    tilt = 0.20 * p["eye_tilt"]
    iris = 0.074 + 0.016 * p["iris_size"]
    look_x, look_y = 0.05 * view.spread(), 0.02 * view.spread()
    hue, lit = p["iris_hue"], 0.5 + 0.5 * p["iris_light"]
    tint = (
        _mix((0.30, 0.18, 0.08), (0.25, 0.45, 0.25), hue)
        if hue > 0
        else _mix((0.30, 0.18, 0.08), (0.25, 0.45, 0.75), -hue)
    )
    tint = _dim(tint, 0.4 + 0.9 * lit)
    lid = 0.012 + 0.010 * p["lid"]
    thick, length = 0.048 + 0.028 * p["brow_thick"], 0.20 + 0.05 * p["brow_length"]
    brow_y = y - high - 0.15 - 0.05 * p["brow_gap"] - 0.035 * view.brow_raise
    slope, arch = 0.30 * p["brow_angle"] - 0.08 * view.brow_raise, 2.2 + 2.2 * p["brow_curve"]
    brow = _mix(view.skin, _dim(view.hair, 0.75), 0.70 + 0.28 * p["brow_dark"])
    for side in (-1.0, 1.0):
        window = view.window(side * gap, y, wide + 0.05, high + 0.09)
        if window is not None:
            u_hw = window.u_hw * np.float32(side)
            v_hw = window.v_hw + np.float32(tilt) * u_hw
            bow_hw = 1.0 - (u_hw / np.float32(wide)) ** 2
            lens_hw = np.abs(v_hw) - np.float32(high) * bow_hw
            window.blend(
                canvas,
                window.cover(lens_hw - np.float32(lid), 1.6) * np.float32(0.8),
                _dim(view.skin, 0.35),
            )
            crease_hw = np.abs(v_hw + np.float32(high + 0.035) * bow_hw) - np.float32(0.008)
            window.blend(
                canvas,
                window.cover(crease_hw, 1.5) * (bow_hw > 0) * np.float32(0.4),
                _dim(view.skin, 0.5),
            )
            white_hw = window.cover(lens_hw)
            window.blend(canvas, white_hw, (0.93, 0.92, 0.90))
            round_hw = np.sqrt(
                (window.u_hw - np.float32(look_x)) ** 2 + (window.v_hw - np.float32(look_y)) ** 2
            )
            window.blend(
                canvas, np.minimum(white_hw, window.cover(round_hw - np.float32(iris))), tint
            )
            pupil_hw = window.cover(round_hw - np.float32(0.42 * iris))
            window.blend(canvas, np.minimum(white_hw, pupil_hw), (0.03, 0.03, 0.03))
        window = view.window(side * (gap + 0.02), brow_y, length, thick + 0.10, 0.03)
        if window is not None:
            u_hw = window.u_hw * np.float32(side)
            line_hw = np.float32(arch) * u_hw * u_hw - np.float32(0.035) - np.float32(slope) * u_hw
            along_hw = u_hw / np.float32(length)
            body_hw = np.float32(thick) * (1.0 - 0.55 * along_hw) * (1.0 - along_hw**4)
            stroke_hw = np.abs(window.v_hw - line_hw) - body_hw * np.float32(0.8)
            window.blend(canvas, window.cover(stroke_hw, 1.4) * (np.abs(along_hw) < 1), brow)


def _nose(canvas: Pixels, view: _View) -> None:
    p, skin = view.p, view.skin
    tip_y, wide = 0.25 + 0.07 * p["nose_length"], 0.135 + 0.040 * p["nose_width"]
    bridge = 0.050 + 0.022 * p["nose_bridge"]
    window = view.window(0.0, tip_y * 0.5, 0.24, 0.40, 0.10)
    if window is not None:
        along_hw = np.clip((window.v_hw + np.float32(0.28)) * np.float32(1.8), 0.0, 1.0)
        half_hw = np.float32(bridge) + np.float32(0.5 * (wide - bridge)) * along_hw**2
        side_hw = np.abs(np.abs(window.u_hw) - half_hw) - np.float32(0.014)
        within_hw = np.abs(window.v_hw) < tip_y * 0.5 + 0.10
        window.blend(
            canvas, window.cover(side_hw, 3.0) * within_hw * np.float32(0.42), _dim(skin, 0.62)
        )
        ridge_hw = window.cover(np.abs(window.u_hw) - half_hw * np.float32(0.45), 3.0)
        window.blend(canvas, ridge_hw * within_hw * np.float32(0.35), _dim(skin, 1.12))
    window = view.window(0.0, tip_y, wide + 0.08, 0.14, 0.20)
    if window is not None:
        wing_hw = np.sqrt(
            (window.u_hw / np.float32(wide)) ** 2 + (window.v_hw / np.float32(0.085)) ** 2
        )
        ring_hw = np.abs(wing_hw - 1.0) * np.float32(0.09) - np.float32(0.016)
        window.blend(
            canvas,
            window.cover(ring_hw, 2.0) * (window.v_hw > -0.03) * np.float32(0.6),
            _dim(skin, 0.55),
        )
        hole = 0.026 + 0.010 * p["nostril"]
        hole_hw = np.sqrt(
            ((np.abs(window.u_hw) - np.float32(0.52 * wide)) / 1.5) ** 2
            + (window.v_hw - np.float32(0.035)) ** 2
        ) - np.float32(hole)
        window.blend(canvas, window.cover(hole_hw, 1.4) * np.float32(0.85), _dim(skin, 0.28))


def _mouth(canvas: Pixels, view: _View) -> None:
    p, skin = view.p, view.skin
    wide = (0.265 + 0.065 * p["mouth_width"]) * (1.0 + 0.12 * view.smile)
    y = 0.56 + 0.05 * p["mouth_y"] + 0.03 * p["nose_length"]
    upper, lower = 0.058 + 0.030 * p["lip_upper"], 0.078 + 0.036 * p["lip_lower"]
    gape = 0.13 * view.open
    curve = 1.1 * view.smile + 0.7 * p["mouth_curve"]
    lip = (
        skin[0] * (0.90 + 0.12 * p["lip_red"]),
        skin[1] * (0.58 - 0.14 * p["lip_red"]),
        skin[2] * (0.62 - 0.12 * p["lip_red"]),
    )
    window = view.window(0.0, y, wide + 0.02, 0.12 + gape + 0.14, 0.06)
    if window is None:
        return
    along_hw = window.u_hw / np.float32(wide)
    bow_hw = 1.0 - along_hw * along_hw
    mid_hw = (
        window.v_hw
        + np.float32(curve) * window.u_hw * window.u_hw
        - np.float32(0.35 * curve * wide * wide)
    )
    peak_hw = np.float32(upper) * bow_hw * (1.0 - 0.30 * np.clip(1 - 5 * np.abs(along_hw), 0, 1))
    above_hw = -mid_hw - peak_hw
    below_hw = mid_hw - np.float32(lower + gape) * bow_hw
    both_hw = np.maximum(above_hw, below_hw)
    window.blend(canvas, window.cover(both_hw, 1.3), lip)
    window.blend(
        canvas,
        window.cover(np.abs(mid_hw - np.float32(gape) * bow_hw) - np.float32(0.010), 1.5)
        * (bow_hw > 0)
        * np.float32(0.7),
        _dim(lip, 0.35),
    )
    if gape > 0.02:
        gap_hw = np.maximum(-mid_hw, mid_hw - np.float32(gape) * bow_hw)
        window.blend(canvas, window.cover(gap_hw), (0.22, 0.06, 0.06))
        teeth_hw = np.maximum(gap_hw, mid_hw - np.float32(0.055))
        window.blend(canvas, window.cover(teeth_hw), (0.90, 0.89, 0.85))


def _hair_front(canvas: Pixels, view: _View) -> None:
    p = view.p
    window = view.window(0.04 * view.sin_yaw, -0.2, 1.3, 1.4, flat=True)
    if window is None:
        return
    u_hw, v_hw = window.u_hw, window.v_hw - np.float32(0.2)
    volume = 0.07 + 0.06 * p["hair_volume"]
    out_hw = np.sqrt(
        (u_hw / np.float32(view.width + 0.6 * volume + 0.02)) ** 2
        + (v_hw / np.float32(view.height + volume)) ** 2
    )
    shift_hw = u_hw - np.float32(0.42 * view.sin_yaw)
    line = -0.62 - 0.22 * p["hairline"] + 0.05 * view.spread() + 0.42 * view.sin_pitch
    part = 0.28 * p["hair_part"] + 0.05 * view.spread()
    peak = 0.30 + 0.50 * p["hair_peak"]
    edge_hw = (
        v_hw
        - np.float32(line)
        - np.float32(part) * shift_hw
        - np.float32(peak) * shift_hw * shift_hw
        - np.float32(2.2) * np.clip(np.abs(u_hw) - np.float32(view.width - 0.22), 0, 1)
    )
    wave = 0.015 + 0.02 * view.roll()
    edge_hw += np.float32(wave) * np.sin(
        u_hw * np.float32(18 + 14 * view.roll()) + np.float32(6.28 * view.roll())
    )
    cover_hw = window.cover(np.maximum((out_hw - 1.0) * np.float32(0.8), edge_hw), 1.5)
    cover_hw *= v_hw < np.float32(0.35)
    window.blend(canvas, cover_hw, view.hair)
    streak_hw = np.sin(
        shift_hw * np.float32(30 + 20 * view.roll())
        + v_hw * np.float32(12 * view.spread())
        + np.float32(6.28 * view.roll())
    )
    window.blend(
        canvas, cover_hw * np.clip(streak_hw, 0, 1) * np.float32(0.35), _dim(view.hair, 1.45)
    )


def _light(canvas: Pixels, view: _View) -> None:
    """Shade the head as an ellipsoid under one lamp and an uneven ambient light."""
    left, up = 1.5 * view.spread(), 0.3 + 0.9 * view.spread()
    size = math.sqrt(left * left + up * up + 0.55)
    hard = 0.15 + 0.50 * view.roll()
    window = view.window(0.0, 0.0, 3.0, 3.0, flat=True)
    if window is None:
        return
    x_hw = window.u_hw * np.float32(0.85 / view.width)
    y_hw = window.v_hw * np.float32(0.8 / view.height)
    flat_hw = np.maximum(1.0 - x_hw * x_hw - y_hw * y_hw, 0.04)
    lamp_hw = (
        x_hw * np.float32(left / size)
        - y_hw * np.float32(up / size)
        + np.sqrt(flat_hw) * np.float32(0.74 / size)
    )
    shade_hw = np.float32(1.12 - hard) + np.float32(1.25 * hard) * np.clip(lamp_hw, 0.0, 1.0)
    uneven = np.array([view.roll() for _ in range(25)]).reshape(5, 5) * 0.40 + 0.80
    canvas[:, window.where[0], window.where[1]] *= shade_hw * _field(uneven)[window.where]


def _occlude(canvas: Pixels, view: _View) -> None:
    kind, tone = view.roll(), (view.roll(), view.roll(), view.roll())
    shift, size = view.spread(), view.roll()
    if kind < 0.04:  # sunglasses
        for side in (-1.0, 1.0):
            window = view.window(side * 0.35, -0.08, 0.30, 0.24, 0.10)
            if window is not None:
                lens_hw = np.sqrt((window.u_hw / 1.25) ** 2 + window.v_hw**2) - np.float32(0.20)
                window.blend(canvas, window.cover(lens_hw), _dim(tone, 0.25))
    elif kind < 0.10:  # clear glasses
        for side in (-1.0, 1.0):
            window = view.window(side * 0.35, -0.08, 0.32, 0.26, 0.10)
            if window is not None:
                lens_hw = np.abs(
                    np.sqrt((window.u_hw / 1.25) ** 2 + window.v_hw**2)
                    - np.float32(0.16 + 0.06 * size)
                ) - np.float32(0.018)
                window.blend(canvas, window.cover(lens_hw), _dim(tone, 0.5))
    elif kind < 0.13:  # mask over mouth and nose
        window = view.window(0.0, 0.62, 0.75, 0.48, 0.08)
        if window is not None:
            mask_hw = (
                np.sqrt(
                    (window.u_hw / np.float32(0.68)) ** 4 + (window.v_hw / np.float32(0.42)) ** 4
                )
                - 1.0
            )
            window.blend(canvas, window.cover(mask_hw * np.float32(0.4)), tone)
    elif kind < 0.20:  # a bar or a hand across a part of the face
        window = view.window(0.85 * shift, 0.5 * size, 1.4, 1.6, flat=True)
        if window is not None:
            lean = np.float32(1.4 * (view.roll() - 0.5))
            bar_hw = np.abs(window.u_hw + lean * window.v_hw) - np.float32(0.10 + 0.14 * size)
            window.blend(canvas, window.cover(bar_hw), tone)


def _camera(canvas: Pixels, view: _View, bits: np.random.Philox) -> NDArray[np.uint8]:
    """Apply blur, noise, gain, white balance and gamma; return RGB (112, 112, 3)."""
    soft = view.roll()
    for _ in range(int(soft * soft * 5.0)):
        canvas[:, 1:-1] += 0.25 * (canvas[:, :-2] + canvas[:, 2:] - 2.0 * canvas[:, 1:-1])
        canvas[:, :, 1:-1] += 0.25 * (
            canvas[:, :, :-2] + canvas[:, :, 2:] - 2.0 * canvas[:, :, 1:-1]
        )
    grain = 0.01 + 0.05 * view.roll() ** 2
    words: Any = bits.random_raw(canvas.size // 4)
    noise = words.view(np.uint8).reshape(2, *canvas.shape)
    rough = np.add(noise[0], noise[1], dtype=np.float32)
    rough -= 255.0
    rough *= np.float32(grain * 2.45 / 255.0)
    canvas += rough
    index = np.clip(canvas * (_LEVELS - 1), 0, _LEVELS - 1).astype(np.uint16)
    gain, gamma, lift = 1.0 + 0.34 * view.spread(), 2.0 ** (0.45 * view.spread()), view.roll()
    picture = np.empty((SIDE, SIDE, 3), np.uint8)
    for channel, weight in enumerate((0.20, 0.06, 0.20)):
        tint = gain * (1.0 + weight * view.spread())
        curve = np.clip((_RAMP**gamma) * tint * (1.0 - 0.15 * lift) + 0.10 * lift, 0.0, 1.0)
        picture[:, :, channel] = (curve * 255.0 + 0.5).astype(np.uint8)[index[channel]]
    return picture
