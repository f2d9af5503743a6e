"""`glint import` and what takes its checkpoint: eval, export, embed, train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from glint.cli import app as command_line
from glint.cli import commands
from glint.dist.world import World
from glint.errors import MismatchError
from glint.nn.backbones import create
from glint.recipes.load import load
from glint.train import loop, restore
from glint.train.build import build
from glint.train.recipe import Recipe

RECIPE = """
[data]
path = "{data}"
batch = 16
[backbone]
name = "mobilefacenet"
embedding = 32
[head]
margin = "cosface"
m = 0.4
[optim]
lr = 0.01
[schedule]
epochs = 1
max_steps = 2
[run]
device = "cpu"
threads = 1
tensorboard = false
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published form: a state dict, saved from inside DistributedDataParallel."""
    torch.manual_seed(3)
    net = create("mobilefacenet", 32)
    with torch.no_grad():
        net(torch.rand(4, 3, 112, 112))
    path = tmp_path_factory.mktemp("published") / "backbone.pt"
    torch.save({f"module.{name}": value for name, value in net.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def call() -> Callable[..., Any]:
    if not command_line.app.registered_commands:
        commands.register(command_line.app)

    def invoke(*args: str | Path, code: int = 0) -> Any:
        result = CliRunner().invoke(command_line.app, [*map(str, args), "--json"])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert result.exit_code == code, (args, result.stdout, result.stderr)
        return json.loads(result.stdout)

    return invoke


@pytest.fixture(scope="module")
def imported(glint: Callable[..., Any], weights: Path) -> Path:
    out = weights.parent / "imported"
    found = glint(  # in a process of its own, as people call it
        "import", weights, "--backbone", "mobilefacenet", out, "--embedding", "32", "--json"
    )
    assert found["schema"] == "glint/import@1"
    assert Path(found["checkpoint"]).parent.parent == out
    net = create("mobilefacenet", 32)
    assert found["parameters"] == sum(p.numel() for p in net.parameters())
    return out


def test_eval_export_and_embed_take_it(
    call: Callable[..., Any], small: Any, imported: Path, weights: Path, tmp_path: Path
) -> None:
    found = call("eval", "--model", imported, "--pairs", small.pairs, "--device", "cpu")
    assert found["engine"] == "torch" and found["pairs"] == 60
    made = call("export", imported, tmp_path / "net.onnx", "--crops", "2")
    assert (made["backbone"], made["dim"]) == ("mobilefacenet", 32)
    embedded = call("embed", small.data, "--model", imported, "--out", tmp_path / "emb")
    assert embedded["images"] == len(np.load(tmp_path / "emb" / "samples.npy"))
    state = {k.removeprefix("module."): v for k, v in torch.load(weights).items()}
    for name, value in _net(imported).items():
        assert torch.equal(value, state[name])


def _net(run: Path) -> dict[str, torch.Tensor]:
    from glint.models import stored

    return stored.load(run).net.state_dict()


def test_train_starts_from_it(small: Any, imported: Path, weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(data=small.data))
    change = f"run.finetune={imported}"
    run = build(load(path, Recipe, [change]), World(), tmp_path / "run")
    assert restore.resume(run) == 0
    state = torch.load(weights)
    for name, value in run.backbone.state_dict().items():
        assert torch.equal(value, state[f"module.{name}"])
    result = loop.train(run)
    assert result.steps == 2 and result.loss > 0
    other = load(path, Recipe, [change, "backbone.name=mbf"])
    with pytest.raises(
        MismatchError, match=r"run\.finetune: its weights do not fit .* mbf"
    ) as caught:
        restore.resume(build(other, World(), tmp_path / "other"))
    assert caught.value.hint == "they are those of mobilefacenet, embedding 32"


def test_mistakes_have_codes(call: Callable[..., Any], weights: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(weights.read_bytes()[:2000])
    evil = tmp_path / "evil.pt"
    evil.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    net = ("--backbone", "mobilefacenet")
    cases: list[tuple[int, str, tuple[str | Path, ...]]] = [
        (2, "GL0001", (tmp_path / "none.pt", tmp_path / "out", *net)),
        (2, "GL0002", (weights, tmp_path / "out", "--backbone", "r51")),
        (3, "GL0401", (cut, tmp_path / "out", *net)),
        (3, "GL0401", (weights, tmp_path / "out", *net)),  # of another embedding
        (4, "GL0004", (weights, tmp_path, *net, "--embedding", "32")),
        (8, "GL0801", (evil, tmp_path / "out", *net)),
    ]
    for exit_code, code, args in cases:
        assert call("import", *args, code=exit_code)["error"] == code
    assert not (tmp_path / "out").exists()
    assert json.dumps(sorted(p.name for p in tmp_path.iterdir())) == '["cut.pt", "evil.pt"]'


def test_a_vit_that_draws_resumes_to_the_bit(small: Any, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(data=small.data).replace('"mobilefacenet"', '"vit_t"'))
    options = "{width=16, depth=3, heads=2, drop_path=0.5, mask=0.5}"
    changes = [f"backbone.options={options}", "run.save_every=2", "optim.kind=adamw",
               "head.rule=adamw", "optim.lr=0.001"]  # fmt: skip
    losses = []
    for name, stops in (("whole", [4]), ("parts", [2, 4])):
        for stop in stops:
            settings = load(path, Recipe, [*changes, f"schedule.max_steps={stop}"])
            loop.train(build(settings, World(), tmp_path / name))
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        losses.append([e["loss"] for e in map(json.loads, lines) if e["kind"] == "step"])
        losses[-1].append({k: v.sum().item() for k, v in _net(tmp_path / name).items()})
    assert losses[0] == losses[1]
