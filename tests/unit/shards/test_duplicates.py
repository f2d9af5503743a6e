"""Images that stand more than once: found by digest, told apart by the labels in force."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glint import schemas
from glint.errors import BusyError
from glint.pipelines.dataset import shard
from glint.results import datasets as results
from glint.shards import duplicates, labels
from glint.shards.dataset import Dataset


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=20))
def test_groups_are_those_of_a_dictionary(halves: list[tuple[int, int]]) -> None:
    """Digests whose halves are equal by chance are among them."""
    digest_nk = np.array(halves, np.uint64).reshape(-1, 2).view(np.uint8)
    rows: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, half in enumerate(halves):
        rows[half].append(row)
    expected = sorted(found for found in rows.values() if len(found) > 1)
    row_m, group_m = duplicates.groups(digest_nk)
    assert [row_m[group_m == g].tolist() for g in range(len(expected))] == expected
    assert len(row_m) == sum(map(len, expected))


@pytest.fixture
def data(tmp_path: Path, jpeg: Callable[[int], bytes]) -> Dataset:
    """Persons a, b, c, d; picture 1 twice under a, 2 under a and b, 3 under c and d (twice)."""
    pictures = {"a": [0, 1, 1, 2], "b": [2, 4, 5], "c": [3, 6], "d": [3, 3, 7, 8]}
    for name, numbers in pictures.items():
        (tmp_path / "faces" / name).mkdir(parents=True)
        for i, number in enumerate(numbers):
            (tmp_path / "faces" / name / f"{i}.jpg").write_bytes(jpeg(number))
    shard.shard(tmp_path / "faces", tmp_path / "set", shard.Options(5))
    return Dataset(tmp_path / "set")


def counts(found: results.Duplicates) -> list[int]:
    return [found.groups, found.images, found.under_one_identity, found.under_several]


def test_what_is_found(data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "equal.parquet"
    found = duplicates.find(data, labels.current(data.root, data.classes), out)
    assert counts(found) == [3, 7, 1, 2]
    assert sorted(map(sorted, (group.labels for group in found.shown))) == [
        [0, 1],
        [2, 3, 3],
    ]
    table = pq.read_table(out)
    assert table.schema == schemas.EQUALS
    told = defaultdict(list)
    for row in table.to_pylist():
        told[row["group"], row["across"]].append(row["source"])
    assert sorted(map(sorted, told.values())) == [
        ["a/1.jpg", "a/2.jpg"],
        ["a/3.jpg", "b/0.jpg"],
        ["c/0.jpg", "d/0.jpg", "d/1.jpg"],
    ]
    assert {across for _, across in told} == {False, True} and len(told) == 3
    with pytest.raises(BusyError, match=r"GL0004.*equal.parquet"):
        duplicates.find(data, labels.current(data.root, data.classes), out)


def test_labels_in_force_decide(data: Dataset) -> None:
    """Merging a and b resolves one pair, dropping c leaves d's own two."""
    labels.apply(data.root, np.array([0, 0, -1, 1]), np.empty((0, 2), np.int64), {})
    found = duplicates.find(data, labels.current(data.root, data.classes))
    assert counts(found) == [3, 6, 3, 0] and found.shown == []


def test_none(tmp_path: Path, jpeg: Callable[[int], bytes]) -> None:
    (tmp_path / "faces" / "a").mkdir(parents=True)
    (tmp_path / "faces" / "a" / "0.jpg").write_bytes(jpeg(0))
    shard.shard(tmp_path / "faces", tmp_path / "set")
    data = Dataset(tmp_path / "set")
    out = tmp_path / "equal.parquet"
    assert counts(duplicates.find(data, labels.current(data.root, 1), out)) == [0, 0, 0, 0]
    assert pq.read_table(out).num_rows == 0
