"""Several processes write one output: the same bytes as one, whoever dies or comes late."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from glint.errors import BusyError, UsageError
from glint.files import atomic
from glint.jobs import tasks
from glint.jobs.tasks import Task
from glint.pipelines.dataset import reshard
from glint.pipelines.dataset import shard as stage
from glint.pipelines.dataset.output import Output
from glint.pipelines.dataset.write import write_shard
from glint.results.datasets import ShardShare
from glint.shards import recordio, verify
from glint.shards.dataset import Dataset

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def files(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, jpeg: Callable[[int], bytes]) -> Path:
    """Give 800 records, one of them empty, in one .rec: 20 shards of 40."""
    folder = tmp_path_factory.mktemp("world")
    images = [jpeg(k) for k in range(20)]
    with recordio.Writer(folder / "train.rec", folder / "train.idx") as writer:
        for key in range(800):
            image = b"" if key == 7 else images[key % 20]
            writer.write(key, recordio.pack(float(key // 8), key, 0, image))
    return folder


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give what one process makes of it."""
    out = tmp_path_factory.mktemp("whole") / "out"
    stage.shard(world, out, stage.Options(40))
    return out


def start(*args: str | Path, on: Sequence[str] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*on, sys.executable, "-m", "glint", *map(str, args), "--workers", "1", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
    )


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    result: dict[str, Any] = json.loads(said)
    return result


@pytest.mark.parametrize("text", ["8/8", "-1/8", "1", "a/b", "1/0", "1/8/2"])
def test_names_of_no_task(text: str) -> None:
    with pytest.raises(UsageError, match=r"GL0002 .*expected i/N"):
        Task.parse(text)
    assert Task.parse("") is None and Task.parse("0/8") == Task(0, 8)


def test_tasks_share_every_piece_out() -> None:
    shares = [tasks.share(Task(i, 3), range(10)) for i in range(3)]
    assert shares == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert tasks.share(None, range(3)) == [0, 1, 2]


def test_one_after_the_other(world: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for i, left in enumerate((13, 6)):
        result = stage.shard(world, out, stage.Options(40), task=Task(i, 3))
        assert (result.left, result.task, result.shards) == (left, f"{i}/3", 20)
        assert isinstance(result, ShardShare) and not (out / "manifest.json").exists()
    (out / "data" / "train-000002.tar.tmp.other.1-abcdef").write_bytes(b"of one that was killed")
    result = stage.shard(world, out, stage.Options(40), task=Task(2, 3))
    assert result.left == 0 and result.written == 799 and result.quarantined == 1
    assert files(out) == files(whole)
    again = stage.shard(world, out, stage.Options(40), task=Task(1, 3))  # all is there
    assert again.digest == result.digest and files(out) == files(whole)


def test_a_plain_run_finishes_what_tasks_left(world: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stage.shard(world, out, stage.Options(40), task=Task(1, 4))
    assert stage.shard(world, out, stage.Options(40)).resumed_shards == 5
    assert files(out) == files(whole)


def test_tasks_finish_what_a_plain_run_left(
    world: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, count = tmp_path / "out", write_shard, 0

    def run(plan: stage.Plan, piece: int) -> dict[str, Any]:
        nonlocal count
        count += 1
        if count > 10:
            raise RuntimeError
        return real(plan, piece)

    with monkeypatch.context() as patch:
        patch.setattr(Output, "work", staticmethod(run))
        with pytest.raises(RuntimeError):
            stage.shard(world, out, stage.Options(40))
    told = [stage.shard(world, out, stage.Options(40), task=Task(i, 2)) for i in (0, 1)]
    assert [t.resumed_shards for t in told] == [5, 5] and [t.left for t in told] == [5, 0]
    assert files(out) == files(whole)


def test_who_may_work_beside_whom(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "START", 0.2)
    out = tmp_path / "out"
    state = out / "_glint"
    atomic.make_dir(state)
    mine = f"process {os.getpid()} on"
    with tasks.claim(state, Task(0, 2)):
        with pytest.raises(BusyError, match=f"GL0005 .*task-0-of-2.lock: held by {mine}"):
            stage.shard(world, out, task=Task(0, 2))
        with pytest.raises(BusyError, match=f"GL0005 .*/lock: held by {mine}"):
            stage.shard(world, out)
        assert stage.shard(world, out, stage.Options(40), task=Task(1, 2)).left == 10
    with tasks.claim(state, None), pytest.raises(BusyError, match="GL0005"):
        stage.shard(world, out, stage.Options(40), task=Task(0, 2))
    monkeypatch.setattr(tasks, "WAIT", 0.2)
    with atomic.lock(state / "merge.lock"), pytest.raises(BusyError, match=r"merge\.lock"):
        stage.shard(world, out, stage.Options(40), task=Task(0, 2))


def test_a_source_that_is_no_good(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.rec").write_bytes(b"nonsense" * 100)
    for _ in range(2):
        with pytest.raises(Exception, match="GL02"):
            stage.shard(tmp_path / "src", tmp_path / "out", task=Task(0, 2))
    assert not (tmp_path / "out" / "_glint" / "plan.json").exists()


def test_eight_at_once(world: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = [f"{i}/8" for i in range(8)]
    running = [start("shard", world, out, "--samples-per-shard", "40", "--task", n) for n in names]
    told = [ended(process) for process in running]
    assert [t["task"] for t in told] == names
    assert sum(t["left"] == 0 for t in told) >= 1 and all(t["shards"] == 20 for t in told)
    assert files(out) == files(whole)


def test_tasks_of_two_divisions_at_once(world: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = ["0/2", "1/2", "0/3", "1/3"]
    running = [start("shard", world, out, "--samples-per-shard", "40", "--task", n) for n in names]
    for process in running:
        ended(process)
    assert files(out) == files(whole)


def test_a_killed_task_is_started_again(world: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("shard", world, out, "--samples-per-shard", "40", "--task")
    killed = start(*command, "1/2")
    deadline = time.monotonic() + 60
    while not (out / "data" / "train-000001.tar").exists():
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    there = len(list((out / "data").glob("*.tar")))
    assert 1 <= there < 10
    assert ended(start(*command, "0/2"))["left"] > 0
    again = ended(start(*command, "1/2"))
    assert again["left"] == 0 and again["resumed_shards"] >= there - 1
    assert files(out) == files(whole)


def test_reshard_by_three(whole: Path, tmp_path: Path) -> None:
    reshard.reshard(whole, tmp_path / "one", 64)
    names = [f"{i}/3" for i in range(3)]
    out = tmp_path / "three"
    running = [
        start("reshard", whole, out, "--samples-per-shard", "64", "--task", n) for n in names
    ]
    told = [ended(process) for process in running]
    assert sum("content" in t for t in told) >= 1
    assert files(out) == files(tmp_path / "one")
    assert Dataset(out).n == 799


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_many_tasks_killed_at_any_time(world: Path, whole: Path, tmp_path: Path) -> None:
    import random

    rng, out = random.Random(3), tmp_path / "out"
    command = ("shard", world, out, "--samples-per-shard", "40", "--task")
    for _ in range(10):
        shutil.rmtree(out, ignore_errors=True)
        running = [start(*command, f"{i}/3") for i in range(3)]
        time.sleep(1 + 2 * rng.random())
        for process in rng.sample(running, 2):
            process.send_signal(signal.SIGKILL)
        for process in running:
            process.communicate(timeout=100)
        for i in range(3):
            ended(start(*command, f"{i}/3"))
        assert files(out) == files(whole)


def test_verify_by_three(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    told = [verify.verify(out, deep=True, task=(i, 3)) for i in range(3)]
    assert all(t.ok for t in told) and [t.shards for t in told] == [7, 7, 6]
    assert sum(t.samples for t in told) == 799
    assert sum(t.bytes for t in told) == verify.verify(out, deep=True).bytes
    tar = out / "data" / "train-000004.tar"  # of task 1
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    (out / "identities.parquet").write_bytes(b"PAR1")  # of task 0
    told = [verify.verify(out, deep=True, task=(i, 3)) for i in range(3)]
    assert [t.ok for t in told] == [False, False, True]
    assert {p.file for p in told[1].problems} == {"data/train-000004.tar"}
    assert {p.file for p in told[0].problems} == {"identities.parquet"}


def machine(name: str) -> list[str]:
    """Give the command that makes a process think it is alone on a machine of that name."""
    inside = f'hostname {name} && exec "$0" "$@"'
    return ["unshare", "--uts", "--pid", "--fork", "--kill-child", "sh", "-c", inside]


def may_be_machines() -> bool:
    try:
        return subprocess.run([*machine("one"), "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not may_be_machines(), reason="needs root and unshare")
@pytest.mark.parametrize("names", [("one", "two"), ("same", "same")])
def test_two_machines(world: Path, whole: Path, tmp_path: Path, names: tuple[str, str]) -> None:
    """Hosts of their own names, or of one name, where process ids are the same on both."""
    out = tmp_path / "out"
    running = [
        start("shard", world, out, "--samples-per-shard", "40", "--task", f"{i}/2", on=machine(n))
        for i, n in enumerate(names)
    ]
    deadline = time.monotonic() + 60
    seen: set[str] = set()
    while any(process.poll() is None for process in running):
        seen |= {p.name.split(".tmp.")[1] for p in (out / "data").glob("*.tmp.*")}
        assert time.monotonic() < deadline
        time.sleep(0.001)
    for process in running:
        ended(process)
    assert {name.rsplit(".", 1)[0] for name in seen} == {*names}
    assert files(out) == files(whole)


def test_what_people_are_told(world: Path, tmp_path: Path) -> None:
    def said(*args: str | Path) -> str:
        command = [sys.executable, "-m", "glint", *map(str, args), "--task", "1/2"]
        done = subprocess.run(command, capture_output=True, text=True, env=ENV, check=True)
        return done.stdout

    line = "10 of 20 shards are left to other tasks"
    assert line in said("shard", world, tmp_path / "a", "--samples-per-shard", "40")
    stage.shard(world, tmp_path / "b", stage.Options(400))
    assert line in said("reshard", tmp_path / "b", tmp_path / "c", "--samples-per-shard", "40")
    told = said("verify", tmp_path / "b", "--deep")
    assert "all as written in the share of task 1/2" in told
