"""Stage `conflicts`: embeddings in, a table of identity pairs with verdicts and a report out.

Nothing of the dataset changes here: `glint.pipelines.conflicts.apply` applies and undoes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import glint
from glint import log, schemas
from glint.conflicts import calibrate, decisions
from glint.conflicts.calibrate import Calibration
from glint.conflicts.evidence import Samples
from glint.conflicts.verdicts import ConflictOptions, Found, find, search_from
from glint.errors import BusyError
from glint.files import atomic, parquet
from glint.jobs import tasks
from glint.jobs.workspace import Workspace, sha256
from glint.log import Progress
from glint.pipelines.conflicts import apply, exhibits, outliers, overlap, page, share
from glint.results import identities as results
from glint.search.pairs import Search
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.shards.embeddings import Embeddings
from glint.shards.label_table import LabelTable

FORMAT = "glint/conflicts@1"
TABLES = ("pairs.parquet", "groups.parquet", *outliers.TABLES, *overlap.TABLES)


def run(
    dataset: Dataset,
    emb: Embeddings,
    out: Path,
    options: ConflictOptions,
    *,
    thumbs: bool = True,
    overwrite: bool = False,
    command: str = "",
    near: bool = True,
    against: Sequence[overlap.Other] = (),
    how: share.How = share.How(),  # noqa: B008 (frozen)
    progress: Progress = log.silent,
) -> results.Conflicts | results.ConflictsShare:
    """Find conflicts and write pairs.parquet, groups.parquet, conflicts.json and report.html.

    Beside them inside.parquet and duplicates.parquet; near: also for images that show the same
    picture, which decodes all. against: other datasets, for overlap.parquet and shared.parquet.
    The search goes on where one of the same centres and threshold was stopped; how: who does it. A
    task that is not the last only searches, and says how many block rows are `left` to others.
    Identities are those of the labels in force; each stands in the tables by its first label as
    sharded.
    Raises BusyError when `out` holds something else or, without `overwrite`, a report that is in
    force or was edited by hand, GL0309 where the labels were changed meanwhile, and MismatchError
    GL0006 where other tasks began with other inputs or options.
    """
    check_out(out, dataset, overwrite=overwrite)
    space = Workspace(out, "conflicts")
    with space.held(how.task) as held, atomic.writing(out):
        now = labels.current(dataset.root, dataset.classes)  # before anything is judged by them
        made = _Material(dataset, emb, now, options, near, thumbs, against, how.here)
        if how.task and not overwrite:
            share.refuse_other(space, made.plan)
        about = _searched(space, made, how, progress)
        with tasks.ending(space.work, how.task):
            if about is None and how.task:
                about = share.finished(space, made.plan)
            left = len(made.begun.missing()) if made.begun and about is None else 0
            if about is None and not left:
                about = _judged(space, made, command, progress)
                space.plan.unlink()  # there while a run is under way, or was stopped
            if not left and held.alone():
                if (out / share.FOLDER).exists():
                    shutil.rmtree(out / share.FOLDER)
                if how.task:
                    tasks.tidy(space.work)
            held.release()
    task = None if how.task is None else str(how.task)
    if about is None:
        assert made.begun is not None and task is not None
        rows = made.begun.block_rows
        return results.ConflictsShare(out=str(out), block_rows=rows, task=task, left=left)
    return results.Conflicts(
        **about["counts"],
        calibrated=about["calibration"]["model"],
        note=(about["likeness"] or {}).get("note", ""),
        low=about["options"]["low"],
        engine=about["engine"],
        against=about["against"],
        report=str(out / "report.html"),
        out=str(out),
        task=task,
        left=None if task is None else 0,
    )


class _Material:
    """What a run works with, made when it is asked for.

    begun: the search, where it is shared; emb: with the centres of the labels in force.
    """

    def __init__(
        self,
        dataset: Dataset,
        emb: Embeddings,
        now: LabelTable,
        options: ConflictOptions,
        near: bool,
        thumbs: bool,
        against: Sequence[overlap.Other],
        device: str,
    ) -> None:
        self.dataset, self.now, self.options, self.near = dataset, now, options, near
        self.against, self._emb, self.device, self.thumbs = against, emb, device, thumbs
        self.begun: Search | None = None
        self.person_N = now.sample_person(dataset.label)

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What decides the tables: all tasks of a run have the same."""
        options = {k: value for k, value in asdict(self.options).items() if k != "engine"}
        return {
            "format": FORMAT,
            "glint": glint.__version__,
            "dataset": self.dataset.digest,
            "labels": self.now.digest,
            "embeddings": self._emb.about.get("files"),
            "options": options,
            "near": self.near,
            "thumbs": self.thumbs,
            "against": [
                [one.name, one.dataset.digest, one.emb.about.get("files"), one.test]
                for one in self.against
            ],
        }

    @cached_property
    def emb(self) -> Embeddings:
        """The embeddings; their centres are those that are searched."""
        if self.begun is not None:
            return share.searched(self._emb, self.begun)
        return self._emb.under(self.now, self.dataset.label)

    @cached_property
    def samples(self) -> Samples:
        """The samples of each identity."""
        return Samples(self._emb.sample_ND, self.person_N, self.dataset.classes)

    @cached_property
    def calibration(self) -> Calibration:
        """What one person and two people look like."""
        return calibrate.calibrate(self.samples, seed=self.options.seed)


def _searched(
    space: Workspace, made: _Material, how: share.How, progress: Progress
) -> dict[str, Any] | None:
    """Do this run's share of the search; return conflicts.json where other tasks made it already.

    One process alone searches when it judges.
    """
    with tasks.planning(space.work, how.task):
        if how.task and (about := share.finished(space, made.plan)):
            return about
        made.begun = share.begun(space, made.plan, how.task)
        if made.begun is None and not how.shared:
            space.begin(made.plan)
        elif made.begun is None:
            low = search_from(made.calibration, made.samples, made.options)
            made.begun = share.begin(space, made.plan, made.emb, low, made.options.engine, how)
            del made.emb  # from now on as they lie there
    if made.begun is not None:
        share.search(made.begun, how, made.options.engine, progress=progress)
    return None


def _judged(space: Workspace, made: _Material, command: str, progress: Progress) -> dict[str, Any]:
    """Judge the pairs, look inside the identities, write all; return conflicts.json."""
    dataset, emb, now, samples = made.dataset, made.emb, made.now, made.samples
    person_N, options, out = made.person_N, made.options, space.root
    if made.begun is not None:  # to the bit: the last may be another machine than the first
        options = replace(options, low=made.begun.threshold)
    found = find(
        emb.centre_CD,
        samples,
        now.target,
        options,
        work=out / share.FOLDER,
        calibration=made.calibration,
        device=made.device,
        progress=progress,
    )
    odd = outliers.look_inside(
        dataset, emb, samples, now, person_N, found,
        near=made.near, seed=options.seed, progress=progress,
    )  # fmt: skip
    both = [
        overlap.judge_other(dataset, emb, samples, person_N, found, one, options, progress=progress)
        for one in made.against
    ]
    outliers.write(out, dataset, person_N, odd)
    overlap.write(out, dataset, both)
    parquet.write(out / "pairs.parquet", _pairs_table(found))
    parquet.write(out / "groups.parquet", _groups_table(found.groups.merged))
    about = {
        **_about(dataset, now, emb, out, found, options, command),
        "plan": made.plan,
        "counts": {**_counts(found, samples, now), **odd.counts()},
        "refused": [
            {"labels": piece.tolist(), "reason": why} for piece, why in found.groups.refused
        ],
        "against": [one.about() for one in both],
    }
    labels.refuse_changed(dataset.root, now.version)
    about = space.finish(about, TABLES)  # names the tables: after them
    faces = exhibits.Faces(dataset, emb, samples, person_N, made.thumbs)
    page.write(out / "report.html", faces, found, about, odd, both)
    return about


def check_out(out: Path, dataset: Dataset, *, overwrite: bool = False) -> None:
    """Raise BusyError where `out` is not a folder that `run` may write. Writes nothing.

    Without `overwrite`, a report in force and tables that `run` did not write are kept.
    """
    space = Workspace(out, "conflicts")
    space.refuse_foreign()
    if (out / decisions.NAME).is_file() and (
        out / decisions.NAME
    ).stat().st_size:  # not even --overwrite: nothing makes them again
        raise BusyError(
            "GL0004",
            "reviewers decided on this report",
            where=str(out / decisions.NAME),
            hint="choose another --out, or move the file away",
        )
    if overwrite or not space.result.is_file():
        return
    if apply.stands(out, dataset):
        raise BusyError(
            "GL0004",
            "this report is applied to the labels",
            where=str(out),
            hint=f"first run: glint dedup-conflicts undo {out}; or choose another --out, or give "
            "--overwrite",
        )
    written = atomic.read_json(space.result, "GL0501").get("files")
    for name in TABLES:
        table = out / name
        if space.plan.exists() or not table.is_file():  # a run that stopped half way left these
            continue
        if not isinstance(written, dict) or sha256(table) != written.get(name):
            raise BusyError(
                "GL0004",
                "was edited since the report was made",
                where=str(table),
                hint="choose another --out, or give --overwrite",
            )


def _pairs_table(found: Found) -> pa.Table:
    proof = found.evidence
    return pa.table(
        {
            "a": found.pairs.a,
            "b": found.pairs.b,
            "cosine": found.pairs.cosine,
            "cross_mean": proof.cross_mean,
            "cross_q10": proof.cross_q10,
            "n_a": found.n_a,
            "n_b": found.n_b,
            "score": proof.score,
            "probability": found.probability,
            "verdict": pa.array(found.verdict.tolist(), pa.string()),
            "reason": pa.array(found.reason, pa.string()),
        },
        schema=schemas.PAIRS,
    )


def _groups_table(merged: Sequence[np.ndarray]) -> pa.Table:
    sizes = [len(group) for group in merged]
    return pa.table(
        {
            "group": np.repeat(np.arange(len(merged), dtype=np.int64), sizes),
            "label": np.concatenate([*merged, np.empty(0, np.int64)]),
        },
        schema=schemas.GROUPS,
    )


def _counts(found: Found, samples: Samples, now: labels.LabelTable) -> dict[str, Any]:
    merged, identities = found.groups.merged, now.classes
    return {
        "pairs": len(found.pairs.a),
        **{name: int((found.verdict == name).sum()) for name in ("merge", "mask", "keep")},
        "groups": len(merged),
        "largest_group": max((len(g) for g in merged), default=0),
        "groups_refused": len(found.groups.refused),
        "expected_wrong_merges": None if np.isnan(found.wrong) else round(found.wrong, 4),
        "identities": identities,
        "identities_after": identities - sum(len(g) - 1 for g in merged),
        "images_in_groups": int(sum(samples.count_C[g].sum() for g in merged)),
        "samples_excluded": samples.excluded,
        "classes_excluded": found.pairs.excluded - (len(now.target) - identities),
    }


def _judged_by(found: Found) -> dict[str, Any]:
    """Return the draws and the model, and the likeness that merges and masks by images a side."""
    sizes, likeness = [(1, 1), (2, 2), (4, 4), (8, 8), (32, 32)], found.judge.likeness
    some = sizes if likeness is not None and np.isfinite(likeness.cut) else []
    calibration = {
        **found.calibration.about(),
        "model": likeness is not None,
        "merge_from": {f"{n}x{m}": float(likeness.merge_from(n, m)) for n, m in some if likeness},
        "mask_from": {f"{n}x{m}": float(likeness.mask_from(n, m)) for n, m in some if likeness},
    }
    return {
        "calibration": calibration,
        "likeness": likeness.about() if likeness is not None else None,
    }


def _about(
    dataset: Dataset,
    now: LabelTable,
    emb: Embeddings,
    out: Path,
    found: Found,
    options: ConflictOptions,
    command: str,
) -> dict[str, Any]:
    """Return how the pairs were found and judged, for conflicts.json."""
    return {
        "format": FORMAT,
        "glint": glint.__version__,
        "command": command,
        "dataset": {
            "path": os.path.relpath(dataset.root, out),
            "absolute": str(dataset.root.resolve()),
            "digest": dataset.digest,
            "label_version": now.version,
            "labels": now.digest,
        },
        "embeddings": {
            "path": str(emb.root),
            "model": emb.about.get("model"),
            "name": emb.about.get("name"),
        },
        "options": {
            "threshold": options.threshold,
            "low": found.judge.low,
            "cap": options.cap,
            "seed": options.seed,
            "rate": options.rate,
        },
        "engine": found.pairs.engine,
        **_judged_by(found),
    }
