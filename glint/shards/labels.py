"""Versions of the labels: what each label as sharded means now, applied and undone at will."""

# C labels as sharded, m masked pairs

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glint import schemas
from glint.errors import BusyError, InputError
from glint.files import atomic, parquet, seal
from glint.shards import tombstones
from glint.shards.label_log import RECORD as RECORD
from glint.shards.label_log import append, behind, folder_of, follow, listed, name_of
from glint.shards.label_log import history as history
from glint.shards.label_table import LabelTable as LabelTable
from glint.shards.label_table import checked

Ints = npt.NDArray[np.int64]


def _bad(what: str, where: str) -> InputError:
    return InputError("GL0304", what, where=where)


def _head(root: str | os.PathLike[str]) -> tuple[int, bool]:
    """Return the version in force, and whether it says something of single images.

    It is that of the last line of the history; a crash may have left current.json one line behind.
    """
    path = folder_of(root) / "current.json"
    value: dict[str, Any] = {"version": 0}
    if path.exists():  # read first: it is written after the history
        value = atomic.read_json(path, "GL0304")
    last = (history(root) or [{"version": 0, "from": 0}])[-1]
    then, before = last.get("version"), last.get("from")
    version, file, images = value.get("version"), value.get("file") or "", value.get("images")
    if (
        type(version) is not int
        or type(then) is not int
        or version < 0
        or file != (name_of(version) if version else "")
        or images not in (None, name_of(version, ".images"))
    ):
        raise _bad(f"expected a version and its file, found {value}", str(path))
    if version not in (then, before):
        what = f"version {version} is said to be in force, the history ends with version {then}"
        raise _bad(what, str(path))
    return then, images is not None and version == then


def load(root: str | os.PathLike[str], version: int, classes: int) -> LabelTable:
    """Return a version by its number, whether in force or not. Raises InputError GL0304."""
    return _load(root, version, listed(root, version), classes)


def _load(root: str | os.PathLike[str], version: int, images: bool, classes: int) -> LabelTable:
    if version == 0:
        return LabelTable(
            0, np.arange(classes, dtype=np.int64), classes, np.empty((0, 2), np.int64)
        )
    path = folder_of(root) / name_of(version)
    _refuse_other(root, version)
    table = parquet.read(path, schemas.LABELS, code="GL0304")
    label_C = table.column("label").to_numpy()
    if not np.array_equal(label_C, np.arange(classes)):
        raise _bad(
            f"expected the labels 0..{classes - 1} in order, found {len(label_C)} rows", str(path)
        )
    masks = parquet.read(path.with_name(name_of(version, ".masks")), schemas.MASKS, code="GL0304")
    for held in (table, masks):
        _refuse_nulls(held, path)
    mask_m2 = np.stack([masks.column("a").to_numpy(), masks.column("b").to_numpy()], axis=1)
    read = LabelTable(version, table.column("target").to_numpy(), 0, mask_m2)
    if images:
        path = path.with_name(name_of(version, ".images"))
        own = parquet.read(path, schemas.LABEL_IMAGES, code="GL0304")
        _refuse_nulls(own, path)
        row, label = (own.column(name).to_numpy() for name in ("row", "label"))
        read = replace(read, row=row, label=label)
    return checked(read, classes, _counts(root)[1] if images else 0, str(path))


def _refuse_nulls(table: pa.Table, path: Path) -> None:
    """Raise InputError GL0304 for a table of a version with empty cells."""
    if any(column.null_count for column in table.columns):
        raise _bad("a label version has empty cells", str(path))


def _refuse_other(root: str | os.PathLike[str], version: int) -> None:
    """Raise InputError GL0304 where a version's files are not those that the history names."""
    for line in history(root):
        made = line.get("files") if line.get("version") == version else None
        for one in made if isinstance(made, list) else ():
            path = folder_of(root) / str(one["name"])
            if path.is_file() and atomic.sha256_of(path) != one["sha256"]:
                raise _bad("these are other bytes than the history names", str(path))


def _counts(root: str | os.PathLike[str]) -> tuple[int, int]:
    """Return how many labels and samples a dataset has, of an unfinished one only the samples."""
    if not (Path(root) / "manifest.json").exists():
        return 0, parquet.read(Path(root) / "samples.parquet", columns=[]).num_rows
    manifest = atomic.read_json(Path(root) / "manifest.json")
    return int(manifest["identities"]), int(manifest.get("written", 0))


def current(root: str | os.PathLike[str], classes: int) -> LabelTable:
    """Return the label version in force: identity where none was applied.

    `classes` is the number of labels as sharded. Raises InputError GL0304, MismatchError GL0308
    where it holds what was taken down.
    """
    table = unchecked(root, classes)
    tombstones.refuse_revived(root, table)
    return table


def unchecked(root: str | os.PathLike[str], classes: int) -> LabelTable:
    """Return what `current` does, also where it holds what was taken down: to make a version of it.

    Raises InputError GL0304.
    """
    version, images = _head(root)
    return _load(root, version, images or (version > 0 and listed(root, version)), classes)


def complete(root: str | os.PathLike[str]) -> None:
    """Complete a change of the labels that was killed behind its line of the history."""
    _head(root)
    if behind(root):
        with changing(root):
            pass


def in_force(root: str | os.PathLike[str], classes: int) -> list[dict[str, Any]]:
    """Return the history lines that the labels in force rest on, the newest first.

    `from` is the version below, also where that is not the one that was in force before. Raises
    what `unchecked` raises.
    """
    version: object = unchecked(root, classes).version
    lines = []
    for line in reversed(history(root)):
        if line.get("op") == "apply" and line.get("version") == version:
            version = line.get("rests_on", line.get("from"))
            lines.append(line | {"from": version})
    return lines


def upcoming(root: str | os.PathLike[str]) -> int:
    """Return the number that the next label version gets; none that was in force is given twice."""
    made = [int(line["version"]) for line in history(root) if line.get("op") == "apply"]
    files = [int(p.name[1:5]) for p in folder_of(root).glob("v[0-9][0-9][0-9][0-9].parquet")]
    last, most = max(made, default=0), max(files, default=0)
    return last + 1 if most <= last + 1 else most + 1  # a commit that was killed left one at most


def _nothing(what: str, root: str | os.PathLike[str]) -> InputError:
    return InputError("GL0502", what, where=str(root))


@contextmanager
def changing(root: str | os.PathLike[str], wait: float = 0.0) -> Iterator[None]:
    """Hold the labels of a dataset, so that nothing else changes them.

    What a command that was killed left half done is completed, or removed. Raises BusyError GL0005
    where another command holds them and has not ended in `wait` seconds, InputError GL0304.
    """
    folder, record = folder_of(root), Path(root) / RECORD
    atomic.make_dir(folder)
    with atomic.lock(folder / "lock", wait=wait):
        atomic.sweep(folder)
        atomic.sweep(record.parent, record.name)
        _head(root)
        follow(root)
        yield


def apply(
    root: str | os.PathLike[str],
    target: Ints,
    masks: Ints,
    why: dict[str, Any],
    *,
    row: Ints | None = None,
    label: Ints | None = None,
    based_on: int | None = None,
) -> int:
    """Write a new label version, put it in force and return its number.

    `target` int64 [C], `masks` int64 [m, 2]; `row`, `label` int64 [k]: samples of another label
    than as sharded, or -1, see `LabelTable`; `why` goes into the history as it is. `based_on`: the
    version that the new one was made of; where another is in force by now, nothing is written and
    BusyError GL0309 raised. What was taken down stays so, whatever the tables say. No shard and no
    older version is touched. Raises InputError GL0304, BusyError GL0005.
    """
    with changing(root):
        return commit(root, given(target, masks, row, label), why, based_on=based_on)


def given(
    target: Ints, masks: Ints, row: Ints | None = None, label: Ints | None = None
) -> LabelTable:
    """Return a table of arrays that are not checked yet."""
    none = np.empty(0, np.int64)
    pieces = (
        none if part is None else np.ascontiguousarray(part, np.int64) for part in (row, label)
    )
    mask_m2 = np.ascontiguousarray(masks, np.int64).reshape(-1, 2)
    return LabelTable(0, np.ascontiguousarray(target, np.int64), 0, mask_m2, *pieces)


def settled(
    root: str | os.PathLike[str],
    table: LabelTable,
    where: str = "",
    counts: tuple[int, int] | None = None,
    more: Sequence[dict[str, Any]] = (),
) -> LabelTable:
    """Return a table as it may come in force: checked, and without what was taken down.

    counts: labels and samples, of a dataset without a manifest yet. more: take-downs to come. An
    identity that lost all its images to others, or to none, is dropped. Raises InputError GL0304.
    """
    table = checked(table, *(counts or _counts(root)), where or str(root))
    table = tombstones.bury(root, table, more)
    if len(table.row):
        table = table.without(table.emptied(tombstones.label_of(root)))
    return table


def commit(
    root: str | os.PathLike[str],
    table: LabelTable,
    why: dict[str, Any],
    *,
    based_on: int | None = None,
    counts: tuple[int, int] | None = None,
    rests_on: int | None = None,
) -> int:
    """Do what `apply` does; the caller holds the labels (`changing`).

    counts: as `settled`. rests_on: the version that the new one goes on top of, where that is not
    the one in force: what came after is undone.
    """
    folder = folder_of(root)
    before = _head(root)[0]
    if based_on is not None and before != based_on:
        raise stale(root, based_on, before)
    version = upcoming(root)
    table = settled(root, table, str(folder / name_of(version)), counts)
    label_C = np.arange(len(table.target), dtype=np.int64)
    columns = {
        "": ([label_C, table.target], schemas.LABELS),
        ".masks": ([table.masks[:, 0], table.masks[:, 1]], schemas.MASKS),
        ".images": ([table.row, table.label], schemas.LABEL_IMAGES),
    }
    if not len(table.row):
        del columns[".images"]
        with atomic.writing(folder):  # of a run that was killed
            (folder / name_of(version, ".images")).unlink(missing_ok=True)
    for part, (arrays, schema) in reversed(columns.items()):
        parquet.write(folder / name_of(version, part), pa.table(arrays, schema=schema))
    files = [seal.entry(folder / name_of(version, part)) for part in columns]
    entry = {"op": "apply", "version": version, "from": before, "why": why, "files": files}
    entry |= {} if rests_on is None else {"rests_on": rests_on}
    append(root, entry)
    return version


def forget(root: str | os.PathLike[str]) -> None:
    """Remove all label versions of an unfinished dataset, of a run that was killed there."""
    with atomic.writing(root):
        shutil.rmtree(folder_of(root), ignore_errors=True)
        (Path(root) / RECORD).unlink(missing_ok=True)


def carry(root: str | os.PathLike[str], out: str | os.PathLike[str], new_N: Ints | None) -> None:
    """Copy all versions to a dataset of the same labels; the version in force last.

    new_N: the row there of every sample, -1 = gone, so that what is said of single images names
    them there; None where rows are the same.
    """
    here, there = folder_of(root), folder_of(out)
    forget(out)
    if not (lines := history(root)):
        return
    atomic.make_dir(there)
    for path in sorted(here.glob("v*.parquet")):
        atomic.write_bytes(there / path.name, path.read_bytes())
    raw, seen = b"", ""
    for line in lines:
        files = line.get("files", ())
        name = name_of(int(line["version"]), ".images")
        if new_N is not None and any(one["name"] == name for one in files):
            own = parquet.read(here / name, schemas.LABEL_IMAGES, code="GL0304")
            row, label = new_N[own.column("row").to_numpy()], own.column("label").to_numpy()
            order = np.argsort(row)[int((row < 0).sum()) :]
            images = pa.table([row[order], label[order]], schema=schemas.LABEL_IMAGES)
            parquet.write(there / name, images)
            entry = seal.entry(there / name)
            line["files"] = [entry if one["name"] == name else one for one in files]
        one = seal.line(seen, line)
        raw, seen = raw + one, str(json.loads(one)[seal.FIELD])
    atomic.write_bytes(there / "history.jsonl", raw)
    follow(out)


def stale(root: str | os.PathLike[str], based_on: int, found: int) -> BusyError:
    """Return the error of a version made of labels that are not in force any more."""
    return BusyError(
        "GL0309",
        f"another command changed the labels meanwhile: made of version {based_on}, in force is "
        f"{found}",
        where=str(root),
        hint="run the command again",
    )


def refuse_changed(root: str | os.PathLike[str], version: int) -> None:
    """Raise BusyError GL0309 where another label version than this is in force."""
    found = _head(root)[0]
    if found != version:
        raise stale(root, version, found)


def _return(root: str | os.PathLike[str], op: str, version: int, before: int) -> int:
    """Put an older version back in force. Raises MismatchError GL0308."""
    tombstones.refuse_revived(root, load(root, version, _counts(root)[0]))
    append(root, {"op": op, "version": version, "from": before})
    return version


def undo(root: str | os.PathLike[str], *, based_on: int | None = None) -> int:
    """Put the version before the current one in force and return its number.

    based_on: the version to undo; BusyError GL0309 where another is in force. Raises InputError
    GL0502 where nothing is applied, MismatchError GL0308 where it would bring back what was taken
    down.
    """
    nothing = _nothing("the labels stand as sharded, nothing was applied", root)
    if not history(root):
        raise nothing
    with changing(root):
        version = _head(root)[0]
        if based_on is not None and version != based_on:
            raise stale(root, based_on, version)
        made = [line for line in history(root) if line.get("op") == "apply"]
        parents = {line["version"]: line["from"] for line in made}
        if version == 0 or version not in parents:
            raise nothing
        return _return(root, "undo", int(parents[version]), version)


def redo(root: str | os.PathLike[str]) -> int:
    """Put the version that was undone last back in force and return its number.

    Raises InputError GL0502 where the last change was not an undo, MismatchError GL0308.
    """
    nothing = _nothing("no undone version to put back", root)
    if not history(root):
        raise nothing
    with changing(root):
        undone: list[int] = []
        for line in history(root):
            if line["op"] == "undo":
                undone.append(int(line["from"]))
            elif line["op"] == "redo":
                undone.pop()
            else:
                undone.clear()
        if not undone:
            raise nothing
        return _return(root, "redo", undone[-1], _head(root)[0])
