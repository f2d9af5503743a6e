"""Parquet files with page checksums: written atomically, verified when read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from glint.errors import InputError
from glint.files import atomic

# No dictionary where values hardly repeat would be smaller still; one rule keeps bytes stable.
OPTIONS: dict[str, Any] = {"write_page_checksum": True, "compression": "zstd", "version": "2.6"}

# Read in the calling thread: a thread of Arrow's that lets go of a Python file after the
# interpreter has ended takes the process down (exit 134).
READING: dict[str, Any] = {"page_checksum_verification": True, "pre_buffer": False}


def write(path: str | os.PathLike[str], table: pa.Table) -> None:
    """Write `table` atomically, with page checksums, and read it back. Raises ResourceError."""
    with atomic.read_back(path) as file:
        pq.write_table(table, file, **OPTIONS)


@contextmanager
def _reading(path: str | os.PathLike[str], code: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(code, "the file is missing", where=os.fspath(path)) from None
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        what = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(code, f"the table is damaged: {what}", where=os.fspath(path)) from None


def _check_columns(
    found: pa.Schema,
    schema: pa.Schema | None,
    columns: Sequence[str] | None,
    code: str,
    path: str | os.PathLike[str],
) -> None:
    for field in schema or ():
        if columns is not None and field.name not in columns:
            continue
        at = found.get_field_index(field.name)
        if at < 0:
            raise InputError(
                code,
                f"the column {field.name!r} is missing; found {', '.join(found.names)}",
                where=os.fspath(path),
            )
        if found.field(at).type != field.type:
            raise InputError(
                code,
                f"the column {field.name!r} should be {field.type}, found {found.field(at).type}",
                where=os.fspath(path),
            )


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
    with _reading(path, code), Path(path).open("rb") as handle:
        file = pq.ParquetFile(handle, **READING)
        _check_columns(file.schema_arrow, schema, columns, code, path)
        for group in range(file.num_row_groups):
            yield file.read_row_group(
                group, columns=list(columns) if columns is not None else None, use_threads=False
            )


def read(
    path: str | os.PathLike[str],
    schema: pa.Schema | None = None,
    *,
    columns: Sequence[str] | None = None,
    code: str = "GL0301",
) -> pa.Table:
    """Read a table, verifying page checksums.

    With `schema`, its columns must be there with its types (others may be there as well).
    Raises InputError `code`.
    """
    with _reading(path, code), Path(path).open("rb") as handle:
        file = pq.ParquetFile(handle, **READING)
        _check_columns(file.schema_arrow, schema, columns, code, path)
        return file.read(columns=list(columns) if columns is not None else None, use_threads=False)


def scan(
    path: str | os.PathLike[str],
    schema: pa.Schema,
    columns: Sequence[str],
    rows: int = 1 << 20,
    code: str = "GL0301",
) -> Iterator[pa.RecordBatch]:
    """Give the rows of a table in batches, verifying page checksums. Raises InputError `code`."""
    with _reading(path, code), Path(path).open("rb") as handle:
        file = pq.ParquetFile(handle, **READING)
        for name in columns:
            at = file.schema_arrow.get_field_index(name)
            if at < 0 or file.schema_arrow.field(at).type != schema.field(name).type:
                raise InputError(
                    code,
                    f"the column {name!r} is missing or not {schema.field(name).type}",
                    where=os.fspath(path),
                )
        yield from file.iter_batches(rows, columns=list(columns), use_threads=False)
