"""IResNet, the improved residual net of ArcFace (arXiv 1801.07698; arcface_torch's variant).

Attribute names are insightface's, so that its published state dicts load key for key.
"""

# n batch, C channels, H W height and width, D = widths[3] * 49, E embedding

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from glint.nn.backbones.parts import SIZE, full_precision, require_faces

DEPTHS: dict[str, tuple[int, int, int, int]] = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
    "iresnet200": (6, 26, 60, 6),
}


def _conv3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)


VARIANTS = ("insightface", "adaface", "evolve")


class Block(nn.Module):
    """Norm, conv, norm, PReLU, strided conv, norm, plus a shortcut; nothing after the sum.

    adaface, evolve: a shortcut between equal counts of channels takes every `stride`-th place, not
    a convolution; evolve has no norm between its convolutions.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, variant: str = "insightface") -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = _conv3(c_in, c_out)
        self.bn2 = nn.Identity() if variant == "evolve" else nn.BatchNorm2d(c_out)
        self.prelu = nn.PReLU(c_out)
        self.conv2 = _conv3(c_out, c_out, stride)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.downsample: nn.Module | None = None
        if variant != "insightface" and c_in == c_out and stride != 1:
            self.downsample = nn.MaxPool2d(1, stride)
        elif stride != 1 or c_in != c_out:
            project = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(project, nn.BatchNorm2d(c_out))

    def forward(self, x_nCHW: Tensor) -> Tensor:
        y_nCHW: Tensor = self.prelu(self.bn2(self.conv1(self.bn1(x_nCHW))))
        y_nCHW = self.bn3(self.conv2(y_nCHW))
        return y_nCHW + (x_nCHW if self.downsample is None else self.downsample(x_nCHW))


class IResNet(nn.Module):
    """Map (n, 3, 112, 112) crops to (n, E) un-normalised embeddings.

    layers: blocks per stage; widths: channels per stage, the stem has widths[0]; stem_stride: 1 as
    published, 2 for toys that train a quarter as long per image. variant: see `Block`.
    The last norm's scale is frozen at 1, its bias is learnt.
    """

    def __init__(
        self,
        embedding: int = 512,
        *,
        layers: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        dropout: float = 0.0,
        stem_stride: int = 1,
        variant: str = "insightface",
    ) -> None:
        super().__init__()
        self.conv1 = _conv3(3, widths[0], stem_stride)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        self.layer1 = _stage(widths[0], widths[0], layers[0], variant)
        self.layer2 = _stage(widths[0], widths[1], layers[1], variant)
        self.layer3 = _stage(widths[1], widths[2], layers[2], variant)
        self.layer4 = _stage(widths[2], widths[3], layers[3], variant)
        self.bn2 = nn.BatchNorm2d(widths[3])
        self.dropout = nn.Dropout(dropout)
        side = -(-SIZE // (16 * stem_stride))
        self.fc = nn.Linear(widths[3] * side**2, embedding)
        self.features = nn.BatchNorm1d(embedding)
        self.features.weight.requires_grad_(False)  # created as ones
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.1)

    def forward(self, image_nCHW: Tensor) -> Tensor:
        require_faces(image_nCHW)
        x_nCHW = self.prelu(self.bn1(self.conv1(image_nCHW)))
        x_nCHW = self.layer4(self.layer3(self.layer2(self.layer1(x_nCHW))))
        x_nD = self.dropout(self.bn2(x_nCHW).flatten(1))
        feature_nE: Tensor = self.features(full_precision(self.fc, x_nD, self.fc.weight))
        return feature_nE


def _stage(c_in: int, c_out: int, blocks: int, variant: str) -> nn.Sequential:
    rest = (Block(c_out, c_out, 1, variant) for _ in range(blocks - 1))
    return nn.Sequential(Block(c_in, c_out, 2, variant), *rest)
