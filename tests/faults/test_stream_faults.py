"""What may go wrong under a stream becomes a named error within seconds, never a hang."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import xxhash

from glint import schemas
from glint.errors import GlintError, InputError, LostError
from glint.shards.dataset import Dataset
from glint.shards.labels import LabelTable
from glint.stream.class_rows import ClassRows
from glint.stream.draws import Draws
from glint.stream.identities import IdentityPlan
from glint.stream.loader import Batch, Stream
from glint.stream.order import Order
from glint.stream.plan import Plan

pytestmark = pytest.mark.faults

SECONDS = 5
SHARD = 40  # samples of a shard
HOW = [
    {},
    {"workers": 2},
    {"threads": 2},
    {"order": Order(block=4)},
    {"order": Order(block=4), "workers": 2},
]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """400 images in 10 shards."""
    root = tmp_path / "dataset"
    (root / "data").mkdir(parents=True)
    rows: dict[str, list[object]] = {name: [] for name in schemas.SAMPLES.names}
    pixels = np.random.default_rng(0).integers(0, 255, (400, 14, 14, 3), dtype=np.uint8)
    for s in range(10):
        with tarfile.open(
            root / "data" / f"train-{s:06d}.tar", "w", format=tarfile.USTAR_FORMAT
        ) as tar:
            for row in range(s * SHARD, (s + 1) * SHARD):
                image = np.ascontiguousarray(pixels[row].repeat(8, 0).repeat(8, 1))
                data = simplejpeg.encode_jpeg(image)
                info = tarfile.TarInfo(f"{row:09d}.jpg")
                info.size = len(data)
                values = (
                    f"{row:09d}",
                    row % 20,
                    str(row % 20),
                    s,
                    tar.offset + 512,
                    len(data),
                    xxhash.xxh3_128_digest(data),
                    str(row),
                    112,
                    112,
                )
                tar.addfile(info, io.BytesIO(data))
                for column, value in zip(rows.values(), values):
                    column.append(value)
    pq.write_table(pa.table(rows, schema=schemas.SAMPLES), root / "samples.parquet")
    (root / "manifest.json").write_text(
        json.dumps(
            {
                "format": "glint/dataset@1",
                "written": 400,
                "identities": 20,
                "digest": "sha256:faults",
                "shards": [{"name": f"train-{s:06d}.tar"} for s in range(10)],
            }
        )
    )
    return Dataset(root)


def stream(dataset: Dataset, **options: object) -> Stream:
    labels = LabelTable(0, np.arange(20), 20, np.empty((0, 2), np.int64))
    return Stream(dataset, labels=labels, batch=4, seed=1, **options)  # type: ignore[arg-type]


def error_after(made: Stream, mishap: Callable[[], object], steps: int = 3) -> GlintError:
    """Take some steps, let the mishap happen, and give the error, which must come in seconds."""
    batches = made.batches(0)
    for _ in range(steps):
        next(batches)
    mishap()
    began = time.monotonic()
    with pytest.raises(GlintError) as caught:
        list(batches)
    assert time.monotonic() - began < SECONDS
    return caught.value


def children() -> set[int]:
    me = os.getpid()
    return {int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()}


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("options", [{}, {"order": Order(block=4)}])
def test_a_worker_killed(dataset: Dataset, number: int, options: dict[str, Any]) -> None:
    before = children()
    error = error_after(
        stream(dataset, workers=2, **options),
        lambda: os.kill(sorted(children() - before)[number], signal.SIGKILL),
    )
    assert isinstance(error, LostError) and error.code == "GL0902"
    assert "killed by SIGKILL" in error.what and "step" in error.where
    assert not children() - before


@pytest.mark.parametrize("options", HOW)
def test_a_shard_truncated(dataset: Dataset, options: dict[str, Any]) -> None:
    def cut() -> None:
        for shard in (3, 4, 5, 6, 7):
            os.truncate(dataset.shard_path(shard), 30_000)

    error = error_after(stream(dataset, **options), cut)
    assert isinstance(error, InputError) and error.code == "GL0303"
    assert error.where.startswith("data/train-00000") and "key 0000" in error.where


def spoil(dataset: Dataset, row: int) -> None:
    at = int(dataset.offset[row]) + int(dataset.size[row]) // 2
    with dataset.shard_path(int(dataset.shard[row])).open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("options", HOW)
def test_a_sample_flipped(dataset: Dataset, options: dict[str, Any]) -> None:
    made = stream(dataset, **options)
    last = int(list(stream(dataset, order=options.get("order", Order())).batches(0))[-1].row[-1])
    spoil(dataset, last)
    error = error_after(made, lambda: None)
    assert isinstance(error, InputError) and error.code == "GL0303"
    assert f"key {last:09d}" in error.where and "checksum" in error.what


@pytest.mark.parametrize("options", HOW)
def test_shards_rewritten_in_place(dataset: Dataset, options: dict[str, Any]) -> None:
    """The same names, other contents: what the index says no longer holds."""

    def rewrite() -> None:
        for shard in range(2, 9):
            data = dataset.shard_path(shard - 1).read_bytes()
            dataset.shard_path(shard).write_bytes(data)

    error = error_after(stream(dataset, **options), rewrite)
    assert isinstance(error, InputError) and error.code == "GL0303"


def test_shards_removed(dataset: Dataset) -> None:
    error = error_after(stream(dataset), lambda: shutil.rmtree(dataset.root / "data"), steps=1)
    assert error.code == "GL0302" and "cannot be opened" in error.what


def test_shards_replaced(dataset: Dataset) -> None:
    """An open shard goes on giving the old bytes; a new run finds that they do not fit."""
    made = stream(dataset)
    whole = list(stream(dataset).batches(0))
    batches = made.batches(0)
    seen: list[Batch] = [next(batches) for _ in range(60)]  # every shard is open by now
    for shard in range(10):
        other = dataset.root / "other"
        shutil.copy(dataset.shard_path((shard + 1) % 10), other)
        other.replace(dataset.shard_path(shard))
    seen += list(batches)
    assert all((a.image == b.image).all() for a, b in zip(seen, whole, strict=True))
    with pytest.raises(InputError, match="GL0303"):
        list(stream(dataset).batches(0))


@pytest.mark.parametrize("kind", ["plain", "blocks", "table", "identities"])
def test_seek_in_an_epoch_of_42_million(kind: str) -> None:
    """At most 50 ms and 1 MiB of state beside what the dataset's index and table need."""
    n, classes = 42_474_557, 2_000
    first = np.linspace(0, n, classes + 1).astype(np.int64)
    members = ClassRows(np.arange(n, dtype=np.uint32), first, np.arange(classes), classes)
    tracemalloc.start()
    try:
        plan: Plan | IdentityPlan
        if kind == "identities":
            plan = IdentityPlan(members, 2, 1, endless=True)
        else:
            draws = Draws(members, np.full(classes, n / classes), 1) if kind == "table" else None
            plan = Plan(n, 1, draws, 64 if kind == "blocks" else None)
        plan.rows_at(0, np.arange(4))
        took = []
        for i in range(9):
            at = np.arange(128) + (i * 4_719_393) % (n - 128)
            began = time.perf_counter()
            row = plan.rows_at(0, at)
            took.append(time.perf_counter() - began)
            assert len(row) == 128 and 0 <= row.min() <= row.max() < n
        assert sorted(took)[4] < 0.05
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 1 << 20
