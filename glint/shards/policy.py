"""What is done with images that are whole, and not what a set of aligned faces is made of."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from glint.errors import UsageError
from glint.shards import image
from glint.shards.image import Rejected

SIZE = "112x112"
KEEP, REJECT = "keep", "reject"


def size_of(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT. Raises UsageError GL0002."""
    width, _, height = text.partition("x")
    if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        raise UsageError(
            "GL0002", f"expected WIDTHxHEIGHT such as {SIZE}, found {text!r}", where="--size"
        )
    return int(width), int(height)


def check(word: str, option: str) -> None:
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
        suffix, width, height = image.look(data, self.formats, self.on_exif == KEEP)
        if (width, height) != self.size:
            if self.on_size == REJECT:
                raise Rejected("wrong-size", f"{width} x {height}")
            notes["other-size"] += 1
        if suffix == "jpg" and not data.endswith(b"\xff\xd9"):
            notes["trailing-bytes"] += 1
        if self.on_exif == KEEP:
            try:
                image.look(data, self.formats)
            except Rejected as why:
                notes[why.reason] += 1
        return suffix, width, height
