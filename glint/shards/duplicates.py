"""Images that stand more than once in one dataset, byte for byte: by their digests alone."""

# n samples, m of them in a group of equal images

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glint import schemas
from glint.errors import BusyError
from glint.files import parquet
from glint.results import datasets as results
from glint.shards.dataset import Dataset
from glint.shards.labels import LabelTable

SHOWN = 20  # groups told one by one

Ints = npt.NDArray[np.int64]


def groups(digest_nk: npt.NDArray[np.uint8]) -> tuple[Ints, Ints]:
    """Return the rows of images that stand more than once, and the group of each; both [m].

    Groups are numbered by their first rows, rows ascend in a group. Beside the digests it takes
    some 20 bytes a sample.
    """
    digest_n2 = np.ascontiguousarray(digest_nk).view(np.uint64)
    order_n = np.argsort(digest_n2[:, 0], kind="stable")
    first_n = digest_n2[order_n, 0]
    same = first_n[1:] == first_n[:-1]
    twin_n = np.zeros(len(first_n), np.bool_)
    twin_n[1:] |= same
    twin_n[:-1] |= same
    row_m = order_n[twin_n]
    row_m = row_m[np.lexsort((row_m, digest_n2[row_m, 1], digest_n2[row_m, 0]))]
    found_m2 = digest_n2[row_m]
    group_m = np.cumsum(np.r_[True, (found_m2[1:] != found_m2[:-1]).any(axis=1)][: len(row_m)]) - 1
    count_g = np.bincount(group_m)
    keep_m = count_g[group_m] > 1  # halves of digests may be equal by chance
    row_m, group_m = row_m[keep_m], group_m[keep_m]
    start_g = np.flatnonzero(np.r_[True, group_m[1:] != group_m[:-1]][: len(group_m)])
    place_g = np.empty(len(start_g), np.int64)
    place_g[np.argsort(row_m[start_g])] = np.arange(len(start_g))
    group_m = np.repeat(place_g, np.diff(np.r_[start_g, len(row_m)]))
    order_m = np.argsort(group_m, kind="stable")
    return row_m[order_m], group_m[order_m]


@dataclass(frozen=True)
class Equals:
    """m samples whose image stands more than once, group by group.

    target_m: identity by the labels in force; across_m: the group stands under several.
    """

    row_m: Ints
    group_m: Ints
    target_m: Ints
    across_m: npt.NDArray[np.bool_]


def by_identity(row_m: Ints, group_m: Ints, target_m: Ints) -> Equals:
    """Number groups from 0 and say which stand under several identities.

    Dropped samples (target -1) are left out, and groups of which one sample stays.
    """
    row_m, group_m, target_m = (array[target_m >= 0] for array in (row_m, group_m, target_m))
    left_m = np.bincount(group_m)[group_m] > 1  # without the dropped ones
    row_m, target_m = row_m[left_m], target_m[left_m]
    group_m = np.unique(group_m[left_m], return_inverse=True)[1].astype(np.int64)
    n = int(group_m.max(initial=-1)) + 1
    least_g, most_g = np.full(n, np.iinfo(np.int64).max), np.full(n, -1)
    np.minimum.at(least_g, group_m, target_m)
    np.maximum.at(most_g, group_m, target_m)
    return Equals(row_m, group_m, target_m, (least_g != most_g)[group_m])


def equals(dataset: Dataset, labels: LabelTable) -> Equals:
    """Find the images that stand more than once, byte for byte, by the index alone."""
    row_m, group_m = groups(dataset.digests)
    return by_identity(row_m, group_m, labels.sample_target(dataset.label)[row_m])


def find(
    dataset: Dataset, labels: LabelTable, out: str | os.PathLike[str] | None = None
) -> results.Duplicates:
    """Count the images that stand more than once, under one identity or under several.

    Identities are those of the labels in force; dropped ones are left out. out: a Parquet file to
    write with one row for each such image. Raises BusyError GL0004 where it exists.
    """
    if out is not None and Path(out).exists():
        raise BusyError("GL0004", "the file exists", where=os.fspath(out))
    found = equals(dataset, labels)
    group_m, across_m = found.group_m, found.across_m
    if out is not None:
        parquet.write(out, table(dataset, found))
    n, several = int(group_m.max(initial=-1)) + 1, np.unique(group_m[across_m])
    return results.Duplicates(
        groups=n,
        images=len(found.row_m),
        under_one_identity=n - len(several),
        under_several=len(several),
        shown=[
            results.Duplicate(
                keys=[dataset.key[int(row)] for row in found.row_m[group_m == group]],
                labels=dataset.label[found.row_m[group_m == group]].tolist(),
            )
            for group in several[:SHOWN].tolist()
        ],
        out=os.fspath(out) if out is not None else None,
    )


def table(dataset: Dataset, found: Equals) -> pa.Table:
    """Return one row for each sample found."""
    label_m = dataset.label[found.row_m]
    names = dataset.identities().column("source_label")
    where = ("key", "source")
    text = parquet.read(dataset.root / "samples.parquet", schemas.SAMPLES, columns=list(where))
    text = text.take(pa.array(found.row_m))
    columns = {
        "group": pa.array(found.group_m),
        "key": text.column("key"),
        "label": pa.array(label_m),
        "target": pa.array(found.target_m),
        "across": pa.array(found.across_m),
        "source_label": names.take(pa.array(label_m)),
        "source": text.column("source"),
    }
    return pa.table(columns, schema=schemas.EQUALS)
