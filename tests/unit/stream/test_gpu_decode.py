"""Decoding elsewhere: the same samples in the same order, and clear refusals."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from glint.errors import InputError, UsageError
from glint.shards import labels
from glint.stream.decode import on_gpu
from glint.stream.loader import Images, Stream


def elsewhere(
    data: Sequence[bytes], size: tuple[int, int], where: Callable[[int], str]
) -> torch.Tensor:
    image = np.stack([simplejpeg.decode_jpeg(one, "RGB") for one in data])
    assert image.shape[1:3] == size and "key" in where(0)
    return torch.from_numpy(image)


@pytest.mark.parametrize("threads", [0, 2])
def test_batches_are_those_of_the_processor(small: Any, threads: int) -> None:
    options = {"labels": labels.current(small.root, small.classes), "batch": 4, "seed": 3}
    here = Stream(small, threads=threads, **options)
    there = Stream(small, threads=threads, images=Images(decoder=elsewhere), **options)
    count = 0
    for a, b in zip(here.batches(1, 1), there.batches(1, 1), strict=True):
        assert torch.equal(a.image, b.image) and torch.equal(a.flip, b.flip)
        assert torch.equal(a.label, b.label) and np.array_equal(a.row, b.row)
        count += 1
    assert count > 2


@pytest.mark.parametrize("workers, augment", [(1, "none"), (0, "lowlight")])
def test_what_does_not_go_with_it_is_refused(small: Any, workers: int, augment: Any) -> None:
    table = labels.current(small.root, small.classes)
    images = Images(augment=augment, decoder=elsewhere)
    with pytest.raises(UsageError, match="goes without loader processes"):
        Stream(small, labels=table, batch=4, workers=workers, images=images)


@pytest.fixture
def vision(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for torchvision.io, decoding with the processor."""
    module = ModuleType("torchvision.io")

    def decode(stored: list[torch.Tensor], mode: str, device: Any) -> list[torch.Tensor]:
        assert mode == "rgb" and device.type == "cuda"
        try:
            found = [simplejpeg.decode_jpeg(one.numpy().tobytes(), "RGB") for one in stored]
        except ValueError as error:
            raise RuntimeError(str(error)) from None
        return [torch.from_numpy(image).permute(2, 0, 1) for image in found]

    module.decode_jpeg = decode  # type: ignore[attr-defined]
    module.ImageReadMode = SimpleNamespace(RGB="rgb")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.io", module)
    return module


def test_the_gpu_s_decoder_gives_rows_of_pixels(vision: ModuleType) -> None:
    decode = on_gpu(torch.device("cuda", 0))
    image = np.random.default_rng(0).integers(0, 255, (2, 112, 112, 3), np.uint8)
    data = [simplejpeg.encode_jpeg(one, 90) for one in image]
    found = decode(data, (112, 112), str)
    assert found.shape == (2, 112, 112, 3)
    assert np.array_equal(found[1].numpy(), simplejpeg.decode_jpeg(data[1], "RGB"))
    with pytest.raises(InputError, match=r"GL0303.*1: expected 96x112 pixels, found 112x112"):
        decode(data, (112, 96), lambda i: str(i + 1))
    png = io.BytesIO()
    Image.fromarray(image[0]).save(png, "PNG")
    assert np.array_equal(decode([data[0], png.getvalue()], (112, 112), str)[1].numpy(), image[0])
    with pytest.raises(InputError, match="0: not a decodable JPEG"):
        decode([b"no JPEG"], (112, 112), str)
    with pytest.raises(
        InputError, match=r"GL0303.*2: not a decodable JPEG, PNG or WebP \(7 bytes\)"
    ):
        decode([*data, b"no JPEG", data[0]], (112, 112), str)


def test_it_needs_a_gpu(vision: ModuleType) -> None:
    with pytest.raises(UsageError, match="needs a GPU, the run is on cpu"):
        on_gpu(torch.device("cpu"))


def test_it_needs_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.io", None)
    with pytest.raises(UsageError, match="needs torchvision"):
        on_gpu(torch.device("cuda", 0))
