"""Checkpoints: a directory of safetensors that is complete or does not exist, for any world size.

Every rank writes the centre rows it owns; rank 0 writes the rest and, last of all, MANIFEST.json
with the sha256 of every file. A directory is a checkpoint if and only if its manifest verifies.
Loading reads class ranges, so the number of ranks may change. No pickle anywhere.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from glint.errors import MismatchError, ResourceError
from glint.evals.stored import AVERAGED, all_in, problem, sha256
from glint.log import logger
from glint.shards.commit import make_dir, sync_dir, write_bytes

FORMAT = "glint/checkpoint@1"


@dataclass(frozen=True)
class Saved:
    """A verified checkpoint on disk: its directory and its `state.json`."""

    path: Path
    state: dict[str, Any]


def save(
    folder: Path,
    step: int,
    *,
    rank: int,
    barrier: Callable[[], None],
    backbone: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    averaged: dict[str, Tensor] | None = None,
    head: tuple[int, int, dict[str, Tensor]],
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write `folder/step-NNNNNNNN`; every rank calls it with its own `head` rows.

    averaged: the moving average of the backbone, where there is one; head: (start, stop, tensors
    whose first dimension is stop - start). Older checkpoints beyond
    the `keep` newest are removed after the new one is complete.
    Raises ResourceError GL0901 where the disk does not take it (nothing half-written stays valid).
    """
    final = folder / f"step-{step:08d}"
    partial = folder / f".{final.name}.partial"
    try:
        if rank == 0:
            make_dir(folder)
            for left in folder.glob(".step-*.partial"):  # of runs that were killed
                shutil.rmtree(left, ignore_errors=True)
            partial.mkdir()
        barrier()
        start, stop, rows = head
        if stop > start:
            _write(
                partial / f"head-{rank:05d}.safetensors",
                rows,
                {"start": str(start), "stop": str(stop)},
            )
        if rank == 0:
            _write(partial / "backbone.safetensors", backbone)
            _write(partial / "optimizer.safetensors", optimizer)
            if averaged is not None:
                _write(partial / AVERAGED, averaged)
            text = json.dumps({"format": FORMAT, "step": step, **state}, indent=1) + "\n"
            write_bytes(partial / "state.json", text.encode())
        barrier()
        if rank == 0:
            files = {
                p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)}
                for p in sorted(partial.iterdir())
            }
            manifest = json.dumps({"format": FORMAT, "files": files}, indent=1) + "\n"
            write_bytes(partial / "MANIFEST.json", manifest.encode())
            if final.exists():  # the same step saved again after a restart
                shutil.rmtree(final)
            partial.rename(final)
            sync_dir(folder)
            for old in all_in(folder)[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
        barrier()
    except OSError as error:
        raise ResourceError(
            "GL0901",
            f"the checkpoint could not be written: {error}",
            where=str(final),
            hint="free space there; the checkpoint before it is intact",
        ) from error
    return final


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    plain = {name: t.detach().contiguous().cpu() for name, t in tensors.items()}
    save_file(plain, path, metadata={"format": "pt", **(metadata or {})})
    with path.open("rb") as file:
        os.fsync(file.fileno())


def newest(folder: Path) -> Saved | None:
    """Find the newest valid checkpoint under `folder`, saying which damaged ones it passed over.

    Raises MismatchError GL0701 where there are checkpoints and none is valid.
    """
    found = all_in(folder)
    for path in reversed(found):
        wrong = problem(path)
        if not wrong:
            return Saved(path, read_state(path))
        logger.warning("checkpoint %s passed over: %s", path.name, wrong)
    if found:
        raise MismatchError(
            "GL0701",
            f"{len(found)} checkpoints and none is valid",
            where=str(folder),
            hint="start a new run with another --out, or restore the folder from a backup",
        )
    return None


def read_state(path: Path) -> dict[str, Any]:
    """Read `state.json` of the checkpoint at `path`."""
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    return state


def tensors(saved: Saved, name: str) -> dict[str, Tensor]:
    """Load one whole file (`backbone`, `optimizer` or `ema`) of a checkpoint."""
    return load_file(saved.path / f"{name}.safetensors")


def head_fetch(saved: Saved) -> Callable[[str, int, int], Tensor]:
    """Give `fetch(name, start, stop)`: rows [start, stop) of a centre tensor over all files.

    Only the files that overlap the range are opened, and only their rows read.
    """
    parts: list[tuple[int, int, Path]] = []
    for path in sorted(saved.path.glob("head-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
        parts.append((int(meta["start"]), int(meta["stop"]), path))
    parts.sort()

    def fetch(name: str, start: int, stop: int) -> Tensor:
        wanted = [
            (max(first, start), min(last, stop), first, path)
            for first, last, path in parts
            if first < stop and start < last
        ]
        if sum(b - a for a, b, _, _ in wanted) != stop - start or not parts:
            raise MismatchError(
                "GL0701", f"not all centre rows {start} to {stop} are there", where=str(saved.path)
            )
        if not wanted:  # an empty range still has a shape
            wanted = [(first, first, first, path) for first, _, path in parts[:1]]
        pieces: list[Tensor] = []
        for a, b, first, path in wanted:
            with safe_open(path, framework="pt") as file:
                if name not in list(file.keys()):
                    raise MismatchError(
                        "GL0702",
                        f"the checkpoint's head has no {name!r}",
                        where=str(path),
                        hint="head.rule must be the one the run was started with",
                    )
                pieces.append(file.get_slice(name)[a - first : b - first])
        return torch.cat(pieces)

    return fetch
