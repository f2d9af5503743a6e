"""The sampling table: how often each identity is drawn per epoch."""

# C identities of the label version in force

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glint import schemas
from glint.errors import InputError, UsageError
from glint.files import parquet
from glint.rng import I64
from glint.shards.label_table import LabelTable

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sampling:
    """The content of a sampling table.

    each: images of an identity that stand together, 0 for single images. left_out: rows of
    samples.parquet that no epoch draws, ascending; count_C: images without them.
    """

    draws_C: F64
    each: int
    left_out: I64
    count_C: I64

    @property
    def digest(self) -> str:
        """Fingerprint the draws, so that a resumed run notices another table."""
        value = np.ascontiguousarray(self.draws_C, dtype="<f8").tobytes()
        value += b"each %d" % self.each if self.each else b""
        value += b"left out" + self.left_out.astype("<i8").tobytes() if len(self.left_out) else b""
        return hashlib.sha256(value).hexdigest()


def read(path: str | Path, count_C: npt.NDArray[Any], labels: LabelTable, dataset: str) -> Sampling:
    """Read draws per epoch and check the table against the labels in force.

    count_C: images of each identity now; dataset: its digest. An identity
    that the table leaves out is not drawn. Whether rows left out are of the identities that name
    them is for the caller to check, by `Sampling.count_C`.
    Raises UsageError GL0001 for a missing file, InputError GL0305 for a table that is damaged or
    was made for other labels.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(
            "GL0001",
            "no such sampling table",
            where=str(path),
            hint="make it with: glint balance DATASET",
        )
    table = parquet.read(path, columns=["label", "count", "draws", "left_out"], code="GL0305")
    about = {
        k.decode(errors="replace"): v.decode(errors="replace")
        for k, v in (table.schema.metadata or {}).items()
    }
    if about.get("dataset", dataset) != dataset:
        raise stale(path, f"made for dataset {about['dataset']}, this is {dataset}")
    number = about.get("label_version", str(labels.version))
    if "labels" not in about and number != str(labels.version):
        raise stale(
            path,
            f"made for label version {number}, version {labels.version} is in force",
        )
    if about.get("labels", labels.digest) != labels.digest:
        raise stale(path, f"made for label version {number}, version {labels.version} is in force")
    for name in table.column_names:
        if table.column(name).null_count:
            raise InputError("GL0305", f"column {name} has empty cells", where=str(path))
    label = table.column("label").to_numpy().astype(np.int64)
    count = table.column("count").to_numpy().astype(np.int64)
    draws = table.column("draws").to_numpy().astype(np.float64)
    classes = len(count_C)
    if len(label) and not (label.min() >= 0 and label.max() < classes):
        raise stale(
            path, f"labels run from {label.min()} to {label.max()}, there are {classes} identities"
        )
    if (np.diff(label) <= 0).any() and len(np.unique(label)) != len(label):
        raise InputError("GL0305", "a label stands twice", where=str(path))
    if not (np.isfinite(draws).all() and (draws >= 0).all()):
        raise InputError("GL0305", "draws must be finite and not negative", where=str(path))
    left_out, size = _left_out(table, path)
    wrong = np.flatnonzero(count + size != count_C[label])
    if wrong.size:
        first = label[wrong[0]]
        raise stale(
            path,
            f"{wrong.size} counts differ, first: label {first} has "
            f"{count[wrong[0]] + size[wrong[0]]} images in the table and {count_C[first]} in the "
            "dataset",
        )
    draws_C = np.zeros(classes, dtype=np.float64)
    draws_C[label] = draws
    draws_C[label[count == 0]] = 0
    rest_C = np.array(count_C, dtype=np.int64)
    rest_C[label] = count
    return Sampling(draws_C, _each(about.get("each", "0"), draws_C, path), left_out, rest_C)


def _left_out(table: pa.Table, path: Path) -> tuple[I64, I64]:
    """Read the rows that a table masks, sorted, and how many each of its identities names."""
    if "left_out" not in table.column_names:
        return np.empty(0, np.int64), np.zeros(table.num_rows, np.int64)
    column = table.column("left_out")
    if column.type != schemas.LEFT_OUT.type:
        raise InputError(
            "GL0305",
            f"left_out should be {schemas.LEFT_OUT.type}, found {column.type}",
            where=str(path),
        )
    column = column.combine_chunks()
    flat = column.flatten()
    if flat.null_count:
        raise InputError("GL0305", "column left_out has empty cells", where=str(path))
    row = np.sort(flat.to_numpy())
    if (np.diff(row) == 0).any():
        raise InputError("GL0305", "left_out names a row twice", where=str(path))
    return row, np.diff(column.offsets.to_numpy()).astype(np.int64)


def _each(text: str, draws_C: F64, path: Path) -> int:
    """Read how many images of an identity stand together; its draws must agree."""
    each = int(text) if text.isdigit() else -1
    if each < 0 or (each and not np.isin(draws_C, (0, each)).all()):
        raise InputError(
            "GL0305",
            f"expected draws of 0 or of {text!r} images per identity, found "
            f"{draws_C.max(initial=0):g}",
            where=str(path),
        )
    return each


def stale(path: str | Path, what: str) -> InputError:
    """Make the error of a table that was made for other labels or another dataset."""
    return InputError(
        "GL0305", what, where=str(path), hint="make it again, with glint balance or glint coreset"
    )
