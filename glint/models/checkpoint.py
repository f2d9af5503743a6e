"""Checkpoints: a directory of safetensors that is complete or does not exist, for any world size.

Every rank writes the centre rows it owns and their sha256; rank 0 writes the rest and, last of all,
MANIFEST.json with the sha256 of every file. A directory is a checkpoint if and only if its manifest
verifies; ranks share that work. Loading reads class ranges, so the number of ranks may change. No
pickle anywhere. Ranks meet between the parts of a save and exchange what went wrong, so that none
waits for one that could not write.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from glint.errors import GlintError, InputError, MismatchError, ResourceError, UsageError
from glint.files import atomic, reads
from glint.files.atomic import own_dir, sync_dir, write_bytes
from glint.log import logger

if TYPE_CHECKING:  # torch is loaded where tensors are: listing and verifying need none
    from torch import Tensor

    from glint.dist.world import World

FORMAT = "glint/checkpoint@1"
MANIFEST = "MANIFEST.json"
STATE = "state.json"
WEIGHTS = "backbone.safetensors"
AVERAGED = "ema.safetensors"  # the moving average of the weights, where a run keeps one
NAME = re.compile(r"step-(\d{8})")
SUM = ".sha256"  # of the rows of another rank, until the manifest has it
UNREAD = "cannot be read: "
WORDS = 500  # bytes of a problem that the other ranks get
HEADER = 8 << 20  # bytes of a file's list of tensors; that of the largest net takes 0.1 MiB

Meet = Callable[[str], str]  # every rank brings its problem or ""; all get the first one


def alone(problem: str) -> str:
    """Return the problem: `meet` of a single rank."""
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
    the `keep` newest that verify are removed after the new one is complete.
    Raises ResourceError GL0901 on every rank where one of them cannot write (nothing half-written
    stays valid).
    """
    final = folder / f"step-{step:08d}"
    partial = folder / f".{final.name}.partial"

    def begin() -> None:
        own_dir(folder)
        sweep(folder)
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
            _write(partial / WEIGHTS, backbone)
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
        write_bytes(partial / MANIFEST, manifest.encode())
        if final.exists():  # the same step saved again after a restart
            shutil.rmtree(final)
        partial.rename(final)
        sync_dir(folder)
        prune(folder, final, keep)

    for work in (begin, write, finish):
        wrong: Exception | None = None
        try:
            if rank == 0 or work is write:
                work()
        except (OSError, SafetensorError, GlintError) as error:
            wrong = error
        what = wrong.what if isinstance(wrong, GlintError) else str(wrong)
        first = meet("" if wrong is None else what or type(wrong).__name__)
        if first:
            raise ResourceError(
                "GL0901",
                f"the checkpoint could not be written: {first}",
                where=str(final),
                hint="free space there; the checkpoint before it is intact",
            ) from wrong
    return final


def sweep(folder: Path) -> None:
    """Remove what runs that were killed left half written, or half removed."""
    for left in folder.glob(".step-*.partial"):
        shutil.rmtree(left, ignore_errors=True)


def _remove(path: Path) -> None:
    """Remove a checkpoint; one half removed has its name no more."""
    left = path.with_name(f".{path.name}.partial")
    with suppress(OSError):
        path.rename(left)
    shutil.rmtree(left, ignore_errors=True)


def prune(folder: Path, made: Path, keep: int) -> None:
    """Remove checkpoints older than the `keep` newest that verify; `made` was read back.

    What cannot be read is kept, and counts as none. Where one is to go, the others are read, from
    the newest on, until there are enough.
    """
    sound, there = 0, all_in(folder)
    for path in reversed(there) if len(there) > keep else ():
        if sound >= keep:
            _remove(path)
        elif path == made or not (wrong := problem(path)):
            sound += 1
        else:
            logger.warning("checkpoint %s does not count as one kept: %s", path.name, wrong)


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    from safetensors.torch import save_file

    plain = {name: t.detach().contiguous().cpu() for name, t in tensors.items()}
    save_file(plain, path, metadata={"format": "pt", **(metadata or {})})
    with path.open("r+b") as file:  # the library spells metadata in another order each time
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":")).encode().ljust(size))
        file.flush()
        os.fsync(file.fileno())


def newest(folder: Path, line: World | None = None, names: Sequence[str] = ()) -> Saved | None:
    """Find the newest valid checkpoint under `folder`, warning of damaged ones on the way.

    line: ranks that ask together: they share the files to verify and all get the same answer;
    names: the files to check by sha256, all by default.
    Raises MismatchError GL0701 where there are checkpoints and none is valid.
    """
    path, damaged = _newest(folder, line, lambda path: names)
    if path is not None:
        return Saved(path, read_state(path))
    if damaged:
        raise MismatchError(
            "GL0701",
            f"{damaged} checkpoints and none is valid",
            where=str(folder),
            hint="start a new run with another --out, or restore the folder from a backup",
        )
    return None


def keep_as(folder: Path, place: Path) -> None:
    """Make `place` the checkpoint `folder`, which stays, by links to its files. Raises GL0901.

    One that was there is replaced; a crash leaves either, or neither and a file of the name .old.
    """
    part, old = place.with_name(f"{place.name}.part"), place.with_name(f"{place.name}.old")
    with atomic.writing(place):
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir()
        for path in sorted(folder.iterdir()):
            try:
                os.link(path, part / path.name)
            except OSError:  # a file system without links
                shutil.copyfile(path, part / path.name)
        atomic.sync_dir(part)
        if place.exists():
            place.rename(old)
        part.rename(place)
        atomic.sync_dir(place.parent)
        shutil.rmtree(old, ignore_errors=True)


def find(path: str | Path) -> Path:
    """Return the checkpoint directory that `path` means: itself, or a run's newest valid one.

    Only what its net is rebuilt from is checked by sha256.
    Raises UsageError GL0001 where nothing is there, InputError GL0701 where nothing valid is.
    """
    path = Path(path)
    if not path.is_dir():
        raise UsageError("GL0001", "no such run or checkpoint directory", where=str(path))
    if (path / STATE).exists() or (path / MANIFEST).exists():
        wrong = problem(path, (STATE, judged_weights(path)))
        if UNREAD in wrong:
            raise ResourceError("GL0903", wrong, where=str(path))
        if wrong:
            raise InputError("GL0701", wrong, where=str(path))
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found, damaged = _newest(folder, None, lambda path: (STATE, judged_weights(path)))
    if found is not None:
        return found
    raise InputError(
        "GL0701",
        f"{damaged} checkpoints here and none is valid" if damaged else "no checkpoint here",
        where=str(folder),
        hint="expected state.json, backbone.safetensors and MANIFEST.json in step-NNNNNNNN",
    )


def _newest(
    folder: Path, line: World | None, names: Callable[[Path], Sequence[str]]
) -> tuple[Path | None, int]:
    """Return the newest checkpoint whose files `names` verify, and how many newer ones do not."""
    rank, size = (0, 1) if line is None else (line.rank, line.size)
    meet = alone if line is None else meeting(line)
    steps = [int(path.name.removeprefix("step-")) for path in all_in(folder)]
    damaged = 0
    while True:
        step = max(steps, default=-1)
        if line is not None:
            step = _largest(step, line)
        if step < 0:
            return None, damaged
        path = folder / f"step-{step:08d}"
        wrong = meet(problem(path, names(path), (rank, size)))
        if not wrong:
            return path, damaged
        if UNREAD in wrong:  # an older one instead would lose steps for nothing
            hint = "look at the disk and the limit of open files, then give the same command again"
            raise ResourceError("GL0903", wrong, where=str(path), hint=hint)
        if rank == 0:
            logger.warning("checkpoint %s passed over: %s", path.name, wrong)
        steps, damaged = [s for s in steps if s < step], damaged + 1


def _largest(step: int, line: World) -> int:
    import torch

    from glint.dist.collectives import all_reduce_

    return int(all_reduce_(torch.tensor([step], device=line.device), line, "max"))


def meeting(line: World) -> Meet:
    """Return a `meet` of the ranks of `line`: all get the first of their problems."""
    if line.size == 1:
        return alone
    import torch

    from glint.dist.collectives import all_gather_rows

    def meet(problem: str) -> str:
        text = problem.encode()[:WORDS]
        mine = torch.zeros((1, WORDS), dtype=torch.uint8)
        mine[0, : len(text)] = torch.tensor(list(text), dtype=torch.uint8)
        problems = all_gather_rows(mine.to(line.device), line).cpu().numpy()
        for rank, row in enumerate(problems):
            if row.any():
                return f"rank {rank}: " + bytes(row).rstrip(b"\0").decode(errors="replace")
        return ""

    return meet


def problem(path: Path, names: Sequence[str] = (), share: tuple[int, int] = (0, 1)) -> str:
    """Return what is wrong with the checkpoint at `path`; empty where it verifies.

    A text with UNREAD says nothing of it: a read failed. names: the files to check by sha256, every
    one of the manifest by default; all must be there, at their size. share: (i, n) checks the i-th
    of n parts of them, as one of n ranks does.
    """
    if not (path / MANIFEST).exists():
        return f"{MANIFEST} is missing"
    try:
        files = atomic.read_json(path / MANIFEST, "GL0701")["files"]
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
    except ResourceError as error:
        return error.what
    except (OSError, InputError, KeyError, TypeError, AttributeError) as error:
        if reads.passing(error):
            return f"{UNREAD}{error.strerror}"  # type: ignore[union-attr]
        return f"MANIFEST.json is not readable ({type(error).__name__})"
    return ""


def all_in(folder: Path) -> list[Path]:
    """Return the checkpoint directories of a run's `checkpoints` folder, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir() and NAME.fullmatch(p.name))


def judged_weights(path: Path) -> str:
    """Return the file of the net that is evaluated and exported: the average, where one is kept."""
    try:
        listed = atomic.read_json(path / MANIFEST, "GL0701").get("files")
    except InputError:
        return WEIGHTS
    return AVERAGED if isinstance(listed, dict) and AVERAGED in listed else WEIGHTS


def read_state(path: Path) -> dict[str, Any]:
    """Read `state.json` of the checkpoint at `path`. Raises InputError GL0701."""
    return atomic.read_json(path / STATE, "GL0701")


def tensors(saved: Saved, name: str) -> dict[str, Tensor]:
    """Load one whole file (`backbone`, `optimizer` or `ema`) of a checkpoint. Raises ValueError."""
    return read_tensors(saved.path / f"{name}.safetensors")


def head_fetch(saved: Saved) -> Callable[[str, int, int], Tensor]:
    """Return `fetch(name, start, stop)`: rows [start, stop) of a centre tensor over all files.

    Only the files that overlap the range are opened, and only their rows read.
    """
    import torch

    parts: list[tuple[int, int, Path]] = []
    for path in sorted(saved.path.glob("head-*.safetensors")):
        _require_short_header(path)
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


def _require_short_header(path: Path) -> None:
    """Check how long the list of tensors of a .safetensors file is, before it is read.

    Raises ValueError where it is longer than any net's, and would cost a multiple in memory.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > HEADER:
        raise ValueError(f"its list of tensors claims {size} bytes, expected at most {HEADER}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors file. Raises ValueError or OSError where it is none."""
    from safetensors.torch import load_file

    _require_short_header(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def sha256(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    return reads.patient(lambda: atomic.sha256_of(path))
