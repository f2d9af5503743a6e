"""Trunks of the timm library with a face neck: `timm:NAME`. The one door for timm."""

# n batch, C channels, H W height and width, T tokens, E embedding

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from glint.errors import UsageError
from glint.nn.backbones.parts import SIZE, full_precision, require_faces
from glint.nn.names import TIMM

INSTALL = "pip install 'glint-faces[timm]'"
# what would fetch weights or load a pickle, and what the neck needs to be as it is
_FIXED = {
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "features_only",
    "num_classes",
    "global_pool",
}


class Trunk(nn.Module):
    """Map (n, 3, 112, 112) crops to (n, E) un-normalised embeddings through a timm net.

    Its last map (n, C, H, W), or its tokens (n, T, C), are weighed place by place with a filter
    per channel, as in MobileFaceNet, then projected. No weights are fetched. `options` go to the
    trunk as they are. Raises UsageError GL0003 without timm, GL0002 for what timm does not know.
    """

    def __init__(self, embedding: int, name: str, options: dict[str, Any]) -> None:
        super().__init__()
        with torch.device("cpu"):  # on the meta device some trunks cannot be built
            self.trunk = _trunk(name, options)
            self.last = str(getattr(self.trunk, "output_fmt", "NCHW"))
            channels, height, width = self._map_of(name)
        self.places = nn.Sequential(
            nn.Conv2d(channels, channels, (height, width), groups=channels, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.fc = nn.Linear(channels, embedding, bias=False)
        self.features = nn.BatchNorm1d(embedding)

    def _map_of(self, name: str) -> tuple[int, int, int]:
        """Run one image; give the last map's channels, height and width.

        Parameters that take no part, as those of a pooling head, are frozen: DDP needs a gradient
        of every other one.
        """
        self.trunk.eval()
        with torch.enable_grad():
            map_1CHW = self._maps(torch.zeros(1, 3, SIZE, SIZE), name)
            map_1CHW.sum().backward()  # type: ignore[no-untyped-call]
        self.trunk.train()
        for parameter in self.trunk.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
        _, channels, height, width = map_1CHW.shape
        return channels, height, width

    def _maps(self, image_nCHW: Tensor, name: str = "") -> Tensor:
        """Run the trunk; give its last map as (n, C, H, W), tokens as (n, C, T, 1)."""
        try:
            x: Tensor = self.trunk.forward_features(image_nCHW)  # type: ignore[operator]
        except (AssertionError, RuntimeError) as error:
            if not name:
                raise
            raise UsageError(
                "GL0002",
                f"{TIMM}{name} does not take {SIZE}x{SIZE} images: {error}",
                hint=f"some trunks need the option img_size = {SIZE}",
            ) from None
        if x.ndim == 3:
            return x.transpose(1, 2)[..., None]
        return x.permute(0, 3, 1, 2) if self.last == "NHWC" else x

    def forward(self, image_nCHW: Tensor) -> Tensor:
        require_faces(image_nCHW)
        x_nC = self.places(self._maps(image_nCHW)).flatten(1)
        feature_nE: Tensor = self.features(full_precision(self.fc, x_nC, self.fc.weight))
        return feature_nE


def _trunk(name: str, options: dict[str, Any]) -> nn.Module:
    try:
        import timm
    except Exception as error:  # it also fails where torchvision is not the one for this torch
        missing = isinstance(error, ModuleNotFoundError)
        raise UsageError(
            "GL0003",
            f"{TIMM}{name} needs timm, which " + ("is not installed" if missing else "fails")
            + f" ({error})",
            hint=INSTALL if missing else f"{INSTALL}, with the torchvision made for this torch",
        ) from None  # fmt: skip
    known = timm.list_models()
    if name not in known:  # also keeps out names that are addresses
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise UsageError(
            "GL0002",
            f"timm {timm.__version__} has no model called {name!r}",
            hint=f"did you mean {TIMM}{close[0]}?" if close else "timm.list_models() has the list",
        )
    fixed = sorted(_FIXED & set(options))
    if fixed:
        raise UsageError("GL0002", f"option {fixed[0]} of {TIMM}{name} is not for recipes")
    try:
        trunk: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UsageError("GL0002", f"timm does not build {name}: {error}") from None
    return trunk
