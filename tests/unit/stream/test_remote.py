"""The training loader on a dataset in a store: the same batches, whatever the cache can hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from glint.errors import InputError, LostError, UsageError
from glint.files import store
from glint.files.store import Store
from glint.pipelines.dataset import shard as stage
from glint.shards import labels, recordio
from glint.shards.dataset import Dataset
from glint.stream.loader import Batch, Stream
from glint.stream.order import Order
from glint.stream.plan import Plan
from glint.stream.prefetch import Prefetcher


class Slow(MemoryFileSystem):
    """A store in memory that takes its time."""

    protocol = "slow"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    delay = 0.0
    asked: list[str] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("slow://", "memory://"))

    def cat_file(self, path, start=None, end=None, **kwargs):
        Slow.asked.append(path)
        time.sleep(Slow.delay)
        return super().cat_file(path, start, end, **kwargs)


fsspec.register_implementation("slow", Slow, clobber=True)
URL = "slow://bucket/ds"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, jpeg: Callable[[int], bytes]) -> Path:
    """240 images of 30 people in 12 shards of 20."""
    folder = tmp_path_factory.mktemp("world")
    with recordio.Writer(folder / "train.rec", folder / "train.idx") as writer:
        for key in range(240):
            writer.write(key, recordio.pack(float(key // 8), key, 0, jpeg(key)))
    out = tmp_path_factory.mktemp("local") / "out"
    stage.shard(folder, out, stage.Options(20))
    return out


@pytest.fixture(autouse=True)
def there(local: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    monkeypatch.setattr(store, "WAIT", 0.001)
    monkeypatch.setattr(store, "_ATOMIC", {*store._ATOMIC, "slow"})
    monkeypatch.setenv("GLINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GLINT_CACHE_SIZE", raising=False)
    Slow.store.clear()
    Slow.delay = 0.0
    made = Store(URL)
    for path in sorted(local.rglob("*")):
        if path.is_file():
            made.put(str(path.relative_to(local)), path)
    Slow.asked.clear()
    yield made
    Slow.delay = 0.0


def stream(where: str | Path, **how: object) -> Stream:
    data = Dataset(where)
    table = labels.current(data.root, data.classes)
    return Stream(data, labels=table, batch=16, seed=3, **how)  # type: ignore[arg-type]


def told(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    return batch.image.clone(), batch.label, batch.row.tolist()


def same(ours: Stream, plain: Stream, epochs: int = 1) -> None:
    seen = 0
    for epoch in range(epochs):
        for a, b in zip(ours.batches(epoch), plain.batches(epoch), strict=True):
            (image, label, row), (image_, label_, row_) = told(a), told(b)
            assert row == row_ and torch.equal(label, label_) and torch.equal(image, image_)
            seen += 1
    assert seen == epochs * (240 // 16)


def fetched() -> list[str]:
    return [path for path in Slow.asked if path.endswith(".tar")]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"threads": 2},
        {"workers": 2},
        {"order": Order(block=20)},
        {"order": Order(block=20), "workers": 2},
    ],
)
def test_batches_are_those_of_the_local_dataset(local: Path, how: dict[str, Any]) -> None:
    same(stream(URL, **how), stream(local, **how))
    if "workers" not in how:  # those are other processes, whose requests are not seen here
        assert sorted(fetched()) == sorted(set(fetched())) and len(fetched()) == 12


def bound(local: Path, monkeypatch: pytest.MonkeyPatch, shards: float) -> int:
    most = int(shards * (local / "data" / "train-000000.tar").stat().st_size)
    monkeypatch.setenv("GLINT_CACHE_SIZE", str(most))
    return most


def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks a window instead of 64."""
    assert Plan.__init__.__defaults__[-1] == 64
    monkeypatch.setattr(Plan.__init__, "__defaults__", (*Plan.__init__.__defaults__[:-1], 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_smaller_than_the_dataset(
    local: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    small_windows(monkeypatch)
    most = bound(local, monkeypatch, 6)
    ours, plain = (
        stream(URL, order=Order(block=20), workers=workers),
        stream(local, order=Order(block=20)),
    )
    assert ours.dataset.remote is not None and not ours.dataset.remote.fits
    same(ours, plain, 2)
    kept = sum(path.stat().st_size for path in (ours.dataset.root / "data").iterdir())
    assert 0 < kept <= most
    if not workers:
        assert len(fetched()) <= 2 * 12  # in an epoch each once


def test_blocks_smaller_than_shards_are_warned_of(
    local: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small_windows(monkeypatch)
    bound(local, monkeypatch, 9)
    with caplog.at_level("WARNING", "glint"):
        ours = stream(URL, order=Order(block=10))
    assert "an epoch fetches a shard up to 2 times; data.block=20 fetches most once" in caplog.text
    same(ours, stream(local, order=Order(block=10)))


def test_an_order_that_would_fetch_for_ever_is_refused(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound(local, monkeypatch, 6)
    with pytest.raises(UsageError, match=r"GL0002.*takes samples from anywhere"):
        stream(URL)
    bound(local, monkeypatch, 2)
    with pytest.raises(UsageError, match=r"GL0002.*two shuffle windows touch up to"):
        stream(URL, order=Order(block=20))


def test_shards_are_fetched_ahead_in_the_order_of_their_use(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glint.stream.prefetch.THREADS", 1)
    ours = stream(URL)
    rows = ours.plan.rows_at(0, np.arange(240))
    first_use = list(dict.fromkeys(ours.columns.shard_of(rows).tolist()))
    ahead = Prefetcher(
        ours.dataset, ours.columns, lambda m: ours.plan.rows_at(0, m), None, 0, ours.epoch_samples
    )
    deadline = time.monotonic() + 20
    while len(fetched()) < 12 and time.monotonic() < deadline:
        time.sleep(0.01)
    ahead.close()
    assert [int(path[-10:-4]) for path in fetched()] == first_use


def test_what_is_fetched_ahead_ends_with_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    Slow.delay = 0.05
    batches = stream(URL).batches(0)
    next(batches)
    batches.close()
    count = len(fetched())
    time.sleep(0.3)
    assert len(fetched()) == count


@pytest.mark.parametrize("how", [{}, {"threads": 2}, {"workers": 2}, {"order": Order(block=20)}])
def test_a_lost_shard_is_named_within_seconds(there: Store, how: dict[str, Any]) -> None:
    ours = stream(URL, **how)
    there.remove("data/train-000007.tar")
    begun = time.monotonic()
    with pytest.raises((InputError, LostError)) as error:
        for _ in ours.batches(0):
            pass
    assert error.value.code == "GL0302"
    assert error.value.where == f"{URL}/data/train-000007.tar"
    assert time.monotonic() - begun < 10
