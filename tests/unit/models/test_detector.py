"""Detectors as ONNX files: decoded by shapes, found in packs, refused when they are none."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from glint.errors import GlintError, InputError, UsageError
from glint.models import detector
from glint.shards.crops import TEMPLATE

Make = Callable[..., Path]


def scene(side: int, *faces: tuple[int, int, int, int]) -> np.ndarray:
    """Draw cells (row, column, red, blue) of 8 x 8 pixels on grey."""
    picture = np.full((side, side, 3), 120, np.uint8)
    for row, column, red, blue in faces:
        picture[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = red, 0, blue
    return picture


@pytest.mark.parametrize("side", [160, 0])
def test_faces_are_where_they_were_drawn(made_detector: Make, side: int) -> None:
    found = detector.open_detector(made_detector(side), size=(160, 160))
    assert (found.size, found.batch) == ((160, 160), 1 if side else detector.BATCH)
    pictures = [
        scene(160, (5, 6, 255, 255), (14, 3, 255, 102)),
        scene(160),
        scene(160, (9, 9, 255, 0)),
    ]
    two, none, one = found.find(pictures, 0.5)
    assert len(none.score) == 0 and len(one.score) == 1 and len(two.score) == 2
    halves = {(48, 40): 20.0, (24, 112): 10.4}
    for box, points in zip(two.box, two.points):
        x, y = (box[:2] + box[2:]) / 2
        half = halves[round(x), round(y)]
        assert box.tolist() == pytest.approx([x - half, y - half, x + half, y + half], abs=0.2)
        wanted = [x, y] + (TEMPLATE - 56) / 56 * half
        assert np.abs(points - wanted).max() < 0.2


def test_a_batch_is_as_one_by_one(made_detector: Make) -> None:
    found = detector.open_detector(made_detector(0), size=(160, 160))
    draw = np.random.default_rng(0)
    pictures = [
        scene(160, *[(*draw.integers(2, 18, 2), 255, draw.integers(0, 256)) for _ in range(3)])
        for _ in range(2 * detector.BATCH + 3)
    ]
    together = found.find(pictures, 0.3)
    for picture, faces in zip(pictures, together, strict=True):
        alone = found.find([picture], 0.3)[0]
        assert np.allclose(faces.box, alone.box) and np.allclose(faces.points, alone.points)


def test_a_picture_of_another_size_comes_back_in_its_own_pixels(made_detector: Make) -> None:
    """A factor of exactly two, and one that leaves a fraction of a pixel: each axis has its own."""
    found = detector.open_detector(made_detector())
    large = scene(320, (10, 20, 255, 255))
    large[80:96, 160:176] = 255, 0, 255
    faces = found.find([large], 0.5)[0]
    assert faces.box[0] == pytest.approx([120, 40, 200, 120], abs=0.5)
    _, across, down = detector.letterbox(np.zeros((333, 1000, 3), np.uint8), 640, 640)
    assert (across, down) == (0.64, 213 / 333)


def test_a_letterbox_is_opencvs() -> None:
    cv2 = pytest.importorskip("cv2")
    draw = np.random.default_rng(1)
    for high, wide in ((250, 250), (97, 311), (900, 400), (1200, 1600)):
        small = draw.integers(0, 256, (high // 6 + 2, wide // 6 + 2, 3), np.uint8)
        picture = cv2.resize(small, (wide, high), interpolation=cv2.INTER_CUBIC)
        canvas, across, down = detector.letterbox(picture, 640, 640)
        size = round(wide * across), round(high * down)
        wanted = cv2.resize(picture, size).astype(int)
        assert max(size) == 640 and canvas.shape == (3, 640, 640)
        assert np.abs(canvas[:, : size[1], : size[0]].transpose(1, 2, 0) - wanted).max() <= 2
        assert not canvas[:, size[1] :].any() and not canvas[..., size[0] :].any()


def test_boxes_that_overlap_as_brute_force_says() -> None:
    draw = np.random.default_rng(2)
    corner = draw.uniform(0, 60, (200, 2))
    box = np.concatenate([corner, corner + draw.uniform(5, 40, (200, 2))], 1).astype(np.float32)

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        wide = min(a[2], b[2]) - max(a[0], b[0]) + 1
        high = min(a[3], b[3]) - max(a[1], b[1]) + 1
        shared = max(wide, 0) * max(high, 0)
        area = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
        return float(shared / (sum(area) - shared))

    kept: list[int] = []
    for i in range(200):
        if all(overlap(box[i].astype(float), box[j].astype(float)) <= 0.4 for j in kept):
            kept.append(i)
    assert detector.apart(box) == kept and 5 < len(kept) < 100


def test_retinaface_outputs_as_its_formulas_say() -> None:
    """Priors of the paper's code: sides 16, 32 at stride 8 and so on, variances 0.1 and 0.2."""
    size, draw = (96, 64), np.random.default_rng(3)
    priors = []
    for stride, sides in ((8, (16, 32)), (16, (64, 128)), (32, (256, 512))):
        for i in range(-(-64 // stride)):
            for j in range(-(-96 // stride)):
                priors += [((j + 0.5) * stride, (i + 0.5) * stride, s) for s in sides]
    n = len(priors)
    outputs = [draw.uniform(0, 1, (1, n, k)).astype(np.float32) for k in (4, 2, 10)]
    decode, means = detector._decoder(outputs, size, Path("r.onnx"))
    assert means == (104, 117, 123)
    box, score, points = decode([one[0] for one in outputs], 0)
    assert (score == outputs[1][0, :, 1]).all()
    some = np.flatnonzero(score >= 0.7)
    assert (decode([one[0] for one in outputs], 0.7)[0] == box[some]).all() and 0 < len(some) < n
    for i in range(0, n, 7):
        x, y, side = priors[i]
        dx, dy, dw, dh = outputs[0][0, i].astype(float)
        cx, cy = x + 0.1 * dx * side, y + 0.1 * dy * side
        w, h = side * np.exp(0.2 * dw), side * np.exp(0.2 * dh)
        assert box[i] == pytest.approx(
            [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], rel=1e-3, abs=1e-2
        )
        mark = outputs[2][0, i].astype(float).reshape(5, 2)
        assert np.abs(points[i].reshape(5, 2) - ([x, y] + 0.1 * mark * side)).max() < 1e-2
    with pytest.raises(InputError, match="anchors"):
        detector._decoder([one[:, :-2] for one in outputs], size, Path("r.onnx"))


def test_outputs_of_five_strides_and_of_any_order() -> None:
    size, draw = (64, 64), np.random.default_rng(4)
    rows = [8 * 8, 4 * 4, 2 * 2, 1]
    outputs = [draw.uniform(0, 1, (m, k)).astype(np.float32) for k in (1, 4, 10) for m in rows]
    decode, _ = detector._decoder(outputs, size, Path("x"))
    order = draw.permutation(len(outputs))
    mixed, _ = detector._decoder([outputs[i] for i in order], size, Path("x"))
    for a, b in zip(decode(outputs, 0), mixed([outputs[i] for i in order], 0)):
        assert (a == b).all()
    box = decode(outputs, 0)[0]
    at = 64 + 5  # the sixth anchor of stride 16: row 1, column 1
    left, top, right, bottom = outputs[5][5] * 16
    assert box[at] == pytest.approx([16 - left, 16 - top, 16 + right, 16 + bottom])
    for wrong in (outputs[:8], outputs[:4], [one[:, :1] for one in outputs]):
        with pytest.raises(InputError, match="GL0401"):
            detector._decoder(wrong, size, Path("x"))


def test_packs_are_found_as_the_field_finds_them(
    made_detector: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "PACKS", tmp_path)
    with pytest.raises(UsageError, match="no such detector") as error:
        detector.located("")
    assert "buffalo_l" in str(error.value) and "none" in error.value.hint
    pack = tmp_path / "buffalo_l"
    pack.mkdir()
    with pytest.raises(InputError, match="none of its"):
        detector.located("")
    shutil.copy(made_detector(), pack / "det_10g.onnx")
    assert detector.located("") == (pack / "det_10g.onnx", detector.Reading())
    assert detector.packs() == [pack]
    digest = hashlib.sha256((pack / "det_10g.onnx").read_bytes()).hexdigest()
    task = {"file": "det_10g.onnx", "sha256": digest}
    (pack / "manifest.json").write_text(
        json.dumps({"manifest_version": 2, "tasks": {"detection": task}})
    )
    file, reading = detector.located(str(pack))
    assert (reading.mean, reading.std) == detector.PIXELS
    assert detector.open_detector(*detector.located("buffalo_l")).name == file.name
    task["sha256"] = "0" * 64
    (pack / "manifest.json").write_text(
        json.dumps({"manifest_version": 2, "tasks": {"detection": task}})
    )
    with pytest.raises(InputError, match="sha256"):
        detector.located("buffalo_l")


def test_what_is_no_detector_is_refused(tmp_path: Path, made_detector: Make) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(GlintError, match=r"GL0401.*does not load it"):
        detector.open_detector(tmp_path / "x.onnx")
    with pytest.raises(UsageError, match="multiples of 32"):
        detector.open_detector(made_detector(0), size=(100, 640))
    for wrong in ([0.5, np.nan], [0.2, 7], [-3, 0.1]):
        with pytest.raises(InputError, match="scores from 0 to 1"):
            detector._good(np.float32(wrong), 0.1, tmp_path)
