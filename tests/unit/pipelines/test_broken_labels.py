"""Label files that were lost, cut, rewound or changed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from glint.errors import InputError
from glint.files import atomic, parquet
from glint.shards import labels
from glint.shards.dataset import Dataset

NO_MASKS = np.empty((0, 2), np.int64)
Make = Callable[..., Dataset]


@pytest.fixture
def two(make_dataset: Make) -> Dataset:
    """A dataset of six identities with two versions; the second leaves an image out."""
    dataset = make_dataset([3] * 6, images=False)
    labels.apply(dataset.root, np.array([0, 0, 1, 2, 3, 4]), NO_MASKS, {})
    image = {"row": np.array([3]), "label": np.array([-1])}
    labels.apply(dataset.root, np.array([0, 0, 1, 1, 2, 3]), NO_MASKS, {}, **image)
    return dataset


def test_the_history_s_last_version_is_in_force(two: Dataset) -> None:
    for value in ({"version": 1, "file": "v0001.parquet"},):  # one line behind: a crash
        atomic.write_json(two.root / "labels/current.json", value)
        now = labels.current(two.root, 6)
        assert (now.version, now.row.tolist()) == (2, [3])


@pytest.mark.parametrize("value", [None, {"version": 0, "file": None}, {"version": True}])
def test_labels_that_are_not_the_history_s_are_refused(
    two: Dataset, value: dict[str, object] | None
) -> None:
    path = two.root / "labels/current.json"
    path.unlink()
    if value is not None:
        atomic.write_json(path, value)
    with pytest.raises(InputError, match="GL0304"):
        labels.current(two.root, 6)


@pytest.mark.parametrize("part", ["", ".masks"])
def test_tables_of_another_version_are_refused(two: Dataset, part: str) -> None:
    folder = two.root / "labels"
    other = folder / f"v0001{part}.parquet"
    table = parquet.read(other)
    parquet.write(folder / f"v0002{part}.parquet", table.slice(0, max(0, table.num_rows)))
    if part:  # both are empty: the same bytes are the same version's
        assert labels.current(two.root, 6).version == 2
        return
    with pytest.raises(InputError, match=r"GL0304.*other bytes than the history names"):
        labels.current(two.root, 6)
