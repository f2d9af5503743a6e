"""What the papers plot about centres, by counting.

Passive updates: steps at which a centre played without an image of its own in the batch, so that it
was only pushed away; rare identities get little else.
"""

from __future__ import annotations

import torch
from torch import Tensor

# c class rows of this rank, k rows that play, m rows looked at, t rows with an image in the batch


class Tally:
    """Count, per class row of this rank, the steps it played and those it had an image in."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.steps = 0
        self.played_c = torch.zeros(rows, dtype=torch.int32, device=device)
        self.active_c = torch.zeros(rows, dtype=torch.int32, device=device)

    def to(self, device: torch.device) -> None:
        """Move the counts."""
        self.played_c, self.active_c = self.played_c.to(device), self.active_c.to(device)

    def note(self, index_k: Tensor | None, row_t: Tensor) -> None:
        """Count a step: the rows that played (None: all), and those of the batch, repeats or not.

        row_t holds places among the rows that played.
        """
        self.steps += 1
        one_t = torch.unique(row_t)
        if index_k is None:
            self.played_c += 1
            self.active_c[one_t] += 1
        else:
            self.played_c[index_k] += 1
            self.active_c[index_k[one_t]] += 1

    def summary(self, count_c: Tensor, share: float = 0.1) -> dict[str, float]:
        """Return passive and active updates per step of the head and the tail of the identities.

        count_c: images of each class row; the head is the `share` of classes with the most, the
        tail the `share` with the fewest.
        """
        if self.steps == 0 or count_c.numel() == 0:
            return {}
        order_c = torch.argsort(count_c, stable=True)
        many = max(1, int(share * count_c.numel()))
        found = {}
        for name, row_m in (("tail", order_c[:many]), ("head", order_c[-many:])):
            active = float(self.active_c[row_m].double().mean()) / self.steps
            played = float(self.played_c[row_m].double().mean()) / self.steps
            found[f"passive_{name}"], found[f"active_{name}"] = played - active, active
        return found
