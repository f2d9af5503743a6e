"""An aligned crop from a photograph: the field's template, similarity, warp, and what it measures.

Points are (x, y) in pixels, the centre of the first pixel at (0, 0): left eye, right eye, nose,
left and right corner of the mouth, as seen in the picture.
"""

# n faces, H W height and width, k the whole number of pixels that become one

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from glint.shards.pixels import Pixels

Floats = npt.NDArray[np.float64]

SIDE = 112
SHAPE = (SIDE, SIDE, 3)
# Where the five points of an aligned face lie (Deng et al. 2019, ArcFace, as insightface has it).
TEMPLATE: Floats = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366],
     [41.5493, 92.3655], [70.7299, 92.2041]]
)  # fmt: skip
# Depths of the same points, towards the viewer, in pixels of the template: a nose of 25 mm and a
# mouth of 5 mm before the eyes, whose centres are 63 mm apart. No measured head: angles are rough.
_DEPTH = np.array([0.0, 0.0, 14.0, 2.8, 2.8])
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def similarity(points_52: Floats) -> Floats:
    """Return the similarity (2, 3) that brings five points nearest to the template.

    The least squares of Umeyama (1991, eq. 40-42) in closed form: in the plane, a similarity is one
    complex factor and a shift. Raises ValueError where the points coincide.
    """
    points_5, wanted_5 = points_52 @ [1, 1j], TEMPLATE @ [1, 1j]
    middle, centre = points_5.mean(), wanted_5.mean()
    spread = float((np.abs(points_5 - middle) ** 2).sum())
    factor = complex((np.conj(points_5 - middle) * (wanted_5 - centre)).sum())
    if not spread > 1e-6 or not abs(factor) > 1e-6:
        raise ValueError("the five points coincide")
    factor /= spread
    shift = centre - factor * middle
    return np.array(
        [[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]]
    )


def cut(picture_HW3: Pixels, matrix_23: Floats, antialias: bool = True) -> Pixels:
    """Warp a picture into a crop of SIDE x SIDE; what lies outside the picture is black.

    Bilinear, as the field does. antialias: a picture that shrinks k times (rounded, 1.5 and more)
    is averaged over k x k pixels before, so that none is skipped.
    """
    inner_22 = np.linalg.inv(matrix_23[:, :2])
    steps = np.arange(SIDE, dtype=np.float64)
    grid_2 = [axis.ravel() for axis in np.meshgrid(steps, steps)]
    x_m, y_m = inner_22 @ (np.stack(grid_2) - matrix_23[:, 2:])
    height, width = picture_HW3.shape[:2]
    k = max(round(float(np.hypot(*inner_22[0]))), 1) if antialias else 1
    left, right = _reach(x_m, width, k)
    top, bottom = _reach(y_m, height, k)
    part: npt.NDArray[Any] = picture_HW3[top:bottom, left:right]
    x_m, y_m = x_m - left, y_m - top
    if k > 1:
        part = _averaged(part, k)
        x_m, y_m = ((axis + 0.5) / k - 0.5 for axis in (x_m, y_m))
    return _bilinear(part, x_m, y_m).reshape(SHAPE)


def _reach(axis_m: Floats, size: int, k: int) -> tuple[int, int]:
    """Return [start, stop) of the pixels that an axis of the crop touches, in squares of k."""
    start = min(max(int(axis_m.min()) - k, 0), size) // k * k
    return start, max(min(int(axis_m.max()) + 2 * k + 2, size), start)


def _averaged(part_HW3: npt.NDArray[np.uint8], k: int) -> npt.NDArray[np.float32]:
    """Return the means of k x k pixels; black where a square reaches over the end."""
    height, width = part_HW3.shape[:2]
    padded = np.pad(part_HW3, ((0, -height % k), (0, -width % k), (0, 0)))
    squares = padded.reshape(len(padded) // k, k, -1, k, 3)
    return np.asarray(squares.sum(axis=(1, 3), dtype=np.float32) / np.float32(k * k))


def _bilinear(part_HW3: npt.NDArray[Any], x_m: Floats, y_m: Floats) -> Pixels:
    """Sample a picture at points, uint8 [m, 3]; black pixels surround it."""
    height, width = part_HW3.shape[:2]
    padded = np.zeros((height + 2, width + 2, 3), np.float32)
    padded[1:-1, 1:-1] = part_HW3
    x_m, y_m = np.clip(x_m + 1, 0, width + 0.999999), np.clip(y_m + 1, 0, height + 0.999999)
    column, row = x_m.astype(np.int64), y_m.astype(np.int64)
    right, down = ((a - b).astype(np.float32)[:, None] for a, b in ((x_m, column), (y_m, row)))
    flat, at = padded.reshape(-1, 3), row * (width + 2) + column
    upper = flat[at] * (1 - right) + flat[at + 1] * right
    at += width + 2
    lower = flat[at] * (1 - right) + flat[at + 1] * right
    return np.asarray(np.rint(upper * (1 - down) + lower * down), np.uint8)


def displacement(points_52: Floats) -> float:
    """Return by how many pixels aligning a picture of SIDE x SIDE would move it, on average.

    Nearly 0 for a crop that is aligned already, however its face is turned.
    """
    matrix_23 = similarity(points_52)
    moved_52 = TEMPLATE @ matrix_23[:, :2].T + matrix_23[:, 2]
    return float(np.hypot(*(moved_52 - TEMPLATE).T).mean())


def angles(points_52: Floats) -> tuple[float, float, float]:
    """Return yaw, pitch and roll of a head in degrees, roughly, from its five points.

    Positive where the face looks to the right of the picture, looks down, and is turned clockwise.
    A generic head, the template with depths, in scaled orthographic projection (DeMenthon and Davis
    1995, POS), turned by pitch, then yaw, then roll; a frontal face has 0, 0, 0.
    """
    head_53 = np.column_stack([TEMPLATE - TEMPLATE.mean(0), _DEPTH - _DEPTH.mean()])
    rows_23 = np.linalg.lstsq(head_53, points_52 - points_52.mean(0), rcond=None)[0].T
    across, down = rows_23 / np.maximum(np.linalg.norm(rows_23, axis=1, keepdims=True), 1e-12)
    away = np.cross(across, down)
    yaw = np.arcsin(np.clip(-away[0], -1, 1))
    turned = np.degrees([yaw, -np.arctan2(away[1], away[2]), np.arctan2(down[0], across[0])])
    return float(turned[0]), float(turned[1]), float(turned[2])


def blur(crop_HW3: Pixels) -> float:
    """Return the variance of the Laplacian of a crop's grey (Pech-Pacheco et al. 2000).

    The smaller, the more blurred; it depends on what is shown as well.
    """
    grey = np.pad(crop_HW3 @ _LUMA, 1, mode="reflect")
    sides = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((sides - 4 * grey[1:-1, 1:-1]).var())


def brightness(crop_HW3: Pixels) -> float:
    """Return the mean grey of a crop, 0 to 255."""
    return float((crop_HW3 @ _LUMA).mean())
