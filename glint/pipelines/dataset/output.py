"""From a plan to a finished dataset: what is missing is written, all is joined, the manifest last.

`shard`, `reshard`, `merge` and `drop --erase` differ in their plans and in what they join; where a
dataset is written, in a folder or by way of one to a store, is an `Output`.
"""

# C labels as sharded

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

import glint
from glint import log, schemas
from glint.errors import GlintError, InputError
from glint.files import atomic, parquet, seal
from glint.jobs import tasks, workers
from glint.jobs.workers import Engine
from glint.log import Progress
from glint.pipelines.dataset.plan import Entries, Job, Plan, load_or_create, remove_unplanned
from glint.pipelines.dataset.write import ROW_OPTIONS, forget, write_shard
from glint.shards import dali
from glint.shards.dataset import FORMAT, TABLES

PIECE = 1 << 16  # cells hashed together


class Output:
    """Where a dataset is written: a local folder, whose journal lists the shards that are done.

    `folder` is where it is made, `shown` what people call it; `work` makes one shard, in a worker.
    `upload.Staged` is one whose dataset goes on to a store.
    """

    work: Callable[[Plan, int], dict[str, Any]] = staticmethod(write_shard)

    def __init__(self, folder: Path) -> None:
        self.folder, self.shown = folder, str(folder)
        self._journal: atomic.Journal | None = None

    def claim(self, plan: Plan) -> None:
        """Make the place ours: here it is, by the lock. Raises MismatchError, BusyError."""

    def manifest(self) -> dict[str, Any] | None:
        """Return a finished dataset's manifest, else None. Raises InputError GL0301."""
        path = self.folder / "manifest.json"
        return seal.check(path) if path.exists() else None

    def check(self, manifest: dict[str, Any], shards: Sequence[int], progress: Progress) -> None:
        """Compare shards of a finished dataset with its manifest; `progress` is in samples.

        Raises InputError GL0302.
        """
        mine = [manifest["shards"][i] for i in shards]
        done, total = 0, sum(entry["samples"] for entry in mine)
        for read in (False, True):  # all sizes first: they cost nothing
            for entry in mine:
                if found := _damage(self.folder / "data" / entry["name"], entry, read):
                    path, what = found
                    hint = f"run the same command into a new folder: the data/{path.name} that it "
                    hint += "writes is this one as it was, and may be copied here (or go on with "
                    hint += "the new folder)"
                    raise InputError("GL0302", what, where=str(path), hint=hint)
                if read:
                    done += entry["samples"]
                    progress(done, total, "checked")

    def finished(
        self, plan: Plan, shards: Iterable[int], read: bool = True
    ) -> dict[int, dict[str, Any]]:
        """Return the entries of those shards that are there; `read`: with the bytes they had."""
        wanted = set(shards)
        found: dict[int, dict[str, Any]] = {}
        for path in sorted(plan.state.glob("journal*.jsonl")):
            for entry in atomic.journal_lines(path)[0]:
                if entry.get("stamp") == plan.stamp and entry["shard"] in wanted:
                    found[entry["shard"]] = entry
        return {shard: entry for shard, entry in found.items() if self._holds(plan, entry, read)}

    def _holds(self, plan: Plan, entry: dict[str, Any], read: bool) -> bool:
        path = self.folder / "data" / entry["name"]
        if not (plan.parts / f"{entry['shard']:06d}.parquet").is_file():
            return False
        for name, said in entry.get("parts", {}).items() if read else ():
            if not (plan.parts / name).is_file() or atomic.xxh3_of(plan.parts / name) != said:
                return False
        return (not read or "idx" in entry) and _damage(path, entry, read) is None

    def note(self, plan: Plan, entry: dict[str, Any], task: tasks.Task | None) -> None:
        """Note that a shard is done; it lasts when this returns."""
        if self._journal is None:
            self._journal = atomic.Journal(plan.state / tasks.journal(task))
        self._journal.append({**entry, "stamp": plan.stamp})

    def gather(self, plan: Plan) -> None:
        """Bring the rows of all shards into `folder`, where they are. Raises InputError GL0302."""

    def publish(self) -> None:
        """Show the finished dataset, as it is here."""

    def tidy(self, plan: Plan) -> None:
        """Remove from elsewhere what only an unfinished dataset needs."""

    def close(self) -> None:
        """Close the journal."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None


def _damage(path: Path, entry: dict[str, Any], read: bool) -> tuple[Path, str] | None:
    """Compare the size of a shard with its entry, with `read` also its bytes and its index.

    Returns which file is not as it was, and what is wrong with it; None where all is well.
    """
    size = path.stat().st_size if path.is_file() else -1
    if size != entry["bytes"]:
        found = f"{size} bytes" if size >= 0 else "no file"
        return path, f"expected {entry['bytes']} bytes, found {found}"
    if not read:
        return None
    try:
        found = atomic.sha256_of(path)
    except OSError as error:
        return path, f"cannot be read: {error.strerror or error}"
    if found != entry["sha256"]:
        expected = f"expected sha256 {entry['sha256']}, found {found}"
        return path, f"its bytes have changed: {expected}"
    problem = dali.damage(path.parent, entry)
    return None if problem is None else (path.with_name(dali.index_name(path.name)), problem[0])


@dataclass(frozen=True)
class Execution:
    """How a stage runs; none of it reaches the bytes."""

    workers: int = 1
    progress: Progress = log.silent
    task: tasks.Task | None = None
    engine: Engine | None = None
    say: Callable[[dict[str, Any]], str] = lambda entry: ""  # of each shard, for the progress


class Written(NamedTuple):
    """How far an output is: its manifest, or how many shards are left to other tasks."""

    resumed: int  # shards that earlier runs wrote; of a task, its own
    manifest: dict[str, Any] | None
    left: int = 0


def make(
    output: Output, job: Job, how: Execution
) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any]]:
    """Hold an output, plan it or take up its plan, and complete it.

    Returns what every stage that writes a dataset says of it, the manifest (None where shards are
    left to other tasks) and the facts of the plan. Where there is no plan, nothing is left of the
    attempt. Raises what the job, `load_or_create` and `complete` raise, BusyError GL0005.
    """
    out, state = output.folder, output.folder / "_glint"
    fresh = not out.exists()
    atomic.own_dir(state)
    with tasks.claim(state, how.task) as held:
        try:
            with tasks.planning(state, how.task):
                plan, facts = load_or_create(out, job)
        except (GlintError, KeyboardInterrupt):
            if how.task is None:
                remove_unplanned(out, fresh)
            raise
        resumed, manifest, left = complete(plan, facts, output, held, job, how)
    result: dict[str, Any] = {
        "out": output.shown,
        "shards": len(plan.spans()),
        "resumed_shards": resumed,
        **({"task": str(how.task), "left": left} if how.task else {}),
    }
    if manifest is not None:
        keep = ("read", "written", "quarantined", "identities", "digest")
        size = sum(entry["bytes"] for entry in manifest["shards"])
        result = {**{key: manifest[key] for key in keep}, **result, "bytes": size}
    return result, manifest, facts


def complete(
    plan: Plan, facts: dict[str, Any], output: Output, held: atomic.Held, job: Job, how: Execution
) -> Written:
    """Write what is missing of an output, or check what is there; the last to leave tidies up.

    Raises what `write_shard` raises, InputError GL0302, Stopped GL0704.
    """
    output.claim(plan)
    manifest = output.manifest()
    if manifest is not None:
        mine = tasks.share(how.task, range(len(plan.spans())))
        output.check(manifest, mine, how.progress)
        output.tidy(plan)
        written = Written(len(mine), manifest)
    else:
        try:
            written = _write(plan, facts, output, job, how)
        finally:
            forget()
            output.close()
    with tasks.ending(plan.state, how.task):
        done = (output.folder / "manifest.json").exists() or written.manifest is not None
        if done and held.alone():
            sweep(plan)
            shutil.rmtree(plan.parts, ignore_errors=True)
            shutil.rmtree(plan.folder, ignore_errors=True)
            tasks.tidy(plan.state)
        held.release()
    return written


def _write(plan: Plan, facts: dict[str, Any], output: Output, job: Job, how: Execution) -> Written:
    """Run the shards that are not done yet, of a task its share; join where all are done."""
    spans, task = plan.spans(), how.task
    for folder in (output.folder / "data", plan.parts):
        atomic.own_dir(folder)
    if task is None:
        sweep(plan)
    _warn_of_space(plan, facts)
    mine = tasks.share(task, range(len(spans)))
    done = output.finished(plan, mine)
    resumed = len(done)
    if resumed:
        log.logger.info("resuming: %d of %d shards are complete", resumed, len(mine))
    count, total = (sum(spans[i][1] - spans[i][0] for i in some) for some in (done, mine))
    how.progress(count, total)

    def finish(shard: int, entry: dict[str, Any]) -> None:
        nonlocal count
        output.note(plan, entry, task)
        done[shard] = entry
        count += spans[shard][1] - spans[shard][0]
        how.progress(count, total, how.say(entry))

    todo = [i for i in mine if i not in done]
    workers.each(output.work, plan, todo, how.workers, finish, engine=how.engine)
    with tasks.ending(plan.state, task):
        if (manifest := output.manifest()) is not None:  # another task was here first
            return Written(resumed, manifest)
        if task is not None:
            others = [i for i in range(len(spans)) if i not in done]
            done |= output.finished(plan, others, read=False)  # whoever wrote them read them back
        if len(done) < len(spans):
            return Written(resumed, None, len(spans) - len(done))
        try:
            output.gather(plan)
        except InputError:
            if (manifest := output.manifest()) is None:
                raise
            return Written(resumed, manifest)  # a run elsewhere was quicker
        manifest = job.join(plan, [done[i] for i in range(len(spans))], facts)
        output.publish()
        output.tidy(plan)
    return Written(resumed, manifest)


def _warn_of_space(plan: Plan, facts: dict[str, Any]) -> None:
    free, needed = shutil.disk_usage(plan.out).free, facts["bytes"] + 2048 * plan.n
    if needed > free:
        log.logger.warning("about %.1f GB are needed, %.1f GB are free", needed / 1e9, free / 1e9)


def sweep(plan: Plan) -> None:
    """Remove half files of runs that were killed; whoever calls holds the output alone."""
    out = Path(plan.out)
    for folder in (out, out / "data", plan.parts, plan.state):
        atomic.sweep(folder)


# ---- joining ------------------------------------------------------------------------------------


def join_rows(
    plan: Plan,
    entries: Entries,
    classes: int,
    columns: Iterable[pa.Field] = (),
    more: pa.Table | None = None,
) -> npt.NDArray[Any]:
    """Join the rows of all shards to samples.parquet; return how many each label has, int64 [C].

    columns: that the rows have besides those of every dataset; more: further columns of all rows.
    """
    schema = pa.schema([*schemas.SAMPLES, *columns])
    more = pa.table({}) if more is None else more
    last = pa.schema([*schema, *more.schema])
    repeating = [name for name in ("source_label", "dataset") if name in schema.names]
    options = {**ROW_OPTIONS, "use_dictionary": repeating}
    count_C, at = np.zeros(classes, np.int64), 0
    with (
        atomic.read_back(Path(plan.out) / "samples.parquet") as file,
        pq.ParquetWriter(file, last, **options) as writer,
    ):
        for entry in entries:
            rows = parquet.read(plan.parts / f"{entry['shard']:06d}.parquet", schema)
            count_C += np.bincount(rows.column("label").to_numpy(), minlength=classes)
            for field in more.schema:
                rows = rows.append_column(field, more.column(field.name).slice(at, len(rows)))
            at += rows.num_rows
            if rows.num_rows:
                writer.write_table(rows)
    return count_C


def join_quarantine(plan: Plan, entries: Entries) -> pa.Table:
    """Return the quarantined records of all shards."""
    pieces = [schemas.QUARANTINE.empty_table()]
    for entry in entries:
        if entry["bad"]:
            path = plan.parts / f"{entry['shard']:06d}.bad.parquet"
            pieces.append(parquet.read(path, schemas.QUARANTINE))
    return pa.concat_tables(pieces)


def write_manifest(
    plan: Plan,
    entries: Entries,
    identities: pa.Table,
    bad: pa.Table,
    facts: dict[str, Any],
    *,
    more: dict[str, Any] | None = None,
    notes: dict[str, int] | None = None,
    copied: bool = False,
    files: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the tables that stand beside the samples and, last, the manifest; return it.

    facts, more: fields of the manifest, before the counts and behind the plan's. copied: the
    quarantine came from elsewhere and is part of the digest. files: tables that lie there already.
    """
    out = Path(plan.out)
    parquet.write(out / "quarantine.parquet", bad)
    parquet.write(out / "identities.parquet", identities)
    written = sum(entry["samples"] for entry in entries)
    reasons = Counter(bad.column("reason").to_pylist())
    manifest = {
        "format": FORMAT,
        "glint": glint.__version__,
        **facts,
        "read": written + bad.num_rows + int(facts.get("erased", 0)) - facts.get("further", 0),
        "written": written,
        "quarantined": bad.num_rows,
        "quarantine_reasons": dict(sorted(reasons.items())),
        **({} if notes is None else {"notes": dict(sorted(notes.items()))}),
        "identities": identities.num_rows,
        "shards": [
            {k: entry[k] for k in ("name", "samples", "bytes", "sha256", "idx")}
            for entry in entries
        ],
        "seed": plan.options.seed,
        "samples_per_shard": plan.options.samples_per_shard * plan.options.each,
        **(more or {}),
        "digest": _digest(entries, identities, bad if copied else bad.slice(0, 0)),
        "files": [seal.entry(out / name) for name in (*TABLES, *files)],
    }
    manifest = seal.sealed(manifest)
    atomic.write_json(out / "manifest.json", manifest)
    return manifest


def _digest(entries: Entries, identities: pa.Table, bad: pa.Table) -> str:
    """Return the digest of a dataset: of its shards and their rows, its identities, its quarantine.

    Spelled as repr spells lists, a piece at a time.
    """
    hasher = hashlib.sha256(FORMAT.encode())
    for entry in entries:
        hasher.update("\n{name} {samples} {bytes} {sha256} {content}".format(**entry).encode())
    hasher.update(b"(")
    for i, name in enumerate(("source_label", "name", "count")):
        values = identities.column(name)
        hasher.update(b", [" if i else b"[")
        for at in range(0, len(values), PIECE):
            said = ", ".join(map(repr, values.slice(at, PIECE).to_pylist()))
            hasher.update((", " * (at > 0) + said).encode())
        hasher.update(b"]")
    hasher.update(b")")
    if bad.num_rows:
        hasher.update(repr(bad.to_pylist()).encode())
    return "sha256:" + hasher.hexdigest()
