"""From encoded pairs to verification figures; what stays in memory is embeddings."""

# n images of the set, b batch, H W height and width, D embedding

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from glint.errors import InputError
from glint.evals.packs import Pairs
from glint.evals.pairs import Verification, ten_fold
from glint.log import Progress, silent
from glint.shards import pixels

if TYPE_CHECKING:
    from glint.models.recogniser import Recogniser

Embed = Callable[[np.ndarray], np.ndarray]  # uint8 RGB (b, H, W, 3) -> float (b, D)


def verify(
    model: Recogniser | Embed,
    pairs: Pairs,
    *,
    flip: bool = True,
    batch: int = 32,
    progress: Progress = silent,
) -> Verification:
    """Embed the images of `pairs` and verify them in ten folds.

    flip: add the embedding of the mirrored image, as the field does. Raises InputError GL0802 for
    an image that gives no picture or is of another size than the model takes.
    """
    a_nD, b_nD = embed_pairs(model, pairs, flip=flip, batch=batch, progress=progress)
    return ten_fold(a_nD, b_nD, pairs.same, pairs.folds)


def embed_pairs(
    model: Recogniser | Embed,
    pairs: Pairs,
    *,
    flip: bool = True,
    batch: int = 32,
    progress: Progress = silent,
) -> tuple[np.ndarray, np.ndarray]:
    """Embed both sides of each pair, raw: float64 (n, D) twice. Raises as `verify` does."""
    out_nD = embed_images(model, pairs, flip=flip, batch=batch, progress=progress)
    return out_nD[pairs.first], out_nD[pairs.second]


def embed_images(
    model: Recogniser | Embed,
    pairs: Pairs,
    *,
    flip: bool = True,
    batch: int = 32,
    progress: Progress = silent,
) -> np.ndarray:
    """Embed the images of pairs in their order, raw: float64 (n, D). Raises as `verify` does."""
    return embed_jpegs(
        model, pairs.images, flip=flip, batch=batch, progress=progress,
        name=pairs.name, labels=pairs.labels,
    )  # fmt: skip


def embed_jpegs(
    model: Recogniser | Embed,
    images: Sequence[bytes],
    *,
    flip: bool = True,
    batch: int = 32,
    progress: Progress = silent,
    name: str = "images",
    labels: Sequence[str] | None = None,
) -> np.ndarray:
    """Embed images, the mirrored image's embedding added where `flip`: float64 (n, D), raw.

    Images of a list that repeat are embedded once. Raises as `verify` does.
    """
    embed, size = (model, 112) if callable(model) else (model.embed, model.size)
    first_m, copy_n = distinct(images)
    out_mD: np.ndarray | None = None
    for at in range(0, len(first_m), batch):
        chosen = first_m[at : at + batch]
        image_bHWC = np.empty((len(chosen), size, size, 3), np.uint8)
        for place, number in enumerate(chosen):
            where = f"{name}: image {number}" + (f" ({labels[number]})" if labels else "")
            image_bHWC[place] = decode(images[int(number)], size, where)
        part_bD = np.asarray(embed(image_bHWC), dtype=np.float64)
        if flip:
            part_bD = part_bD + embed(np.ascontiguousarray(image_bHWC[:, :, ::-1]))
        if out_mD is None:
            out_mD = np.empty((len(first_m), part_bD.shape[1]))
        out_mD[at : at + len(chosen)] = part_bD
        progress(at + len(chosen), len(first_m), name)
    if out_mD is None:
        return np.empty((0, 0))
    out_nD: np.ndarray = out_mD[copy_n]
    return out_nD


def decode(data: bytes, size: int, where: str) -> np.ndarray:
    """Decode a JPEG, PNG or WebP to RGB (size, size, 3); its size is read in its header first.

    Nothing is resized: another size is an InputError GL0802.
    """
    height, width = pixels.size(data) or (size, size)
    if (height, width) == (size, size):
        try:
            return pixels.rgb(data)
        except ValueError as error:
            what = f"expected a JPEG, PNG or WebP, found {error}"
            raise InputError("GL0802", what, where=where) from None
    raise InputError(
        "GL0802",
        f"expected {size}x{size} pixels, found {width}x{height}",
        where=where,
        hint="align and crop the faces first; nothing is resized here",
    )


def distinct(images: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Number the distinct images of a list: (first place of each, number of each image)."""
    if not isinstance(images, list):  # read on demand: the table names each image once
        every = np.arange(len(images))
        return every, every
    seen: dict[bytes, int] = {}
    first: list[int] = []
    copy: list[int] = []
    for number, image in enumerate(images):
        if image not in seen:
            seen[image] = len(first)
            first.append(number)
        copy.append(seen[image])
    return np.array(first, np.int64), np.array(copy, np.int64)
