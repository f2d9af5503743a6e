"""Image quality: how steady a net's embedding is, what a quality net says, or how sharp it is.

All stand where a recogniser does: the "embedding" of an image is (quality, 1), so that `glint
embed`'s blocks, tasks and journal do the work and scaling to length one loses nothing.
"""

# n images, H W height and width, D embedding, v views of an image

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glint.errors import InputError
from glint.models.onnx_file import Reading
from glint.models.recogniser import Recogniser, open_model
from glint.shards import crops

NOISE = 8.0  # grey levels
Images = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Quality:
    """Gives (quality, 1) for an image. steady: of a recogniser, else of a quality net."""

    model: Recogniser
    steady: bool

    @property
    def dim(self) -> int:
        """The length of what `embed` gives."""
        return 2

    @property
    def size(self) -> int:
        """Pixels of a side of its crops."""
        return self.model.size

    @property
    def name(self) -> str:
        """The net's name."""
        return self.model.name

    @property
    def digest(self) -> str:
        """What decides the scores."""
        return f"{self.model.digest} {'steady@1' if self.steady else 'score@1'}"

    def embed(self, image_nHWC: Images) -> F32:
        """Return float32 (n, 2): quality and 1."""
        if self.steady:
            score_n = steadiness(self.model, image_nHWC)
        else:
            score_n = self.model.embed(image_nHWC)[:, 0]
        return np.stack([score_n, np.ones_like(score_n)], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Sharpness:
    """Gives (sharpness, 1) for an image: no net, the same for every size of file."""

    size: int = 112
    dim: int = 2
    name: str = "sharpness"
    digest: str = "sharpness@1"

    def embed(self, image_nHWC: Images) -> F32:
        """Return float32 (n, 2): log(1 + `crops.blur`), and 1."""
        score_n = np.log1p([crops.blur(image_HWC) for image_HWC in image_nHWC])
        return np.stack([score_n, np.ones_like(score_n)], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Opener:
    """Opens a model of quality by path, here or in a worker elsewhere."""

    path: str  # "": by sharpness, without one
    steady: bool
    reading: Reading = Reading()  # noqa: RUF009 (frozen)

    def __call__(self, threads: int | None = None) -> Quality | Sharpness:
        """Open it. Raises as `open_model`, InputError GL0401 where a quality net gives rows."""
        if not self.path:
            return Sharpness()
        model = open_model(self.path, threads=threads, reading=self.reading)
        if not self.steady and model.dim != 1:
            raise InputError(
                "GL0401",
                f"expected one number for an image, found {model.dim}",
                where=str(Path(self.path)),
                hint="--method steady takes a recogniser; --output NAME chooses among outputs",
            )
        if self.steady and model.dim < 2:
            raise InputError(
                "GL0401",
                "expected a recogniser, found a net that gives one number",
                where=str(Path(self.path)),
                hint="--method net takes a quality net",
            )
        return Quality(model, self.steady)


def steadiness(model: Recogniser, image_nHWC: Images) -> F32:
    """Return how little an embedding moves under small disturbances: float32 (n,), at most 1.

    The mean cosine between the embeddings of the image, its mirror image, the image with noise and
    with half the contrast. After SER-FIQ (Terhorst et al., CVPR 2020), which disturbs the net by
    dropout; which disturbances tell is measured in docs/quality.md: shifts, covered halves and a
    lower resolution do not, or say the opposite, as a blurred image loses nothing by them.
    """
    sum_nD, count = np.float64(0), 0
    for view_nHWC in views(image_nHWC):
        raw_nD = model.embed(view_nHWC).astype(np.float64)
        sum_nD = sum_nD + raw_nD / np.linalg.norm(raw_nD, axis=1, keepdims=True)
        count += 1
    pairs_n = (np.square(sum_nD).sum(axis=1) - count) / (count * (count - 1))
    return np.asarray(pairs_n, np.float32)


def views(image_nHWC: Images) -> Iterator[Images]:
    """Yield an image and three disturbed ones, uint8, as large; the noise is always the same."""
    yield image_nHWC
    yield np.ascontiguousarray(image_nHWC[:, :, ::-1])
    noise_HWC = np.random.default_rng(0).normal(0, NOISE, image_nHWC.shape[1:])
    yield np.clip(np.rint(image_nHWC + noise_HWC), 0, 255).astype(np.uint8)
    yield np.rint(0.5 * image_nHWC.astype(np.float32) + 64).astype(np.uint8)
