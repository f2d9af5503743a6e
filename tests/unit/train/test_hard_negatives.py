"""The table of nearest classes from a conflict report, and a run that trains with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from glint import schemas
from glint.dist.world import World
from glint.errors import InputError, MismatchError
from glint.files import parquet
from glint.pipelines.dataset import shard
from glint.recipes.load import load
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.synth import world as synth
from glint.train import hard_negatives, loop
from glint.train.build import build
from glint.train.recipe import Recipe

ROOT = Path(__file__).parents[3]


def test_the_table_is_sorted_cut_and_symmetric() -> None:
    a, b = np.array([0, 2, 0, 4, 0, 3, 1]), np.array([1, 0, 3, 0, 1, 3, -1])
    cosine = np.array([0.5, 0.7, 0.6, 0.9, 0.8, 1.0, 1.0])  # (0, 1) stands twice; (3, 3) is none
    table = hard_negatives.table(a, b, cosine, classes=6, most=3)
    assert table.dtype == np.int32
    none = [-1, -1, -1]
    assert table.tolist() == [
        [4, 1, 2], [0, -1, -1], [0, -1, -1], [0, -1, -1], [0, -1, -1], none,
    ]  # fmt: skip
    assert hard_negatives.table(a[:0], b[:0], cosine[:0], classes=6).shape == (6, 0)


def test_against_a_dense_sort() -> None:
    draw = np.random.default_rng(0)
    cosine_CC = draw.random((40, 40))
    a, b = np.triu_indices(40, 1)
    some = draw.random(len(a)) < 0.3
    table = hard_negatives.table(a[some], b[some], cosine_CC[a, b][some], classes=40, most=5)
    dense_CC = np.full((40, 40), -np.inf)
    dense_CC[a[some], b[some]] = dense_CC[b[some], a[some]] = cosine_CC[a, b][some]
    order_CC = np.argsort(-dense_CC, axis=1)[:, :5]
    truth = np.where(np.take_along_axis(dense_CC, order_CC, 1) > -np.inf, order_CC, -1)
    assert np.array_equal(table, truth)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("near")
    world = synth.World(identities=30, images=3, conflicts=0, lookalikes=0, damaged=0, pairs=0)
    synth.make(world, root / "world")
    shard.shard(root / "world", root / "data", shard.Options(100))
    return Dataset(root / "data")


def report(folder: Path, dataset: Dataset, verdicts: list[str], digest: str = "") -> Path:
    """Write what of a report is read: a ring of the labels, with these verdicts."""
    folder.mkdir()
    about = {"dataset": {"digest": digest or dataset.digest}}
    (folder / "conflicts.json").write_text(json.dumps(about))
    n = len(verdicts)
    columns: dict[str, Any] = {name: np.zeros(n) for name in schemas.PAIRS.names}
    columns |= {"a": np.arange(n), "b": np.arange(n) + 1, "verdict": verdicts, "reason": [""] * n}
    columns |= {"n_a": np.ones(n, np.int64), "n_b": np.ones(n, np.int64)}
    columns["cosine"] = np.linspace(0.5, 0.6, n)
    parquet.write(folder / "pairs.parquet", pa.table(columns, schema=schemas.PAIRS))
    return folder


def test_only_pairs_of_two_people_are_read(data: Dataset, tmp_path: Path) -> None:
    folder = report(tmp_path / "r", data, ["keep", "merge", "mask", "keep", "keep"])
    table, digest = hard_negatives.read(folder, data, labels.current(data.root, data.classes))
    assert table[:7].tolist() == [[1, -1], [0, -1], [-1, -1], [4, -1], [5, 3], [4, -1], [-1, -1]]
    assert digest.startswith("sha256:") and table.shape == (30, 2)
    target = np.arange(30)
    target[5], target[6:] = 0, np.arange(5, 29)  # 5 merged into 0
    merged = labels.LabelTable(1, target, 29, np.empty((0, 2), np.int64))
    table, other = hard_negatives.read(folder, data, merged)
    assert table[0].tolist() == [4, 1] and table[4].tolist() == [0, 3] and len(table) == 29
    assert other != digest
    strange = report(tmp_path / "s", data, ["keep"], "sha256:0")
    with pytest.raises(MismatchError, match=r"GL0501 .*was made from dataset sha256:0, found sha"):
        hard_negatives.read(strange, data, merged)
    with pytest.raises(InputError, match="GL0501"):
        hard_negatives.read(tmp_path, data, merged)
    many = report(tmp_path / "t", data, ["keep"] * 40)
    with pytest.raises(InputError, match=r"GL0501 .*expected labels from 0 to 29"):
        hard_negatives.read(many, data, merged)


def test_pairs_that_may_be_one_person_are_no_hard_negatives(data: Dataset, tmp_path: Path) -> None:
    folder = report(tmp_path / "r", data, ["keep"] * 6)
    pairs = parquet.read(folder / "pairs.parquet", schemas.PAIRS).to_pydict()
    pairs["probability"] = [0.0, hard_negatives.LIKELY, 0.009, 0.04, float("nan"), float("nan")]
    pairs["score"] = [2.0, 0.0, 0.0, 0.0, hard_negatives.ALIKE, 0.69]
    parquet.write(folder / "pairs.parquet", pa.table(pairs, schema=schemas.PAIRS))
    table, _ = hard_negatives.read(folder, data, labels.current(data.root, data.classes))
    assert sorted({(a, b) for a, row in enumerate(table.tolist()) for b in row if a < b}) == [
        (0, 1), (2, 3), (5, 6),
    ]  # fmt: skip


def test_a_run_trains_with_it_and_goes_on_with_the_same_table_only(
    data: Dataset, tmp_path: Path
) -> None:
    folder = report(tmp_path / "r", data, ["keep"] * 29)

    def start(out: str, steps: int, path: Path) -> Any:
        settings = [
            f"data.path={data.root}", "data.batch=4", "backbone.embedding=16",
            "backbone.options.widths=[4, 4, 8, 8]", "head.rate=0.6", "head.hard=0.5",
            f"head.near={path}", f"schedule.max_steps={steps}", "schedule.warmup=0",
            "run.save_every=1", "run.log_every=1", "run.tensorboard=false",
        ]  # fmt: skip
        recipe = load(ROOT / "train" / "synth_tiny.toml", Recipe, settings)
        return build(recipe, World(), tmp_path / out)

    run = start("whole", 2, folder)
    loop.train(run)
    assert run.head.neighbours is not None and run.head.neighbours.near_CK[7].tolist() == [8, 6]
    loop.train(start("parts", 1, folder))
    again = start("parts", 2, folder.rename(tmp_path / "elsewhere"))  # the place may change
    loop.train(again)
    assert torch.equal(run.head.weight, again.head.weight)
    other = report(tmp_path / "other", data, ["keep"] * 28)
    with pytest.raises(MismatchError, match="GL0702"):
        loop.train(start("parts", 3, other))
