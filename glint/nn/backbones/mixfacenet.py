"""MixFaceNet and ShuffleMixFaceNet (arXiv 2107.13046): depth-wise convolutions of mixed kernels.

The units' tables are those of the authors' program at its published sizes. That program shuffles
after its first unit even where it is told not to; before training, this only renames channels.
"""

# n batch, C channels, H W height and width, E embedding

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from glint.nn.backbones.parts import SIZE, full_precision, require_faces


class Unit(NamedTuple):
    """One row of a net's table.

    factor: channels inside over channels in; kernels: 3, 5, ... how many; expand, project: groups
    of the 1x1 convolutions; ratio: channels in over channels of the gate, 0 for no gate.
    """

    channels: int
    stride: int
    factor: int
    kernels: int
    expand: int
    project: int
    ratio: int


# (stem's channels, rows); the first two rows have PReLU, the others swish
SMALL: tuple[int, tuple[Unit, ...]] = (
    16,
    (
        Unit(24, 1, 6, 1, 2, 2, 0),
        Unit(24, 1, 3, 1, 2, 2, 0),
        Unit(40, 2, 6, 3, 1, 1, 2),
        *[Unit(40, 1, 6, 2, 2, 2, 2)] * 3,
        Unit(80, 2, 6, 3, 1, 2, 4),
        *[Unit(80, 1, 6, 2, 1, 2, 4)] * 2,
        Unit(120, 1, 6, 3, 2, 2, 2),
        *[Unit(120, 1, 3, 4, 2, 2, 2)] * 2,
        Unit(200, 2, 6, 5, 1, 1, 2),
        *[Unit(200, 1, 6, 4, 1, 2, 2)] * 2,
    ),
)
MEDIUM: tuple[int, tuple[Unit, ...]] = (
    24,
    (
        Unit(32, 1, 6, 3, 2, 2, 0),
        Unit(32, 1, 3, 1, 2, 2, 0),
        Unit(40, 2, 6, 4, 1, 1, 2),
        *[Unit(40, 1, 6, 2, 2, 2, 2)] * 3,
        Unit(80, 2, 6, 3, 1, 1, 4),
        *[Unit(80, 1, 6, 4, 2, 2, 4)] * 3,
        Unit(120, 1, 6, 1, 1, 1, 2),
        *[Unit(120, 1, 3, 4, 2, 2, 2)] * 3,
        Unit(200, 2, 6, 4, 1, 1, 2),
        *[Unit(200, 1, 6, 4, 1, 2, 2)] * 3,
    ),
)
TABLES = {"small": SMALL, "medium": MEDIUM}


class MixConv(nn.Module):
    """Depth-wise convolution whose channels are dealt out to kernels 3, 5, 7 and so on."""

    def __init__(self, channels: int, kernels: int, stride: int) -> None:
        super().__init__()
        self.sizes = [channels // kernels] * kernels
        self.sizes[0] += channels % kernels
        self.parts = nn.ModuleList(
            nn.Conv2d(size, size, 2 * i + 3, stride, i + 1, groups=size, bias=False)
            for i, size in enumerate(self.sizes)
        )

    def forward(self, x_nCHW: Tensor) -> Tensor:
        pieces = torch.split(x_nCHW, self.sizes, dim=1)
        mixed = [part(piece) for part, piece in zip(self.parts, pieces, strict=True)]
        return torch.cat(mixed, dim=1)


class Gate(nn.Module):
    """Weigh channels by a gate computed from their means (squeeze and excitation)."""

    def __init__(self, channels: int, hidden: int, act: nn.Module) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.act = act
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x_nCHW: Tensor) -> Tensor:
        mean_nC11 = x_nCHW.mean((2, 3), keepdim=True)
        gate_nC11: Tensor = self.expand(self.act(self.reduce(mean_nC11))).sigmoid()
        return x_nCHW * gate_nC11


class MixUnit(nn.Module):
    """Expand, mixed depth-wise convolution, gate, project; add the input where shapes allow.

    shuffle: deal the channels out anew at the end, even ones before odd ones.
    """

    def __init__(self, c_in: int, unit: Unit, *, prelu: bool, shuffle: bool) -> None:
        super().__init__()
        mid, c_out = unit.factor * c_in, unit.channels
        self.expand: nn.Module = nn.Identity()
        if unit.factor > 1:
            conv = nn.Conv2d(c_in, mid, 1, groups=unit.expand, bias=False)
            self.expand = nn.Sequential(conv, nn.BatchNorm2d(mid), _act(mid, prelu))
        self.mix = nn.Sequential(
            MixConv(mid, unit.kernels, unit.stride), nn.BatchNorm2d(mid), _act(mid, prelu)
        )
        self.gate: nn.Module = nn.Identity()
        if unit.ratio:
            hidden = mid // (unit.factor * unit.ratio)
            self.gate = Gate(mid, hidden, _act(hidden, prelu))
        conv = nn.Conv2d(mid, c_out, 1, groups=unit.project, bias=False)
        self.project = nn.Sequential(conv, nn.BatchNorm2d(c_out))
        self.residual = c_in == c_out and unit.stride == 1
        self.shuffle = shuffle

    def forward(self, x_nCHW: Tensor) -> Tensor:
        y_nCHW: Tensor = self.project(self.gate(self.mix(self.expand(x_nCHW))))
        if self.residual:
            y_nCHW = y_nCHW + x_nCHW
        if self.shuffle:
            y_nCHW = torch.cat((y_nCHW[:, 0::2], y_nCHW[:, 1::2]), dim=1)
        return y_nCHW


def _act(channels: int, prelu: bool) -> nn.Module:
    return nn.PReLU(channels) if prelu else nn.SiLU()


def _scaled(channels: int, width: float) -> int:
    """Round to a multiple of 8 that is at least 8 and at least 0.9 of the exact number."""
    exact = channels * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


class MixFaceNet(nn.Module):
    """Map (n, 3, 112, 112) crops to (n, E) un-normalised embeddings.

    table: "small" or "medium"; width: factor on the channel counts of stem and units, rounded to
    a multiple of 8; tail: channels of the last map; shuffle: the ShuffleMixFaceNet of that size.
    The last norm's scale is frozen at 1, its bias is learnt.
    """

    def __init__(
        self,
        embedding: int = 512,
        *,
        table: str = "small",
        width: float = 1.0,
        tail: int = 1024,
        shuffle: bool = False,
    ) -> None:
        super().__init__()
        first, rows = TABLES[table]
        channels = _scaled(first, width)
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.PReLU(channels),
        )
        plain = Unit(channels, 1, 1, 1, 1, 1, 0)
        units = [MixUnit(channels, plain, prelu=True, shuffle=shuffle)]
        for i, row in enumerate(rows):
            unit = row._replace(channels=_scaled(row.channels, width))
            units.append(MixUnit(channels, unit, prelu=i < 2, shuffle=shuffle))
            channels = unit.channels
        self.units = nn.Sequential(*units)
        self.tail = nn.Sequential(
            nn.Conv2d(channels, tail, 1, bias=False), nn.BatchNorm2d(tail), nn.PReLU(tail)
        )
        self.places = nn.Sequential(
            nn.Conv2d(tail, tail, SIZE // 16, groups=tail, bias=False), nn.BatchNorm2d(tail)
        )
        self.fc = nn.Linear(tail, embedding, bias=False)
        self.features = nn.BatchNorm1d(embedding)
        self.features.weight.requires_grad_(False)  # created as ones
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image_nCHW: Tensor) -> Tensor:
        require_faces(image_nCHW)
        x_nCHW = self.tail(self.units(self.stem(image_nCHW)))
        x_nC = self.places(x_nCHW).flatten(1)
        feature_nE: Tensor = self.features(full_precision(self.fc, x_nC, self.fc.weight))
        return feature_nE
