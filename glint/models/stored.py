"""A trained net from a run or checkpoint directory: found, verified, rebuilt. No pickle."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glint.errors import InputError, UsageError
from glint.files import atomic
from glint.log import logger

if TYPE_CHECKING:
    from torch import Tensor, nn

STATE = "state.json"
WEIGHTS = "backbone.safetensors"
AVERAGED = "ema.safetensors"  # the moving average of the weights, where a run keeps one
HEADER = 8 << 20  # bytes of a file's list of tensors; that of the largest net takes 0.1 MiB
NAME = re.compile(r"step-(\d{8})")


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
        wrong = problem(path, (STATE, _weights(path)))
        if wrong:
            raise InputError("GL0701", wrong, where=str(path))
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = all_in(folder)
    for checkpoint in reversed(found):
        wrong = problem(checkpoint, (STATE, _weights(checkpoint)))
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
    """Rebuild the net of a run or checkpoint directory: the average of its weights if it keeps one.

    Raises what `find` raises, InputError GL0701 where the weights are not those of the backbone
    that state.json names, UsageError GL0002 for a backbone that does not exist.
    """
    import torch

    from glint.nn import backbones

    path = find(path)
    state = read_json(path / "state.json")
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
    weights = _weights(path)
    try:
        found = tensors(path / weights)
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
    digest = sha256(path / weights)
    return Stored(net, path, name, embedding, options, digest, step if isinstance(step, int) else 0)


def _weights(path: Path) -> str:
    """Name the file of the net that is judged."""
    try:
        listed = read_json(path / "MANIFEST.json").get("files")
    except (OSError, InputError):
        return WEIGHTS
    return AVERAGED if isinstance(listed, dict) and AVERAGED in listed else WEIGHTS


def problem(path: Path, names: Sequence[str] = (), share: tuple[int, int] = (0, 1)) -> str:
    """Say what is wrong with the checkpoint at `path`; empty where it verifies.

    names: the files to check by sha256, every one of the manifest by default; all must be there,
    at their size. share: (i, n) checks the i-th of n parts of them, as one of n ranks does.
    """
    try:
        files = read_json(path / "MANIFEST.json")["files"]
        for name in (STATE, WEIGHTS, *names):
            if name not in files:
                return f"MANIFEST.json does not list {name}"
        for number, (name, entry) in enumerate(sorted(files.items())):
            if os.sep in name or not (path / name).is_file():
                return f"{name} is missing"
            size = (path / name).stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size} bytes, expected {entry['bytes']}"
            mine = number % share[1] == share[0] and (not names or name in names)
            if mine and sha256(path / name) != entry["sha256"]:
                return f"{name} does not match its sha256"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, InputError, KeyError, TypeError, AttributeError) as error:
        return f"MANIFEST.json is not readable ({type(error).__name__})"
    return ""


def all_in(folder: Path) -> list[Path]:
    """Give the checkpoint directories of a run's `checkpoints` folder, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir() and NAME.fullmatch(p.name))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint. Raises InputError GL0701 where it is not one, OSError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError("GL0701", f"not valid JSON ({error})", where=str(path)) from None
    if not isinstance(value, dict):
        raise InputError("GL0701", "expected a JSON object", where=str(path))
    return value


def require_short_header(path: Path) -> None:
    """Look at how long the list of tensors of a .safetensors file is, before anybody reads it.

    Raises ValueError where it is longer than any net's, and would cost a multiple in memory.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > HEADER:
        raise ValueError(f"its list of tensors claims {size} bytes, expected at most {HEADER}")


def tensors(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors file. Raises ValueError or OSError where it is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require_short_header(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def sha256(path: Path) -> str:
    """Give the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return atomic.sha256(file)
