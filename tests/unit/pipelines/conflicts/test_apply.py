"""Applying a report changes the labels, only the labels, and only once; undo takes it back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from glint import schemas
from glint.errors import InputError, MismatchError
from glint.files import atomic, parquet
from glint.pipelines.conflicts import apply
from glint.pipelines.dataset.drop import drop
from glint.shards import labels
from glint.shards.dataset import Dataset


def report(
    dataset: Dataset,
    folder: Path,
    verdicts: list[tuple[int, int, str]],
    groups: list[list[int]],
    version: int = 0,
) -> Path:
    """Write the three files of a report that `apply` reads."""
    folder.mkdir()
    rows = {name: [None] * len(verdicts) for name in schemas.PAIRS.names}
    rows["a"], rows["b"] = [v[0] for v in verdicts], [v[1] for v in verdicts]
    rows["verdict"] = [v[2] for v in verdicts]
    parquet.write(folder / "pairs.parquet", pa.table(rows, schema=schemas.PAIRS))
    parquet.write(
        folder / "groups.parquet",
        pa.table(
            {
                "group": [i for i, g in enumerate(groups) for _ in g],
                "label": [label for g in groups for label in g],
            },
            schema=schemas.GROUPS,
        ),
    )
    atomic.write_json(
        folder / "conflicts.json",
        {
            "format": apply.FORMAT,
            "dataset": {
                "path": "../" + dataset.root.name,
                "absolute": str(dataset.root),
                "digest": dataset.digest,
                "label_version": version,
            },
        },
    )
    return folder


VERDICTS = [
    (0, 3, "merge"),
    (3, 5, "merge"),
    (0, 5, "mask"),
    (1, 4, "mask"),
    (2, 5, "mask"),
    (1, 2, "keep"),
]
GROUPS = [[0, 3, 5]]


def outside_labels(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in root.rglob("*")
        if p.is_file() and p.parent.name != "labels" and p != root / labels.RECORD
    }


@pytest.fixture
def dataset(make_dataset) -> Dataset:
    return make_dataset([3, 2, 1, 4, 1, 2], images=False)


def test_apply_then_undo(dataset: Dataset, tmp_path: Path) -> None:
    folder = report(dataset, tmp_path / "conf", VERDICTS, GROUPS)
    before = outside_labels(dataset.root)

    dry = apply.apply(folder, dry_run=True)
    assert (dry.applied, dry.classes, dry.masks) == (False, 4, 2)
    assert not (dataset.root / "labels").exists()

    done = apply.apply(folder)
    assert (done.applied, done.version, done.classes_before, done.classes) == (
        True,
        1,
        6,
        4,
    )
    now = labels.current(dataset.root, 6)
    assert now.target.tolist() == [0, 1, 2, 0, 3, 0]
    assert now.masks.tolist() == [[0, 2], [1, 3]]
    assert outside_labels(dataset.root) == before

    again = apply.apply(folder)
    assert (again.applied, again.already, again.version) == (False, True, 1)
    assert len(labels.history(dataset.root)) == 1

    undone = apply.undo(folder)
    assert (undone.undone, undone.version, undone.classes) == (True, 0, 6)
    now = labels.current(dataset.root, 6)
    assert now.target.tolist() == list(range(6))
    assert len(now.masks) == 0
    with pytest.raises(InputError, match=r"GL0502.*not in force \(the labels stand at version 0"):
        apply.undo(folder)

    assert apply.apply(folder).applied
    assert labels.current(dataset.root, 6).target.tolist() == [0, 1, 2, 0, 3, 0]


def test_the_second_report_builds_on_the_first(dataset: Dataset, tmp_path: Path) -> None:
    one = report(dataset, tmp_path / "one", VERDICTS, GROUPS)
    stale = report(dataset, tmp_path / "stale", [(1, 2, "merge")], [[1, 2]])
    apply.apply(one)
    first = labels.current(dataset.root, 6)
    with pytest.raises(MismatchError, match=r"GL0501.*made on label version 0, in force is 1"):
        apply.apply(stale)
    two = report(dataset, tmp_path / "two", [(2, 4, "merge")], [[2, 4]], version=1)
    apply.apply(two)
    now = labels.current(dataset.root, 6)
    assert now.target.tolist() == [0, 1, 2, 0, 2, 0]
    assert now.masks.tolist() == [[0, 2], [1, 2]]
    with pytest.raises(InputError, match="GL0502"):
        apply.undo(one)
    apply.undo(two)
    back = labels.current(dataset.root, 6)
    np.testing.assert_array_equal(back.target, first.target)
    np.testing.assert_array_equal(back.masks, first.masks)
    apply.undo(one)
    assert labels.current(dataset.root, 6).version == 0


def test_another_dataset_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    folder = report(dataset, tmp_path / "conf", VERDICTS, GROUPS)
    path = dataset.root / "manifest.json"
    manifest = json.loads(path.read_text())
    atomic.write_json(path, {**manifest, "digest": "sha256:other"})
    with pytest.raises(MismatchError, match=r"GL0501.*was made from dataset sha256:.*other"):
        apply.apply(folder)
    assert not (dataset.root / "labels").exists()


@pytest.mark.parametrize(
    ("verdicts", "groups", "what"),
    [
        (
            [(0, 3, "merge")],
            [],
            r"pairs.parquet merges the identities \[0, 3\], groups.parquet does n",
        ),
        ([], [[0, 3]], r"groups.parquet groups the identities \[0, 3\], pairs.parquet does not"),
        ([(0, 3, "merge"), (3, 5, "merge")], [[0, 3]], r"the identities \[0, 3"),
        ([(0, 3, "merge")], [[0, 3], [3, 5]], "identity 3 stands in two groups"),
        ([(0, 3, "drop")], [], "expected merge, mask or keep, found 'drop'"),
        ([(0, 9, "mask")], [], "names an identity outside 0 to 5"),
        ([], [[0, 9]], "labels run from 0 to 9, expected 0 to 5"),
    ],
)
def test_contradictions_are_named(
    dataset: Dataset, tmp_path: Path, verdicts: list, groups: list, what: str
) -> None:
    folder = report(dataset, tmp_path / "conf", verdicts, groups)
    with pytest.raises(InputError, match=r"GL0501.*" + what):
        apply.apply(folder)
    assert not (dataset.root / "labels").exists()


def test_not_a_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"GL0501.*found no conflicts.json"):
        apply.apply(tmp_path)
    (tmp_path / "conflicts.json").write_text("{")
    with pytest.raises(InputError, match="GL0501"):
        apply.apply(tmp_path)
    (tmp_path / "conflicts.json").write_text('{"format": "glint/conflicts@1"}')
    with pytest.raises(InputError, match=r"GL0501.*lacks or spoils 'dataset'"):
        apply.apply(tmp_path)


def test_a_report_moved_with_its_dataset(dataset: Dataset, tmp_path: Path) -> None:
    report(dataset, tmp_path / "conf", VERDICTS, GROUPS)
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "conf").rename(there / "conf")
    dataset.root.rename(there / dataset.root.name)
    assert apply.apply(there / "conf").dataset == str(there / dataset.root.name)


def test_a_torn_table_is_an_error(dataset: Dataset, tmp_path: Path) -> None:
    folder = report(dataset, tmp_path / "conf", VERDICTS, GROUPS)
    path = folder / "pairs.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="GL0501"):
        apply.apply(folder)


def test_dropped_identities_stay_dropped() -> None:
    target = np.array([0, -1, 1, 2])
    got, masks = apply.relabel(
        target, np.array([[0, 1]]), [np.array([1, 2, 3])], np.array([[0, 1], [0, 3]])
    )
    assert got.tolist() == [0, -1, 1, 1]
    assert masks.tolist() == [[0, 1]]


@pytest.mark.parametrize("verdicts", [[], [(1, 2, "keep")]])
def test_nothing_to_apply_makes_no_version(
    dataset: Dataset, tmp_path: Path, verdicts: list
) -> None:
    folder = report(dataset, tmp_path / "conf", verdicts, [])
    got = apply.apply(folder)
    assert (got.applied, got.already, got.nothing, got.version) == (
        False,
        False,
        True,
        0,
    )
    assert not (dataset.root / "labels").exists()
    assert apply.apply(folder, dry_run=True).nothing


def test_equal_tables_are_not_one_report(dataset: Dataset, tmp_path: Path) -> None:
    """The same verdicts, found on version 0 and again on version 1."""
    one = report(dataset, tmp_path / "one", VERDICTS, GROUPS)
    apply.apply(one)
    two = report(dataset, tmp_path / "two", VERDICTS, GROUPS, version=1)
    got = apply.apply(two)
    assert (got.already, got.nothing, got.version) == (False, True, 1)
    with pytest.raises(InputError, match=r"GL0502.*not in force"):
        apply.undo(two)
    assert apply.stands(one, dataset)
    assert not apply.stands(two, dataset)
    assert apply.undo(one).version == 0


def test_undone_below_a_take_down(dataset: Dataset, tmp_path: Path) -> None:
    """The merges go, who was taken down stays so, and an earlier report is undone next."""
    one = report(dataset, tmp_path / "one", [(1, 4, "merge")], [[1, 4]])
    apply.apply(one)
    two = report(dataset, tmp_path / "two", VERDICTS, GROUPS, version=1)
    apply.apply(two)
    drop(dataset.root, ["label:2"], "asked")
    drop(dataset.root, ["label:5"], "asked")  # merged with 0 and 3: they are one person
    with pytest.raises(InputError, match="GL0502"):
        apply.undo(one)
    done = apply.undo(two)
    assert (done.undone, done.version_before, done.version) == (True, 4, 5)
    assert labels.current(dataset.root, 6).target.tolist() == [-1, 0, -1, -1, 0, -1]
    with pytest.raises(InputError, match="GL0502"):
        apply.undo(two)
    assert not apply.stands(two, dataset) and apply.stands(one, dataset)
    apply.undo(one)
    assert labels.current(dataset.root, 6).target.tolist() == [-1, 0, -1, -1, 1, -1]


def test_a_report_applied_before_histories_knew_all_of_it(dataset: Dataset, tmp_path: Path) -> None:
    folder = report(dataset, tmp_path / "conf", VERDICTS, GROUPS)
    tables_only = hashlib.sha256()
    for name in ("pairs.parquet", "groups.parquet"):
        tables_only.update((folder / name).read_bytes())
    why = {"stage": apply.STAGE, "report": "sha256:" + tables_only.hexdigest()}
    labels.apply(dataset.root, np.array([0, 1, 2, 0, 3, 0]), np.empty((0, 2), np.int64), why)
    assert apply.apply(folder).already
    assert apply.undo(folder).version == 0
