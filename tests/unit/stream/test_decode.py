"""Pixels out of JPEG bytes, and the step to a network's input."""

from __future__ import annotations

import io

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from glint.errors import InputError
from glint.stream.augment import flips, mirrored, to_input
from glint.stream.decode import decode_into


def jpeg(size=(112, 112), mode="RGB", **options):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize(size).convert(mode).save(out, "JPEG", quality=95, **options)
    return out.getvalue()


@pytest.mark.parametrize("options", [{}, {"mode": "L"}, {"progressive": True}])
def test_straight_into_the_batch(options):
    data = jpeg(**options)
    batch = np.zeros((3, 112, 112, 3), dtype=np.uint8)
    decode_into(data, batch[1])
    assert (batch[1] == simplejpeg.decode_jpeg(data)).all() and batch[1].any()
    assert not batch[0].any() and not batch[2].any()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        ((96, 112), "expected 112x112 pixels, found 96x112"),
        ((64, 64), "found 64x64"),
        ((160, 160), "found 160x160"),
        ((224, 56), "found 224x56"),
    ],
)
def test_wrong_size(size, text):
    with pytest.raises(InputError, match=text) as caught:
        decode_into(jpeg(size), np.empty((112, 112, 3), dtype=np.uint8), "here")
    assert caught.value.code == "GL0303" and "here" in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"not a jpeg", jpeg()[:400], jpeg()[:-40]])
def test_undecodable(data):
    with pytest.raises(InputError, match="not a decodable JPEG, PNG or WebP") as caught:
        decode_into(data, np.empty((112, 112, 3), dtype=np.uint8))
    assert caught.value.code == "GL0303"


@pytest.mark.parametrize("channels_last", [False, True])
def test_mirrored_on_the_way_to_the_device(channels_last):
    image = torch.randint(0, 256, (5, 9, 11, 3), dtype=torch.uint8)
    flip = torch.tensor([True, False, True, True, False])
    want = torch.stack([x.flip(1) if f else x for x, f in zip(image, flip)])
    kept = image.clone()
    assert torch.equal(mirrored(image, flip), want) and torch.equal(image, kept)
    x = to_input(image, torch.float32, channels_last, flip=flip)
    assert torch.equal(x, to_input(want, torch.float32, channels_last))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert x.is_contiguous(memory_format=layout)


def test_half_of_all_positions_flip_and_epochs_differ():
    position = np.arange(20_000)
    first, second = flips(1, 0, position), flips(1, 1, position)
    assert abs(first.mean() - 0.5) < 0.02 and abs((first ^ second).mean() - 0.5) < 0.02
    assert (flips(1, 0, position[500:510]) == first[500:510]).all()


@pytest.mark.parametrize("channels_last", [False, True])
def test_input_is_minus_one_to_one(channels_last):
    image = torch.arange(0, 256, dtype=torch.uint8).repeat(3).reshape(2, 8, 16, 3)
    x = to_input(image, torch.float32, channels_last=channels_last)
    assert x.shape == (2, 3, 8, 16) and x.dtype == torch.float32
    want = (image.permute(0, 3, 1, 2).to(torch.float32) / 255 - 0.5) / 0.5
    assert torch.equal(x, want) and x.min() == -1 and x.max() == 1
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert x.is_contiguous(memory_format=layout)
    assert to_input(image, torch.float64).dtype == torch.float64
    assert image.dtype == torch.uint8
