"""A dataset written to an object store: each shard is made in a staging folder, uploaded, removed.

A store cannot append, so each finished shard has an entry of its own, _glint/parts/NNNNNN.json, put
after the shard's files: the entries are the journal. plan.json goes up first and says whose the
place is; manifest.json goes up last, and the entries go when it is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from glint import log
from glint.errors import BusyError, InputError, MismatchError
from glint.log import Progress
from glint.pipelines import stage, tasks
from glint.shards import cache, commit, store
from glint.shards.store import Store

if TYPE_CHECKING:
    from glint.pipelines.shard import Merge, Plan, Run

Result = TypeVar("Result")

MARK = "_glint/store.json"  # in a staging folder: the URL that it is for
PLAN, MANIFEST = "_glint/plan.json", "manifest.json"
KEPT = ("_glint/tombstones.jsonl",)  # what a dataset keeps in _glint, besides its plan
AT_ONCE = 16  # requests about small objects under way


@contextmanager
def staged(
    out: str | os.PathLike[str], staging: str | os.PathLike[str] | None = None
) -> Iterator[Path]:
    """Yield the folder to write an output in: `out` itself or, for a URL, a staging folder.

    The staging folder lies in `staging`, or in the cache; it is removed when all is uploaded.
    """
    if not store.is_url(out):
        store.refuse(out, "a URL is written as scheme://bucket/name")
        yield Path(out)
        return
    there = Store(os.fspath(out))
    place = hashlib.sha256(there.shown.encode()).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", there.shown.rpartition("/")[2]) or "dataset"
    folder = Path(staging or cache.folder() / "staging") / f"{name}-{place}"
    commit.make_dir(folder / "_glint")
    commit.write_json(folder / MARK, {"url": there.url})
    log.logger.info("shards on their way to %s are staged in %s", there.shown, folder)
    try:
        yield folder
    except MismatchError as error:
        where = error.where.replace(str(folder), there.shown)
        raise MismatchError(error.code, error.what, where=where, hint=error.hint) from None
    if (folder / MANIFEST).exists() and not (folder / "_glint" / "parts").exists():
        with suppress(BusyError), commit.lock(folder / "_glint" / "lock"):
            shutil.rmtree(folder, ignore_errors=True)


def of(out: Path) -> Store | None:
    """Return the store that a staging folder is for; None where `out` is an output itself."""
    if not (out / MARK).is_file():
        return None
    return Store(str(commit.read_json(out / MARK).get("url")))


def place(out: Path) -> str:
    """Return the name of an output as people may see it."""
    there = of(out)
    return str(out) if there is None else there.shown


def claim(there: Store, plan: Plan) -> None:
    """Put the plan where there is none yet. Raises MismatchError GL0006, BusyError GL0004."""
    if there.stat(PLAN) is None and there.stat(MANIFEST) is not None:
        raise BusyError(
            "GL0004",
            "a dataset without a plan is there already",
            where=there.shown,
            hint="choose another URL",
        )
    ours = (Path(plan.out) / PLAN).read_bytes()
    theirs = there.claim(PLAN, ours)
    if theirs == ours:
        return
    try:
        old = json.loads(theirs)["fingerprint"]
    except (ValueError, KeyError, TypeError):
        raise BusyError(
            "GL0004", "expected a plan of glint, found another file", where=there.where(PLAN)
        ) from None
    new = json.loads(ours)["fingerprint"]
    if old != new:
        from glint.pipelines.shard import differences

        raise MismatchError(
            "GL0006",
            "begun from other inputs or options: " + "; ".join(differences(old, new)[:6]),
            where=there.shown,
            hint="use the old ones, or another output",
        )


@dataclass(frozen=True)
class Uploading:
    """The work on one shard, and then its upload: what a worker runs."""

    work: Run
    there: Store

    def __call__(self, plan: Plan, shard: int) -> dict[str, Any]:
        """Write a shard, upload its files and, last, its entry; remove the shard here."""
        entry = self.work(plan, shard)
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


def finished(there: Store, plan: Plan, shards: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Return the entries of shards that are there, as they were uploaded."""

    def look(shard: int) -> dict[str, Any] | None:
        data = there.get(_entry(shard))
        try:
            entry = dict(json.loads(data or b"{}"))
        except (ValueError, TypeError):
            return None
        if entry.get("stamp") != plan.stamp or entry.get("shard") != shard:
            return None
        same = (there.holds(name, **kept) for name, kept in entry["stored"].items())
        return entry if all(same) else None

    todo = list(shards)
    return {i: entry for i, entry in zip(todo, _several(look, todo)) if entry is not None}


def _several(call: Callable[[Any], Result], todo: Sequence[Any]) -> list[Result]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(call, todo))


def write(
    there: Store,
    plan: Plan,
    facts: dict[str, Any],
    workers: int,
    progress: Progress,
    *,
    work: Run,
    join: Merge,
    after: Callable[[Path], None] | None,
    task: tasks.Task | None,
    engine: stage.Engine | None,
) -> tuple[int, dict[str, Any] | None, int]:
    """Write what is missing of an output in a store, or look at what is there.

    Returns how many shards were there before, the manifest (None where shards are left to other
    tasks), and how many are left. Raises what `shard` raises, and ResourceError for failed uploads.
    """
    out, spans = Path(plan.out), plan.spans()
    try:
        claim(there, plan)
    except (MismatchError, BusyError):  # whose plan is there may come back with it
        shutil.rmtree(plan.folder, ignore_errors=True)
        (out / PLAN).unlink(missing_ok=True)
        raise
    mine = tasks.share(task, range(len(spans)))
    if (manifest := _manifest(there)) is not None:
        _look(there, [manifest["shards"][i] for i in mine])
        _tidy(there, len(spans))
        return len(mine), manifest, 0
    for folder in (out / "data", plan.parts):
        commit.make_dir(folder)
    done = finished(there, plan, mine)
    resumed = len(done)
    if resumed:
        log.logger.info("resuming: %d of %d shards are uploaded", resumed, len(mine))
    count, total = (sum(spans[i][1] - spans[i][0] for i in some) for some in (done, mine))
    progress(count, total)

    def finish(shard: int, entry: dict[str, Any]) -> None:
        nonlocal count
        done[shard] = entry
        count += spans[shard][1] - spans[shard][0]
        progress(count, total)

    todo = [i for i in mine if i not in done]
    stage.each(Uploading(work, there), plan, todo, workers, finish, engine=engine)
    with tasks.ending(out / "_glint", task):
        if task is not None:
            if (manifest := _manifest(there)) is not None:  # another task was here first
                return resumed, manifest, 0
            done |= finished(there, plan, [i for i in range(len(spans)) if i not in done])
            if len(done) < len(spans):
                return resumed, None, len(spans) - len(done)
        entries = [done[i] for i in range(len(spans))]
        try:
            _gather(there, plan, len(spans))
        except InputError:
            if (manifest := _manifest(there)) is None:
                raise
            return resumed, manifest, 0  # a run elsewhere was quicker, and has tidied up
        manifest = join(plan, entries, facts)
        if after is not None:
            after(out)
        _publish(there, out)
        _tidy(there, len(spans))
    return resumed, manifest, 0


def _manifest(there: Store) -> dict[str, Any] | None:
    data = there.get(MANIFEST)
    if data is None:
        return None
    try:
        manifest: dict[str, Any] = json.loads(data)
        if manifest["shards"] is not None:
            return manifest
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError("GL0301", "expected a manifest", where=there.where(MANIFEST))


def _look(there: Store, shards: list[dict[str, Any]]) -> None:
    """Compare the sizes of a finished dataset's shards. Raises InputError GL0302."""

    def look(entry: dict[str, Any]) -> None:
        name = f"data/{entry['name']}"
        stat = there.stat(name)
        if stat is None or stat.size != entry["bytes"]:
            found = "no object" if stat is None else f"{stat.size} bytes"
            raise InputError(
                "GL0302",
                f"expected {entry['bytes']} bytes, found {found}",
                where=there.where(name),
                hint="run the same command to another output, and copy this shard from there",
            )

    _several(look, shards)


def _gather(there: Store, plan: Plan, shards: int) -> None:
    """Fetch the rows of shards that were written elsewhere. Raises InputError GL0302, GL0903."""

    def fetch(shard: int) -> None:
        data = there.get(_entry(shard))
        if data is None:
            raise there.lost(_entry(shard))
        for name, kept in json.loads(data)["stored"].items():
            path = Path(plan.out) / name
            if not name.startswith("_glint/parts/"):
                continue
            if path.is_file():
                with path.open("rb") as file:
                    if commit.sha256(file) == kept["sha256"]:
                        continue
            part = there.get(name)
            if part is None or hashlib.sha256(part).hexdigest() != kept["sha256"]:
                raise InputError(
                    "GL0302",
                    "lost, or not as it was uploaded",
                    where=there.where(name),
                    hint=f"remove {there.where(_entry(shard))}, and the same command makes it anew",
                )
            commit.write_bytes(path, part)

    _several(fetch, range(shards))


def _publish(there: Store, out: Path) -> None:
    """Upload tables and label versions and, last, the manifest."""
    names = [path.relative_to(out).as_posix() for path in sorted(out.rglob("*")) if path.is_file()]
    for name in names:
        private = name.startswith(("_glint/", "data/")) and name not in KEPT
        private = private or name.endswith("/lock") or ".tmp." in name
        if not private and name != MANIFEST:
            there.put(name, out / name)
    there.put(MANIFEST, out / MANIFEST)


def _tidy(there: Store, shards: int) -> None:
    """Remove entries and rows of shards; the last entry goes last: a rerun sees what is left."""
    if not shards or there.stat(_entry(shards - 1)) is None:
        return
    names = [
        f"_glint/parts/{shard:06d}{kind}"
        for shard in range(shards)
        for kind in (".parquet", ".bad.parquet", ".json")
    ]
    _several(there.remove, names[:-1])
    there.remove(names[-1])
    there.leave("_glint/parts")
