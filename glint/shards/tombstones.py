"""Who and what was taken down (`glint drop`), and that no label version brings it back."""

# C labels as sharded, k images

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from glint import schemas
from glint.errors import InputError, MismatchError
from glint.files import parquet, seal
from glint.shards.label_table import Ints, LabelTable

FILE = "_glint/tombstones.jsonl"
SHOWN = 5


def read(root: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the take-downs of a dataset. Raises InputError GL0304 for a damaged file."""
    path = Path(root) / FILE
    if path.exists() and not path.is_file():  # a pipe would never end
        raise InputError("GL0304", "expected a plain file", where=str(path))
    lines = seal.sound_lines(path)
    for line in lines:
        for name, kind in (("labels", int), ("keys", str)):
            given = line.get(name, [])
            if not isinstance(given, list) or any(type(one) is not kind for one in given):
                raise InputError("GL0304", f"expected {name}, found {given!r:.80}", where=str(path))
    return lines


def buried(lines: Iterable[dict[str, Any]]) -> set[int]:
    """Return the labels that were taken down."""
    return {label for line in lines for label in line.get("labels", ())}


def label_of(root: str | os.PathLike[str]) -> Ints:
    """Read the label of every sample as sharded, int64 [N]. Raises InputError GL0301."""
    path = Path(root) / "samples.parquet"
    label_N: Ints = parquet.read(path, schemas.SAMPLES, columns=["label"]).column(0).to_numpy()
    return label_N


def _rows(root: str | os.PathLike[str], lines: Iterable[dict[str, Any]]) -> Ints:
    """Return the rows of single images that were taken down and still stand in the tars."""
    lines = list(lines)
    keys = {key for line in lines for key in line.get("keys", ())}
    keys -= {key for line in lines if line.get("op") == "erase" for key in line.get("keys", ())}
    if not keys:
        return np.empty(0, np.int64)
    path = Path(root) / "samples.parquet"
    column = parquet.read(path, schemas.SAMPLES, columns=["key"]).column(0)
    found = pc.is_in(column, pa.array(sorted(keys), pa.string()))
    rows: Ints = np.flatnonzero(found.to_numpy())
    return rows


def bury(
    root: str | os.PathLike[str], table: LabelTable, more: Sequence[dict[str, Any]] = ()
) -> LabelTable:
    """Return the table without whom and what was taken down, whatever it says of them.

    An identity that was taken down has target -1, and no image that was sharded under it is moved
    to another; an image that was taken down by its key is left out. more: lines that are to come.
    Raises InputError GL0304.
    """
    lines = [*read(root), *more]
    if not lines:
        return table
    gone = np.array(sorted(buried(lines)), np.int64)
    if len(gone) and (gone[0] < 0 or gone[-1] >= len(table.target)):
        what = f"identity {gone[-1]} was taken down, there are {len(table.target)}"
        raise InputError("GL0304", what, where=str(Path(root) / FILE))
    if (table.target[gone] >= 0).any():
        table = table.without(gone)
    rows = _rows(root, lines)
    if not (len(table.row) or len(rows)):
        return table
    label_N = label_of(root)
    back = np.isin(label_N[table.row], gone)
    table = replace(table, row=table.row[~back], label=table.label[~back])
    alive = rows[table.sample_target(label_N)[rows] >= 0]
    said = dict(zip(table.row.tolist(), table.label.tolist())) | dict.fromkeys(alive.tolist(), -1)
    row = np.array(sorted(said), np.int64)
    return replace(table, row=row, label=np.array([said[i] for i in row.tolist()], np.int64))


def revived(root: str | os.PathLike[str], table: LabelTable) -> list[str]:
    """Name the identities and images that were taken down and are in a table all the same."""
    lines = read(root)
    if not lines:
        return []
    gone = buried(lines)
    classes = len(table.target)
    names = [
        f"identity {label}"
        for label in sorted(gone)
        if not 0 <= label < classes or table.target[label] >= 0
    ]
    rows = _rows(root, lines)
    if len(table.row) or len(rows):
        label_N = label_of(root)
        alive = table.sample_target(label_N) >= 0
        moved = table.row[np.isin(label_N[table.row], sorted(gone))]
        names += [f"image {row}" for row in np.union1d(rows, moved).tolist() if alive[row]]
    return names


def refuse_revived(root: str | os.PathLike[str], table: LabelTable) -> None:
    """Raise MismatchError GL0308 where labels hold whom or what was taken down."""
    names = revived(root, table)
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise MismatchError(
            "GL0308",
            f"{', '.join(names[:SHOWN])}{more} was taken down and is in label version "
            f"{table.version}",
            where=str(root),
            hint="make the take-down again: glint drop DATASET --identity label:N (or --key KEY) "
            "--reason TEXT",
        )
