"""The stage: an auditable table, a mask that the stream follows, refusals that say why."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from glint import schemas
from glint.errors import BusyError, GlintError, InputError, ResourceError, UsageError
from glint.files import parquet
from glint.pipelines import balance, coreset
from glint.shards import labels
from glint.shards.embeddings import Embeddings
from glint.stream.dual import Dual
from glint.stream.loader import Stream
from glint.stream.order import Order

COUNTS = [12, 1, 0, 9, 5]


@pytest.fixture
def dataset(make_dataset):
    return make_dataset(COUNTS)


def embeddings(dataset, tmp_path) -> Embeddings:
    """Half of the faces of each identity are near copies of its first."""
    rng = np.random.default_rng(0)
    face = rng.normal(size=(dataset.classes, 32))[dataset.label]
    face += 0.5 * rng.normal(size=face.shape)
    for c in range(dataset.classes):
        row = dataset.rows_of(c)
        face[row[: len(row) // 2]] = face[row[:1]]
    face /= np.linalg.norm(face, axis=1, keepdims=True)
    face[dataset.rows_of(3)[-1]] = np.nan
    return Embeddings(
        tmp_path, face.astype(np.float16), np.zeros((1, 32), np.float32), {"model": "sha256:m"}
    )


def run(dataset, tmp_path, out="core", **options):
    options = coreset.Options(**options) if options else coreset.Options(ratio=0.6)
    return coreset.run(dataset, embeddings(dataset, tmp_path), tmp_path / out, options)


def drawn(dataset, epochs=1, **options) -> list[int]:
    table = labels.current(dataset.root, dataset.classes)
    stream = Stream(dataset, labels=table, batch=4, drop_last=False, **options)
    rows = []
    for epoch in range(epochs):
        for batch in stream.batches(epoch):
            assert (batch.label.numpy() == table.target[dataset.label[batch.row]]).all()
            rows += batch.row[batch.position < stream.epoch_samples].tolist()
    return sorted(rows)


def test_the_table_says_what_became_of_every_image(dataset, tmp_path) -> None:
    got = run(dataset, tmp_path)
    assert (got.kept, got.images, got.no_embedding) == (round(0.6 * 27), 27, 1)
    table = parquet.read(tmp_path / "core/coreset.parquet", schemas.CORESET)
    assert table["key"].to_pylist() == list(dataset.key)
    assert table["target"].to_pylist() == dataset.label.tolist()
    kept = np.array(table["kept"].to_pylist())
    assert kept.sum() == got.kept
    for row, killer in enumerate(table["killer"].to_pylist()):
        if table["reason"][row].as_py() == "similar":
            assert not kept[row] and kept[killer] and dataset.label[killer] == dataset.label[row]
            assert table["similarity"][row].as_py() > got.threshold
    about = json.loads((tmp_path / "core/coreset.json").read_text())
    assert about["dataset"] == dataset.digest and about["options"]["ratio"] == 0.6
    assert sum(one["kept"] for one in about["by_size"]) == got.kept


@pytest.mark.parametrize("block, workers", [(None, 0), (4, 0), (None, 2)])
def test_training_draws_what_was_kept_and_nothing_else(dataset, tmp_path, block, workers) -> None:
    got = run(dataset, tmp_path)
    kept = np.flatnonzero(pq.read_table(tmp_path / "core/coreset.parquet")["kept"].to_numpy())
    assert drawn(dataset, order=Order(got.sampling, block), workers=workers) == kept.tolist()
    assert len(drawn(dataset)) == 27  # no shard and no table of the dataset changed


def test_balance_counts_only_what_was_kept(dataset, tmp_path) -> None:
    run(dataset, tmp_path)
    got = balance.balance(
        dataset, balance.Options(cap=3), tmp_path / "capped.parquet", tmp_path / "core"
    )
    kept = np.flatnonzero(pq.read_table(tmp_path / "core/coreset.parquet")["kept"].to_numpy())
    assert got.images == len(kept)
    rows = drawn(dataset, epochs=6, order=Order(sampling=tmp_path / "capped.parquet"))
    assert set(rows) == set(kept.tolist())
    assert (np.bincount(dataset.label[rows], minlength=5) <= 18).all()


def test_pairs_follow_the_mask_too(dataset, tmp_path) -> None:
    got = run(dataset, tmp_path)
    table = labels.current(dataset.root, dataset.classes)
    both = Dual(dataset, labels=table, batch=4, order=Order(sampling=got.sampling))
    kept = set(np.flatnonzero(pq.read_table(tmp_path / "core/coreset.parquet")["kept"]).tolist())
    for epoch in range(4):
        for single, pairs in both.batches(both.start(epoch)):
            assert set(single.row.tolist()) | set(pairs.row.tolist()) <= kept


def test_merged_and_dropped_identities(dataset, tmp_path) -> None:
    labels.apply(dataset.root, np.array([0, 0, 1, -1, 0]), np.empty((0, 2), np.int64), {})
    got = run(dataset, tmp_path)
    assert (got.images, got.kept, got.identities) == (18, round(0.6 * 18), 1)
    kept = np.flatnonzero(pq.read_table(tmp_path / "core/coreset.parquet")["kept"].to_numpy())
    assert drawn(dataset, order=Order(sampling=got.sampling)) == kept.tolist()
    labels.undo(dataset.root)
    with pytest.raises(InputError, match=r"GL0305.*label version 1, version 0 is in force"):
        drawn(dataset, order=Order(sampling=got.sampling))
    with pytest.raises(GlintError, match=r"GL0305.*label version 1, expected 0") as caught:
        balance.balance(dataset, balance.Options(), tmp_path / "x", tmp_path / "core")
    assert caught.value.exit_code == 7


def test_a_dry_run_writes_nothing_and_a_second_run_the_same(dataset, tmp_path) -> None:
    emb, out = embeddings(dataset, tmp_path), tmp_path / "core"
    told = coreset.run(dataset, emb, out, coreset.Options(threshold=0.7), dry_run=True)
    assert not out.exists()
    assert coreset.run(dataset, emb, out, coreset.Options(threshold=0.7)).kept == told.kept
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    coreset.run(dataset, emb, out, coreset.Options(threshold=0.7))
    assert before == {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert set(before) == {"coreset.parquet", "coreset.json", "sampling.parquet"}


def test_other_folders_are_left_alone(dataset, tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep me")
    with pytest.raises(BusyError, match="GL0004"):
        run(dataset, tmp_path, "mine")
    with pytest.raises(UsageError, match=r"GL0001.*no coreset\.json"):
        balance.balance(dataset, balance.Options(), tmp_path / "x", tmp_path / "mine")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "--keep-ratio and --threshold: expected one of them"),
        ({"ratio": 0.5, "threshold": 0.5}, "--keep-ratio and --threshold: expected one of them"),
        ({"ratio": 0.0}, "--keep-ratio: expected above 0, at most 1, found 0.0"),
        ({"threshold": float("nan")}, "--threshold: expected from -1 to 1, found nan"),
        ({"ratio": 0.5, "least": 0}, "--min: expected at least 1, found 0"),
        ({"ratio": 0.5, "degrees": 0.0}, "--outliers: expected degrees up to 180, found 0.0"),
    ],
)
def test_bad_options(options, what) -> None:
    with pytest.raises(UsageError, match=what):
        coreset.Options(**options)


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([[0, 999], [], [], [], []], "rows 0 to 999, there are 27"),
        ([[0, 0], [], [], [], []], "names a row twice"),
        ([[0, 20], [], [], [], []], "rows of other identities"),
        ([[0, None], [], [], [], []], "left_out has empty cells"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(dataset, tmp_path, rows, what) -> None:
    import pyarrow as pa

    balance.balance(dataset, balance.Options(), tmp_path / "s.parquet")
    table = pq.read_table(tmp_path / "s.parquet")
    table = table.set_column(1, "count", pa.array([10, 1, 0, 9, 5]))
    table = table.append_column(schemas.LEFT_OUT, pa.array(rows, schemas.LEFT_OUT.type))
    parquet.write(tmp_path / "bad.parquet", table)
    with pytest.raises(InputError, match=f"GL0305.*{what}"):
        drawn(dataset, order=Order(sampling=tmp_path / "bad.parquet"))


def test_the_mask_is_part_of_what_a_run_may_not_change(dataset, tmp_path) -> None:
    table = labels.current(dataset.root, dataset.classes)
    digests = set()
    for ratio in (0.5, 0.6):
        got = run(dataset, tmp_path, f"core{ratio}", ratio=ratio)
        stream = Stream(dataset, labels=table, batch=4, order=Order(sampling=got.sampling))
        digests.add(stream.sampling_digest)
        assert len(dataclasses.asdict(stream.coverage(1))) and stream.coverage(1).seen == 1.0
    assert len(digests) == 2


def test_the_json_is_written_last(dataset, tmp_path, monkeypatch) -> None:
    """A run that is stopped before it is no coreset."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(balance, "balance", stop)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, tmp_path)
    assert not (tmp_path / "core/coreset.json").exists()


def test_a_plan_that_cannot_be_removed_is_told(dataset, tmp_path, monkeypatch) -> None:
    real = Path.unlink

    def unlink(path: Path, **more: bool) -> None:
        if path.name == "plan.json":
            raise OSError(5, "Input/output error", str(path))
        real(path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(ResourceError, match=r"GL0007.*plan.json: the disk failed"):
            run(dataset, tmp_path)
    assert run(dataset, tmp_path).kept == 16
