"""Backbones by name: what a recipe or a checkpoint calls them, and what may be varied."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from torch import nn

from glint.errors import UsageError
from glint.nn.backbones import timm_trunk
from glint.nn.backbones.graph import Graph
from glint.nn.backbones.iresnet import DEPTHS, VARIANTS, IResNet
from glint.nn.backbones.mixfacenet import MixFaceNet
from glint.nn.backbones.mobilefacenet import MobileFaceNet
from glint.nn.backbones.vargfacenet import VarGFaceNet
from glint.nn.backbones.vit import ViT
from glint.nn.names import NAMES, ONNX, TIMM

# name -> (class, options set by the name). A caller's options override these.
_NETS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "iresnet": (IResNet, {"layers": (1, 1, 1, 1), "widths": (64, 128, 256, 512)}),
    **{name: (IResNet, {"layers": layers}) for name, layers in DEPTHS.items()},
    ONNX: (Graph, {"graph": ""}),
    "mobilefacenet": (MobileFaceNet, {"scale": 1, "blocks": (1, 4, 6, 2)}),
    "mbf": (MobileFaceNet, {"scale": 2, "blocks": (1, 4, 6, 2)}),
    "mbf_large": (MobileFaceNet, {"scale": 4, "blocks": (2, 8, 12, 4)}),
    "vit_t": (ViT, {"width": 256, "depth": 12}),
    "vit_s": (ViT, {"width": 512, "depth": 12}),
    "vit_b": (ViT, {"width": 512, "depth": 24}),
    "vit_l": (ViT, {"width": 768, "depth": 24}),
    "vargfacenet": (VarGFaceNet, {}),
    **{
        kind + size: (MixFaceNet, {**preset, "shuffle": kind == "shufflemixfacenet_"})
        for kind in ("mixfacenet_", "shufflemixfacenet_")
        for size, preset in (
            ("xs", {"table": "small", "width": 0.5, "tail": 512}),
            ("s", {"table": "small"}),
            ("m", {"table": "medium"}),
        )
    },
}

# a file of weights may name any net: what it may cost to build one ends here
MOST, DEEPEST = 1 << 16, 1 << 10  # channels or numbers of an embedding; layers in a row

# class -> its options and what a value of each must be
_OPTIONS: dict[Callable[..., nn.Module], dict[str, str]] = {
    IResNet: {
        "layers": "four depths",
        "widths": "four counts",
        "dropout": "a share",
        "stem_stride": "a stride",
        "variant": "a variant",
    },
    MobileFaceNet: {"scale": "a count", "blocks": "four depths", "width": "a factor"},
    ViT: {
        "width": "a count",
        "depth": "a depth",
        "heads": "a count",
        "drop_path": "a share",
        "mask": "a share",
        "checkpoint": "a flag",
        "half_attention": "a flag",
    },
    VarGFaceNet: {"se": "a flag", "blocks": "three depths", "width": "a factor"},
    Graph: {"graph": "a text"},
    MixFaceNet: {"width": "a factor", "tail": "a count"},
}


def create(name: str, embedding: int = 512, **options: Any) -> nn.Module:
    """Build a backbone that maps (n, 3, 112, 112) crops to (n, embedding), not normalised.

    name: one of `NAMES`, or "timm:" and a model of timm, whose options are then timm's own.
    options: as listed in docs/backbones.md. Raises UsageError GL0002 for a name, an option or a
    value that does not exist, GL0003 for a timm trunk without timm.
    """
    if name.startswith(TIMM):
        _check(name, {"embedding": embedding}, {})
        return timm_trunk.Trunk(embedding, name.removeprefix(TIMM), options)
    if name not in _NETS:
        close = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
        raise UsageError(
            "GL0002",
            f"no backbone is called {name!r}",
            hint=(f"did you mean {close[0]}? " if close else "")
            + f"there are {', '.join(NAMES)}, and {TIMM}MODEL",
        )
    net, preset = _NETS[name]
    _check(name, {"embedding": embedding, **options}, _OPTIONS[net])
    merged = {**preset, **options}
    if net is ViT and merged["width"] % merged.get("heads", 8):
        raise UsageError(
            "GL0002",
            f"backbone {name}: width {merged['width']} does not divide by "
            f"{merged.get('heads', 8)} heads",
        )
    return net(embedding, **merged)


def _check(name: str, options: dict[str, Any], allowed: dict[str, str]) -> None:
    allowed = {"embedding": "a count", **allowed}
    for key, value in options.items():
        if key not in allowed:
            close = difflib.get_close_matches(key, allowed, n=1)
            raise UsageError(
                "GL0002",
                f"backbone {name} has no option {key!r}",
                hint=(f"did you mean {close[0]}? " if close else "")
                + "it has "
                + ", ".join(allowed),
            )
        if not _fits(value, allowed[key]):
            raise UsageError(
                "GL0002",
                f"option {key} of backbone {name} must be {_RULES[allowed[key]]}, found {value!r}",
            )


_RULES = {
    "a count": f"a whole number from 1 to {MOST}",
    "a depth": f"a whole number from 1 to {DEEPEST}",
    "three depths": f"three whole numbers from 1 to {DEEPEST}",
    "four depths": f"four whole numbers from 1 to {DEEPEST}",
    "four counts": f"four whole numbers from 1 to {MOST}",
    "a flag": "true or false",
    "a stride": "1 or 2",
    "a variant": f"one of {', '.join(VARIANTS)}",
    "a text": "the layers that glint import writes",
    "a share": "a number from 0 to below 1",
    "a factor": "a number above 0",
}


def _fits(value: Any, kind: str) -> bool:
    if kind in ("three depths", "four depths", "four counts"):
        listed = isinstance(value, list | tuple)
        length, each = 3 if kind == "three depths" else 4, f"a {kind.split()[1][:-1]}"
        return listed and len(value) == length and all(_fits(v, each) for v in value)
    if kind == "a variant":
        return value in VARIANTS
    if kind == "a flag":
        return isinstance(value, bool)
    if kind == "a text":
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if kind == "a stride":
        return value in (1, 2)
    if kind in ("a count", "a depth"):
        return isinstance(value, int) and 1 <= value <= (MOST if kind == "a count" else DEEPEST)
    return 0 <= value < 1 if kind == "a share" else 0 < value <= 64
