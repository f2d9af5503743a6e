"""Label files that were lost, cut, rewound or changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from glint.errors import InputError
from glint.files import atomic, parquet
from glint.pipelines.dataset.drop import drop
from glint.pipelines.dataset.reshard import reshard
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.shards.verify import verify

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


@pytest.mark.parametrize("gone", ["labels", "labels/history.jsonl", "a line"])
def test_label_versions_that_got_lost_are_missed(two: Dataset, gone: str, tmp_path: Path) -> None:
    """A copy without labels/ must not be read as labels as sharded: merges would be undone."""
    path = two.root / "labels/history.jsonl"
    if gone == "a line":
        path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
        atomic.write_json(two.root / "labels/current.json", {"version": 1, "file": "v0001.parquet"})
    else:
        shutil.rmtree(two.root / "labels") if gone == "labels" else path.unlink()
        (two.root / "labels/current.json").unlink(missing_ok=True)
    actions: list[Callable[[], object]] = [
        lambda: labels.current(two.root, 6),
        lambda: labels.apply(two.root, np.arange(6), NO_MASKS, {}),
        lambda: labels.undo(two.root),
        lambda: drop(two.root, ["label:0"], "a reason"),
        lambda: reshard(two.root, tmp_path / "other", 5),
    ]
    for action in actions:
        with pytest.raises(InputError, match=r"GL0304.*that _glint/labels.json keeps"):
            action()
    assert not verify(two.root).ok
    (two.root / labels.RECORD).unlink()  # given up, knowingly
    assert labels.current(two.root, 6).version == (1 if gone == "a line" else 0)


def test_a_record_one_line_behind_is_a_crash(two: Dataset) -> None:
    lines = labels.history(two.root)
    for line in (lines[0], None):  # and none: a dataset older than the record
        path = two.root / labels.RECORD
        path.unlink()
        if line is not None:
            atomic.write_json(path, {"version": line["version"], "seal": line["seal"]})
        assert labels.current(two.root, 6).version == 2
