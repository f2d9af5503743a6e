"""A trained net, rebuilt from a run or checkpoint directory. No pickle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glint.errors import InputError
from glint.files import atomic
from glint.models import checkpoint

if TYPE_CHECKING:
    from torch import nn


WEIGHTS, MODEL_TYPE = "model.safetensors", "glint-recogniser"  # as they are pushed to a hub


@dataclass(frozen=True)
class Stored:
    """A net in float32 and evaluation mode, and where it came from.

    digest: sha256 of the weights file; name, embedding, options: what `backbones.create` takes.
    """

    net: nn.Module
    path: Path
    name: str
    embedding: int
    options: dict[str, Any]
    digest: str
    step: int


def _packed(path: Path) -> dict[str, Any] | None:
    """Return config.json of a model as `glint push` lays it out, its weights checked; else None."""
    if not (path / WEIGHTS).is_file() or not (path / "config.json").is_file():
        return None
    config = atomic.read_json(path / "config.json", "GL0701")
    if config.get("model_type") != MODEL_TYPE:
        return None
    if (found := checkpoint.sha256(path / WEIGHTS)) != config.get("sha256"):
        what = f"sha256 {found}, expected {config.get('sha256')}"
        raise InputError("GL0701", what, where=str(path / WEIGHTS))
    return config


def load(path: str | Path) -> Stored:
    """Rebuild the net of a run, checkpoint or pulled directory: its average if it keeps one.

    Raises what `checkpoint.find` raises, InputError GL0701 where the weights are not those of the
    backbone that state.json names, UsageError GL0002 for a backbone that does not exist.
    """
    import torch

    from glint.nn import backbones, lora

    path, packed = Path(path), _packed(Path(path))
    if packed is None:
        path = checkpoint.find(path)
    state = checkpoint.read_state(path) if packed is None else packed
    made: Any = state.get("backbone")
    made = made if isinstance(made, dict) else {}
    name, options = made.get("name"), made.get("options") or {}
    embedding, step = made.get("embedding", 512), state.get("step", 0)
    if (
        not isinstance(name, str)
        or not isinstance(options, dict)
        or {"name", "embedding"} & {*options}
    ):
        raise InputError("GL0701", "state.json names no backbone", where=str(path))
    with torch.device("meta"):
        net = backbones.create(name, embedding, **options)
    weights = checkpoint.judged_weights(path) if packed is None else WEIGHTS
    try:
        found = lora.merged(checkpoint.read_tensors(path / weights))
    except (ValueError, OSError) as error:
        raise InputError("GL0701", f"{weights}: {error}", where=str(path)) from None
    try:
        net.load_state_dict(found, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise InputError(
            "GL0701", f"{weights} does not fit backbone {name}: {' '.join(lines)}", where=str(path)
        ) from None
    net = net.float().eval().requires_grad_(False)
    digest = checkpoint.sha256(path / weights)
    return Stored(net, path, name, embedding, options, digest, step if isinstance(step, int) else 0)
