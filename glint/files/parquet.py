"""Parquet files with page checksums: written atomically, verified when read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from glint.errors import InputError
from glint.files import atomic, reads

# No dictionary where values hardly repeat would be smaller still; one rule keeps bytes stable.
OPTIONS: dict[str, Any] = {"write_page_checksum": True, "compression": "zstd", "version": "2.6"}

# Read in the calling thread: a thread of Arrow's that lets go of a Python file after the
# interpreter has ended takes the process down (exit 134).
READING: dict[str, Any] = {"page_checksum_verification": True, "pre_buffer": False}
ROWS = 4  # of a byte, at most
FREE = 1 << 20  # rows that any file may claim


def write(path: str | os.PathLike[str], table: pa.Table) -> None:
    """Write `table` atomically, with page checksums, and read it back. Raises ResourceError."""
    with atomic.read_back(path) as file:
        pq.write_table(table, file, **OPTIONS)


def check_claim(rows: int, size: int, where: str, code: str) -> None:
    """Raise InputError `code` where a file of `size` bytes cannot hold so many rows.

    Every table of glint has a column that ascends, or keys: over a byte a row when compressed.
    """
    if not 0 <= rows <= FREE + ROWS * size:
        what = f"claims {rows} rows, more than a table of {size} bytes can hold"
        raise InputError(code, what, where=where)


@contextmanager
def _open(
    path: str | os.PathLike[str],
    schema: pa.Schema | None,
    columns: Sequence[str] | None,
    code: str,
) -> Iterator[pq.ParquetFile]:
    """Open a table, the types of its columns compared with `schema`.

    Raises InputError `code`, also for what is found when it is read inside, ResourceError GL0903.
    """
    where = os.fspath(path)
    try:
        with reads.patient(lambda: reads.open_plain(path)) as handle:
            file = pq.ParquetFile(handle, **READING)
            check_claim(file.metadata.num_rows, os.fstat(handle.fileno()).st_size, where, code)
            found = file.schema_arrow
            for field in schema or ():
                if columns is not None and field.name not in columns:
                    continue
                at, what = found.get_field_index(field.name), ""
                if at < 0:
                    what = f"is missing; found {', '.join(found.names)}"
                elif found.field(at).type != field.type:
                    what = f"should be {field.type}, found {found.field(at).type}"
                if what:
                    raise InputError(code, f"the column {field.name!r} {what}", where=where)
            yield file
    except FileNotFoundError:
        raise InputError(code, "the file is missing", where=where) from None
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and reads.passing(error):
            raise reads.unread(error, path) from error
        what = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(code, f"the table is damaged: {what}", where=where) from None


def groups(
    path: str | os.PathLike[str],
    schema: pa.Schema,
    *,
    columns: Sequence[str] | None = None,
    code: str = "GL0301",
) -> Iterator[pa.Table]:
    """Read a table one row group after the other, verifying page checksums.

    Raises InputError `code`, when the damaged group is reached.
    """
    with _open(path, schema, columns, code) as file:
        wanted = None if columns is None else list(columns)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=wanted, use_threads=False)


def read(
    path: str | os.PathLike[str],
    schema: pa.Schema | None = None,
    *,
    columns: Sequence[str] | None = None,
    code: str = "GL0301",
    rows: int | None = None,
) -> pa.Table:
    """Read a table, verifying page checksums.

    With `schema`, its columns must be there with its types (others may be there as well); with
    `rows`, so many rows. Raises InputError `code`.
    """
    with _open(path, schema, columns, code) as file:
        if rows not in (None, found := file.metadata.num_rows):
            what = f"expected {rows} rows, as the manifest says, found {found}"
            raise InputError(code, what, where=os.fspath(path))
        return file.read(columns=None if columns is None else list(columns), use_threads=False)


def names(path: str | os.PathLike[str], code: str = "GL0301") -> list[str]:
    """Return the names of a table's columns. Raises InputError `code`."""
    with _open(path, None, None, code) as file:
        return list(file.schema_arrow.names)


def scan(
    path: str | os.PathLike[str],
    schema: pa.Schema,
    columns: Sequence[str],
    rows: int = 1 << 20,
    code: str = "GL0301",
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a table in batches, verifying page checksums. Raises InputError `code`."""
    with _open(path, schema, columns, code) as file:
        yield from file.iter_batches(rows, columns=list(columns), use_threads=False)
