"""Checkpoints written beside training: of the state as it was, whole or told, one by one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from glint.dist.world import World
from glint.errors import MismatchError, ResourceError
from glint.models import checkpoint
from glint.models.checkpoint import meeting
from glint.train import restore, saving
from glint.train.saving import Saver


class Job:
    """What a Saver asks of a run and its log: one weight, and what it was told."""

    def __init__(self, out: Path, asynchronous: bool = True) -> None:
        self.out, self.world = out, World()
        self.recipe = SimpleNamespace(run=SimpleNamespace(async_save=asynchronous))
        self.weight = torch.zeros(1000)
        self.told: list[tuple[Any, ...]] = []

    def parts(self, step: int) -> dict[str, Any]:
        return {
            "backbone": {"w": self.weight}, "optimizer": {}, "averaged": None,
            "head": (0, 2, {"weight": self.weight[:2]}), "state": {}, "keep": 2,
        }  # fmt: skip

    def saved(self, *told: Any) -> None:
        self.told.append(told)

    def read(self, step: int) -> float:
        folder = self.out / "checkpoints" / f"step-{step:08d}"
        return float(load_file(folder / "backbone.safetensors")["w"].unique())


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(restore, "parts", lambda run, step: run.parts(step))
    return Job(tmp_path)


def saver(job: Job) -> Saver:
    return Saver(job, job)  # type: ignore[arg-type]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Hold every file's writing until the event is set."""
    opened, real = threading.Event(), checkpoint._write

    def write(*args: Any) -> None:
        assert opened.wait(20)
        real(*args)

    monkeypatch.setattr(checkpoint, "_write", write)
    yield opened
    opened.set()


def test_a_save_holds_the_state_of_its_step_while_training_goes_on(
    job: Job, gate: threading.Event
) -> None:
    with saver(job) as saves:
        path = saves.save(1)
        job.weight += 7.0  # training goes on
        assert not path.exists() and not saves.failed
        gate.set()
        saves.wait()
        assert path.exists() and job.read(1) == 0.0
        saves.save(2)
    assert job.read(2) == 7.0
    assert [told[:2] for told in job.told] == [(1, 4008), (2, 4008)]


def test_a_second_save_waits_for_the_first(job: Job, gate: threading.Event) -> None:
    with saver(job) as saves:
        saves.save(1)
        job.weight += 1.0
        threading.Timer(0.2, gate.set).start()
        saves.save(2)
        assert job.read(1) == 0.0
    assert job.read(2) == 1.0
    assert job.told[1][2] >= 0.1  # seconds waited


def test_a_write_that_fails_is_told_and_leaves_the_older_one(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    with saver(job) as saves:
        saves.save(1)
        saves.wait()
        resource = pytest.importorskip("resource")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # as a full disk does
        try:
            saves.save(2)
            thread = saves._thread
            assert thread is not None
            thread.join()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert saves.failed
        with pytest.raises(ResourceError, match=r"GL0901.*step-00000002.*could not be written"):
            saves.wait()
        assert not saves.failed  # told once
        newest = checkpoint.newest(job.out / "checkpoints")
        assert newest is not None and newest.path.name == "step-00000001"
        saves.save(3)
    assert {p.name for p in (job.out / "checkpoints").iterdir()} == {
        "step-00000001", "step-00000003",
    }  # fmt: skip


def test_a_run_that_ends_otherwise_ends_with_its_checkpoint_written(
    job: Job, gate: threading.Event
) -> None:
    threading.Timer(0.2, gate.set).start()
    with pytest.raises(ZeroDivisionError), saver(job) as saves:
        saves.save(1)
        raise ZeroDivisionError
    assert job.read(1) == 0.0


def test_without_room_for_a_copy_it_is_written_between_the_steps(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(saving, "ram", lambda: {"available": 5009})
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with saver(job) as saves:
        assert saves.save(1).exists()  # 4008 of 5009 bytes is more than 80 %
        assert not saves._copies
    monkeypatch.setattr(saving, "ram", lambda: {"available": 5011})
    with saver(job) as saves:
        saves.save(2)
        assert saves._copies
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with saver(job) as saves:
        assert saves.save(3).exists() and not saves._copies
    assert "do not fit" in caplog.text


def test_pinned_copies_are_counted_as_torch_makes_them() -> None:
    sizes = [0, 1, 3, 1 << 20, (1 << 20) + 1, 10_000_000 * 512 * 4]
    assert saving.held(sizes, pinned=False) == sum(sizes)
    assert saving.held(sizes, pinned=True) == 0 + 1 + 4 + (1 << 20) + (1 << 21) + (1 << 35)


def test_ranks_are_told_of_the_first_problem(ranks: Callable[..., list[Any]]) -> None:
    def work(world: World) -> list[str]:
        meet = meeting(world)
        return [meet(""), meet("no ink" if world.rank else ""), meet("x" * 9000)]

    for said in ranks(3, work):
        assert said[:2] == ["", "rank 1: no ink"]
        assert said[2] == "rank 0: " + "x" * checkpoint.WORDS


def test_no_rank_waits_for_one_that_cannot_write(
    ranks: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint._write

    def write(path: Path, *rest: Any) -> None:
        if path.name == "head-00001.safetensors":
            raise OSError(28, "No space left on device")
        real(path, *rest)

    monkeypatch.setattr(checkpoint, "_write", write)

    def work(world: World) -> str:
        part = (world.rank, world.rank + 1, {"weight": torch.zeros(1, 2)})
        with pytest.raises(ResourceError) as caught:
            checkpoint.save(
                tmp_path, 5, rank=world.rank, meet=meeting(world), head=part, state={}, keep=1,
                backbone={}, optimizer={},
            )  # fmt: skip
        return str(caught.value)

    for said in ranks(3, work):
        assert "GL0901" in said and "rank 1: [Errno 28] No space left on device" in said
    assert checkpoint.newest(tmp_path) is None


def test_ranks_share_what_is_to_be_hashed(
    ranks: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, hashed, own = checkpoint.sha256, (set[str](), set[str]()), threading.local()

    def noted(path: Path) -> str:
        hashed[own.rank].add(f"{path.parent.name}/{path.name}")
        return real(path)

    monkeypatch.setattr(checkpoint, "sha256", noted)

    def work(world: World) -> list[int | None]:
        own.rank = world.rank
        part = (world.rank, world.rank + 1, {"weight": torch.zeros(1, 2)})
        for step in (5, 6):
            checkpoint.save(
                tmp_path, step, rank=world.rank, meet=meeting(world), head=part, state={}, keep=2,
                backbone={"w": torch.ones(1)}, optimizer={},
            )  # fmt: skip
        written = sorted(hashed[world.rank])
        if world.rank == 0:
            assert not [name for name in written if "head-00001" in name]
        else:
            assert written == [f".step-0000000{n}.partial/head-00001.safetensors" for n in (5, 6)]
        hashed[world.rank].clear()
        steps: list[int | None] = []
        for damaged in ("", "step-00000006/head-00001.safetensors", "step-00000005/state.json"):
            meeting(world)("")
            if damaged and world.rank == 0:
                flip(tmp_path / damaged)
            meeting(world)("")
            try:
                saved = checkpoint.newest(tmp_path, world)
                steps.append(saved.state["step"] if saved else None)
            except MismatchError as error:
                assert "2 checkpoints and none is valid" in str(error)
                steps.append(None)
        return steps

    for rank, steps in enumerate(ranks(2, work)):
        assert steps == [6, 5, None], rank
    assert not hashed[0] & hashed[1]
    manifest = json.loads((tmp_path / "step-00000005" / "MANIFEST.json").read_text())["files"]
    assert sorted(manifest) == [
        "backbone.safetensors", "head-00000.safetensors", "head-00001.safetensors",
        "optimizer.safetensors", "state.json",
    ]  # fmt: skip
    assert len(hashed[0] | hashed[1]) == 2 * len(manifest)


def flip(path: Path) -> None:
    """Turn one bit of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
