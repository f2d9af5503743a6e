"""Which classes play this step: PPRN sampling by counter, the same for every world size.

Partial FC (arXiv 2010.05222, section 3): the classes of the batch always play, plus uniformly
drawn negatives. Here the set is a pure function of (seed, step, labels of the global batch): a
keyed Feistel network permutes the classes of each block of 32,768, and the first that are not in
the batch are taken, so many of each block as is its share. There is no generator state to save, a
rank draws for its own classes alone, and no work is proportional to the number of classes.

Hard-aware: a share of the negatives are the classes nearest to those of the batch, from a table
made beforehand, less the known conflicts (`Nearest`); the others are uniform as before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glint.dist.span import Span
from glint.errors import InputError, UsageError
from glint.rng import hash_31, stream_key

# N samples over all ranks, C classes, P of them in the batch, K neighbours of each,
# k classes of this rank that play, h hard negatives, T classes that play anyway, b blocks,
# i classes drawn of each, m known pairs

_ROUNDS = 6  # of the Feistel network
BLOCK = 1 << 15  # classes that are drawn from together; fixed for good, as the hashes are


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
    from `neighbours`, fewer where the classes of the batch have no more; uniform ones fill up. A
    block plays at least its share of S, more where it has more classes of the batch. Waits for the
    device once; costs O(rate * span). Raises UsageError (GL0002) for a rate outside 0 to 1.
    """
    if not 0 <= rate <= 1:
        raise UsageError("GL0002", f"rate is {rate}, expected 0 to 1", where="head")
    if rate == 1:
        return None
    span = Span(0, classes) if span is None else span
    size, device = sample_size(classes, rate, 0), label_N.device
    key, most = stream_key(seed, step), label_N.numel() + int(hard_ratio * size)
    # first what does not depend on labels: the host is ahead of the device meanwhile
    parts = list(_parts(classes, span, size, key, device)) if size else []
    drawn = _drawn(parts, classes, most, size / classes, key, device)
    # a bad label, which makes the loss NaN, may not make a row that is not there
    taken_T = torch.sort(label_N.clamp(0, classes - 1)).values
    if neighbours is not None and hard_ratio:
        positive_P = torch.unique(taken_T)
        wanted = sample_size(classes, rate, positive_P.numel()) - positive_P.numel()
        hard_h = neighbours.among(positive_P, int(hard_ratio * wanted), key)
        taken_T = torch.sort(torch.cat([positive_P, hard_h])).values
    once_T = torch.ones_like(taken_T, dtype=torch.bool)
    once_T[1:] = taken_T[1:] != taken_T[:-1]
    found = [(taken_T, once_T)]
    marks = _marks(parts, taken_T)
    for one, class_bi in zip(parts, drawn):
        plays_bi, short = _first_free(one, class_bi, taken_T, once_T, marks)
        if device.type == "cpu" and bool(short):
            (class_bi,) = _drawn(parts, classes, BLOCK, size / classes, key, device)
            plays_bi, _ = _first_free(one, class_bi, taken_T, once_T, marks)
        found.append((class_bi.flatten(), plays_bi.flatten()))
    class_m, plays_m = (torch.cat(each) for each in zip(*found))
    if span.size < classes:
        plays_m &= (class_m >= span.start) & (class_m < span.stop)
    playing_k = class_m[plays_m]
    if device.type == "cpu":  # numpy sorts with the processor's vectors: five times as fast
        return torch.from_numpy(np.sort(playing_k.numpy()))
    return torch.sort(playing_k).values


@dataclass(frozen=True)
class _Blocks:
    """Blocks of classes that are drawn from together: how many, and of how many classes each.

    begin_b1, end_b1: their classes; turn_b1: what is xored on their order; quota_b1: their shares.
    """

    first: int
    count: int
    wide: int
    begin_b1: Tensor
    end_b1: Tensor
    turn_b1: Tensor
    quota_b1: Tensor


def _parts(
    classes: int, span: Span, size: int, key: int, device: torch.device
) -> Iterator[_Blocks]:
    """Yield the blocks that a span meets: the whole ones, then the last short one."""

    def blocks(first: int, stop: int, wide: int) -> _Blocks:
        block_b = np.arange(first, stop)
        begin_b, turn_b = block_b * BLOCK, hash_31(block_b, key) & BLOCK - 1
        end_b = begin_b + wide
        quota_b = size * end_b // classes - size * begin_b // classes
        # made on the host: so little is one copy that does not wait for the device
        rows_4b = torch.from_numpy(np.stack([begin_b, end_b, turn_b, quota_b]))
        columns = rows_4b.to(device, non_blocking=True).unsqueeze(2).unbind()
        return _Blocks(first * BLOCK, stop - first, wide, *columns)

    whole, rest = divmod(classes, BLOCK)
    first, stop = span.start // BLOCK, min(whole, -(-span.stop // BLOCK))
    if first < stop:
        yield blocks(first, stop, BLOCK)
    if rest and span.size and span.stop > whole * BLOCK:
        yield blocks(whole, whole + 1, rest)


def _drawn(
    parts: Sequence[_Blocks], classes: int, most: int, share: float, key: int, device: torch.device
) -> list[Tensor]:
    """Draw classes of blocks in the order of each, (b, i): a share beside `most` that play already.

    One keyed Feistel network permutes the places of a block; where there are several, a hash of the
    block is xored on. Places past the end of a short block are no classes: `_first_free` knows.
    """
    wide = min(BLOCK, classes)
    bits = max(1, (wide - 1).bit_length())
    missing = (share * wide + 1 + most) * (1 << bits) / wide
    if wide < BLOCK and device.type == "cpu":  # enough nearly always
        missing += 4 * missing**0.5 + 16
    elif parts and parts[-1].wide < BLOCK:  # a short block: the last of its classes may come last
        missing = 1 << bits
    place_i = permute(torch.arange(min(1 << bits, math.ceil(missing)), device=device), bits, key)
    found = []
    for one in parts:
        mine_bi = place_i[None]
        if one.wide == BLOCK:
            mine_bi = mine_bi[:, : math.ceil(share * BLOCK) + 1 + most]
        if classes >= BLOCK:
            mine_bi = mine_bi ^ one.turn_b1
        found.append(one.begin_b1 + mine_bi)
    return found


def permute(counter_i: Tensor, bits: int, key: int) -> Tensor:
    """Permute [0, 2^bits) by a keyed unbalanced Feistel network; int64 tensor (i) in and out.

    Each round xors one half with a keyed hash of the other, so every round is a bijection. A half
    has few values: their hashes are made once, on the host, and looked up.
    """
    if not 1 <= bits <= 34:
        raise ValueError(f"bits is {bits}, expected 1 to 34")
    low_bits = bits - bits // 2
    half_h = np.arange(1 << low_bits)
    hash_rh = np.stack([hash_31(half_h, stream_key(key, number)) for number in range(_ROUNDS)])
    hash_rh[1::2] &= (1 << low_bits) - 1
    hash_rh[::2] &= (1 << bits // 2) - 1
    # not blocking: a copy of this size need not wait for the device
    table_rh = torch.from_numpy(hash_rh).to(counter_i.device, non_blocking=True)
    low_i, high_i = counter_i & ((1 << low_bits) - 1), counter_i >> low_bits
    for number in range(0, _ROUNDS, 2):
        high_i ^= table_rh[number].index_select(0, low_i)
        low_i ^= table_rh[number + 1].index_select(0, high_i)
    return (high_i << low_bits) | low_i


def _marks(parts: Sequence[_Blocks], taken_T: Tensor) -> tuple[int, Tensor]:
    """Mark the classes that play anyway: (first class, a byte a class of these blocks, and one).

    The one is for classes outside. A byte a class is less than what searches would read.
    """
    first = parts[0].first if parts else 0
    count = sum(one.count for one in parts) * BLOCK
    at_T = taken_T - first
    marks_c = torch.zeros(count + 1, dtype=torch.bool, device=taken_T.device)
    marks_c[torch.where((at_T >= 0) & (at_T < count), at_T, count)] = True
    return first, marks_c


def _first_free(
    blocks: _Blocks,
    class_bi: Tensor,
    taken_T: Tensor,
    once_T: Tensor,
    marks: tuple[int, Tensor],
) -> tuple[Tensor, Tensor]:
    """Return which drawn classes play, (b, i), and whether too few were drawn.

    taken_T: those that play anyway, sorted; once_T: the first of each; marks: see `_marks`.
    """
    begin_b1, end_b1 = blocks.begin_b1, blocks.end_b1
    first, marks_c = marks
    taken_bi = marks_c.index_select(0, (class_bi - first).flatten()).view(class_bi.shape)
    free_bi = ~taken_bi
    if blocks.wide < BLOCK:
        free_bi &= class_bi < end_b1
    before_T = torch.nn.functional.pad(once_T.cumsum(0), (1, 0))
    there_b1, until_b1 = (before_T[torch.searchsorted(taken_T, at)] for at in (begin_b1, end_b1))
    wanted_b1 = blocks.quota_b1 - (until_b1 - there_b1)
    rank_bi = free_bi.cumsum(1)
    return free_bi & (rank_bi <= wanted_b1), (rank_bi[:, -1:] < wanted_b1).any()
