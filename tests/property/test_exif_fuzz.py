"""Whatever bytes stand where Exif should: an orientation, no exception, no endless walk."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from glint.shards.image import (
    EXIF,
    jpeg_orientation,
    orientation,
    png_orientation,
    webp_orientation,
)


@settings(max_examples=300, deadline=1000)
@given(
    st.sampled_from([b"", b"II*\0", b"MM\0*", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]),
    st.binary(max_size=200),
)
def test_any_bytes(head: bytes, tail: bytes) -> None:
    data = head + tail
    for read in (orientation, jpeg_orientation, png_orientation, webp_orientation):
        assert 1 <= read(data) <= 8
    assert 1 <= png_orientation(b"\x89PNG\r\n\x1a\n" + tail) <= 8
    assert 1 <= webp_orientation(b"RIFF\0\0\0\0WEBP" + tail) <= 8


@given(
    st.sampled_from("<>"),
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(0, 0x0111), st.integers(1, 12)), max_size=5),
    st.binary(max_size=9),
)
def test_the_tag_is_found_among_others(
    order: str, value: int, others: list[tuple[int, int]], gap: bytes
) -> None:
    entries = [struct.pack(order + "HHII", tag, kind, 1, 7) for tag, kind in others]
    entries.append(struct.pack(order + "HHIHH", 0x0112, 3, 1, value, 0))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(gap))
    tiff = head + gap + struct.pack(order + "H", len(entries)) + b"".join(entries)
    assert orientation(tiff) == value
    assert jpeg_orientation(EXIF + tiff) == value
