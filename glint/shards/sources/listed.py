"""What sources that list their images before they read one have in common: rows, names, labels."""

# n records

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from glint.errors import InputError
from glint.files.strings import BLOCK, packed
from glint.shards.image import Rejected
from glint.shards.sources.source import Rows, Source, shown

_NUMBER = re.compile(rb"[+-]?[0-9]+(\.[0-9]*)?")  # in text: 01e3, nan and inf are names there
_NONE = frozenset((b"nan", b"inf", b"+inf", b"-inf"))  # among numbers: no labels

# What a listing finds wrong with a record; its name, with hyphens, is the reason that is told.
Flaw = IntEnum(
    "Flaw",
    "sound no_identity bad_name unsafe_member duplicate_name encrypted unsupported_method "
    "no_image no_label label_not_integer ambiguous_sample",
    start=0,
)
Found = Iterator[tuple[bytes, tuple[int, ...]]]  # name and row of each record


class Labelled(NamedTuple):
    """Records with their labels, and how these were found, in words."""

    row_n: Rows
    paths: pa.Array
    classes: Sequence[bytes]
    names: Sequence[bytes]
    how: str
    tree: str = ""
    notes: Sequence[str] = ()


class Listed(Source):
    """Records with names, in Arrow as classes are."""

    by_row = ("paths",)

    def __init__(self, root: Path, found: Labelled, layout: str, **facts: Any) -> None:
        row_n, self.paths, classes, names, how, tree, notes = found
        counts = {"images": len(row_n), "identities": len(classes)}
        notes = [*notes, *twins(classes)]
        facts = {"label": how, **counts, "notes": notes, **facts}
        super().__init__(root, row_n, {"layout": layout + tree, **facts})
        self.classes, self.names = packed(classes), packed(names)

    def name(self, i: int) -> str:
        return shown(self.paths[i].as_py())

    def _sound(self, i: int) -> Any:
        """Return a row. Raises Rejected where it has a flaw."""
        if flaw := self.row["flaw"][i]:
            raise Rejected(Flaw(flaw).name.replace("_", "-"))
        return self.row[i]


def collect(found: Found, dtype: np.dtype[Any]) -> tuple[Rows, pa.Array]:
    """Pack rows and names as they are listed, a block at a time: objects take ten times as much."""
    rows, names = [np.empty(0, dtype)], [packed([])]
    while piece := list(islice(found, BLOCK)):
        rows.append(np.array([row for _, row in piece], dtype))
        names.append(packed(name for name, _ in piece))
    return np.concatenate(rows), pa.concat_arrays(names)


class Labels:
    """Labels as they are met, each under a running number: names, and numbers however written."""

    def __init__(self) -> None:
        self._codes: dict[bytes, int] = {}

    def code(self, said: object) -> tuple[int, int]:
        """Return the number that stands for a label, or -1, and the flaw.

        Integral floats and numbers in quotes are numbers; NaN, fractions, numbers below 0 or of
        over 18 digits are none. Text with an exponent is a name.
        """
        if isinstance(said, list | tuple) and len(said) == 1:
            said = said[0]
        if said is None or said in ("", b""):
            return -1, Flaw.no_label
        if isinstance(said, bool) or not isinstance(said, str | bytes | int | float):
            return -1, Flaw.label_not_integer
        if isinstance(said, float):
            if not said.is_integer():
                return -1, Flaw.label_not_integer
            said = int(said)
        text = said if isinstance(said, bytes) else str(said).encode("utf-8", "surrogatepass")
        text = text.strip()
        if has_control(text) or not text:
            return -1, Flaw.no_label if not text else Flaw.bad_name
        if _NUMBER.fullmatch(text):
            whole, _, part = text.partition(b".")
            digits = whole.lstrip(b"+-0")
            if part.strip(b"0") or len(digits) > 18 or (digits and whole[:1] == b"-"):
                return -1, Flaw.label_not_integer
            if not text.isdigit():
                text = digits or b"0"
        return self._codes.setdefault(text, len(self._codes)), Flaw.sound

    def settle(self, row_n: Rows, *, numbers: bool = False) -> list[bytes]:
        """Return the classes in order, and put their places where the running numbers stood.

        numbers: where all are digits, 007 is called 7, unless there is a 7, too: they stay apart.
        nan and inf are names among names, and no labels where all others are digits.
        """
        labels = list(self._codes)
        none = [code for code, label in enumerate(labels) if label in _NONE]
        known = set(labels) - _NONE
        if none and known and all(map(bytes.isdigit, known)):
            none_n = np.isin(row_n["label"], none)
            row_n["flaw"][none_n & (row_n["flaw"] == Flaw.sound)] = Flaw.label_not_integer
            return number_classes(row_n, labels, known)
        if numbers and all(label.isdigit() for label in labels):
            plain = [b"%d" % int(label) for label in labels]
            labels = plain if len(set(plain)) == len(plain) else labels
        return number_classes(row_n, labels)


def relabel(row_n: Rows, i: int, code: int, flaw: int) -> None:
    """Give record i a label, or the flaw of having none; other flaws stay."""
    row_n["label"][i] = code
    if row_n["flaw"][i] in (Flaw.sound, Flaw.no_identity, Flaw.no_label, Flaw.label_not_integer):
        row_n["flaw"][i] = flaw


def texts(row_n: Rows, paths: pa.Array, files: Sequence[bytes], least: int = 2) -> Iterator[bytes]:
    """Yield the paths of records; that of their container before it where there are `least`."""
    for at in range(0, len(paths), BLOCK):
        piece = paths.slice(at, BLOCK).to_pylist()
        if len(files) < least or files[0] == b"":
            yield from piece
        else:
            numbers = row_n["file"][at : at + BLOCK].tolist()
            yield from (files[n] + b"/" + path for n, path in zip(numbers, piece))


def number_classes(
    row_n: Rows, labels: Sequence[bytes], known: set[bytes] | None = None
) -> list[bytes]:
    """Return the classes in order, and put their places where those in `labels` were; -1 stays.

    They are in the order of numbers where all are integers, else of bytes. known: those that
    count; no record has another.
    """
    classes = sorted(set(labels) if known is None else known)
    if all(label.isdigit() for label in classes):
        classes.sort(key=lambda label: (len(label.lstrip(b"0")), label.lstrip(b"0")))
    place = {label: i for i, label in enumerate(classes)}
    rank = np.array([*(place.get(label, -1) for label in labels), -1], np.int64)
    row_n["label"] = rank[row_n["label"]]
    return classes


def base_names(folders: Iterable[bytes]) -> list[bytes]:
    """Return what stands behind the last slash of each."""
    return [folder.rsplit(b"/", 1)[-1] for folder in folders]


def mixed(root: Path, containers: Sequence[bytes], image: bytes) -> InputError:
    """Return the error of a folder that holds images and containers of images."""
    some, suffix = ", ".join(map(shown, containers[:3])), shown(containers[0]).rpartition(".")[2]
    top = shown(image).split("/")[0]
    what = f"{len(containers)} containers ({some}) and images ({shown(image)}) side by side"
    hint = f"give what is meant, or leave the other out: --exclude '*.{suffix}' or --exclude {top}"
    return InputError("GL0201", what, where=str(root), hint=hint)


def has_control(name: bytes) -> bool:
    """Say whether a control character is in a name."""
    return any(byte < 32 or byte == 127 for byte in name)


def twins(labels: Sequence[bytes]) -> list[str]:
    """Return a note on labels that only case, blanks or Unicode's form tells apart, if any."""

    def form(label: bytes) -> str:
        plain = unicodedata.normalize("NFC", shown(label)).casefold()
        return "/".join(" ".join(part.split()) for part in plain.split("/"))

    form_n = np.fromiter((hash(form(one)) for one in labels), np.int64, len(labels))
    _, back_n, count_m = np.unique(form_n, return_inverse=True, return_counts=True)
    twin_k = np.flatnonzero(count_m[back_n.reshape(-1)] > 1).tolist()
    if not twin_k:
        return []
    same = sorted(twin_k, key=lambda i: form(labels[i]))
    some = ", ".join(repr(shown(labels[i])) for i in same[:4]) + (", ..." if len(same) > 4 else "")
    return [
        f"{len(same)} identities are apart only by case, blanks or the Unicode form (NFC, NFD) of "
        f"their names: {some}; rename them alike if they are the same person"
    ]


def count_note(count: int, several: str, one: str = "") -> list[str]:
    """Return a note that counts something, if there is any."""
    return [f"{count} {(one if count == 1 else '') or several}"] if count else []
