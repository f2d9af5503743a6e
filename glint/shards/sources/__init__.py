"""Where images come from: one module per kind of source, told apart by what lies there."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glint.errors import InputError, UsageError
from glint.shards.sources.archive import Archive
from glint.shards.sources.folder import Folder
from glint.shards.sources.packed import find_files, place
from glint.shards.sources.parquet import Parquet, holds_images
from glint.shards.sources.recordio import RecordIO, rebuild_idx
from glint.shards.sources.rule import CONTAINERS, PACKED, Rule, is_image
from glint.shards.sources.several import Several
from glint.shards.sources.source import Source
from glint.shards.sources.tree import Tree
from glint.shards.sources.webdataset import WebDataset, is_webdataset

KINDS: dict[str, Any] = {
    "recordio": RecordIO,
    "folder": Folder,
    "archive": Archive,
    "webdataset": WebDataset,
    "parquet": Parquet,
    "several": Several,
}
Place = str | os.PathLike[str]
READS = (
    "glint reads a .rec file, folders of images (one per identity), tars and zips of such "
    "folders, webdataset tars, Parquet and Arrow tables, and a folder that holds one of these"
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
    if head[:4] == b"PAR1" or path.suffix == ".arrow":
        return "parquet"
    if head[257:262] == b"ustar" or path.suffix == ".tar":
        return "webdataset" if is_webdataset(path) else "archive"
    hint = READS
    if is_image(os.fsencode(path.name)):
        hint = "one image is no source: give the folder of identity folders above it"
    if path.suffix in (".txt", ".csv", ".lst", ".jsonl"):
        hint = f"a list of labels? glint shard FOLDER_OF_IMAGES OUT --labels {path}"
    if path.suffix == ".idx":
        hint = f"give {path.with_suffix('.rec').name}: the .idx next to it is read as well"
    raise _unread(f"a file of kind {path.suffix or 'without suffix'}", path, hint)


def recognise(path: Place, rule: Rule = Rule()) -> tuple[str, Path]:  # noqa: B008
    """Return the kind of a source and the path to open.

    Raises UsageError GL0001 where nothing is there, GL0002 where `rule` does not fit the kind,
    InputError GL0201 where glint reads no such layout, GL0214 for a damaged archive.
    """
    kind, found = _recognised(Path(path), rule)
    rule.check(kind)
    return kind, found


def _recognised(path: Path, rule: Rule) -> tuple[str, Path]:
    if not path.exists():
        raise UsageError("GL0001", "no such file or folder", where=str(path))
    if path.is_file():
        return ("recordio" if path.suffix == ".rec" else _kind_of(path)), path
    if _is_dataset(path):
        raise _unread("a dataset of glint's own", path, "glint reshard deals its samples anew")
    records = sorted(p for p in path.glob("*.rec") if p.is_file())
    if len(records) > 1:
        records = [p for p in records if p.name == "train.rec"] or records
    if len(records) > 1:
        raise _unread("several .rec files: " + ", ".join(p.name for p in records[:5]), path)
    if records:
        return "recordio", records[0]
    return _of_folder(path, rule)


def _is_dataset(path: Path) -> bool:
    try:
        with (path / "manifest.json").open("rb") as file:
            said = json.loads(file.read(1 << 24))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(said, dict) and str(said.get("format", "")).startswith("glint/dataset")


def _of_folder(path: Path, rule: Rule) -> tuple[str, Path]:
    """Tell a tree of images from a folder of containers, by the first that is met."""
    first = Tree(path, rule).first()
    if first.lower().endswith(PACKED):
        return _kind_of(place(path, first)), path
    if not first.lower().endswith(CONTAINERS):
        return "folder", path
    if first.lower().endswith(b".rec"):
        hint = f"give the file: {place(path, first)}"
        raise _unread(f"a .rec file in a folder below: {os.fsdecode(first)}", path, hint)
    found = find_files(path, CONTAINERS, rule, Counter())
    tables = [name for name in found if name.lower().endswith((b".parquet", b".arrow"))]
    archives = [name for name in found if name not in set(tables)]
    if archives and tables:
        with_images = [name for name in tables[:1] if holds_images(place(path, name))]
        if with_images:
            what = f"both {os.fsdecode(archives[0])} and {os.fsdecode(with_images[0])} hold images"
            raise _unread(what, path, "--exclude '*.parquet' or --exclude '*.tar' leaves one out")
        tables = []  # img2dataset's, of addresses and captions
    told: dict[str, str] = {}
    for name in archives or tables:
        told.setdefault(_kind_of(place(path, name)), os.fsdecode(name))
    if len(told) > 1:
        several = ", ".join(f"{name} ({kind})" for kind, name in told.items())
        raise _unread(f"files of several kinds: {several}", path, "leave one out with --exclude")
    return next(iter(told)), path


def open_source(
    path: Place | Sequence[Place],
    rule: Rule = Rule(),  # noqa: B008
    *,
    resync: bool = False,
) -> Source:
    """List a source, or several of one label space; with `resync`, go past damage in a .rec file.

    Raises what `recognise` and the kinds raise; GL0201 where it is empty.
    """
    if not isinstance(path, str | os.PathLike):
        real = [os.path.realpath(one) for one in path]
        if twice := [str(one) for i, one in enumerate(path) if real[i] in real[:i]]:
            raise UsageError("GL0002", "the source is named twice", where=twice[0])
        parts = [open_source(one, rule, resync=resync) for one in path]
        return parts[0] if len(parts) == 1 else Several(parts)
    kind, found = recognise(path, rule)
    more = {"resync": resync} if kind == RecordIO.kind else {}
    source: Source = KINDS[kind](found, rule, **more)
    if source.n == 0:
        left = source.describe()["left_out"]
        why = ", ".join(f"{count} {what}" for what, count in left.items())
        what = "no image was found" + (f"; left out: {why}" if why else "")
        raise InputError("GL0201", what, where=str(path), hint=READS)
    return source


def reopen(kind: str, path: str, folder: Path, start: int, stop: int) -> Source:
    """Open positions [start, stop) of what a source's `save` wrote into `folder`."""
    if kind == Several.kind:
        return Several.opened(Path(path), folder, start, stop, reopen)
    source: Source = KINDS[kind].load(Path(path), folder, start, stop)
    return source


__all__ = ["KINDS", "READS", "Rule", "Source", "open_source", "rebuild_idx", "recognise", "reopen"]
