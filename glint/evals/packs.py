"""Verification packs: InsightFace's `.bin`, a pickle of (images in pair order, bool per pair)."""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from glint.errors import InputError, UsageError
from glint.evals import safe_pickle
from glint.evals.safe_pickle import PlainArray
from glint.files import atomic, reads

MAX_FILE = 1 << 31  # bytes; the largest packs in use are below 100 MB
MAX_IMAGE = 16 << 20  # bytes of one encoded image


@dataclass
class Pairs:
    """Image pairs to verify.

    images: encoded images; pair i is images[first[i]] and images[second[i]], by default
    images[2i] and images[2i+1]. same: bool per pair. folds: fold of each pair, None = ten equal
    runs. name: what to call the set; labels: what to call an image in a message.
    """

    images: Sequence[bytes]
    same: np.ndarray
    first: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    second: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    folds: np.ndarray | None = None
    name: str = "pairs"
    labels: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not len(self.first):
            self.first = np.arange(len(self.same), dtype=np.int64) * 2
            self.second = self.first + 1

    def __len__(self) -> int:
        return len(self.same)


def read_bin(path: str | Path) -> Pairs:
    """Read a verification pack of Python 2 or 3, of bytes or of numpy arrays.

    Raises UsageError GL0001 where there is no such file, UnsafeError GL0801 where the pickle asks
    for more than plain data or than its size allows, InputError GL0802 where it is cut short or
    holds something else than pairs.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError("GL0001", "no such file", where=str(path))
    if path.stat().st_size > MAX_FILE:
        raise InputError(
            "GL0802", f"{path.stat().st_size} bytes, expected at most {MAX_FILE}", where=str(path)
        )
    if why := reads.stand_in(path):
        raise InputError("GL0802", f"expected a pack, found {why}", where=str(path))
    if _is_text(path):
        raise UsageError(
            "GL0002", f"{path.name} is a text list of pairs, not a pack", where=str(path),
            hint="add --dataset with the dataset or folder of its images; glint pack makes a .bin",
        )  # fmt: skip
    loaded = safe_pickle.load(path.read_bytes(), str(path), max_item=MAX_IMAGE)
    return _pairs(loaded, path)


def _is_text(path: Path) -> bool:
    with reads.open_plain(path) as file:
        head = file.read(4096)
    lines = head.split(b"\n")
    plain = not re.search(rb"[^\t\r\n\x20-\x7e\x80-\xff]", head) and len(lines) > 1
    return plain and len(lines[0].split()) >= 2 and lines[0].strip()[:1] not in (b"(", b"c")


def nonsense(pairs: Pairs) -> str:
    """Say why an accuracy of these pairs would say nothing, "" where nothing is seen."""
    if len(pairs) > 1 and pairs.same.all():
        return f"all {len(pairs)} pairs are of one person: nothing is told apart"
    if len(pairs) > 1 and not pairs.same.any():
        return f"none of {len(pairs)} pairs is of one person"
    if isinstance(pairs.images, list):
        equal = [pairs.images[a] == pairs.images[b] for a, b in zip(pairs.first, pairs.second)]
        equal_n = np.array(equal, dtype=bool)
        if (equal_n & ~pairs.same).any():
            count = int((equal_n & ~pairs.same).sum())
            return (
                f"{count} pairs of two people hold one image twice: flags and images do not match"
            )
        if len(pairs) > 1 and equal_n[pairs.same].all():
            return "every pair of one person holds one image twice"
    return ""


def write_bin(path: str | Path, images: Sequence[bytes], same: Sequence[bool]) -> None:
    """Write a verification pack that insightface reads; the file appears complete or not at all.

    images: encoded, two per pair. Raises InputError GL0802 where the counts do not fit.
    """
    path = Path(path)
    if len(images) != 2 * len(same):
        raise _malformed(f"{len(images)} images for {len(same)} pairs, expected two each", path)
    flags = [bool(value) for value in same]
    with atomic.replacing(path) as file:
        pickle.dump(([bytes(image) for image in images], flags), file, protocol=4)


def _malformed(what: str, path: Path | str) -> InputError:
    return InputError(
        "GL0802", what, where=str(path),
        hint="a pack is a pickle of (list of 2N encoded images, list of N bools)",
    )  # fmt: skip


def _pairs(loaded: object, path: Path) -> Pairs:
    if not isinstance(loaded, tuple | list) or len(loaded) != 2:
        raise _malformed(f"expected a pair of lists, found {type(loaded).__name__}", path)
    images, flags = loaded
    if isinstance(flags, PlainArray) and isinstance(images, list | tuple):
        if 2 * flags.count != len(images):
            what = f"{len(images)} images for {flags.count} pairs, expected two each"
            raise _malformed(what, path)
        flags = flags.numbers()
    if not isinstance(images, list | tuple) or not isinstance(flags, list | tuple):
        found = f"{type(images).__name__} and {type(flags).__name__}"
        raise _malformed(f"expected two lists, found {found}", path)
    if len(images) % 2:
        raise _malformed(f"an odd number of images ({len(images)}), expected two per pair", path)
    if len(images) != 2 * len(flags):
        raise _malformed(f"{len(images)} images for {len(flags)} pairs, expected two each", path)
    if not flags:
        raise _malformed("no pairs", path)
    for i, flag in enumerate(flags):
        if not isinstance(flag, bool | int | float) or flag not in (0, 1):
            found = str(flag) if isinstance(flag, int | float) else type(flag).__name__
            raise _malformed(f"pair {i}: expected True or False, found {found}", path)
    return Pairs(
        [_image(item, i, path) for i, item in enumerate(images)],
        np.array([bool(flag) for flag in flags], dtype=bool),
        name=path.stem,
    )


def _image(item: object, number: int, path: Path) -> bytes:
    if isinstance(item, PlainArray) and item.code == "u1":
        item = item.raw
    item = bytes(item) if isinstance(item, bytearray) else item
    if not isinstance(item, bytes) or not item:
        found = "nothing" if item == b"" else type(item).__name__
        raise _malformed(f"image {number}: expected encoded bytes, found {found}", path)
    return item
