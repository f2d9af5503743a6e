"""What is done with images that are whole, and not what a set of aligned faces is made of."""

# n images

from __future__ import annotations

from collections import Counter

import numpy as np

from glint.errors import UsageError
from glint.shards import image
from glint.shards.image import U8, Ints, Looks, Rejected

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


def look_many(
    data: U8,
    start_n: Ints,
    stop_n: Ints,
    formats: tuple[str, ...],
    size: tuple[int, int],
    on_size: str,
    on_exif: str,
    notes: Counter[str],
) -> Looks:
    """Look at the images [start, stop) of `data`, reject by policy, count in `notes` what stays.

    Reasons: wrong-size, exif-rotated. Notes: other-size, exif-rotated, trailing-bytes (a JPEG that
    does not end with its end marker).
    """
    looks = image.look_many(data, start_n, stop_n, formats, on_exif == KEEP)
    whole_n = np.ones(len(start_n), np.bool_)
    whole_n[list(looks.bad)] = False
    other_n = whole_n & ((looks.width_n != size[0]) | (looks.height_n != size[1]))
    if on_size == REJECT:
        for j in np.flatnonzero(other_n).tolist():
            looks.bad[j] = Rejected("wrong-size", f"{looks.width_n[j]} x {looks.height_n[j]}")
        whole_n &= ~other_n
    else:
        notes["other-size"] += int(other_n.sum())
    jpeg_m = np.flatnonzero(whole_n & (looks.format_n == image.FORMATS.index("jpg")))
    end_m = stop_n[jpeg_m]
    tail_m = (data[end_m - 2] != 0xFF) | (data[end_m - 1] != 0xD9)
    notes["trailing-bytes"] += int(tail_m.sum())
    if on_exif == KEEP:
        for j in np.flatnonzero(whole_n).tolist():
            try:
                image.look(data[start_n[j] : stop_n[j]].tobytes(), formats)
            except Rejected as why:
                notes[why.reason] += 1
    return looks
