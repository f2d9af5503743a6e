"""What the log tells while a run goes on: the progress line, and where the time went."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glint.cli import console
from glint.dist.world import Waited
from glint.train import metrics


def log(folder: Path, device: str = "cpu", every: int = 2) -> metrics.Log:
    settings = SimpleNamespace(tensorboard=False, loggers=[], log_every=every)
    run: Any = SimpleNamespace(
        world=SimpleNamespace(rank=0, device=torch.device(device), waited=Waited()),
        out=folder,
        recipe=SimpleNamespace(run=settings),
        teacher=None,
        step_images=10,
        head=SimpleNamespace(statistics=lambda: {"accuracy": 0.25}),
    )
    return metrics.Log(run)


def last(folder: Path) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    return entry


def test_the_line_tells_speed_loss_accuracy_and_where_the_time_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    told = log(tmp_path)
    assert told.note(0, 9.0, 0.1) == "epoch 0 loss 9.000 lr 0.1000 0 img/s "
    for step in (0, 1):
        for part, seconds in (("data", 0.1), ("forward", 0.3), ("head", 0.6)):
            clock.now += seconds
            if part == "head":
                told.run.world.waited.seconds += 0.2  # of its time, in collectives
            told.mark(part)
        told.step(step, 0, 0.1, 9.0)
    assert told.note(0, 9.0, 0.1) == (
        "epoch 0 loss 9.000 acc@1 0.250 lr 0.1000 10 img/s "
        "head 40 % forward 30 % comm 20 % data 10 %"
    )
    entry = last(tmp_path)
    assert entry["time"] == {"data": 0.1, "comm": 0.2, "forward": 0.3, "head": 0.4}
    assert entry["images_per_s"] == 10 and entry["accuracy"] == 0.25


def test_a_gpu_is_asked_for_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0, 10, 40, 100, 110, 140, 200, 300])  # milliseconds of a GPU
    waits: list[int] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = next(ticks)

        def elapsed_time(self, other: Event) -> int:
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    told = log(tmp_path, "cuda", every=3)
    for step in (1, 2):
        for part in ("data", "forward", "head"):
            told.mark(part)
        told.step(step, 0, 0.1, 9.0)
    assert last(tmp_path)["time"] == {"data": 0.1, "forward": 0.3, "head": 0.6}
    assert waits == [1]  # at the line, not at every step


def test_without_a_terminal_a_line_tells_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    with console.progress("train") as show:
        show(50, 100, "at first")  # the run goes on at 50
        clock.now += 31
        show(60, 100, "loss 3")
        clock.now += 10
        show(61, 100, "too soon")
        clock.now += 21
        show(70, 100)
    assert capsys.readouterr().err.splitlines() == [
        "train 60/100 loss 3 ETA 0:02:04",
        "train 70/100 ETA 0:01:33",
    ]
