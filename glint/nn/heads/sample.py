"""Which classes play this step: PPRN sampling by counter, the same for every world size.

Partial FC (arXiv 2010.05222, section 3): the classes of the batch always play, plus uniformly
drawn negatives. Here the set is a pure function of (seed, step, labels of the global batch): a
keyed Feistel network permutes the classes, and the first that are not in the batch are taken. There
is no generator state to save, and no work proportional to the number of classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glint.dist.span import Span

# N samples over all ranks, P classes in the batch, k classes of this rank that play, i counters

_ROUNDS = 6
_AT_ONCE = {"cpu": 1 << 15}  # counters hashed together: they stay in cache
_MANY = 1 << 20  # on a GPU: few launches, and it waits for the device once for so many
_MASK31 = (1 << 31) - 1
_MASK64 = (1 << 64) - 1
_ODD = (0x6C8E9CF5, 0x45D9F3B3)  # 31-bit odd multipliers: a 31 x 31 bit product fits int64


def sample_size(classes: int, rate: float, positives: int) -> int:
    """Give how many classes play: max(S, positives), S = int(rate * classes), at least 1.

    At rate 0 only the positives play.
    """
    if rate <= 0:
        return positives
    return max(positives, 1, min(classes, int(rate * classes)))


def sampled_classes(
    label_N: Tensor, classes: int, rate: float, *, seed: int, step: int, span: Span | None = None
) -> Tensor | None:
    """Give the classes of `span` that play at this step, sorted, int64 (k); None means all.

    label_N: labels of the whole batch over all ranks. Costs O(rate * classes) at most.
    """
    if rate >= 1:
        return None
    positive_P = torch.unique(label_N)  # sorted
    wanted = sample_size(classes, rate, positive_P.numel()) - positive_P.numel()
    playing_k = positive_P
    if wanted > 0:
        negative_k = _first_others(classes, wanted, positive_P, stream_key(seed, step))
        playing_k = torch.cat([positive_P, negative_k])
    if span is not None:
        playing_k = playing_k[(playing_k >= span.start) & (playing_k < span.stop)]
    return torch.sort(playing_k).values


def stream_key(*parts: int) -> int:
    """Mix integers into one 64-bit key (splitmix64's finaliser after each part)."""
    key = 0
    for part in parts:
        key = (key ^ (part & _MASK64)) + 0x9E3779B97F4A7C15 & _MASK64
        key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
        key = (key ^ key >> 27) * 0x94D049BB133111EB & _MASK64
        key ^= key >> 31
    return key


def permute(counter_i: Tensor, bits: int, key: int) -> Tensor:
    """Permute [0, 2^bits) by a keyed unbalanced Feistel network; int64 (i) in, int64 (i) out.

    Each round xors one half with a keyed hash of the other, so every round is a bijection.
    """
    if not 1 <= bits <= 60:
        raise ValueError(f"bits is {bits}, expected 1 to 60")
    low_bits = bits - bits // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << bits // 2) - 1
    low_i, high_i = counter_i & low_mask, counter_i >> low_bits
    for number in range(_ROUNDS):
        round_key = stream_key(key, number)
        if number % 2:
            low_i = low_i ^ (_hash(high_i, round_key) & low_mask)
        else:
            high_i = high_i ^ (_hash(low_i, round_key) & high_mask)
    return (high_i << low_bits) | low_i


def _hash(value_i: Tensor, key: int) -> Tensor:
    """Hash values below 2^31 with a 64-bit key to 31 bits, never leaving int64."""
    mixed_i = ((value_i ^ (key & _MASK31)) * _ODD[0]) ^ (key >> 31 & _MASK31)
    mixed_i = (mixed_i ^ (mixed_i >> 29)) & _MASK31
    mixed_i = mixed_i * _ODD[1]
    return (mixed_i ^ (mixed_i >> 27)) & _MASK31


def _first_others(classes: int, wanted: int, positive_P: Tensor, key: int) -> Tensor:
    """Take the first `wanted` classes of the permutation that are not positives."""
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
        found_k = found_k[found_k < classes]
        near_k = torch.searchsorted(positive_P, found_k).clamp_max(positive_P.numel() - 1)
        found_k = found_k[positive_P[near_k] != found_k]
        taken.append(found_k)
        kept += found_k.numel()
        start = stop
    return torch.cat(taken)[:wanted]
