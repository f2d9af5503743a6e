"""F2C's two streams as one: a third of every batch single images, the rest pairs of identities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from glint.errors import UsageError
from glint.shards.dataset import Dataset
from glint.stream.coverage import Coverage
from glint.stream.dual import Dual
from glint.stream.loader import Batch


class Paired:
    """Batches of `batch` images: batch / 3 pairs, side by side, then batch / 3 single images.

    What a training loop asks of a `Stream`. An epoch is a pass of the single images; pairs go on
    from epoch to epoch. Raises UsageError (GL0002) where halves would not be even, or a sampling
    table already puts images of an identity together.
    """

    def __init__(self, dataset: Dataset, *, batch: int, **options: Any) -> None:
        if batch % 6:
            raise UsageError("GL0002", f"data.batch is {batch}, expected a multiple of 6")
        self.dual = Dual(dataset, batch=batch // 3, each=2, **options)
        single = self.dual.instance
        if single.draws is None and single.sampling_digest:
            raise UsageError(
                "GL0002",
                "data.sampling: this table groups images, which the pairs of this head do already",
                hint="a table made without --per-identity",
            )
        self.steps_per_epoch = self.dual.steps_per_epoch
        self.epoch_samples = single.epoch_samples
        self.sampling_digest = single.sampling_digest

    def coverage(self, epochs: int) -> Coverage:
        """Count what so many epochs of single images draw; pairs come on top, all alike."""
        return self.dual.instance.coverage(epochs)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Give this rank's batches of an epoch from a step on. Errors: as Stream.batches."""
        start = self.dual.place(self.dual.start(epoch), start_step)
        for single, pair in self.dual.batches(start):
            yield Batch(
                torch.cat([pair.image, single.image]),
                torch.cat([pair.flip, single.flip]),
                torch.cat([pair.label, single.label]),
                np.concatenate([pair.row, single.row]),
                np.concatenate([pair.position, single.position]),
                epoch,
                single.step,
                single.repeats,
            )
