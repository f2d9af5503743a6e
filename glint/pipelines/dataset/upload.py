"""A dataset written to an object store: each shard is made in a staging folder, uploaded, removed.

A store cannot append, so each finished shard has an entry of its own, _glint/parts/NNNNNN.json, put
after the shard's files: the entries are the journal. plan.json goes up first and says whose the
place is; manifest.json goes up last, and the entries go when it is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from glint import log
from glint.errors import BusyError, InputError, MismatchError
from glint.files import atomic, store
from glint.files.store import Store
from glint.jobs import tasks
from glint.log import Progress
from glint.pipelines.dataset.output import Output
from glint.pipelines.dataset.plan import Plan, check_same_inputs
from glint.pipelines.dataset.write import write_shard
from glint.shards import labels, remote, tombstones

Result = TypeVar("Result")

PLAN, MANIFEST = "_glint/plan.json", "manifest.json"
KEPT = (tombstones.FILE, labels.RECORD)  # what a dataset keeps in _glint, besides its plan
AT_ONCE = 16  # requests about small objects under way


@contextmanager
def output(
    out: str | os.PathLike[str], staging: str | os.PathLike[str] | None = None
) -> Iterator[Output]:
    """Yield where a dataset is written: a folder or, for a URL, a place in a store.

    What goes to a store lies in a folder in `staging`, or in the cache, until it is uploaded.
    """
    if not store.is_url(out):
        store.refuse(out, "a URL is written as scheme://bucket/name")
        yield Output(Path(out))
        return
    there = Store(os.fspath(out))
    folder = Path(staging or remote.folder() / "staging") / there.folder_name
    atomic.own_dir(folder / "_glint")
    log.logger.info("shards on their way to %s are staged in %s", there.shown, folder)
    try:
        yield Staged(there, folder)
    except MismatchError as error:
        where = error.where.replace(str(folder), there.shown)
        raise MismatchError(error.code, error.what, where=where, hint=error.hint) from None
    if (folder / MANIFEST).exists() and not (folder / "_glint" / "parts").exists():
        with suppress(BusyError), atomic.lock(folder / "_glint" / "lock"):
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Uploading:
    """The work on one shard, and then its upload: what a worker runs."""

    there: Store

    def __call__(self, plan: Plan, shard: int) -> dict[str, Any]:
        """Write a shard, upload its files and, last, its entry; remove the shard here."""
        entry = write_shard(plan, shard)
        out, stem = Path(plan.out), entry["name"].removesuffix(".tar")
        made = sorted((out / "data").glob(f"{stem}.*")) + sorted(plan.parts.glob(f"{shard:06d}.*"))
        stored = {}
        for path in made:
            if ".tmp." not in path.name:
                name = path.relative_to(out).as_posix()
                stored[name] = self.there.put(name, path)._asdict()
        told = {**entry, "stamp": plan.stamp, "stored": stored}
        self.there.put_bytes(_entry(shard), json.dumps(told, sort_keys=True).encode() + b"\n")
        for name in stored:
            if name.startswith("data/"):
                (out / name).unlink(missing_ok=True)
        return entry


def _entry(shard: int) -> str:
    return f"_glint/parts/{shard:06d}.json"


def _several(call: Callable[[Any], Result], todo: Sequence[Any]) -> list[Result]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(call, todo))


class Staged(Output):
    """A dataset in a store, made in the local `folder`."""

    def __init__(self, there: Store, folder: Path) -> None:
        super().__init__(folder)
        self.there, self.shown, self.work = there, there.shown, Uploading(there)

    def claim(self, plan: Plan) -> None:
        """Put the plan where there is none yet. Raises MismatchError GL0006, BusyError GL0004."""
        try:
            self._claim(plan)
        except (MismatchError, BusyError):  # whose plan is there may come back with it
            shutil.rmtree(plan.folder, ignore_errors=True)
            (self.folder / PLAN).unlink(missing_ok=True)
            raise

    def _claim(self, plan: Plan) -> None:
        there = self.there
        if there.stat(PLAN) is None and there.stat(MANIFEST) is not None:
            what = "a dataset without a plan is there already"
            raise BusyError("GL0004", what, where=there.shown, hint="choose another URL")
        ours = (self.folder / PLAN).read_bytes()
        theirs = there.claim(PLAN, ours)
        if theirs == ours:
            return
        try:
            old = json.loads(theirs)["fingerprint"]
        except (ValueError, KeyError, TypeError):
            what = "expected a plan of glint, found another file"
            raise BusyError("GL0004", what, where=there.where(PLAN)) from None
        check_same_inputs(old, json.loads(ours)["fingerprint"], there.shown)

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest there, None where there is none. Raises InputError GL0301."""
        data = self.there.get(MANIFEST)
        if data is None:
            return None
        try:
            manifest: dict[str, Any] = json.loads(data)
            if manifest["shards"] is not None:
                return manifest
        except (ValueError, KeyError, TypeError):
            pass
        raise InputError("GL0301", "expected a manifest", where=self.there.where(MANIFEST))

    def check(self, manifest: dict[str, Any], shards: Sequence[int], progress: Progress) -> None:
        """Compare the sizes of a finished dataset's shards. Raises InputError GL0302."""

        def look(entry: dict[str, Any]) -> None:
            name = f"data/{entry['name']}"
            stat = self.there.stat(name)
            if stat is None or stat.size != entry["bytes"]:
                found = "no object" if stat is None else f"{stat.size} bytes"
                what = f"expected {entry['bytes']} bytes, found {found}"
                hint = "run the same command to another output, and copy this shard from there"
                raise InputError("GL0302", what, where=self.there.where(name), hint=hint)

        _several(look, [manifest["shards"][i] for i in shards])

    def finished(
        self, plan: Plan, shards: Iterable[int], read: bool = True
    ) -> dict[int, dict[str, Any]]:
        """Return the entries of shards that are there, as they were uploaded."""

        def look(shard: int) -> dict[str, Any] | None:
            data = self.there.get(_entry(shard))
            try:
                entry = dict(json.loads(data or b"{}"))
            except (ValueError, TypeError):
                return None
            if entry.get("stamp") != plan.stamp or entry.get("shard") != shard:
                return None
            same = (self.there.holds(name, **kept) for name, kept in entry["stored"].items())
            return entry if all(same) else None

        todo = list(shards)
        return {i: entry for i, entry in zip(todo, _several(look, todo)) if entry is not None}

    def note(self, plan: Plan, entry: dict[str, Any], task: tasks.Task | None) -> None:
        """Do nothing: the entry is there."""

    def gather(self, plan: Plan) -> None:
        """Fetch the rows of shards written elsewhere. Raises InputError GL0302, GL0903."""

        def fetch(shard: int) -> None:
            data = self.there.get(_entry(shard))
            if data is None:
                raise self.there.lost(_entry(shard))
            for name, kept in json.loads(data)["stored"].items():
                path = self.folder / name
                if not name.startswith("_glint/parts/"):
                    continue
                if path.is_file() and atomic.sha256_of(path) == kept["sha256"]:
                    continue
                part = self.there.get(name)
                if part is None or hashlib.sha256(part).hexdigest() != kept["sha256"]:
                    what, where = "lost, or not as it was uploaded", self.there.where(name)
                    hint = f"remove {self.there.where(_entry(shard))}, and the same command "
                    hint += "makes it anew"
                    raise InputError("GL0302", what, where=where, hint=hint)
                atomic.write_bytes(path, part)

        _several(fetch, range(len(plan.spans())))

    def publish(self) -> None:
        """Upload tables and label versions and, last, the manifest."""
        out = self.folder
        names = [p.relative_to(out).as_posix() for p in sorted(out.rglob("*")) if p.is_file()]
        for name in names:
            private = name.startswith(("_glint/", "data/")) and name not in KEPT
            private = private or name.endswith("/lock") or ".tmp." in name
            if not private and name != MANIFEST:
                self.there.put(name, out / name)
        self.there.put(MANIFEST, out / MANIFEST)

    def tidy(self, plan: Plan) -> None:
        """Remove entries and rows of shards; the last entry last: a rerun sees what is left."""
        shards = len(plan.spans())
        names = [
            f"_glint/parts/{shard:06d}{kind}"
            for shard in range(shards)
            for kind in (".parquet", ".bad.parquet", ".json")
        ]
        if all(self.there.stat(name) is None for name in names[-3:]):  # two may tidy at once
            return
        _several(self.there.remove, names[:-1])
        self.there.remove(names[-1])
        self.there.leave("_glint/parts")
