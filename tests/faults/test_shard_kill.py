"""SIGKILL at any instant, a worker that dies, a disk that is full: the same command completes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from glint.pipelines.dataset import shard as stage
from glint.shards import recordio

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def files(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, jpeg: Callable[[int], bytes]) -> Path:
    folder = tmp_path_factory.mktemp("world")
    images = [jpeg(k) for k in range(20)]
    with recordio.Writer(folder / "train.rec", folder / "train.idx") as writer:
        for key in range(4000):
            image = b"" if key % 1500 == 7 else images[key % 20]
            writer.write(key, recordio.pack(float(key // 8), key, 0, image))
    return folder


def command(world: Path, out: Path, workers: int) -> list[str]:
    return [
        sys.executable,
        "-m",
        "glint",
        "shard",
        str(world),
        str(out),
        "--samples-per-shard",
        "50",
        "--workers",
        str(workers),
        "--json",
    ]


def finals_are_whole(out: Path, whole: dict[str, bytes]) -> None:
    """Check that every file under a final name is what an uninterrupted run writes."""
    for path in [*(out / "data").glob("*.tar"), *out.glob("*.parquet"), *out.glob("*.json")]:
        assert path.read_bytes() == whole[str(path.relative_to(out))], path


def kill_and_continue(
    world: Path, out: Path, whole: dict[str, bytes], workers: int, after: float
) -> bool:
    shutil.rmtree(out, ignore_errors=True)
    process = subprocess.Popen(
        command(world, out, workers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENV
    )
    deadline = time.monotonic() + 60
    while not (out / "data" / "train-000000.tar").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.1 if workers > 1 else 0)  # workers die with their parent
    unfinished = not (out / "manifest.json").exists()
    finals_are_whole(out, whole)
    done = subprocess.run(command(world, out, workers), capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["read"] == 4000
    assert files(out) == whole
    return unfinished


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out"
    stage.shard(world, out, stage.Options(50))
    return files(out)


def test_one_kill(world: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    assert kill_and_continue(world, tmp_path / "out", whole, 1, 0.01)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [1, 2])
def test_many_kills(world: Path, whole: dict[str, bytes], tmp_path: Path, workers: int) -> None:
    rng = random.Random(workers)
    unfinished = [
        kill_and_continue(world, tmp_path / "out", whole, workers, rng.random() * 0.5)
        for _ in range(20)
    ]
    assert sum(unfinished) > 5


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    "call, error", [("fsync", "EIO"), ("rename", "ENOSPC"), ("write", "ENOSPC")]
)
def test_a_disk_that_fails(
    world: Path, whole: dict[str, bytes], tmp_path: Path, call: str, error: str
) -> None:
    out = tmp_path / "out"
    codes = []
    for when in (1, 2, 7, 40, 160):
        shutil.rmtree(out, ignore_errors=True)
        done = subprocess.run(
            [
                "strace",
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                f"trace={call}",
                "-e",
                f"inject={call}:error={error}:when={when}",
                *command(world, out, 1),
            ],
            capture_output=True,
            text=True,
            env=ENV,
        )
        assert "Traceback" not in done.stderr
        codes.append(done.returncode)
        if codes[-1]:
            assert "GL0901" in done.stderr or "GL0007" in done.stderr
        finals_are_whole(out, whole)
        subprocess.run(command(world, out, 1), check=True, capture_output=True, env=ENV)
        assert files(out) == whole
    assert set(codes) == {6}


@pytest.mark.faults
def test_a_worker_that_is_killed(world: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(world, out, 2),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
    )
    while not (out / "data" / "train-000000.tar").exists():
        time.sleep(0.002)
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)
            break
    else:
        raise AssertionError("no worker was found")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "a worker process died: going on with 1" in said and "Traceback" not in said
    assert files(out) == whole
