"""Label versions: applied, undone, redone, and refused when wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from glint import schemas
from glint.errors import BusyError, InputError, MismatchError
from glint.files import atomic, parquet, seal
from glint.shards import labels, tombstones

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


def buried(root: Path, *labels_: int, keys: tuple[str, ...] = ()) -> None:
    line = {"op": "drop", "labels": [*labels_], "keys": [*keys]}
    atomic.make_dir(root / "_glint")
    seal.append(root / tombstones.FILE, line, "GL0304")


def test_a_version_made_of_another_than_is_in_force_is_refused(root: Path) -> None:
    first = labels.apply(root, np.array([0, 0, 1, 2]), NONE, {}, based_on=0)
    before = {path: path.read_bytes() for path in (root / "labels").iterdir()}
    with pytest.raises(BusyError, match=r"GL0309 labels-changed.*of version 0, in force is 1"):
        labels.apply(root, np.arange(4), NONE, {}, based_on=0)
    with pytest.raises(BusyError, match="GL0309"):
        labels.undo(root, based_on=0)
    with labels.changing(root), pytest.raises(BusyError, match="GL0005"):
        labels.apply(root, np.arange(4), NONE, {}, based_on=first)
    for change in (labels.undo, labels.redo):
        with labels.changing(root), pytest.raises(BusyError, match="GL0005"):
            change(root)
    assert {path: path.read_bytes() for path in (root / "labels").iterdir()} == before


def test_what_was_taken_down_stays_out_of_every_version(root: Path) -> None:
    labels.apply(root, np.array([0, 1, 1, 2]), np.array([[0, 2]]), {})
    buried(root, 3)
    with pytest.raises(MismatchError, match=r"GL0308 taken-down.*identity 3 was taken down"):
        labels.current(root, 4)
    assert labels.unchecked(root, 4).target.tolist() == [0, 1, 1, 2]
    labels.apply(root, np.array([0, 1, 2, 3]), np.array([[0, 1], [2, 3]]), {})
    table = labels.current(root, 4)
    assert (table.target.tolist(), table.masks.tolist()) == ([0, 1, 2, -1], [[0, 1]])
    with pytest.raises(MismatchError, match="GL0308"):
        labels.undo(root)  # to version 1, in which identity 3 is alive
    assert labels.current(root, 4).version == 2
    labels.apply(root, np.array([-1, 0, 1, -1]), NONE, {})
    labels.undo(root)
    buried(root, 0)
    labels.apply(root, labels.unchecked(root, 4).target, NONE, {})
    assert labels.current(root, 4).target.tolist() == [-1, 0, 1, -1]
    for wrong in ({"labels": ["1"]}, {"labels": 1}, {"keys": [1]}):
        (root / tombstones.FILE).unlink()
        seal.append(root / tombstones.FILE, wrong, "GL0304")
        with pytest.raises(InputError, match=r"GL0304.*expected (labels|keys), found"):
            labels.current(root, 4)
    atomic.write_bytes(root / tombstones.FILE, b"{}\n")
    with pytest.raises(InputError, match=r"GL0304.*damage"):
        labels.current(root, 4)


@pytest.fixture
def eight(root: Path) -> Path:
    """Give samples: two images of each of the four labels."""
    atomic.write_json(root / "manifest.json", {"identities": 4, "written": 8})
    n = 8
    columns = {
        name: pa.nulls(n, schemas.SAMPLES.field(name).type) for name in schemas.SAMPLES.names
    }
    columns["label"] = pa.array(np.arange(n) // 2)
    columns["key"] = pa.array([f"{10 * i:09d}" for i in range(n)], pa.string())
    parquet.write(root / "samples.parquet", pa.table(columns, schema=schemas.SAMPLES))
    return root


LABEL = np.arange(8) // 2


def test_a_version_speaks_of_single_images(eight: Path) -> None:
    files = lambda: {p.name: p.read_bytes() for p in (eight / "labels").glob("v*")}  # noqa: E731
    row, label = np.array([0, 3, 5]), np.array([-1, 2, 1])
    labels.apply(eight, np.array([0, 1, 1, 2]), NONE, {}, row=row, label=label)
    made = files()
    assert set(made) == {"v0001.parquet", "v0001.masks.parquet", "v0001.images.parquet"}
    table = labels.current(eight, 4)
    assert table.sample_label(LABEL).tolist() == [-1, 0, 1, 2, 2, 1, 3, 3]
    assert table.sample_target(LABEL).tolist() == [-1, 0, 1, 1, 1, 1, 2, 2]
    assert table.sample_person(LABEL).tolist() == [-1, 0, 1, 1, 1, 1, 3, 3]
    labels.apply(eight, table.target, NONE, {})
    plain = labels.current(eight, 4)
    assert not len(plain.row) and not plain.images and table.images.startswith("sha256:")
    assert labels.undo(eight) == 1
    assert labels.current(eight, 4).same(table) and files().items() >= made.items()
    assert labels.undo(eight) == 0
    assert labels.current(eight, 4).sample_target(LABEL).tolist() == LABEL.tolist()
    assert labels.redo(eight) == 1
    assert labels.current(eight, 4).images == table.images
    head = eight / "labels/current.json"
    assert atomic.read_json(head)["images"] == "v0001.images.parquet"
    whole = head.read_bytes()
    atomic.write_json(head, {"version": 1, "file": "v0001.parquet"})  # by a glint that knew of none
    assert labels.current(eight, 4).images == table.images
    head.write_bytes(whole)
    (eight / "labels/v0001.images.parquet").unlink()  # not taken for a version without
    with pytest.raises(InputError, match=r"v0001.images.parquet.*missing"):
        labels.current(eight, 4)


@pytest.mark.parametrize(
    ("row", "label", "text"),
    [
        ([1, 0], [0, 0], "must ascend"),
        ([1, 1], [0, 0], "must ascend"),
        ([8], [0], "outside 0..7"),
        ([-1], [0], "outside 0..7"),
        ([1], [4], "one of 0..3"),
        ([1], [-2], "one of 0..3"),
        ([1, 2], [0], "a label for each image"),
    ],
)
def test_wrong_images_are_refused(eight: Path, row: list[int], label: list[int], text: str) -> None:
    arrays = {"row": np.array(row), "label": np.array(label)}
    with pytest.raises(InputError, match=f"GL0304.*{text}"):
        labels.apply(eight, np.arange(4), NONE, {}, **arrays)
    assert labels.current(eight, 4).version == 0


def test_an_identity_without_any_image_left_is_dropped(eight: Path) -> None:
    masks = np.array([[0, 1], [1, 3]])
    rows = {"row": np.array([2, 3]), "label": np.array([0, -1])}
    labels.apply(eight, np.arange(4), masks, {}, **rows)
    table = labels.current(eight, 4)
    assert (table.target.tolist(), table.classes) == ([0, -1, 1, 2], 3)
    assert not len(table.masks)
    assert table.sample_target(LABEL).tolist() == [0, 0, 0, -1, 1, 1, 2, 2]
    labels.undo(eight)
    both = {"row": np.array([2, 3, 4]), "label": np.array([0, -1, 1])}
    labels.apply(eight, np.arange(4), masks, {}, **both)  # another's image moved in
    assert labels.current(eight, 4).target.tolist() == [0, 1, 2, 3]


def test_images_of_whom_was_taken_down_stay_out(eight: Path) -> None:
    buried(eight, 1, keys=("000000070",))
    rows = {"row": np.array([0, 3, 7]), "label": np.array([1, 2, 0])}
    labels.apply(eight, np.arange(4), NONE, {}, **rows)
    table = labels.current(eight, 4)
    # 3 was sharded under the identity that is gone, 0 is moved to it, 7 was taken down itself
    assert table.sample_target(LABEL).tolist() == [-1, 0, -1, -1, 1, 1, 2, -1]
    for row, label in ((3, 2), (7, 0)):
        path = eight / "labels/v0001.images.parquet"
        parquet.write(path, pa.table([[row], [label]], schema=schemas.LABEL_IMAGES))
        with pytest.raises(InputError, match=r"GL0304.*other bytes than the history names"):
            labels.current(eight, 4)
