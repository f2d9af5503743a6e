"""`--engine ray` as people start it: workers killed, signals, a parent that dies, its output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glint.pipelines.dataset import shard as stage
from glint.shards import recordio

pytest.importorskip("ray", reason="ray is not installed: pip install 'glint-faces[ray]'")
pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def files(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, jpeg: Callable[[int], bytes]) -> Path:
    """Give 6,000 records: 120 shards of 50."""
    folder = tmp_path_factory.mktemp("world")
    images = [jpeg(k) for k in range(20)]
    with recordio.Writer(folder / "train.rec", folder / "train.idx") as writer:
        for key in range(6_000):
            writer.write(key, recordio.pack(float(key // 8), key, 0, images[key % 20]))
    return folder


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out"
    stage.shard(world, out, stage.Options(50), workers=2)
    return files(out)


def command(world: Path, out: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "glint", "shard", str(world), str(out), "--samples-per-shard"),
        *("50", "--workers", "2", "--json", *more),
    ]


def children(parent: int) -> Iterator[int]:
    """Give the processes below one, however deep."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    todo = [parent]
    while todo:
        above = todo.pop()
        below = [pid for pid, its in parents.items() if its == above]
        yield from below
        todo += below


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def under_way(world: Path, out: Path) -> subprocess.Popen[str]:
    """Start sharding on Ray and wait for its third shard."""
    process = subprocess.Popen(
        command(world, out, "--engine", "ray"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (out / "data" / "train-000002.tar").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    return process


def finish(world: Path, out: Path, whole: dict[str, bytes]) -> None:
    assert not (out / "manifest.json").exists()
    subprocess.run(command(world, out), check=True, capture_output=True, env=ENV)
    assert files(out) == whole


def test_a_worker_is_killed(world: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    process = under_way(world, tmp_path / "out")
    busy: list[int] = []
    while not busy:
        for pid in children(process.pid):
            if b"ray::_piece" in Path(f"/proc/{pid}/cmdline").read_bytes():
                busy.append(pid)
    os.kill(busy[0], signal.SIGKILL)
    said, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert json.loads(said)["written"] == 6_000  # one object and nothing of Ray's beside it
    assert files(tmp_path / "out") == whole


@pytest.mark.parametrize("to_all", [False, True])
def test_a_signal(world: Path, whole: dict[str, bytes], tmp_path: Path, to_all: bool) -> None:
    process = under_way(world, tmp_path / "out")
    below = [*children(process.pid)]
    if to_all:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=100)
    assert process.returncode == 75, errors
    assert json.loads(said)["error"] == "GL0704" and "Traceback" not in errors
    assert not [pid for pid in below if runs(pid)]
    finish(world, tmp_path / "out", whole)


def test_the_parent_is_killed(world: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    process = under_way(world, tmp_path / "out")
    below = [*children(process.pid)]
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 90  # Ray's agents look for their daemon now and then
    while [pid for pid in below if runs(pid)]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    finish(world, tmp_path / "out", whole)


def test_embed(
    world: Path, tmp_path: Path, toy_run: Callable[..., Path], jpeg: Callable[[int], bytes]
) -> None:
    small = tmp_path / "world"
    small.mkdir()
    with recordio.Writer(small / "train.rec", small / "train.idx") as writer:
        for key in range(300):
            writer.write(key, recordio.pack(float(key // 8), key, 0, jpeg(key)))
    stage.shard(small, tmp_path / "data")
    base = [sys.executable, "-m", "glint", "embed", str(tmp_path / "data"), "--model"]
    base += [str(toy_run()), "--json", "--out"]
    for name, more in (("one", []), ("ray", ["--engine", "ray"])):
        done = subprocess.run(
            [*base, str(tmp_path / name), *more], capture_output=True, text=True, env=ENV
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["images"] == 300
    assert files(tmp_path / "ray") == files(tmp_path / "one")


def test_no_such_cluster(world: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(world, tmp_path / "out", "--engine", "ray", "--ray-address", "127.0.0.1:9"),
        capture_output=True,
        text=True,
        env=ENV,
    )
    assert done.returncode == 2 and "GL0002 bad-option: --ray-address: no Ray at" in done.stderr
