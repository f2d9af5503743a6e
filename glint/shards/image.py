"""What the first bytes of an image say: format and size, without decoding a pixel."""

# n images

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from glint.shards import exif

MAX_BYTES = 16 << 20
MAX_PIXELS = 64_000_000
FORMATS = ("jpg", "png", "webp")

# Start-of-frame markers; 0xc4, 0xc8 and 0xcc lie among them and mean something else.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length
# The bytes that a walk has looked at, from the first one on -> (width, height); and their lengths.
_fronts: dict[bytes, tuple[int, int]] = {}
_lengths: list[int] = []
_latest: list[bytes] = []  # one of them, or none

U8 = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


class Rejected(Exception):
    """An image or record that is not written; `reason` is a fixed word, `note` the detail."""

    def __init__(self, reason: str, note: str = "") -> None:
        super().__init__(reason, note)
        self.reason, self.note = reason, note


class Looks(NamedTuple):
    """What is known of many images: the place of each format in FORMATS, and the sizes."""

    format_n: Ints
    width_n: npt.NDArray[np.int32]
    height_n: npt.NDArray[np.int32]
    bad: dict[int, Rejected]  # these have none of it


def kind(data: bytes) -> str:
    """Name the format by its magic: jpg, png, webp, gif, bmp, tiff, heif, or '' for none."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[:2] == b"BM" and data[6:10] == b"\0\0\0\0":
        return "bmp"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "tiff"
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"heic", b"heix", b"mif1", b"msf1"):
        return "heif"
    return ""


def look(
    data: bytes, formats: tuple[str, ...] = ("jpg",), turned: bool = False
) -> tuple[str, int, int]:
    """Return (format, width, height) of an encoded image.

    turned: let in images that their Exif record asks to turn or mirror.
    Raises Rejected: empty, too-large (16 MiB), not-an-image, unexpected-format (none of
    `formats`), jpeg-truncated, jpeg-damaged, image-truncated, image-damaged, too-many-pixels (64
    million), exif-rotated.
    """
    if data[:3] == b"\xff\xd8\xff" and "jpg" in formats:
        found, (width, height) = "jpg", jpeg_size(data, turned)
    else:
        if not data:
            raise Rejected("empty")
        found = kind(data)
        if not found:
            raise Rejected("not-an-image", f"begins with {data[:8].hex(' ')}")
        if found not in formats:
            raise Rejected("unexpected-format", found)
        width, height = png_size(data) if found == "png" else webp_size(data)
        if not turned:
            _upright(exif.of_png(data) if found == "png" else exif.of_webp(data))
    if len(data) > MAX_BYTES:
        raise Rejected("too-large", f"{len(data)} bytes")
    if not width or not height:
        raise Rejected("image-damaged", f"{width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise Rejected("too-many-pixels", f"{width} x {height}")
    return found, width, height


def _upright(orientation: int) -> None:
    if orientation != 1:
        raise Rejected("exif-rotated", f"orientation {orientation}")


def look_many(
    data: U8,
    start_n: Ints,
    stop_n: Ints,
    formats: tuple[str, ...] = ("jpg",),
    turned: bool = False,
) -> Looks:
    """Look at the images [start, stop) of `data`; what `look` would raise stands in `bad`."""
    n = len(start_n)
    out = Looks(np.zeros(n, np.int64), np.zeros(n, np.int32), np.zeros(n, np.int32), {})

    def one(j: int) -> None:
        try:
            image = data[start_n[j] : stop_n[j]].tobytes()
            suffix, out.width_n[j], out.height_n[j] = look(image, formats, turned)
        except Rejected as why:
            out.bad[j] = why
            return
        out.format_n[j] = FORMATS.index(suffix)
        for length in _lengths:
            if image[:length] in _fronts:
                _latest[:] = [image[:length]]

    todo_m = np.arange(n)
    for _ in range(3):
        if _latest and "jpg" in formats:  # most begin as the one before did
            front, (width, height) = np.frombuffer(_latest[0], np.uint8), _fronts[_latest[0]]
            size_m = stop_n[todo_m] - start_n[todo_m]
            like_m = (size_m >= len(front)) & (size_m <= MAX_BYTES) & (width * height <= MAX_PIXELS)
            pick_m = todo_m[like_m]
            if len(pick_m):
                same_m = _begins(data, start_n[pick_m], front)
                same_m &= (data[stop_n[pick_m] - 2] == 0xFF) & (data[stop_n[pick_m] - 1] == 0xD9)
                pick_m = pick_m[same_m]
                out.width_n[pick_m], out.height_n[pick_m] = width, height
                rest_n = np.zeros(n, np.bool_)
                rest_n[todo_m] = True
                rest_n[pick_m] = False
                todo_m = np.flatnonzero(rest_n)
        if not len(todo_m):
            return out
        one(int(todo_m[0]))
        todo_m = todo_m[1:]
    for j in todo_m.tolist():
        one(j)
    return out


def _begins(data: U8, start_m: Ints, front: U8) -> npt.NDArray[np.bool_]:
    """Say where `data` reads as `front`, eight bytes or more: gathered and compared by words."""
    same_m = np.ones(len(start_m), np.bool_)
    whole = len(front) // 8 * 8
    for at, size in ((0, whole), (len(front) - 8, 8)):  # all words; the last, which may overlap
        items = np.ndarray(len(data) - size + 1, f"V{size}", data, 0, 1)  # one begins at each byte
        found_mw = items[start_m + at].view(np.uint64).reshape(-1, size // 8)
        same_m &= (found_mw == front[at : at + size].copy().view(np.uint64)).all(axis=1)
    return same_m


def jpeg_size(data: bytes, turned: bool = False) -> tuple[int, int]:
    """Return (width, height) from the frame header of a JPEG.

    A JPEG whose end marker is missing is truncated: entropy-coded data never contains it.
    Bytes behind the end marker are let pass. Raises Rejected.
    """
    for length in _lengths:  # the images of a set begin alike: what decided before decides again
        known = _fronts.get(data[:length])
        if known is not None and data.endswith(b"\xff\xd9"):
            return known
    at, end, orientation = 2, len(data), 1
    while at + 9 <= end:
        if data[at] != 0xFF:
            raise Rejected("jpeg-damaged", f"expected a marker at byte {at}")
        marker = data[at + 1]
        if marker in _FRAMES:
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            if not data.endswith(b"\xff\xd9") and data.rfind(b"\xff\xd9", at) < 0:
                raise Rejected("jpeg-truncated", "no end marker")
            if not width or not height:
                raise Rejected("jpeg-damaged", f"{width} x {height} pixels")
            if orientation == 1:
                _keep(data[: at + 9], (width, height))
            elif not turned:
                _upright(orientation)
            return width, height
        if marker == 0xFF:  # fill
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker in (0xDA, 0xD9, 0xD8, 0x00):
            raise Rejected("jpeg-damaged", f"marker 0x{marker:02x} before the frame header")
        else:
            size = data[at + 2] << 8 | data[at + 3]
            if marker == 0xE1 and orientation == 1:
                orientation = exif.of_segment(data[at + 4 : at + 2 + size])
            at += 2 + size
    raise Rejected("jpeg-truncated", "ends before the frame header")


def _keep(front: bytes, size: tuple[int, int]) -> None:
    """Remember the bytes that the walk of a JPEG has looked at, and the size that they say."""
    if len(front) > 4096:
        return
    _latest.clear()
    if len(_fronts) >= 1024 or (len(front) not in _lengths and len(_lengths) >= 6):
        _fronts.clear()
        _lengths.clear()
    if len(front) not in _lengths:
        _lengths.append(len(front))
    _fronts[front] = size


def png_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of a PNG. Raises Rejected."""
    if len(data) < 33 or data[12:16] != b"IHDR" or b"IEND" not in data[-64:]:
        raise Rejected("image-truncated", "no IHDR or no IEND")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def webp_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of a WebP. Raises Rejected."""
    if len(data) < 30 or int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise Rejected("image-truncated", "shorter than its RIFF header says")
    if data[12:16] == b"VP8 ":
        return (
            int.from_bytes(data[26:28], "little") & 0x3FFF,
            int.from_bytes(data[28:30], "little") & 0x3FFF,
        )
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
