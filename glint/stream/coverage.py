"""What a sampling does to the tail: figures to print before a run spends its hours."""

# C identities

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from glint.rng import I64

TAIL = 5  # an identity with at most so many images belongs to the tail


class Drawn(Protocol):
    """Anything that knows how often each identity was drawn."""

    def drawn_before(self, epoch: int, /) -> I64: ...


@dataclass(frozen=True)
class Coverage:
    """Shares are of 1. `seen` and `repeats` hold for `epochs` whole epochs, from epoch 0."""

    epochs: int
    images: int  # images of the identities in the label table
    identities: int
    draws: int  # per epoch
    drawn_identities: int  # with at least one draw in these epochs
    tail_identities: float  # share of identities with at most TAIL images
    tail_images: float  # share of images that are theirs
    tail_share: float  # share of draws that go to them
    seen: float  # share of images drawn at least once
    most_repeats: float  # the most often that one image is drawn, per epoch

    def __str__(self) -> str:
        return (
            f"{self.draws} draws per epoch from {self.images} images of {self.identities} "
            f"identities; tail (<= {TAIL} images): {self.tail_identities:.1%} of identities, "
            f"{self.tail_images:.1%} of images, {self.tail_share:.1%} of draws; "
            f"after {self.epochs} epochs {self.seen:.1%} of images seen, "
            f"one image at most {self.most_repeats:.1f} x per epoch"
        )


def coverage(count_C: npt.NDArray[Any], draws: Drawn | None, epochs: int) -> Coverage:
    """Count exactly what `epochs` epochs draw. draws: None where every image is drawn once."""
    count = np.asarray(count_C, dtype=np.int64)
    drawn = count * epochs if draws is None else draws.drawn_before(epochs)
    images, total = int(count.sum()), int(drawn.sum())
    tail = (count > 0) & (count <= TAIL)
    safe = np.maximum(count, 1)
    return Coverage(
        epochs=epochs,
        images=images,
        identities=int((count > 0).sum()),
        draws=total // max(epochs, 1),
        drawn_identities=int((drawn > 0).sum()),
        tail_identities=_share(int(tail.sum()), int((count > 0).sum())),
        tail_images=_share(int(count[tail].sum()), images),
        tail_share=_share(int(drawn[tail].sum()), total),
        seen=_share(int(np.minimum(count, drawn).sum()), images),
        most_repeats=float((-(-drawn // safe)).max(initial=0)) / max(epochs, 1),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
