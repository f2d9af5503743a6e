"""Backbones by name: what a recipe or a checkpoint calls them, and what may be varied."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from torch import nn

from glint.errors import UsageError
from glint.nn.backbones.iresnet import DEPTHS, IResNet
from glint.nn.backbones.mobilefacenet import MobileFaceNet

# name -> (class, options set by the name). A caller's options override these.
_NETS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "iresnet": (IResNet, {"layers": (1, 1, 1, 1), "widths": (64, 128, 256, 512)}),
    **{name: (IResNet, {"layers": layers}) for name, layers in DEPTHS.items()},
    "mobilefacenet": (MobileFaceNet, {"scale": 1, "blocks": (1, 4, 6, 2)}),
    "mbf": (MobileFaceNet, {"scale": 2, "blocks": (1, 4, 6, 2)}),
    "mbf_large": (MobileFaceNet, {"scale": 4, "blocks": (2, 8, 12, 4)}),
}
NAMES: tuple[str, ...] = tuple(_NETS)


def create(name: str, embedding: int = 512, **options: Any) -> nn.Module:
    """Build a backbone that maps (n, 3, 112, 112) crops to (n, embedding), not normalised.

    options: iresnet*: `layers`, `widths` (four counts each), `dropout`, `stem_stride`;
    mobilefacenet, mbf, mbf_large: `width` (factor on every channel count), `scale`, `blocks`.
    Raises UsageError GL0002 for a name, an option or a value that does not exist.
    """
    if name not in _NETS:
        close = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
        raise UsageError(
            "GL0002",
            f"no backbone is called {name!r}",
            hint=(f"did you mean {close[0]}? " if close else "") + "there are " + ", ".join(NAMES),
        )
    net, preset = _NETS[name]
    _check(name, {"embedding": embedding, **options}, _allowed(net))
    return net(embedding, **{**preset, **options})


def _allowed(net: Callable[..., nn.Module]) -> dict[str, str]:
    """Give the options of `net` and what a value of each must be."""
    if net is IResNet:
        return {
            "layers": "four counts",
            "widths": "four counts",
            "dropout": "a share",
            "stem_stride": "a stride",
        }
    return {"scale": "a count", "blocks": "four counts", "width": "a factor"}


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
    "a count": "a whole number of at least 1",
    "four counts": "four whole numbers of at least 1",
    "a stride": "1 or 2",
    "a share": "a number from 0 to below 1",
    "a factor": "a number above 0",
}


def _fits(value: Any, kind: str) -> bool:
    if kind == "four counts":
        listed = isinstance(value, list | tuple)
        return listed and len(value) == 4 and all(_fits(v, "a count") for v in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if kind == "a stride":
        return value in (1, 2)
    if kind == "a count":
        return isinstance(value, int) and value >= 1
    return 0 <= value < 1 if kind == "a share" else 0 < value <= 64
