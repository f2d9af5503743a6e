"""What is to be written: the plan of a dataset, on disk before its first shard.

A plan is small enough to send to every worker; the rows that it deals lie beside it, in
OUT/_glint/plan, in the order of positions. Positions are keys.
"""

# n positions

from __future__ import annotations

import hashlib
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from glint.errors import BusyError, MismatchError, UsageError
from glint.files import atomic, store, strings
from glint.shards import image
from glint.shards.plan import spans
from glint.shards.tar import MEMBERS

LATER = ("unlabelled", "decode", "to_jpeg")  # not in plans from before there were these options
SAMPLES = "samples"  # the kind of a plan whose rows are samples of datasets
Save = Callable[[Path], tuple[int, dict[str, Any]]]
Entries = list[dict[str, Any]]  # of the journal, one for each finished shard


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
    decode: bool = False  # images that give no picture are quarantined
    to_jpeg: int = 0  # what is no JPEG becomes one, of this quality

    def __post_init__(self) -> None:
        known = bool(self.formats) and set(self.formats) <= {*image.FORMATS}
        given, formats = ", ".join(self.formats) or "nothing", ", ".join(image.FORMATS)
        for good, expected, found, option in (
            (self.samples_per_shard >= 1, "1 or more", self.samples_per_shard, "samples-per-shard"),
            (0 <= self.seed < 2**63, "0 or more", self.seed, "seed"),
            (self.members in MEMBERS, " or ".join(MEMBERS), self.members, "members"),
            (known, f"some of {formats}", given, "formats"),
        ):
            if not good:
                what = f"expected {expected}, found {found}"
                raise UsageError("GL0002", what, where=f"--{option}")
        if not 0 <= self.to_jpeg <= 100:
            what = f"expected 1 to 100, found {self.to_jpeg}"
            raise UsageError("GL0002", what, where="--to-jpeg")
        if self.with_json and self.members != MEMBERS[0]:
            what, hint = (
                "a layout of one member has no KEY.json",
                "leave out --members or --with-json",
            )
            raise UsageError("GL0002", what, where="--with-json", hint=hint)
        image.size_of(self.size)
        image.check_policy(self.on_size, "--on-size")
        image.check_policy(self.on_exif, "--on-exif")

    @property
    def each(self) -> int:
        """How many samples a position may give: keys are positions times this, and on."""
        return 1

    def facts(self) -> dict[str, Any]:
        """Return what tells these options from others."""
        return {k: v for k, v in asdict(self).items() if v or k not in LATER}


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
        return spans(self.n, self.options.samples_per_shard)


class Job(ABC):
    """A dataset to be written: what its plan is made of, and what its finished shards become.

    kind, path: of the source, as workers reopen it.
    """

    kind = ""
    path = ""
    options: Options

    @abstractmethod
    def inputs(self) -> tuple[dict[str, Any], Save]:
        """Return what tells these inputs and options from others, and what writes the rows.

        The second writes the rows of all positions into a folder; it returns how many there are,
        and facts to be kept with the plan.
        """

    @abstractmethod
    def join(self, plan: Plan, entries: Entries, facts: dict[str, Any]) -> dict[str, Any]:
        """Join the rows of all shards, write the tables and, last, the manifest; return it."""


def load_or_create(out: Path, job: Job) -> tuple[Plan, dict[str, Any]]:
    """Write the plan of a job into `out`, or take up the one there; return it and its facts.

    Raises MismatchError GL0006 where `out` was begun from other inputs or options.
    """
    place = out / "_glint" / "plan.json"
    fingerprint, save = job.inputs()
    stamp = hashlib.sha256(repr(sorted(fingerprint.items())).encode()).hexdigest()
    plan = Plan(str(out), stamp, job.kind, job.path, 0, job.options)
    stored = atomic.read_json(place, "GL0006") if place.exists() else None
    if stored is not None:
        check_same_inputs(stored.get("fingerprint"), fingerprint, str(out))
        if (out / "manifest.json").exists() or strings.checksums_hold(plan.folder):
            return replace(plan, n=int(stored["n"])), dict(stored["facts"])
    made = plan.folder.with_name("plan.new")  # under the final name it is whole
    for old in (made, plan.folder):  # half made, damaged, or of an older version
        shutil.rmtree(old, ignore_errors=True)
    atomic.own_dir(made)
    n, facts = save(made)
    with atomic.writing(plan.folder):
        atomic.sync_files(made)
        if not strings.checksums_hold(made):
            raise atomic.unlike(made)
        made.rename(plan.folder)
        atomic.sync_dir(plan.state)
    if stored is None:
        atomic.write_json(place, {"fingerprint": fingerprint, "n": n, "facts": facts})
    return replace(plan, n=n), facts


def check_same_inputs(old: Any, new: Any, where: str) -> None:
    """Raise MismatchError GL0006 where two fingerprints differ."""
    if old != new:
        what = "begun from other inputs or options: " + "; ".join(differences(old, new)[:6])
        raise MismatchError("GL0006", what, where=where, hint="use the old ones, or another output")


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
        what, hint = "the output lies in the source", "choose a folder outside the source"
        raise UsageError("GL0002", what, where=str(out), hint=hint)
    inside = next((p for p in real.parents if (p / "_glint" / "plan.json").exists()), None)
    if inside is not None:
        what, hint = f"the output lies in another one, {inside}", "choose a folder outside of it"
        raise UsageError("GL0002", what, where=str(out), hint=hint)
    if out.is_dir():
        foreign = sorted(p.name for p in out.iterdir() if p.name != "_glint")
        begun = (out / "_glint" / "plan.json").exists()  # looked at last: it comes first
        if foreign and not begun:
            what = f"the folder is not empty: {', '.join(foreign[:5])}"
            raise BusyError("GL0004", what, where=str(out), hint="choose a new or an empty folder")


def check_workers(workers: int) -> None:
    """Raise UsageError GL0002 for fewer than one."""
    if workers < 1:
        raise UsageError("GL0002", f"expected 1 or more, found {workers}", where="--workers")


def remove_unplanned(out: Path, fresh: bool) -> None:
    """Remove what was made for an output that got no plan: its source is no good."""
    if not (out / "_glint" / "plan.json").exists():
        for folder in ("plan", "plan.new"):
            shutil.rmtree(out / "_glint" / folder, ignore_errors=True)
        atomic.sweep(out / "_glint")
        (out / "_glint" / "lock").unlink(missing_ok=True)
        with suppress(OSError):  # not empty: something else is there, and stays
            (out / "_glint").rmdir()
            if fresh:
                out.rmdir()
