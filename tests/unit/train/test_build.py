from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glint.cli import train as command
from glint.dist import world as joining
from glint.dist.world import World
from glint.recipes.load import load
from glint.stream.loader import REMOTE_DEADLINE
from glint.train import build, restore
from glint.train.recipe import Recipe

LEAST = """
[data]
path = "{path}"
[backbone]
name = "iresnet18"
[head]
margin = "cosface"
[optim]
lr = 0.1
[schedule]
epochs = 10
"""


def test_cores_are_shared_by_the_ranks_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen ranks on two machines of 64 cores: eight threads each, not four."""
    recipe, world = load(LEAST.format(path="set"), Recipe), World(rank=9, size=16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert build.threads(recipe, world) == 8
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert build.threads(recipe, world) == 4


@pytest.mark.parametrize(
    ("path", "least"), [("data", 120.0), ("s3://bucket/data", REMOTE_DEADLINE + 60)]
)
def test_a_rank_that_waits_for_a_shard_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, path: str, least: float
) -> None:
    asked = []

    def join(device: str, *, timeout: float) -> World:
        asked.append(timeout)
        return World()

    def stop(*_: Any) -> None:
        raise KeyError

    monkeypatch.setattr(joining, "join", join)
    monkeypatch.setattr(restore, "batch_for_world", stop)
    recipe = load(LEAST.format(path=path), Recipe, ["run.device=cpu"])
    with pytest.raises(KeyError):
        command._train(recipe, None, None, False)  # type: ignore[arg-type]
    assert asked[0] >= least and (path != "data" or asked == [120.0])


def test_a_gpu_times_the_ways_to_convolve(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyError

    monkeypatch.setattr(build, "open_data", stop)
    monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace(benchmark=False))
    recipe, threads = load(LEAST.format(path="set"), Recipe), torch.get_num_threads()
    for device, timed in (("cpu", False), ("cuda", True)):
        with pytest.raises(KeyError):
            build.build(recipe, World(device=torch.device(device)), None)  # type: ignore[arg-type]
        assert torch.backends.cudnn.benchmark is timed
    torch.set_num_threads(threads)
