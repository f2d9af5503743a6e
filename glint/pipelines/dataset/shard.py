"""Source records -> tar shards, index, quarantine, manifest."""

# n records of the source, C classes

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from glint import log, schemas
from glint.errors import BudgetError, InputError, UsageError
from glint.files import atomic
from glint.files.strings import BLOCK, load_names, text
from glint.jobs import tasks
from glint.jobs.workers import Engine, ending
from glint.log import Progress
from glint.pipelines.dataset import names as naming
from glint.pipelines.dataset import upload
from glint.pipelines.dataset.output import (
    Execution,
    join_quarantine,
    join_rows,
    make,
    write_manifest,
)
from glint.pipelines.dataset.photos import Align, Pace
from glint.pipelines.dataset.plan import (
    Entries,
    Job,
    Options,
    Plan,
    Save,
    check_places,
    check_workers,
)
from glint.results import datasets as results
from glint.shards.dataset import FORMAT
from glint.shards.plan import order, spans
from glint.shards.sources import open_source, recognise
from glint.shards.sources.recordio import RecordIO
from glint.shards.sources.rule import Rule
from glint.shards.sources.several import Several
from glint.shards.sources.source import Source
from glint.shards.tar import MEMBERS

__all__ = ["Options", "Plan", "check_places", "shard", "survey"]

# So many bad records are let pass however small the set is, but not over half of them.
BAD_FLOOR = 16


Src = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Sharding(Job):
    """A source, or several of one label space, to be sharded. Raises what recognising it raises."""

    def __init__(
        self, src: Src, options: Options, rule: Rule, *,
        resync: bool = False, names: Path | None = None,
    ) -> None:  # fmt: skip
        self.src, self.options, self.resync = _places(src), options, resync
        self.names = names
        self.rule = replace(rule, unlabelled=True) if options.unlabelled else rule
        found = [recognise(one, self.rule) for one in self.src]
        self.kind, self.path = found[0][0], str(found[0][1])
        if len(found) > 1:
            self.kind = Several.kind

    def _source(self) -> Source:
        return open_source(self.src, self.rule, resync=self.resync)

    def inputs(self) -> tuple[dict[str, Any], Save]:
        source: Source | None = None
        if self.kind == RecordIO.kind:  # not listed again where the plan is there
            told = RecordIO.fingerprint_of(Path(self.path), self.resync)
        else:
            source = self._source()
            told = source.fingerprint()
        options = self.options.facts()
        options["formats"] = list(self.options.formats)
        rule = {k: v for k, v in self.rule.facts().items() if k != "unlabelled"}
        options |= {"rule": rule} if rule else {}
        if self.names is not None:
            naming.read(self.names)  # before anything is listed
            options["names"] = {"name": self.names.name, "xxh3": atomic.xxh3_of(self.names)}

        def save(folder: Path) -> tuple[int, dict[str, Any]]:
            found = source or self._source()
            if found.n * self.options.each > 10**9:
                what = f"{found.n} records, nine-digit keys allow {10**9 // self.options.each}"
                hint = "fewer --max-faces leave room for more" if self.options.each > 1 else ""
                raise InputError("GL0201", what, where=str(self.src[0]), hint=hint)
            told = {} if self.names is None else {"names": naming.give(found, self.names)}
            with atomic.writing(folder):
                found.save(folder, order(found.n, self.options.seed))
            about = {**_described(found, self.rule, self.options), **told}
            return found.n, {**about, "bytes": found.bytes()}

        return {"dataset": FORMAT, "options": options, "source": told}, save

    def join(self, plan: Plan, entries: Entries, facts: dict[str, Any]) -> dict[str, Any]:
        each = plan.options.each
        if plan.options.unlabelled:
            said_C = _keys(plan.n * each)
            name_C = pa.nulls(plan.n * each, pa.string())
        else:
            said_C, name_C = (text(load_names(plan.folder, name)) for name in ("classes", "names"))
            name_C = pc.if_else(pc.equal(name_C, ""), pa.scalar(None, pa.string()), name_C)
        columns = schemas.CROPS if isinstance(plan.options, Align) else ()
        count_C = join_rows(plan, entries, len(said_C), columns)
        arrays = [pa.array(np.arange(len(said_C))), said_C, name_C, pa.array(count_C)]
        bad = join_quarantine(plan, entries)
        notes: Counter[str] = Counter()
        for entry in entries:
            notes.update(entry["notes"])
        written = sum(entry["samples"] for entry in entries)
        further = sum(entry.get("further", 0) for entry in entries)
        if written - further + bad.num_rows != plan.n:
            raise AssertionError(f"read {plan.n}, written {written}, quarantined {bad.num_rows}")
        first = {"source": facts["source"], "layout": facts["layout"]}
        first |= {"further": further} if further else {}
        more = {"positions": plan.n * each} if each > 1 else {}
        first["recognised"] = {k: v for k, v in facts.items() if k != "bytes"}
        identities = pa.table(arrays, schema=schemas.IDENTITIES)
        return write_manifest(plan, entries, identities, bad, first, more=more, notes=notes)


def _keys(count: int) -> pa.ChunkedArray:
    """Return keys as they are written, from 0."""
    pieces = (
        pc.utf8_lpad(pa.array(np.arange(at, min(at + BLOCK, count))).cast(pa.string()), 9, "0")
        for at in range(0, count, BLOCK)
    )
    return pa.chunked_array(pieces, pa.string())


def _check_budget(result: results.Shard, max_bad: float) -> None:
    bad, read = result.quarantined, result.read
    allowed = max(int(max_bad * read), min(BAD_FLOOR, read // 2)) if max_bad else 0
    if bad > allowed or bad == read:
        reasons = ", ".join(f"{k} {v}" for k, v in result.quarantine_reasons.items())
        what = f"{bad} of {read} records were not usable ({reasons}); "
        what += f"{min(allowed, read)} are let pass" if bad < read else "a set needs one that is"
        hint = "nothing is left: quarantine.parquet lists each record"
        if bad < read:
            hint = "the dataset is complete without them; quarantine.parquet lists each; "
            hint += "--max-bad raises the budget"
        if "unexpected-format" in result.quarantine_reasons:
            hint += "; --formats jpg,png,webp takes PNG and WebP, --to-jpeg 95 makes JPEGs of all"
        error = BudgetError("GL0221", what, where=result.out, hint=hint)
        error.result = result
        raise error


def _places(src: Src) -> list[Path]:
    return [Path(src)] if isinstance(src, str | os.PathLike) else [Path(one) for one in src]


def _described(source: Source, rule: Rule, options: Options) -> dict[str, Any]:
    told = {"rule": rule.facts(), "to_jpeg": options.to_jpeg}
    if isinstance(options, Align):
        told["align"] = options.told()
    return {**source.describe(), **{name: what for name, what in told.items() if what}}


def survey(
    src: Src,
    options: Options,
    rule: Rule = Rule(),  # noqa: B008
    *,
    resync: bool = False,
    out: Path | str = "",
    names: Path | None = None,
) -> results.ShardPlan:
    """Say what sharding would do, into `out` where that is a path, and write nothing."""
    job = Sharding(src, options, rule, resync=resync)
    for one in job.src if isinstance(out, Path) else ():
        check_places(one, Path(out))
    source = job._source()
    facts = _described(source, job.rule, options)
    facts |= {} if names is None else {"names": naming.give(source, names)}
    parts = 3 if options.with_json else 2 if options.members == MEMBERS[0] else 0.75
    padded = source.bytes() + int(source.n * 1024 * parts)
    kind = results.AlignPlan if isinstance(options, Align) else results.ShardPlan
    return kind(
        dry_run=True,
        read=source.n,
        identities=source.n * options.each if options.unlabelled else len(source.classes),
        shards=len(spans(source.n, options.samples_per_shard)),
        bytes=padded,
        recognised=facts,
    )


def shard(
    src: Src,
    out: str | os.PathLike[str],
    options: Options | None = None,
    rule: Rule = Rule(),  # noqa: B008
    *,
    workers: int = 1,
    max_bad: float = 0.001,
    progress: Progress = log.silent,
    task: tasks.Task | None = None,
    engine: Engine | None = None,
    staging: str | os.PathLike[str] | None = None,
    resync: bool = False,
    names: Path | None = None,
) -> results.Shard | results.ShardShare:
    """Shard a source, or several of one label space, into a folder or the URL of one in a store.

    Returns the counts. rule: how labels are found, and what is left out.

    Stopped or killed, the same call continues. The bytes depend on the source and `options` only.
    A task writes its share, and what it returns says how many shards are `left` to others: the
    counts are there where none is. resync: of a damaged RecordIO file, go on behind damage.
    names: a table of names for labels that have none.
    Raises InputError for sources, BusyError GL0004/GL0005, MismatchError GL0006, ResourceError,
    BudgetError GL0221 (all is written), Stopped GL0704.
    """
    options = options or Options()
    check_workers(workers)
    if not 0 <= max_bad <= 1:
        what = f"expected a share from 0 to 1, found {max_bad}"
        raise UsageError("GL0002", what, where="--max-bad")
    how = Execution(workers, progress, task, engine)
    if aligning := isinstance(options, Align):
        how = replace(how, say=Pace())
    with ending(), upload.output(out, staging) as output:
        job = Sharding(src, options, rule, resync=resync, names=names)
        for one in job.src:
            check_places(one, output.folder)
        made, manifest, facts = make(output, job, how)
    made["recognised"] = {k: v for k, v in facts.items() if k != "bytes"}
    if manifest is None:
        return (results.AlignShare if aligning else results.ShardShare)(**made)
    made["quarantine_reasons"] = manifest["quarantine_reasons"]
    made["notes"] = manifest.get("notes", {})
    result = results.Shard(**made)
    if aligning:
        result = results.Align(**made, further=manifest.get("further", 0))
    _check_budget(result, max_bad)
    return result
