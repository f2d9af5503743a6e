"""Two streams in lock step: single images, and pairs (or more) of one identity.

`Paired` joins both into one batch: a third single images, the rest pairs of identities.

Source: F2C (Wang et al., arXiv 2105.10375): an instance loader, whose pass is the epoch, and an
identity loader that gives two images of each identity. Here the identity order changes every
cycle and goes on across epochs, and both can be taken up at any step under any world size.
"""

# n images of one rank's batch

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from glint.errors import UsageError
from glint.shards.dataset import Dataset
from glint.shards.labels import LabelTable
from glint.stream.buffers import Buffers
from glint.stream.columns import open_columns
from glint.stream.coverage import Coverage
from glint.stream.loader import Batch, Stream
from glint.stream.order import Order


@dataclass(frozen=True)
class Place:
    """Where both streams stand: all that a run has to keep to go on, whatever its world size."""

    epoch: int
    position: int  # of the instance stream, in the epoch
    identity: int  # of the identity stream, over all cycles


class Dual:
    """An instance stream and an identity stream of one rank.

    batch: single images per rank and step. identities: identities per rank and step, by default as
    many; `each` images of each stand together in the second batch. order: of the single images.
    Both streams have the same guarantees as `Stream`; further options (workers, images, ...) go to
    both.
    Errors: as Stream.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        labels: LabelTable,
        batch: int,
        identities: int | None = None,
        each: int = 2,
        rank: int | None = None,
        world: int | None = None,
        seed: int = 0,
        order: Order | None = None,
        **options: Any,
    ) -> None:
        if each < 1:
            raise UsageError("GL0002", f"images per identity must be at least 1, found {each}")
        columns = open_columns(dataset)
        common = {"labels": labels, "rank": rank, "world": world, "columns": columns, **options}
        self.instance = Stream(dataset, batch=batch, seed=seed, order=order, **common)
        common |= {"drop_last": True, "columns": self.instance.columns}  # its mask, too
        self.identity = Stream(
            dataset,
            batch=(batch if identities is None else identities) * each,
            seed=seed ^ 0x1DE47,
            order=Order(each=each, endless=True),
            **common,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Return the steps of one pass of the instance stream."""
        return self.instance.steps_per_epoch

    def start(self, epoch: int = 0) -> Place:
        """Return the place at which an epoch begins if nothing changed since the first."""
        each_step = self.identity.batch * self.identity.world
        return Place(epoch, 0, epoch * self.steps_per_epoch * each_step)

    def place(self, since: Place, steps: int) -> Place:
        """Return where both streams stand, `steps` steps of the same epoch after `since`."""
        each_step = self.identity.batch * self.identity.world
        return Place(
            since.epoch,
            self.instance.position(steps, since.position),
            since.identity + steps * each_step,
        )

    def batches(self, place: Place) -> Iterator[tuple[Batch, Batch]]:
        """Yield (single images, identities' images) from a place to the end of its epoch.

        Errors while reading: as Stream.batches.
        """
        single = self.instance.batches(place.epoch, origin=place.position)
        grouped = self.identity.batches(0, origin=place.identity)
        try:
            for one in single:  # the epoch ends with the instance stream
                yield one, next(grouped)
        finally:
            single.close()
            grouped.close()


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
        if single.selection.table is not None and single.selection.draws is None:
            raise UsageError(
                "GL0002",
                "data.sampling: this table groups images, which the pairs of this head do already",
                hint="a table made without --per-identity",
            )
        size = single.images.size
        self._buffers = Buffers((batch, size, size, 3), single.images.pinned)
        self.steps_per_epoch = self.dual.steps_per_epoch
        self.epoch_samples = single.epoch_samples
        self.sampling_digest = single.sampling_digest

    def coverage(self, epochs: int) -> Coverage:
        """Count what so many epochs of single images draw; pairs come on top, all alike."""
        return self.dual.instance.coverage(epochs)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch from a step on. Errors: as Stream.batches."""
        start = self.dual.place(self.dual.start(epoch), start_step)
        for single, pair in self.dual.batches(start):
            image = torch.cat([pair.image, single.image], out=self._buffers.take())
            yield Batch(
                image,
                torch.cat([pair.flip, single.flip]),
                torch.cat([pair.label, single.label]),
                np.concatenate([pair.row, single.row]),
                np.concatenate([pair.position, single.position]),
                epoch,
                single.step,
                single.repeats,
            )
