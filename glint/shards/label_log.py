"""The history of the labels: a sealed line per change, and the files that follow the last one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from glint.errors import InputError
from glint.files import atomic, reads, seal

# The last line of the history once more, outside its folder, which may get lost.
RECORD = "_glint/labels.json"
Root = str | os.PathLike[str]


def folder_of(root: Root) -> Path:
    """Return the folder of the label versions of a dataset."""
    return Path(root) / "labels"


def name_of(version: int, part: str = "") -> str:
    """Return the name of a version's table; part: "", ".masks" or ".images"."""
    return f"v{version:04d}{part}.parquet"


def history(root: Root) -> list[dict[str, Any]]:
    """Return what was applied, undone and redone, oldest first.

    Raises InputError GL0304, also where lines that were written are gone.
    """
    path, record = folder_of(root) / "history.jsonl", Path(root) / RECORD
    with reads.reading(record):  # read first: it is written after the history
        last = reads.whole(record) if record.exists() else None
    lines = seal.sound_lines(path)
    if last is not None and all(_kept(line) != last for line in reversed(lines)):
        raise InputError(
            "GL0304",
            f"expected the change of the labels that {RECORD} keeps, found {len(lines)} others",
            where=str(path),
            hint="bring the folder labels back from a copy; to give up all label versions, "
            f"remove it and {record}",
        )
    return lines


def _kept(line: dict[str, Any]) -> bytes:
    return seal.spell({key: line.get(key) for key in ("version", seal.FIELD)})


def listed(root: Root, version: int) -> bool:
    """Return whether the history says that a version speaks of single images."""
    name = name_of(version, ".images")
    made = [line.get("files") for line in history(root) if line.get("version") == version]
    files = [one for files in made if isinstance(files, list) for one in files]
    return any(isinstance(one, dict) and one.get("name") == name for one in files)


def behind(root: Root) -> dict[Path, bytes]:
    """Return the files that do not say what the last line of the history does, and what it says."""
    if not (lines := history(root)):
        return {}
    version = int(lines[-1]["version"])
    value = {"version": version, "file": name_of(version) if version else None}
    if listed(root, version):
        value["images"] = name_of(version, ".images")
    said = {Path(root) / RECORD: _kept(lines[-1]),
            folder_of(root) / "current.json": seal.spell(value)}  # fmt: skip
    return {p: data for p, data in said.items() if not p.is_file() or p.read_bytes() != data}


def follow(root: Root) -> None:
    """Have the files follow the last line of the history. The caller holds the labels."""
    for path, data in behind(root).items():
        atomic.own_dir(path.parent)
        atomic.write_bytes(path, data)


def append(root: Root, entry: dict[str, Any]) -> None:
    """Note a change of the labels, and put its version in force. The caller holds the labels."""
    seal.append(folder_of(root) / "history.jsonl", entry, "GL0304")
    follow(root)
