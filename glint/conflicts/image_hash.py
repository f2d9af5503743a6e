"""Near duplicates: a 64-bit hash of what an image shows, and every pair a few bits apart.

The hash is the sign of the 64 lowest frequencies (DCT) of a small grey picture against their
median: scaling, recompression and changes of brightness turn few bits of it. Aligned faces share
low frequencies, so other evidence has to confirm a pair.
"""

# n images, K pairs, HW height and width

from __future__ import annotations

from functools import lru_cache
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

SIDE = 32  # of the grey picture
LOW = 8  # frequencies kept in each direction
BANDS = 7  # of a hash; pairs that differ in at most BITS bands agree in the others
BITS = 4
EQUAL = 16  # images that stand for all of one hash

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


def shrunk(grey_HW: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Average a grey picture down to SIDE x SIDE, each cell over the pixels that it covers."""
    height, width = grey_HW.shape
    small: npt.NDArray[np.float32] = _cells(height) @ grey_HW.astype(np.float32) @ _cells(width).T
    return small


@lru_cache(maxsize=64)
def _cells(n: int) -> npt.NDArray[np.float32]:
    """Return the share of each of n pixels in each of SIDE cells over them."""
    edge = np.arange(SIDE + 1)[:, None] * n / SIDE
    pixel = np.arange(n)
    covered = np.minimum(edge[1:], pixel + 1) - np.maximum(edge[:-1], pixel)
    share: npt.NDArray[np.float32] = (np.clip(covered, 0, None) * SIDE / n).astype(np.float32)
    return share


def phash(grey_nHW: npt.NDArray[np.float32]) -> Hashes:
    """Hash pictures of SIDE x SIDE; uint64 [n]."""
    from scipy.fft import dctn

    low_nLL = dctn(grey_nHW, axes=(1, 2), norm="ortho")[:, :LOW, :LOW]
    low_n64 = low_nLL.reshape(len(low_nLL), -1)
    middle_n1 = np.median(low_n64[:, 1:], axis=1, keepdims=True)  # not the brightness
    bits_n8 = np.packbits(low_n64 > middle_n1, axis=1)
    hash_n: Hashes = np.ascontiguousarray(bits_n8).view(">u8")[:, 0].astype(np.uint64)
    return hash_n


def distance(one_K: Hashes, other_K: Hashes) -> Ints:
    """Count the bits in which hashes differ."""
    odd_K8 = (one_K ^ other_K).view(np.uint8).reshape(len(one_K), 8)
    return np.asarray(_ONES[odd_K8].sum(axis=1), np.int64)


_ONES = np.array([bin(i).count("1") for i in range(256)], np.uint8)


def near(hash_n: Hashes, most: int = BITS) -> tuple[Ints, Ints, Ints]:
    """Find the pairs a < b of hashes that differ in at most `most` <= 4 bits: (a, b, bits).

    Every such pair: of seven bands of a hash three at least agree in it, so each choice of three is
    a key to sort by, and equal keys are compared (Manku, WWW 2007). Only where more than 16 images
    have one hash, the first 16 stand for it. Time n log n for hashes that spread.
    """
    if not 0 <= most <= BITS:
        raise ValueError(f"at most {BITS} bits, found {most}")
    order = np.argsort(hash_n, kind="stable")
    value_u, start_u, count_u = np.unique(hash_n[order], return_index=True, return_counts=True)
    edge = [64 * i // BANDS for i in range(BANDS + 1)]
    band = [(1 << stop) - (1 << start) for start, stop in pairwise(edge)]
    found = []
    for chosen in combinations(band, BANDS - BITS):
        key_u = value_u & np.uint64(sum(chosen))
        sort_u = np.argsort(key_u, kind="stable")
        key_u, at = key_u[sort_u], np.arange(len(sort_u))
        for step in range(1, len(sort_u)):
            at = at[at + step < len(sort_u)]
            at = at[key_u[at] == key_u[at + step]]
            if not len(at):
                break
            one, other = sort_u[at], sort_u[at + step]
            close = distance(value_u[one], value_u[other]) <= most
            found.append(np.sort(np.stack([one[close], other[close]], axis=1), axis=1))
    unequal_K2 = np.unique(np.concatenate([*found, np.empty((0, 2), np.int64)]), axis=0)
    many = np.flatnonzero(count_u > 1)
    blocks = [*np.stack([many, many], axis=1).tolist(), *unequal_K2.tolist()]
    pairs = []
    for u, v in blocks:
        one = order[start_u[u] : start_u[u] + min(count_u[u], EQUAL)]
        other = order[start_u[v] : start_u[v] + (count_u[v] if u == v else min(count_u[v], EQUAL))]
        both = np.stack(np.meshgrid(one, other, indexing="ij"), axis=-1).reshape(-1, 2)
        pairs.append(np.sort(both[both[:, 0] != both[:, 1]], axis=1))
    pairs_K2 = np.unique(np.concatenate([*pairs, np.empty((0, 2), np.int64)]), axis=0)
    a, b = pairs_K2[:, 0], pairs_K2[:, 1]
    return a, b, distance(hash_n[a], hash_n[b])
