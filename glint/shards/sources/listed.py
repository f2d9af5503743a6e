"""What sources that list their images before they read one have in common: rows, names, labels."""

# n records

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from glint.files.strings import BLOCK, packed
from glint.shards.image import Rejected
from glint.shards.sources.source import Rows, Source, shown

_IMAGES = (b".jpg", b".jpeg", b".png", b".webp", b".bmp", b".gif", b".tif", b".tiff")
_WEBFACE = re.compile(rb"(?:.*/)?([0-9])/(\1_[0-9]+_[0-9]+)|([0-9]_[0-9]+_[0-9]+)", re.DOTALL)

# What a listing finds wrong with a record; its name, with hyphens, is the reason that is told.
Flaw = IntEnum(
    "Flaw",
    "sound no_identity bad_name unsafe_member duplicate_name encrypted unsupported_method "
    "no_image no_label label_not_integer ambiguous_sample",
    start=0,
)
Found = Iterator[tuple[bytes, tuple[int, ...]]]  # name and row of each record


class Listed(Source):
    """Records with names, in Arrow as classes are."""

    by_row = ("paths",)

    def __init__(
        self,
        root: Path,
        row_n: Rows,
        paths: pa.Array,
        classes: Sequence[bytes],
        names: Sequence[bytes],
        layout: str = "",
        **facts: Any,
    ) -> None:
        counts = {"images": len(row_n), "identities": len(classes)}
        super().__init__(root, row_n, {"layout": layout, **counts, **facts})
        self.paths, self.classes, self.names = paths, packed(classes), packed(names)

    def name(self, i: int) -> str:
        return shown(self.paths[i].as_py())

    def _sound(self, i: int) -> Any:
        """Return a row. Raises Rejected where it has a flaw."""
        if flaw := self.row["flaw"][i]:
            raise Rejected(Flaw(flaw).name.replace("_", "-"))
        return self.row[i]


def gathered(found: Found, dtype: np.dtype[Any]) -> tuple[Rows, pa.Array]:
    """Pack rows and names as they are listed, a block at a time: objects take ten times as much."""
    rows, names = [np.empty(0, dtype)], [packed([])]
    while piece := list(islice(found, BLOCK)):
        rows.append(np.array([row for _, row in piece], dtype))
        names.append(packed(name for name, _ in piece))
    return np.concatenate(rows), pa.concat_arrays(names)


def shelve(
    row_n: Rows, folders: Iterable[bytes], *, common: bool = False
) -> tuple[bool, list[bytes]]:
    """Make labels of the places in `folders`; return whether they are WebFace's, and the classes.

    A label is the path of a folder, without what all have in common where `common` is set; in
    WebFace's tree, D/D_N_NNNNNNN, its last part.
    """
    labels = list(folders)
    last = last_parts(labels)
    webface = bool(labels) and len(set(last)) == len(last) and all(map(_WEBFACE.fullmatch, labels))
    if webface:
        labels = last
    elif common and labels:
        parts = [label.split(b"/") for label in labels]
        same, shallow = 0, min(map(len, parts)) - 1
        while same < shallow and len({p[same] for p in parts}) == 1:
            same += 1
        labels = [b"/".join(p[same:]) for p in parts]
    return webface, ranked(row_n, labels)


def ranked(row_n: Rows, labels: Sequence[bytes]) -> list[bytes]:
    """Return the classes in order, and put their places where those in `labels` were; -1 stays.

    They are in the order of numbers where all are integers, else of bytes.
    """
    classes = sorted(set(labels))
    if all(label.isdigit() for label in classes):
        classes.sort(key=lambda label: (len(label.lstrip(b"0")), label.lstrip(b"0")))
    place = {label: i for i, label in enumerate(classes)}
    rank = np.array([*(place[label] for label in labels), -1], np.int64)
    row_n["label"] = rank[row_n["label"]]
    return classes


def last_parts(folders: Iterable[bytes]) -> list[bytes]:
    """Return what stands behind the last slash of each."""
    return [folder.rsplit(b"/", 1)[-1] for folder in folders]


def is_image(name: bytes) -> bool:
    """Say whether a name ends as one of an image does."""
    return name.lower().endswith(_IMAGES)


def has_control(name: bytes) -> bool:
    """Say whether a control character is in a name."""
    return any(byte < 32 or byte == 127 for byte in name)


def alike(labels: Iterable[bytes]) -> list[str]:
    """Return a note on labels that only the form of their Unicode tells apart, if any."""
    seen: dict[str, int] = {}
    for label in labels:
        if not label.isascii():
            form = unicodedata.normalize("NFC", shown(label))
            seen[form] = seen.get(form, 0) + 1
    same = [form for form, count in seen.items() if count > 1]
    if not same:
        return []
    some = ", ".join(same[:3]) + (", ..." if len(same) > 3 else "")
    return [
        f"{sum(seen[form] for form in same)} identities are apart only by the Unicode form of "
        f"their names (NFC, NFD): {some}; rename them alike if they are the same person"
    ]


def counted(count: int, several: str, one: str = "") -> list[str]:
    """Return a note that counts something, if there is any."""
    return [f"{count} {(one if count == 1 else '') or several}"] if count else []
