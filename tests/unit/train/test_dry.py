"""A dry run: what it counts is what a real step holds, and nothing is allocated."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from glint.cli import app as command_line
from glint.cli import commands
from glint.nn.backbones import create
from glint.recipes.load import load
from glint.train import dry, optim
from glint.train.recipe import Recipe

ROOT = Path(__file__).parents[3]
RECIPE = """
[data]
path = "nowhere"
batch = 6
[backbone]
name = "{name}"
embedding = 24
options = {options}
[head]
margin = "cosface"
rule = "{kind}"
[optim]
lr = 0.1
kind = "{optim}"
[schedule]
epochs = 1
[run]
precision = "{precision}"
"""
NETS = [
    ("iresnet", "{layers = [1, 1, 1, 1], widths = [8, 8, 8, 8]}"),
    ("mobilefacenet", "{width = 0.125}"),
    ("vit_t", "{width = 16, depth = 2, heads = 2, mask = 0.25}"),
    ("vit_t", "{width = 16, depth = 4, heads = 2, checkpoint = true}"),
    ("vargfacenet", "{width = 0.125, blocks = [1, 1, 1]}"),
    ("shufflemixfacenet_xs", "{width = 0.125, tail = 16}"),
]


def recipe(name: str, options: str, precision: str = "float32", kind: str = "sgd") -> Recipe:
    rule = "adamw" if kind == "adamw" else "none"
    text = RECIPE.format(name=name, options=options, precision=precision, kind=rule, optim=kind)
    return load(text, Recipe)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(("name", "options"), NETS)
def test_activations_are_those_that_a_real_pass_keeps(
    name: str, options: str, precision: str
) -> None:
    settings = recipe(name, options, precision)
    table, image = settings.backbone, torch.rand(6, 3, 112, 112)
    mixed = precision == "bf16"
    real = dry.kept(create(name, 24, **table.options), image, mixed=mixed)
    if table.options.get("checkpoint"):
        plain = {**table.options, "checkpoint": False}
        whole = dry.kept(create(name, 24, **plain), image, mixed=mixed)
        assert real < whole / 2
        real += whole // 4
    assert real > 6 * 3 * 112 * 112
    # in bf16 a batch norm on the CPU keeps some of its statistics in another type
    assert dry.activations(settings) == pytest.approx(real, rel=1e-3 if mixed else 0)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_weights_and_states_to_the_byte(kind: str) -> None:
    settings = recipe(*NETS[0], kind=kind)
    net = create("iresnet", 24, layers=[1, 1, 1, 1], widths=[8, 8, 8, 8])
    optimizer = optim.optimizer(net, settings.optim)
    net(torch.rand(6, 3, 112, 112)).sum().backward()
    optimizer.step()
    found = dry.run(settings, 1000, 2)
    states = [v for s in optimizer.state.values() for v in s.values() if v is not None]
    tensors: dict[str, Any] = {
        "weights": net.state_dict().values(),
        "gradients": [p.grad for p in net.parameters() if p.grad is not None],
        "optimiser": [v for v in states if v.ndim],  # a step counter is no tensor of weights
    }
    for part, held in tensors.items():
        assert found.memory[part] == sum(t.numel() * t.element_size() for t in held), part
    assert found.memory["total"] == sum(
        value for part, value in found.memory.items() if part != "total"
    )
    assert (found.world, found.global_batch) == (2, 12)
    assert found.parameters - found.trained == 24


def test_the_largest_net_takes_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    name = ROOT / "train" / "wf42m_vit_l_pfc03_64gpu.toml"
    found = dry.run(load(name, Recipe), 2_059_906, 64)
    assert found.parameters == 255_684_352
    assert found.macs == 25_337_794_560
    assert found.memory["total"] > 4 << 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # KiB


def call(*args: str) -> tuple[int, str, str]:
    if not command_line.app.registered_commands:
        commands.register(command_line.app)
    result = CliRunner().invoke(command_line.app, list(args))
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = str(ROOT / "train" / "wf42m_vit_t_pfc03_8gpu.toml")
    code, out, err = call("train", name, "--dry-run", "--classes", "2059906", "--nproc", "8")
    assert (code, err) == (0, "")
    assert out.startswith("vit_t: 19,137,792 parameters, 19,137,536 trained, 1.505 G")
    assert "2,059,906 identities over 8 ranks, 512 images each, global batch 4,096" in out
    code, out, err = call("train", name, "--dry-run", "--json")
    assert code == 3
    assert "--classes N counts without the data" in json.loads(out)["hint"]
    code, out, err = call("train", name, "--classes", "5")
    assert code == 2 and "GL0002" in err
    assert list(tmp_path.iterdir()) == []
