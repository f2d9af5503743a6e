"""Face detectors with five points, by onnxruntime alone: SCRFD and RetinaFace as ONNX files.

Decoded by the shapes of the outputs, so that any file of these two families serves. No model is
ever downloaded: a path, or a pack where insightface's FaceAnalysis looks for it.
"""

# n faces, N anchors, H W height and width, b pictures of a batch

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glint.errors import GlintError, InputError, UsageError
from glint.files import reads
from glint.models import checkpoint, onnx_file
from glint.models.onnx_file import Reading
from glint.models.recogniser import EXTRA, TYPES, session

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Found = tuple[Floats, Floats, Floats]  # boxes, scores, points
Decode = Callable[[list[Floats], float], Found]  # those that score so much or more

PACKS = Path("~/.insightface/models")
DEFAULT = "buffalo_l"  # as FaceAnalysis
PIXELS = (127.5, 128.0)  # mean and std of SCRFD
MEANS = (104.0, 117.0, 123.0)  # of RetinaFace: blue, green, red
OVERLAP = 0.4  # from here on, of two boxes the better one stays
_OUTSIDE = b"\x0a\x08location"  # how an ONNX file says that a tensor lies elsewhere
BATCH = 8  # pictures together where the file takes any number


@dataclass(frozen=True)
class Faces:
    """Faces of a picture, the best score first, in its pixels.

    box float32 [n, 4]: left, top, right, bottom; score [n]; points [n, 5, 2]: x, y of the left eye,
    the right eye, the nose and both corners of the mouth, as seen in the picture.
    """

    box: Floats
    score: Floats
    points: Floats

    def moved(self, by: float) -> Faces:
        """Return them with `by` added to all coordinates."""
        return Faces(self.box + np.float32(by), self.score, self.points + np.float32(by))


@dataclass(frozen=True)
class Detector:
    """A face detector. digest: SHA-256 of its file; size: width, height; batch: pictures a run."""

    name: str
    digest: str
    size: tuple[int, int]
    batch: int
    _run: Callable[[Sequence[Pixels], float], list[Found]]

    def find(self, pictures: Sequence[Pixels], least: float) -> list[Faces]:
        """Find the faces of pictures (uint8 RGB, any size) that score `least` or more.

        Of two boxes that overlap by more than OVERLAP, the better one stays. Raises InputError
        GL0401 where the scores are no probabilities.
        """
        found: list[Faces] = []
        for at in range(0, len(pictures), self.batch):
            some = pictures[at : at + self.batch]
            placed = [letterbox(one, *self.size) for one in some]
            made = self._run([canvas for canvas, _, _ in placed], least)
            for one, (_, across, down) in zip(made, placed):
                found.append(_kept(*one, np.array([across, down], np.float32)))
        return found


def _kept(box_n4: Floats, score_n: Floats, points_n10: Floats, scale_2: Floats) -> Faces:
    """Return those that no better one overlaps, the best first, in pixels of the picture."""
    order = np.argsort(-score_n, kind="stable")
    box_n4 = np.asarray(box_n4[order] / np.tile(scale_2, 2), np.float32)
    points_n52 = np.asarray(points_n10[order].reshape(-1, 5, 2) / scale_2, np.float32)
    kept = [i for i in apart(box_n4) if np.isfinite(points_n52[i]).all()]
    return Faces(box_n4[kept], score_n[order[kept]], points_n52[kept])


def letterbox(picture_HW3: Pixels, width: int, height: int) -> tuple[Pixels, float, float]:
    """Fit a picture into the upper left of a black canvas [3, H, W]; return it and both scales.

    Bilinear between the nearest four pixels, also where it shrinks, as FaceAnalysis does it: its
    detectors were trained on that. The scales are those of the whole pixels that it becomes.
    """
    from PIL import Image

    high, wide = picture_HW3.shape[:2]
    if high * width > wide * height:
        new_wide, new_high = max(int(height / (high / wide)), 1), height
    else:
        new_wide, new_high = width, max(int(width * (high / wide)), 1)
    canvas = np.zeros((3, height, width), np.uint8)
    part, size = canvas[:, :new_high, :new_wide], (new_wide, new_high)
    across, down = new_wide / wide, new_high / high
    how = Image.Resampling.BILINEAR
    if min(across, down) >= 1:  # a plane at a time is quicker, where planes are small
        for plane, out in zip(picture_HW3.transpose(2, 0, 1), part):
            out[:] = np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(size, how))
    else:
        step = (1 / across, 0.0, 0.0, 0.0, 1 / down, 0.0)
        image = Image.fromarray(picture_HW3).transform(size, Image.Transform.AFFINE, step, how)
        part[:] = np.asarray(image).transpose(2, 0, 1)
    return canvas, across, down


def apart(box_n4: Floats) -> list[int]:
    """Return the boxes that no better one overlaps by more than OVERLAP; the best come first.

    Sides count the pixel that a box ends with, as the field's code does.
    """
    left, top, right, bottom = box_n4.T.astype(np.float64)
    area = (right - left + 1) * (bottom - top + 1)
    open_n, kept = np.ones(len(box_n4), bool), list[int]()
    for i in range(len(box_n4)):
        if not open_n[i]:
            continue
        kept.append(i)
        wide = np.minimum(right, right[i]) - np.maximum(left, left[i]) + 1
        high = np.minimum(bottom, bottom[i]) - np.maximum(top, top[i]) + 1
        shared = np.maximum(wide, 0) * np.maximum(high, 0)
        open_n &= shared <= OVERLAP * (area + area[i] - shared)
    return kept


def packs() -> list[Path]:
    """Return the folders of detector packs where FaceAnalysis looks for them."""
    folder = PACKS.expanduser()
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [one for one in inside if one.is_dir() and any(one.glob("*.onnx"))]


def located(detector: str) -> tuple[Path, Reading]:
    """Return the file of a detector and how its pack reads it.

    detector: an ONNX file, a folder of a pack, or the name of one in PACKS, "" for DEFAULT. A pack
    of version 2 names its detector; of another, it is the first file with five outputs or more, in
    the order of names, as FaceAnalysis takes it. Raises UsageError GL0001, GL0003, InputError
    GL0401.
    """
    path = Path(detector or DEFAULT).expanduser()
    if not path.exists() and path.name == str(path):
        path = PACKS.expanduser() / path
    if path.is_file():
        return path, Reading()
    if not path.is_dir():
        there = ", ".join(one.name for one in packs()) or "none"
        hint = "--detector takes an ONNX file (SCRFD, RetinaFace), or a pack's folder or name; "
        hint += f"packs in {PACKS}: {there}. glint downloads no model"
        raise UsageError("GL0001", "no such detector", where=str(path), hint=hint)
    if (found := onnx_file.package(path, "detection", PIXELS)) is not None:
        return found
    _require("onnx")
    for file in sorted(path.glob("*.onnx")):
        if len(onnx_file.loaded(file, "detector").graph.output) >= 5:
            return file, Reading()
    raise _bad(path, "none of its .onnx files has the outputs of a detector")


def _require(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UsageError("GL0003", f"a detector needs {module}", hint=EXTRA)


def open_detector(
    path: Path,
    reading: Reading = Reading(),  # noqa: B008
    *,
    size: tuple[int, int] = (640, 640),
    threads: int | None = None,
    device: str | None = None,
) -> Detector:
    """Open a detector's file, as `located` returns it; without the onnx package, which is slow.

    size: width and height of what it sees, where the file leaves them open. threads, device: as
    `recogniser.open_model` takes them. Raises UsageError GL0002, GL0003, InputError GL0401 for a
    file that is no detector with five points, or keeps weights in other files.
    """
    _require("onnxruntime")
    if why := reads.stand_in(path):
        raise _bad(path, f"expected an ONNX detector, found {why}")
    if _OUTSIDE in path.read_bytes():
        raise _bad(path, "its weights lie in other files: make it one file, with onnx.save")
    opened = session(path, None, threads, device)
    if (device or "").startswith("cuda") and opened.get_providers()[0] == "CPUExecutionProvider":
        what = "onnxruntime could not start cuda, and would go on without a word on the CPU"
        raise UsageError("GL0002", what, where="--device", hint="use --device cpu")
    taken = opened.get_inputs()
    shape = taken[0].shape if taken else []
    if len(taken) != 1 or len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
        raise _bad(path, f"expected one input (b, 3, height, width), found {shape}")
    high, wide = (n if isinstance(n, int) and n > 0 else s for n, s in zip(shape[2:], size[::-1]))
    size = int(wide), int(high)
    if size[0] % 32 or size[1] % 32:
        if isinstance(shape[2], int) and isinstance(shape[3], int):
            raise _bad(
                path, f"it takes {size[0]}x{size[1]} pixels, no multiples of 32: no detector"
            )
        raise UsageError("GL0002", f"expected multiples of 32, found {size[0]}x{size[1]}",
                         where="--input-size")  # fmt: skip
    kind = TYPES.get(taken[0].type, np.float32)
    names = [one.name for one in opened.get_outputs()]

    def run(blob_b: npt.NDArray[Any]) -> list[Floats]:
        return [np.asarray(one, np.float32) for one in opened.run(names, {taken[0].name: blob_b})]

    try:
        probe = run(np.zeros((1, 3, size[1], size[0]), kind))
    except Exception as error:  # onnxruntime's errors share no base class
        raise _bad(path, f"it does not run: {str(error)[:300]}") from None
    decode, own = _decoder(probe, size, path)
    mean = PIXELS[0] if reading.mean is None else reading.mean
    std = PIXELS[1] if reading.std is None else reading.std
    shift = np.array([mean] * 3 if own is None else own[::-1], np.float32).reshape(3, 1, 1)
    scale = np.float32(std if own is None else 1)
    flip = slice(None) if own is None else slice(None, None, -1)  # RetinaFace takes blue first
    batch = _batch(run, kind, shape[0], probe, size)

    def pictures(canvases: Sequence[Pixels], least: float) -> list[Found]:
        blob = np.empty((len(canvases), 3, size[1], size[0]), np.float32)
        for one, canvas in zip(blob, canvases):
            np.subtract(canvas, shift, out=one)
            one /= scale
        outputs = run(np.ascontiguousarray(blob[:, flip]).astype(kind, copy=False))
        if batch == 1:
            return [decode([_flat(one) for one in outputs], least)]
        return [decode([one[i] for one in outputs], least) for i in range(len(canvases))]

    return Detector(path.name, checkpoint.sha256(path), size, batch, pictures)


def _good(score_N: Floats, least: float, path: Path) -> npt.NDArray[np.int64]:
    """Return which scores are `least` or more. Raises InputError GL0401."""
    if len(score_N) and not (score_N.min() >= -1e-4 and score_N.max() <= 1.0001):
        what = f"expected scores from 0 to 1, found {score_N.min():g} to {score_N.max():g}"
        raise InputError("GL0401", what, where=str(path))
    return np.flatnonzero(score_N >= least)


def _flat(output: Floats) -> Floats:
    return output.reshape(-1, output.shape[-1])


def _batch(
    run: Callable[[Any], list[Floats]],
    kind: Any,
    said: Any,
    probe: list[Floats],
    size: tuple[int, int],
) -> int:
    """Return how many pictures a run takes: by trying two where the file leaves it open."""
    if isinstance(said, int) and said > 0:
        return 1
    try:
        two = run(np.zeros((2, 3, size[1], size[0]), kind))
    except Exception:
        return 1
    apart = all(a.ndim == 3 and a.shape == (2, *b.shape[1:]) for a, b in zip(two, probe))
    return BATCH if apart else 1


def _decoder(
    probe: list[Floats], size: tuple[int, int], path: Path
) -> tuple[Decode, tuple[float, float, float] | None]:
    """Return what decodes the outputs of one picture, by their shapes; RetinaFace's means."""
    columns = [one.shape[-1] if one.ndim in (2, 3) else 0 for one in probe]
    rows = [one.size // max(one.shape[-1], 1) for one in probe]
    if sorted(columns) == [2, 4, 10] and len({*rows}) == 1:
        places = [columns.index(k) for k in (4, 2, 10)]
        return _retinaface(places, rows[0], size, path), MEANS
    places = sorted(range(len(probe)), key=lambda i: (columns[i], -rows[i]))
    levels = len(probe) // 3
    wanted = [1] * levels + [4] * levels + [10] * levels
    if levels not in (3, 4, 5) or [columns[i] for i in places] != wanted:
        shapes = ", ".join(str(one.shape) for one in probe)
        what = "expected scores, boxes and five points at 3 to 5 strides (SCRFD), or all of them "
        raise _bad(path, f"{what}in three outputs (RetinaFace), found {shapes}")
    centres, strides = list[Floats](), list[Floats]()
    for level in range(levels):
        stride, count = 8 << level, rows[places[level]]
        high, wide = size[1] // stride, size[0] // stride
        anchors = count // max(high * wide, 1)
        same = {rows[places[level + k * levels]] for k in range(3)}
        if same != {high * wide * anchors} or not anchors:
            raise _bad(path, f"{count} anchors do not fit a stride of {stride} at {wide} x {high}")
        grid = np.stack(np.meshgrid(np.arange(wide), np.arange(high)), -1).reshape(-1, 2) * stride
        centres.append(np.repeat(grid, anchors, axis=0).astype(np.float32))
        strides.append(np.full((count, 1), stride, np.float32))
    centre_N2, stride_N1 = np.concatenate(centres), np.concatenate(strides)
    away = np.array([-1, -1, 1, 1], np.float32)

    def decode(outputs: list[Floats], least: float) -> Found:
        """Distances from an anchor's centre, in strides (Guo et al. 2022, SCRFD)."""
        score_N1, box_N4, points_N10 = (
            np.concatenate([outputs[places[k * levels + level]] for level in range(levels)])
            for k in range(3)
        )
        good = _good(score_N1[:, 0], least, path)
        centre, stride = centre_N2[good], stride_N1[good]
        corner_n4: Floats = np.tile(centre, 2) + box_N4[good] * stride * away
        mark_n10 = np.tile(centre, 5) + points_N10[good] * stride
        return corner_n4, score_N1[good, 0], np.asarray(mark_n10, np.float32)

    return decode, None


def _retinaface(places: list[int], n: int, size: tuple[int, int], path: Path) -> Decode:
    """Decode offsets from priors of two sizes at three strides (Deng et al. 2020, RetinaFace)."""
    priors = list[Floats]()
    for stride, sides in ((8, (16, 32)), (16, (64, 128)), (32, (256, 512))):
        wide, high = -(-size[0] // stride), -(-size[1] // stride)
        grid = np.stack(np.meshgrid(np.arange(wide), np.arange(high)), -1).reshape(-1, 1, 2)
        centre = np.repeat((grid + 0.5) * stride, 2, axis=1).reshape(-1, 2)
        side = np.tile(np.repeat([sides], 2, axis=0).T, (wide * high, 1))
        priors.append(np.concatenate([centre, side], 1).astype(np.float32))
    prior_N4 = np.concatenate(priors)
    if len(prior_N4) != n:
        raise _bad(path, f"expected {len(prior_N4)} anchors at {size[0]} x {size[1]}, found {n}")
    centre_N2, side_N2 = prior_N4[:, :2], prior_N4[:, 2:]

    def decode(outputs: list[Floats], least: float) -> Found:
        good = _good(outputs[places[1]][:, 1], least, path)
        offset, score, points = (outputs[i][good] for i in places)
        centre, side = centre_N2[good], side_N2[good]
        middle = centre + offset[:, :2] * np.float32(0.1) * side
        half = side * np.exp(offset[:, 2:] * np.float32(0.2)) / 2
        points = np.tile(centre, 5) + points * np.float32(0.1) * np.tile(side, 5)
        return np.concatenate([middle - half, middle + half], 1), score[:, 1], points

    return decode


def _bad(path: Path, what: str) -> GlintError:
    hint = "a detector gives scores, boxes and five points of each face"
    return InputError("GL0401", what, where=str(path), hint=hint)
