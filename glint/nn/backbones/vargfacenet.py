"""VarGFaceNet (arXiv 1910.04985): convolutions of eight channels per group, however many groups.

Reference: the authors' mxnet program, whose counts of parameters and multiply-adds these are.
"""

# n batch, C channels, H W height and width, E embedding

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from glint.nn.backbones.parts import SIZE, full_precision, require_faces

GROUP = 8  # channels per group
EPS = 2e-5


class Conv(nn.Module):
    """Convolution, norm, PReLU where `active`."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        active: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(c_out, eps=EPS)
        self.act = nn.PReLU(c_out) if active else nn.Identity()

    def forward(self, x_nCHW: Tensor) -> Tensor:
        y_nCHW: Tensor = self.act(self.norm(self.conv(x_nCHW)))
        return y_nCHW


def _separable(
    c_in: int, c_out: int, stride: int = 1, factor: int = 2, active: bool = False
) -> nn.Sequential:
    """Group 3x3 convolution to `factor` times the channels, then a 1x1 convolution to `c_out`."""
    wide = c_in * factor
    return nn.Sequential(
        Conv(c_in, wide, 3, stride, padding=1, groups=c_in // GROUP),
        Conv(wide, c_out, active=active),
    )


class Excite(nn.Module):
    """Weigh channels by a gate computed from their means (squeeze and excitation)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.act = nn.PReLU(channels // 4)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x_nCHW: Tensor) -> Tensor:
        mean_nC11 = x_nCHW.mean((2, 3), keepdim=True)
        gate_nC11: Tensor = self.expand(self.act(self.reduce(mean_nC11))).sigmoid()
        return x_nCHW * gate_nC11


class Normal(nn.Module):
    """Two separable convolutions, the gate, the shortcut, PReLU."""

    def __init__(self, channels: int, *, se: bool, stride: int = 1, factor: int = 2) -> None:
        super().__init__()
        self.first = _separable(channels, channels, stride, factor, active=True)
        self.second = _separable(channels, channels, 1, factor)
        self.se = Excite(channels) if se else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = _separable(channels, channels, stride, factor)
        self.act = nn.PReLU(channels)

    def forward(self, x_nCHW: Tensor) -> Tensor:
        y_nCHW: Tensor = self.se(self.second(self.first(x_nCHW)))
        y_nCHW = self.act(y_nCHW + self.shortcut(x_nCHW))
        return y_nCHW


class Down(nn.Module):
    """Halve the map: two parallel separable convolutions, one on their sum, and a shortcut."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.left = _separable(c_in, c_out, stride=2)
        self.right = _separable(c_in, c_out, stride=2)
        self.act1 = nn.PReLU(c_out)
        self.second = _separable(c_out, c_out)
        self.shortcut = _separable(c_in, c_out, stride=2)
        self.act2 = nn.PReLU(c_out)

    def forward(self, x_nCHW: Tensor) -> Tensor:
        y_nCHW = self.second(self.act1(self.left(x_nCHW) + self.right(x_nCHW)))
        y_nCHW = self.act2(y_nCHW + self.shortcut(x_nCHW))
        return y_nCHW  # type: ignore[no-any-return]


class VarGFaceNet(nn.Module):
    """Map (n, 3, 112, 112) crops to (n, E) un-normalised embeddings.

    se: gates in every block but the halving ones; False is insightface's default, with which
    others did not reach the published accuracy. blocks: normal blocks of the three stages.
    width: factor on every channel count, rounded to a multiple of 8 and at least 8.
    """

    def __init__(
        self,
        embedding: int = 512,
        *,
        se: bool = True,
        blocks: Sequence[int] = (2, 6, 3),
        width: float = 1.0,
    ) -> None:
        super().__init__()
        w40, w80, w160, w320, w512, w1024 = (
            max(GROUP, round(c * width / GROUP) * GROUP) for c in (40, 80, 160, 320, 512, 1024)
        )
        self.stem = Conv(3, w40, 3, padding=1)
        self.head = Normal(w40, se=se, stride=2, factor=1)
        widths = (w40, w80, w160, w320)
        self.stages = nn.ModuleList(
            nn.Sequential(
                Down(widths[i], widths[i + 1]),
                *(Normal(widths[i + 1], se=se) for _ in range(blocks[i])),
            )
            for i in range(3)
        )
        side = SIZE // 16
        self.neck = nn.Sequential(
            Conv(w320, w1024),
            Conv(w1024, w1024, side, groups=w1024 // GROUP, active=False),
            Conv(w1024, w512),
        )
        self.fc = nn.Linear(w512, embedding)
        self.features = nn.BatchNorm1d(embedding, eps=EPS)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image_nCHW: Tensor) -> Tensor:
        require_faces(image_nCHW)
        x_nCHW = self.head(self.stem(image_nCHW))
        for stage in self.stages:
            x_nCHW = stage(x_nCHW)
        x_nC = self.neck(x_nCHW).flatten(1)
        feature_nE: Tensor = self.features(full_precision(self.fc, x_nC, self.fc.weight))
        return feature_nE
