"""Identity folders as a source: NAME/*.jpg, at any depth; a folder with files is an identity."""

# n images

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from glint.errors import InputError, ResourceError
from glint.shards.image import MAX_BYTES, Rejected
from glint.shards.sources import listed
from glint.shards.sources.listed import Flaw, Found, Listed, counted
from glint.shards.sources.source import persistent, shown

ROW = np.dtype([("label", np.int64), ("size", np.int64), ("flaw", np.uint8)])


class Folder(Listed):
    """A tree of identity folders, listed in order of names.

    The label of an image is the folder it lies in (its path below the source; in WebFace's tree,
    D/D_N_NNNNNNN, its name). Hidden files, and files of the top folder that are no images, are
    counted as skipped; any other file is a record. Links to folders are counted and not followed;
    links to files are read where these lie in the source. Raises InputError GL0201 where all images
    lie in the top folder, ResourceError GL0903.
    """

    kind = "folder"

    def __init__(self, root: Path) -> None:
        self.root, self._folders = root, list[bytes]()
        self._skipped = self._linked = self._empty = 0
        row_n, paths = listed.gathered(self._walk(), ROW)
        if len(row_n) and not self._folders:
            raise InputError(
                "GL0201",
                f"{len(row_n)} images in the folder itself, and no folder with images in it",
                where=str(root),
                hint=f"if it holds one person, give the folder above: {root.absolute().parent}; "
                "else sort the images into one folder per identity",
            )
        webface, classes = listed.shelve(row_n, self._folders)
        notes = counted(self._skipped, "hidden or loose files were skipped")
        notes += counted(self._empty, "empty folders", "empty folder")
        links = "links to folders were not followed", "link to a folder was not followed"
        notes += counted(self._linked, *links)
        notes += listed.alike(classes)
        layout = "folder/webface" if webface else "folder"
        depth = max((folder.count(b"/") for folder in self._folders), default=0) + 1
        names = listed.last_parts(classes)
        super().__init__(root, row_n, paths, classes, names, layout, depth=depth, notes=notes)

    def _walk(self) -> Found:
        """Yield path and row of every file; its label is a place in `_folders`, for now."""
        todo = [b""]
        while todo:
            here = todo.pop()
            files, below = self._list(here)
            todo += reversed(below)
            kept = [(name, size) for name, size in files if here or listed.is_image(name)]
            self._skipped += len(files) - len(kept)
            if not kept:
                self._empty += bool(here) and not below
                continue
            for name, size in kept:
                path = here + b"/" + name if here else name
                flaw = Flaw.sound if here else Flaw.no_identity
                flaw = Flaw.bad_name if listed.has_control(path) else flaw
                yield path, (len(self._folders) if here else -1, size, flaw)
            if here:
                self._folders.append(here)

    def _list(self, here: bytes) -> tuple[list[tuple[bytes, int]], list[bytes]]:
        """Return (name, size) of the files and the paths of the folders of one folder, sorted."""
        files: list[tuple[bytes, int]] = []
        below: list[bytes] = []
        folder = os.fsencode(self.root) + b"/" + here
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    kind = "hidden" if entry.name.startswith(b".") else self._kind(entry)
                    if kind == "folder":
                        below.append(here + b"/" + entry.name if here else entry.name)
                    elif kind in ("file", "outside"):
                        size = entry.stat().st_size if kind == "file" else 0
                        files.append((entry.name, size))
                    else:
                        self._linked += kind == "linked"
                        self._skipped += kind != "linked"
        except OSError as error:
            raise ResourceError(
                "GL0903", f"cannot be listed: {error.strerror}", where=shown(folder)
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

    def fingerprint(self) -> dict[str, Any]:
        _, ends, blob = self.paths.buffers()
        end_n = np.frombuffer(ends, np.int64)[1 : self.n + 1]
        hasher = hashlib.sha256(memoryview(blob)[: end_n[-1]])
        hasher.update(end_n.data)
        hasher.update(np.ascontiguousarray(self.row["size"]).data)
        return {"kind": self.kind, "files": self.n, "names_and_sizes": hasher.hexdigest()}

    def read(self, i: int) -> bytes:
        size = self._sound(i)["size"]
        if size > MAX_BYTES:
            raise Rejected("too-large", f"{size} bytes")
        path = os.fsencode(self.root) + b"/" + self.paths[i].as_py()
        if os.path.islink(path) and self._leads_out(path):  # noqa: PTH114
            raise Rejected("unsafe-member", "a link that leads out of the source")

        def whole() -> bytes:
            with open(path, "rb") as file:
                return file.read(MAX_BYTES + 1)

        try:
            return persistent(whole, shown(path))
        except (ResourceError, InputError) as error:
            raise Rejected("unreadable", error.what) from None

    def bytes(self) -> int:
        return int(self.row["size"].sum())
