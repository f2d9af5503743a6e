"""Source records -> tar shards, index, quarantine, manifest: plan, run one shard, merge."""

# n records of the source, C classes

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import glint
from glint import log
from glint.errors import BudgetError, BusyError, GlintError, InputError, MismatchError, UsageError
from glint.log import Progress
from glint.manifests import tables
from glint.pipelines import stage, tasks, upload
from glint.shards import commit, dali, image, parquet, policy, seal, store
from glint.shards import plan as deal
from glint.shards.index import FORMAT
from glint.shards.sources import open_source, recognise, reopen
from glint.shards.sources.recordio import RecordIO
from glint.shards.sources.source import Ints, Source, names_of, read_many
from glint.shards.strings import Strings
from glint.shards.write import MEMBERS, Shard

# What writes one shard of a plan, and what joins them: other stages plan and join otherwise.
Run = Callable[["Plan", int], dict[str, Any]]
Merge = Callable[["Plan", list[dict[str, Any]], dict[str, Any]], dict[str, Any]]
# So many bad records are let pass however small the set is, but never all of them.
BAD_FLOOR = 16
# Records looked up together, and bytes of images written together.
PIECE, HELD = 1 << 16, 2 << 20
_FORMAT = np.array(image.FORMATS)
# Only these columns repeat enough for a dictionary.
ROW_OPTIONS = {**parquet.OPTIONS, "use_dictionary": ["source_label"]}


@dataclass(frozen=True)
class Options:
    """What decides the bytes of a dataset, besides its source."""

    samples_per_shard: int = 10_000
    seed: int = 0
    with_json: bool = False
    formats: tuple[str, ...] = ("jpg",)
    members: str = MEMBERS[0]
    size: str = policy.SIZE
    on_size: str = policy.KEEP
    on_exif: str = policy.REJECT
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
        policy.size_of(self.size)
        policy.check(self.on_size, "--on-size")
        policy.check(self.on_exif, "--on-exif")
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
    """A plan on disk, in OUT/_glint: small enough to send to every worker."""

    out: str
    stamp: str  # SHA-256 of the fingerprint
    kind: str
    path: str
    n: int
    options: Options

    @property
    def folder(self) -> Path:
        """Where the plan's arrays lie."""
        return Path(self.out) / "_glint" / "plan"

    @property
    def parts(self) -> Path:
        """Where the rows of finished shards lie until they are merged."""
        return Path(self.out) / "_glint" / "parts"

    def spans(self) -> list[tuple[int, int]]:
        """Return the positions [start, stop) of every shard."""
        return deal.spans(self.n, self.options.samples_per_shard)


def _state(out: Path) -> Path:
    return out / "_glint"


def differences(old: Any, new: Any, at: str = "") -> list[str]:
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
    if out.is_dir():
        foreign = sorted(p.name for p in out.iterdir() if p.name != "_glint")
        if foreign and not (_state(out) / "plan.json").exists():  # looked at last: it comes first
            raise BusyError(
                "GL0004",
                f"the folder is not empty: {', '.join(foreign[:5])}",
                where=str(out),
                hint="choose a new or an empty folder",
            )


def make_plan(
    src: str | os.PathLike[str], out: str | os.PathLike[str], options: Options
) -> tuple[Plan, dict[str, Any]]:
    """Write the plan of a dataset, or take up the one in `out`; return it and what was recognised.

    Raises MismatchError GL0006 where `out` was begun from other inputs or options.
    """
    kind, path = recognise(src)
    state = _state(Path(out))
    source: Source | None = None
    if kind == RecordIO.kind:
        told = RecordIO.fingerprint_of(path)
    else:
        source = open_source(src)
        told = source.fingerprint()
    print_ = {
        "dataset": FORMAT,
        "options": {
            **{k: v for k, v in asdict(options).items() if v or k != "unlabelled"},
            "formats": list(options.formats),
        },
        "source": told,
    }
    stamp = hashlib.sha256(repr(sorted(print_.items())).encode()).hexdigest()
    if (state / "plan.json").exists():
        stored = commit.read_json(state / "plan.json", "GL0006")
        if stored.get("fingerprint") != print_:
            lines = differences(stored.get("fingerprint"), print_)
            raise MismatchError(
                "GL0006",
                "begun from other inputs or options: " + "; ".join(lines[:6]),
                where=str(out),
                hint="use the old ones, or another output",
            )
        plan = Plan(str(out), stamp, kind, str(path), int(stored["n"]), options)
        return plan, dict(stored["facts"])
    folder = state / "plan"
    shutil.rmtree(folder, ignore_errors=True)
    commit.make_dir(folder)
    source = source or open_source(src, folder)
    if source.n > 10**9:
        raise InputError(
            "GL0201", f"{source.n} records, nine-digit keys allow 10^9", where=str(src)
        )
    plan = Plan(str(out), stamp, kind, str(path), source.n, options)
    with commit.writing(folder):
        source.save(folder, options.seed)
        commit.sync_files(folder)
    facts = {**source.describe(), "bytes": source.bytes()}
    commit.write_json(state / "plan.json", {"fingerprint": print_, "n": source.n, "facts": facts})
    return plan, facts


@lru_cache(maxsize=1)
def _open(plan: Plan) -> pa.Array:
    """Return the labels as the source writes them."""
    return Strings.load(plan.folder, "classes").arrow()


def run(plan: Plan, shard: int) -> dict[str, Any]:
    """Write one shard and its rows; return its entry of the journal.

    A pure function of the plan: called again, by whomever, it writes the same bytes.
    """
    said_C = _open(plan)
    start, stop = plan.spans()[shard]
    name = deal.shard_name(shard)
    notes: Counter[str] = Counter()
    options = plan.options
    with (
        commit.atomic(Path(plan.out) / "data" / name) as file,
        Shard(file, shard, with_json=options.with_json, members=options.members) as out,
    ):
        for piece in range(start, stop, PIECE):
            end = min(piece + PIECE, stop)
            source = reopen(plan.kind, plan.path, {}, plan.folder, piece, end)
            key_n, row_n = np.arange(piece, end), np.arange(end - piece)
            put(out, source, said_C, key_n, row_n, plan.options, notes)
        out.close()
        samples, bad = out.samples(), out.quarantine()
        with commit.atomic(plan.parts / f"{shard:06d}.parquet") as part:
            pq.write_table(samples, part, **{**ROW_OPTIONS, "compression": "none"})
        if bad.num_rows:
            parquet.write(plan.parts / f"{shard:06d}.bad.parquet", bad)
        idx = dali.write(Path(plan.out) / "data", name, out.idx(samples))
    return {
        "shard": shard,
        "name": name,
        "samples": samples.num_rows,
        "bytes": out.tar.size,
        "sha256": out.tar.sha256,
        "idx": idx,
        "content": out.content(),
        "bad": dict(Counter(bad.column("reason").to_pylist())),
        "notes": dict(+notes),
    }


def _keys(key_n: Ints) -> pa.Array:
    """Write keys as the labels of images that have no other."""
    return pa.array([f"{key:09d}" for key in key_n.tolist()], pa.string())


def put(
    out: Shard,
    source: Source,
    said_C: pa.Array,
    key_n: Ints,
    row_n: Ints,
    options: Options,
    notes: Counter[str],
) -> None:
    """Write records of the source under their keys, or quarantine them with their reasons.

    Counts in `notes` what is written and may surprise.
    """
    done, size = 0, policy.size_of(options.size)
    if options.unlabelled:
        said = _keys(key_n)
    else:
        said = said_C.take(pa.array(np.maximum(source.label[row_n], 0))) if len(said_C) else said_C
    where = names_of(source, row_n)
    for run in read_many(source, row_n, HELD, out.room):
        part = slice(done, done + len(run.start_n))
        row_m, key_m, done = row_n[part], key_n[part], part.stop
        label_m = key_m if options.unlabelled else source.label[row_m]
        looks = policy.look_many(
            run.data,
            run.start_n,
            run.stop_n,
            options.formats,
            size,
            options.on_size,
            options.on_exif,
            notes,
        )
        bad = {j: image.Rejected("label-not-integer") for j in np.flatnonzero(label_m < 0).tolist()}
        bad |= looks.bad | run.bad
        for j, why in sorted(bad.items()):
            i, label = int(row_m[j]), int(source.label[row_m[j]])
            data = run.data[run.start_n[j] : run.stop_n[j]].tobytes()
            out.reject(
                why,
                data,
                said_C[label].as_py() if label >= 0 else None,
                source.name(i),
                source.offset(i),
            )
        good: Ints | slice = slice(None)
        said_m, where_m = (v.slice(part.start, len(row_m)) for v in (said, where))
        if bad:
            good = np.delete(np.arange(len(row_m)), list(bad))
            said_m, where_m = (v.take(pa.array(good)) for v in (said_m, where_m))
        out.extend(
            key_m[good],
            run.data,
            run.start_n[good],
            run.stop_n[good],
            _FORMAT[looks.format_n[good]],
            looks.width_n[good],
            looks.height_n[good],
            label_m[good],
            said_m,
            where_m,
        )


def merge(plan: Plan, entries: list[dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    """Join the rows of all shards, write the tables and, last, the manifest; return it."""
    out = Path(plan.out)
    said_C = _open(plan)
    if plan.options.unlabelled:
        said_C = _keys(np.arange(plan.n))
    count_C = np.zeros(len(said_C), np.int64)
    bad: list[pa.Table] = []
    with (
        commit.atomic(out / "samples.parquet") as file,
        pq.ParquetWriter(file, tables.SAMPLES, **ROW_OPTIONS) as writer,
    ):
        for entry in entries:
            rows = parquet.read(plan.parts / f"{entry['shard']:06d}.parquet", tables.SAMPLES)
            count_C += np.bincount(rows.column("label").to_numpy(), minlength=len(count_C))
            if rows.num_rows:
                writer.write_table(rows)
            if entry["bad"]:
                bad.append(
                    parquet.read(
                        plan.parts / f"{entry['shard']:06d}.bad.parquet", tables.QUARANTINE
                    )
                )
    parquet.write(
        out / "quarantine.parquet", pa.concat_tables([tables.QUARANTINE.empty_table(), *bad])
    )
    names_C = Strings.load(plan.folder, "names").arrow()
    if plan.options.unlabelled:
        names_C = pa.repeat("", plan.n)
    names_C = pc.if_else(pc.equal(names_C, ""), pa.scalar(None, pa.string()), names_C)
    parquet.write(
        out / "identities.parquet",
        pa.table(
            [
                pa.array(np.arange(len(said_C))),
                said_C,
                names_C,
                pa.array(count_C),
            ],
            schema=tables.IDENTITIES,
        ),
    )
    hasher = hashlib.sha256(FORMAT.encode())
    for entry in entries:
        hasher.update("\n{name} {samples} {bytes} {sha256} {content}".format(**entry).encode())
    hasher.update(b"(")
    for i, values in enumerate((said_C, names_C, pa.array(count_C))):
        hasher.update(b", [" if i else b"[")
        for at in range(0, len(values), PIECE):
            said = ", ".join(map(repr, values[at : at + PIECE].to_pylist()))
            hasher.update((", " * (at > 0) + said).encode())
        hasher.update(b"]")
    hasher.update(b")")
    reasons: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    for entry in entries:
        reasons.update(entry["bad"])
        notes.update(entry.get("notes", {}))
    written = sum(entry["samples"] for entry in entries)
    if written + sum(reasons.values()) != plan.n:
        raise AssertionError(f"read {plan.n}, written {written}, quarantined {reasons}")
    manifest = {
        "format": FORMAT,
        "glint": glint.__version__,
        "source": facts["source"],
        "layout": facts["layout"],
        "recognised": {k: v for k, v in facts.items() if k != "bytes"},
        "read": plan.n,
        "written": written,
        "quarantined": sum(reasons.values()),
        "quarantine_reasons": dict(sorted(reasons.items())),
        "notes": dict(sorted(notes.items())),
        "identities": len(said_C),
        "shards": [
            {k: entry[k] for k in ("name", "samples", "bytes", "sha256", "idx")}
            for entry in entries
        ],
        "seed": plan.options.seed,
        "samples_per_shard": plan.options.samples_per_shard,
        "digest": "sha256:" + hasher.hexdigest(),
        "files": [
            seal.entry(out / name)
            for name in ("samples.parquet", "identities.parquet", "quarantine.parquet")
        ],
    }
    manifest = seal.sealed(manifest)
    commit.write_json(out / "manifest.json", manifest)
    return manifest


def entries(plan: Plan) -> dict[int, dict[str, Any]]:
    """Return the shards that the journals of all tasks list and whose files are of that size."""
    good: dict[int, dict[str, Any]] = {}
    for path in sorted(_state(Path(plan.out)).glob("journal*.jsonl")):
        for entry in commit.journal_lines(path)[0]:
            if entry.get("stamp") == plan.stamp and _is_there(plan, entry):
                good[entry["shard"]] = entry
    return good


def _is_there(plan: Plan, entry: dict[str, Any]) -> bool:
    path = Path(plan.out) / "data" / entry["name"]
    part = plan.parts / f"{entry['shard']:06d}.parquet"
    return path.is_file() and part.is_file() and path.stat().st_size == entry["bytes"]


def _is_whole(plan: Plan, entry: dict[str, Any]) -> bool:
    path = Path(plan.out) / "data" / entry["name"]
    with path.open("rb") as file:
        same = commit.sha256(file) == str(entry["sha256"])
    return same and "idx" in entry and dali.damage(path.parent, entry) is None


def whole(
    out: Path, progress: Progress = log.silent, task: tasks.Task | None = None
) -> dict[str, Any]:
    """Return the manifest of a finished dataset, whose shards are read and compared with it.

    A task reads its share. Raises InputError GL0302 for a lost or changed shard; `progress` is in
    samples.
    """
    manifest = seal.check(out / "manifest.json")
    mine = [manifest["shards"][i] for i in tasks.share(task, range(len(manifest["shards"])))]
    total = sum(entry["samples"] for entry in mine)
    paths = [out / "data" / entry["name"] for entry in mine]
    for entry, path in zip(mine, paths):
        size = path.stat().st_size if path.is_file() else -1
        if size != entry["bytes"]:
            found = f"{size} bytes" if size >= 0 else "no file"
            raise _damaged(path, f"expected {entry['bytes']} bytes, found {found}")
    done = 0
    for entry, path in zip(mine, paths):
        try:
            with path.open("rb") as file:
                told = commit.sha256(file)
        except OSError as error:
            raise _damaged(path, f"cannot be read: {error.strerror or error}") from error
        if told != entry["sha256"]:
            raise _damaged(
                path, f"its bytes have changed: expected sha256 {entry['sha256']}, found {told}"
            )
        if problem := dali.damage(out / "data", entry):
            raise _damaged(path.with_name(dali.beside(path.name)), problem[0])
        done += entry["samples"]
        progress(done, total, "checked")
    return manifest


def _damaged(path: Path, what: str) -> InputError:
    return InputError(
        "GL0302",
        what,
        where=str(path),
        hint=f"run the same command into a new folder: the data/{path.name} that it writes is "
        "this one as it was, and may be copied here (or go on with the new folder)",
    )


@dataclass(frozen=True)
class Written:
    """How far an output is: its manifest, or how many shards are left to other tasks."""

    shards: int
    resumed: int  # shards that earlier runs wrote; of a task, its own
    manifest: dict[str, Any] | None
    left: int = 0

    def result(self, out: Path, task: tasks.Task | None) -> dict[str, Any]:
        """Return what every stage that writes a dataset says of it."""
        told = {
            "out": upload.place(out),
            "shards": self.shards,
            "resumed_shards": self.resumed,
            **({"task": str(task), "left": self.left} if task else {}),
        }
        if self.manifest is None:
            return told
        keep = ("read", "written", "quarantined", "identities", "digest")
        return {
            **{key: self.manifest[key] for key in keep},
            **told,
            "bytes": sum(entry["bytes"] for entry in self.manifest["shards"]),
        }


def _check_budget(result: dict[str, Any], max_bad: float) -> None:
    bad, read = result["quarantined"], result["read"]
    allowed = max(int(max_bad * read), BAD_FLOOR) if max_bad else 0
    if bad > allowed or bad == read:
        reasons = ", ".join(f"{k} {v}" for k, v in result["quarantine_reasons"].items())
        error = BudgetError(
            "GL0221",
            f"{bad} of {read} records were not usable ({reasons}); "
            f"{min(allowed, max(read - 1, 0))} are let pass",
            where=result["out"],
            hint=(
                "nothing is left: quarantine.parquet lists each record"
                if bad == read
                else "the dataset is complete without them; quarantine.parquet lists "
                "each; --max-bad raises the budget"
            ),
        )
        error.result = result
        raise error


def survey(src: str | os.PathLike[str], options: Options) -> dict[str, Any]:
    """Say what sharding would do, and write nothing."""
    source = open_source(src)
    facts = source.describe()
    parts = 3 if options.with_json else 2 if options.members == MEMBERS[0] else 0.75
    padded = source.bytes() + int(source.n * 1024 * parts)
    return {
        "dry_run": True,
        "read": source.n,
        "identities": source.n if options.unlabelled else len(source.classes),
        "shards": len(deal.spans(source.n, options.samples_per_shard)),
        "bytes": padded,
        "recognised": facts,
    }


def shard(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: Options | None = None,
    *,
    workers: int = 1,
    max_bad: float = 0.001,
    progress: Progress = log.silent,
    task: tasks.Task | None = None,
    engine: stage.Engine | None = None,
    staging: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Shard a source into `out`, a folder or the URL of one in a store, and return the counts.

    Stopped or killed, the same call continues. The bytes depend on the source and `options` only.
    A task writes its share, and what it returns says how many shards are `left` to others: the
    counts are there where none is. Raises InputError for sources, BusyError GL0004/GL0005,
    MismatchError GL0006, ResourceError, BudgetError GL0221 (all is written), Stopped GL0704.
    """
    options, src = options or Options(), Path(src)
    if workers < 1:
        raise UsageError("GL0002", f"expected 1 or more, found {workers}", where="--workers")
    if not 0 <= max_bad <= 1:
        raise UsageError(
            "GL0002", f"expected a share from 0 to 1, found {max_bad}", where="--max-bad"
        )
    with stage.ending(), upload.staged(out, staging) as folder:
        result = _shard(src, folder, options, workers, progress, task, engine)
    if not result.get("left"):
        _check_budget(result, max_bad)
    return result


def _shard(
    src: Path,
    out: Path,
    options: Options,
    workers: int,
    progress: Progress,
    task: tasks.Task | None,
    engine: stage.Engine | None,
) -> dict[str, Any]:
    recognise(src)
    check_places(src, out)
    fresh = not out.exists()
    state = _state(out)
    commit.make_dir(state)
    with tasks.claim(state, task) as held:
        try:
            with tasks.planning(state, task):
                plan, facts = make_plan(src, out, options)
        except (GlintError, KeyboardInterrupt):
            if task is None:
                leave_no_trace(out, fresh)
            raise
        written = complete(plan, facts, held, workers, progress, task=task, engine=engine)
    result = written.result(out, task)
    if written.manifest is not None:
        result["quarantine_reasons"] = written.manifest["quarantine_reasons"]
        result["notes"] = written.manifest.get("notes", {})
    return {**result, "recognised": {k: v for k, v in facts.items() if k != "bytes"}}


def leave_no_trace(out: Path, fresh: bool) -> None:
    """Remove what was made for an output that got no plan: its source is no good."""
    if not (_state(out) / "plan.json").exists():
        shutil.rmtree(_state(out), ignore_errors=True)
        if fresh:
            out.rmdir()


def complete(
    plan: Plan,
    facts: dict[str, Any],
    held: commit.Held,
    workers: int,
    progress: Progress,
    *,
    work: Run | None = None,
    join: Merge | None = None,
    after: Callable[[Path], None] | None = None,
    task: tasks.Task | None = None,
    engine: stage.Engine | None = None,
) -> Written:
    """Write what is missing of an output, or check what is there; the last to leave tidies up.

    `after` runs on the finished folder before that, while the output is still held.
    """
    out, shards = Path(plan.out), len(plan.spans())
    there = upload.of(out)
    if there is not None:
        try:
            written = Written(
                shards,
                *upload.write(
                    there,
                    plan,
                    facts,
                    workers,
                    progress,
                    work=work or run,
                    join=join or merge,
                    after=after,
                    task=task,
                    engine=engine,
                ),
            )
        finally:
            _open.cache_clear()
    elif (out / "manifest.json").exists():
        resumed = len(tasks.share(task, range(shards)))
        written = Written(shards, resumed, whole(out, progress, task))
    else:
        written = write(
            plan, facts, workers, progress, work=work, join=join, task=task, engine=engine
        )
    if after is not None and written.manifest is not None and there is None:
        after(out)
    with tasks.ending(_state(out), task):
        done = written.manifest if there else (out / "manifest.json").exists()
        if done and held.alone():
            tidy(plan)
        held.release()
    return written


def write(
    plan: Plan,
    facts: dict[str, Any],
    workers: int,
    progress: Progress,
    *,
    work: Run | None = None,
    join: Merge | None = None,
    task: tasks.Task | None = None,
    engine: stage.Engine | None = None,
) -> Written:
    """Run the shards that are not done yet, of a task its share; merge where all are done."""
    out, spans = Path(plan.out), plan.spans()
    for folder in (out / "data", plan.parts):
        commit.make_dir(folder)
    if task is None:
        sweep(plan)
    free = shutil.disk_usage(out).free
    if facts["bytes"] + 2048 * plan.n > free:
        log.logger.warning(
            "about %.1f GB are needed, %.1f GB are free",
            (facts["bytes"] + 2048 * plan.n) / 1e9,
            free / 1e9,
        )
    mine = tasks.share(task, range(len(spans)))
    journal = commit.Journal(_state(out) / tasks.journal(task))
    try:
        there = entries(plan)
        done = {i: there[i] for i in mine if i in there and _is_whole(plan, there[i])}
        resumed = len(done)
        if resumed:
            log.logger.info("resuming: %d of %d shards are complete", resumed, len(mine))
        count, total = (sum(spans[i][1] - spans[i][0] for i in some) for some in (done, mine))
        progress(count, total)

        def finish(piece: int, entry: dict[str, Any]) -> None:
            nonlocal count
            journal.append({**entry, "stamp": plan.stamp})
            done[piece] = entry
            count += spans[piece][1] - spans[piece][0]
            progress(count, total)

        todo = [i for i in mine if i not in done]
        stage.each(work or run, plan, todo, workers, finish, engine=engine)
        with tasks.ending(_state(out), task):
            if (out / "manifest.json").exists():  # another task was here first
                return Written(len(spans), resumed, commit.read_json(out / "manifest.json"))
            done = {**entries(plan), **done} if task else done
            if len(done) < len(spans):
                return Written(len(spans), resumed, None, len(spans) - len(done))
            manifest = (join or merge)(plan, [done[i] for i in range(len(spans))], facts)
        return Written(len(spans), resumed, manifest)
    finally:
        journal.close()
        _open.cache_clear()


def sweep(plan: Plan) -> None:
    """Remove half files of runs that were killed; whoever calls holds the output alone."""
    out = Path(plan.out)
    for folder in (out, out / "data", plan.parts, _state(out)):
        with commit.writing(folder):
            for left in folder.glob("*.tmp.*"):
                left.unlink(missing_ok=True)


def tidy(plan: Plan) -> None:
    """Remove what only an unfinished dataset needs; plan.json stays and tells a rerun who it is."""
    sweep(plan)
    shutil.rmtree(plan.parts, ignore_errors=True)
    shutil.rmtree(plan.folder, ignore_errors=True)
    tasks.tidy(_state(Path(plan.out)))
