"""What is known of an image without decoding it."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from glint.shards.image import Rejected, look


def encoded(kind: str, width: int, height: int, **options: object) -> bytes:
    pixel = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixel).save(out, kind, **options)
    return out.getvalue()


def reason(data: bytes, formats: tuple[str, ...] = ("jpg",)) -> str:
    with pytest.raises(Rejected) as caught:
        look(data, formats)
    return caught.value.reason


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"optimize": True},
        {"comment": b"\xff\xd9" * 9},
        {"restart_marker_blocks": 1},
    ],
)
def test_sizes_of_jpegs(options: dict[str, object]) -> None:
    data = encoded("JPEG", 112, 96, **options)
    assert look(data) == ("jpg", 112, 96)
    assert look(data + b"trailing garbage") == ("jpg", 112, 96)


def test_what_stands_before_the_frame_header(jpeg: Callable[[int], bytes]) -> None:
    data = jpeg(0)
    assert reason(data[:-2]) == "jpeg-truncated" and reason(data[:200]) == "jpeg-truncated"
    assert look(data + b"tail") == ("jpg", 112, 112)
    assert reason(data + b"\0" * (16 << 20) + b"\xff\xd9") == "too-large"
    at = data.index(b"\xff\xc0")
    for size in (0, 1, 255, 256, 2999):
        made = data[:2] + b"\xff\xfe\0\x04" + struct.pack(">H", size) + data[2:]
        made = made[: at + 6 + 5] + struct.pack(">HH", 1 + size, 7) + made[at + 6 + 9 :]
        assert look(made) == ("jpg", 7, 1 + size)
    for size in range(40):
        made = data[:2] + b"\xff\xfe" + struct.pack(">H", 2 + size) + b"\0" * size + data[2:]
        assert look(made) == ("jpg", 112, 112) and reason(made[:at]) == "jpeg-truncated"


def test_a_jpeg_cut_anywhere_is_flagged(jpeg: Callable[[int], bytes]) -> None:
    data = jpeg(0)
    assert look(data) == ("jpg", 112, 112)
    for size in range(3, len(data)):
        assert reason(data[:size]) == "jpeg-truncated", size
    assert reason(b"") == "empty"


@pytest.mark.parametrize("options", [{}, {"lossless": True}])
def test_other_formats_only_when_allowed(options: dict[str, object]) -> None:
    webp = encoded("WEBP", 31, 17, **options)
    for kind, data in (("png", encoded("PNG", 31, 17)), ("webp", webp)):
        assert reason(data) == "unexpected-format"
        assert look(data, ("jpg", "png", "webp")) == (kind, 31, 17)
        assert reason(data[:-70], ("png", "webp")) == "image-truncated"
    assert reason(encoded("JPEG", 8, 8), ("png",)) == "unexpected-format"


@pytest.mark.parametrize(
    "data, word",
    [
        (b"<html>403 Forbidden</html>", "not-an-image"),
        (b"\0" * 100, "not-an-image"),
        (b"GIF89a" + b"\0" * 30, "unexpected-format"),
        (b"II*\0" + b"\0" * 30, "unexpected-format"),
        (b"RIFF\0\0\0\0WAVEfmt ", "not-an-image"),
        (b"\xff\xd8", "not-an-image"),
        (b"\xff\xd8\xff\xda" + b"\0" * 20, "jpeg-damaged"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 20, "jpeg-damaged"),
    ],
)
def test_what_is_no_image(data: bytes, word: str) -> None:
    assert reason(data) == word


def test_bombs_are_refused_by_their_header(jpeg: Callable[[int], bytes]) -> None:
    data = jpeg(0)
    at = data.index(b"\xff\xc0")
    bomb = data[: at + 5] + struct.pack(">HH", 65535, 65535) + data[at + 9 :]
    assert reason(bomb) == "too-many-pixels"
    assert reason(data[: at + 5] + b"\0\0\0\0" + data[at + 9 :]) == "jpeg-damaged"
    assert reason(data + b"\0" * (16 << 20)) == "too-large"
