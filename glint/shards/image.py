"""What the first bytes of an image say: format and size, without decoding a pixel."""

from __future__ import annotations

from glint.shards import exif

MAX_BYTES = 16 << 20
MAX_PIXELS = 64_000_000
FORMATS = ("jpg", "png", "webp")

# Start-of-frame markers; 0xc4, 0xc8 and 0xcc lie among them and mean something else.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length


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


def jpeg_size(data: bytes, turned: bool = False) -> tuple[int, int]:
    """Return (width, height) from the frame header of a JPEG.

    A JPEG whose end marker is missing is truncated: entropy-coded data never contains it.
    Bytes behind the end marker are let pass. Raises Rejected.
    """
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
            if not turned:
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
