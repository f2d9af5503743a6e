"""Lists of labels beside images: `path label`, CSV, JSON lines, .lst, CelebA's identity file."""

# n images, m lines of the list

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from glint.errors import InputError
from glint.shards.sources.listed import Labelled, Labels, relabel, texts
from glint.shards.sources.rule import SURE, UNSURE, Rule, is_image
from glint.shards.sources.source import Rows, shown

SAMPLE = 256  # lines by which columns are recognised
Table = list[list[str]]


def by_list(
    rule: Rule, row_n: Rows, paths: pa.Array, left: Counter[str], files: Sequence[bytes]
) -> Labelled:
    """Label the images that a list names; the others are left out, and counted.

    Raises InputError GL0214: a list that names no image, names one under two labels or by a name
    that several have, or whose columns do not tell themselves.
    """
    path = Path(rule.labels)
    names = pa.array(list(texts(row_n, paths, files)), pa.large_binary())
    table, (column, key, name_n) = _matched(_read(path), names, path)
    header = table.pop(0) if not _hits(table[:1], column, key, name_n) else []
    place = _label_column(header, table, column, rule.label_column, path)
    at_m = pc.index_in(pa.array([key(r[column]) for r in table], pa.large_binary()), name_n)
    labels, found = Labels(), dict[int, str]()
    missing = []
    for line, at in zip(table, at_m.to_pylist()):
        if at is None:
            missing.append(line[column])
        elif found.setdefault(at, line[place]) != line[place]:
            what = f"{line[column]} is under two labels, {found[at]} and {line[place]}"
            raise _bad(what, path)
    _require_one_name_each(name_n, names, found, path)
    keep_n = np.zeros(len(row_n), np.bool_)
    for at, said in found.items():
        keep_n[at] = True
        relabel(row_n, at, *labels.code(said.encode("utf-8", "surrogateescape")))
    left[f"not in {path.name}"] += int((~keep_n).sum())
    row_n = row_n[keep_n]
    classes = labels.settle(row_n)
    of = f"column {header[place] if header else place + 1}"
    how = f"{of} of {path.name} (--labels), {len(found)} images of {len(table)} lines"
    notes = []
    if missing:
        notes = [f"{len(missing)} lines of {path.name} name no image here, such as {missing[0]}"]
    kept = paths.filter(pa.array(keep_n))
    return Labelled(row_n, kept, classes, classes, how, notes=notes)


def _matched(
    table: Table, names: pa.Array, path: Path
) -> tuple[Table, tuple[int, Callable[[str], bytes], Any]]:
    """Return a table and where its names are; blanks may stand in names, not cut columns."""
    try:
        return table, _match(table, names, path)
    except InputError:
        whole = [[" ".join(row[:-1]), row[-1]] for row in table]
        if len(table[0]) < 3:
            raise
        return whole, _match(whole, names, path)


def _read(path: Path) -> Table:
    """Return the lines of a list, cut into columns."""
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and lines[0].strip().isdigit():  # CelebA's lists begin with their count
        lines = lines[1:]
    if not lines:
        raise _bad("an empty list", path)
    if lines[0].lstrip().startswith("{"):
        return _json(lines, path)
    mark = next((mark for mark in "\t,;" if mark in lines[-1]), None)
    table = [line.split() for line in lines] if mark is None else _csv(lines, mark, path)
    if mark is None and max(map(len, table)) > 2 and len({len(row) for row in table}) > 1:
        table = [line.rsplit(None, 1) for line in lines]  # blanks in paths
    wide = max(map(len, table))
    if wide < 2 or any(len(row) < 2 for row in table):
        short = next((row for row in table if len(row) < 2), table[0])
        raise _bad(f"a line with no label: {short[0] if short else ''}"[:120], path)
    return [row + [""] * (wide - len(row)) for row in table]


def _csv(lines: list[str], mark: str, path: Path) -> Table:
    try:
        table = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=mark)]
    except csv.Error as error:
        raise _bad(f"no sound CSV: {error}", path) from None
    return [row for row in table if any(row)]


def _json(lines: list[str], path: Path) -> Table:
    try:
        rows = [json.loads(line) for line in lines]
        header = list(rows[0])
        cells = [["" if row.get(k) is None else str(row[k]) for k in header] for row in rows]
    except (ValueError, AttributeError, RecursionError) as error:
        raise _bad(f"no JSON lines: {error}", path) from None
    return [header, *cells]


def _clean(text: str) -> list[bytes]:
    parts = text.replace("\\", "/").encode("utf-8", "surrogateescape").split(b"/")
    return [part for part in parts if part not in (b"", b".")]


def _stem(name: bytes) -> bytes:
    return name[: name.rfind(b".")] if is_image(name) else name


def _tail(parts: list[bytes], count: int, stem: bool) -> bytes:
    name = b"/".join(parts[-count:])
    return _stem(name) if stem else name


def _match(table: Table, names: pa.Array, path: Path) -> tuple[int, Callable[[str], bytes], Any]:
    """Find the column of names: return it, what makes a line's name of it, and the images' names.

    Names are compared whole, then by their last parts, then without suffix.
    """
    split = [_clean(os_name(name)) for name in names.to_pylist()]
    sample = table[: SAMPLE + 1]
    deep = max(max((len(p) for p in split[:SAMPLE]), default=1),
               max(len(_clean(cell)) for row in sample for cell in row))  # fmt: skip
    best: tuple[int, int, Callable[[str], bytes], Any] = (0, 0, lambda text: b"", names)
    for stem, count in [(stem, count) for stem in (False, True) for count in range(deep, 0, -1)]:

        def key(text: str, count: int = count, stem: bool = stem) -> bytes:
            return _tail(_clean(text), count, stem)

        known = pa.array([_tail(parts, count, stem) for parts in split], pa.large_binary())
        for column in range(len(table[0])):
            if (hits := _hits(sample, column, key, known)) > best[0]:
                best = hits, column, key, known
        if 2 * best[0] >= len(sample) - 1 and best[0]:
            break
    if not best[0]:
        said, there = table[-1][0], shown(names[0].as_py()) if len(names) else "nothing"
        raise _bad(f"it names no image here: it has {said}, here is {there}", path)
    return best[1:]


def os_name(name: bytes) -> str:
    """Return a name as the lines of a list hold it."""
    return name.decode("utf-8", "surrogateescape")


def _hits(rows: Table, column: int, key: Callable[[str], bytes], known: pa.Array) -> int:
    keys = pa.array([key(row[column]) for row in rows], pa.large_binary())
    return int(pc.sum(pc.is_in(keys, known)).as_py() or 0)


def _label_column(header: list[str], table: Table, name: int, given: str, path: Path) -> int:
    """Return the column of labels: the one that was named, or the one that can be none else."""
    others = [i for i in range(len(table[0])) if i != name]
    low = [cell.lower() for cell in header]
    if given:
        if given.lower() in low:
            return low.index(given.lower())
        if given.isdigit() and 1 <= int(given) <= len(table[0]):
            return int(given) - 1
        raise _bad(f"no column {given}; it has {', '.join(header) or len(table[0])}", path)
    named = [low.index(one) for one in SURE + UNSURE if one in low and low.index(one) != name]
    if named:
        return named[0]
    count = {i: len({row[i] for row in table}) for i in others}
    if len(others) > 1:  # numbers of lines and marks that all share say nothing
        others = [i for i in others if 1 < count[i] < len(table)]
    if len(others) != 1:
        said = ", ".join(header) if header else f"{len(table[0])}, such as {table[0]}"
        what = f"which column holds the labels? It has {said}"
        raise _bad(what, path, "--label-column NAME, or its number from 1")
    return others[0]


def _require_one_name_each(
    known: pa.Array, names: pa.Array, found: dict[int, str], path: Path
) -> None:
    """Refuse a list whose names mean several images: a part of a path was compared."""
    first_n = np.asarray(pc.index_in(known, known))
    twin_n = np.flatnonzero(first_n != np.arange(len(first_n)))
    for at in twin_n.tolist():
        if (first := int(first_n[at])) in found:
            both = f"{shown(names[first].as_py())} and {shown(names[at].as_py())}"
            raise _bad(f"one name of it means several images: {both}", path)


def _bad(what: str, path: Path, hint: str = "") -> InputError:
    hint = hint or "a line has the path of an image below SRC and its label; or a CSV with a header"
    return InputError("GL0214", what, where=f"--labels {path}", hint=hint)
