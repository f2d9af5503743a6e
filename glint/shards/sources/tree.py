"""What lies below a folder, in order of names: hidden and system files left out and counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from glint.errors import ResourceError
from glint.shards.sources.rule import CONTAINERS, PACKED, Rule, is_image
from glint.shards.sources.source import shown

OUTSIDE = "a link that leads out of the source"


class Tree:
    """The files of a folder. `left` counts what was left out, by reason; `empty` are folders."""

    def __init__(self, root: Path, rule: Rule) -> None:
        self.root, self.rule = os.fsencode(root), rule
        self.left: Counter[str] = Counter()
        top = root.stat()
        self._seen = {(top.st_dev, top.st_ino)}  # folders, where links are followed

    def walk(self) -> Iterator[tuple[bytes, list[tuple[bytes, int]], list[bytes]]]:
        """Yield each folder's path, the (name, size) of its files, and the paths of its folders.

        The size of a link that leads out of the source is -1, unless links are followed. Raises
        ResourceError GL0903.
        """
        todo = [b""]
        while todo:
            here = todo.pop()
            files, below = self._list(here)
            todo += reversed(below)
            yield here, files, below

    def first(self, limit: int = 4096) -> bytes:
        """Return the path of the first file that is an image or a container by its name.

        Where there is none, or none among the first `limit`: that of a packed archive, or any.
        """
        seen, packed, other = 0, b"", b""
        for here, files, _ in self.walk():
            for name, _ in files:
                path = here + b"/" + name if here else name
                if is_image(name) or name.lower().endswith(CONTAINERS):
                    return path
                packed = packed or (path if name.lower().endswith(PACKED) else b"")
                other, seen = other or path, seen + 1
            if seen > limit:
                break
        return packed or other

    def _list(self, here: bytes) -> tuple[list[tuple[bytes, int]], list[bytes]]:
        files: list[tuple[bytes, int]] = []
        below: list[bytes] = []
        folder = self.root + b"/" + here
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = here + b"/" + entry.name if here else entry.name
                    kind = self.rule.left_out(path, entry.name) or self._kind(entry)
                    if kind == "folder":
                        below.append(path)
                    elif kind in ("file", OUTSIDE):
                        size = entry.stat().st_size if kind == "file" else -1
                        files.append((entry.name, size))
                    else:
                        self.left[kind] += 1
        except OSError as error:
            raise ResourceError(
                "GL0903", f"cannot be listed: {error.strerror}", where=shown(folder)
            ) from error
        return sorted(files), self._new(sorted(below))

    def _new(self, below: list[bytes]) -> list[bytes]:
        """Return the folders that no link led to before: one to a folder above would not end."""
        if not self.rule.follow_links:
            return below
        kept = []
        for path in below:
            info = os.stat(self.root + b"/" + path)  # noqa: PTH116
            if (info.st_dev, info.st_ino) in self._seen:
                self.left["folders that another path led to before"] += 1
            else:
                self._seen.add((info.st_dev, info.st_ino))
                kept.append(path)
        return kept

    def _kind(self, entry: os.DirEntry[bytes]) -> str:
        """Say folder, file, OUTSIDE, or why the entry is left out."""
        link = entry.is_symlink()
        try:
            if entry.is_dir():
                follow = self.rule.follow_links or not link
                return "folder" if follow else "links to folders (--follow-links reads them)"
            if link and not self.rule.follow_links and leads_out(entry.path, self.root):
                return OUTSIDE
            other = "links that lead nowhere" if link else "neither files nor folders"
            return "file" if entry.is_file() else other
        except OSError:
            if not link:
                raise
            return "links that lead nowhere"


def leads_out(link: bytes, root: bytes) -> bool:
    """Say whether a link ends outside of the source."""
    inside = os.path.realpath(root)
    return not os.path.realpath(link).startswith(inside.rstrip(b"/") + b"/")
