"""Hashes of pictures: few bits for the same picture, every near pair found."""

from __future__ import annotations

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from glint.conflicts import image_hash


def brute(hash_n: np.ndarray, most: int) -> set[tuple[int, int, int]]:
    values = [int(v) for v in hash_n]
    return {
        (i, j, bin(values[i] ^ values[j]).count("1"))
        for i in range(len(values))
        for j in range(i + 1, len(values))
        if bin(values[i] ^ values[j]).count("1") <= most
    }


@settings(max_examples=60, deadline=None)
@given(
    centres=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    turned=st.lists(
        st.tuples(st.integers(0, 3), st.sets(st.integers(0, 63), max_size=5)), max_size=40
    ),
    most=st.integers(0, 4),
)
def test_near_pairs_equal_brute_force(centres: list, turned: list, most: int) -> None:
    values = [centres[at % len(centres)] ^ sum(1 << bit for bit in bits) for at, bits in turned]
    hash_n = np.array(values, np.uint64)
    a, b, bits = image_hash.near(hash_n, most)
    found = set(zip(a.tolist(), b.tolist(), bits.tolist()))
    expected = brute(hash_n, most)
    assert found <= expected
    if len(values) == 0 or np.unique(hash_n, return_counts=True)[1].max() <= image_hash.EQUAL:
        assert found == expected


def test_many_equal_hashes_cost_no_square() -> None:
    a, b, bits = image_hash.near(np.zeros(3000, np.uint64))
    assert len(a) < 3000 * image_hash.EQUAL and not bits.any()
    assert set(a.tolist()) | set(b.tolist()) == set(range(3000))
    with pytest.raises(ValueError, match="at most 4 bits"):
        image_hash.near(np.zeros(2, np.uint64), 5)


def grey(image_HW3: np.ndarray, quality: int) -> np.ndarray:
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(image_HW3), quality=quality)
    small = simplejpeg.decode_jpeg(data, "GRAY", min_height=48, min_width=48)
    return image_hash.shrunk(small[..., 0])


def test_the_same_picture_in_other_bytes() -> None:
    rng = np.random.default_rng(0)
    pictures = [
        np.kron(rng.integers(40, 216, (14, 14, 3)), np.ones((16, 16, 1))) for _ in range(30)
    ]
    plain = image_hash.phash(np.stack([grey(p.astype(np.uint8), 95) for p in pictures]))
    worse = image_hash.phash(np.stack([grey(p[::2, ::2].astype(np.uint8), 60) for p in pictures]))
    lighter = image_hash.phash(
        np.stack([grey((p * 0.9 + 20).astype(np.uint8), 95) for p in pictures])
    )
    assert image_hash.distance(plain, worse).max() <= image_hash.BITS
    assert image_hash.distance(plain, lighter).max() <= image_hash.BITS
    other = image_hash.distance(plain, np.roll(plain, 1))
    assert other.min() > 12 and 24 < other.mean() < 40


def test_cells_average() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (70, 45), np.uint8)
    small = image_hash.shrunk(picture)
    assert small.shape == (image_hash.SIDE, image_hash.SIDE)
    assert small.mean() == pytest.approx(picture.mean(), rel=1e-5)
    np.testing.assert_array_equal(image_hash.shrunk(small.astype(np.uint8)), small.astype(np.uint8))
