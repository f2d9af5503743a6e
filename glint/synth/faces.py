"""Procedural face-like images: a person is a vector of latents, an image is one view of it.

A person's latents fix geometry and colours; everything else in an image (pose, light, expression,
hair in the wind, occluders, camera) is nuisance drawn from the image's own counter-based stream.
Only raw uniform numbers are drawn, so the streams do not depend on numpy's distributions.
"""

# h, w rows and columns of a window of the picture; 3 = R, G, B, planar, float32 in 0..1

from __future__ import annotations

import math
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from glint.synth.view import (
    LATENTS,
    SIDE,
    Latents,
    Pixels,
    View,
    ellipse,
    field,
    mix,
    rgb,
    stream,
    uniform,
)

_LEVELS = 1024
_RAMP = np.linspace(0.0, 1.0, _LEVELS)
_SIDES = (-1.0, 1.0)


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


def photograph(latents: Latents, seed: int, number: int, image: int) -> bytes:
    """Render view `image` of person `number` as a 4:2:0 JPEG of quality 85 to 95."""
    bits = stream(seed, "image", number, image)
    picture = render(latents, bits)
    data: bytes = simplejpeg.encode_jpeg(
        picture,
        quality=85 + int(uniform(bits, 1)[0] * 11),
        colorspace="RGB",
        colorsubsampling="420",
        fastdct=False,
    )
    return data


def render(latents: Latents, bits: np.random.Philox) -> NDArray[np.uint8]:
    """Render one view of a person as RGB (112, 112, 3); `bits` supplies the nuisance."""
    view = View(latents, bits)
    _hair_back(view)
    _body(view)
    _ears(view)
    head_hw = _head(view)
    _skin_marks(view, head_hw)
    _nose(view)
    _mouth(view)
    look_x, look_y = 0.05 * view.spread(), 0.02 * view.spread()
    for side in _SIDES:
        _eye(view, side, look_x, look_y)
    _hair_front(view)
    _light(view)
    _occlude(view)
    return _camera(view, bits)


def _hair_back(view: View) -> None:
    p = view.p
    length = 0.25 + 0.85 * max(0.0, p.hair_length + 0.15 * view.spread())
    volume = 0.12 + 0.09 * p.hair_volume + 0.03 * view.spread()
    if p.hair_length < -0.55:
        volume *= 0.4
    w = view.flat(-0.10 * view.sin_yaw, -0.10, 1.5, 1.75)
    low_hw = np.maximum(w.v_hw, 0.0) / max(0.3, length)
    high_hw = np.minimum(w.v_hw, 0.0) / (view.height + volume - 0.10)
    reach_hw = np.sqrt((w.u_hw / (view.width + volume)) ** 2 + low_hw**4 + high_hw**2)
    w.paint((reach_hw - 1.0) * 0.9, view.hair * 0.8)


def _body(view: View) -> None:
    cloth = view.rolls(3)
    w = view.flat(0.0, 1.35, 1.6, 0.9)
    neck = 0.36 + 0.12 * view.p.face_width + 0.06 * view.p.jaw_square
    neck_hw = np.abs(w.u_hw - 0.1 * view.sin_yaw) - neck
    w.paint(neck_hw + (w.v_hw < -0.9), view.skin * 0.72)
    collar = -0.05 + 0.12 * view.spread()
    w.paint(collar + 0.10 * w.u_hw * w.u_hw - w.v_hw, cloth)


def _ears(view: View) -> None:
    size = 0.16 + 0.05 * view.p.ear_size
    y = 0.02 + 0.06 * view.p.ear_y + 0.25 * view.sin_pitch
    for side in _SIDES:
        if 1.0 - 1.3 * side * view.sin_yaw < 0.55:  # the far ear hides behind the head
            continue
        w = view.flat(side * (view.width + 0.02) - 0.12 * view.sin_yaw, y, 0.3, 0.4)
        round_hw = ellipse(w.u_hw, w.v_hw, 0.55)
        w.paint(round_hw - size, view.skin * 0.86)
        w.paint(round_hw - size * 0.55, view.skin * 0.68, 2.0)


def _head(view: View) -> Pixels:
    """Paint the skin of the head and return its coverage of the whole picture."""
    p = view.p
    w = view.flat(0.0, 0.0, 1.15, 1.35)
    tall = view.height * (1.0 + 0.06 * p.chin + 0.05 * view.open)
    t_hw = np.clip(w.v_hw / tall, 0.0, 1.1)
    lean_hw = t_hw * t_hw
    u_hw = w.u_hw - lean_hw * (0.30 * view.sin_yaw)
    a_hw = (u_hw / (view.width * (1.0 - (0.24 + 0.14 * p.jaw_taper) * lean_hw))) ** 2
    b_hw = np.where(w.v_hw > 0, w.v_hw / tall, w.v_hw / view.height) ** 2
    square = np.float32(0.30 + 0.26 * p.jaw_square)
    reach_hw = np.sqrt((1.0 - square) * (a_hw + b_hw) + square * (a_hw * a_hw + b_hw * b_hw))
    cover_hw = w.cover((reach_hw - 1.0) * (0.42 * (view.width + view.height)))
    w.blend(cover_hw, view.skin)
    cover = np.zeros((SIDE, SIDE), np.float32)
    cover[w.where] = cover_hw
    return cover


def _skin_marks(view: View, head_hw: Pixels) -> None:
    p = view.p
    for side in _SIDES:  # cheeks
        w = view.face(side * 0.40, 0.28, 0.26, 0.26)
        fall_hw = np.clip(1.0 - (w.u_hw**2 + w.v_hw**2) * 16, 0, 1)
        w.blend(fall_hw * (0.25 + 0.25 * p.cheek_shade), view.skin * rgb(1.0, 0.78, 0.74))
    beard, moustache = max(0.0, p.beard * 1.5 - 0.5), max(0.0, p.moustache * 1.5 - 0.5)
    trim = 0.75 + 0.25 * view.roll()
    if beard > 0:
        w = view.face(0.0, 0.72, 0.8, 0.55)
        cover_hw = w.cover(0.02 - w.v_hw - 0.9 * w.u_hw**2, 5.0) * head_hw[w.where]
        w.blend(cover_hw * (0.75 * beard * trim), view.hair * 0.8)
    if moustache > 0:
        w = view.face(0.0, 0.40 + 0.06 * p.nose_length, 0.34, 0.12, 0.08)
        arch_hw = np.abs(w.v_hw - 0.5 * w.u_hw**2) - 0.05 * (1.0 - (w.u_hw / 0.34) ** 2)
        w.paint(arch_hw, view.hair * 0.8, 2.0, 0.85 * moustache * trim)
    for x, y, dark in (
        (0.5 * p.mole1_x, 0.15 + 0.6 * p.mole1_y, p.mole1_dark),
        (0.55 * p.mole2_x, 0.1 + 0.65 * p.mole2_y, p.mole2_dark),
    ):
        if dark > -0.2:
            _dot(view, x, y, 0.028 + 0.02 * dark, 0.55 + 0.4 * dark)
    if p.freckles > 0.2:
        for step in range(8):  # a fixed spiral, so that only its strength is a latent
            angle, radius = 2.4 * step, 0.06 + 0.022 * step
            x, y = radius * math.cos(angle), 0.24 + 0.7 * radius * math.sin(angle)
            for side in _SIDES:
                _dot(view, side * 0.34 + x, y, 0.018, 0.55 * p.freckles)


def _dot(view: View, x: float, y: float, radius: float, strength: float) -> None:
    w = view.face(x, y, radius, radius)
    w.paint(ellipse(w.u_hw, w.v_hw) - radius, view.skin * 0.35, 1.5, strength)


def _nose(view: View) -> None:
    p, skin = view.p, view.skin
    tip_y, wide = 0.25 + 0.07 * p.nose_length, 0.135 + 0.040 * p.nose_width
    bridge = 0.050 + 0.022 * p.nose_bridge
    w = view.face(0.0, tip_y * 0.5, 0.24, 0.40, 0.10)
    along_hw = np.clip((w.v_hw + 0.28) * 1.8, 0.0, 1.0)
    half_hw = bridge + (0.5 * (wide - bridge)) * along_hw**2
    within_hw = np.abs(w.v_hw) < tip_y * 0.5 + 0.10
    side_hw = np.abs(np.abs(w.u_hw) - half_hw) - 0.014
    w.blend(w.cover(side_hw, 3.0) * within_hw * 0.42, skin * 0.62)
    w.blend(w.cover(np.abs(w.u_hw) - half_hw * 0.45, 3.0) * within_hw * 0.35, skin * 1.12)
    w = view.face(0.0, tip_y, wide + 0.08, 0.14, 0.20)
    ring_hw = np.abs(ellipse(w.u_hw, w.v_hw, wide, 0.085) - 1.0) * 0.09 - 0.016
    w.blend(w.cover(ring_hw, 2.0) * (w.v_hw > -0.03) * 0.6, skin * 0.55)
    hole_hw = ellipse(np.abs(w.u_hw) - 0.52 * wide, w.v_hw - 0.035, 1.5)
    w.paint(hole_hw - (0.026 + 0.010 * p.nostril), skin * 0.28, 1.4, 0.85)


def _mouth(view: View) -> None:
    p = view.p
    wide = (0.265 + 0.065 * p.mouth_width) * (1.0 + 0.12 * view.smile)
    y = 0.56 + 0.05 * p.mouth_y + 0.03 * p.nose_length
    upper, lower = 0.058 + 0.030 * p.lip_upper, 0.078 + 0.036 * p.lip_lower
    gape = 0.13 * view.open
    curve = 1.1 * view.smile + 0.7 * p.mouth_curve
    red = p.lip_red
    lip = view.skin * rgb(0.90 + 0.12 * red, 0.58 - 0.14 * red, 0.62 - 0.12 * red)
    w = view.face(0.0, y, wide + 0.02, 0.12 + gape + 0.14, 0.06)
    along_hw = w.u_hw / wide
    bow_hw = 1.0 - along_hw * along_hw
    mid_hw = w.v_hw + curve * w.u_hw * w.u_hw - 0.35 * curve * wide * wide
    peak_hw = upper * bow_hw * (1.0 - 0.30 * np.clip(1 - 5 * np.abs(along_hw), 0, 1))
    w.paint(np.maximum(-mid_hw - peak_hw, mid_hw - (lower + gape) * bow_hw), lip, 1.3)
    line_hw = w.cover(np.abs(mid_hw - gape * bow_hw) - 0.010, 1.5)
    w.blend(line_hw * (bow_hw > 0) * 0.7, lip * 0.35)
    if gape > 0.02:
        gap_hw = np.maximum(-mid_hw, mid_hw - gape * bow_hw)
        w.paint(gap_hw, rgb(0.22, 0.06, 0.06))
        w.paint(np.maximum(gap_hw, mid_hw - 0.055), rgb(0.90, 0.89, 0.85))


def _eye(view: View, side: float, look_x: float, look_y: float) -> None:
    p, skin = view.p, view.skin
    gap, y = 0.34 + 0.065 * p.eye_gap, -0.10 + 0.06 * p.eye_y
    wide, high = 0.155 + 0.035 * p.eye_width, (0.070 + 0.026 * p.eye_height) * view.squint
    iris, hue = 0.074 + 0.016 * p.iris_size, p.iris_hue
    tint = rgb(0.25, 0.45, 0.25) if hue > 0 else rgb(0.25, 0.45, 0.75)
    tint = mix(rgb(0.30, 0.18, 0.08), tint, abs(hue)) * (0.4 + 0.9 * (0.5 + 0.5 * p.iris_light))
    w = view.face(side * gap, y, wide + 0.05, high + 0.09)
    u_hw = w.u_hw * side
    v_hw = w.v_hw + 0.20 * p.eye_tilt * u_hw
    bow_hw = 1.0 - (u_hw / wide) ** 2
    lens_hw = np.abs(v_hw) - high * bow_hw
    w.paint(lens_hw - (0.012 + 0.010 * p.lid), skin * 0.35, 1.6, 0.8)
    crease_hw = w.cover(np.abs(v_hw + (high + 0.035) * bow_hw) - 0.008, 1.5)
    w.blend(crease_hw * (bow_hw > 0) * 0.4, skin * 0.5)
    white_hw = w.cover(lens_hw)
    w.blend(white_hw, rgb(0.93, 0.92, 0.90))
    round_hw = ellipse(w.u_hw - look_x, w.v_hw - look_y)
    w.blend(np.minimum(white_hw, w.cover(round_hw - iris)), tint)
    w.blend(np.minimum(white_hw, w.cover(round_hw - 0.42 * iris)), rgb(0.03, 0.03, 0.03))
    thick, length = 0.048 + 0.028 * p.brow_thick, 0.20 + 0.05 * p.brow_length
    brow_y = y - high - 0.15 - 0.05 * p.brow_gap - 0.035 * view.brow_raise
    slope, arch = 0.30 * p.brow_angle - 0.08 * view.brow_raise, 2.2 + 2.2 * p.brow_curve
    w = view.face(side * (gap + 0.02), brow_y, length, thick + 0.10, 0.03)
    u_hw = w.u_hw * side
    along_hw = u_hw / length
    line_hw = arch * u_hw * u_hw - 0.035 - slope * u_hw
    body_hw = thick * (1.0 - 0.55 * along_hw) * (1.0 - along_hw**4)
    stroke_hw = w.cover(np.abs(w.v_hw - line_hw) - body_hw * 0.8, 1.4) * (np.abs(along_hw) < 1)
    w.blend(stroke_hw, mix(skin, view.hair * 0.75, 0.70 + 0.28 * p.brow_dark))


def _hair_front(view: View) -> None:
    p = view.p
    w = view.flat(0.04 * view.sin_yaw, -0.2, 1.3, 1.4)
    u_hw, v_hw = w.u_hw, w.v_hw - 0.2
    volume = 0.07 + 0.06 * p.hair_volume
    out_hw = ellipse(u_hw, v_hw, view.width + 0.6 * volume + 0.02, view.height + volume)
    shift_hw = u_hw - 0.42 * view.sin_yaw
    line = -0.62 - 0.22 * p.hairline + 0.05 * view.spread() + 0.42 * view.sin_pitch
    part = 0.28 * p.hair_part + 0.05 * view.spread()
    peak = 0.30 + 0.50 * p.hair_peak
    temple_hw = 2.2 * np.clip(np.abs(u_hw) - (view.width - 0.22), 0, 1)
    edge_hw = v_hw - line - part * shift_hw - peak * shift_hw * shift_hw - temple_hw
    wave = 0.015 + 0.02 * view.roll()
    edge_hw += wave * np.sin(u_hw * (18 + 14 * view.roll()) + 6.28 * view.roll())
    cover_hw = w.cover(np.maximum((out_hw - 1.0) * 0.8, edge_hw), 1.5) * (v_hw < 0.35)
    w.blend(cover_hw, view.hair)
    across_hw, down_hw = shift_hw * (30 + 20 * view.roll()), v_hw * (12 * view.spread())
    streak_hw = np.sin(across_hw + down_hw + 6.28 * view.roll())
    w.blend(cover_hw * np.clip(streak_hw, 0, 1) * 0.35, view.hair * 1.45)


def _light(view: View) -> None:
    """Shade the head as an ellipsoid under one lamp and an uneven ambient light."""
    left, up = 1.5 * view.spread(), 0.3 + 0.9 * view.spread()
    size = math.sqrt(left * left + up * up + 0.55)
    hard = 0.15 + 0.50 * view.roll()
    w = view.flat(0.0, 0.0, 3.0, 3.0)
    x_hw, y_hw = w.u_hw * (0.85 / view.width), w.v_hw * (0.8 / view.height)
    flat_hw = np.maximum(1.0 - x_hw * x_hw - y_hw * y_hw, 0.04)
    lamp_hw = x_hw * (left / size) - y_hw * (up / size) + np.sqrt(flat_hw) * (0.74 / size)
    shade_hw = (1.12 - hard) + (1.25 * hard) * np.clip(lamp_hw, 0.0, 1.0)
    uneven = view.rolls(25).reshape(5, 5) * 0.40 + 0.80
    w.part *= shade_hw * field(uneven)[w.where]


def _occlude(view: View) -> None:
    kind, tone = view.roll(), view.rolls(3)
    shift, size = view.spread(), view.roll()
    if kind < 0.10:  # sunglasses, clear glasses
        dark = kind < 0.04
        room, dim = (0.0, 0.25) if dark else (0.02, 0.5)
        for side in _SIDES:
            w = view.face(side * 0.35, -0.08, 0.30 + room, 0.24 + room, 0.10)
            lens_hw = ellipse(w.u_hw, w.v_hw, 1.25)
            rim_hw = lens_hw - 0.20 if dark else np.abs(lens_hw - (0.16 + 0.06 * size)) - 0.018
            w.paint(rim_hw, tone * dim)
    elif kind < 0.13:  # mask over mouth and nose
        w = view.face(0.0, 0.62, 0.75, 0.48, 0.08)
        w.paint((np.sqrt((w.u_hw / 0.68) ** 4 + (w.v_hw / 0.42) ** 4) - 1.0) * 0.4, tone)
    elif kind < 0.20:  # a bar or a hand across a part of the face
        w = view.flat(0.85 * shift, 0.5 * size, 1.4, 1.6)
        lean = 1.4 * (view.roll() - 0.5)
        w.paint(np.abs(w.u_hw + lean * w.v_hw) - (0.10 + 0.14 * size), tone)


def _camera(view: View, bits: np.random.Philox) -> NDArray[np.uint8]:
    """Apply blur, noise, gain, white balance and gamma; return RGB (112, 112, 3)."""
    canvas, soft = view.canvas, view.roll()
    for _ in range(int(soft * soft * 5.0)):
        for one in (canvas, canvas.transpose(0, 2, 1)):  # down, then across
            one[:, 1:-1] += 0.25 * (one[:, :-2] + one[:, 2:] - 2.0 * one[:, 1:-1])
    grain = 0.01 + 0.05 * view.roll() ** 2
    words: Any = bits.random_raw(canvas.size // 4)
    noise = words.view(np.uint8).reshape(2, *canvas.shape)
    rough = np.add(noise[0], noise[1], dtype=np.float32)
    rough -= 255.0
    rough *= grain * 2.45 / 255.0
    canvas += rough
    index = np.clip(canvas * (_LEVELS - 1), 0, _LEVELS - 1).astype(np.uint16)
    gain, gamma, lift = 1.0 + 0.34 * view.spread(), 2.0 ** (0.45 * view.spread()), view.roll()
    picture = np.empty((SIDE, SIDE, 3), np.uint8)
    for channel, weight in enumerate((0.20, 0.06, 0.20)):
        tint = gain * (1.0 + weight * view.spread())
        curve = np.clip((_RAMP**gamma) * tint * (1.0 - 0.15 * lift) + 0.10 * lift, 0.0, 1.0)
        picture[:, :, channel] = (curve * 255.0 + 0.5).astype(np.uint8)[index[channel]]
    return picture
