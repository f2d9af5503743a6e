"""Tables with image bytes as a source, as Hugging Face writes them: Parquet, and Arrow of its disk.

Parquet can only be read forwards, and records are dealt in a random order: `save` copies the
images once, page by page, into one file beside the plan, which `load` reads from.
"""

# n rows

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from glint.errors import GlintError, InputError, ResourceError
from glint.files import reads
from glint.files.strings import packed
from glint.shards.image import MAX_BYTES, Rejected
from glint.shards.sources import columns
from glint.shards.sources.listed import Flaw, Found, Labelled, Labels
from glint.shards.sources.packed import Member, Packed, collect, damaged, find_files, numbered_paths
from glint.shards.sources.rule import SURE, UNSURE, Rule
from glint.shards.sources.source import Ints, Source

IMAGES = ("image", "img", "jpg", "jpeg", "image_bytes", "bytes", "face")
ROWS = 64  # images read together
SPOOL = "images.bin"
SPLIT = re.compile(rb"(?:.*/)?([A-Za-z_]+)-[0-9]{5}-of-[0-9]{5}.*", re.DOTALL)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except GlintError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        if isinstance(error, OSError) and reads.passing(error):
            raise reads.unread(error, path) from error
        what = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise damaged(f"the table is damaged: {what}", path) from None


class Table:
    """A Parquet file, or Arrow's stream or file: its schema, and its rows a few at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            head = file.read(6)
        self._arrow, self._whole = head[:4] != b"PAR1", head == b"ARROW1"
        file = self._open()
        self.schema = file.schema if self._arrow else file.schema_arrow

    def _open(self) -> Any:
        if not self._arrow:
            # Mapped, a length that lies gives the bytes there are; read, it would be allocated.
            return pq.ParquetFile(
                self._path, memory_map=True, pre_buffer=False, page_checksum_verification=True
            )
        data = pa.memory_map(os.fsencode(self._path))
        return pa.ipc.open_file(data) if self._whole else pa.ipc.open_stream(data)

    def batches(self, columns: list[str], rows: int) -> Iterator[Any]:
        """Yield the rows of some columns, `rows` at a time at most."""
        file = self._open()
        if not self._arrow:
            yield from file.iter_batches(rows, columns=columns, use_threads=False)
            return
        whole = range(file.num_record_batches) if self._whole else ()
        for batch in map(file.get_batch, whole) if self._whole else file:
            chosen = batch.select(columns)
            chosen.validate(full=True)
            for at in range(0, chosen.num_rows, rows):
                yield chosen.slice(at, rows)


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


_INNER = (pa.types.is_dictionary, pa.types.is_list, pa.types.is_large_list)


def _labels(kind: Any) -> str:
    """Name what a column's values are as labels: number, name, or "" for none."""
    one = pa.types.is_fixed_size_list(kind) and kind.list_size == 1
    if one or any(is_(kind) for is_ in _INNER):
        return _labels(kind.value_type)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return "name" if text or pa.types.is_string_view(kind) else ""


def _holds_bytes(kind: Any) -> bool:
    """Say whether a column is Hugging Face's struct of bytes and path."""
    at = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    return at >= 0 and _is_binary(kind.field(at).type)


def holds_images(path: Path) -> bool:
    """Say whether a table has a column of bytes. Raises InputError GL0214."""
    with _reading(path):
        return any(_is_binary(f.type) or _holds_bytes(f.type) for f in Table(path).schema)


def image_column(schema: Any, path: Path, given: str) -> tuple[str, bool]:
    """Return the column of images, and whether they lie in a struct. Raises InputError GL0214."""
    inner = [f.name for f in schema if _holds_bytes(f.type)]
    good = inner + [f.name for f in schema if _is_binary(f.type)]
    named = [name for name in ((given,) if given else IMAGES) if name in good]
    if not named and (given or len(good) != 1):
        told = f"named {given or ', '.join(IMAGES[:4])}; found {', '.join(schema.names[:20])}"
        raise InputError(
            "GL0214",
            f"expected one column of image bytes, {told}",
            where=str(path),
            hint=f"--image-column takes one of {', '.join(good)}"
            if good
            else "images are encoded bytes, in a column of binary or of {bytes, path}",
        )
    name = named[0] if named else good[0]
    return name, name in inner


def label_column(table: Table, path: Path, given: str, part: bool = False) -> str:
    """Return the column of labels; one that numbers the rows is none, unless it was named.

    part: a part of its text is the label, so that the only column of text is it.
    Raises InputError GL0214.
    """
    named = {given.lower(), *SURE}
    good = [
        f.name
        for f in table.schema
        if _labels(f.type) or (_is_binary(f.type) and f.name.lower() in named)
    ]
    text: list[str] = [f.name for f in table.schema if _labels(f.type) == "name"]
    if part and not given and len(text) == 1:
        return text[0]
    known: dict[str, str] = {name.lower(): name for name in good} | {name: name for name in good}
    if given in known:
        return known[given]
    sure = [] if given else [*dict.fromkeys(known[name] for name in SURE if name in known)]
    if sure and (name := columns.one_of(_rows(table, sure)) if sure[1:] else sure[0]):
        return name
    left = [name for name in known if not columns.OTHER.fullmatch(name.lower())]
    for name in UNSURE:
        if name not in left or given or sure:
            continue
        if not columns.all_differ(_rows(table, [known[name]])[known[name]]):
            return known[name]
    told = f"named {given or ', '.join(SURE[:4])}; found {', '.join(table.schema.names[:20])}"
    if sure:
        told = f"{' and '.join(sure)} tell people apart in different ways"
    hint = f"--label-column takes one of {', '.join(good)}; " if good else ""
    hint += "--label-from REGEX a part of its text, such as '^([^/]+)/'; --unlabelled needs none"
    raise InputError("GL0214", f"expected one column of labels, {told}", where=str(path), hint=hint)


def _rows(table: Table, names: list[str], count: int = 1 << 16) -> dict[str, Sequence[object]]:
    """Return what the first rows have in some columns."""
    said: dict[str, list[object]] = {name: [] for name in names}
    for batch in table.batches(names, count):
        for name in names:
            said[name] += map(str, batch.column(batch.schema.get_field_index(name)).to_pylist())
        if len(said[names[0]]) >= count:
            break
    return dict(said)


def _class_names(schema: Any, label: str) -> list[bytes]:
    """Return the names that Hugging Face keeps for a ClassLabel column."""
    try:
        names = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = names["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    good = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return [_bytes(name) for name in names] if good else []


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _saved(root: Path, files: list[bytes], left: Counter[str]) -> list[bytes]:
    """Leave out what the library `datasets` keeps beside its data: caches, indices.

    Raises InputError GL0201 where the set is a selection of rows that lies in a file of indices.
    """
    folder = root / os.fsdecode(files[0].rpartition(b"/")[0]) if files and files[0] else root
    try:
        state = json.loads((folder / "state.json").read_bytes())
        kept = {one["filename"] for one in state.get("_data_files", ())}
        indices = any(state[key] for key in state if key.startswith("_indices"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        kept, indices = set[str](), False
    if indices:
        what = "a selection of rows: its state.json names a file of indices"
        hint = "save it flat: load_from_disk(SRC).flatten_indices().save_to_disk(NEW)"
        raise InputError("GL0201", what, where=str(folder), hint=hint)
    base = [os.fsdecode(f.rpartition(b"/")[2]) for f in files]
    if missing := sorted(kept - set(base)):
        what = f"state.json names files of data that are not there, such as {missing[0]}"
        raise damaged(what, folder)
    cache = re.compile(r"cache-.*\.arrow")
    good = [f for f, b in zip(files, base) if (b in kept if kept else not cache.fullmatch(b))]
    good = good or files
    left["Arrow files of a cache"] += len(files) - len(good)
    return good


class Parquet(Packed):
    """Tables with a column of image bytes and one of labels, in the order of their rows.

    Numbers are class numbers (with Hugging Face's names where there are any), strings are names.
    `rule` may name the columns. Raises InputError GL0214.
    """

    kind = "parquet"

    def __init__(self, root: Path, rule: Rule = Rule()) -> None:  # noqa: B008
        self._rule, left = rule, Counter[str]()
        files = _saved(root, find_files(root, (b".parquet", b".arrow"), rule, left), left)
        self.image, self.said, self.struct = "", "", False
        self._at: tuple[int, int, Iterator[bytes | None]] = (-1, -1, iter(()))  # file, row
        self._bytes, self._start, self._labels = 0, [0], Labels()
        self._known: list[bytes] | None = None
        self._kinds: set[str] = set()
        self.files = packed(files)
        row_n, paths = collect(self._listed(root, files))
        if len(self._kinds) > 1:
            raise damaged("labels are numbers in some files and names in others", root)
        classes = self._labels.settle(row_n)
        known: dict[int, bytes] = dict(enumerate(self._known or []))
        people = [known.get(int(c), b"") if c.isdigit() else c for c in classes]
        how = (
            f"column {self.said}" if self.said else "none: every image gets its own (--unlabelled)"
        )
        how += f", what --label-from {rule.label_from!r} finds there" if rule.label_from else ""
        splits = sorted({found[1].decode() for f in files if (found := SPLIT.fullmatch(f))})
        notes = []
        if len(splits) > 1:
            several = f"files of {len(splits)} splits ({', '.join(splits)}) are taken together"
            notes = [f"{several}; --exclude '{splits[0]}-*' leaves one out"]
        facts = {"files": len(files), "image_column": self.image, "left_out": left}
        found_ = Labelled(row_n, paths, classes, people, how, notes=notes)
        super().__init__(root, found_, "parquet", **facts)

    def _listed(self, root: Path, files: Sequence[bytes]) -> Found:
        """Yield number and row of every row of the tables."""
        rule = self._rule
        pattern = re.compile(rule.label_from) if rule.label_from else None
        for number, path in numbered_paths(root, files):
            with _reading(path):
                table = Table(path)
                image, struct = image_column(table.schema, path, rule.image_column)
                if self.image and image != self.image:
                    what = f"the images are in {image!r}, in other files in {self.image!r}"
                    raise damaged(what, path)
                self.image, self.struct = image, struct
                self._look(table, path)
                self._bytes += path.stat().st_size
                row = 0
                column = image if rule.unlabelled else self.said
                for batch in table.batches([column], 1 << 16 if self.said else ROWS):
                    said = (
                        [None] * batch.num_rows if rule.unlabelled else batch.column(0).to_pylist()
                    )
                    for one in said:
                        if pattern is not None and one is not None:
                            part = pattern.search(str(one))
                            one = part and (part[1] if pattern.groups else part[0])
                        code, flaw = self._labels.code(one)
                        flaw = Flaw.sound if rule.unlabelled else flaw
                        yield b"%d" % row, Member(b"").row(code, number, flaw)
                        row += 1
                self._start.append(self._start[-1] + row)

    def _look(self, table: Table, path: Path) -> None:
        """Choose the column of labels, and refuse a table whose images lie elsewhere."""
        if not self._rule.unlabelled:
            said = label_column(table, path, self._rule.label_column, bool(self._rule.label_from))
            if self.said and said != self.said:
                what = f"the labels are in {said!r}, in other files in {self.said!r}"
                raise damaged(what, path, hint="--label-column names the one that is meant")
            self.said = said
            self._kinds.add(_labels(table.schema.field(said).type) or "name")
            known = _class_names(table.schema, said)
            if self._known and known and self._known != known:
                raise damaged("a label has other names in other files", path)
            self._known = self._known or known
        batch = next(table.batches([self.image], ROWS), None)
        if batch is None or not self.struct or not batch.num_rows:
            return
        rows = batch.column(0).to_pylist()
        if all(row is not None and row["bytes"] is None and row.get("path") for row in rows):
            what = f"its images are paths ({rows[0]['path']}), not bytes: they lie elsewhere"
            hint = "give the folder of these files, with --labels LIST for their labels"
            raise InputError("GL0214", what, where=str(path), hint=hint)

    def offset(self, i: int) -> int | None:
        return None

    def _images(self, number: int) -> Iterator[bytes | None]:
        """Yield the image bytes of one file, a few rows in memory at a time."""
        path = self._path(number)
        with _reading(path):
            for batch in Table(path).batches([self.image], ROWS):
                column = batch.column(0)
                if self.struct:
                    column = pa.StructArray.flatten(column)[column.type.get_field_index("bytes")]
                for row in range(len(column)):
                    buffer = column[row].as_buffer()
                    yield buffer.to_pybytes() if buffer is not None else None

    def read(self, i: int) -> bytes:
        """Return the image of row i: quick for one row after the other, slow in other orders."""
        number = int(self._sound(i)["file"])
        last, at, images = self._at
        if last != number or at > i:
            at, images = self._start[number], self._images(number)
        data: bytes | None = None
        while at <= i:
            data, at = next(images, None), at + 1
        self._at = number, at, images
        if data is None:
            raise Rejected("no-image")
        return data

    def save(self, folder: Path, order_n: Ints) -> None:
        """Copy the images beside the plan, in the order of the rows.

        Raises InputError GL0214, ResourceError GL0901.
        """
        free = shutil.disk_usage(folder).free
        if self._bytes > free:
            needs = f"a copy of the images needs {self._bytes / 1e9:.1f} GB"
            what = f"{needs}, {free / 1e9:.1f} GB are free"
            raise ResourceError("GL0901", what, where=str(folder))
        row_n, end = self.row.copy(), 0
        with (folder / SPOOL).open("wb") as spool:
            for number, (start, stop) in enumerate(zip(self._start, self._start[1:])):
                found = 0
                for found, data in enumerate(self._images(number), 1):
                    row = row_n[min(start + found, stop) - 1]
                    if data is None:
                        row["flaw"] = row["flaw"] or Flaw.no_image
                    elif not row["flaw"]:
                        row["at"], row["size"], row["packed"] = end, len(data), len(data)
                        row["crc"] = zlib.crc32(data)
                        end += spool.write(data) if len(data) <= MAX_BYTES else 0
                if found != stop - start:
                    what = f"{stop - start} labels, {found} images"
                    raise damaged(what, self._path(number))
        self._save(folder, order_n, row_n)

    @classmethod
    def load(cls, path: Path, folder: Path, start: int, stop: int) -> Source:
        """Open positions [start, stop) of the copy that `save` made."""
        return Spooled.load(folder, folder, start, stop)

    def bytes(self) -> int:
        return self._bytes


class Spooled(Packed):
    """The copy of a Parquet source's images."""

    kind = "parquet"

    def _path(self, file: int) -> Path:
        return self.root / SPOOL

    def read(self, i: int) -> bytes:
        """Return an image, as it was when it was copied. Raises Rejected, ResourceError GL0903."""
        try:
            data, why = super().read(i), None
        except Rejected as error:
            if error.reason != "corrupt-record":
                raise
            data, why = b"", error
        if why is not None or zlib.crc32(data) != int(self.row["crc"][i]):
            raise ResourceError(
                "GL0903",
                "the copy of the images is damaged",
                where=str(self._path(0)),
                hint=f"remove {self.root.parent.parent} and give the same command again",
            )
        return data

    def offset(self, i: int) -> int | None:
        return None
