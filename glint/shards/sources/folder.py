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
from glint.shards.sources import labelling, listed
from glint.shards.sources.listed import Flaw, Found, Listed
from glint.shards.sources.rule import CONTAINERS, PACKED, Rule, beside, is_image
from glint.shards.sources.source import read_retrying, shown
from glint.shards.sources.tree import OUTSIDE, Tree, leads_out

LISTS = (".txt", ".csv", ".tsv", ".lst", ".jsonl")
# link: a link may lead out of the source
ROW = np.dtype([("label", "i8"), ("size", "i8"), ("flaw", "u1"), ("link", "u1")])


class Folder(Listed):
    """A tree of identity folders, listed in order of names.

    The label of an image is the folder it lies in (its path below the source; in WebFace's tree,
    D/D_N_NNNNNNN, its name), or what `rule` says. What is left out is counted: hidden and system
    files, files that are no images by their suffix; any other file is a record. Links to folders
    are followed and links out of the source read only where the rule says so. Raises InputError
    GL0201 where all images lie in the top folder, or containers among images; ResourceError GL0903.
    """

    kind = "folder"

    def __init__(self, root: Path, rule: Rule = Rule()) -> None:  # noqa: B008
        self.root, self._tree, self._folders = root, Tree(root, rule), list[bytes]()
        self._containers, self._lists = list[bytes](), list[bytes]()
        row_n, paths = listed.collect(self._walk(), ROW)
        if self._containers and len(row_n):
            raise listed.mixed(root, self._containers, paths[0].as_py())
        left, outside = self._tree.left, self._tree.left.pop(OUTSIDE, 0)
        warnings = listed.count_note(
            outside, "links lead out of SRC and are refused; --follow-links reads them"
        )
        some = ", ".join(str(root / os.fsdecode(path)) for path in self._lists)
        labelled = labelling.label(rule, row_n, paths, self._folders, left)
        if labelled is None:
            raise InputError(
                "GL0201",
                f"{len(row_n)} images in the folder itself, and no folder with images in it",
                where=str(root),
                hint=f"--labels FILE{some and f' ({some})'} takes a list, --label-from REGEX the "
                "label out of a file name, --unlabelled none; if it holds one person, give the "
                f"folder above: {root.absolute().parent}",
            )
        if some and len(labelled.classes) == 1 and not rule.labels:
            warnings += [f"a list of labels? --labels takes it: {some}"]
        depth = max((folder.count(b"/") for folder in self._folders), default=0) + 1
        super().__init__(
            root, labelled, "folder", left_out=left, depth=depth, warnings=warnings,
        )  # fmt: skip

    def _walk(self) -> Found:
        """Yield path and row of every file; its label is a place in `_folders`, for now."""
        left, links = self._tree.left, self._tree.rule.follow_links
        for here, files, below in self._tree.walk():
            code = len(self._folders)
            for name, size in files:
                path = here + b"/" + name if here else name
                if not is_image(name) and self._left_out(path, name, here):
                    continue
                if here and len(self._folders) == code:
                    self._folders.append(here)
                if size < 0:
                    left[OUTSIDE] += 1
                flaw = Flaw.bad_name if listed.has_control(path) else Flaw.sound
                flaw = flaw if here or flaw else Flaw.no_identity
                yield path, (code if here else -1, max(size, 0), flaw, links)
            left["empty folders"] += bool(here) and not files and not below

    def _left_out(self, path: bytes, name: bytes, here: bytes) -> bool:
        """Count a file that is no image by its name; a container of images is remembered."""
        low, left = name.lower(), self._tree.left
        if low.endswith(CONTAINERS):
            self._containers.append(path)
        elif low.endswith(PACKED):
            left[f"packed archives: .{shown(low.rpartition(b'.')[2])}"] += 1
        elif other := beside(name):
            left[f"no images: {other}"] += 1
            if other in LISTS and here.count(b"/") < 1 and len(self._lists) < 3:
                self._lists.append(path)
        elif not here:
            left["loose files"] += 1
        else:
            return False
        return True

    def fingerprint(self) -> dict[str, Any]:
        _, ends, blob = self.paths.buffers()
        end_n = np.frombuffer(ends, np.int64)[1 : self.n + 1]
        hasher = hashlib.sha256(memoryview(blob)[: end_n[-1]])
        hasher.update(end_n.data)
        hasher.update(np.ascontiguousarray(self.row["size"]).data)
        return {"kind": self.kind, "files": self.n, "names_and_sizes": hasher.hexdigest()}

    def read(self, i: int) -> bytes:
        row = self._sound(i)
        if row["size"] > MAX_BYTES:
            raise Rejected("too-large", f"{row['size']} bytes")
        path, root = os.fsencode(self.root) + b"/" + self.paths[i].as_py(), os.fsencode(self.root)
        if not row["link"] and os.path.islink(path) and leads_out(path, root):  # noqa: PTH114
            raise Rejected("unsafe-member", OUTSIDE)

        def whole() -> bytes:
            with open(path, "rb") as file:
                return file.read(MAX_BYTES + 1)

        try:
            return read_retrying(whole, shown(path))
        except (ResourceError, InputError) as error:
            raise Rejected("unreadable", error.what) from None

    def bytes(self) -> int:
        return int(self.row["size"].sum())
