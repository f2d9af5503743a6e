"""Keyed permutations and hashes."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from glint.nn.heads.sample import permute
from glint.nn.heads.storage import column_hashes, noise
from glint.rng import (
    hash_31,
    hash_32,
    hash_at,
    key_of,
    mix,
    shuffle,
    stream_key,
    uniform_at,
    unshuffle,
)


def test_mix_is_splitmix64():
    # First outputs of splitmix64 seeded with 0 (the reference generator adds the constant first).
    golden = 0x9E3779B97F4A7C15
    states = [0, golden, (2 * golden) % 2**64]
    assert [hex(int(v)) for v in mix(np.array(states, dtype=np.uint64))] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


@pytest.mark.parametrize("n", [*range(1, 40), 1000, 4096, 4097])
def test_a_permutation_and_its_inverse(n):
    image = shuffle(np.arange(n), n, 12345)
    assert sorted(image.tolist()) == list(range(n))
    assert (unshuffle(image, n, 12345) == np.arange(n)).all()


def test_sizes_and_keys_may_differ_per_element():
    sizes, keys = np.array([5, 700, 5, 1]), np.array([1, 2, 3, 4], dtype=np.uint64)
    got = shuffle(np.array([4, 44, 4, 0]), sizes, keys)
    want = [int(shuffle(i, n, int(k))) for i, n, k in zip([4, 44, 4, 0], sizes, keys)]
    assert got.tolist() == want


def test_index_outside_is_refused():
    with pytest.raises(IndexError):
        shuffle(np.array([10]), 10, 0)


def test_no_index_is_fine():
    assert shuffle(np.empty(0, dtype=np.int64), 10, 0).shape == (0,)


@pytest.mark.parametrize("n", [3, 4, 5])
def test_all_permutations_are_about_equally_likely(n):
    keys = hash_at(9, np.arange(40_000))
    image = shuffle(
        np.tile(np.arange(n), len(keys)), np.full(n * len(keys), n), np.repeat(keys, n)
    ).reshape(-1, n)
    found, count = np.unique(image, axis=0, return_counts=True)
    assert len(found) == len(list(permutations(range(n))))
    assert chisquare(count).pvalue > 1e-3


def test_positions_are_uniform_and_neighbours_part():
    n = 50_000
    image = shuffle(np.arange(n), n, 7)
    # A uniform permutation moves an index by n/3 on average and keeps about one in place.
    assert abs(np.abs(image - np.arange(n)).mean() / n - 1 / 3) < 0.01
    assert (image == np.arange(n)).sum() < 10
    assert (np.abs(np.diff(image)) == 1).sum() < 15
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.02


def test_hash_depends_on_key_and_counter_and_is_fair():
    u = uniform_at(3, np.arange(100_000))
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.005 and abs(u.std() - 12**-0.5) < 0.005
    assert key_of(1, 2) != key_of(2, 1)
    assert (hash_at(1, np.arange(9)) != hash_at(2, np.arange(9))).all()


def test_a_key_of_one_word_is_the_hash_of_that_word():
    for word in (0, 1, 0xF11B, 2**63, 2**64 - 1):
        assert key_of(word) == int(mix(word)[0])


def test_the_values_of_the_heads_are_fixed():
    """Of runs that were made: other values would sample other classes and round other rows."""
    assert [stream_key(), stream_key(0), stream_key(1, 2), stream_key(2**64 - 1, -3, 7)] == [
        0,
        16294208416658607535,
        13608149317741381227,
        6043844843273254428,
    ]
    image = permute(torch.arange(6), 33, stream_key(1, 2)).tolist()
    assert image == [6692426750, 3882856998, 5187531112, 4135790005, 6830461309, 8327913279]
    assert permute(torch.arange(8), 3, 5).tolist() == [7, 5, 3, 4, 1, 0, 6, 2]
    value, key = torch.tensor([0, 1, 2**31 - 1, 123456789]), 0x123456789ABCDEF0
    assert hash_31(value, key).tolist() == [415284996, 140567115, 1647338845, 877098908]
    low = hash_32(value, key).to(torch.int32).tolist()
    assert low == [-1070526160, 1969919798, 1062204603, 1062798119]
    key = stream_key(3, 2, 4, 1)
    assert noise(torch.tensor([0, 5, 10**9]), 5, key).tolist() == [
        [-17866, -22307, 26802, -1260, -25216],
        [17687, 20930, 22555, 21267, -16371],
        [8987, -23877, 12488, 19888, -4670],
    ]
    columns = column_hashes(5, key, torch.device("cpu")).tolist()
    assert columns == [-1053323013, -554232000, -545654385]
