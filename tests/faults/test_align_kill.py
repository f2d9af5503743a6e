"""`glint align` killed at any instant: the same command completes, with the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def files(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def heap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("heap"), np.random.default_rng(0)
    for i in range(240):
        picture = np.full((160, 160, 3), 120, np.uint8)
        for row, column in draw.integers(3, 17, (i % 3, 2)):
            picture[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 255, 0, 255
        (folder / f"{i % 12}").mkdir(exist_ok=True)
        data = simplejpeg.encode_jpeg(picture, 100, "RGB", "444")
        (folder / f"{i % 12}" / f"{i}.jpg").write_bytes(data)
    return folder


def kills(heap: Path, detector: Path, tmp_path: Path, workers: int, times: int) -> int:
    def command(out: Path) -> list[str]:
        return [
            sys.executable, "-m", "glint", "align", str(heap), str(out), "-d", str(detector),
            "--faces", "all", "--samples-per-shard", "10", "--workers", str(workers),
        ]  # fmt: skip

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True, env=ENV)
    whole = files(tmp_path / "whole")
    draw, unfinished = random.Random(workers), 0
    for _ in range(times):
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command(out), env=ENV, **quiet)  # type: ignore[call-overload]
        deadline = time.monotonic() + 60
        while not (out / "data" / "train-000000.tar").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(draw.random() * 0.8)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.1 if workers > 1 else 0)  # workers die with their parent
        unfinished += not (out / "manifest.json").exists()
        for path in (out / "data").glob("*.tar"):
            assert path.read_bytes() == whole[f"data/{path.name}"]
        subprocess.run(command(out), check=True, capture_output=True, env=ENV)
        assert files(out) == whole
    return unfinished


def test_one_kill(heap: Path, made_detector: Callable[..., Path], tmp_path: Path) -> None:
    assert kills(heap, made_detector(), tmp_path, 1, 1) <= 1


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [1, 2])
def test_many_kills(
    heap: Path, made_detector: Callable[..., Path], tmp_path: Path, workers: int
) -> None:
    assert kills(heap, made_detector(), tmp_path, workers, 20) > 3
