"""Which output folders a stage may write: absent, empty, or begun by the same stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from glint.errors import BusyError
from glint.files import atomic


def refuse_foreign(out: Path, kind: str, marks: Sequence[str], what: str) -> None:
    """Raise BusyError GL0004 where `out` is a file, a dataset, or a folder of something else.

    kind: what the field `format` of our own JSON files begins with, up to its @; marks: those
    files, relative to `out`; what: the contents to name in the error. Writes nothing.
    """
    with atomic.writing(out):  # a folder that cannot be listed is told as such
        if not out.exists():
            return
        if not out.is_dir():
            found = "expected a folder, found a file"
        elif _format(out / "manifest.json").startswith("glint/dataset@"):
            found = f"this is a dataset, not a folder for {what}"
        elif _unbegun(out) or any(_format(out / mark).startswith(kind + "@") for mark in marks):
            return
        else:
            found = f"the folder is not empty and holds no {what}"
    raise BusyError("GL0004", found, where=str(out), hint="choose another --out")


def _format(path: Path) -> str:
    """Return the field `format` of a JSON file, "" where there is none."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return ""
    return str(value.get("format", "")) if isinstance(value, dict) else ""


def _unbegun(out: Path) -> bool:
    """Say whether nothing is there but, at most, a lock: a run that has not begun to write."""
    if [path.name for path in out.iterdir()] not in ([], ["_glint"]):
        return False
    work = out / "_glint"
    if not work.exists():
        return True
    return work.is_dir() and all(
        path.name.endswith("lock") or path.name.startswith("plan.json.tmp.")
        for path in work.iterdir()
    )
