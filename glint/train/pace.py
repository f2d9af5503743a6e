"""When a run saves its state, and when it is to stop."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from glint.errors import UsageError
from glint.train import recipe

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Until:
    """Stop with the state saved after so many steps, or at a time (seconds since 1970)."""

    step: int | None = None
    time: float | None = None

    @classmethod
    def of(cls, text: str) -> Until:
        """Read `5000` (steps), `90m` (s, m, h, d from now) or `@1767225600` (a time); "" is never.

        Raises UsageError GL0002.
        """
        if not text:
            return cls()
        if found := re.fullmatch(r"[1-9]\d{0,15}", text):
            return cls(step=int(text))
        if found := re.fullmatch(r"@(\d{1,16}(?:\.\d+)?)", text):
            return cls(time=float(found.group(1)))
        if found := re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhd])", text):
            return cls(time=time.time() + float(found.group(1)) * UNITS[found.group(2)])
        raise UsageError(
            "GL0002", f"expected steps (5000), a duration (90m, 3.5h) or @SECONDS, found {text!r}",
            where="--until",
        )  # fmt: skip

    def text(self) -> str:
        """Return what `of` reads as the same: a duration as the time that it ends at."""
        return "" if self == NEVER else f"{self.step}" if self.step else f"@{self.time}"

    def over(self, done: int) -> bool:
        """Return whether a run that has done so many steps is to stop."""
        late = self.time is not None and time.time() >= self.time
        return late or (self.step is not None and done >= self.step)


NEVER = Until()


class Pace:
    """Which steps of a run end with a save: each nth, an epoch's last, the first after a while."""

    def __init__(self, run: recipe.Run, steps_per_epoch: int, total: int) -> None:
        self.run, self._spe, self._total = run, steps_per_epoch, total
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Return whether `save_minutes` have passed here since the last save."""
        passed = time.monotonic() - self._saved
        return 0 < self.run.save_minutes * 60 <= passed

    def saves(self, done: int) -> bool:
        """Return whether the state after `done` steps is saved, whatever the time."""
        epoch = self.run.save_epochs and done % self._spe == 0
        return epoch or done % self.run.save_every == 0 or done == self._total

    def saved(self) -> None:
        """Note that the state is being saved."""
        self._saved = time.monotonic()
