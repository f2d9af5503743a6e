"""Labels of the same number and size that say something else, and rows of another making."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.errors import InputError, MismatchError, UsageError
from glint.files import atomic
from glint.pipelines import cluster
from glint.pipelines.balance import Options, balance
from glint.search.online_clusters import ClusterRules
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.stream import sampling
from tests.faults.take_down_races import dataset as labelled
from tests.faults.take_down_races import report
from tests.unit.pipelines.test_cluster import crowd, written

NO_MASKS = np.empty((0, 2), np.int64)
Make = Callable[..., Dataset]


def merged(root: Path, a: int, b: int, classes: int) -> labels.LabelTable:
    """Put a first version in force in which two labels are one."""
    target_C = np.arange(classes)
    target_C[b] = a
    target_C[target_C > b] -= 1
    labels.apply(root, target_C, NO_MASKS, {})
    return labels.current(root, classes)


def test_a_sampling_table_of_other_labels_with_that_number(make_dataset: Make) -> None:
    one = make_dataset([3] * 6, images=False)
    other = Dataset(shutil.copytree(one.root, one.root.with_name("copy")))
    here, there = (merged(d.root, a, a + 1, 6) for d, a in ((one, 0), (other, 3)))
    assert (here.version, here.classes) == (there.version, there.classes) == (1, 5)
    assert here.digest != there.digest
    balance(one, Options())
    path = one.root / "sampling.parquet"
    count_C = np.bincount(here.sample_target(one.label), minlength=5)
    assert sampling.read(path, count_C, here, one.digest).left_out.size == 0
    with pytest.raises(
        InputError, match=r"GL0305.*made for label version 1, version 1 is in force"
    ):
        sampling.read(path, count_C, there, one.digest)


def test_a_report_on_other_labels_with_that_number(tmp_path: Path) -> None:
    from glint.pipelines.conflicts import apply

    root = labelled(tmp_path / "set", 12)
    now = merged(root, 0, 1, 12)
    found = report(tmp_path / "report", root, [(4, 5)], now.version)
    about = atomic.read_json(found / "conflicts.json")
    about["dataset"]["labels"] = now.digest
    atomic.write_json(found / "conflicts.json", about)
    labels.forget(root)
    merged(root, 7, 8, 12)
    with pytest.raises(
        MismatchError, match=r"GL0501.*label version 1, in force is 1, which says something else"
    ):
        apply.apply(found)
    labels.forget(root)
    merged(root, 0, 1, 12)
    assert apply.apply(found).applied


def test_clusters_do_not_go_on_over_rows_of_another_making(
    make_dataset: Make, tmp_path: Path
) -> None:
    dataset = make_dataset([1] * 300, images=False)
    face, _ = crowd(300)
    folder = written(tmp_path / "emb", dataset, face)
    cluster.run([folder], tmp_path / "ids", ClusterRules())
    shutil.rmtree(folder)
    written(folder, dataset, crowd(300, seed=1)[0])
    with pytest.raises(MismatchError, match="GL0006"):
        cluster.run([folder], tmp_path / "ids", ClusterRules())
    other = make_dataset([1] * 300, images=False, folder="other")
    mirrored = written(tmp_path / "emb2", other, face)
    about: dict[str, Any] = atomic.read_json(mirrored / "embeddings.json")
    atomic.write_json(mirrored / "embeddings.json", about | {"flip": True})
    with pytest.raises(UsageError, match="with and without --flip"):
        cluster.run([folder, mirrored], tmp_path / "both", ClusterRules())
