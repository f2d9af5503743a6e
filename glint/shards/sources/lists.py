"""Lists of labels beside images: `path label`, CSV, JSON lines, .lst, CelebA's identity file."""

# n images, m lines of the list

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from glint.errors import InputError
from glint.shards.sources import columns
from glint.shards.sources.listed import Labelled, Labels, relabel, texts
from glint.shards.sources.rule import SURE, UNSURE, Rule, is_image, parts_of, tail
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
    table, column, key, name_n = _matched(path, names)
    header = (
        table.pop(0)
        if _is_header(table[0], column) and not _hits(table[:1], column, key, name_n)
        else []
    )
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
    notes += _by_tail(table, column, at_m, names, key)
    kept = paths.filter(pa.array(keep_n))
    return Labelled(row_n, kept, classes, classes, how, notes=notes)


def _by_tail(
    table: Table, column: int, at_m: pa.Array, names: pa.Array, key: Callable[[str], bytes]
) -> list[str]:
    """Return a note where a line and its image lie in different folders: ends were compared."""
    for row, at in zip(table[:SAMPLE], at_m.to_pylist()):
        here = os_name(names[at].as_py()) if at is not None else ""
        two, parts = [parts_of(row[column]), parts_of(here)], key(row[column]).count(b"/") + 1
        if at is not None and min(map(len, two)) > parts:
            what = f"the last {parts} parts of names are compared: the list has {row[column]}, "
            return [what + f"here is {here}; is it the list of these images?"]
    return []


def _is_header(row: list[str], column: int) -> bool:
    """Say whether a line can be a header: no number in it, and no name of an image."""
    numbers = any(cell.replace(".", "").isdigit() for cell in row)
    return not numbers and not is_image(os.fsencode(row[column]))


def _matched(path: Path, names: pa.Array) -> tuple[Table, int, Callable[[str], bytes], Any]:
    """Return a list as a table, and where its names are: read in the way that fits most names."""
    best, why = None, None
    for read in _readings(path):
        try:
            table = _squared(read(), path)
            share, *found = _match(table, names, path)
        except InputError as error:
            why = why or error
            continue
        if best is None or share > best[0]:
            best = share, table, found
        if share > 0.5:
            break
    if best is None:
        raise why or _bad("an empty list", path)
    _, table, (column, key, known) = best
    return table, column, key, known


def _readings(path: Path) -> list[Callable[[], Table]]:
    """Return the ways in which a list may be read, the likely ones first."""
    data = path.read_bytes()
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = data.decode("utf-16" if wide else "utf-8-sig", "surrogateescape")
    lines = [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    if lines and lines[0].strip().isdigit():  # CelebA's lists begin with their count
        lines = lines[1:]
    if not lines:
        raise _bad("an empty list", path)
    if lines[0].lstrip()[:1] in "{[":
        return [lambda: _json(text, path)]
    marks = [mark for mark in "\t,;" if mark in lines[-1]]
    ways: list[Callable[[], Table]] = [partial(_csv, lines, mark, path) for mark in marks]
    if "\t" not in marks:
        if len({len(line.split()) for line in lines}) == 1:
            ways.append(partial(_cut, lines, str.split))
        ways.append(partial(_cut, lines, lambda line: line.rsplit(None, 1)))  # blanks in paths
        ways.append(partial(_cut, lines, lambda line: line.split(None, 1)))  # in labels
    return ways


def _cut(lines: list[str], how: Callable[[str], list[str]]) -> Table:
    return [how(line.strip()) for line in lines]


def _squared(table: Table, path: Path) -> Table:
    wide = max(map(len, table))
    if wide < 2 or any(len(row) < 2 for row in table):
        short = next((row for row in table if len(row) < 2), table[0])
        raise _bad(f"a line with no label: {short[0] if short else ''}"[:120], path)
    return [row + [""] * (wide - len(row)) for row in table]


def _csv(lines: list[str], mark: str, path: Path) -> Table:
    """Cut lines into cells; where quotes in a list with tabs enclose no cells, they are text."""
    table, line = [], ""
    try:
        for line in lines:
            table += [*csv.reader([line], delimiter=mark, strict=True)]
    except csv.Error as error:
        if mark != "\t":
            hint = "a cell with a quote in it is quoted, and no cell goes over several lines"
            raise _bad(f"no sound CSV: {error}: {line[:80]}", path, hint) from None
        table = [line.split(mark) for line in lines]
    table = [[cell.strip() for cell in row] for row in table]
    return [row for row in table if any(row)]


def _json(text: str, path: Path) -> Table:
    """Read JSON lines, an array of objects, or one object of names and labels."""
    try:
        lines = [line for line in text.splitlines() if line.strip()]
        rows = [json.loads(line) for line in lines] if text.lstrip()[0] == "{" else json.loads(text)
    except (ValueError, RecursionError) as error:
        rows = _map(text)
        if not rows:
            raise _bad(f"no JSON lines: {error}", path) from None
    if len(rows) == 1 and isinstance(rows[0], dict) and len(rows[0]) > 2:
        rows = _map(text) or rows
    if not all(isinstance(row, dict) for row in rows):
        raise _bad("no JSON lines: a line is no object", path)
    header = [*dict.fromkeys(key for row in rows for key in row)]
    inner = {
        key for row in rows for key, said in row.items() if isinstance(_lone(said), dict | list)
    }
    if told := [key for key in header if key in inner and key.lower() in SURE]:
        raise _bad(f"{told[0]} is no number or text but holds several", path, "--label-column NAME")
    header = [key for key in header if key not in inner]
    cells = [[_lone(row.get(key)) for key in header] for row in rows]
    return [header, *([("" if one is None else str(one)) for one in row] for row in cells)]


def _map(text: str) -> list[dict[str, Any]]:
    """Return {name: label, ...} as rows; none where it is something else."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return []
    plain = isinstance(told, dict) and all(isinstance(v, str | int) for v in told.values())
    return [{"path": name, "label": said} for name, said in told.items()] if plain else []


def _lone(said: Any) -> Any:
    return said[0] if isinstance(said, list) and len(said) == 1 else said


def _match(
    table: Table, names: pa.Array, path: Path
) -> tuple[float, int, Callable[[str], bytes], Any]:
    """Find the column of names: return which share of a sample it hits, the column, what makes a
    line's name of it, and the images' names.

    Names are compared whole, then by their last parts, then without suffix; in more lines where
    the first ones name few images: a list may be of more than there is.
    """
    split = [parts_of(os_name(name)) for name in names.to_pylist()]
    best: tuple[float, int, Callable[[str], bytes], Any] = (0, 0, lambda text: b"", names)
    for step in (0, -(-len(table) // (16 * SAMPLE)), 1):
        sample = table[::step] if step else table[: SAMPLE + 1]
        found = _hit(sample, split)
        best = found if found[0] > best[0] else best
        if 2 * best[0] >= 1 - 1 / len(sample) and best[0]:
            break
        if (best[0] and step) or len(table) <= SAMPLE + 1:
            break
    if not best[0]:
        said, there = table[-1][0], shown(names[0].as_py()) if len(names) else "nothing"
        raise _bad(f"it names no image here: it has {said}, here is {there}", path)
    return best


def _hit(sample: Table, split: list[list[bytes]]) -> tuple[float, int, Callable[[str], bytes], Any]:
    """Do what `_match` does, for some lines."""
    best: tuple[float, int, Callable[[str], bytes], Any] = (0, 0, lambda text: b"", None)
    deep = max(max((len(p) for p in split[:SAMPLE]), default=1),
               max(len(parts_of(cell)) for row in sample[:SAMPLE] for cell in row))  # fmt: skip
    for stem, count in [(stem, count) for stem in (False, True) for count in range(deep, 0, -1)]:

        def key(text: str, count: int = count, stem: bool = stem) -> bytes:
            return tail(parts_of(text), count, stem)

        known = pa.array([tail(parts, count, stem) for parts in split], pa.large_binary())
        for column in range(len(sample[0])):
            if (share := _hits(sample, column, key, known) / len(sample)) > best[0]:
                best = share, column, key, known
        if 2 * best[0] >= 1 - 1 / len(sample) and best[0]:
            break
    return best


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
    said = {i: [row[i] for row in table] for i in others}
    if sure := [low.index(one) for one in SURE if one in low and low.index(one) != name]:
        chosen = columns.one_of({low[i]: said[i] for i in sure}) if len(sure) > 1 else low[sure[0]]
        if chosen:
            return low.index(chosen)
        others = []
    if not header and name == len(table[0]) - 1 > 1 and _numbered(said[0]):
        return 1  # a .lst: number, label, path
    others = [i for i in others if not header or not columns.OTHER.fullmatch(low[i])]
    for one in UNSURE:
        at = low.index(one) if one in low else -1
        if at in others and not columns.all_differ(said[at]):
            return at
    if len(others) > 1:  # marks that all share say nothing
        others = [i for i in others if len(set(said[i])) > 1]
    if len(others) != 1:
        told = ", ".join(header) if header else f"{len(table[0])}, such as {table[0]}"
        what = f"which column holds the labels? It has {told}"
        raise _bad(what, path, "--label-column NAME, or its number from 1")
    return others[0]


def _numbered(said: list[str]) -> bool:
    return columns.all_differ(said) and all(map(str.isdigit, said))


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
