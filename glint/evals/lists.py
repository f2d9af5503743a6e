"""Lists of pairs as the field publishes them, read against the images of a folder or dataset.

LFW and XQLFW (`pairs.txt`, or CSV), CALFW and CPLFW (two lines a pair), CFP (its folder
Protocol/Split/FP or FF), and plain `a b 1`.
"""

# n pairs

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glint.errors import InputError, UsageError
from glint.evals.packs import Pairs
from glint.evals.pairs import SampleImages, Samples, read_table
from glint.shards.dataset import Dataset
from glint.shards.sources.rule import Rule, is_image
from glint.shards.sources.tree import Tree

_TRUTH = {"1": True, "true": True, "same": True, "0": False, "false": False, "different": False}
_TRUTH |= {"-1": False, "diff": False}
FORMS = (
    "glint reads LFW's and XQLFW's pairs.txt (name i j; name i name j), CALFW's and CPLFW's (two "
    "lines a pair, image and fold or 0), CFP's folder Split/FP, lines `a b 1`, and its own table "
    "(fold, a, b, same)"
)


class Listed(NamedTuple):
    """One pair: the images' names, whether they are of one person, the fold or -1."""

    a: str
    b: str
    same: bool
    fold: int


def images_of(place: Path) -> Samples:
    """Open a dataset, or a folder of images, for its images. Raises InputError GL0301."""
    if place.is_dir() and not (place / "manifest.json").is_file():
        with suppress(InputError):
            return FolderImages(place)
    return Dataset(place)


class FolderImages:
    """The images of a folder, as a dataset's samples."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        names = [
            here + b"/" + name if here else name
            for here, files, _ in Tree(self.root, Rule(follow_links=True)).walk()
            for name, _ in files
            if is_image(name)
        ]
        self.source: Sequence[str] = [os.fsdecode(name) for name in names]
        if not names:
            raise InputError("GL0201", "no image was found", where=str(root))

    def read(self, row: int) -> bytes:
        """Return the bytes of an image."""
        return (self.root / self.source[row]).read_bytes()


def read_list(path: str | Path, images: Samples) -> Pairs:
    """Read a list of pairs, or the table of `pairs.read_table`, against images by their names.

    Names match by their last two parts, or the last, without suffix. Raises UsageError GL0001,
    InputError GL0802 for a list of another form, and names that no image or several have.
    """
    path = Path(path)
    if path.is_dir():
        pairs = _cfp(path)
    else:
        lines = _lines(path)
        if lines and {"fold", "a", "b", "same"} <= {*lines[0].split("\t")}:
            return read_table(path, images)
        pairs = _pairs(lines, path)
    if not pairs:
        raise InputError("GL0802", "no pairs", where=str(path), hint=FORMS)
    wanted = list(dict.fromkeys(name for pair in pairs for name in (pair.a, pair.b)))
    row_n = _rows(images.source, wanted, path)
    place = {name: i for i, name in enumerate(wanted)}
    folds = np.array([pair.fold for pair in pairs])
    return Pairs(
        images=SampleImages(images, row_n),
        same=np.array([pair.same for pair in pairs], dtype=bool),
        first=np.array([place[pair.a] for pair in pairs], np.int64),
        second=np.array([place[pair.b] for pair in pairs], np.int64),
        folds=folds if (folds >= 0).all() else None,
        name=path.stem,
        labels=wanted,
    )


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise UsageError("GL0001", "no such list of pairs", where=str(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        hint = "a .bin is evaluated without --dataset"
        raise InputError("GL0802", "not a text list", where=str(path), hint=hint) from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _pairs(lines: Sequence[str], path: Path) -> list[Listed]:
    rows = [[cell for cell in re.split(r"[\t,; ]+", line) if cell] for line in lines]
    head = rows[0] if rows else []
    if len(head) <= 2 and all(cell.isdigit() for cell in head):  # folds, pairs of each kind
        each = int(head[-1]) if len(head) == 2 else 0
        return [_lfw(row, i // (2 * each) if each else -1, path)
                for i, row in enumerate(rows[1:])]  # fmt: skip
    if head and _is_header(head, rows[1:2]):
        rows = rows[1:]
    if rows and all(len(row) == 2 for row in rows) and len(rows) % 2 == 0:
        return [_two_lines(a, b, path) for a, b in zip(rows[::2], rows[1::2])]
    return [_lfw(row, -1, path) for row in rows]


def _is_header(head: Sequence[str], following: Sequence[Sequence[str]]) -> bool:
    """Say whether a line names columns: it has no number, no path, and no truth as the next has."""
    if any(cell.isdigit() or {*cell} & {".", "/"} for cell in head):
        return False
    words = [row[-1].lower() for row in (head, *following)]
    return not any({*words} <= kind for kind in ({"true", "false"}, {"same", "different", "diff"}))


def _lfw(row: Sequence[str], fold: int, path: Path) -> Listed:
    numbers = [cell.isdigit() for cell in row]
    if numbers == [False, True, True]:
        name, i, j = row
        return Listed(_numbered(name, i), _numbered(name, j), True, fold)
    if numbers == [False, True, False, True]:
        return Listed(_numbered(row[0], row[1]), _numbered(row[2], row[3]), False, fold)
    for truth, a, b in ((row[-1], 0, 1), (row[0], 1, 2)):
        if len(row) == 3 and truth.lower() in _TRUTH:
            return Listed(row[a], row[b], _TRUTH[truth.lower()], fold)
    raise InputError("GL0802", f"no pair: {' '.join(row)}"[:120], where=str(path), hint=FORMS)


def _numbered(name: str, number: str) -> str:
    return f"{name}/{name}_{int(number):04d}"


def _two_lines(a: Sequence[str], b: Sequence[str], path: Path) -> Listed:
    if a[1] != b[1] or not a[1].isdigit():
        what = f"two lines of a pair have unlike marks: {' '.join(a)} / {' '.join(b)}"
        raise InputError("GL0802", what, where=str(path), hint=FORMS)
    return Listed(a[0], b[0], a[1] != "0", -1)


def _cfp(folder: Path) -> list[Listed]:
    """Read CFP's Split/FP or Split/FF: a folder for each fold, with numbers of images."""
    above, kinds = folder.parent.parent, folder.name.upper()
    try:
        names = {
            kind: dict(line.split(None, 1) for line in _lines(above / f"Pair_list_{kind}.txt"))
            for kind in set(kinds)
        }
        made = []
        for fold, inner in enumerate(sorted(p for p in folder.iterdir() if p.is_dir())):
            for same, name in ((True, "same.txt"), (False, "diff.txt")):
                for line in _lines(inner / name):
                    i, j = re.split(r"[, \t]+", line)
                    a, b = names[kinds[0]][i], names[kinds[-1]][j]
                    made.append(Listed(_below(a), _below(b), same, fold))
    except (ValueError, KeyError, UsageError) as error:
        what = f"no folder of CFP's lists: {error}"
        raise InputError("GL0802", what, where=str(folder), hint=FORMS) from None
    return made


def _below(path: str) -> str:
    parts = [part for part in path.strip().split("/") if part not in (".", "..", "")]
    return "/".join(parts[-3:])


def _tail(name: str, count: int) -> str:
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    last = parts[-1] if parts else ""
    if is_image(os.fsencode(last)):
        last = last[: last.rfind(".")]
    return "/".join([*parts[-count:-1], last])


def _rows(sources: Iterable[str], wanted: Sequence[str], path: Path) -> np.ndarray:
    """Return the row of each wanted name, by as many of its last parts as tell images apart."""
    names = list(sources)
    lost: list[str] = []
    for count in (3, 2, 1):
        known: dict[str, int] = {}
        twice = set[str]()
        for row, name in enumerate(names):
            tail = _tail(name, count)
            twice |= {tail} if tail in known else set()
            known.setdefault(tail, row)
        tails = [_tail(name, count) for name in wanted]
        lost = [name for name, tail in zip(wanted, tails) if tail not in known]
        if not lost:
            if several := [tail for tail in tails if tail in twice]:
                what = f"{several[0]} is the name of several images"
                raise InputError("GL0802", what, where=str(path))
            return np.array([known[tail] for tail in tails], np.int64)
    some, there = ", ".join(lost[:3]), names[0] if names else "nothing"
    what = f"{len(lost)} of {len(wanted)} images are not there: {some}; there is {there}"
    raise InputError("GL0802", what, where=str(path), hint=FORMS)
