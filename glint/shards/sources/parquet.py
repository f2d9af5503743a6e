"""Parquet with image bytes as a source, as Hugging Face writes it: an image column, a label column.

Parquet can only be read forwards, and records are dealt in a random order: `save` copies the
images once, page by page, into one file beside the plan, which `load` reads from.
"""

# n rows

from __future__ import annotations

import copy
import json
import os
import shutil
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glint.errors import GlintError, InputError, ResourceError
from glint.shards.image import MAX_BYTES, Rejected
from glint.shards.sources.folder import order_of
from glint.shards.sources.packed import (
    FLAWS,
    NO_IMAGE,
    NO_LABEL,
    NOT_INTEGER,
    Member,
    Packed,
    Rows,
    beneath,
    damaged,
)
from glint.shards.sources.source import Ints, dense
from glint.shards.strings import Strings

IMAGES = ("image", "img", "jpg", "jpeg", "image_bytes", "bytes", "face")
LABELS = (
    "label",
    "labels",
    "identity",
    "identity_id",
    "cls",
    "class",
    "class_id",
    "person_id",
    "id",
)
ROWS = 64  # read together
SPOOL = b"images.bin"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except GlintError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        what = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise damaged(f"the table is damaged: {what}", path) from None


def _file(path: Path) -> Any:
    # Mapped, a length that lies gives the bytes there are; read, it would be allocated first.
    return pq.ParquetFile(path, memory_map=True, pre_buffer=False, page_checksum_verification=True)


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def columns(schema: Any, path: Path) -> tuple[str, str, bool]:
    """Return the names of image and label column, and whether images lie in a struct.

    Raises InputError GL0214 where there is no one column for either.
    """

    def chosen(what: str, names: tuple[str, ...], good: list[str]) -> str:
        named = [name for name in names if name in good]
        if not named and len(good) != 1:
            raise InputError(
                "GL0214",
                f"expected one column of {what}, named "
                f"{', '.join(names[:4])}; found {', '.join(schema.names[:20])}",
                where=str(path),
            )
        return named[0] if named else good[0]

    inner = [
        f.name
        for f in schema
        if pa.types.is_struct(f.type)
        and f.type.get_field_index("bytes") >= 0
        and _is_binary(f.type.field(f.type.get_field_index("bytes")).type)
    ]
    image = chosen("image bytes", IMAGES, inner + [f.name for f in schema if _is_binary(f.type)])
    label = chosen(
        "labels",
        LABELS,
        [
            f.name
            for f in schema
            if pa.types.is_integer(f.type)
            or pa.types.is_string(f.type)
            or pa.types.is_large_string(f.type)
        ],
    )
    return image, label, image in inner


def _class_names(schema: Any, label: str) -> list[str]:
    """Return the names that Hugging Face keeps for a ClassLabel column."""
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = said["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    good = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return list(names) if good else []


class Parquet(Packed):
    """Parquet files with a column of image bytes and one of labels, in the order of their rows.

    Integers are class numbers (with Hugging Face's names where there are any), strings are names.
    Raises InputError GL0214.
    """

    kind = "parquet"

    def __init__(self, root: Path) -> None:
        files = beneath(root, (".parquet",))
        rows, self.image = Rows(), ""
        self._at: tuple[int, int, Iterator[bytes | None]] = (-1, -1, iter(()))  # file, row
        self._bytes, self._start = 0, [0]
        value, told = array("q"), dict[str, int]()
        kinds: set[bool] = set()
        names: list[str] = []
        for number, name in enumerate(files):
            path = self.root_of(root, name)
            with _reading(path):
                file = _file(path)
                image, label, struct = columns(file.schema_arrow, path)
                if self.image and image != self.image:
                    raise damaged(
                        f"the images are in {image!r}, in other files in {self.image!r}", path
                    )
                self.image, self.struct = image, struct
                kinds.add(pa.types.is_integer(file.schema_arrow.field(label).type))
                names = names or _class_names(file.schema_arrow, label)
                self._bytes += path.stat().st_size
                row = 0
                for batch in file.iter_batches(1 << 16, columns=[label], use_threads=False):
                    for said in batch.column(0).to_pylist():
                        flaw = 0
                        if said is None:
                            flaw = NO_LABEL
                        elif isinstance(said, str):
                            said = told.setdefault(said, len(told))
                        elif not 0 <= said < 1 << 62:
                            flaw = NOT_INTEGER
                        value.append(-1 if flaw else said)
                        rows.add(number, Member(b"%d" % row, 0, 0, 0), flaw)
                        row += 1
                self._start.append(len(rows))
        if len(kinds) > 1:
            raise damaged("labels are numbers in some files and names in others", root)
        value_n: Ints = np.frombuffer(value, np.int64)
        if told:
            known = [name.encode("utf-8", "surrogatepass") for name in told]
            order = order_of(known)
            rank = np.empty(len(known) + 1, np.int64)
            rank[order] = np.arange(len(known))
            rank[-1] = -1
            label_n, classes = rank[value_n], Strings.of(known[i] for i in order)
            people = classes
        else:
            label_n, classes = dense(value_n)
            people = Strings.of(
                names[int(c)].encode() if int(c) < len(names) else b"" for c in classes
            )
        super().__init__(root, files, rows, rows.ints("flaw"), label_n, classes, people)
        self._facts = {
            "layout": "parquet",
            "images": self.n,
            "identities": len(classes),
            "files": len(files),
            "image_column": self.image,
            "notes": [],
        }

    @staticmethod
    def root_of(root: Path, name: bytes) -> Path:
        """Return the path of a file below `root`, or `root` for b""."""
        return root / os.fsdecode(name) if name else root

    def offset(self, i: int) -> int | None:
        return None

    def _images(self, number: int) -> Iterator[bytes | None]:
        """Yield the image bytes of one file, a few rows in memory at a time."""
        path = self.root_of(self.root, self.files[number])
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
        if self.flaw[i]:
            raise Rejected(FLAWS[int(self.flaw[i])])
        number = int(self.file[i])
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

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_at": (-1, -1, iter(()))}

    def save(self, folder: Path, seed: int | None = None) -> None:
        """Copy the images beside the plan, in the order of the rows.

        Raises InputError GL0214, ResourceError GL0901.
        """
        free = shutil.disk_usage(folder).free
        if self._bytes > free:
            raise ResourceError(
                "GL0901",
                f"a copy of the images needs {self._bytes / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB are free",
                where=str(folder),
            )
        end = 0
        flaw_n, at_n, size_n = (np.array(v) for v in (self.flaw, self.at, self.size))
        with (folder / os.fsdecode(SPOOL)).open("wb") as spool:
            for number in range(len(self.files)):
                i = self._start[number]
                for data in self._images(number):
                    if data is None:
                        flaw_n[i] = flaw_n[i] or NO_IMAGE
                    elif not flaw_n[i]:
                        at_n[i], size_n[i] = end, len(data)
                        if len(data) <= MAX_BYTES:
                            end += spool.write(data)
                    i += 1
                if i != self._start[number + 1]:
                    raise damaged(
                        f"{self._start[number + 1] - self._start[number]} labels, "
                        f"{i - self._start[number]} images",
                        self.root_of(self.root, self.files[number]),
                    )
        made = copy.copy(self)
        made.flaw, made.at, made.size, made.packed = flaw_n, at_n, size_n, size_n
        super(Parquet, made).save(folder, seed)

    @classmethod
    def load(
        cls,
        path: Path,
        facts: dict[str, Any],
        folder: Path,
        start: int = 0,
        stop: int | None = None,
    ) -> Packed:
        """Open rows [start, stop) of the copy that `save` made."""
        return Spooled.load(folder, facts, folder, start, stop)

    def bytes(self) -> int:
        return self._bytes


class Spooled(Packed):
    """The copy of a Parquet source's images."""

    kind = "parquet"

    def _path(self, file: int) -> Path:
        return self.root / os.fsdecode(SPOOL)

    def offset(self, i: int) -> int | None:
        return None
