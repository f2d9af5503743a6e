"""Keyed permutations and counter-based hashes: random order without state.

Three families, whose values are fixed for good. 64 bits in numpy, for the order of samples: m
numbers asked for, every argument a scalar or an array that broadcasts to m, all arithmetic in
uint64 and identical on every machine. 31 and 32 bits for the heads, on int64 and int32 tensors:
they use operators alone, so this file needs no torch. The heads' permutation: `sample`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Whole = Any  # a tensor of whole numbers; annotated so that torch need not be loaded

ROUNDS = 8
NARROWEST = 8  # bits: narrower networks favour some permutations (seen at 4 and 5 bits)
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLY_1 = 0xBF58476D1CE4E5B9
_MULTIPLY_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1
_MASK31, _MASK32 = (1 << 31) - 1, (1 << 32) - 1
_ODD_31 = (0x6C8E9CF5, 0x45D9F3B3)  # 31-bit odd multipliers: a 31 x 31 bit product fits int64
ODD_32 = (0x2C1B3C6D, 0x297A2D39)  # odd multipliers of a 32-bit finaliser


def mix(x: Any) -> U64:
    """Hash 64 bits to 64 bits, one to one.

    Source: the finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014; Stafford's variant 13).
    """
    h = np.array(x, dtype=np.uint64, ndmin=1)  # a copy: changed in place below
    h += np.uint64(_GOLDEN)
    h ^= h >> np.uint64(30)
    h *= np.uint64(_MULTIPLY_1)
    h ^= h >> np.uint64(27)
    h *= np.uint64(_MULTIPLY_2)
    h ^= h >> np.uint64(31)
    return h


def key_of(*words: int) -> int:
    """Fold whole numbers (a seed, an epoch, a purpose, ...) into one 64-bit key; order matters."""
    state = 0
    for word in words:
        state = _mix_one(((state * 0x2545F4914F6CDD1D) + (word & _MASK)) & _MASK)
    return state


def stream_key(*parts: int) -> int:
    """Mix whole numbers into one 64-bit key, as heads do: splitmix64's finaliser after each."""
    key = 0
    for part in parts:
        key = _mix_one(key ^ (part & _MASK))
    return key


def _mix_one(h: int) -> int:
    """Do what `mix` does to one number: for that numpy's calls cost more than the sums."""
    h = (h + _GOLDEN) & _MASK
    h = ((h ^ h >> 30) * _MULTIPLY_1) & _MASK
    h = ((h ^ h >> 27) * _MULTIPLY_2) & _MASK
    return h ^ h >> 31


def hash_at(key: int, counter_m: Any) -> U64:
    """Draw the random 64 bits that belong to (key, counter)."""
    counter = np.asarray(counter_m).astype(np.uint64, copy=False)
    return mix(mix(counter) ^ np.uint64(key & _MASK))


def uniform_at(key: int, counter_m: Any) -> npt.NDArray[np.float64]:
    """Draw the number in [0, 1) that belongs to (key, counter)."""
    bits = hash_at(key, counter_m) >> np.uint64(11)
    return np.asarray(bits.astype(np.float64) * 2.0**-53, dtype=np.float64)


def shuffle(index_m: Any, n: Any, key: Any) -> I64:
    """Map each index in [0, n) to its image under the permutation of range(n) named by key.

    n and key may differ per element. No state, no table: a Feistel network of alternating halves
    on the smallest power of two that holds n, walked until the image lies in range (Black and
    Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002).
    """
    return _walk(index_m, n, key, backward=False)


def unshuffle(index_m: Any, n: Any, key: Any) -> I64:
    """Invert `shuffle`."""
    return _walk(index_m, n, key, backward=True)


def _walk(index_m: Any, n: Any, key: Any, *, backward: bool) -> I64:
    x, size, key_m = np.broadcast_arrays(
        np.asarray(index_m), np.asarray(n), np.asarray(key, dtype=np.uint64)
    )
    shape = x.shape
    todo = np.array(x, dtype=np.uint64).reshape(-1)
    size_u = size.astype(np.uint64).reshape(-1)
    uniform = np.ndim(n) == 0 and np.ndim(key) == 0
    keys = key_m.reshape(-1)
    if todo.size and bool((todo >= size_u).any()):
        raise IndexError("index outside the permutation's range")
    if np.ndim(n) == 0 and int(n) == 1:
        return np.zeros(shape, dtype=np.int64)
    if uniform and todo.size:  # scalars broadcast: fewer memory passes
        size_u, keys = size_u[:1], keys[:1]
    bits = _bits(size_u)
    low = bits >> np.uint64(1)
    high = bits - low
    one = np.uint64(1)
    low_mask, high_mask = (one << low) - one, (one << high) - one
    round_keys = [mix(keys ^ np.uint64((_GOLDEN * (i + 1)) & _MASK)) for i in range(ROUNDS)]
    order = range(ROUNDS - 1, -1, -1) if backward else range(ROUNDS)

    def once(v: U64, pick: Any) -> U64:
        lo, lm, hm = low[pick], low_mask[pick], high_mask[pick]
        right, left = v & lm, v >> lo
        for i in order:
            k = round_keys[i][pick]
            if i % 2 == 0:
                left ^= _round(right, k) & hm
            else:
                right ^= _round(left, k) & lm
        return np.asarray((left << lo) | right, dtype=np.uint64)

    everything: Any = slice(None)
    out = once(todo, everything)
    outside = np.flatnonzero(out >= size_u)
    while outside.size:
        pick = everything if uniform else outside
        again = once(out[outside], pick)
        out[outside] = again
        outside = outside[again >= (size_u if uniform else size_u[outside])]
    return out.astype(np.int64).reshape(shape)


def hash_31(value_i: Whole, key: int) -> Whole:
    """Hash values below 2^31 with a 64-bit key to 31 bits, never leaving int64."""
    mixed_i = ((value_i ^ (key & _MASK31)) * _ODD_31[0]) ^ (key >> 31 & _MASK31)
    mixed_i = (mixed_i ^ (mixed_i >> 29)) & _MASK31
    mixed_i = mixed_i * _ODD_31[1]
    return (mixed_i ^ (mixed_i >> 27)) & _MASK31


def hash_32(value_i: Whole, key: int) -> Whole:
    """Hash values below 2^31 with a 64-bit key, int64 whose low 32 bits are the hash."""
    mixed_i = ((value_i ^ (key & _MASK31)) * ODD_32[0]) ^ (key >> 31 & _MASK32)
    mixed_i = (mixed_i ^ (mixed_i >> 29)) & _MASK31
    return (mixed_i * ODD_32[1]) >> 13


def scramble_32(mixed_i: Whole) -> Whole:
    """Mix 32 bits, held as int32, in place."""
    for odd, shift in zip(ODD_32, (15, 16)):
        mixed_i *= odd
        high_i = mixed_i >> shift
        high_i &= (1 << 32 - shift) - 1  # undoes the sign's copies
        mixed_i ^= high_i
    return mixed_i


def _round(half: U64, key: U64) -> U64:
    h = half ^ key
    h *= np.uint64(_MULTIPLY_1)
    h ^= h >> np.uint64(32)
    h *= np.uint64(_MULTIPLY_2)
    h ^= h >> np.uint64(29)
    return h


def _bits(size: U64) -> U64:
    """Return the width of the smallest power of two that holds `size`; at least NARROWEST."""
    rest = size - np.uint64(1)
    bits = np.zeros_like(size)
    for shift in (32, 16, 8, 4, 2, 1):
        big = rest >= (np.uint64(1) << np.uint64(shift))
        bits += np.where(big, np.uint64(shift), np.uint64(0))
        rest = np.where(big, rest >> np.uint64(shift), rest)
    return np.asarray(np.maximum(bits + (rest > 0), NARROWEST), dtype=np.uint64)
