"""Existing webdataset tars as a source: KEY.jpg beside KEY.cls, or a label in KEY.json."""

# n samples

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from glint.shards.sources import tarball
from glint.shards.sources.archive import unsafe
from glint.shards.sources.packed import (
    AMBIGUOUS,
    BAD_NAME,
    DUPLICATE,
    NO_IMAGE,
    NO_LABEL,
    NOT_INTEGER,
    UNSAFE,
    Member,
    Packed,
    Rows,
    beneath,
)
from glint.shards.sources.source import dense
from glint.shards.strings import Strings

IMAGES = (b"jpg", b"jpeg", b"png", b"webp")
CLS, JSON = 64, 1 << 20  # bytes that a label or a JSON member may take
LABELS = ("label", "cls", "identity", "class")  # where JSON keeps one


def split(name: bytes) -> tuple[bytes, bytes]:
    """Return key and extension as webdataset cuts them: at the first dot of the last part."""
    start = name.rfind(b"/") + 1
    dot = name.find(b".", start)
    return (name, b"") if dot < 0 else (name[:dot], name[dot + 1 :].lower())


def is_webdataset(path: Path) -> bool:
    """Say whether a tar begins as webdataset's do. Raises InputError GL0214."""
    for i, member in enumerate(tarball.members(path)):
        key, ending = split(member.name)
        if ending in (b"cls", b"__key__") or (ending == b"json" and b"/" not in key):
            return True
        if i == 64:
            return False
    return False


def _samples(path: Path) -> Iterator[tuple[bytes, list[tuple[bytes, Member]]]]:
    """Yield members that stand together under one key."""
    last, group = None, []
    for member in tarball.members(path):
        if member.flaw == UNSAFE or unsafe(member.name):
            yield member.name, [(b"", member._replace(flaw=UNSAFE))]
            continue
        key, ending = split(member.name)
        if key.rsplit(b"/", 1)[-1] == b"":  # hidden files, of macOS mostly
            continue
        if key != last and last is not None:
            yield last, group
            group = []
        last = key
        group.append((ending, member))
    if last is not None:
        yield last, group


def _label(fd: int, group: list[tuple[bytes, Member]]) -> tuple[int, int]:
    """Return (label, 0) or (-1, flaw) of a sample."""
    text: object = None
    for ending, member in group:
        if ending == b"cls" and member.size <= CLS:
            text = os.pread(fd, member.size, member.at).strip()
            break
        if ending == b"json" and member.size <= JSON:
            text = _in_json(os.pread(fd, member.size, member.at))
    if text is None:
        return -1, NO_LABEL
    if isinstance(text, bytes) and text.isdigit() and len(text) < 19:
        return int(text), 0
    if isinstance(text, int) and not isinstance(text, bool) and 0 <= text < 10**18:
        return text, 0
    return -1, NOT_INTEGER


def _in_json(data: bytes) -> object:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    return next((fields[name] for name in LABELS if name in fields), None)


class WebDataset(Packed):
    """Tars whose members KEY.* make samples: an image, and a class number in KEY.cls or KEY.json.

    A key that two samples of a tar share, and a sample with two images of a kind, give none.
    Raises InputError GL0214.
    """

    kind = "webdataset"

    def __init__(self, root: Path) -> None:
        files = beneath(root, (".tar",))
        rows, value = Rows(), array("q")
        for number, file in enumerate(files):
            path = root / os.fsdecode(file) if file else root
            with path.open("rb") as handle:
                for key, group in _samples(path):
                    images = [m for e, m in group if e.rsplit(b".", 1)[-1] in IMAGES]
                    member = (images or [group[0][1]])[0]
                    label, flaw = -1, member.flaw
                    if not flaw:
                        label, flaw = _label(handle.fileno(), group)
                        if not images:
                            flaw = NO_IMAGE
                        elif len(images) > 1 or sum(e.endswith(b"cls") for e, _ in group) > 1:
                            flaw = AMBIGUOUS
                        elif any(byte < 32 or byte == 127 for byte in key):
                            flaw = BAD_NAME
                    rows.add(number, member._replace(name=key), flaw)
                    value.append(label)
        flaw_n = rows.ints("flaw")
        flaw_n[(flaw_n == 0) & rows.repeated()] = DUPLICATE
        label_n, classes = dense(np.frombuffer(value, np.int64))
        super().__init__(
            root,
            files,
            rows,
            flaw_n,
            label_n,
            classes,
            Strings.of(b"" for _ in range(len(classes))),
        )
        self._facts = {
            "layout": "webdataset",
            "images": self.n,
            "identities": len(classes),
            "files": len(files),
            "notes": [],
        }
