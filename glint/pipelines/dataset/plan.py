"""What is to be written: the plan of a dataset, on disk before its first shard.

A plan is small enough to send to every worker; the rows that it deals lie beside it, in
OUT/_glint/plan, in the order of positions. Positions are keys.
"""

# n positions

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glint.errors import BusyError, MismatchError, UsageError
from glint.files import atomic, store, strings
from glint.shards import image
from glint.shards import plan as deal
from glint.shards.tar import MEMBERS

SAMPLES = "samples"  # the kind of a plan whose rows are samples of datasets


@dataclass(frozen=True)
class Options:
    """What decides the bytes of a dataset, besides its source."""

    samples_per_shard: int = 10_000
    seed: int = 0
    with_json: bool = False
    formats: tuple[str, ...] = ("jpg",)
    members: str = MEMBERS[0]
    size: str = image.SIZE
    on_size: str = image.KEEP
    on_exif: str = image.REJECT
    unlabelled: bool = False  # every image is an identity of its own: its label is its key

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise UsageError(
                "GL0002",
                f"expected 1 or more, found {self.samples_per_shard}",
                where="--samples-per-shard",
            )
        if not 0 <= self.seed < 2**63:
            raise UsageError("GL0002", f"expected 0 or more, found {self.seed}", where="--seed")
        if self.members not in MEMBERS:
            raise UsageError(
                "GL0002",
                f"expected {' or '.join(MEMBERS)}, found {self.members}",
                where="--members",
            )
        if self.with_json and self.members != MEMBERS[0]:
            raise UsageError(
                "GL0002",
                "a layout of one member has no KEY.json",
                where="--with-json",
                hint="leave out --members or --with-json",
            )
        image.size_of(self.size)
        image.check_policy(self.on_size, "--on-size")
        image.check_policy(self.on_exif, "--on-exif")
        unknown = [f for f in self.formats if f not in image.FORMATS]
        if unknown or not self.formats:
            raise UsageError(
                "GL0002",
                f"expected some of {', '.join(image.FORMATS)}, found "
                f"{', '.join(self.formats) or 'nothing'}",
                where="--formats",
            )


@dataclass(frozen=True)
class Plan:
    """A plan on disk. kind, path: of the source, as workers reopen it."""

    out: str  # the folder that shards are written in
    stamp: str  # SHA-256 of the fingerprint
    kind: str
    path: str
    n: int
    options: Options

    @property
    def state(self) -> Path:
        """Where all lies that an unfinished dataset needs."""
        return Path(self.out) / "_glint"

    @property
    def folder(self) -> Path:
        """Where the plan's rows lie."""
        return self.state / "plan"

    @property
    def parts(self) -> Path:
        """Where the rows of finished shards lie until they are joined."""
        return self.state / "parts"

    def spans(self) -> list[tuple[int, int]]:
        """Return the positions [start, stop) of every shard."""
        return deal.spans(self.n, self.options.samples_per_shard)


@dataclass(frozen=True)
class Inputs:
    """What a plan is made of.

    fingerprint: what tells these inputs and options from others. save: writes the rows of all
    positions into a folder; returns how many there are, and facts to be kept with the plan.
    """

    kind: str
    path: str
    fingerprint: dict[str, Any]
    save: Callable[[Path], tuple[int, dict[str, Any]]]
    options: Options


def take_up(out: Path, inputs: Inputs) -> tuple[Plan, dict[str, Any]]:
    """Write a plan into `out`, or take up the one there; return it and its facts.

    Raises MismatchError GL0006 where `out` was begun from other inputs or options.
    """
    place = out / "_glint" / "plan.json"
    stamp = hashlib.sha256(repr(sorted(inputs.fingerprint.items())).encode()).hexdigest()

    def plan(n: int) -> Plan:
        return Plan(str(out), stamp, inputs.kind, inputs.path, n, inputs.options)

    folder = plan(0).folder
    stored = atomic.read_json(place, "GL0006") if place.exists() else None
    if stored is not None:
        refuse_others(stored.get("fingerprint"), inputs.fingerprint, str(out))
        if (out / "manifest.json").exists() or strings.sound(folder):
            return plan(int(stored["n"])), dict(stored["facts"])
    made = folder.with_name("plan.new")  # under the final name it is whole
    for old in (made, folder):  # half made, damaged, or of an older version
        shutil.rmtree(old, ignore_errors=True)
    atomic.make_dir(made)
    n, facts = inputs.save(made)
    with atomic.writing(folder):
        atomic.sync_files(made)
        if not strings.sound(made):
            raise atomic.unlike(made)
        made.rename(folder)
        atomic.sync_dir(folder.parent)
    if stored is None:
        atomic.write_json(place, {"fingerprint": inputs.fingerprint, "n": n, "facts": facts})
    return plan(n), facts


def refuse_others(old: Any, new: Any, where: str) -> None:
    """Raise MismatchError GL0006 where two fingerprints differ."""
    if old != new:
        raise MismatchError(
            "GL0006",
            "begun from other inputs or options: " + "; ".join(differences(old, new)[:6]),
            where=where,
            hint="use the old ones, or another output",
        )


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Return what differs between two fingerprints, field by field, in words."""
    if isinstance(old, dict) and isinstance(new, dict) and old.get("kind") == new.get("kind"):
        return [
            line
            for key in sorted({*old, *new})
            for line in differences(old.get(key), new.get(key), f"{at}.{key}".lstrip("."))
        ]
    shown = [v["kind"] if isinstance(v, dict) and "kind" in v else v for v in (old, new)]
    return [] if old == new else [f"{at} was {shown[0]}, is {shown[1]}"]


def check_places(src: Path, out: Path) -> None:
    """Refuse outputs that would harm something. Raises UsageError, BusyError."""
    store.refuse(out, "write to a local folder and upload that")
    if out.exists() and not out.is_dir():
        raise BusyError("GL0004", "expected a folder or nothing, found a file", where=str(out))
    if out.is_symlink() and not out.exists():
        raise BusyError("GL0004", "a link that leads nowhere", where=str(out))
    real, source = out.resolve(), src.resolve()
    if real == source or (source.is_dir() and source in real.parents):
        raise UsageError(
            "GL0002",
            "the output lies in the source",
            where=str(out),
            hint="choose a folder outside the source",
        )
    inside = next((p for p in real.parents if (p / "_glint" / "plan.json").exists()), None)
    if inside is not None:
        raise UsageError(
            "GL0002",
            f"the output lies in another one, {inside}",
            where=str(out),
            hint="choose a folder outside of it",
        )
    if out.is_dir():
        foreign = sorted(p.name for p in out.iterdir() if p.name != "_glint")
        begun = (out / "_glint" / "plan.json").exists()  # looked at last: it comes first
        if foreign and not begun:
            raise BusyError(
                "GL0004",
                f"the folder is not empty: {', '.join(foreign[:5])}",
                where=str(out),
                hint="choose a new or an empty folder",
            )


def check_workers(workers: int) -> None:
    """Raise UsageError GL0002 for fewer than one."""
    if workers < 1:
        raise UsageError("GL0002", f"expected 1 or more, found {workers}", where="--workers")


def leave_no_trace(out: Path, fresh: bool) -> None:
    """Remove what was made for an output that got no plan: its source is no good."""
    if not (out / "_glint" / "plan.json").exists():
        shutil.rmtree(out / "_glint", ignore_errors=True)
        if fresh:
            out.rmdir()
