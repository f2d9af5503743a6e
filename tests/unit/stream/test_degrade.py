"""Degradations: decided by counters, exact, and what they say they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glint.errors import UsageError
from glint.shards.labels import LabelTable
from glint.stream import degrade
from glint.stream.degrade import Degrade
from glint.stream.loader import Images, Stream
from glint.stream.order import Order


def pictures(n, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 14, 14, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, axis=1).repeat(8, axis=2))


@pytest.mark.parametrize("kind", ["insightface", "lowlight"])
def test_a_sample_depends_on_its_position_alone(kind):
    whole, parts = pictures(64), pictures(64)
    position = np.arange(100, 164)
    Degrade(kind, 5)(whole, 2, position)
    for at in (slice(40, 64), slice(0, 7), slice(7, 40)):
        Degrade(kind, 5)(parts[at], 2, position[at])
    assert (whole == parts).all()
    changed = (whole != pictures(64)).any(axis=(1, 2, 3))
    assert 15 < changed.sum() < 60
    for seed, epoch in ((6, 2), (5, 3)):
        other = pictures(64)
        Degrade(kind, seed)(other, epoch, position)
        assert (other != whole).any()


def test_shares_are_those_documented():
    image = np.full((3000, 16, 16, 3), 90, dtype=np.uint8)
    image[:, :, ::3] = (200, 30, 60)
    before = image.copy()
    Degrade("insightface", 1)(image, 0, np.arange(3000))
    grey = (image[..., 0] == image[..., 1]).all(axis=(1, 2)) & (image[..., 1] == image[..., 2]).all(
        axis=(1, 2)
    )
    assert abs(grey.mean() - 0.1) < 0.02
    untouched = (image == before).all(axis=(1, 2, 3)).mean()
    assert abs(untouched - 0.8 * 0.9 * 0.8 * 0.9) < 0.04
    image = before.copy()
    Degrade("lowlight", 1)(image, 0, np.arange(3000))
    dark = image.mean(axis=(1, 2, 3)) < 0.75 * before[0].mean()
    assert abs(dark.mean() - 0.3) < 0.03


def test_filters_keep_a_flat_picture_and_take_detail_away():
    flat = np.full((112, 112, 3), 77, dtype=np.uint8)
    checks = np.indices((112, 112)).sum(axis=0) % 2 * np.uint8(255)
    for weight in (degrade.resize(112, 20), degrade.blur(112, 8)):
        assert (weight.sum(axis=1) == 1 << 14).all() and (weight >= 0).all()
        image = flat.copy()
        degrade._apply(image, weight)
        assert (image == flat).all()
        image = np.repeat(checks[..., None], 3, axis=2)
        degrade._apply(image, weight)
        assert np.abs(image[20:-20, 20:-20].astype(int) - 127).max() < 12
    image = pictures(1)[0]
    degrade._apply(image, degrade.resize(112, 112))
    assert (image == pictures(1)[0]).all()


def test_filters_are_exact_whole_number_arithmetic():
    image = pictures(1, seed=3)[0]
    weight = degrade.resize(112, 37).astype(np.int64)
    want = image.astype(np.int64)
    for axes in ("ab,bcd->acd", "ab,cbd->cad"):
        want = (np.einsum(axes, weight, want) + (1 << 13)) >> 14
    degrade._apply(image, degrade.resize(112, 37))
    assert (image == want).all()


def test_colour():
    image = pictures(1)[0]
    grey = image.copy()
    degrade.colour(grey, 1.0, 1.0, 0.0)
    luma = image @ np.array([0.30, 0.586, 0.114])
    assert np.abs(grey[..., 0] - luma).max() < 2 and (grey[..., 0] == grey[..., 2]).all()
    bright = image.copy()
    degrade.colour(bright, 1.3, 1.0, 1.0)
    assert np.abs(bright - np.clip(image * 1.3, 0, 255)).max() <= 3


def test_low_light_is_dark_and_grainy():
    image = np.full((112, 112, 3), 180, dtype=np.uint8)
    degrade.darken(image, 2.0, 0.5, 0.8, key=9)
    want = 255 * 0.5 * (180 / 255) ** 2
    assert abs(image.mean() - want) < 0.5
    assert abs(image.std() - 0.8 * np.sqrt(want + 1)) < 0.5
    again = np.full((112, 112, 3), 180, dtype=np.uint8)
    degrade.darken(again, 2.0, 0.5, 0.8, key=9)
    assert (again == image).all()


LOWLIGHT = Images(augment="lowlight")


def labels(dataset):
    return LabelTable(0, np.arange(dataset.classes), dataset.classes, np.empty((0, 2), np.int64))


@pytest.mark.parametrize("options", [{"workers": 2}, {"threads": 3}, {"order": Order(block=4)}])
def test_a_stream_degrades_the_same_however_it_loads(small, options):
    plain = Stream(
        small,
        labels=labels(small),
        batch=5,
        seed=1,
        images=LOWLIGHT,
        order=options.get("order", Order()),
    )
    other = Stream(small, labels=labels(small), batch=5, seed=1, images=LOWLIGHT, **options)
    made = list(zip(plain.batches(1), other.batches(1)))
    assert len(made) == 10 and all(torch.equal(a.image, b.image) for a, b in made)
    ranks = [
        Stream(
            small,
            labels=labels(small),
            batch=5,
            seed=1,
            images=LOWLIGHT,
            rank=r,
            world=2,
            order=options.get("order", Order()),
        )
        for r in range(2)
    ]
    joined = [batch.image for step in zip(*(r.batches(1) for r in ranks)) for batch in step]
    assert torch.equal(torch.cat(joined), torch.cat([a.image for a, _ in made]))
    untouched = Stream(
        small, labels=labels(small), batch=5, seed=1, order=options.get("order", Order())
    )
    assert any(
        not torch.equal(a.image, b.image) for a, b in zip(plain.batches(1), untouched.batches(1))
    )


def test_an_unknown_kind_is_named(small):
    with pytest.raises(UsageError, match="expected one of none, insightface, lowlight"):
        Stream(small, labels=labels(small), batch=5, images=Images(augment="fog"))
