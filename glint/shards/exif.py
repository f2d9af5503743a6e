"""The orientation that an image's Exif record asks for: 1 is as stored, 2 to 8 are turned."""

from __future__ import annotations

from typing import Literal

MARK = b"Exif\0\0"
_ORDER: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
_TAG, _SHORT = 0x0112, 3


def orientation(tiff: bytes) -> int:
    """Return the orientation in the first directory of an Exif record; 1 where there is none."""
    order = _ORDER.get(tiff[:4])
    if order is None:
        return 1

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    at = number(4, 4)
    for entry in range(at + 2, min(at + 2 + 12 * number(at, 2), len(tiff) - 11), 12):
        if number(entry, 2) == _TAG and number(entry + 2, 2) == _SHORT:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def of_segment(segment: bytes) -> int:
    """Return the orientation that the payload of a JPEG's APP1 segment asks for."""
    return orientation(segment[len(MARK) :]) if segment.startswith(MARK) else 1


def of_png(data: bytes) -> int:
    """Return the orientation that a PNG's eXIf chunk asks for."""
    at = 8
    while at + 12 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"eXIf":
            return orientation(data[at + 8 : at + 8 + size])
        at += 12 + size
    return 1


def of_webp(data: bytes) -> int:
    """Return the orientation that a WebP's EXIF chunk asks for."""
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF":
            tiff = data[at + 8 : at + 8 + size]
            return orientation(tiff.removeprefix(MARK))
        at += 8 + size + size % 2
    return 1
