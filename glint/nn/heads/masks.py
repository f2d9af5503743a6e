"""Known conflicts: pairs of classes that are the same person and must not repel each other.

A sample of class a drops class b from its softmax denominator and the other way round; look-alikes
that are not listed stay as hard negatives. The cost is proportional to the batch.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from glint.dist.span import Span
from glint.errors import InputError
from glint.nn.heads.softmax import Masked

# m pairs, d directed pairs that concern this rank, N samples over all ranks,
# k class rows of this rank that play, e entries to mask


class KnownPairs:
    """The pairs that concern one rank's classes, ordered for look-up by label."""

    def __init__(self, pair_m2: Any, classes: int, span: Span, device: torch.device) -> None:
        """Take pairs (m, 2) of labels, an array or tensor, in any order.

        Raises InputError (GL0304) for a pair outside [0, classes) or of a class with itself.
        """
        pair_m2 = torch.as_tensor(pair_m2, dtype=torch.int64, device=device).reshape(-1, 2)
        outside_m2 = (pair_m2 < 0) | (pair_m2 >= classes)
        bad_m = outside_m2.any(1) | (pair_m2[:, 0] == pair_m2[:, 1])
        if bool(bad_m.any()):
            row = int(bad_m.nonzero()[0, 0])
            raise InputError(
                "GL0304",
                f"expected two different labels from 0 to {classes - 1}, "
                f"found {pair_m2[row].tolist()}",
                where=f"mask pair {row}",
            )
        directed_d2 = torch.cat([pair_m2, pair_m2.flip(1)])
        directed_d2 = torch.unique(directed_d2, dim=0)  # sorted by label, then by the other class
        self.digest = sha256(directed_d2.cpu().numpy().tobytes()).hexdigest()  # of all ranks' pairs
        other_d = directed_d2[:, 1]
        directed_d2 = directed_d2[(other_d >= span.start) & (other_d < span.stop)]
        self.label_d, self.other_d = directed_d2[:, 0].contiguous(), directed_d2[:, 1].contiguous()
        self.span = span

    def to(self, device: torch.device) -> None:
        """Move the pairs."""
        self.label_d, self.other_d = self.label_d.to(device), self.other_d.to(device)

    def entries(self, label_N: Tensor, playing_k: Tensor | None, block: int) -> Masked | None:
        """Return the entries of (sample, class row) to mask, cut into blocks; None where none are.

        playing_k: the sorted classes whose rows play, None for all of this rank's.
        """
        first_N = torch.searchsorted(self.label_d, label_N)
        count_N = torch.searchsorted(self.label_d, label_N, right=True) - first_N
        row_e = torch.repeat_interleave(
            torch.arange(label_N.shape[0], device=label_N.device), count_N
        )
        if row_e.numel() == 0:
            return None
        rank_e = torch.arange(row_e.numel(), device=row_e.device)
        before_N = torch.cumsum(count_N, 0) - count_N
        other_e = self.other_d[first_N[row_e] + rank_e - before_N[row_e]]
        if playing_k is None:
            column_e, rows = other_e - self.span.start, self.span.size
        else:
            rows = playing_k.numel()
            if rows == 0:
                return None
            column_e = torch.searchsorted(playing_k, other_e).clamp_max(rows - 1)
            plays_e = playing_k[column_e] == other_e
            row_e, column_e = row_e[plays_e], column_e[plays_e]
        column_e, order_e = torch.sort(column_e, stable=True)
        edges = torch.arange(0, rows + block, block, device=column_e.device)
        bounds = torch.searchsorted(column_e, edges).tolist()
        return Masked(row_e[order_e], column_e, block, tuple(bounds))
