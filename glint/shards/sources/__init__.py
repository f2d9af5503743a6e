"""Where images come from: one module per kind of source, told apart by what lies there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from glint.errors import InputError, UsageError
from glint.shards.sources.folder import Folder
from glint.shards.sources.recordio import RecordIO
from glint.shards.sources.source import Source

KINDS: dict[str, type[RecordIO] | type[Folder]] = {"recordio": RecordIO, "folder": Folder}
READS = "glint reads a .rec file, a folder that holds one, and folders of images, one per identity"


def recognise(path: str | os.PathLike[str]) -> tuple[str, Path]:
    """Return the kind of a source and the path to open.

    Raises UsageError GL0001 where nothing is there, InputError GL0201 where glint reads no such
    layout.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError("GL0001", "no such file or folder", where=str(path))
    if path.is_file():
        if path.suffix == ".rec":
            return "recordio", path
        raise InputError("GL0201", f"a file of kind {path.suffix or 'without suffix'}",
                         where=str(path), hint=READS)
    records = sorted(p for p in path.glob("*.rec") if p.is_file())
    if len(records) > 1:
        records = [p for p in records if p.name == "train.rec"] or records
    if len(records) > 1:
        raise InputError("GL0201", "several .rec files: " + ", ".join(p.name for p in records[:5]),
                         where=str(path), hint="name one of them")
    return ("recordio", records[0]) if records else ("folder", path)


def open_source(path: str | os.PathLike[str]) -> Source:
    """List a source. Raises what `recognise` and the kinds raise; GL0201 where it is empty."""
    kind, found = recognise(path)
    source: Source = KINDS[kind](found)
    if source.n == 0:
        raise InputError("GL0201", "no image was found", where=str(path), hint=READS)
    return source


def reopen(kind: str, path: str, facts: dict[str, Any], folder: Path) -> Source:
    """Open a source from what its `save` wrote into `folder`."""
    return KINDS[kind].load(Path(path), facts, folder)


__all__ = ["KINDS", "READS", "Source", "open_source", "recognise", "reopen"]
