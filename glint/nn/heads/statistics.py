"""What the papers plot about centres, by sampling and by counting.

Share of centres with a neighbour above 0.4: Partial FC (arXiv 2203.15565, section 3.2) reads it as
the share of identities in conflict. Passive updates: steps at which a centre played without an
image of its own in the batch, so that it was only pushed away; rare identities get little else.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glint.nn.heads.sample import sampled_classes

# c class rows of this rank, k rows that play, m rows looked at, b rows of one block,
# t rows with an image of theirs in the batch, D embedding

_BLOCK = 4096


@torch.no_grad()
def crowded(
    weight_cD: Tensor, *, threshold: float = 0.4, sample: int = 256, seed: int = 0, step: int = 0
) -> float:
    """Give the share of `sample` drawn centres that have another one above `threshold` in cosine.

    Only this rank's centres are compared. Costs sample * c * D products and one block of memory;
    0.0 where there are fewer than two centres.
    """
    c = weight_cD.shape[0]
    if c < 2:
        return 0.0
    first = torch.zeros(1, dtype=torch.int64, device=weight_cD.device)
    row_m = sampled_classes(first, c, min(1.0, sample / c), seed=seed, step=step)
    if row_m is None:
        row_m = torch.arange(c, device=weight_cD.device)
    unit_mD = F.normalize(weight_cD[row_m].float(), dim=1)
    above_m = torch.zeros(row_m.numel(), dtype=torch.bool, device=weight_cD.device)
    for start in range(0, c, _BLOCK):
        block_bD = F.normalize(weight_cD[start : start + _BLOCK].float(), dim=1)
        cosine_mb = unit_mD @ block_bD.t()
        inside_m = (row_m >= start) & (row_m < start + block_bD.shape[0])
        cosine_mb[inside_m, row_m[inside_m] - start] = -1.0  # itself
        above_m |= cosine_mb.amax(1) > threshold
    return float(above_m.double().mean())


class Tally:
    """Count, per class row of this rank, the steps it played and those it had an image in."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.steps = 0
        self.played_c = torch.zeros(rows, dtype=torch.int32, device=device)
        self.active_c = torch.zeros(rows, dtype=torch.int32, device=device)

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
        """Give passive and active updates per step of the head and the tail of the identities.

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
