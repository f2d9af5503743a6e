"""Which classes play this step: PPRN sampling by counter, the same for every world size.

Partial FC (arXiv 2010.05222, section 3): the classes of the batch always play, plus uniformly
drawn negatives. Here the set is a pure function of (seed, step, labels of the global batch): a
keyed Feistel network permutes the classes, and the first that are not in the batch are taken. There
is no generator state to save, and no work proportional to the number of classes.

Hard-aware: a share of the negatives are the classes nearest to those of the batch, from a table
made beforehand, less the known conflicts (`Nearest`); the others are uniform as before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glint.dist.span import Span
from glint.errors import InputError
from glint.rng import hash_31, permute, stream_key

# N samples over all ranks, C classes, P of them in the batch, K neighbours of each,
# k classes of this rank that play, h hard negatives, i counters, m known pairs

_AT_ONCE = {"cpu": 1 << 15}  # counters hashed together: they stay in cache
_MANY = 1 << 20  # on a GPU: few launches, and it waits for the device once for so many


def sample_size(classes: int, rate: float, positives: int) -> int:
    """Return how many classes play: max(S, positives), S = int(rate * classes), at least 1.

    At rate 0 only the positives play.
    """
    if rate <= 0:
        return positives
    return max(positives, 1, min(classes, int(rate * classes)))


class Nearest:
    """The classes nearest to each class, nearest first, without those known to be the same person.

    Every rank holds the whole table, in host memory or mapped from a file (4 C K bytes): then no
    rank has to ask another which hard negatives there are.
    """

    def __init__(self, near_CK: Any, known: Any = None) -> None:
        """Take neighbours (C, K) int32, an array or tensor, -1 = none; known: pairs (m, 2).

        Where known pairs stand in the table they are crossed out in place (of a private mapping
        only the pages that hold them are copied). Raises InputError (GL0304) for a neighbour
        outside [-1, C).
        """
        self.near_CK = torch.as_tensor(near_CK)
        if self.near_CK.ndim != 2 or self.near_CK.dtype != torch.int32:
            raise ValueError("expected neighbours (C, K), int32")
        classes = self.near_CK.shape[0]
        if self.near_CK.numel():
            low, high = (int(end) for end in self.near_CK.aminmax())
            if low < -1 or high >= classes:
                raise InputError(
                    "GL0304",
                    f"expected neighbours from -1 to {classes - 1}, found {low} to {high}",
                    where="table of nearest classes",
                )
        if known is not None and len(known):
            pair_m2 = torch.as_tensor(known, dtype=torch.int64)
            for own_m, other_m in (pair_m2.unbind(1), pair_m2.flip(1).unbind(1)):
                pair, place = (self.near_CK[own_m] == other_m[:, None]).nonzero(as_tuple=True)
                self.near_CK[own_m[pair], place] = -1

    def among(self, positive_P: Tensor, most: int, key: int) -> Tensor:
        """Return at most `most` classes near those of the batch and not in it, sorted, int64 (h).

        All first neighbours before any second one; among equals a hash of (key, class) decides.
        Costs O(P K).
        """
        device, positive_P = positive_P.device, positive_P.cpu()
        near_PK = self.near_CK[positive_P].long()
        place_PK = torch.arange(near_PK.shape[1]).expand_as(near_PK)
        other_PK = (near_PK >= 0) & ~torch.isin(near_PK, positive_P)
        near_h, place_h = near_PK[other_PK], place_PK[other_PK]
        near_h, where_h = torch.unique(near_h, return_inverse=True)
        first_h = torch.full_like(near_h, near_PK.shape[1])
        first_h.scatter_reduce_(0, where_h, place_h, "amin")
        if near_h.numel() > most:
            chance_h = hash_31(near_h & (1 << 31) - 1, stream_key(key, 2))
            order_h = torch.argsort(first_h << 31 | chance_h, stable=True)
            near_h = torch.sort(near_h[order_h[:most]]).values
        return near_h.to(device)


def sampled_classes(
    label_N: Tensor,
    classes: int,
    rate: float,
    *,
    seed: int,
    step: int,
    span: Span | None = None,
    neighbours: Nearest | None = None,
    hard_ratio: float = 0.0,
) -> Tensor | None:
    """Return the classes of `span` that play at this step, sorted, int64 (k); None means all.

    label_N: labels of the whole batch over all ranks; hard_ratio: the share of negatives taken
    from `neighbours`, fewer where the classes of the batch have no more; uniform ones fill up.
    Costs O(rate * classes) at most.
    """
    if rate >= 1:
        return None
    # sorted; a bad label, which makes the loss NaN, may not make a row that is not there
    positive_P = torch.unique(label_N.clamp(0, classes - 1))
    wanted = sample_size(classes, rate, positive_P.numel()) - positive_P.numel()
    playing_k = positive_P
    if wanted > 0:
        key = stream_key(seed, step)
        if neighbours is not None and (most := int(hard_ratio * wanted)):
            hard_h = neighbours.among(positive_P, most, key)
            wanted -= hard_h.numel()
            playing_k = torch.sort(torch.cat([positive_P, hard_h])).values
        if wanted > 0:
            playing_k = torch.cat([playing_k, _first_others(classes, wanted, playing_k, key)])
    if span is not None and span.size < classes:
        playing_k = playing_k[(playing_k >= span.start) & (playing_k < span.stop)]
    return torch.sort(playing_k).values


def _first_others(classes: int, wanted: int, positive_P: Tensor, key: int) -> Tensor:
    """Take the first `wanted` classes of the permutation that play not already; those sorted."""
    bits = max(1, (classes - 1).bit_length())
    density = classes / (1 << bits)  # values beyond the classes are skipped: at most half
    at_once = _AT_ONCE.get(positive_P.device.type, _MANY)
    start, kept, taken = 0, 0, []
    while kept < wanted and start < 1 << bits:
        missing = wanted - kept + positive_P.numel()
        reach = int(missing / density + 4 * (missing / density) ** 0.5) + 16
        stop = min(start + min(reach, at_once), 1 << bits)
        counter_i = torch.arange(start, stop, device=positive_P.device)
        found_k = permute(counter_i, bits, key)
        near_k = torch.searchsorted(positive_P, found_k).clamp_max(positive_P.numel() - 1)
        found_k = found_k[(found_k < classes) & (positive_P[near_k] != found_k)]
        taken.append(found_k)
        kept += found_k.numel()
        start = stop
    return torch.cat(taken)[:wanted]
