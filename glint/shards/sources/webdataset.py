"""Existing webdataset tars as a source: KEY.jpg beside KEY.cls, or a label in KEY.json."""

# n samples

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from glint.files import reads
from glint.files.strings import packed
from glint.shards.sources import tarball
from glint.shards.sources.listed import Flaw, Found, has_control
from glint.shards.sources.packed import Member, Packed, collect, find_files, numbered_paths, unsafe
from glint.shards.sources.source import dense

IMAGES = (b"jpg", b"jpeg", b"png", b"webp")
CLS, JSON = 64, 1 << 20  # bytes that a label or a JSON member may take
LABELS = ("label", "cls", "identity", "class")  # where JSON keeps one

Group = list[tuple[bytes, Member]]  # what stands together under one key: endings and members


def split(name: bytes) -> tuple[bytes, bytes]:
    """Return key and extension as webdataset cuts them: at the first dot of the last part."""
    start = name.rfind(b"/") + 1
    dot = name.find(b".", start)
    return (name, b"") if dot < 0 else (name[:dot], name[dot + 1 :].lower())


def is_webdataset(path: Path) -> bool:
    """Say whether a tar begins as webdataset's do. Raises InputError GL0214."""
    for member in islice(tarball.members(path), 65):
        key, ending = split(member.name)
        if ending in (b"cls", b"__key__") or (ending == b"json" and b"/" not in key):
            return True
    return False


def _samples(path: Path) -> Iterator[tuple[bytes, Group]]:
    """Yield members that stand together under one key."""
    last, group = None, Group()
    for member in tarball.members(path):
        if member.flaw == Flaw.unsafe_member or unsafe(member.name):
            yield member.name, [(b"", member._replace(flaw=Flaw.unsafe_member))]
            continue
        key, ending = split(member.name)
        if key.endswith(b"/") or not key:  # hidden files, of macOS mostly
            continue
        if key != last and last is not None:
            yield last, group
            group = []
        last = key
        group.append((ending, member))
    if last is not None:
        yield last, group


def _judged(fd: int, key: bytes, group: Group) -> tuple[Member, int, int]:
    """Return the image of a sample, its label or -1, and its flaw."""
    images = [member for ending, member in group if ending.rsplit(b".", 1)[-1] in IMAGES]
    member = (images or [group[0][1]])[0]
    if member.flaw:
        return member, -1, member.flaw
    label, flaw = _label(fd, group)
    if not images:
        flaw = Flaw.no_image
    elif len(images) > 1 or sum(ending.endswith(b"cls") for ending, _ in group) > 1:
        flaw = Flaw.ambiguous_sample
    elif has_control(key):
        flaw = Flaw.bad_name
    return member, label, flaw


def _label(fd: int, group: Group) -> tuple[int, int]:
    """Return (label, Flaw.sound) or (-1, flaw) of a sample."""
    text: object = None
    for ending, member in group:
        if ending == b"cls" and member.size <= CLS:
            text = reads.pread(fd, member.size, member.at).strip()
            break
        if ending == b"json" and member.size <= JSON:
            text = _in_json(reads.pread(fd, member.size, member.at))
    if text is None:
        return -1, Flaw.no_label
    if isinstance(text, bytes) and text.isdigit() and len(text) < 19:
        return int(text), Flaw.sound
    if isinstance(text, int) and not isinstance(text, bool) and 0 <= text < 10**18:
        return text, Flaw.sound
    return -1, Flaw.label_not_integer


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
        files = find_files(root, (".tar",))
        self.files = packed(files)
        row_n, paths = collect(_listed(root, files))
        row_n["label"], dense_C = dense(row_n["label"])
        classes = dense_C.to_pylist()
        names, count = [b""] * len(classes), len(files)
        super().__init__(root, row_n, paths, classes, names, "webdataset", files=count, notes=[])


def _listed(root: Path, files: Sequence[bytes]) -> Found:
    """Yield key and row of every sample."""
    for number, path in numbered_paths(root, files):
        with path.open("rb") as file:
            for key, group in _samples(path):
                member, label, flaw = _judged(file.fileno(), key, group)
                yield key, member.row(label, number, flaw)
