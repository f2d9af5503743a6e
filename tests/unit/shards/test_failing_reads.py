"""Disks that fail under a source: three tries, then an error that names the place."""

from __future__ import annotations

import errno
import io
import os
import resource
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from glint.errors import InputError, ResourceError
from glint.files import atomic, parquet, reads
from glint.pipelines import embed
from glint.pipelines.dataset import shard as stage
from glint.shards import embeddings, recordio
from glint.shards.dataset import Dataset
from glint.shards.image import Rejected
from glint.shards.sources import open_source

Jpeg = Callable[[int], bytes]


class Failing:
    """os.pread that fails so many times."""

    def __init__(self, times: int) -> None:
        self.times, self.real = times, os.pread

    def __call__(self, fd: int, count: int, at: int) -> bytes:
        self.times -= 1
        if self.times >= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.real(fd, count, at)


def rec(folder: Path, jpeg: Jpeg) -> Path:
    with recordio.Writer(folder / "a.rec", folder / "a.idx") as writer:
        for key in range(3):
            writer.write(key, recordio.pack(0.0, key, 0, jpeg(key)))
    return folder / "a.rec"


def tar(folder: Path, jpeg: Jpeg) -> Path:
    with tarfile.open(folder / "a.tar", "w") as archive:
        for key in range(3):
            info = tarfile.TarInfo(f"who/{key}.jpg")
            info.size = len(jpeg(key))
            archive.addfile(info, io.BytesIO(jpeg(key)))
    return folder / "a.tar"


@pytest.mark.parametrize("make", [rec, tar])
def test_a_read_is_tried_again_and_then_an_error(
    tmp_path: Path, jpeg: Jpeg, make: Callable[[Path, Jpeg], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(make(tmp_path, jpeg))
    assert source.read(1) == jpeg(1)
    monkeypatch.setattr(os, "pread", Failing(2))
    assert source.read(1) == jpeg(1)
    monkeypatch.setattr(os, "pread", Failing(10**9))
    with pytest.raises(ResourceError, match=r"GL0903 .* @ 0x[0-9a-f]+: .*Input/output error") as no:
        source.read(1)
    assert no.value.exit_code == 6


def test_no_shard_is_left_by_a_source_that_fails(
    tmp_path: Path, jpeg: Jpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    src, out = tar(tmp_path, jpeg), tmp_path / "out"
    whole = stage.shard(src, tmp_path / "whole").digest
    real = os.pread

    def failing(fd: int, count: int, at: int) -> bytes:
        if count not in (512, 1 << 20):  # the listing may read headers and what is behind them
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, count, at)

    with monkeypatch.context() as broken, pytest.raises(ResourceError, match="GL0903"):
        broken.setattr(os, "pread", failing)
        stage.shard(src, out)
    assert list((out / "data").iterdir()) == []
    assert stage.shard(src, out).digest == whole


def test_an_archive_that_went_away(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tar(tmp_path, jpeg)
    source = open_source(path)
    path.unlink()
    with pytest.raises(InputError, match="gone since it was listed"):
        source.read(0)


def test_an_archive_that_shrank(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tar(tmp_path, jpeg)
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(Rejected) as caught:
        source.read(2)
    assert caught.value.reason == "corrupt-record"


@pytest.fixture
def many(tmp_path: Path, jpeg: Jpeg) -> Path:
    """Give a dataset of 60 shards."""
    for i in range(60):
        path = tmp_path / "src" / f"id{i // 4}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i))
    stage.shard(tmp_path / "src", tmp_path / "set", stage.Options(1))
    return tmp_path / "set"


class Counter:
    """A recogniser: the mean of each quarter of an image."""

    name, dim, size, digest = "counter", 12, 112, "sha256:counter"

    def embed(self, image_nHWC: np.ndarray) -> np.ndarray:
        quarter = image_nHWC.reshape(-1, 2, 56, 2, 56, 3).mean((2, 4))
        return quarter.reshape(len(image_nHWC), 12).astype(np.float32)


def rows(out: Path) -> tuple[bytes, int]:
    about = atomic.read_json(out / "embeddings.json")
    return (out / "samples.npy").read_bytes(), about["failed"]


@pytest.mark.parametrize("how", ["away", "short"])
def test_a_shard_that_is_away_stops_embed_and_costs_no_row(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(reads, "_PAUSES", (0.01, 0.01), raising=False)
    embed.embed(Dataset(many), Counter(), tmp_path / "whole")
    assert rows(tmp_path / "whole")[1] == 0
    path = many / "data/train-000030.tar"
    data = path.read_bytes()
    path.unlink()
    if how == "short":
        path.write_bytes(data[:700])
    with pytest.raises(InputError, match=r"GL0302.*train-000030.tar"):
        embed.embed(Dataset(many), Counter(), tmp_path / "out")
    assert not (tmp_path / "out/embeddings.json").exists()
    path.write_bytes(data)
    embed.embed(Dataset(many), Counter(), tmp_path / "out")
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


def test_a_shard_that_comes_back_at_once_is_waited_for(many: Path, tmp_path: Path) -> None:
    path = many / "data/train-000030.tar"
    path.rename(tmp_path / "away")
    back = threading.Timer(0.15, (tmp_path / "away").rename, [path])
    back.start()
    embed.embed(Dataset(many), Counter(), tmp_path / "out")
    back.join()
    assert rows(tmp_path / "out")[1] == 0


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ESTALE])
def test_reads_that_go_on_failing_stop_embed(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(reads, "_PAUSES", (0.01, 0.01), raising=False)
    monkeypatch.setattr(reads, "pread", fail)
    with pytest.raises(InputError, match=r"GL0903.*cannot be read"):
        embed.embed(Dataset(many), Counter(), tmp_path / "out")
    assert not (tmp_path / "out/embeddings.json").exists()


def test_few_open_files_are_enough(many: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + 40, hard))
    try:
        data = Dataset(many)
        assert len({data.read(row) for row in range(data.n)}) == 60
        embed.embed(data, Counter(), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert rows(tmp_path / "out")[1] == 0


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO])
def test_a_table_that_cannot_be_opened_is_not_called_damaged(
    many: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object, **__: object) -> bytes:
        raise OSError(code, os.strerror(code))

    data = Dataset(many)
    monkeypatch.setattr(reads, "_PAUSES", (0.01,), raising=False)
    monkeypatch.setattr(os, "open", fail)
    for read in (
        lambda: data.label,
        lambda: parquet.read(many / "identities.parquet"),
        lambda: atomic.read_json(many / "manifest.json"),
        lambda: embeddings.checksum(many / "manifest.json"),
    ):
        with pytest.raises(ResourceError, match=r"GL0903 .*cannot be read: " + os.strerror(code)):
            read()
