"""Which rows of a class table a rank owns: pure arithmetic."""

from __future__ import annotations

from typing import NamedTuple


class Span(NamedTuple):
    """A half-open range of classes, [start, stop)."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Count the classes in the range."""
        return self.stop - self.start


def span(classes: int, world: int, rank: int) -> Span:
    """Return the classes that `rank` of `world` owns.

    The rule is DTensor's Shard(0) and torch.chunk's: every rank owns ceil(classes / world) rows
    until they run out, so the last ranks may own fewer or none.
    """
    if classes < 0 or world < 1 or not 0 <= rank < world:
        raise ValueError(f"no rank {rank} of {world} over {classes} classes")
    chunk = -(-classes // world)
    return Span(min(rank * chunk, classes), min((rank + 1) * chunk, classes))
