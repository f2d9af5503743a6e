"""Files written past the page cache hold the bytes that they should, or an error says why not."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest

from glint.shards import disk

SIZES = [512, 3 << 20, 0, 512 * 777, 9 << 20, 1 << 20, 512 * 3, 4 << 20, 5 << 20, 512]


def fill(sink: disk.Sink) -> bytes:
    """Take memory of all sizes, with more room than is taken; return what should be written."""
    draw = np.random.default_rng(0)
    parts = []
    for size in SIZES:
        parts.append(draw.bytes(size))
        sink.room(size + 7 * 512)[:size] = np.frombuffer(parts[-1], np.uint8)
        sink.take(size)
    return b"".join(parts)


@pytest.mark.parametrize("past", [True, False])
def test_what_is_taken_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, past: bool
) -> None:
    if not past:
        monkeypatch.setattr(disk, "_on_device", lambda file: False)
    with open(tmp_path / "a", "wb") as file:
        sink = disk.Sink(file)
        data = fill(sink)
        sink.close()
    assert (tmp_path / "a").read_bytes() == data
    assert (sink.size, sink.sha256) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("first", [1, 900, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 9 << 20])
def test_the_buffer_being_written_is_not_filled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """A first room of over 4 MiB once left one buffer under two names: every later piece raced."""
    monkeypatch.setattr(disk, "_on_device", lambda file: True)
    draw, hasher = np.random.default_rng(1), hashlib.sha256()
    with open(tmp_path / "a", "wb") as file:
        sink = disk.Sink(file)
        for size in [first] + [3 << 20] * 40:
            data = draw.bytes(size)
            hasher.update(data)
            sink.room(size)[:] = np.frombuffer(data, np.uint8)
            sink.take(size)
            assert sink._here is not sink._there
        sink.close()
    assert hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest() == hasher.hexdigest()


def test_memory_is_a_file_too() -> None:
    file = io.BytesIO()
    sink = disk.Sink(file)
    data = fill(sink)
    sink.close()
    assert file.getvalue() == data


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no O_DIRECT")
def test_a_device_that_wants_another_alignment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, refused = os.write, []

    def picky(fd: int, view: memoryview) -> int:
        if len(refused) < 1:
            refused.append(len(view))
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return write(fd, view[: 1 << 20])  # and writes less than it was given

    monkeypatch.setattr(disk, "_on_device", lambda file: True)
    monkeypatch.setattr(os, "write", picky)
    with open(tmp_path / "a", "wb") as file:
        sink = disk.Sink(file)
        data = fill(sink)
        sink.close()
    assert refused and refused[0] % disk.ALIGN == 0
    assert (tmp_path / "a").read_bytes() == data


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, view: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "_on_device", lambda file: True)
    with open(tmp_path / "a", "wb") as file:
        sink = disk.Sink(file)
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            fill(sink)
        sink.stop()
