"""Arrays on a disk that is full: an error, where numpy has none."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from glint.errors import ResourceError
from glint.files import seal, strings
from glint.jobs import tasks
from glint.pipelines.dataset.output import sweep
from glint.pipelines.dataset.plan import Options, Plan


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("n", [10, 100_000])
def test_an_array_that_finds_no_room(n: int) -> None:
    with pytest.raises(OSError, match="No space") as caught, open("/dev/full", "wb") as file:
        strings.write_array(file, np.zeros(n))
        file.flush()
    assert caught.value.errno == errno.ENOSPC


def test_the_bytes_are_numpy_s(tmp_path: Path) -> None:
    array = np.arange(12).reshape(3, 4)
    np.save(tmp_path / "a.npy", array)
    strings.save_array(tmp_path, "b", array)
    assert (tmp_path / "b.npy").read_bytes() == (tmp_path / "a.npy").read_bytes()


def test_a_mapped_array_has_its_room(tmp_path: Path) -> None:
    array = strings.new_array(tmp_path / "a.npy", np.float32, (1 << 18, 4))
    state = (tmp_path / "a.npy").stat()
    assert state.st_blocks * 512 >= state.st_size > array.nbytes
    np.lib.format.open_memmap(tmp_path / "b.npy", "w+", np.float32, (1 << 18, 4))
    assert (tmp_path / "b.npy").stat().st_blocks * 512 < state.st_size
    strings.take_room(tmp_path / "b.npy")
    assert (tmp_path / "b.npy").stat().st_blocks * 512 >= state.st_size


def test_a_file_of_our_own_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"GL0903 .*cannot be read: Is a directory"):
        seal.entry(tmp_path)


def test_a_journal_that_cannot_be_removed(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(ResourceError, match=r"GL0007 .*Is a directory"):
        tasks.tidy(tmp_path)


def test_a_half_file_that_cannot_be_removed(tmp_path: Path) -> None:
    (tmp_path / "data" / "train-000000.tar.tmp.h.1-0a1b2c").mkdir(parents=True)
    plan = Plan(str(tmp_path), "", "", "", 0, Options())
    with pytest.raises(ResourceError, match=r"GL0007 .*Is a directory"):
        sweep(plan)


def test_an_array_of_the_plan_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "order.npy").mkdir()
    with pytest.raises(ResourceError, match=r"GL0903 .*cannot be read: Is a directory"):
        strings.load_array(tmp_path, "order")
