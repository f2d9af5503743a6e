"""`backbone.pretrained`: a trunk of timm starts from a file, whole or not at all."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from glint.dist.world import World
from glint.errors import GlintError
from glint.recipes.load import load
from glint.train import build
from glint.train.recipe import Recipe

RECIPE = """
data.path = "set"
head.margin = "cosface"
optim.lr = 0.1
schedule.epochs = 1
run.device = "cpu"
[backbone]
name = "{name}"
embedding = 16
pretrained = "{file}"
"""


class Conv(nn.Module):
    output_fmt = "NCHW"

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 16, 16), nn.BatchNorm2d(8)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(self.conv(x))
        return out


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SimpleNamespace(
        list_models=lambda: ["conv"], create_model=lambda name, **more: Conv(), __version__="9"
    )
    monkeypatch.setitem(sys.modules, "timm", made)


def net(file: Path | str, name: str = "timm:conv") -> Any:
    return build.net(load(RECIPE.format(name=name, file=file), Recipe), World())[0]


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_the_trunk_is_that_of_the_file(kind: str, timm: None, tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = {**Conv().state_dict(), "head.weight": torch.zeros(1000, 8)}  # a classifier
    file = tmp_path / f"net.{kind}"
    save_file(state, file) if kind == "safetensors" else torch.save(state, file)
    trunk = net(file).trunk.state_dict()
    assert all(torch.equal(trunk[name], state[name]) for name in trunk)
    other = net("").trunk.state_dict()
    assert not torch.equal(other["conv.weight"], state["conv.weight"])


def test_a_file_of_another_trunk_is_refused(timm: None, tmp_path: Path) -> None:
    state = Conv().state_dict()
    for wrong, said in (
        ({"conv.weight": torch.zeros(8, 3, 8, 8)}, "of another shape: conv.weight"),
        ({"conv.bias": None}, "1 missing: conv.bias"),
        ({"conv.weight": torch.full((8, 3, 16, 16), torch.nan)}, "not finite"),
    ):
        changed = {name: one for name, one in {**state, **wrong}.items() if one is not None}
        save_file(changed, tmp_path / "net.safetensors")
        with pytest.raises(GlintError, match=said):
            net(tmp_path / "net.safetensors")
    with pytest.raises(GlintError, match="GL0001"):
        net(tmp_path / "absent.pt")
    with pytest.raises(GlintError, match="only read with timm:MODEL"):
        net(tmp_path / "net.safetensors", "iresnet18")


class Runs:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_a_pickle_that_runs_code_is_refused(timm: None, tmp_path: Path) -> None:
    torch.save({**Conv().state_dict(), "more": Runs()}, tmp_path / "net.pt")
    with pytest.raises(GlintError, match="GL0801"):
        net(tmp_path / "net.pt")
