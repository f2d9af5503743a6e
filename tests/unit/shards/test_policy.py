"""Images that are whole and yet not aligned faces: other sizes, Exif's turns, bytes behind the end.

And what the decoder makes of JPEGs that are not three channels of eight bits: golden pixels.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from glint.errors import InputError, UsageError
from glint.pipelines.dataset import shard as stage
from glint.shards.image import EXIF, Rejected, look, orientation
from glint.stream.decode import decode_into

ALL = ("jpg", "png", "webp")
Jpeg = Callable[[int], bytes]


def turned(kind: str, orientation: int, **options: object) -> bytes:
    record = Image.Exif()
    record[0x010F] = "a camera"
    record[0x0112] = orientation
    out = io.BytesIO()
    Image.new("RGB", (24, 16), (200, 30, 90)).save(out, kind, exif=record, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_seen_in_every_format(kind: str, orientation: int) -> None:
    data = turned(kind, orientation)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.getexif()[0x0112] == orientation
    for _ in range(2):  # the second time, beginnings may be known
        if orientation == 1:
            assert look(data, ALL)[1:] == (24, 16)
            continue
        with pytest.raises(Rejected) as caught:
            look(data, ALL)
        assert caught.value.args == ("exif-rotated", f"orientation {orientation}")
        assert look(data, ALL, turned=True)[1:] == (24, 16)


def test_exif_behind_other_segments_and_in_either_byte_order(jpeg: Jpeg) -> None:
    for order in ("<", ">"):
        entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, 6, 0)
        head = b"II*\0" if order == "<" else b"MM\0*"
        tiff = head + struct.pack(order + "IH", 8, 1) + entry
        segment = b"\xff\xe1" + struct.pack(">H", 8 + len(tiff)) + EXIF + tiff
        at = 4 + struct.unpack(">H", jpeg(0)[4:6])[0]  # behind JFIF's
        comment = b"\xff\xfe\0\x04hi"
        xmp = b"\xff\xe1\0\x10http://ns.adob"
        with pytest.raises(Rejected, match="orientation 6"):
            look(jpeg(0)[:at] + comment + xmp + segment + jpeg(0)[at:])
        for size in range(len(tiff)):  # a record that is cut says nothing, and breaks nothing
            assert orientation(tiff[:size]) in (1, 6)
    assert orientation(b"") == orientation(b"II*\0\xff\xff\xff\xff") == 1


def test_an_image_that_begins_like_a_turned_one_is_not_let_in() -> None:
    """What is remembered of one beginning must not let the next one pass."""
    data = turned("JPEG", 6)
    assert look(data, turned=True)[1:] == (24, 16)
    with pytest.raises(Rejected, match="exif-rotated"):
        look(data)


@pytest.fixture
def faces(tmp_path: Path, jpeg: Jpeg) -> Path:
    images = {
        "a": jpeg(0),
        "large": Image.new("RGB", (250, 250)),
        "wide": Image.new("RGB", (224, 112)),
        "turned": turned("JPEG", 3),
        "tail": jpeg(1) + b"behind the end",
        "z": jpeg(2),
    }
    folder = tmp_path / "faces" / "one"
    folder.mkdir(parents=True)
    for name, image in images.items():
        if isinstance(image, Image.Image):
            image.save(folder / f"{name}.jpg")
        else:
            (folder / f"{name}.jpg").write_bytes(image)
    return tmp_path / "faces"


def reasons(out: Path) -> dict[str, tuple[str, str]]:
    rows = pq.read_table(out / "quarantine.parquet").to_pylist()
    return {Path(row["source"]).stem: (row["reason"], row["note"]) for row in rows}


def test_by_default_sizes_stay_and_turns_do_not(faces: Path, tmp_path: Path) -> None:
    result = stage.shard(faces, tmp_path / "out")
    assert reasons(tmp_path / "out") == {"turned": ("exif-rotated", "orientation 3")}
    assert result.notes == {"other-size": 2, "trailing-bytes": 1}
    assert result.quarantine_reasons == {"exif-rotated": 1} and result.written == 5


@pytest.mark.parametrize("workers", [1, 2])
def test_policies(faces: Path, tmp_path: Path, workers: int) -> None:
    options = stage.Options(2, on_size="reject", on_exif="keep")
    result = stage.shard(faces, tmp_path / "out", options, workers=workers)
    assert reasons(tmp_path / "out") == {
        "large": ("wrong-size", "250 x 250"),
        "wide": ("wrong-size", "224 x 112"),
        "turned": ("wrong-size", "24 x 16"),
    }
    assert result.notes == {"trailing-bytes": 1}
    options = stage.Options(2, on_size="reject", on_exif="keep", size="24x16")
    result = stage.shard(faces, tmp_path / "small", options, workers=workers, max_bad=0.9)
    assert (result.written, result.notes) == (1, {"exif-rotated": 1})


def test_words_that_are_no_policy() -> None:
    with pytest.raises(
        UsageError, match="--on-size: expected keep or reject, found resize"
    ) as said:
        stage.Options(on_size="resize")
    assert "never re-encoded" in said.value.hint
    with pytest.raises(UsageError, match="--on-exif: expected keep or reject, found apply"):
        stage.Options(on_exif="apply")
    for size in ("112", "112x", "x", "-1x5", "112x112x3"):
        with pytest.raises(UsageError, match="--size: expected WIDTHxHEIGHT"):
            stage.Options(size=size)


def decoded(data: bytes, side: int = 16) -> np.ndarray:
    out = np.empty((side, side, 3), np.uint8)
    decode_into(data, out)
    return out


def plain(mode: str, colour: object, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (16, 16), colour).save(out, kind, **options)
    return out.getvalue()


def test_golden_pixels() -> None:
    """Colours are plain, so that no decoder's rounding of edges is in them."""
    golden = {
        "grey": (plain("L", 77), (77, 77, 77)),
        # (255 - c)(255 - k) / 255 for each ink c, no colour profile
        "cmyk": (plain("CMYK", (0, 100, 50, 20), quality=100), (235, 143, 189)),
        "colour": (plain("RGB", (200, 30, 90), quality=100, subsampling=0), (200, 30, 90)),
        "turned": (turned("JPEG", 6, quality=100, subsampling=0), (200, 30, 90)),
    }
    for name, (data, expected) in golden.items():
        out = np.empty((16, 24 if name == "turned" else 16, 3), np.uint8)
        decode_into(data, out)  # a turned one decodes as stored: nothing here turns it
        assert np.abs(out.astype(int) - expected).max() <= 2, name


@pytest.mark.parametrize(
    "data, expected",
    [
        (plain("I;16", 30_000, "PNG"), (117, 117, 117)),
        (plain("RGBA", (1, 2, 3, 128), "PNG"), (1, 2, 3)),
        (plain("LA", (1, 128), "PNG"), (1, 1, 1)),
        (plain("1", 1, "PNG"), (255, 255, 255)),
        (plain("RGB", (9, 90, 200), "WEBP", lossless=True), (9, 90, 200)),
        (plain("RGBA", (1, 2, 3, 128), "WEBP", lossless=True), (1, 2, 3)),
    ],
    ids=["16 bit", "alpha", "grey with alpha", "one bit", "webp", "webp with alpha"],
)
def test_png_and_webp_are_decoded(data: bytes, expected: tuple[int, ...]) -> None:
    assert decoded(data)[5, 7].tolist() == list(expected)


@pytest.mark.parametrize(
    "data", [plain("RGB", 0, "GIF"), plain("RGB", 0, "TIFF"), plain("RGB", 0, "PNG")[:48]]
)
def test_what_the_reader_of_training_refuses(data: bytes) -> None:
    with pytest.raises(InputError, match="GL0303"):
        decoded(data)
