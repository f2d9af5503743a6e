"""Names by a table for labels that a source leaves nameless, as RecordIO's are."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa

from glint.errors import InputError, UsageError
from glint.files.strings import packed
from glint.shards.sources.source import Source

LABEL = ("label", "class", "id", "identity")
NAME = ("name", "person", "subject", "identity_name", "person_name")


def read(path: Path) -> dict[str, str]:
    """Read label -> name: columns of these names under a header, else the first two.

    Tabs, commas or blanks. Raises UsageError GL0001, InputError GL0222 for a label of two names.
    """
    if not path.is_file():
        raise UsageError("GL0001", "no such table of names", where=f"--names {path}")
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise InputError("GL0222", "expected a text table", where=str(path)) from None
    by = next((by for by in "\t," if lines and by in lines[0]), " ")
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=by)]
    heads = [cell.lower() for cell in rows[0]] if rows else []
    label = next((i for i, head in enumerate(heads) if head in LABEL), None)
    name = next((i for i, head in enumerate(heads) if head in NAME), None)
    first, second = (0, 1) if label is None or name is None else (label, name)
    found: dict[str, str] = {}
    start = label is not None and name is not None
    for number, row in enumerate(rows[start:], 1 + start):
        if len(row) <= max(first, second) or not row[second]:
            what = f"expected a label and a name, found {by.join(row)!r}"
            raise InputError("GL0222", what, where=f"{path} line {number}")
        if found.setdefault(row[first], row[second]) != row[second]:
            what = f"label {row[first]} is both {found[row[first]]} and {row[second]}"
            raise InputError("GL0222", what, where=f"{path} line {number}")
    return found


def give(source: Source, path: Path) -> dict[str, Any]:
    """Name the labels of a source that have no name of their own; return what the manifest tells.

    Raises as `read` does, and InputError GL0222 where the table names no label of the source.
    """
    table = read(path)
    said = [str(label, "utf-8", "surrogateescape") for label in source.classes.to_pylist()]
    named = [
        own or table.get(label, "").encode() for own, label in zip(source.names.to_pylist(), said)
    ]
    given = sum(label in table for label in said)
    if not given:
        some = ", ".join(list(table)[:3])
        what = f"none of the {len(said)} labels is named; labels are {', '.join(said[:3])}, "
        what += f"the table has {some}"
        raise InputError("GL0222", what, where=f"--names {path}")
    source.names = packed(one for one in named)
    assert isinstance(source.names, pa.LargeBinaryArray)
    return {"table": path.name, "named": given, "of": len(said)}
