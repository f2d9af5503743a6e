"""Identity folders as a source: NAME/*.jpg, at any depth; a folder with files is an identity."""

# n images

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from glint.errors import InputError, ResourceError
from glint.shards import spill
from glint.shards.image import MAX_BYTES, Rejected
from glint.shards.sources.source import Ints, persistent
from glint.shards.strings import Strings

IMAGES = (b".jpg", b".jpeg", b".png", b".webp", b".bmp", b".gif", b".tif", b".tiff")
# What is kept of a file; its path is the `number`-th.
ROW = np.dtype([("number", np.int64), ("label", np.int64), ("size", np.int64), ("flaw", np.uint8)])
FLAWS = ("", "no-identity", "bad-name")
_WEBFACE = re.compile(rb"(?:.*/)?([0-9])/(\1_[0-9]+_[0-9]+)|([0-9]_[0-9]+_[0-9]+)", re.DOTALL)


def text(path: bytes) -> str:
    """Return a path as text; bytes that are not UTF-8 are written as \\xNN."""
    return path.decode("utf-8", "backslashreplace")


def order_of(names: list[bytes]) -> list[int]:
    """Return the order of source labels: by number where all are integers, else by bytes."""
    if all(name.isdigit() for name in names):
        return sorted(range(len(names)), key=lambda i: (int(names[i]), names[i]))
    return sorted(range(len(names)), key=lambda i: names[i])


def shelve(folders: list[bytes], *, common: bool = False) -> tuple[bool, list[bytes]]:
    """Say whether identity folders are WebFace's, D/D_N_NNNNNNN, and return their labels.

    WebFace's are the last part of their paths; other labels are the paths, without the folder that
    all have in common where `common` is set.
    """
    found = [_WEBFACE.fullmatch(folder) for folder in folders]
    last = [folder.rsplit(b"/", 1)[-1] for folder in folders]
    if folders and all(found) and len(set(last)) == len(last):
        return True, last
    if not common or not folders:
        return False, folders
    parts = [folder.split(b"/") for folder in folders]
    same, shallow = 0, min(map(len, parts)) - 1
    while same < shallow and len({p[same] for p in parts}) == 1:
        same += 1
    return False, [b"/".join(p[same:]) for p in parts]


def alike(labels: Iterable[bytes]) -> list[str]:
    """Return a note on labels that only the form of their Unicode tells apart, if any."""
    seen: dict[str, int] = {}
    for label in labels:
        if not label.isascii():
            form = unicodedata.normalize("NFC", text(label))
            seen[form] = seen.get(form, 0) + 1
    same = [form for form, count in seen.items() if count > 1]
    if not same:
        return []
    shown = ", ".join(same[:3]) + (", ..." if len(same) > 3 else "")
    return [
        f"{sum(seen[form] for form in same)} identities are apart only by the Unicode form of "
        f"their names (NFC, NFD): {shown}; rename them alike if they are the same person"
    ]


def counted(count: int, one: str, several: str) -> list[str]:
    """Return a note that counts something, if there is any."""
    return [f"{count} {one if count == 1 else several}"] if count else []


class Folder:
    """A tree of identity folders, listed in order of names.

    The label of an image is the folder it lies in (its path below the source; in WebFace's tree,
    D/D_N_NNNNNNN, its name). Hidden files, and
    files of the top folder that are no images, are counted as skipped; any other file is a record.
    Links to folders are counted and not followed; links to files are read where these lie in the
    source. Raises InputError GL0201 where all images lie in the top folder.
    """

    kind = "folder"

    def __init__(self, root: Path) -> None:
        self.root = root
        blob, end = bytearray(), array("q")
        sizes, codes, flaws = array("q"), array("q"), bytearray()
        folders: list[bytes] = []
        self._skipped = self._linked = empty = 0
        todo = [b""]
        while todo:
            here = todo.pop()
            files, below = self._list(here)
            todo += reversed(below)
            kept = [(name, size) for name, size in files if here or is_image(name)]
            self._skipped += len(files) - len(kept)
            if not kept:
                empty += bool(here) and not below
                continue
            for name, size in kept:
                path = here + b"/" + name if here else name
                blob += path
                end.append(len(blob))
                sizes.append(size)
                codes.append(len(folders) if here else -1)
                flaws.append(0 if here else 1)
                if any(byte < 32 or byte == 127 for byte in path):
                    flaws[-1] = 2
            if here:
                folders.append(here)
        if end and not folders:
            raise InputError(
                "GL0201",
                f"{len(end)} images in the folder itself, and no folder with images in it",
                where=str(root),
                hint=f"if it holds one person, give the folder above: {root.absolute().parent}; "
                "else sort the images into one folder per identity",
            )
        deepest = max((f.count(b"/") for f in folders), default=0) + 1
        webface, folders = shelve(folders)
        order = order_of(folders)
        rank = np.empty(len(folders) + 1, np.int64)
        rank[order] = np.arange(len(folders))
        rank[-1] = -1
        self.label: Ints = rank[np.frombuffer(codes, np.int64)]
        self.size: Ints = np.frombuffer(sizes, np.int64)
        self.flaw = np.frombuffer(flaws, np.uint8)
        self.paths = Strings(np.frombuffer(blob, np.uint8), np.frombuffer(end, np.int64))
        self.classes = Strings.of(folders[i] for i in order)
        self.names = Strings.of(folders[i].rsplit(b"/", 1)[-1] for i in order)
        notes = [f"{self._skipped} hidden or loose files were skipped"] if self._skipped else []
        notes += counted(empty, "empty folder", "empty folders")
        notes += counted(
            self._linked, "link to a folder was not followed", "links to folders were not followed"
        )
        notes += alike(self.classes)
        self._facts = {
            "layout": "folder/webface" if webface else "folder",
            "images": self.n,
            "identities": len(folders),
            "depth": deepest,
            "notes": notes,
        }

    def _list(self, here: bytes) -> tuple[list[tuple[bytes, int]], list[bytes]]:
        """Return (name, size) of the files and the paths of the folders of one folder, sorted."""
        files: list[tuple[bytes, int]] = []
        below: list[bytes] = []
        folder = os.fsencode(self.root) + b"/" + here
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith(b"."):
                        self._skipped += 1
                        continue
                    kind = self._kind(entry)
                    if kind == "folder":
                        below.append(here + b"/" + entry.name if here else entry.name)
                    elif kind == "linked":
                        self._linked += 1
                    elif kind == "file":
                        files.append((entry.name, entry.stat().st_size))
                    elif kind == "outside":
                        files.append((entry.name, 0))
                    else:
                        self._skipped += 1
        except OSError as error:
            raise ResourceError(
                "GL0903", f"cannot be listed: {error.strerror}", where=text(folder)
            ) from error
        return sorted(files), sorted(below)

    def _kind(self, entry: os.DirEntry[bytes]) -> str:
        """Say folder, file, linked (a link to a folder), outside (to a file elsewhere) or other."""
        link = entry.is_symlink()
        try:
            if entry.is_dir():
                return "linked" if link else "folder"
            if link and self._leads_out(entry.path):
                return "outside"
            return "file" if entry.is_file() else "other"
        except OSError:
            if not link:
                raise
            return "other"  # a link that leads to itself

    def _leads_out(self, link: bytes) -> bool:
        """Say whether a link ends outside of the source."""
        inside = os.path.realpath(os.fsencode(self.root))
        return not os.path.realpath(link).startswith(inside.rstrip(b"/") + b"/")

    @property
    def n(self) -> int:
        return len(self.paths)

    def describe(self) -> dict[str, Any]:
        return {"source": text(os.fsencode(self.root.name)), **self._facts}

    def fingerprint(self) -> dict[str, Any]:
        hasher = hashlib.sha256()
        for array_n in (self.paths.blob, self.paths.end_n, self.size):
            hasher.update(array_n.data)
        return {"kind": self.kind, "files": self.n, "names_and_sizes": hasher.hexdigest()}

    def read(self, i: int) -> bytes:
        flaw = int(self.flaw[i])
        if flaw:
            raise Rejected(FLAWS[flaw])
        if self.size[i] > MAX_BYTES:
            raise Rejected("too-large", f"{int(self.size[i])} bytes")
        path = os.fsencode(self.root) + b"/" + self.paths[i]
        if os.path.islink(path) and self._leads_out(path):  # noqa: PTH114
            raise Rejected("unsafe-member", "a link that leads out of the source")

        def whole() -> bytes:
            with open(path, "rb") as file:
                return file.read(MAX_BYTES + 1)

        try:
            return persistent(whole, text(path))
        except (ResourceError, InputError) as error:
            raise Rejected("unreadable", error.what) from None

    def name(self, i: int) -> str:
        return text(self.paths[i])

    def offset(self, i: int) -> int | None:
        return None

    def bytes(self) -> int:
        return int(self.size.sum())

    _STRINGS = ("paths", "classes", "names")

    def save(self, folder: Path, seed: int | None = None) -> None:
        spill.save(folder, spill.numbered(self, ROW), ROW, seed)
        for name in self._STRINGS:
            getattr(self, name).save(folder, name)

    @classmethod
    def load(
        cls,
        path: Path,
        facts: dict[str, Any],
        folder: Path,
        start: int = 0,
        stop: int | None = None,
    ) -> Folder:
        """Open rows [start, stop) of what `save` wrote, without listing the tree."""
        made = cls.__new__(cls)
        made.root, made._facts = path, facts
        row_n = spill.load(folder, ROW, start, stop)
        made.label, made.size, made.flaw = row_n["label"], row_n["size"], row_n["flaw"]
        made.paths = Strings.some(folder, "paths", row_n["number"])
        made.classes, made.names = (Strings.load(folder, name) for name in ("classes", "names"))
        return made


def is_image(name: bytes) -> bool:
    """Say whether a name ends as one of an image does."""
    return name.lower().endswith(IMAGES)
