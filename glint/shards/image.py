"""What the first bytes of an image say: format, size and orientation, without decoding a pixel."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from glint.errors import UsageError

SIZE = "112x112"
KEEP, REJECT = "keep", "reject"
MAX_BYTES = 16 << 20
MAX_PIXELS = 64_000_000
FORMATS = ("jpg", "png", "webp")
EXIF = b"Exif\0\0"

# Start-of-frame markers; 0xc4, 0xc8 and 0xcc lie among them and mean something else.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length
_ORDER: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
_ORIENTATION, _SHORT = 0x0112, 3  # tag and type of an Exif field


class Rejected(Exception):
    """An image or record that is not written; `reason` is a fixed word, `note` the detail."""

    def __init__(self, reason: str, note: str = "") -> None:
        super().__init__(reason, note)
        self.reason, self.note = reason, note


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
            _upright(png_orientation(data) if found == "png" else webp_orientation(data))
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


def jpeg_size(data: bytes, turned: bool = False) -> tuple[int, int]:
    """Return (width, height) from the frame header of a JPEG.

    A JPEG whose end marker is missing is truncated: entropy-coded data never contains it.
    Bytes behind the end marker, and between segments, are let pass, as libjpeg does. Raises
    Rejected.
    """
    at, end, orientation, junk = 2, len(data), 1, -1
    while at + 9 <= end:
        if data[at] != 0xFF or not data[at + 1]:
            junk = at if junk < 0 else junk
            at = data.find(b"\xff", at + 1)
            if at < 0:
                break
            continue
        marker = data[at + 1]
        if marker in _FRAMES:
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            if not data.endswith(b"\xff\xd9") and data.rfind(b"\xff\xd9", at) < 0:
                raise Rejected("jpeg-truncated", "no end marker")
            if not width or not height:
                raise Rejected("jpeg-damaged", f"{width} x {height} pixels")
            if not turned:
                _upright(orientation)
            return width, height
        if marker == 0xFF:  # fill
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker in (0xDA, 0xD9, 0xD8):
            raise Rejected("jpeg-damaged", f"marker 0x{marker:02x} before the frame header")
        else:
            size = data[at + 2] << 8 | data[at + 3]
            if marker == 0xE1 and orientation == 1:
                orientation = jpeg_orientation(data[at + 4 : at + 2 + size])
            at += 2 + size
    if junk >= 0:
        raise Rejected("jpeg-damaged", f"expected a marker at byte {junk}")
    raise Rejected("jpeg-truncated", "ends before the frame header")


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


def orientation(tiff: bytes) -> int:
    """Return the orientation that an Exif record asks for; 1 (as stored) where it names none.

    Only the first directory is read; 2 to 8 are turned or mirrored.
    """
    order = _ORDER.get(tiff[:4])
    if order is None:
        return 1

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    at = number(4, 4)
    for entry in range(at + 2, min(at + 2 + 12 * number(at, 2), len(tiff) - 11), 12):
        if number(entry, 2) == _ORIENTATION and number(entry + 2, 2) == _SHORT:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def jpeg_orientation(segment: bytes) -> int:
    """Return the orientation that the payload of a JPEG's APP1 segment asks for."""
    return orientation(segment[len(EXIF) :]) if segment.startswith(EXIF) else 1


def png_orientation(data: bytes) -> int:
    """Return the orientation that a PNG's eXIf chunk asks for."""
    at = 8
    while at + 12 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"eXIf":
            return orientation(data[at + 8 : at + 8 + size])
        at += 12 + size
    return 1


def webp_orientation(data: bytes) -> int:
    """Return the orientation that a WebP's EXIF chunk asks for."""
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF":
            tiff = data[at + 8 : at + 8 + size]
            return orientation(tiff.removeprefix(EXIF))
        at += 8 + size + size % 2
    return 1


def orientation_asked(data: bytes) -> int:
    """Return the Exif orientation that an image asks for; 1 where it names none."""
    try:
        look(data, FORMATS)
    except Rejected as why:
        if why.reason == "exif-rotated":
            return int(why.note.rpartition(" ")[2])
    return 1


def size_of(text: str, option: str = "--size") -> tuple[int, int]:
    """Read WIDTHxHEIGHT. Raises UsageError GL0002."""
    width, _, height = text.partition("x")
    if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        raise UsageError(
            "GL0002", f"expected WIDTHxHEIGHT such as {SIZE}, found {text!r}", where=option
        )
    return int(width), int(height)


def check_policy(word: str, option: str) -> None:
    """Raise UsageError GL0002 for anything but keep and reject."""
    if word not in (KEEP, REJECT):
        raise UsageError(
            "GL0002",
            f"expected {KEEP} or {REJECT}, found {word}",
            where=option,
            hint="images are never re-encoded: align and crop them to one size before"
            if option == "--on-size"
            else "",
        )


@dataclass(frozen=True)
class Policy:
    """Which images are let in, and what becomes of other sizes and of turned ones."""

    formats: tuple[str, ...]
    size: tuple[int, int]  # width, height
    on_size: str
    on_exif: str

    def look(self, data: bytes, notes: Counter[str]) -> tuple[str, int, int]:
        """Return (format, width, height) of an image; count in `notes` what stays and may surprise.

        Notes: other-size, exif-rotated, trailing-bytes (a JPEG that does not end with its end
        marker). Raises Rejected: what `image.look` raises, wrong-size.
        """
        suffix, width, height = look(data, self.formats, self.on_exif == KEEP)
        if (width, height) != self.size:
            if self.on_size == REJECT:
                raise Rejected("wrong-size", f"{width} x {height}")
            notes["other-size"] += 1
        if suffix == "jpg" and not data.endswith(b"\xff\xd9"):
            notes["trailing-bytes"] += 1
        if self.on_exif == KEEP:
            try:
                look(data, self.formats)
            except Rejected as why:
                notes[why.reason] += 1
        return suffix, width, height
