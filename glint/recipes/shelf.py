"""The shelves: recipes that travel with glint, found by name, listed and copied."""

from __future__ import annotations

import difflib
import importlib.resources
import os
from dataclasses import dataclass
from pathlib import Path

from glint.errors import BusyError, ResourceError, UsageError

SHELVES = ("train", "pipelines", "manifests")


@dataclass(frozen=True)
class Entry:
    """One TOML file; `shelf` is "" for a file of the user's own."""

    shelf: str
    name: str
    path: Path


def folder(shelf: str) -> Path:
    """Where a shelf lies: inside an installed wheel, else beside the package in a checkout."""
    package = Path(str(importlib.resources.files("glint")))
    installed = package / "_shelves" / shelf
    return installed if installed.is_dir() else package.parent / shelf


def entries(shelf: str = "") -> list[Entry]:
    """List a shelf, or all of them, by name. Raises UsageError GL0103 for an unknown shelf."""
    if shelf and shelf not in SHELVES:
        raise UsageError(
            "GL0103", f"no shelf {shelf!r}; there are {', '.join(SHELVES)}{_near(shelf, SHELVES)}"
        )
    return [
        Entry(one, path.stem, path)
        for one in ([shelf] if shelf else SHELVES)
        for path in sorted(folder(one).glob("*.toml"))
    ]


def find(shelf: str, name: str | Path) -> Path:
    """Where a recipe of one shelf lies, by name or path. Raises UsageError GL0103."""
    return locate(name, shelf).path


def locate(name: str | Path, shelf: str = "") -> Entry:
    """Find a recipe by path, by name, or by shelf/name; `shelf` narrows the names.

    A file that exists wins over a name. Raises UsageError GL0103 (with the nearest name).
    """
    text = os.fspath(name)
    path = Path(text)
    if path.is_file():
        return _of_file(path)
    wanted = text.removesuffix(".toml")
    known = entries(shelf)
    found = [one for one in known if wanted in (one.name, f"{one.shelf}/{one.name}")]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{one.shelf}/{one.name}" for one in found)
        raise UsageError(
            "GL0103",
            f"{text!r} stands on several shelves: {names}",
            hint=f"name one of them, as in {found[0].shelf}/{found[0].name}",
        )
    near = _near(path.stem or text, [one.name for one in known])
    kind = f"on the shelf {shelf}" if shelf else "of that name"
    raise UsageError(
        "GL0103",
        f"no file and no recipe {kind}{near}",
        where=text,
        hint=f"glint ls {shelf}".strip() + " lists the recipes there are",
    )


def title(entry: Entry) -> str:
    """Return the first comment line of a recipe, without its mark."""
    lines = entry.path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ").rstrip() for line in lines if line.startswith("#")), "")


def copy(name: str | Path, to: Path, overwrite: bool = False) -> Path:
    """Copy a recipe to a file, or into a folder under its own name; return where it is now.

    Raises UsageError GL0103, GL0001 (no folder for it), BusyError GL0004, ResourceError GL0007.
    """
    entry = locate(name)
    goal = to / f"{entry.name}.toml" if to.is_dir() else to
    if not goal.parent.is_dir():
        raise UsageError(
            "GL0001", "no such folder", where=str(goal.parent), hint=f"mkdir -p {goal.parent}"
        )
    try:
        with open(goal, "wb" if overwrite else "xb") as file:
            file.write(entry.path.read_bytes())
    except FileExistsError:
        raise BusyError(
            "GL0004", "exists already", where=str(goal), hint="another name, or --overwrite"
        ) from None
    except OSError as error:
        raise ResourceError("GL0007", error.strerror or str(error), where=str(goal)) from None
    return goal


def _of_file(path: Path) -> Entry:
    """Say which shelf a file stands on, if any."""
    for shelf in SHELVES:
        if path.resolve().parent == folder(shelf).resolve():
            return Entry(shelf, path.stem, path)
    return Entry("", path.stem, path)


def _near(name: str, known: list[str] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {near[0]}?" if near else ""
