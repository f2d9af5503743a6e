"""Two streams in lock step: single images, and pairs (or more) of one identity.

Source: F2C (Wang et al., arXiv 2105.10375): an instance loader, whose pass is the epoch, and an
identity loader that gives two images of each identity. Here the identity order changes every
cycle and goes on across epochs, and both can be taken up at any step under any world size.
"""

# n images of one rank's batch

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from glint.errors import UsageError
from glint.shards.dataset import Dataset
from glint.shards.labels import LabelTable
from glint.stream.columns import open_columns
from glint.stream.loader import Batch, Stream


@dataclass(frozen=True)
class Place:
    """Where both streams stand: all that a run has to keep to go on, whatever its world size."""

    epoch: int
    position: int  # of the instance stream, in the epoch
    identity: int  # of the identity stream, over all cycles


class Dual:
    """An instance stream and an identity stream of one rank.

    batch: single images per rank and step. identities: identities per rank and step, by default as
    many; `each` images of each stand together in the second batch. Both streams have the same
    guarantees as `Stream`; further options (workers, threads, flip, ...) go to both.
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
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        sampling: str | None = None,
        block: int | None = None,
        **options: Any,
    ) -> None:
        if each < 1:
            raise UsageError("GL0002", f"images per identity must be at least 1, found {each}")
        columns = open_columns(dataset)
        common = {"labels": labels, "rank": rank, "world": world, "columns": columns, **options}
        self.instance = Stream(
            dataset, batch=batch, seed=seed, sampling=sampling, block=block, **common
        )
        count = batch if identities is None else identities
        self.identity = Stream(
            dataset,
            batch=count * each,
            seed=seed ^ 0x1DE47,
            each=each,
            endless=True,
            **{**common, "drop_last": True, "columns": self.instance.columns},  # its mask, too
        )

    @property
    def steps_per_epoch(self) -> int:
        """Give the steps of one pass of the instance stream."""
        return self.instance.steps_per_epoch

    def start(self, epoch: int = 0) -> Place:
        """Give the place at which an epoch begins if nothing changed since the first."""
        each_step = self.identity.batch * self.identity.world
        return Place(epoch, 0, epoch * self.steps_per_epoch * each_step)

    def place(self, since: Place, steps: int) -> Place:
        """Give where both streams stand, `steps` steps of the same epoch after `since`."""
        each_step = self.identity.batch * self.identity.world
        return Place(
            since.epoch,
            self.instance.position(steps, since.position),
            since.identity + steps * each_step,
        )

    def batches(self, place: Place) -> Iterator[tuple[Batch, Batch]]:
        """Give (single images, identities' images) from a place to the end of its epoch.

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
