"""Archives of identity folders as a source: tars and zips, read where they lie."""

# n images

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from glint.errors import InputError
from glint.files.strings import packed
from glint.shards.sources import labelling, listed, tarball, zipped
from glint.shards.sources.listed import Flaw, Found, count_note
from glint.shards.sources.packed import Member, Packed, collect, find_files, numbered_paths, unsafe
from glint.shards.sources.rule import CONTAINERS, PACKED, Rule, beside, is_image
from glint.shards.sources.source import shown

FLAT = (
    "--labels FILE takes a list of names and labels, --label-from REGEX the label out of a name, "
    "--unlabelled none"
)


def members(path: Path) -> Iterator[Member]:
    """Yield the members of a tar or zip. Raises InputError GL0214.

    A zip of Windows may have backslashes between folders: they are read as slashes.
    """
    with path.open("rb") as file:
        zip_ = file.read(2) == b"PK"
    if not zip_:
        yield from tarball.members(path)
        return
    for member in zipped.members(path):
        windows = b"\\" in member.name and b"/" not in member.name and not unsafe(member.name)
        yield member._replace(name=member.name.replace(b"\\", b"/")) if windows else member


def part_left_out(rule: Rule, parts: Sequence[bytes]) -> str:
    """Say why a member is left out by one of the parts of its name, "" where it is not."""
    for count, part in enumerate(parts, 1):
        if why := rule.left_out(b"/".join(parts[:count]) if rule.exclude else part, part):
            return why
    return ""


class Archive(Packed):
    """Tars or zips of identity folders, listed in their own order.

    The label of an image is the folder it lies in, as in a tree of folders; a folder that all have
    in common is left out. Members that would lead out of a folder, and any that is no regular
    file, are records that are refused. Raises InputError GL0214; GL0201 for an archive of archives,
    and where all images lie in no folder.
    """

    kind = "archive"

    def __init__(self, root: Path, rule: Rule = Rule()) -> None:  # noqa: B008
        self._rule, self._left = rule, Counter[str]()
        files = find_files(root, (b".tar", b".zip"), rule, self._left)
        self.files = packed(files)
        self._folders, self._inner = dict[bytes, int](), list[bytes]()
        row_n, paths = collect(self._walk(root, files))
        if self._inner:
            some = ", ".join(map(shown, self._inner[:3]))
            what = f"{len(self._inner)} archives or tables inside ({some})"
            hint = (
                f"unpack the outer one: mkdir DIR; tar -xf {root} -C DIR (or unzip), then give DIR"
            )
            raise InputError("GL0201", what, where=str(root), hint=hint)
        labelled = labelling.label(
            rule, row_n, paths, list(self._folders), self._left, files=files, common=True
        )
        if labelled is None:
            what = f"{len(row_n)} images in no folder: nothing says who is on them"
            raise InputError("GL0201", what, where=str(root), hint=FLAT)
        refused = int((row_n["flaw"] == Flaw.unsafe_member).sum())
        notes = count_note(refused, "members are no regular files inside the archive: refused")
        labelled = labelled._replace(notes=[*notes, *labelled.notes])
        more = []
        if len(labelled.classes) == 1 and len(files) > 1 and not rule.label_from:
            suffix = shown(files[0].rpartition(b".")[2])
            more = [f"is each {suffix} a person? --label-from '([^/]+)\\.{suffix}/' takes its name"]
        super().__init__(
            root, labelled, "archive", files=len(files), left_out=self._left, warnings=more
        )

    def _walk(self, root: Path, files: Sequence[bytes]) -> Found:
        """Yield name and row of every member; its label is a place in `_folders`, for now."""
        for number, path in numbered_paths(root, files):
            for member in members(path):
                if member.flaw == Flaw.unsafe_member or unsafe(member.name):
                    yield member.name, member.row(-1, number, Flaw.unsafe_member)
                    continue
                parts = [p for p in member.name.split(b"/") if p not in (b"", b".")]
                folder, flaw = b"/".join(parts[:-1]), member.flaw
                why = part_left_out(self._rule, parts)
                if not why and parts[-1].lower().endswith(CONTAINERS + PACKED):
                    self._inner.append(member.name)
                    why = "archives inside"
                if not why and (other := beside(parts[-1])):
                    why = f"no images: {other}"
                if parts[-1].endswith(b".cls"):
                    what = f"labels ({shown(member.name)}) that do not stand beside their images"
                    hint = "pack KEY.jpg and KEY.cls together: tar --sort=name -cf NEW.tar *; or, "
                    hint += "if the folders are the labels: --exclude '*.cls'"
                    raise InputError("GL0214", what, where=str(path), hint=hint)
                if why or (not folder and not is_image(member.name)):
                    self._left[why or "loose files"] += 1
                    continue
                code = self._folders.setdefault(folder, len(self._folders)) if folder else -1
                if listed.has_control(member.name):
                    flaw = Flaw.bad_name
                elif not folder:
                    flaw = flaw or Flaw.no_identity
                yield member.name, member.row(code, number, flaw)
