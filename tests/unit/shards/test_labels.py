"""Label versions: applied, undone, redone, and refused when wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glint.errors import InputError
from glint.files import atomic
from glint.shards import labels

NONE = np.empty((0, 2), np.int64)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    atomic.write_json(tmp_path / "manifest.json", {"identities": 4})
    return tmp_path


def test_versions_come_and_go(root: Path) -> None:
    assert labels.current(root, 4).target.tolist() == [0, 1, 2, 3]
    assert not (root / "labels").exists()
    first = labels.apply(root, np.array([0, 0, 1, 2]), np.array([[0, 2]]), {"by": "test"})
    second = labels.apply(root, np.array([0, 0, -1, 1]), NONE, {})
    assert (first, second) == (1, 2)
    table = labels.current(root, 4)
    assert (table.version, table.classes, table.target.tolist()) == (2, 2, [0, 0, -1, 1])
    assert labels.undo(root) == 1
    table = labels.current(root, 4)
    assert (table.version, table.classes, table.masks.tolist()) == (1, 3, [[0, 2]])
    assert labels.undo(root) == 0
    assert labels.current(root, 4).version == 0
    with pytest.raises(InputError, match="GL0502 nothing-to-undo"):
        labels.undo(root)
    assert (labels.redo(root), labels.redo(root)) == (1, 2)
    with pytest.raises(InputError, match="GL0502"):
        labels.redo(root)
    labels.undo(root)
    third = labels.apply(root, np.arange(4), NONE, {})
    assert third == 3 and labels.undo(root) == 1
    assert [line["op"] for line in labels.history(root)] == [
        "apply",
        "apply",
        "undo",
        "undo",
        "redo",
        "redo",
        "undo",
        "apply",
        "undo",
    ]
    assert labels.history(root)[0]["why"] == {"by": "test"}


@pytest.mark.parametrize(
    "target, masks, text",
    [
        ([0, 1, 2], [], "one target for each of 4 labels"),
        ([0, 1, 2, 4], [], "without a hole, 3 is not used"),
        ([0, 1, 2, -2], [], "found -2"),
        ([0, 0, 1, 2], [[0, 3]], "outside 0..2"),
        ([0, 0, 1, 2], [[1, 1]], "a < b"),
        ([0, 0, 1, 2], [[0, 1], [0, 1]], "stands twice"),
    ],
)
def test_wrong_tables_are_refused(
    root: Path, target: list[int], masks: list[list[int]], text: str
) -> None:
    with pytest.raises(InputError, match="GL0304 bad-label-table") as caught:
        labels.apply(root, np.array(target), np.array(masks, np.int64).reshape(-1, 2), {})
    assert text in str(caught.value)
    assert labels.current(root, 4).version == 0


def test_damage_on_disk_is_seen(root: Path) -> None:
    labels.apply(root, np.array([0, 0, 1, 2]), NONE, {})
    with pytest.raises(InputError, match="GL0304"):
        labels.current(root, 5)
    path = root / "labels" / "v0001.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:-9])
    with pytest.raises(InputError, match=r"GL0304 .*v0001.parquet"):
        labels.current(root, 4)
    path.unlink()
    with pytest.raises(InputError, match="the file is missing"):
        labels.current(root, 4)
    atomic.write_json(root / "labels" / "current.json", {"version": 1, "file": "../../x"})
    with pytest.raises(InputError, match="expected a version and its file"):
        labels.current(root, 4)
