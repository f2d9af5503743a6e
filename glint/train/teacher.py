"""The teacher of a distilled run: a frozen net of any origin, run on the same images."""

# n images, C channels, H W height and width, D embedding

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from glint.dist.world import World
from glint.errors import GlintError, UsageError
from glint.models import checkpoint, import_weights, recogniser, stored
from glint.models.export_onnx import require_finite
from glint.nn import backbones
from glint.nn.backbones.parts import SIZE
from glint.nn.distill import distance
from glint.train.recipe import Teacher


class Frozen:
    """A teacher on this rank: it learns nothing and is not saved; checkpoints keep its digest."""

    def __init__(
        self,
        table: Teacher,
        embedding: int,
        world: World,
        *,
        threads: int | None = None,
        channels_last: bool = False,
    ) -> None:
        """Open the model that the recipe's `[teacher]` names.

        Raises UsageError GL0001 where there is none, GL0002 where its embeddings do not have
        `embedding` numbers, and what opening it for an evaluation raises.
        """
        self.weight, self.loss, path = table.weight, table.loss, Path(table.model)
        self._net: nn.Module | None = None
        if path.is_dir():
            trained = stored.load(path)
            require_finite(trained)
            self._net, found, self.digest = trained.net, trained.embedding, trained.digest
        elif table.bare:
            self._net = import_weights.read_net(path, table.backbone, embedding)
            found, self.digest = embedding, checkpoint.sha256(path)
        else:
            opened = recogniser.open_model(path, threads=threads, device=str(world.device))
            self._crops: Callable[..., object] = opened.embed
            found, self.digest = opened.dim, opened.digest
            if opened.size != SIZE:
                raise _unfit(table, f"takes crops of {opened.size} x {opened.size}", f"{SIZE}")
        _same_width(table, found, embedding)
        if self._net is not None:
            self._net = self._net.eval().requires_grad_(False).to(world.device)
            if channels_last:
                self._net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def embed(self, image_nCHW: Tensor, mixed: torch.dtype | None = None) -> Tensor:
        """Embed a batch as the trained net is given it (`to_input`): float32 (n, D), as it comes.

        mixed: the type that autocast computes in; an ONNX file computes as it was exported.
        """
        if self._net is not None:
            with torch.autocast(image_nCHW.device.type, mixed, enabled=mixed is not None):
                feature_nD: Tensor = self._net(image_nCHW.float())
            return feature_nD.float()
        pixel_nCHW = image_nCHW.float().mul(127.5).add(127.5).round().to(torch.uint8)
        pixel_nHWC = pixel_nCHW.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return torch.as_tensor(self._crops(pixel_nHWC)).to(image_nCHW.device)

    def distance(self, feature_nD: Tensor, target_nD: Tensor) -> Tensor:
        """Return the loss of this rank's images, without its weight."""
        return distance(feature_nD, target_nD.to(feature_nD.dtype), self.loss)

    def fingerprint(self) -> dict[str, object]:
        """Return what may not change between a run and its continuation."""
        return {"digest": self.digest, "weight": self.weight, "loss": self.loss}


def weight_bytes(table: Teacher, embedding: int) -> int:
    """Count the bytes of a teacher's weights, an ONNX file's by its size; nothing is allocated.

    Raises UsageError GL0001 and GL0002 as opening it would.
    """
    path = Path(table.model)
    if path.is_dir():
        made = checkpoint.read_state(checkpoint.find(path)).get("backbone") or {}
        name, options = str(made.get("name")), made.get("options") or {}
        _same_width(table, int(made.get("embedding", 512)), embedding)
    elif not path.is_file():
        raise UsageError("GL0001", "teacher.model: no such file or folder", where=str(path))
    elif table.bare:
        name, options = import_weights.NAMES.get(table.backbone, table.backbone), {}
    else:
        return path.stat().st_size
    with torch.device("meta"):
        net = backbones.create(name, embedding, **options)
    return sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers()))


def _same_width(table: Teacher, found: int, embedding: int) -> None:
    if found != embedding:
        raise _unfit(table, f"gives {found} numbers a face", f"backbone.embedding = {embedding}")


def _unfit(table: Teacher, found: str, expected: str) -> GlintError:
    return UsageError(
        "GL0002", f"teacher.model {found}, expected {expected}", where=table.model,
        hint="a student has embeddings of its teacher's length, and both see the same crops",
    )  # fmt: skip
