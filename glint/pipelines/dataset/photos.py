"""Photographs of a shard -> aligned crops: what `glint align` does where `shard` packs images.

A photo gives up to `each` crops. Its crops have the keys position * each + 0, 1, ...: a key is
known without looking at other photos, so that a shard stays a pure function of the plan.
"""

# n photos of a shard, H W height and width

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from glint import schemas
from glint.errors import MismatchError, UsageError
from glint.files.strings import load_names, text
from glint.models.detector import Detector, Faces, open_detector
from glint.models.onnx_file import Reading
from glint.pipelines.dataset.plan import Options, Plan
from glint.shards import crops, image, pixels
from glint.shards.image import Rejected
from glint.shards.pixels import Pixels
from glint.shards.plan import key_name
from glint.shards.sources.source import Source
from glint.shards.tar import Shard

FACES = ("largest", "central", "all", "one")
SUBSAMPLING = ("444", "422", "420")
HELD = 32_000_000  # pixels of photos held together, or one photo
ALIGNED = 5.0  # pixels that aligning would move a crop, up to which it is aligned already
MARGIN = crops.SIDE // 3  # around a crop, or the detector has too little to see


@dataclass(frozen=True)
class Model:
    """A detector, as `models.detector.open_detector` takes it.

    digest: SHA-256 of the file; mean, std: of pixels, None as usual; size: of what it sees, where
    its file leaves that open.
    """

    file: str = ""
    digest: str = ""
    mean: float | None = None
    std: float | None = None
    size: str = "640x640"
    device: str = "cpu"

    def opened(self) -> Detector:
        """Open it, once a process. Raises what `open_detector` raises."""
        return _opened(self)


@lru_cache(maxsize=1)
def _opened(model: Model) -> Detector:
    reading, size = Reading(mean=model.mean, std=model.std), image.size_of(model.size)
    return open_detector(Path(model.file), reading, size=size, threads=1, device=model.device)


@dataclass(frozen=True)
class Align(Options):
    """What decides the crops of photographs.

    min_face: the shorter side of a face's box, in pixels of the photo.
    """

    samples_per_shard: int = 500  # photos
    formats: tuple[str, ...] = image.FORMATS
    on_exif: str = image.KEEP
    detector: Model = Model()
    faces: str = FACES[0]
    max_faces: int = 10
    min_score: float = 0.5
    min_face: float = 10
    antialias: bool = True
    quality: int = 95
    subsampling: str = SUBSAMPLING[0]

    def __post_init__(self) -> None:
        super().__post_init__()
        for good, expected, found, option in (
            (self.faces in FACES, ", ".join(FACES), self.faces, "faces"),
            (1 <= self.max_faces <= 1000, "1 to 1000", self.max_faces, "max-faces"),
            (0 < self.min_score < 1, "more than 0, less than 1", self.min_score, "min-score"),
            (self.min_face >= 0, "0 or more", self.min_face, "min-face"),
            (1 <= self.quality <= 100, "1 to 100", self.quality, "quality"),
            (
                self.subsampling in SUBSAMPLING,
                " or ".join(SUBSAMPLING),
                self.subsampling,
                "subsampling",
            ),
        ):
            if not good:
                what = f"expected {expected}, found {found}"
                raise UsageError("GL0002", what, where=f"--{option}")
        image.size_of(self.detector.size, "--input-size")

    @property
    def each(self) -> int:
        """How many crops a photo may give."""
        return self.max_faces if self.faces == "all" else 1

    def facts(self) -> dict[str, Any]:
        """Return what tells these options from others: the digest tells the file."""
        told = asdict(self)
        for name in ("file", "device"):
            told["detector"].pop(name)
        return told

    def told(self) -> dict[str, Any]:
        """Return what a manifest says of how crops were made."""
        names = ("faces", "max_faces", "min_score", "min_face", "antialias", "quality",
                 "subsampling")  # fmt: skip
        told = {"template": "ArcFace 112x112", "detector": Path(self.detector.file).name}
        told |= {"digest": self.detector.digest, "input_size": self.detector.size}
        return told | {name: getattr(self, name) for name in names}


class Pace:
    """Say of each finished shard how many faces there are, a second as well, and what was left."""

    def __init__(self) -> None:
        self.began, self.faces, self.bad = time.monotonic(), 0, Counter[str]()

    def __call__(self, entry: dict[str, Any]) -> str:
        """Count the entry of a shard in."""
        self.faces += entry["samples"]
        self.bad.update(entry["bad"])
        rate = self.faces / max(time.monotonic() - self.began, 1e-9)
        why = "".join(f", {count} {reason}" for reason, count in self.bad.most_common(3))
        return f"{self.faces} faces, {rate:.1f} faces/s{why}"


@dataclass
class Photo:
    """A photo: its bytes, its upright pixels and faces, or why there are none."""

    i: int
    data: bytes = b""
    picture: Pixels | None = None
    faces: Faces | None = None
    aligned: bool = False  # it is an aligned crop already
    why: Rejected | None = None


def pack(out: Shard, source: Source, plan: Plan, start: int, notes: Counter[str]) -> pa.Table:
    """Write the crops of photos under their keys, or quarantine the photos; return the rows."""
    options = plan.options
    assert isinstance(options, Align)
    model, detector = options.detector, options.detector.opened()
    if detector.digest != model.digest:
        what = f"the detector has changed: it was {model.digest}, is {detector.digest}"
        raise MismatchError("GL0006", what, where=model.file)
    said_C = text(load_names(plan.folder, "classes"))
    rows = list[dict[str, Any]]()
    for photo in _looked_at(source, detector, options, notes):
        label = int(source.label[photo.i])
        said = said_C[label].as_py() if label >= 0 else None
        where = source.name(photo.i)
        try:
            if label < 0 and not options.unlabelled:
                raise Rejected("label-not-integer")
            made = _crops(photo, options, notes)
        except Rejected as why:
            out.reject(why, photo.data, said, where, source.offset(photo.i))
            continue
        for face, (data, row) in enumerate(made):
            key = (start + photo.i) * options.each + face
            one, name = (key, key_name(key)) if options.unlabelled else (label, str(said))
            digest = xxhash.xxh3_128_digest(data)
            out.add(key, data, digest, ("jpg", crops.SIDE, crops.SIDE), one, name, where)
            rows.append({**row, "face": face})
    table, more = out.samples(), pa.Table.from_pylist(rows, schema=schemas.CROPS)
    for field in schemas.CROPS:
        table = table.append_column(field, more.column(field.name))
    return table


def _looked_at(
    source: Source, detector: Detector, options: Align, notes: Counter[str]
) -> Iterator[Photo]:
    """Yield photos with their faces, as many looked at together as the detector takes."""
    photos, held = list[Photo](), 0
    for i in range(source.n):
        photo = Photo(i)
        try:
            photo.data = source.read(i)
            photo.picture = upright(photo.data, notes)
        except Rejected as why:
            photo.why = why
        photos.append(photo)
        held += 0 if photo.picture is None else photo.picture.size // 3
        if held >= HELD or len(photos) >= detector.batch or i + 1 == source.n:
            _find(photos, detector, options)
            for photo in photos:
                yield photo
                photo.data, photo.picture = b"", None  # before another is decoded
            photos, held = [], 0


def upright(data: bytes, notes: Counter[str]) -> Pixels:
    """Decode a photo and turn it as its Exif record asks. Notes: turned, not-whole.

    Raises Rejected: what `image.look` raises, but too-large for too many pixels as well, and
    undecodable.
    """
    try:
        image.look(data, image.FORMATS, turned=True)
        picture, lost = pixels.look(data)
    except Rejected as why:
        if why.reason == "too-many-pixels":
            raise Rejected("too-large", f"{why.note} pixels") from None
        raise
    except ValueError as error:
        raise Rejected("undecodable", str(error)) from None
    asked = image.orientation_asked(data)
    notes["turned"] += asked != 1
    notes["not-whole"] += bool(lost)
    return pixels.turned(picture, asked)


def _find(photos: list[Photo], detector: Detector, options: Align) -> None:
    """Find the faces of photos; one of a crop's size may be a crop, and is looked at with a margin.

    Where that is no aligned crop, what is found without the margin counts, if anything is.
    """
    least, edge = options.min_score / 2, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0))
    shown = [(one, one.picture) for one in photos if one.picture is not None]
    small = [(one, picture) for one, picture in shown if picture.shape == crops.SHAPE]
    padded = [np.pad(picture, edge) for _, picture in small]
    for (photo, _), faces in zip(small, detector.find(padded, least)):
        photo.faces = faces.moved(-MARGIN)
        photo.aligned = _is_aligned(photo.faces, options.min_score)
    shown = [(one, picture) for one, picture in shown if not one.aligned]
    found = detector.find([picture for _, picture in shown], least)
    for (photo, _), faces in zip(shown, found):
        if photo.faces is None or (faces.score >= options.min_score).any():
            photo.faces = faces


def _is_aligned(faces: Faces, least: float) -> bool:
    if not len(faces.score) or faces.score[0] < least:
        return False
    try:
        return crops.displacement(faces.points[0].astype(np.float64)) <= ALIGNED
    except ValueError:
        return False


def choose(found: Faces, options: Align, size: tuple[int, int], notes: Counter[str]) -> list[int]:
    """Return which faces of a photo (size: width, height) give crops, the largest first.

    Notes: several-faces (photos of which one face was taken), small-faces and faces-over (faces
    left out of a photo that gave others). Raises Rejected no-face, low-score, small-face,
    several-faces.
    """
    good = np.flatnonzero(found.score >= options.min_score)
    if not len(good):
        if len(found.score):
            raise Rejected("low-score", f"{found.score[0]:.3f}")
        raise Rejected("no-face")
    sides = found.box[good, 2:] - found.box[good, :2]
    large = sides.min(1) >= options.min_face
    if not large.any():
        wide, high = sides[int(sides.min(1).argmax())]
        raise Rejected("small-face", f"{wide:.1f} x {high:.1f} pixels")
    good, area = good[large], sides[large].prod(1)
    order = good[np.argsort(-area, kind="stable")]
    if options.faces == "all":
        notes["small-faces"] += int((~large).sum())
        notes["faces-over"] += max(len(order) - options.max_faces, 0)
        notes["several-faces"] += len(order) > 1 and not options.unlabelled
        return [int(i) for i in order[: options.max_faces]]
    if len(order) > 1:
        if options.faces == "one":
            raise Rejected("several-faces", f"{len(order)} faces")
        notes["several-faces"] += 1
    if options.faces == "central":
        middle = (found.box[order, :2] + found.box[order, 2:]) / 2 - np.array(size) / 2
        order = order[np.argsort((middle**2).sum(1), kind="stable")]
    return [int(order[0])]


def _crops(photo: Photo, options: Align, notes: Counter[str]) -> list[tuple[bytes, dict[str, Any]]]:
    """Return the crops of a photo, encoded, with their columns of the index. Raises Rejected."""
    picture, found = photo.picture, photo.faces
    if picture is None or found is None:
        raise photo.why or Rejected("no-face")
    high, wide = picture.shape[:2]
    taken = [0] if photo.aligned else choose(found, options, (wide, high), notes)
    made, crop = list[tuple[bytes, dict[str, Any]]](), picture
    for i in taken:
        points = found.points[i].astype(np.float64)
        if not photo.aligned:
            try:
                crop = crops.cut(picture, crops.similarity(points), options.antialias)
            except ValueError as error:
                if i == taken[-1] and not made:
                    raise Rejected("no-face", str(error)) from None
                continue
        as_is = photo.aligned and image.kind(photo.data) == "jpg" and _stored(photo.data)
        yaw, pitch, roll = crops.angles(points)
        row = {
            "photo_width": wide,
            "photo_height": high,
            "box": found.box[i].tolist(),
            "points": points.ravel().tolist(),
            "score": float(found.score[i]),
            "interocular": float(np.hypot(*(points[1] - points[0]))),
            "yaw": yaw,
            "pitch": pitch,
            "roll": roll,
            "blur": crops.blur(crop),
            "brightness": crops.brightness(crop),
            "aligned": photo.aligned,
        }
        made.append((photo.data if as_is else encoded(crop, options), row))
    notes["already-aligned"] += photo.aligned
    return made


def _stored(data: bytes) -> bool:
    """Say whether an image is to be shown as it is stored."""
    return image.orientation_asked(data) == 1


def encoded(crop_HW3: Pixels, options: Align) -> bytes:
    """Return a crop as a JPEG."""
    import simplejpeg

    whole = np.ascontiguousarray(crop_HW3)
    data: bytes = simplejpeg.encode_jpeg(whole, options.quality, "RGB", options.subsampling)
    return data


def forget() -> None:
    """Close the detector of this process."""
    _opened.cache_clear()
