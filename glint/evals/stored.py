"""A trained net from a run or checkpoint directory: found, verified, rebuilt. No pickle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glint.errors import InputError, UsageError
from glint.log import logger

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = "backbone.safetensors"


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


def find(path: str | Path) -> Path:
    """Give the checkpoint directory that `path` means: itself, or a run's newest valid one.

    Raises UsageError GL0001 where nothing is there, InputError GL0701 where nothing valid is.
    """
    path = Path(path)
    if not path.is_dir():
        raise UsageError("GL0001", "no such run or checkpoint directory", where=str(path))
    if (path / "state.json").exists() or (path / "MANIFEST.json").exists():
        wrong = _problem(path)
        if wrong:
            raise InputError("GL0701", wrong, where=str(path))
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = sorted(p for p in folder.glob("step-*") if p.is_dir())
    for checkpoint in reversed(found):
        wrong = _problem(checkpoint)
        if not wrong:
            return checkpoint
        logger.warning("checkpoint %s passed over: %s", checkpoint.name, wrong)
    raise InputError(
        "GL0701",
        f"{len(found)} checkpoints here and none is valid" if found else "no checkpoint here",
        where=str(folder),
        hint="expected state.json, backbone.safetensors and MANIFEST.json in step-NNNNNNNN",
    )


def load(path: str | Path) -> Stored:
    """Rebuild the net of a run or checkpoint directory.

    Raises what `find` raises, InputError GL0701 where the weights are not those of the backbone
    that state.json names, UsageError GL0002 for a backbone that does not exist.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from glint.nn import backbones

    path = find(path)
    state = _json(path / "state.json")
    made = state.get("backbone")
    if not isinstance(made, dict) or not isinstance(made.get("name"), str):
        raise InputError("GL0701", "state.json names no backbone", where=str(path))
    name, options = made["name"], dict(made.get("options") or {})
    embedding = int(made.get("embedding", 512))
    with torch.device("meta"):
        net = backbones.create(name, embedding, **options)
    try:
        tensors = load_file(path / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise InputError("GL0701", f"{WEIGHTS}: {error}", where=str(path)) from None
    try:
        net.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise InputError(
            "GL0701", f"{WEIGHTS} does not fit backbone {name}: {' '.join(lines)}", where=str(path)
        ) from None
    net = net.float().eval().requires_grad_(False)
    digest = sha256(path / WEIGHTS)
    return Stored(net, path, name, embedding, options, digest, int(state.get("step", 0)))


def _problem(path: Path) -> str:
    """Say what is wrong with the files that a net needs; empty where they match the manifest."""
    try:
        files = _json(path / "MANIFEST.json")["files"]
        for name in ("state.json", WEIGHTS):
            if name not in files:
                return f"MANIFEST.json does not list {name}"
            if sha256(path / name) != files[name]["sha256"]:
                return f"{name} does not match its sha256"
        missing = [name for name in files if not (path / name).is_file()]
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, InputError, KeyError, TypeError) as error:
        return f"MANIFEST.json is not readable ({type(error).__name__})"
    return f"{missing[0]} is missing" if missing else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError("GL0701", f"not valid JSON ({error})", where=str(path)) from None
    if not isinstance(value, dict):
        raise InputError("GL0701", "expected a JSON object", where=str(path))
    return value


def sha256(path: Path) -> str:
    """Digest a file's content, as hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
