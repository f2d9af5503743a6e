"""Lists of pairs as the field publishes them, read against the images of a folder or dataset.

LFW and XQLFW (`pairs.txt`, or CSV), CALFW and CPLFW (two lines a pair), CFP (its folder
Protocol/Split/FP or FF), and plain `a b 1`.
"""

# n pairs

from __future__ import annotations

import csv
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
from glint.shards.sources.rule import Rule, is_image, parts_of, tail
from glint.shards.sources.tree import Tree

_TRUTH = {"1": True, "true": True, "same": True, "0": False, "false": False, "different": False}
_TRUTH |= {"-1": False, "diff": False}
# names of columns: of the truth, of what is neither image nor truth, of what may be its opposite
_SAME = {"same", "issame", "is_same", "label", "truth", "match", "target", "y", "genuine"}
_ASIDE = {"", "fold", "id", "index", "no", "pair", "pair_id"}
_TURNED = {"dist", "distance", "different", "diff", "impostor", "imposter"}
FORMS = (
    "glint reads LFW's and XQLFW's pairs.txt (name i j; name i name j), CALFW's and CPLFW's (two "
    "lines a pair, image and fold or 0), CFP's folder Split/FP, lines `a b 1` or CSV, and its own "
    "table (fold, a, b, same)"
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
    if not path.is_dir():
        lines = _lines(path)
        if lines and {"fold", "a", "b", "same"} <= {*lines[0].split("\t")}:
            return read_table(path, images)
    return matched(parse(path), images, path)


def parse(path: Path) -> list[Listed]:
    """Read the pairs of a list, or of CFP's folder, by names alone. Raises as `read_list` does."""
    pairs = _cfp(path) if path.is_dir() else _pairs(_lines(path), path)
    if not pairs:
        raise InputError("GL0802", "no pairs", where=str(path), hint=FORMS)
    return pairs


def matched(pairs: Sequence[Listed], images: Samples, path: Path) -> Pairs:
    """Find the images of listed pairs. Raises InputError GL0802 as `read_list` does."""
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
    rows, head = _cells(lines), re.split(r"[\t,; ]+", lines[0]) if lines else []
    counts = len(head) <= 2 and all(cell.isdecimal() for cell in head)  # folds, pairs of each kind
    each = int(head[-1]) if counts and len(head) == 2 else 0
    named = not counts and bool(rows) and _is_header(rows[0], rows[1:2])
    columns = _columns(rows[0], path) if named else None
    rows, width = rows[counts or named :], len(rows[0]) if rows else 0
    if not rows:
        return []
    if columns is not None:
        return [_plain(row, columns, width, path) for row in rows]
    if all(len(row) == 2 for row in rows) and len(rows) % 2 == 0:
        return [_two_lines(a, b, path) for a, b in zip(rows[::2], rows[1::2])]
    forms = {  # what all lines must fit, as a number alone may be a name, a truth or an image's
        "name i j": all(map(_is_lfw, rows))
        and (counts or any(len(row) == 4 or not row[0].isdecimal() for row in rows)),
        "a b 1": all(len(row) == 3 and row[2].lower() in _TRUTH for row in rows),
        "1 a b": all(len(row) == 3 and row[0].lower() in _TRUTH for row in rows),
    }
    fit = [form for form, fits in forms.items() if fits]
    if len(fit) > 1:
        what = f"its lines can be read as `{'` and as `'.join(fit)}`: {' '.join(rows[0])}"
        hint = "begin it with a line that names the columns: a b same, or same a b"
        raise InputError("GL0802", what[:200], where=str(path), hint=hint)
    if fit == ["name i j"]:
        return [_lfw(row, i // (2 * each) if each else -1) for i, row in enumerate(rows)]
    if fit:
        columns = (0, 1, 2, -1) if fit == ["a b 1"] else (1, 2, 0, -1)
        return [_plain(row, columns, 3, path) for row in rows]
    odd = next((row for row in rows if len(row) != 3 and not _is_lfw(row)), rows[0])
    raise _no_pair(odd, path)


def _cells(lines: Sequence[str]) -> list[list[str]]:
    """Split lines at what stands in all but the first: tabs, commas (quoted cells), or blanks."""
    by = next((by for by in "\t,;" if all(by in line for line in lines[1:] or lines)), " ")
    if by in " \t":
        parts = [re.split(r"\t+" if by == "\t" else r"[\t,; ]+", line) for line in lines]
    else:  # a line at a time: a quote that is not closed swallows no other line
        parts = [next(csv.reader([line], delimiter=by, skipinitialspace=True)) for line in lines]
    rows = [[cell.strip() for cell in row] for row in parts]
    for row in rows:
        while row and not row[-1]:
            row.pop()
    return rows


def _is_header(head: Sequence[str], following: Sequence[Sequence[str]]) -> bool:
    """Say whether a line names columns: it has no number, no path, and no truth as the next has."""
    if any(cell.isdecimal() or {*cell} & {".", "/"} for cell in head):
        return False
    words = [row[-1].lower() for row in (head, *following) if row]
    return not any({*words} <= kind for kind in ({"true", "false"}, {"same", "different", "diff"}))


def _columns(head: Sequence[str], path: Path) -> tuple[int, int, int, int] | None:
    """Return where a, b, the truth and the fold (or -1) stand; None where the names leave it."""
    names = [cell.lower() for cell in head]
    if odd := _TURNED.intersection(names):
        what = f"the column {min(odd)} does not say whether 1 is one person or two"
        hint = "name it same, with 1 for one person"
        raise InputError("GL0802", what, where=str(path), hint=hint)
    truth = [i for i, name in enumerate(names) if name in _SAME]
    rest = [i for i, name in enumerate(names) if name not in _SAME and name not in _ASIDE]
    if len(truth) != 1 or len(rest) != 2:
        return None
    return rest[0], rest[1], truth[0], names.index("fold") if "fold" in names else -1


def _plain(
    row: Sequence[str], columns: tuple[int, int, int, int], width: int, path: Path
) -> Listed:
    a, b, truth, fold = columns
    sound = len(row) == width and row[truth].lower() in _TRUTH
    if not sound or (fold >= 0 and not row[fold].isdecimal()):
        raise _no_pair(row, path)
    number = int(row[fold]) if fold >= 0 else -1
    return Listed(row[a], row[b], _TRUTH[row[truth].lower()], number)


def _no_pair(row: Sequence[str], path: Path) -> InputError:
    return InputError("GL0802", f"no pair: {' '.join(row)}"[:120], where=str(path), hint=FORMS)


def _is_lfw(row: Sequence[str]) -> bool:
    return len(row) in (3, 4) and row[1].isdecimal() and row[-1].isdecimal()


def _lfw(row: Sequence[str], fold: int) -> Listed:
    name, other = row[0], row[-2] if len(row) == 4 else row[0]
    return Listed(_numbered(name, row[1]), _numbered(other, row[-1]), len(row) == 3, fold)


def _numbered(name: str, number: str) -> str:
    return f"{name}/{name}_{int(number):04d}"


def _two_lines(a: Sequence[str], b: Sequence[str], path: Path) -> Listed:
    if a[1] != b[1] or not a[1].isdecimal():
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


def _rows(sources: Iterable[str], wanted: Sequence[str], path: Path) -> np.ndarray:
    """Return the row of each wanted name, by as many of its last parts as tell images apart."""
    names = list(sources)
    lost: list[str] = []
    for count in (3, 2, 1):
        known: dict[bytes, int] = {}
        twice = set[bytes]()
        for row, name in enumerate(names):
            end = tail(parts_of(name), count, stem=True)
            twice |= {end} if end in known else set()
            known.setdefault(end, row)
        ends = [tail(parts_of(name), count, stem=True) for name in wanted]
        lost = [name for name, end in zip(wanted, ends) if end not in known]
        if not lost:
            if several := [name for name, end in zip(wanted, ends) if end in twice]:
                what = f"{several[0]} is the name of several images"
                raise InputError("GL0802", what, where=str(path))
            return np.array([known[end] for end in ends], np.int64)
    some, there = ", ".join(lost[:3]), names[0] if names else "nothing"
    what = f"{len(lost)} of {len(wanted)} images are not there: {some}; there is {there}"
    raise InputError("GL0802", what, where=str(path), hint=FORMS)
