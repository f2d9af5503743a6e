"""MobileFaceNet (arXiv 1804.07573) and arcface_torch's wider `mbf` and `mbf_large`.

One class: `scale` 1 is the paper's net, 2 is mbf, 4 is mbf_large. `scale` doubles what blocks
put out but not what they expand to, as arcface_torch does; `width` scales every channel count.
Attribute names are arcface_torch's, so that its published state dicts load key for key.
"""

# n batch, C channels, H W height and width, E embedding

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from glint.nn.backbones.parts import SIZE, full_precision, require_faces


class ConvBlock(nn.Module):
    """Convolution, norm, PReLU."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.layers = nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.PReLU(c_out))

    def forward(self, x_nCHW: Tensor) -> Tensor:
        y_nCHW: Tensor = self.layers(x_nCHW)
        return y_nCHW


class LinearBlock(nn.Module):
    """Convolution without padding and norm, no activation."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, groups: int = 1) -> None:
        super().__init__()
        conv = nn.Conv2d(c_in, c_out, kernel, groups=groups, bias=False)
        self.layers = nn.Sequential(conv, nn.BatchNorm2d(c_out))

    def forward(self, x_nCHW: Tensor) -> Tensor:
        y_nCHW: Tensor = self.layers(x_nCHW)
        return y_nCHW


class DepthWise(nn.Module):
    """Expand to `mid` channels, filter each alone, project; add the input where `residual`."""

    def __init__(
        self, c_in: int, c_out: int, mid: int, stride: int = 1, residual: bool = False
    ) -> None:
        super().__init__()
        self.residual = residual
        self.layers = nn.Sequential(
            ConvBlock(c_in, mid),
            ConvBlock(mid, mid, kernel=3, stride=stride, groups=mid),
            LinearBlock(mid, c_out),
        )

    def forward(self, x_nCHW: Tensor) -> Tensor:
        y_nCHW: Tensor = self.layers(x_nCHW)
        return x_nCHW + y_nCHW if self.residual else y_nCHW


class Residual(nn.Module):
    """A run of `blocks` residual depth-wise blocks of one width."""

    def __init__(self, channels: int, blocks: int, mid: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(DepthWise(channels, channels, mid, residual=True) for _ in range(blocks))
        )

    def forward(self, x_nCHW: Tensor) -> Tensor:
        y_nCHW: Tensor = self.layers(x_nCHW)
        return y_nCHW


class GlobalDepthWise(nn.Module):
    """Weigh each map's 7x7 places by a filter of its own, then project to the embedding."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            LinearBlock(channels, channels, kernel=SIZE // 16, groups=channels),
            nn.Flatten(),
            nn.Linear(channels, embedding, bias=False),
            nn.BatchNorm1d(embedding),
        )

    def forward(self, x_nCHW: Tensor) -> Tensor:
        linear = self.layers[2]
        assert isinstance(linear, nn.Linear)
        return full_precision(self.layers, x_nCHW, linear.weight)


class MobileFaceNet(nn.Module):
    """Map (n, 3, 112, 112) crops to (n, E) un-normalised embeddings.

    blocks: residual blocks in the four places; blocks[0] = 1 means one grouped convolution there.
    width: factor on every channel count, rounded to a multiple of 8 and at least 8.
    """

    def __init__(
        self,
        embedding: int = 512,
        *,
        scale: int = 1,
        blocks: Sequence[int] = (1, 4, 6, 2),
        width: float = 1.0,
    ) -> None:
        super().__init__()
        w64, w128, w256, w512 = (max(8, round(c * width / 8) * 8) for c in (64, 128, 256, 512))
        narrow, wide = w64 * scale, w128 * scale
        second: nn.Module = Residual(narrow, blocks[0], mid=w128)
        if blocks[0] == 1:
            second = ConvBlock(narrow, narrow, kernel=3, groups=w64)
        self.layers = nn.ModuleList(
            [
                ConvBlock(3, narrow, kernel=3, stride=2),
                second,
                DepthWise(narrow, narrow, mid=w128, stride=2),
                Residual(narrow, blocks[1], mid=w128),
                DepthWise(narrow, wide, mid=w256, stride=2),
                Residual(wide, blocks[2], mid=w256),
                DepthWise(wide, wide, mid=w512, stride=2),
                Residual(wide, blocks[3], mid=w256),
            ]
        )
        self.conv_sep = ConvBlock(wide, w512)
        self.features = GlobalDepthWise(w512, embedding)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image_nCHW: Tensor) -> Tensor:
        require_faces(image_nCHW)
        x_nCHW = image_nCHW
        for layer in self.layers:
            x_nCHW = layer(x_nCHW)
        feature_nE: Tensor = self.features(self.conv_sep(x_nCHW))
        return feature_nE
