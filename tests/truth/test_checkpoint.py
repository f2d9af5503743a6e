"""Checkpoints read by the `safetensors` library, held against what the trainer had in memory.

Constants, and what is put against them: 4 MiB a read of the SHA-256 (backbone, average, momentum
and centre rows are each larger), `head.block` 1,024 classes (2,300, and 3,001 a rank), one file of
centre rows a rank (three, read at worlds of two and of five).
"""

# c classes on one rank, E embedding

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from glint.dist.world import World
from glint.models import checkpoint
from glint.nn.heads.options import PartialFCOptions
from glint.nn.heads.partial_fc import PartialFC
from glint.nn.margins import margin
from glint.pipelines.dataset import shard
from glint.recipes.load import load
from glint.train import loop, saving
from glint.train.build import Run, build
from glint.train.recipe import Recipe

READ = 4 << 20  # bytes of one read of `commit.sha256`
RECIPE = """
[data]
path = "{path}"
batch = 12
[backbone]
name = "iresnet"
embedding = 512
[backbone.options]
layers = [1, 1, 1, 1]
widths = [4, 4, 8, 160]
stem_stride = 2
[head]
margin = "cosface"
rate = 0.5
rule = "lazy_decay"
[optim]
lr = 0.05
[schedule]
epochs = 1
max_steps = 5
[run]
device = "cpu"
threads = 1
save_every = 2
keep = 3
ema = 0.9
tensorboard = false
allow = ["image-labels"]
"""


def listed(path: Path) -> dict[str, Any]:
    """Check every file of a checkpoint by its manifest; give `state.json`."""
    files = json.loads((path / "MANIFEST.json").read_text())["files"]
    assert sorted([*files, "MANIFEST.json"]) == sorted(one.name for one in path.iterdir())
    for name, entry in files.items():
        data = (path / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}, name
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    return state


def equal(found: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(want)
    for name, value in want.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert torch.equal(found[name], value), name


def held(run: Run) -> dict[str, dict[str, Tensor]]:
    """Copy what a trainer has in memory, by the file that should hold it."""
    momentum = {
        f"{name}/momentum_buffer": run.optimizer.state[p]["momentum_buffer"]
        for name, p in run.backbone.named_parameters()
        if p in run.optimizer.state
    }
    parts: dict[str, dict[str, Tensor]] = {
        "backbone": run.backbone.state_dict(), "ema": run.averaged.module.state_dict(),
        "optimizer": momentum, "head-00000": run.head.state_rows()[2],
    }  # fmt: skip
    return {part: {k: v.clone() for k, v in some.items()} for part, some in parts.items()}


@pytest.fixture
def faces(tmp_path: Path, jpeg: Callable[[int], bytes], packed: Callable[..., None]) -> Path:
    """2,300 images of 112x112 pixels, each an identity: a table of centres of 4.7 MB."""
    packed(tmp_path / "faces.tar", [(f"all/{i:05d}.jpg", jpeg(i)) for i in range(2300)])
    shard.shard(tmp_path / "faces.tar", tmp_path / "set", shard.Options(unlabelled=True))
    return tmp_path / "set"


def test_every_save_holds_what_the_trainer_had(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five steps, saved after two, four and five: each file as memory was then.

    What is saved beside training is written when the step after it has moved all weights.
    """
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(path=faces))
    run = build(load(recipe, Recipe), World(), tmp_path / "run")
    memory, save, write, train_step = {}, saving.Saver.save, checkpoint.save, loop.train_step
    moved = threading.Event()

    def watched(self: saving.Saver, step: int, best: bool = False) -> Path:
        moved.clear()
        path = save(self, step, best)
        memory[step] = path, held(run)
        return path

    def late(folder: Path, step: int, **parts: Any) -> Path:
        assert step == 5 or moved.wait(60)
        return write(folder, step, **parts)

    def stepped(*args: Any) -> loop.Step:
        result = train_step(*args)
        moved.set()
        return result

    monkeypatch.setattr(saving.Saver, "save", watched)
    monkeypatch.setattr(checkpoint, "save", late)
    monkeypatch.setattr(loop, "train_step", stepped)
    loop.train(run)
    assert list(memory) == [2, 4, 5]
    for step, (path, parts) in memory.items():
        state = listed(path)
        assert (state["step"], state["world"], state["averaged"]) == (step, 1, step)
        for part, want in parts.items():
            file = path / f"{part}.safetensors"
            assert file.stat().st_size > READ, part
            equal(load_file(file), want)
        with safe_open(path / "head-00000.safetensors", "pt") as file:
            assert {k: file.metadata()[k] for k in ("start", "stop")} == {
                "start": "0", "stop": "2300",
            }  # fmt: skip
    assert not torch.equal(
        memory[2][1]["head-00000"]["weight"], memory[4][1]["head-00000"]["weight"]
    )


def make_head(world: World, classes: int) -> PartialFC:
    options = PartialFCOptions(rate=0.3, rule="lazy_decay")
    return PartialFC(classes, 256, options, margin=margin("cosface", m=0.4), world=world)


def test_rows_of_three_ranks_are_those_of_two_and_of_five(
    ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    classes = 9001
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(3, 6, 256, generator=generator)
    label = torch.randint(0, classes, (3, 6), generator=generator)

    def trained(world: World) -> tuple[int, int, dict[str, Tensor]]:
        head = make_head(world, classes)
        for step in range(3):
            leaf = feature[world.rank].clone().requires_grad_()
            head(leaf, label[world.rank], step=step).backward()
            head.update(step=step, lr=0.1)
        start, stop, rows = head.state_rows()
        checkpoint.save(
            tmp_path, 3, rank=world.rank, meet=checkpoint.meeting(world), keep=1,
            backbone={"w": torch.zeros(2)}, optimizer={}, head=(start, stop, rows),
            state={"world": world.size},
        )  # fmt: skip
        return start, stop, {name: value.clone() for name, value in rows.items()}

    parts = ranks(3, trained)
    path = tmp_path / "step-00000003"
    listed(path)
    names = [f"head-{rank:05d}.safetensors" for rank in range(3)]
    assert sorted(one.name for one in path.glob("head-*")) == names
    whole: dict[str, list[Tensor]] = {}
    at = 0
    for name, (start, stop, rows) in zip(names, parts):
        assert (path / name).stat().st_size > READ and start == at
        with safe_open(path / name, "pt") as file:
            assert (file.metadata()["start"], file.metadata()["stop"]) == (str(start), str(stop))
        found = load_file(path / name)
        equal(found, rows)
        for key, value in found.items():
            whole.setdefault(key, []).append(value)
        at = stop
    assert at == classes
    table = {key: torch.cat(some) for key, some in whole.items()}
    assert (table["weight"] != make_head(World(), classes).weight).any(dim=1).sum() > classes / 4

    saved = checkpoint.newest(tmp_path)
    assert saved is not None
    for size in (1, 2, 5):

        def loaded(world: World) -> dict[str, Tensor]:
            head = make_head(world, classes)
            head.load_rows(checkpoint.head_fetch(saved))
            return head.state_rows()[2]

        got = ranks(size, loaded)
        equal({key: torch.cat([one[key] for one in got]) for key in table}, table)
