"""Files of other programs: recognised, and the same net after their names are ours.

The nets here are written from the layouts of AdaFace's net.py and face.evoLVe's model_irse.py, with
nothing of glint in them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from glint.errors import InputError
from glint.models import import_weights, layouts, stored
from glint.nn.backbones import create

UNITS = {18: (2, 2, 2, 2), 50: (3, 4, 14, 3)}


class Unit(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, middle: bool) -> None:
        super().__init__()
        if c_in == c_out:
            self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(c_in),
            nn.Conv2d(c_in, c_out, 3, 1, 1, bias=False),
            *([nn.BatchNorm2d(c_out)] if middle else []),
            nn.PReLU(c_out),
            nn.Conv2d(c_out, c_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return out


class Theirs(nn.Module):
    def __init__(self, depth: int, adaface: bool) -> None:
        super().__init__()
        stem = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.input_layer = nn.Sequential(stem, nn.BatchNorm2d(64), nn.PReLU(64))
        wide = [64, 64, 128, 256, 512]
        self.body = nn.Sequential(
            *(
                Unit(wide[s + (i > 0)], wide[s + 1], 1 if i else 2, adaface)
                for s, units in enumerate(UNITS[depth])
                for i in range(units)
            )
        )
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512), nn.Dropout(0.4), nn.Flatten(), nn.Linear(512 * 49, 512),
            nn.BatchNorm1d(512, affine=not adaface),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.output_layer(self.body(self.input_layer(x)))
        return out


def lived_in(depth: int, adaface: bool) -> Theirs:
    torch.manual_seed(1)
    net = Theirs(depth, adaface).eval()
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.ndim == 1 and value.is_floating_point():
                value.uniform_(0.5, 1.5) if "var" in name or "weight" in name else value.normal_(
                    0, 0.1
                )
    return net


def test_adaface_from_its_file(tmp_path: Path) -> None:
    theirs, image = lived_in(18, True), torch.rand(2, 3, 112, 112) * 2 - 1
    state = {f"model.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"state_dict": {**state, "head.kernel": torch.rand(512, 7)}}, tmp_path / "ada.ckpt")
    found = import_weights.import_weights(tmp_path / "ada.ckpt", "", tmp_path / "out")
    assert (found.layout, found.embedding) == ("AdaFace iresnet18", 512)
    ours = stored.load(tmp_path / "out").net
    with torch.no_grad():
        expected = theirs(image.flip(1))  # it takes blue first
        torch.testing.assert_close(ours(image), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(ours(image), theirs(image), atol=1e-2)
    own = sum(p.numel() for p in theirs.parameters())
    assert found.parameters == own + 2 * 512  # the last norm's scale and shift are learnt here


def test_face_evolve() -> None:
    theirs, image = lived_in(50, False), torch.rand(1, 3, 112, 112) * 2 - 1
    state = theirs.state_dict()
    known = layouts.recognise(state)
    assert known is not None and known[0].name == "face.evoLVe iresnet50" and known[1] == 512
    with torch.device("meta"):
        ours = create("iresnet50", 512, **known[0].options)
    ours.load_state_dict(known[0].translated(state), assign=True)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(image), theirs(image), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(
    ("name", "embedding"), [("iresnet100", 512), ("mbf", 256), ("vit_t", 512), ("vit_b", 512)]
)
def test_every_net_is_known_by_its_names(name: str, embedding: int) -> None:
    with torch.device("meta"):
        state = create(name, embedding).state_dict()
    state = {f"module.{key}": value for key, value in state.items()}
    known = layouts.recognise(state)
    assert known is not None
    assert (known[0].name, known[1]) == (f"arcface_torch {name}", embedding)
    del state[next(key for key in state if "weight" in key)]
    assert layouts.recognise(state) is None


def test_no_layout_is_told(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.rand(3, 3)}, tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"GL0401 .* in no known layout"):
        import_weights.import_weights(tmp_path / "net.pt", "", tmp_path / "out")
    assert not (tmp_path / "out").exists()
