"""How other programs name the tensors of nets that are here: tables, and which one a file is in.

arcface_torch's names are glint's own, and LVFace's ViTs are arcface_torch's. AdaFace (net.py) and
face.evoLVe (model_irse.py) number the blocks of an IResNet through and its layers within a block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from glint.nn import backbones
from glint.nn.backbones.iresnet import DEPTHS

COUNTER = "num_batches_tracked"  # of norms; older files lack it, and nothing computes with it
EMBEDDING = ("fc.weight", "features.layers.2.weight", "feature.2.weight")  # its rows: its length
ENDS = {"input_layer.0": "conv1", "input_layer.1": "bn1", "input_layer.2": "prelu",
        "output_layer.0": "bn2", "output_layer.3": "fc", "output_layer.4": "features"}  # fmt: skip
SHORT = {"shortcut_layer.0": "downsample.0", "shortcut_layer.1": "downsample.1"}


@dataclass(frozen=True)
class Layout:
    """One program's names. ends: of layers outside blocks; block: of layers in one, by theirs.

    bgr: the net takes blue before red; absent: tensors that its net lacks, and what they count as.
    """

    program: str
    backbone: str
    options: dict[str, Any] = field(default_factory=dict)
    ends: Mapping[str, str] = field(default_factory=dict)
    block: Mapping[str, str] = field(default_factory=dict)
    bgr: bool = False
    absent: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Say whose net it is."""
        return f"{self.program} {self.backbone}"

    def translated(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors by glint's names, prefixes kept, as nets here take them: RGB."""
        if not self.ends:
            return dict(state)
        depths = DEPTHS[self.backbone]
        place = [f"layer{s}.{i}" for s, depth in enumerate(depths, 1) for i in range(depth)]
        made = {}
        for name, value in state.items():
            for theirs, ours in self.ends.items():
                name = re.sub(rf"(^|\.){re.escape(theirs)}\.", rf"\g<1>{ours}.", name)
            if found := re.search(r"(^|\.)body\.(\d+)\.(\w+\.\d+)\.", name):
                number, layer = int(found[2]), self.block.get(found[3])
                if number < len(place) and layer is not None:
                    inner = f"{found[1]}{place[number]}.{layer}."
                    name = name[: found.start()] + inner + name[found.end() :]
            if self.bgr and re.search(r"(^|\.)conv1\.weight$", name) and value.shape[1] == 3:
                value = value.flip(1)
            made[name] = value
        prefix = next((n.removesuffix("fc.bias") for n in made if n.endswith("fc.bias")), "")
        for name, constant in self.absent.items():
            if f"{prefix}fc.bias" in made and f"{prefix}{name}" not in made:
                made[f"{prefix}{name}"] = torch.full_like(made[f"{prefix}fc.bias"], constant)
        return made


def _numbered(names: str) -> dict[str, str]:
    return {f"res_layer.{i}": name for i, name in enumerate(names.split())}


OTHERS = ("mobilefacenet", "mbf", "mbf_large", "vit_t", "vit_s", "vit_b", "vit_l")
LAYOUTS = (
    *(Layout("arcface_torch", name) for name in (*DEPTHS, *OTHERS)),
    *(Layout("AdaFace", name, {"variant": "adaface"}, ENDS,
             SHORT | _numbered("bn1 conv1 bn2 prelu conv2 bn3"), bgr=True,
             absent={"features.weight": 1.0, "features.bias": 0.0})
      for name in ("iresnet18", "iresnet34", "iresnet50", "iresnet100")),
    *(Layout("face.evoLVe", name, {"variant": "evolve"}, ENDS,
             SHORT | _numbered("bn1 conv1 prelu conv2 bn3"))
      for name in ("iresnet50", "iresnet100")),
)  # fmt: skip


def recognise(state: Mapping[str, Tensor]) -> tuple[Layout, int] | None:
    """Return the layout that names every tensor of its net in a file, and the embedding's length.

    What a file has beside such a net does not count. None where no layout does.
    """
    for layout in LAYOUTS:
        found = layout.translated(state)
        ends = [(n, value) for end in EMBEDDING for n, value in found.items()
                if n == end or n.endswith(f".{end}")]  # fmt: skip
        for name, value in ends[:2]:
            end = next(one for one in EMBEDDING if name.endswith(one))
            if value.ndim != 2 or value.shape[0] > 1 << 14:
                continue
            with torch.device("meta"):
                net = backbones.create(layout.backbone, value.shape[0], **layout.options)
            own, prefix = net.state_dict(), name.removesuffix(end)
            parts = {n.split(".")[0] for n in own} | {"body"}
            more = (n[len(prefix) :] for n in found if n.startswith(prefix))
            if any(n not in own and n.split(".")[0] in parts for n in more):
                continue  # a deeper net
            if all(
                n.endswith(COUNTER)
                or ((there := found.get(prefix + n)) is not None and there.shape == one.shape)
                for n, one in own.items()
            ):
                return layout, int(value.shape[0])
    return None
