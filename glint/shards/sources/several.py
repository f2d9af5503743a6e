"""Several sources of one label space: what they call by one label is one identity."""

# n records, of all sources one after the other

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glint.errors import InputError
from glint.files import atomic
from glint.files.strings import packed
from glint.shards.sources.listed import number_classes
from glint.shards.sources.source import Ints, Source, shown

ROW = np.dtype([("label", "i8"), ("part", "i4"), ("at", "i8"), ("flaw", "u1")])
PARTS = "parts.json"
_TOLD = ("source", "layout", "images", "identities")
Open = Callable[[str, str, Path, int, int], Source]


class Several(Source):
    """Sources under one numbering of labels; a record is called by its source's number and name."""

    kind = "several"
    parts: Sequence[Source]

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts, classes = parts, [part.classes.to_pylist() for part in parts]
        row_n = np.empty(sum(part.n for part in parts), ROW)
        labels = [name for one in classes for name in one]
        base = start = 0
        for number, part in enumerate(parts):
            row_m = row_n[start : start + part.n]
            row_m["part"], row_m["at"], row_m["flaw"] = number, np.arange(part.n), 0
            row_m["label"] = np.where(part.label < 0, -1, part.label + base)
            base, start = base + len(part.classes), start + part.n
        labels, padded = _plain(classes, labels)
        merged = number_classes(row_n, labels)
        names = _names(labels, [name for part in parts for name in part.names.to_pylist()])
        self.classes, self.names = packed(merged), packed(names[one] for one in merged)
        super().__init__(parts[0].root, row_n, self._told(classes, len(merged), padded))

    def _told(
        self, classes: Sequence[Sequence[bytes]], count: int, padded: Sequence[str]
    ) -> dict[str, Any]:
        told = [part.describe() for part in self.parts]
        shared = sum(map(len, classes)) - count
        notes = [
            f"{shared} labels stand in more than one of the {len(told)} sources: one identity each"
        ]
        digits = {all(map(bytes.isdigit, one)) for one in classes if one}
        warnings = ["labels are numbers in some sources and names in others"] * (len(digits) > 1)
        warnings += padded
        left: dict[str, int] = {}
        for part in told:
            warnings += [f"{part['source']}: {one}" for one in part["warnings"]]
            notes += [f"{part['source']}: {one}" for one in part["notes"]]
            for why, n in part["left_out"].items():
                left[why] = left.get(why, 0) + n
        return {
            "layout": " + ".join(dict.fromkeys(part["layout"] for part in told)),
            "label": "; ".join(dict.fromkeys(part["label"] for part in told)),
            "images": sum(int(part["images"]) for part in told), "identities": count,
            "left_out": left, "notes": notes, "warnings": warnings,
            "sources": [{k: part[k] for k in _TOLD} for part in told],
        }  # fmt: skip

    def fingerprint(self) -> dict[str, Any]:
        hasher = hashlib.sha256()
        for part in self.parts:
            hasher.update(repr(sorted(part.fingerprint().items())).encode())
        return {"kind": self.kind, "sources": len(self.parts), "all": hasher.hexdigest()}

    def _place(self, i: int) -> tuple[int, int]:
        return int(self.row["part"][i]), int(self.row["at"][i])

    def read(self, i: int) -> bytes:
        part, at = self._place(i)
        return self.parts[part].read(at)

    def name(self, i: int) -> str:
        part, at = self._place(i)
        source = self.parts[part]
        return f"{part}:{shown(os.fsencode(source.root.name))}/{source.name(at)}"

    def offset(self, i: int) -> int | None:
        part, at = self._place(i)
        return self.parts[part].offset(at)

    def bytes(self) -> int:
        return sum(part.bytes() for part in self.parts)

    def save(self, folder: Path, order_n: Ints) -> None:
        """Save each source in the order in which its records are dealt, and the rows of all."""
        row_n = self.row.copy()
        dealt_n = row_n[order_n]
        for number, part in enumerate(self.parts):
            mine_n = np.flatnonzero(dealt_n["part"] == number)
            inner = folder / f"part{number}"
            atomic.own_dir(inner)
            part.save(inner, dealt_n["at"][mine_n])
            row_n["at"][order_n[mine_n]] = np.arange(len(mine_n))
        told = [{"kind": part.kind, "path": str(part.root)} for part in self.parts]
        atomic.write_json(folder / PARTS, {"parts": told})
        self._save(folder, order_n, row_n)

    @classmethod
    def opened(cls, path: Path, folder: Path, start: int, stop: int, opener: Open) -> Source:
        """Do what `load` does; opener: what opens the sources of it."""
        source = super().load(path, folder, start, stop)
        assert isinstance(source, Several)
        told, parts = atomic.read_json(folder / PARTS, "GL0006")["parts"], []
        for number, part in enumerate(told):
            mine_n = source.row["part"] == number
            at_n = source.row["at"][mine_n]
            first, last = (int(at_n.min()), int(at_n.max()) + 1) if len(at_n) else (0, 0)
            inner = folder / f"part{number}"
            parts.append(opener(part["kind"], part["path"], inner, first, last))
            source.row["at"][mine_n] -= first
        source.parts = parts
        return source


def _plain(
    classes: Sequence[Sequence[bytes]], labels: list[bytes]
) -> tuple[list[bytes], list[str]]:
    """Return labels so that 007 of one source is 7 of another, or what to warn of.

    They stay apart where names are among them, and where one source has both.
    """
    short = [one.lstrip(b"0") or b"0" if one.isdigit() else one for one in labels]
    same = len(set(labels)) - len(set(short))
    if not same:
        return labels, []
    numbers = all(map(bytes.isdigit, labels))
    if numbers and all(len({one.lstrip(b"0") for one in part}) == len(part) for part in classes):
        return short, []
    some = next(shown(a) for a, b in zip(labels, short) if a != b and b in labels)
    what = f"{same} labels are other numbers only by zeros before them ({some}) and stay apart"
    return labels, [what]


def _names(labels: Sequence[bytes], people: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return what each label is called; numbers that mean other people elsewhere are refused."""
    names: dict[bytes, bytes] = {}
    number: dict[bytes, bytes] = {}
    for label, name in zip(labels, people):
        told = names.setdefault(label, name)
        if not label.isdigit() or not name or name.isdigit():
            continue
        if (told and not told.isdigit() and told != name) or number.setdefault(
            name, label
        ) != label:
            other = f"{shown(told)} and {shown(name)}"
            if told == name:
                other = f"{shown(name)}, who is {shown(number[name])} elsewhere"
            raise InputError(
                "GL0201",
                f"numbers mean other people in other sources: {shown(label)} is {other}",
                where="SRC",
                hint="shard each alone, then join them by name: glint merge --same-labels A B OUT",
            )
        names[label] = name
    return names
