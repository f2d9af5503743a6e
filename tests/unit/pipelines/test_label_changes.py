"""Commands that change labels while another does, and clusters on top of labels in force."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from glint import schemas
from glint.errors import BusyError, InputError, MismatchError
from glint.files import atomic, parquet, seal
from glint.jobs.workspace import sha256
from glint.pipelines import balance, cluster
from glint.pipelines.conflicts import apply
from glint.pipelines.dataset import drop
from glint.shards import labels, tombstones
from glint.shards.dataset import Dataset
from tests.faults.take_down_races import dataset, identities, report

PEOPLE = 40


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return dataset(tmp_path / "set", PEOPLE)


def target(root: Path) -> list[int]:
    return [int(one) for one in labels.current(root, PEOPLE).target]


@pytest.mark.parametrize("command", ["apply", "undo", "cluster", "cluster undo"])
def test_a_drop_in_the_middle_of_another_command(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    found = report(tmp_path / "report", root, [(1, 2), (5, 6)], 0)
    ids = identities(tmp_path / "ids", PEOPLE, 3)
    if command == "undo":
        apply.apply(found)
    if command == "cluster undo":
        cluster.apply(ids, root, least=1)
    work: Callable[[], Any] = {
        "apply": lambda: apply.apply(found),
        "undo": lambda: apply.undo(found),
        "cluster": lambda: cluster.apply(ids, root, least=1),
        "cluster undo": lambda: cluster.undo(ids, root),
    }[command]
    name = "undo" if "undo" in command else "changing"
    real = getattr(labels, name)
    before = labels.history(root)

    def late(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.undo()
        drop.drop(root, ["label:6"], "now")  # after it has read the labels, before it changes them
        return real(*args, **kwargs)

    monkeypatch.setattr(labels, name, late)
    with pytest.raises(BusyError, match=r"GL0309 labels-changed") as caught:
        work()
    assert caught.value.hint == "run the command again"
    assert target(root)[6] == -1
    assert [line["op"] for line in labels.history(root)] == [*(x["op"] for x in before), "apply"]


def test_a_drop_waits_and_takes_whom_the_other_command_merged(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = report(tmp_path / "report", root, [(1, 2)], 0)
    real = drop._choose

    def late(*args: Any) -> Any:
        chosen = real(*args)
        if not labels.history(root):
            apply.apply(found)  # after the first look
        return chosen

    monkeypatch.setattr(drop, "_choose", late)
    told = drop.drop(root, ["label:1"], "now")
    assert (told.identities, told.merged_with, told.version_before) == ([1, 2], [2], 1)
    assert target(root)[1:3] == [-1, -1]
    monkeypatch.setattr(drop, "PATIENCE", 0.2)
    with labels.changing(root), pytest.raises(BusyError, match="GL0005"):
        drop.drop(root, ["label:9"], "now")


def test_a_report_undone_after_a_drop_leaves_the_drop(root: Path, tmp_path: Path) -> None:
    apply.apply(report(tmp_path / "report", root, [(1, 2)], 0))
    drop.drop(root, ["label:6"], "now")
    again = report(tmp_path / "again", root, [(3, 4)], 2)
    apply.apply(again)
    with pytest.raises(InputError, match=r"GL0502.*not in force"):
        apply.undo(tmp_path / "report")
    assert apply.undo(again).version == 2
    assert apply.undo(tmp_path / "report").version == 4
    assert target(root)[6] == -1 and target(root)[1] != target(root)[2]


def test_a_change_that_stops_at_any_write_is_completed_by_the_same_command(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind its line of the history, and before, when files of no version lie there."""
    found, write = report(tmp_path / "report", root, [(1, 2)], 0), atomic.replacing
    before = shutil.copytree(root, tmp_path / "before")
    left = 0

    @contextmanager
    def stopping(*args: Any, **more: Any) -> Iterator[Any]:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        with write(*args, **more) as file:
            yield file

    monkeypatch.setattr(atomic, "replacing", stopping)
    whole = list[dict[str, bytes]]()
    for stop in range(6):  # 0: none; the version and its masks, the history, what follows it
        shutil.rmtree(root)
        shutil.copytree(before, root)
        for number, work in enumerate((lambda: apply.apply(found), lambda: apply.undo(found))):
            left = stop
            with suppress(KeyboardInterrupt):
                work()
            with suppress(InputError):  # undone already
                work()
            files = {p.name: p.read_bytes() for p in root.rglob("*") if p.is_file()}
            whole += [files] if not stop else []
            assert files == whole[number], (stop, number)


def test_labels_that_hold_whom_drop_took_are_refused(root: Path, tmp_path: Path) -> None:
    apply.apply(report(tmp_path / "report", root, [(1, 2)], 0))
    drop.drop(root, ["label:6"], "now")
    atomic.write_json(root / "labels/current.json", {"version": 1, "file": "v0001.parquet"})
    assert labels.current(root, PEOPLE).version == 2  # as after a crash: the history's last
    line = {"op": "drop", "labels": [6, 9], "keys": []}  # a take-down of which no version knows
    seal.append(root / tombstones.FILE, line, "GL0304")
    data = Dataset(root)
    for work in (
        lambda: balance.balance(data, balance.Options()),
        lambda: labels.current(root, PEOPLE),  # as every command that reads labels begins
        lambda: labels.redo(root) and labels.undo(root),
    ):
        with pytest.raises((MismatchError, InputError), match=r"GL0308.*identity 9|GL0502"):
            work()
    again = report(tmp_path / "again", root, [(3, 4)], 2)
    assert apply.apply(again).applied  # what makes a version leaves her out
    assert target(root)[6] == -1


def clusters(folder: Path, identity: list[int]) -> Path:
    identities(folder, len(identity), 0)
    table = parquet.read(folder / "faces.parquet", schemas.FACES)
    place = table.schema.get_field_index("identity")
    column = pa.array(identity, table.schema.field(place).type)
    parquet.write(folder / "faces.parquet", table.set_column(place, table.schema[place], column))
    about = atomic.read_json(folder / "identities.json")
    about["files"]["faces.parquet"] = sha256(folder / "faces.parquet")
    atomic.write_json(folder / "identities.json", about)
    return folder


def test_clusters_on_top_of_labels_in_force(tmp_path: Path) -> None:
    root = dataset(tmp_path / "set", 12)
    first = clusters(tmp_path / "a", [0, 0, 0, 1, 1, 1, 2, 2, 3, 4, -1, -1])

    def now() -> list[int]:
        return [int(one) for one in labels.current(root, 12).target]

    assert cluster.apply(first, root).classes == 3
    assert now() == [0, 0, 0, 1, 1, 1, 2, 2, -1, -1, -1, -1]
    apply.apply(report(tmp_path / "report", root, [(0, 6)], 1))  # clusters 0 and 2 are one person
    mask = np.array([[0, 1]])
    row, label = np.array([2, 8]), np.array([3, 4])
    labels.apply(root, np.array(now()), mask, {"stage": "dedup-conflicts"}, row=row, label=label)
    drop.drop(root, ["label:3"], "asked to")  # label 3 and who is one with it, and image 2
    assert now() == [0, 0, 0, -1, -1, -1, 0, 0, -1, -1, -1, -1]
    table = labels.current(root, 12)
    assert table.sample_target(np.arange(12)).tolist() == [
        0, 0, -1, -1, -1, -1, 0, 0, -1, -1, -1, -1,
    ]  # fmt: skip
    # New clusters: 4 with 0, 7 away from 6, 8 with 9, 10 with 11.
    second = clusters(tmp_path / "b", [0, 0, 1, 2, 0, 3, 4, 5, 6, 6, 7, 7])
    cluster.apply(second, root, least=1)
    table = labels.current(root, 12)
    target = table.target.tolist()
    assert target[3:6] == [-1, -1, -1]  # taken down, whatever the clusters say
    assert target[0] == target[1] == target[6] >= 0  # the reviewer joined 0 and 6
    assert target[7] >= 0 and target[7] != target[6]  # which the first clusters had joined
    assert target[10] == target[11] >= 0
    assert target[9] >= 0
    assert table.sample_target(np.arange(12))[[2, 8]].tolist() == [-1, -1]
    assert cluster.apply(second, root, least=1).already
    assert cluster.undo(second, root).version == 4
    assert now() == [0, 0, 0, -1, -1, -1, 0, 0, -1, -1, -1, -1]


def test_clusters_keep_masks(tmp_path: Path) -> None:
    root = dataset(tmp_path / "set", 6)
    labels.apply(root, np.arange(6), np.array([[0, 3], [1, 4]]), {"stage": "dedup-conflicts"})
    cluster.apply(clusters(tmp_path / "a", [0, 0, 1, 2, 3, 4]), root, least=1)
    table = labels.current(root, 6)
    assert table.target.tolist() == [0, 0, 1, 2, 3, 4]
    assert table.masks.tolist() == [[0, 2], [0, 3]]
