"""Archives of identity folders as a source: tars and zips, read where they lie."""

# n images

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from glint.files.strings import packed
from glint.shards.sources import listed, tarball, zipped
from glint.shards.sources.listed import Flaw, Found, count_note
from glint.shards.sources.packed import Member, Packed, collect, find_files, numbered_paths, unsafe


def members(path: Path) -> Iterator[Member]:
    """Yield the members of a tar or zip. Raises InputError GL0214."""
    with path.open("rb") as file:
        zip_ = file.read(2) == b"PK"
    return zipped.members(path) if zip_ else tarball.members(path)


class Archive(Packed):
    """Tars or zips of identity folders, listed in their own order.

    The label of an image is the folder it lies in, as in a tree of folders; a folder that all have
    in common is left out. Members that would lead out of a folder, and any that is no regular
    file, are records that are refused. Raises InputError GL0214.
    """

    kind = "archive"

    def __init__(self, root: Path) -> None:
        files = find_files(root, (".tar", ".zip"))
        self.files = packed(files)
        self._folders, self._skipped = dict[bytes, int](), 0
        row_n, paths = collect(self._walk(root, files))
        webface, classes = listed.label_by_folder(row_n, self._folders, common=True)
        notes = count_note(self._skipped, "hidden or loose files were skipped")
        refused = int((row_n["flaw"] == Flaw.unsafe_member).sum())
        notes += count_note(refused, "members are no regular files inside the archive: refused")
        notes += listed.unicode_twins(classes)
        layout = "archive/webface" if webface else "archive"
        names = listed.base_names(classes)
        super().__init__(root, row_n, paths, classes, names, layout, files=len(files), notes=notes)

    def _walk(self, root: Path, files: Sequence[bytes]) -> Found:
        """Yield name and row of every member; its label is a place in `_folders`, for now."""
        for number, path in numbered_paths(root, files):
            for member in members(path):
                if member.flaw == Flaw.unsafe_member or unsafe(member.name):
                    yield member.name, member.row(-1, number, Flaw.unsafe_member)
                    continue
                parts = [p for p in member.name.split(b"/") if p not in (b"", b".")]
                folder, flaw = b"/".join(parts[:-1]), member.flaw
                hidden = any(p[:1] == b"." for p in parts) or parts[:1] == [b"__MACOSX"]
                if hidden or (not folder and not listed.is_image(member.name)):
                    self._skipped += 1
                    continue
                code = self._folders.setdefault(folder, len(self._folders)) if folder else -1
                if listed.has_control(member.name):
                    flaw = Flaw.bad_name
                elif not folder:
                    flaw = flaw or Flaw.no_identity
                yield member.name, member.row(code, number, flaw)
