"""Where images come from: one module per kind of source, told apart by what lies there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from glint.errors import InputError, UsageError
from glint.shards.sources.archive import Archive
from glint.shards.sources.folder import Folder
from glint.shards.sources.packed import find_files, place
from glint.shards.sources.parquet import Parquet
from glint.shards.sources.recordio import RecordIO, rebuild_idx
from glint.shards.sources.source import Source
from glint.shards.sources.webdataset import WebDataset, is_webdataset

KINDS: dict[str, Any] = {
    "recordio": RecordIO,
    "folder": Folder,
    "archive": Archive,
    "webdataset": WebDataset,
    "parquet": Parquet,
}
READS = (
    "glint reads a .rec file, folders of images (one per identity), tars and zips of such "
    "folders, webdataset tars, Parquet files, and a folder that holds one of these"
)
_PACKED = (
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\xfd7zXZ\0", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
)


def _unread(what: str, where: Path, hint: str = "name one of them") -> InputError:
    return InputError("GL0201", what, where=str(where), hint=hint)


def _kind_of(path: Path) -> str:
    """Name the kind of a file by its first bytes. Raises InputError GL0201 for a packed one."""
    with path.open("rb") as file:
        head = file.read(512)
    for magic, name, tool in _PACKED:
        if head.startswith(magic):
            what = f"a file packed with {name}: its images cannot be read where they lie"
            raise _unread(what, path, f"unpack it first: {tool}")
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "archive"
    if head[:4] == b"PAR1":
        return "parquet"
    if head[257:262] == b"ustar" or path.suffix == ".tar":
        return "webdataset" if is_webdataset(path) else "archive"
    hint = READS
    if path.suffix == ".idx":
        hint = f"give {path.with_suffix('.rec').name}: the .idx next to it is read as well"
    raise _unread(f"a file of kind {path.suffix or 'without suffix'}", path, hint)


def recognise(path: str | os.PathLike[str]) -> tuple[str, Path]:
    """Return the kind of a source and the path to open.

    Raises UsageError GL0001 where nothing is there, InputError GL0201 where glint reads no such
    layout, GL0214 for a damaged archive.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError("GL0001", "no such file or folder", where=str(path))
    if path.is_file():
        return ("recordio" if path.suffix == ".rec" else _kind_of(path)), path
    records = sorted(p for p in path.glob("*.rec") if p.is_file())
    if len(records) > 1:
        records = [p for p in records if p.name == "train.rec"] or records
    if len(records) > 1:
        raise _unread("several .rec files: " + ", ".join(p.name for p in records[:5]), path)
    if records:
        return "recordio", records[0]
    if _is_dataset(path):
        raise _unread("a dataset of glint's own", path, "glint reshard deals its samples anew")
    return _of_folder(path), path


def _is_dataset(path: Path) -> bool:
    try:
        with (path / "manifest.json").open("rb") as file:
            said = json.loads(file.read(1 << 24))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(said, dict) and str(said.get("format", "")).startswith("glint/dataset")


def _of_folder(path: Path) -> str:
    """Tell a folder of archives or tables from a tree of identity folders."""
    if any(p.is_dir() and p.name != "data" and not p.name.startswith(".") for p in path.iterdir()):
        return "folder"
    archives, tables = find_files(path, (".tar", ".zip")), find_files(path, (".parquet",))
    if archives and tables:
        raise _unread("both Parquet files and archives", path)
    if not archives and not tables:
        packed = find_files(path, (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"))
        return _kind_of(place(path, packed[0])) if packed else "folder"
    told: dict[str, str] = {}
    for name in archives or tables:
        told.setdefault(_kind_of(place(path, name)), os.fsdecode(name))
    if len(told) > 1:
        several = ", ".join(f"{name} ({kind})" for kind, name in told.items())
        raise _unread(f"files of several kinds: {several}", path)
    return next(iter(told))


def open_source(path: str | os.PathLike[str], *, resync: bool = False) -> Source:
    """List a source; with `resync`, go past damage in a .rec file.

    Raises what `recognise` and the kinds raise; GL0201 where it is empty.
    """
    kind, found = recognise(path)
    source: Source = RecordIO(found, resync=resync) if kind == RecordIO.kind else KINDS[kind](found)
    if source.n == 0:
        raise InputError("GL0201", "no image was found", where=str(path), hint=READS)
    return source


def reopen(kind: str, path: str, folder: Path, start: int, stop: int) -> Source:
    """Open positions [start, stop) of what a source's `save` wrote into `folder`."""
    source: Source = KINDS[kind].load(Path(path), folder, start, stop)
    return source


__all__ = ["KINDS", "READS", "Source", "open_source", "rebuild_idx", "recognise", "reopen"]
