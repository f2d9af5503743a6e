"""A run's folder: whose it is, and one run in it at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glint.errors import BusyError, UsageError
from glint.files.atomic import lock, make_dir, write_json

FORMAT = "glint/run@1"
MARK = "_glint/run.json"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder: a new or empty one becomes the run's, another run's is refused.

    Raises UsageError GL0002 for no name, BusyError GL0004 where the folder holds something else,
    BusyError GL0005 while another process trains in it.
    """
    if str(folder) in ("", "."):
        raise UsageError("GL0002", "--out is the current folder", hint="name a folder of its own")
    if folder.exists() and not folder.is_dir():
        raise BusyError("GL0004", "is a file, expected a folder or nothing", where=str(folder))
    if folder.exists() and not (folder / MARK).exists() and any(folder.iterdir()):
        raise BusyError(
            "GL0004",
            "the folder is not empty and holds no run of glint train",
            where=str(folder),
            hint="name another folder with --out",
        )
    make_dir(folder / "_glint")
    with lock(folder / "_glint" / "lock"):
        write_json(folder / MARK, {"format": FORMAT})
        yield
