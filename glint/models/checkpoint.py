"""Checkpoints: a directory of safetensors that is complete or does not exist, for any world size.

Every rank writes the centre rows it owns and their sha256; rank 0 writes the rest and, last of all,
MANIFEST.json with the sha256 of every file. A directory is a checkpoint if and only if its manifest
verifies; ranks share that work. Loading reads class ranges, so the number of ranks may change. No
pickle anywhere. Ranks meet between the parts of a save and tell each other what went wrong, so that
none waits for one that could not write.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from glint.dist.collectives import all_gather_rows, all_reduce_
from glint.dist.world import World
from glint.errors import GlintError, MismatchError, ResourceError
from glint.files.atomic import make_dir, sync_dir, write_bytes
from glint.log import logger
from glint.models import stored
from glint.models.stored import AVERAGED, STATE, all_in, problem, sha256

FORMAT = "glint/checkpoint@1"
SUM = ".sha256"  # of the rows of another rank, until the manifest has it
WORDS = 500  # bytes of a problem that the other ranks are told

Meet = Callable[[str], str]  # every rank brings its problem or ""; all leave with the first one


def alone(problem: str) -> str:
    """Return at once: there is only one rank."""
    return problem


@dataclass(frozen=True)
class Saved:
    """A verified checkpoint on disk: its directory and its `state.json`."""

    path: Path
    state: dict[str, Any]


def save(
    folder: Path,
    step: int,
    *,
    rank: int = 0,
    meet: Meet = alone,
    backbone: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    averaged: dict[str, Tensor] | None = None,
    head: tuple[int, int, dict[str, Tensor]],
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write `folder/step-NNNNNNNN`; every rank calls it with its own `head` rows.

    meet: waits for every rank; averaged: the moving average of the backbone, where there is one;
    head: (start, stop, tensors whose first dimension is stop - start). Older checkpoints beyond
    the `keep` newest are removed after the new one is complete.
    Raises ResourceError GL0901 on every rank where one of them cannot write (nothing half-written
    stays valid).
    """
    final = folder / f"step-{step:08d}"
    partial = folder / f".{final.name}.partial"

    def begin() -> None:
        make_dir(folder)
        for left in folder.glob(".step-*.partial"):  # of runs that were killed
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir()

    def write() -> None:
        start, stop, rows = head
        if stop > start:
            span = {"start": str(start), "stop": str(stop)}
            path = partial / f"head-{rank:05d}.safetensors"
            _write(path, rows, span)
            if rank:  # its owner reads it back, not the first rank all of them
                path.with_suffix(SUM).write_text(sha256(path))
        if rank == 0:
            _write(partial / "backbone.safetensors", backbone)
            _write(partial / "optimizer.safetensors", optimizer)
            if averaged is not None:
                _write(partial / AVERAGED, averaged)
            text = json.dumps({"format": FORMAT, "step": step, **state}, indent=1) + "\n"
            write_bytes(partial / STATE, text.encode())

    def finish() -> None:
        sums = {p.stem: p.read_text() for p in partial.glob(f"*{SUM}")}
        for stem in sums:
            (partial / stem).with_suffix(SUM).unlink()
        files = {
            p.name: {"bytes": p.stat().st_size, "sha256": sums.get(p.stem) or sha256(p)}
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

    for work in (begin, write, finish):
        wrong: Exception | None = None
        try:
            if rank == 0 or work is write:
                work()
        except (OSError, SafetensorError, GlintError) as error:
            wrong = error
        said = wrong.what if isinstance(wrong, GlintError) else str(wrong)
        told = meet("" if wrong is None else said or type(wrong).__name__)
        if told:
            raise ResourceError(
                "GL0901",
                f"the checkpoint could not be written: {told}",
                where=str(final),
                hint="free space there; the checkpoint before it is intact",
            ) from wrong
    return final


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    plain = {name: t.detach().contiguous().cpu() for name, t in tensors.items()}
    save_file(plain, path, metadata={"format": "pt", **(metadata or {})})
    with path.open("rb") as file:
        os.fsync(file.fileno())


def newest(folder: Path, line: World | None = None, names: Sequence[str] = ()) -> Saved | None:
    """Find the newest valid checkpoint under `folder`, saying which damaged ones it passed over.

    line: ranks that ask together: they share the files to verify and all get the same answer;
    names: the files to check by sha256, all by default.
    Raises MismatchError GL0701 where there are checkpoints and none is valid.
    """
    rank, size = (0, 1) if line is None else (line.rank, line.size)
    meet = alone if line is None else meeting(line)
    steps = [int(path.name.removeprefix("step-")) for path in all_in(folder)]
    passed = 0
    while True:
        step = max(steps, default=-1)
        if line is not None:
            step = int(all_reduce_(torch.tensor([step], device=line.device), line, "max"))
        if step < 0:
            break
        path = folder / f"step-{step:08d}"
        wrong = meet(problem(path, names, (rank, size)))
        if not wrong:
            return Saved(path, read_state(path))
        if rank == 0:
            logger.warning("checkpoint %s passed over: %s", path.name, wrong)
        steps, passed = [s for s in steps if s < step], passed + 1
    if passed:
        raise MismatchError(
            "GL0701",
            f"{passed} checkpoints and none is valid",
            where=str(folder),
            hint="start a new run with another --out, or restore the folder from a backup",
        )
    return None


def meeting(line: World) -> Meet:
    """Give what tells all ranks of `line` the first of their problems, and waits for all."""
    if line.size == 1:
        return alone

    def meet(problem: str) -> str:
        text = problem.encode()[:WORDS]
        mine = torch.zeros((1, WORDS), dtype=torch.uint8)
        mine[0, : len(text)] = torch.tensor(list(text), dtype=torch.uint8)
        said = all_gather_rows(mine.to(line.device), line).cpu().numpy()
        for rank, row in enumerate(said):
            if row.any():
                words = bytes(row).rstrip(b"\0").decode(errors="replace")
                return f"rank {rank}: {words}"
        return ""

    return meet


def read_state(path: Path) -> dict[str, Any]:
    """Read `state.json` of the checkpoint at `path`. Raises InputError GL0701."""
    return stored.read_json(path / STATE)


def tensors(saved: Saved, name: str) -> dict[str, Tensor]:
    """Load one whole file (`backbone`, `optimizer` or `ema`) of a checkpoint. Raises ValueError."""
    return stored.tensors(saved.path / f"{name}.safetensors")


def head_fetch(saved: Saved) -> Callable[[str, int, int], Tensor]:
    """Give `fetch(name, start, stop)`: rows [start, stop) of a centre tensor over all files.

    Only the files that overlap the range are opened, and only their rows read.
    """
    parts: list[tuple[int, int, Path]] = []
    for path in sorted(saved.path.glob("head-*.safetensors")):
        stored.require_short_header(path)
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
