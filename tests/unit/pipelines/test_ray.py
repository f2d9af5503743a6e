"""Stages on Ray: the bytes of one process, also where a worker is killed on the way."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.errors import InputError, LostError, Stopped
from glint.jobs import tasks
from glint.jobs.ray import Ray
from glint.pipelines import embed as embedding
from glint.pipelines.conflicts import share
from glint.pipelines.dataset import reshard
from glint.pipelines.dataset import shard as stage
from glint.pipelines.dataset.output import Output
from glint.pipelines.dataset.write import write_shard
from glint.search import pairs
from glint.shards import recordio, verify
from glint.shards.dataset import Dataset

pytest.importorskip("ray", reason="ray is not installed: pip install 'glint-faces[ray]'")


def files(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Start Ray with two workers, once for all tests here; they get what this file defines.

    The two GPUs are numbers for Ray to hand out: nothing here computes on one.
    """
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=128 << 20,
    )
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, jpeg: Callable[[int], bytes]) -> Path:
    """Give 400 records: 10 shards of 40."""
    folder = tmp_path_factory.mktemp("world")
    images = [jpeg(k) for k in range(20)]
    with recordio.Writer(folder / "train.rec", folder / "train.idx") as writer:
        for key in range(400):
            writer.write(key, recordio.pack(float(key // 8), key, 0, images[key % 20]))
    return folder


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    stage.shard(world, out, stage.Options(40))
    return out


@dataclass(frozen=True)
class Dies:
    """Work that kills its process: at one piece, so many times, before or after the work."""

    work: Callable[[Any, int], Any]
    marks: str
    piece: int
    times: int = 1
    late: bool = False

    def __call__(self, plan: Any, piece: int) -> Any:
        result = self.work(plan, piece) if self.late else None
        if piece == self.piece:
            for k in range(self.times):
                mark = Path(self.marks) / f"died-{k}"
                if not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
        return result if self.late else self.work(plan, piece)


@pytest.mark.parametrize("late", [False, pytest.param(True, marks=pytest.mark.faults)])
def test_shards_of_a_killed_worker(
    world: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    monkeypatch.setattr(Output, "work", Dies(write_shard, str(tmp_path), 4, late=late))
    stage.shard(world, tmp_path / "out", stage.Options(40), workers=2, engine=Ray())
    assert (tmp_path / "died-0").exists()
    assert files(tmp_path / "out") == files(whole)


@pytest.mark.faults
def test_a_shard_that_kills_every_worker(
    world: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Output, "work", Dies(write_shard, str(tmp_path), 9, times=9))
        with pytest.raises(LostError, match=r"GL0902 .*worker of piece 9 3 times"):
            stage.shard(world, tmp_path / "out", stage.Options(40), engine=Ray())
    assert stage.shard(world, tmp_path / "out", stage.Options(40)).resumed_shards > 5
    assert files(tmp_path / "out") == files(whole)


@pytest.mark.faults
def test_a_task_on_ray(world: Path, whole: Path, tmp_path: Path) -> None:
    for i in range(2):
        stage.shard(world, tmp_path / "out", stage.Options(40), task=tasks.Task(i, 2), engine=Ray())
    assert files(tmp_path / "out") == files(whole)


def test_reshard(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reshard.reshard(whole, tmp_path / "one", 64)
    monkeypatch.setattr(Output, "work", Dies(write_shard, str(tmp_path), 2))
    reshard.reshard(whole, tmp_path / "ray", 64, engine=Ray())
    assert (tmp_path / "died-0").exists()
    assert files(tmp_path / "ray") == files(tmp_path / "one")


def test_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x_ND = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x_ND)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    begun = pairs.begin(mapped, 0.6, tmp_path / "work", block=32)
    dies = Dies(pairs.search_piece, str(tmp_path), 2)
    monkeypatch.setattr(share.pairs, "search_piece", dies)
    share.search(begun, share.How(engine=Ray()), "auto", progress=lambda *_: None)
    assert (tmp_path / "died-0").exists() and begun.missing() == []
    got, want = (
        pairs.pairs_above(x_ND, 0.6, block=32, work=work) for work in (tmp_path / "work", None)
    )
    assert len(got.a) > 1000
    for name in ("a", "b", "cosine"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))


def test_errors_come_as_they_are(whole: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name, data in files(whole).items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    tar = source / "data" / "train-000003.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    with pytest.raises(InputError, match="GL0303") as caught:
        reshard.reshard(source, tmp_path / "out", 64, engine=Ray())
    assert "train-000003.tar" in caught.value.where


def test_a_signal_stops(
    world: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(done: int, total: int, note: str = "") -> None:
        if done == 80:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="GL0704"):
        stage.shard(world, tmp_path / "out", stage.Options(40), engine=Ray(), progress=progress)
    assert signal.getsignal(signal.SIGTERM) == before
    assert stage.shard(world, tmp_path / "out", stage.Options(40)).resumed_shards >= 2
    assert files(tmp_path / "out") == files(whole)


def test_verify(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    tar = out / "data" / "train-000003.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    here = verify.verify(out, deep=True)
    there = verify.verify(out, deep=True, pool=Ray().pool(2))
    assert not here.ok and here.problem_count >= 1
    assert replace(there, seconds=0) == replace(here, seconds=0)


class Means:
    """A recogniser: mean colours of image quarters, and it notes the process that opened it."""

    name, dim, size, digest = "means", 12, 112, "sha256:means"

    def embed(self, image_nHWC: np.ndarray) -> np.ndarray:
        x = image_nHWC.reshape(-1, 2, 56, 2, 56, 3).mean((2, 4)).reshape(len(image_nHWC), 12)
        return x.astype(np.float32) - 127.5


@dataclass(frozen=True)
class Opens:
    """Open the dataset and the model; leave a mark for each time; kill the first process."""

    dataset: str
    marks: str
    digest: str = "sha256:means"

    def __call__(self) -> tuple[Dataset, Means]:
        first = Path(self.marks) / "first"
        if not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        gpu = os.environ["CUDA_VISIBLE_DEVICES"]
        (Path(self.marks) / f"gpu-{gpu}-{os.getpid()}-{os.urandom(3).hex()}").touch()
        model = Means()
        model.digest = self.digest
        return Dataset(self.dataset), model


@pytest.mark.faults
def test_embeddings_by_actors(whole: Path, tmp_path: Path) -> None:
    data = Dataset(whole)
    embedding.embed(data, Means(), tmp_path / "one", block=32)
    marks = tmp_path / "marks"
    marks.mkdir()
    opener, ray = Opens(str(whole), str(marks)), Ray(actors=True)
    embedding.embed(data, Means(), tmp_path / "ray", block=32, engine=ray, opener=opener)
    assert files(tmp_path / "ray") == files(tmp_path / "one")
    opened = sorted(path.name.split("-")[1] for path in marks.glob("gpu-*"))
    assert (marks / "first").exists()
    assert opened == ["0", "1"]  # once for each worker, not for each of 13 blocks
    for i in range(2):
        task = tasks.Task(i, 2)
        embedding.embed(
            data, Means(), tmp_path / "both", block=32, engine=ray, opener=opener, task=task
        )
    assert files(tmp_path / "both") == files(tmp_path / "one")


@pytest.mark.faults
def test_a_worker_with_another_model(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "first").touch()
    opener = Opens(str(whole), str(tmp_path), "sha256:other")
    with pytest.raises(Exception, match=r"GL0006 .*sha256:other, expected .*sha256:means"):
        embedding.embed(
            Dataset(whole), Means(), tmp_path / "out", engine=Ray(actors=True), opener=opener
        )
