"""Versions of the labels: what each label as sharded means now, applied and undone at will."""

# C labels as sharded, m masked pairs

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glint import schemas
from glint.errors import InputError
from glint.files import atomic, parquet, seal

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelTable:
    """One version: `target` int64 [C] is 0..classes-1 or -1 (dropped).

    `masks` int64 [m, 2] are pairs of targets (a < b) kept apart in the softmax denominator.
    """

    version: int
    target: Ints
    classes: int
    masks: Ints


def _folder(root: str | os.PathLike[str]) -> Path:
    return Path(root) / "labels"


def _bad(what: str, where: str) -> InputError:
    return InputError("GL0304", what, where=where)


def _checked(version: int, target_C: Ints, mask_m2: Ints, classes: int, where: str) -> LabelTable:
    """Validate one version. Raises InputError GL0304."""
    if target_C.ndim != 1 or len(target_C) != classes:
        raise _bad(
            f"expected one target for each of {classes} labels, found {target_C.shape}", where
        )
    kept = np.unique(target_C)
    if len(kept) and kept[0] < -1:
        raise _bad(f"a target is -1 (dropped) or a class, found {kept[0]}", where)
    kept = kept[kept >= 0]
    if len(kept) and kept[-1] != len(kept) - 1:
        hole = int(np.flatnonzero(kept != np.arange(len(kept)))[0])
        raise _bad(f"targets must be 0..{len(kept) - 1} without a hole, {hole} is not used", where)
    if mask_m2.ndim != 2 or mask_m2.shape[1] != 2:
        raise _bad(f"masks must be pairs, found shape {mask_m2.shape}", where)
    if len(mask_m2):
        if mask_m2.min() < 0 or mask_m2.max() >= len(kept):
            raise _bad(f"a mask names a target outside 0..{len(kept) - 1}", where)
        if (mask_m2[:, 0] >= mask_m2[:, 1]).any():
            raise _bad("a masked pair must have a < b", where)
        if len(np.unique(mask_m2, axis=0)) != len(mask_m2):
            raise _bad("a masked pair stands twice", where)
    return LabelTable(version, target_C, len(kept), mask_m2)


def _head(root: str | os.PathLike[str]) -> tuple[int, str]:
    """Return the current version and its file."""
    path = _folder(root) / "current.json"
    if not path.exists():
        return 0, ""
    value = atomic.read_json(path, "GL0304")
    version, file = value.get("version"), value.get("file") or ""
    if not isinstance(version, int) or version < 0 or file != (_name(version) if version else ""):
        raise _bad(f"expected a version and its file, found {value}", str(path))
    return version, file


def _name(version: int) -> str:
    return f"v{version:04d}.parquet"


def _masks_name(version: int) -> str:
    return f"v{version:04d}.masks.parquet"


def _load(root: str | os.PathLike[str], version: int, classes: int) -> LabelTable:
    if version == 0:
        return LabelTable(
            0, np.arange(classes, dtype=np.int64), classes, np.empty((0, 2), np.int64)
        )
    path = _folder(root) / _name(version)
    table = parquet.read(path, schemas.LABELS, code="GL0304")
    label_C = table.column("label").to_numpy()
    if not np.array_equal(label_C, np.arange(classes)):
        raise _bad(
            f"expected the labels 0..{classes - 1} in order, found {len(label_C)} rows", str(path)
        )
    masks = parquet.read(_folder(root) / _masks_name(version), schemas.MASKS, code="GL0304")
    mask_m2 = np.stack([masks.column("a").to_numpy(), masks.column("b").to_numpy()], axis=1)
    return _checked(version, table.column("target").to_numpy(), mask_m2, classes, str(path))


def current(root: str | os.PathLike[str], classes: int) -> LabelTable:
    """Return the label version in force: identity where none was applied.

    `classes` is the number of labels as sharded. Raises InputError GL0304.
    """
    return _load(root, _head(root)[0], classes)


def history(root: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return what was applied, undone and redone, oldest first. Raises InputError GL0304."""
    return seal.sound_lines(_folder(root) / "history.jsonl")


def _note(root: str | os.PathLike[str], entry: dict[str, Any]) -> None:
    seal.append(_folder(root) / "history.jsonl", entry, "GL0304")


def _switch(root: str | os.PathLike[str], version: int) -> None:
    atomic.write_json(
        _folder(root) / "current.json",
        {"version": version, "file": _name(version) if version else None},
    )


def in_force(root: str | os.PathLike[str], classes: int) -> list[dict[str, Any]]:
    """Return the history lines that the labels in force rest on, the newest first.

    Raises what `current` raises.
    """
    version: object = current(root, classes).version
    lines = []
    for line in reversed(history(root)):
        if line.get("op") == "apply" and line.get("version") == version:
            lines.append(line)
            version = line.get("from")
    return lines


def upcoming(root: str | os.PathLike[str]) -> int:
    """Return the number that the next label version gets; none is given twice."""
    taken = [int(p.name[1:5]) for p in _folder(root).glob("v[0-9][0-9][0-9][0-9].parquet")]
    taken += [int(line["version"]) for line in history(root) if line.get("op") == "apply"]
    return max(taken, default=0) + 1


def apply(root: str | os.PathLike[str], target: Ints, masks: Ints, why: dict[str, Any]) -> int:
    """Write a new label version, put it in force and return its number.

    `target` int64 [C], `masks` int64 [m, 2]; `why` goes into the history as it is. No shard and
    no older version is touched. Raises InputError GL0304.
    """
    target_C = np.ascontiguousarray(target, np.int64)
    mask_m2 = np.ascontiguousarray(masks, np.int64).reshape(-1, 2)
    manifest = Path(root) / "manifest.json"
    classes = int(atomic.read_json(manifest)["identities"])
    folder = _folder(root)
    atomic.make_dir(folder)
    with atomic.lock(folder / "lock"):
        before = _head(root)[0]
        version = upcoming(root)
        _checked(version, target_C, mask_m2, classes, str(folder / _name(version)))
        label_C = np.arange(classes, dtype=np.int64)
        parquet.write(
            folder / _masks_name(version),
            pa.table([mask_m2[:, 0], mask_m2[:, 1]], schema=schemas.MASKS),
        )
        parquet.write(folder / _name(version), pa.table([label_C, target_C], schema=schemas.LABELS))
        files = [seal.entry(folder / name) for name in (_name(version), _masks_name(version))]
        _note(root, {"op": "apply", "version": version, "from": before, "why": why, "files": files})
        _switch(root, version)
    return version


def undo(root: str | os.PathLike[str]) -> int:
    """Put the version before the current one in force and return its number.

    Raises InputError GL0502 where nothing is applied.
    """
    folder = _folder(root)
    version = _head(root)[0]
    parents = {line["version"]: line["from"] for line in history(root) if line.get("op") == "apply"}
    if version == 0 or version not in parents:
        raise InputError(
            "GL0502", "the labels stand as sharded, nothing was applied", where=str(root)
        )
    with atomic.lock(folder / "lock"):
        before = int(parents[version])
        _note(root, {"op": "undo", "version": before, "from": version})
        _switch(root, before)
    return before


def redo(root: str | os.PathLike[str]) -> int:
    """Put the version that was undone last back in force and return its number.

    Raises InputError GL0502 where the last change was not an undo.
    """
    undone: list[int] = []
    for line in history(root):
        if line["op"] == "undo":
            undone.append(int(line["from"]))
        elif line["op"] == "redo":
            undone.pop()
        else:
            undone.clear()
    if not undone:
        raise InputError("GL0502", "no undone version to put back", where=str(root))
    with atomic.lock(_folder(root) / "lock"):
        _note(root, {"op": "redo", "version": undone[-1], "from": _head(root)[0]})
        _switch(root, undone[-1])
    return undone[-1]
