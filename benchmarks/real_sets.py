"""Real faces as embeddings, kept under a cache folder: LFW, Bollywood, and LFW by other cameras.

Reads `data/` under GLINT_SHARED (not part of this project). The cache is GLINT_CACHE, or
`glint-bench` in the temporary folder; nothing of it is committed.
"""

from __future__ import annotations

import csv
import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glint.search import pairs
from glint.shards import recordio

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("GLINT_SHARED", ROOT.parent / "shared"))
CACHE = Path(os.environ.get("GLINT_CACHE", Path(tempfile.gettempdir()) / "glint-bench"))
MODELS = {"y1": "mobilefacenet_y1_128d.onnx", "v3": "mobileface_v3_256d.onnx"}
KINDS = ("32 pixels", "64 pixels, grey", "blur", "JPEG 30", "colour cast", "low light")

Ints = npt.NDArray[np.int64]
Half = npt.NDArray[np.float16]
Image = npt.NDArray[np.uint8]

# N images, D embedding


@dataclass(frozen=True)
class Set:
    """Unit embeddings of N images, float16, whom each shows, and the name and place of each."""

    x_ND: Half
    who_N: Ints
    name: list[str]  # of the person, N of them
    file: list[str]


def camera(image: Image, kind: int, rng: np.random.Generator) -> Image:
    """Photograph a 112 x 112 crop again as another camera does: one of `KINDS`."""
    from PIL import Image as Pillow
    from PIL import ImageFilter

    face = Pillow.fromarray(image)
    if kind in (0, 1):
        side = 32 if kind == 0 else 64
        face = face.resize((side, side), Pillow.Resampling.BILINEAR)
        face = face.resize((112, 112), Pillow.Resampling.BICUBIC)
        face = face.convert("L").convert("RGB") if kind == 1 else face
    elif kind == 2:
        face = face.filter(ImageFilter.GaussianBlur(2.0))
    elif kind == 3:
        held = io.BytesIO()
        face.save(held, "JPEG", quality=30)
        face = Pillow.open(held).convert("RGB")
    x = np.asarray(face, np.float32)
    if kind == 4:
        x = x * np.array([1.15, 0.95, 0.7], np.float32) + 10
    elif kind == 5:
        x = 255 * (x / 255) ** 1.5 * 0.35 + rng.normal(0, 4, x.shape)
    return np.asarray(x.clip(0, 255).round(), np.uint8)


def _lfw_images() -> Iterable[Image]:
    import simplejpeg

    lfw = SHARED / "data" / "lfw"
    key, at = recordio.read_idx(lfw / "train.idx")
    offset = dict(zip(key.tolist(), at.tolist()))
    with (lfw / "train.rec").open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as rec:
        for row in _rows("lfw/images.tsv"):
            _, data = recordio.unpack(recordio.parse(rec, offset[int(row["key"])])[0])
            yield simplejpeg.decode_jpeg(data)


def _rows(name: str) -> list[dict[str, str]]:
    with (SHARED / "data" / name).open() as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def _embedded(key: str, model: str, images: Callable[[], Iterable[Image]]) -> Half:
    """Embed images by a model, or read what an earlier call kept."""
    from glint.models.recogniser import open_model

    kept = CACHE / f"{key}_{model}.npy"
    if kept.is_file():
        return np.asarray(np.load(kept, allow_pickle=False), np.float16)
    net = open_model(SHARED / "data" / "models" / MODELS[model], threads=1)
    parts: list[npt.NDArray[np.floating]] = []
    batch: list[Image] = []
    for image in images():
        batch.append(image)
        if len(batch) == 64:
            parts.append(net.embed(np.stack(batch)))
            batch = []
    if batch:
        parts.append(net.embed(np.stack(batch)))
    x_ND = pairs.unit64(np.concatenate(parts)).astype(np.float16)
    CACHE.mkdir(parents=True, exist_ok=True)
    np.save(kept, x_ND)
    return x_ND


def lfw(model: str) -> Set:
    """Give every crop of LFW."""
    rows = _rows("lfw/images.tsv")
    name = [row["person"] for row in rows]
    _, who_N = np.unique(name, return_inverse=True)
    file = [row["file"] for row in rows]
    stored = SHARED / "data" / "features"
    if model == "y1" and stored.is_dir():
        at = {row: k for k, row in enumerate((stored / "lfw_files.txt").read_text().split())}
        x_ND = np.load(stored / "lfw_y1_l2_f16.npy", allow_pickle=False)[[at[f] for f in file]]
    else:
        x_ND = _embedded("lfw", model, _lfw_images)
    return Set(x_ND, who_N.astype(np.int64), name, file)


def lfw_elsewhere(model: str) -> Half:
    """Give LFW as other cameras took it: one camera for a person's images.

    People of one image, whom nothing splits, are left as they are.
    """
    base = lfw(model)
    many_N = np.bincount(base.who_N)[base.who_N] >= 2

    def images() -> Iterable[Image]:
        rng = np.random.default_rng(0)
        for who, many, image in zip(base.who_N.tolist(), many_N.tolist(), _lfw_images()):
            if many:
                yield camera(image, who % len(KINDS), rng)

    x_ND = base.x_ND.copy()
    x_ND[many_N] = _embedded("lfw_elsewhere", model, images)
    return x_ND


def bollywood(model: str) -> Set:
    """Give Bollywood without images that stand under two names."""
    from PIL import Image as Pillow

    twice = {file for row in _rows("bollywood/bollywood_exact_duplicates.tsv")
             for file in [row["files"], *(row.get(None) or [])]}  # fmt: skip
    with tarfile.open(SHARED / "data" / "bollywood" / "bollywood112.tar") as tar:
        names = sorted(
            name for name in tar.getnames()
            if name.endswith(".jpg") and name.removeprefix("./") not in twice
        )  # fmt: skip

        def images() -> Iterable[Image]:
            for name in names:
                held = tar.extractfile(name)
                assert held is not None
                yield np.asarray(Pillow.open(held).convert("RGB").resize((112, 112)))

        x_ND = _embedded("bollywood", model, images)
    people = [Path(name).parent.name for name in names]
    return Set(x_ND, np.unique(people, return_inverse=True)[1].astype(np.int64), people, names)


def cross_source() -> tuple[Half, Ints, npt.NDArray[np.bool_], dict[int, str]]:
    """Give (embeddings by y1, person, profile, LFW's name of a person) of the other collection."""
    rows = _rows("cross_source/rows.tsv")
    x_ND = np.load(SHARED / "data" / "cross_source" / "y1_l2_f16.npy", allow_pickle=False)
    same = {int(r["person"]): r["lfw_person"] for r in _rows("cross_source/same_as_lfw.tsv")}
    profile_N = np.array([row["kind"] == "profile" for row in rows])
    return x_ND, np.array([int(row["person"]) for row in rows]), profile_N, same
