"""Parquet with image bytes as a source, as Hugging Face writes it: an image column, a label column.

Parquet can only be read forwards, and records are dealt in a random order: `save` copies the
images once, page by page, into one file beside the plan, which `load` reads from.
"""

# n rows

from __future__ import annotations

import json
import shutil
import zlib
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
from glint.shards.sources.listed import Flaw, Found, number_classes
from glint.shards.sources.packed import Member, Packed, collect, damaged, find_files, numbered_paths
from glint.shards.sources.source import Source, dense

IMAGES = ("image", "img", "jpg", "jpeg", "image_bytes", "bytes", "face")
LABELS: tuple[str, ...] = ("label", "labels", "identity", "identity_id", "cls", "class")
LABELS += ("class_id", "person_id", "id")
ROWS = 64  # images read together
SPOOL = "images.bin"


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


def _file(path: Path) -> Any:
    # Mapped, a length that lies gives the bytes there are; read, it would be allocated first.
    return pq.ParquetFile(path, memory_map=True, pre_buffer=False, page_checksum_verification=True)


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _holds_bytes(kind: Any) -> bool:
    """Say whether a column is Hugging Face's struct of bytes and path."""
    at = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    return at >= 0 and _is_binary(kind.field(at).type)


def columns(schema: Any, path: Path) -> tuple[str, str, bool]:
    """Return the names of image and label column, and whether images lie in a struct.

    Raises InputError GL0214 where there is no one column for either.
    """

    def chosen(what: str, names: tuple[str, ...], good: list[str]) -> str:
        named = [name for name in names if name in good]
        if not named and len(good) != 1:
            told = f"named {', '.join(names[:4])}; found {', '.join(schema.names[:20])}"
            raise InputError("GL0214", f"expected one column of {what}, {told}", where=str(path))
        return named[0] if named else good[0]

    inner = [f.name for f in schema if _holds_bytes(f.type)]
    plain = [f.name for f in schema if _is_binary(f.type)]
    image = chosen("image bytes", IMAGES, inner + plain)
    good = [f.name for f in schema if pa.types.is_integer(f.type) or _is_text(f.type)]
    return image, chosen("labels", LABELS, good), image in inner


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


class Parquet(Packed):
    """Parquet files with a column of image bytes and one of labels, in the order of their rows.

    Integers are class numbers (with Hugging Face's names where there are any), strings are names.
    Raises InputError GL0214.
    """

    kind = "parquet"

    def __init__(self, root: Path) -> None:
        files = find_files(root, (".parquet",))
        self.image, self.struct = "", False
        self._at: tuple[int, int, Iterator[bytes | None]] = (-1, -1, iter(()))  # file, row
        self._bytes, self._start = 0, [0]
        self._told: dict[str, int] = {}  # labels that are names
        self._known: list[bytes] = []
        self._kinds: set[bool] = set()
        self.files = packed(files)
        row_n, paths = collect(self._listed(root, files))
        if len(self._kinds) > 1:
            raise damaged("labels are numbers in some files and names in others", root)
        if self._told:
            classes = people = number_classes(row_n, [_bytes(name) for name in self._told])
        else:
            row_n["label"], numbers = dense(row_n["label"])
            classes, known = numbers.to_pylist(), dict(enumerate(self._known))
            people = [known.get(int(label), b"") for label in classes]
        facts = {"files": len(files), "image_column": self.image, "notes": []}
        super().__init__(root, row_n, paths, classes, people, "parquet", **facts)

    def _listed(self, root: Path, files: Sequence[bytes]) -> Found:
        """Yield number and row of every row of the tables; a label that is a name is counted."""
        for number, path in numbered_paths(root, files):
            with _reading(path):
                file = _file(path)
                image, label, struct = columns(file.schema_arrow, path)
                if self.image and image != self.image:
                    what = f"the images are in {image!r}, in other files in {self.image!r}"
                    raise damaged(what, path)
                self.image, self.struct = image, struct
                self._kinds.add(pa.types.is_integer(file.schema_arrow.field(label).type))
                self._known = self._known or _class_names(file.schema_arrow, label)
                self._bytes += path.stat().st_size
                row = 0
                for batch in file.iter_batches(1 << 16, columns=[label], use_threads=False):
                    for said in batch.column(0).to_pylist():
                        code, flaw = self._code(said)
                        yield b"%d" % row, Member(b"").row(code, number, flaw)
                        row += 1
                self._start.append(self._start[-1] + row)

    def _code(self, said: str | int | None) -> tuple[int, int]:
        """Return the number that stands for a label, or -1, and the flaw."""
        if said is None:
            return -1, Flaw.no_label
        if isinstance(said, str):
            return self._told.setdefault(said, len(self._told)), Flaw.sound
        return (said, Flaw.sound) if 0 <= said < 1 << 62 else (-1, Flaw.label_not_integer)

    def offset(self, i: int) -> int | None:
        return None

    def _images(self, number: int) -> Iterator[bytes | None]:
        """Yield the image bytes of one file, a few rows in memory at a time."""
        path = self._path(number)
        with _reading(path):
            for batch in _file(path).iter_batches(ROWS, columns=[self.image], use_threads=False):
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

    def save(self, folder: Path, seed: int) -> None:
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
        self._save(folder, seed, row_n)

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
