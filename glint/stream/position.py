"""One rank's batch, and where a loop stands: what it was handed, not what was read ahead."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from glint.errors import MismatchError
from glint.log import logger
from glint.rng import I64
from glint.stream.plan import Slice


class Batch(NamedTuple):
    """One rank's share of a global batch.

    image: uint8 nHW3, as decoded (and degraded, where that was asked for); flip: bool n, the images
    to mirror, which `augment.to_input` does on the device; label: int64 n, targets of the label
    table; row: int64 n, rows of samples.parquet; position: int64 n, places in the epoch (at or past
    its length: a repeat that fills the last batch, `repeats` of them, at the end).
    """

    image: torch.Tensor
    flip: torch.Tensor
    label: torch.Tensor
    row: I64
    position: I64
    epoch: int
    step: int
    repeats: int = 0


@dataclass
class Place:
    """The next step of a loop. origin: the position of the epoch at which step 0 begins."""

    epoch: int = 0
    step: int = 0
    origin: int = 0
    resumed: bool = False

    def begin(self) -> tuple[int, int, int]:
        """Return (epoch, first step, origin): an epoch begins anew, but right behind a load."""
        if not self.resumed:
            if self.step:
                logger.warning("epoch %d begins again: set_epoch chooses another", self.epoch)
            self.step = self.origin = 0
        self.resumed = False
        return self.epoch, self.step, self.origin

    def to(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        if epoch != self.epoch:
            self._set(epoch, 0, 0)

    def handing(
        self, batches: Iterable[Batch], epoch: int, origin: int
    ) -> Generator[Batch, None, None]:
        """Yield batches and note each before it goes out; behind the last one comes a new epoch."""
        for batch in batches:
            self._set(epoch, batch.step + 1, origin)
            yield batch
        self._set(epoch + 1, 0, 0)

    def state(self, part: Slice) -> dict[str, Any]:
        """Return epoch and position, of all ranks; part: the slice that begins at `origin`."""
        if self.step and self.step >= part.steps:
            return {"epoch": self.epoch + 1, "position": 0}
        return {"epoch": self.epoch, "position": part.position(self.step)}

    def load(self, state: dict[str, Any], part: Slice) -> None:
        """Stand where a state says; part: the slice of a whole epoch.

        Raises MismatchError (GL0702) for a position that no epoch has.
        """
        epoch, position = state["epoch"], state["position"]
        if epoch < 0 or not 0 <= position <= part.length:
            raise MismatchError(
                "GL0702",
                f"position {position} of epoch {epoch} is in none of {part.length} samples",
                where="state of the stream",
            )
        steps, rest = divmod(position, part.batch)
        self._set(epoch, 0 if rest else steps, position if rest else 0)
        self.resumed = True

    def _set(self, epoch: int, step: int, origin: int) -> None:
        self.epoch, self.step, self.origin, self.resumed = epoch, step, origin, False
