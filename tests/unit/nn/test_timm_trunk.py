"""Trunks of timm: the neck on a stand-in for timm, and timm itself where it is installed."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from glint.errors import UsageError
from glint.nn.backbones import create


class Conv(nn.Module):
    """A trunk with a map of 7x7, and a part that plays only behind it."""

    def __init__(self, channels: int = 8, layout: str = "NCHW") -> None:
        super().__init__()
        self.output_fmt = layout
        self.conv = nn.Conv2d(3, channels, 16, 16)
        self.head_norm = nn.LayerNorm(channels)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if self.output_fmt == "NHWC":
            return x.permute(0, 2, 3, 1)
        return x.flatten(2).transpose(1, 2) if self.output_fmt == "NLC" else x


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, *, pretrained: bool, num_classes: int, **options: object) -> Conv:
        assert (name, pretrained, num_classes) == ("conv", False, 0)
        return Conv(**options)  # type: ignore[arg-type]

    fake = SimpleNamespace(list_models=lambda: ["conv"], create_model=create_model, __version__="9")
    monkeypatch.setitem(sys.modules, "timm", fake)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NLC"])
def test_the_neck_weighs_every_place(stand_in: None, layout: str) -> None:
    net = create("timm:conv", 32, layout=layout)
    places = net.places[0].weight
    assert tuple(places.shape) == ((8, 1, 49, 1) if layout == "NLC" else (8, 1, 7, 7))
    feature = net(torch.rand(4, 3, 112, 112))
    assert feature.shape == (4, 32)
    feature.square().sum().backward()
    idle = [name for name, p in net.named_parameters() if not p.requires_grad]
    assert idle == ["trunk.head_norm.weight", "trunk.head_norm.bias"]
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_layouts_agree(stand_in: None) -> None:
    image = torch.rand(2, 3, 112, 112)
    first = create("timm:conv", 16).eval()
    for layout in ("NHWC", "NLC"):
        net = create("timm:conv", 16, layout=layout).eval()
        state = first.state_dict()
        state["places.0.weight"] = state["places.0.weight"].reshape(net.places[0].weight.shape)
        net.load_state_dict(state)
        assert torch.allclose(net(image), first(image), atol=1e-5)


def test_without_timm_the_command_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"GL0003.*timm:resnet18 needs timm") as caught:
        create("timm:resnet18")
    assert caught.value.hint == "pip install 'glint-faces[timm]'"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("timm:convv", {}, "no model called 'convv'"),
        ("timm:hf-hub:someone/conv", {}, "no model called 'hf-hub:someone/conv'"),
        ("timm:conv", {"checkpoint_path": "evil.pth"}, "checkpoint_path .*not for recipes"),
        ("timm:conv", {"pretrained": True}, "pretrained .*not for recipes"),
        ("timm:conv", {"depht": 3}, "does not build conv: .*depht"),
        ("timm:conv", {"embedding": 0}, "a whole number from 1 to 65536, found 0"),
    ],
)
def test_what_is_refused(stand_in: None, name: str, options: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        create(name, **options)
    assert caught.value.code == "GL0002"
    if name == "timm:convv":
        assert caught.value.hint == "did you mean timm:conv?"


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet10t", {}), ("vit_tiny_patch16_224", {"img_size": 112}), ("edgenext_xx_small", {})],
)
def test_real_trunks(name: str, options: dict) -> None:
    pytest.importorskip("timm", exc_type=ImportError)
    net = create(f"timm:{name}", 64, **options)
    image = torch.rand(2, 3, 112, 112)
    net(image).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert net.eval()(image).dtype == torch.float32
    if name.startswith("vit"):
        with pytest.raises(UsageError, match="does not take 112x112") as caught:
            create(f"timm:{name}", 64)
        assert "img_size = 112" in caught.value.hint
