"""Disks that fail under a source: three tries, then an error that names the place."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from glint.errors import InputError, ResourceError
from glint.pipelines.dataset import shard as stage
from glint.shards import recordio
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
