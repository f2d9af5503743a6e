"""Existing webdataset tars as a source: KEY.jpg beside KEY.cls, or a label in KEY.json."""

# n samples

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from glint.errors import InputError
from glint.files import reads
from glint.files.strings import packed
from glint.shards.sources import labelling, tarball
from glint.shards.sources.archive import part_left_out
from glint.shards.sources.listed import Flaw, Found, Labelled, Labels, has_control
from glint.shards.sources.packed import (
    Member,
    Packed,
    collect,
    find_files,
    numbered_paths,
    place,
    unsafe,
)
from glint.shards.sources.rule import SURE, Rule
from glint.shards.sources.source import Rows, shown

IMAGES = (b"jpg", b"jpeg", b"jpe", b"jfif", b"png", b"webp", b"bmp", b"gif", b"tif", b"tiff")
CLS, TEXT, JSON = 64, 256, 1 << 20  # bytes that a label, a text or a JSON member may take
LABELS = ("label", "cls", *SURE)  # where JSON keeps one
TEXTS = (
    b"cls",
    b"label",
    b"txt",
    b"json",
    b"csv",
    b"md",
)  # not wanted where labels come from elsewhere
CLASSES = (b"cls", b"label", b"identity", b"class")  # members that hold a label alone
PEEK = 64  # samples by which the members that hold labels are chosen
NAMES = (
    "--label-member txt or json:FIELD names what holds the label; --labels FILE takes a list, "
    "--label-from REGEX a part of the key, --unlabelled none"
)

Group = list[tuple[bytes, Member]]  # what stands together under one key: endings and members


def split(name: bytes) -> tuple[bytes, bytes]:
    """Return key and extension as webdataset cuts them: at the first dot of the last part."""
    start = name.rfind(b"/") + 1
    dot = name.find(b".", start)
    return (name, b"") if dot < 0 else (name[:dot], name[dot + 1 :].lower())


def _last(ending: bytes) -> bytes:
    return ending.rsplit(b".", 1)[-1]


def is_webdataset(path: Path) -> bool:
    """Say whether a tar begins as webdataset's do, or with images in no folder.

    In folders it is one, too, where images of one folder have several labels in KEY.json or
    KEY.txt. Raises InputError GL0214.
    """
    flat = images = 0
    of: dict[bytes, object] = {}  # the label that a folder's first image has
    with path.open("rb") as file:
        for number, member in enumerate(tarball.members(path)):
            if number > PEEK and not of:
                break
            key, ending = split(member.name.removeprefix(b"./"))
            if number <= PEEK and (_last(ending) in CLASSES or ending == b"__key__"):
                return True
            images += _last(ending) in IMAGES
            flat += _last(ending) in IMAGES and b"/" not in key
            said = _beside(file.fileno(), ending, member)
            if said is not None and of.setdefault(key.rpartition(b"/")[0], said) != said:
                return True
    return 2 * flat > images


def _beside(fd: int, ending: bytes, member: Member) -> object:
    """Return the label that a member KEY.json or KEY.txt holds, None for none."""
    if member.flaw or member.size > TEXT * 64:
        return None
    if ending == b"json":
        inner = _in_json(reads.pread(fd, member.size, member.at))
        good = (inner[name] for name in LABELS if isinstance(inner.get(name), int | str))
        return next(good, None)
    said = _text(fd, member) if ending == b"txt" else None
    return said if said and said.isdigit() else None


class WebDataset(Packed):
    """Tars whose members KEY.* make samples: an image, and a label in KEY.cls, KEY.json or KEY.txt.

    Numbers and names are labels; `rule` may say which member holds them, or that they come from
    the key or a list. A key that two samples of a tar share, and a sample with two images or labels
    of a kind, give none. Raises InputError GL0214: also where no sample has a label, and where
    images and labels of one key do not stand together.
    """

    kind = "webdataset"

    def __init__(self, root: Path, rule: Rule = Rule()) -> None:  # noqa: B008
        self._rule, self._left, self._labels = rule, Counter[str](), Labels()
        files = find_files(root, (b".tar",), rule, self._left)
        self.files, self._folders = packed(files), dict[bytes, int]()
        self._named = bool(rule.labels or rule.label_from or rule.label_depth or rule.unlabelled)
        self._member = rule.label_member.removeprefix("KEY.").encode()
        self._how = Counter[str]()
        self._said: dict[str, set[str]] = {}  # of fields that might be it, two values
        if not self._named and not self._member and files and self._in_text(place(root, files[0])):
            self._member = b"txt"
        row_n, paths = collect(self._listed(root, files))
        if better := self._better():
            self._member, self._labels = b"json:" + better.encode(), Labels()
            self._left.clear()
            self._how.clear()
            find_files(root, (b".tar",), rule, self._left)
            row_n, paths = collect(self._listed(root, files))
        _require_together(row_n, paths, root)
        labelled = None
        if self._named:
            folders = list(self._folders)
            labelled = labelling.label(
                rule, row_n, paths, folders or [b""], self._left, files=files
            )
        if labelled is None:
            classes = self._labels.settle(row_n, numbers=True)
            how = ", ".join(name for name, _ in self._how.most_common(3))
            names = [b""] * len(classes) if all(c.isdigit() for c in classes) else classes
            labelled = Labelled(row_n, paths, classes, names, how)
            if not classes:
                self._refuse(root, files, row_n, paths)
        super().__init__(root, labelled, "webdataset", files=len(files), left_out=self._left)

    def _better(self) -> str:
        """Name the field of KEY.json that is the label where the one taken says always the same."""
        if len(self._how) != 1 or not self._said:
            return ""
        taken = next(iter(self._how)).removesuffix(" in KEY.json")
        if len(self._said.get(taken, "..")) > 1:
            return ""
        return next((name for name in LABELS if len(self._said.get(name, "")) > 1), "")

    def _in_text(self, path: Path) -> bool:
        """Say whether labels can only be in KEY.txt, and numbers stand there."""
        said: list[object] = []
        with path.open("rb") as file:
            for _, group in islice(self._samples(path), PEEK):
                if self._found(file.fileno(), group)[0] is not None:
                    return False
                said += [_text(file.fileno(), m) for e, m in group if e == b"txt"]
        return bool(said) and all(isinstance(one, bytes) and one.isdigit() for one in said)

    def _samples(self, path: Path) -> Iterator[tuple[bytes, Group]]:
        """Yield members that stand together under one key."""
        last, group = None, Group()
        for member in tarball.members(path):
            if member.flaw == Flaw.unsafe_member or unsafe(member.name):
                yield member.name, [(b"", member._replace(flaw=Flaw.unsafe_member))]
                continue
            parts = [p for p in member.name.split(b"/") if p not in (b"", b".")]
            if why := part_left_out(self._rule, parts):
                self._left[why] += 1
                continue
            key, ending = split(member.name)
            if key != last and last is not None:
                yield last, group
                group = []
            last = key
            group.append((ending, member))
        if last is not None:
            yield last, group

    def _alone(self, path: Path) -> Iterator[tuple[bytes, Group]]:
        """Yield samples; where labels come from elsewhere, images ann.1.jpg, ann.2.jpg are two."""
        for key, group in self._samples(path):
            alone = all(_last(one) in IMAGES and one not in IMAGES for one, _ in group)
            if not self._named or not alone:
                yield key, group
                continue
            for _, member in group:
                yield member.name.rpartition(b".")[0], [(_last(member.name).lower(), member)]

    def _listed(self, root: Path, files: Sequence[bytes]) -> Found:
        """Yield key and row of every sample."""
        for number, path in numbered_paths(root, files):
            with path.open("rb") as file:
                for key, group in self._alone(path):
                    if self._named and all(_last(ending) in TEXTS for ending, _ in group):
                        self._left["members beside images"] += 1
                        continue
                    member, label, flaw = self._judged(file.fileno(), key, group)
                    yield key, member.row(label, number, flaw)

    def _judged(self, fd: int, key: bytes, group: Group) -> tuple[Member, int, int]:
        """Return the image of a sample, its label or -1, and its flaw."""
        images = [member for ending, member in group if ending in IMAGES]
        images = images or [member for ending, member in group if _last(ending) in IMAGES]
        member = (images or [group[0][1]])[0]
        if member.flaw:
            return member, -1, member.flaw
        if self._named:
            folder = key.removeprefix(b"./").rpartition(b"/")[0]
            label = self._folders.setdefault(folder, len(self._folders)) if folder else -1
            flaw = int(Flaw.sound if folder else Flaw.no_identity)
        else:
            said, how = self._found(fd, group)
            label, flaw = self._labels.code(said)
            if how and images:
                self._how[how] += 1
        many = sum(_last(ending) in CLASSES for ending, _ in group) > 1
        if not images:
            flaw = Flaw.no_image
        elif len(images) > 1 or (many and not self._named and not self._member):
            flaw = Flaw.ambiguous_sample
        elif has_control(key):
            flaw = Flaw.bad_name
        return member, label, flaw

    def _found(self, fd: int, group: Group) -> tuple[object, str]:
        """Return what a sample gives for a label, and where it stands."""
        wanted, _, field = self._member.partition(b":")
        fields = (field.decode(),) if field else LABELS
        for ending, member in group:
            if ending == wanted and wanted and _last(ending) != b"json":
                return _text(fd, member), f"KEY.{ending.decode(errors='replace')}"
            if not wanted and _last(ending) in CLASSES and member.size <= CLS:
                return _text(fd, member), f"KEY.{ending.decode(errors='replace')}"
        for ending, member in group:
            if _last(ending) == b"json" and member.size <= JSON and wanted in (b"", ending):
                inner = _in_json(reads.pread(fd, member.size, member.at))
                while field and len(fields[0].split(".")) > 1 and fields[0] not in inner:
                    first, _, rest = fields[0].partition(".")
                    inner, fields = _fields(inner.get(first)), (rest,)
                good = [name for name in fields if inner.get(name) not in (None, "")]
                for name in good if len(good) > 1 else ():
                    said = self._said.setdefault(name, set())
                    if len(said) < 2:
                        said.add(str(inner[name]))
                if good:
                    return inner[good[0]], f"{field.decode() or good[0]} in KEY.json"
        return None, ""

    def _refuse(self, root: Path, files: Sequence[bytes], row_n: Rows, paths: Any) -> None:
        """Raise where no sample has a label, and say what there is."""
        if not (row_n["flaw"] == Flaw.no_label).any():
            return
        with (path := place(root, files[0])).open("rb") as file:
            key, group = next(
                one for one in self._samples(path) if any(_last(e) in IMAGES for e, _ in one[1])
            )
            told = []
            for ending, member in group:
                inner = {}
                if _last(ending) == b"json" and member.size <= JSON:
                    inner = _in_json(reads.pread(file.fileno(), member.size, member.at))
                said = f" ({', '.join(list(inner)[:9])})" if inner else ""
                told.append(shown(ending) + said)
        what = f"no sample has a label: {shown(key)} has {', '.join(told)}"
        raise InputError("GL0214", what, where=str(root), hint=NAMES)


def _text(fd: int, member: Member) -> bytes | None:
    return reads.pread(fd, member.size, member.at).strip() if member.size <= TEXT else None


def _in_json(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return _fields(fields)


def _fields(said: object) -> dict[str, Any]:
    return said if isinstance(said, dict) else {}


def _require_together(row_n: Rows, paths: Any, root: Path) -> None:
    """Refuse tars in which the image and the label of a key do not stand together."""
    bare_n, lone_n = row_n["flaw"] == Flaw.no_label, row_n["flaw"] == Flaw.no_image
    if not bare_n.any() or not lone_n.any():
        return
    bare, lone = (pc.filter(paths, pa.array(mask)) for mask in (bare_n, lone_n))
    both = bare.filter(pc.is_in(bare, lone))
    if 2 * len(both) > len(row_n) // 4:
        some = f"{len(both)} keys such as {shown(both[0].as_py())}"
        what = f"members of one key do not stand together: {some}"
        hint = "no reader of webdatasets joins them; pack anew: tar --sort=name -cf NEW.tar *"
        raise InputError("GL0214", what, where=str(root), hint=hint)
