"""Geometry of crops, against brute force and libraries that share no code with it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from glint.shards import crops, pixels


def turned(
    points: np.ndarray, scale: float, degrees: float, shift: tuple[float, float]
) -> np.ndarray:
    a = np.radians(degrees)
    rotation = scale * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    return points @ rotation.T + shift


def test_a_similarity_is_the_inverse_of_the_one_that_moved_the_template() -> None:
    for scale, degrees, shift in ((1, 0, (0, 0)), (3.7, 140, (900, -30)), (0.05, -77, (4, 4))):
        points = turned(crops.TEMPLATE, scale, degrees, shift)
        matrix = crops.similarity(points)
        back = points @ matrix[:, :2].T + matrix[:, 2]
        assert np.abs(back - crops.TEMPLATE).max() < 1e-9
        assert np.hypot(matrix[0, 0], matrix[1, 0]) == pytest.approx(1 / scale)


def test_no_similarity_nearby_is_better() -> None:
    """Umeyama's is the least squares: brute force around it finds nothing better."""
    draw = np.random.default_rng(0)
    points = turned(crops.TEMPLATE, 2, 20, (50, 60)) + draw.normal(0, 6, (5, 2))
    best = crops.similarity(points)

    def error(matrix: np.ndarray) -> float:
        return float(((points @ matrix[:, :2].T + matrix[:, 2] - crops.TEMPLATE) ** 2).sum())

    a, b, x, y = best[0, 0], best[1, 0], best[0, 2], best[1, 2]
    for step in draw.normal(0, 1, (3000, 4)) * [0.01, 0.01, 1, 1]:
        c, d, u, v = np.array([a, b, x, y]) + step
        assert error(np.array([[c, -d, u], [d, c, v]])) >= error(best)


def test_a_similarity_is_scikit_images() -> None:
    transform = pytest.importorskip("skimage.transform")
    draw = np.random.default_rng(1)
    for _ in range(50):
        points = turned(crops.TEMPLATE, 10 ** draw.uniform(-1, 1), draw.uniform(-180, 180), (9, 8))
        points += draw.normal(0, 3, (5, 2))
        wanted = transform.SimilarityTransform.from_estimate(points, crops.TEMPLATE)
        assert np.abs(crops.similarity(points) - wanted.params[:2]).max() < 1e-6


def test_points_that_coincide_give_none() -> None:
    for points in (np.full((5, 2), 7.0), np.full((5, 2), np.nan)):
        with pytest.raises(ValueError, match="coincide"):
            crops.similarity(points)


@pytest.mark.parametrize("degrees, scale", [(0, 1.0), (33, 0.9), (-120, 0.31), (4, 0.7)])
def test_a_warp_is_opencvs_where_nothing_is_averaged(degrees: float, scale: float) -> None:
    cv2 = pytest.importorskip("cv2")
    draw = np.random.default_rng(2)
    picture = draw.integers(0, 256, (301, 407, 3), np.uint8)
    matrix = crops.similarity(turned(crops.TEMPLATE, scale, degrees, (220, 140)))
    wanted = cv2.warpAffine(picture, matrix, (112, 112), borderValue=0.0)
    for antialias in (True, False):
        made = crops.cut(picture, matrix, antialias)
        assert made.dtype == np.uint8 and made.shape == (112, 112, 3)
        assert np.abs(made.astype(int) - wanted).max() <= 1


def test_what_lies_outside_is_black() -> None:
    white = np.full((60, 60, 3), 255, np.uint8)
    for antialias in (True, False):
        for scale in (0.4, 1.0, 5.0):
            matrix = crops.similarity(turned(crops.TEMPLATE, scale, 0, (-5000, 20)))
            assert not crops.cut(white, matrix, antialias).any()
    matrix = np.array([[1.0, 0, 20], [0, 1, 30]])
    made = crops.cut(white, matrix)
    assert made[30:90, 20:80].min() == 255 and int(made.sum()) == 60 * 60 * 3 * 255


def test_shrinking_averages_all_pixels() -> None:
    """A picture of single white pixels keeps its mean; a plain warp sees a few of them or none."""
    picture = np.zeros((1120, 1120, 3), np.uint8)
    picture[3::7, 2::7] = 255
    matrix = np.array([[0.1, 0, -0.45], [0, 0.1, -0.45]])  # to the centre of 10 x 10 pixels
    mean = picture.mean()
    made = crops.cut(picture, matrix)
    assert made.mean() == pytest.approx(mean, abs=0.6)
    wanted = picture.reshape(112, 10, 112, 10, 3).mean((1, 3))
    assert np.abs(made - wanted).max() <= 0.5001
    assert abs(crops.cut(picture, matrix, antialias=False).astype(float) - wanted).max() > 50


def test_averaging_sees_the_whole_picture_around_a_crop() -> None:
    """Cut out of the middle of an even picture, no edge of what was averaged shows."""
    even = np.full((1500, 1700, 3), 200, np.uint8)
    for degrees, scale in ((0, 2.0), (31, 3.4), (-80, 5.6)):
        matrix = crops.similarity(turned(crops.TEMPLATE, scale, degrees, (700, 700)))
        made = crops.cut(even, matrix)
        x, y = np.linalg.inv(matrix[:, :2]) @ (
            np.mgrid[:112, :112].reshape(2, -1)[::-1] - matrix[:, 2:]
        )
        inside = (x >= 9) & (y >= 9) & (x < 1690) & (y < 1490)
        assert inside.mean() > 0.9 and (made.reshape(-1, 3)[inside] == 200).all()


def test_angles_of_a_head_that_was_turned() -> None:
    head = np.column_stack([crops.TEMPLATE - crops.TEMPLATE.mean(0), crops._DEPTH])
    for yaw, pitch, roll in ((0, 0, 0), (30, 0, 0), (-25, 10, 15), (5, -20, -40), (40, 15, 100)):
        y, p, r = np.radians([yaw, -pitch, roll])
        turn = (
            np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
            @ np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
            @ np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
        )
        points = 2.5 * (head @ turn.T)[:, :2] + [300, 200]
        assert crops.angles(points) == pytest.approx((yaw, pitch, roll), abs=1e-6)
    nose_right = crops.TEMPLATE + np.array([[0, 0], [0, 0], [8, 0], [0, 0], [0, 0]])
    assert crops.angles(nose_right)[0] > 15
    nose_down = crops.TEMPLATE + np.array([[0, 0], [0, 0], [0, 5], [0, 0], [0, 0]])
    assert crops.angles(nose_down)[1] > 5


def test_blur_and_brightness_are_opencvs() -> None:
    cv2 = pytest.importorskip("cv2")
    picture = np.random.default_rng(3).integers(0, 256, (112, 112, 3), np.uint8)
    grey = cv2.cvtColor(picture.astype(np.float32), cv2.COLOR_RGB2GRAY)
    assert crops.blur(picture) == pytest.approx(cv2.Laplacian(grey, cv2.CV_32F).var(), rel=1e-4)
    assert crops.brightness(picture) == pytest.approx(float(grey.mean()), abs=1e-3)
    soft = cv2.GaussianBlur(picture, (0, 0), 2)
    assert crops.blur(soft) < crops.blur(picture) / 10


def test_displacement_of_a_crop() -> None:
    assert crops.displacement(crops.TEMPLATE) < 1e-9
    assert crops.displacement(crops.TEMPLATE + [8, 0]) == pytest.approx(8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_pillow_turns(orientation: int) -> None:
    from PIL import ImageOps

    picture = np.random.default_rng(4).integers(0, 256, (5, 7, 3), np.uint8)
    image = Image.fromarray(picture)
    image.getexif()[0x0112] = orientation
    wanted = np.asarray(ImageOps.exif_transpose(image))
    assert (pixels.turned(picture, orientation) == wanted).all()
