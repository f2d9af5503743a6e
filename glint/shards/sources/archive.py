"""Archives of identity folders as a source: tars and zips, read where they lie."""

# n images

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from glint.shards.sources import tarball, zipped
from glint.shards.sources.folder import alike, is_image, order_of, shelve
from glint.shards.sources.packed import (
    BAD_NAME,
    DUPLICATE,
    NO_IDENTITY,
    UNSAFE,
    Member,
    Packed,
    Rows,
    beneath,
)
from glint.shards.strings import Strings

SUFFIXES = (".tar", ".zip")
_PARTS = re.compile(rb"[/\\]")
_DRIVE = re.compile(rb"[A-Za-z]:")


def members(path: Path) -> Iterator[Member]:
    """Yield the members of a tar or zip. Raises InputError GL0214."""
    with path.open("rb") as file:
        zip_ = file.read(2) == b"PK"
    return zipped.members(path) if zip_ else tarball.members(path)


def unsafe(name: bytes) -> bool:
    """Say whether a name would lead out of the folder that it is extracted to."""
    return (
        name[:1] in (b"/", b"\\", b"")
        or _DRIVE.match(name) is not None
        or b".." in _PARTS.split(name)
    )


class Archive(Packed):
    """Tars or zips of identity folders, listed in their own order.

    The label of an image is the folder it lies in, as in a tree of folders; a folder that all have
    in common is left out. Members that would lead out of a folder, and any that is no regular
    file, are records that are refused. Raises InputError GL0214.
    """

    kind = "archive"

    def __init__(self, root: Path) -> None:
        files = beneath(root, SUFFIXES)
        rows, code_n = Rows(), array("q")
        folders: dict[bytes, int] = {}
        skipped = 0
        for number, file in enumerate(files):
            for member in members(root / file.decode() if file else root):
                flaw, folder = member.flaw, b""
                if flaw == UNSAFE or unsafe(member.name):
                    flaw = UNSAFE
                else:
                    parts = [p for p in member.name.split(b"/") if p not in (b"", b".")]
                    if any(p[:1] == b"." for p in parts) or parts[:1] == [b"__MACOSX"]:
                        skipped += 1
                        continue
                    folder = b"/".join(parts[:-1])
                    if not folder and not is_image(member.name):
                        skipped += 1
                        continue
                    if any(byte < 32 or byte == 127 for byte in member.name):
                        flaw = BAD_NAME
                    elif not folder:
                        flaw = flaw or NO_IDENTITY
                good = folder and flaw != UNSAFE
                code_n.append(folders.setdefault(folder, len(folders)) if good else -1)
                rows.add(number, member, flaw)
        webface, label_of = shelve(list(folders), common=True)
        classes = sorted(set(label_of))
        classes = [classes[i] for i in order_of(classes)]
        place = {label: i for i, label in enumerate(classes)}
        rank = np.array([place[label] for label in label_of] + [-1], np.int64)
        flaw_n = rows.ints("flaw")
        flaw_n[(flaw_n == 0) & rows.repeated()] = DUPLICATE
        super().__init__(
            root,
            files,
            rows,
            flaw_n,
            rank[np.frombuffer(code_n, np.int64)],
            Strings.of(classes),
            Strings.of(c.rsplit(b"/", 1)[-1] for c in classes),
        )
        notes = [f"{skipped} hidden or loose files were skipped"] if skipped else []
        refused = int((self.flaw == UNSAFE).sum())
        if refused:
            notes.append(f"{refused} members are no regular files inside the archive: refused")
        notes += alike(classes)
        self._facts = {
            "layout": "archive/webface" if webface else "archive",
            "images": self.n,
            "identities": len(classes),
            "files": len(files),
            "notes": notes,
        }
