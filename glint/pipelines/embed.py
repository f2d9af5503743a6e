"""Stage `embed`: a dataset and a recogniser in, unit embeddings and class centres out.

Rows are written block by block; the same command continues after any stop. Tasks and workers
elsewhere write each block into a file of its own, `_glint/pieces/`, from which the rows are taken.
"""

# n images of one batch, N images of the dataset, C classes as sharded, D embedding

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from glint import log
from glint.errors import InputError, MismatchError, UsageError
from glint.files import atomic
from glint.files.strings import write_array
from glint.jobs import tasks
from glint.jobs.workers import Engine
from glint.jobs.workspace import Workspace
from glint.log import Progress, logger
from glint.models.onnx_file import Reading
from glint.pipelines import batches
from glint.pipelines.batches import Recogniser, Source
from glint.results import identities as results
from glint.shards.dataset import Text
from glint.shards.embeddings import (
    FORMAT,
    GROWING,
    STATUS,
    Rows,
    alone,
    arrays,
    centres,
    check_sums,
    checksum,
    nonsense,
)
from glint.shards.label_table import LabelTable

BLOCK = 2048  # rows between two journal lines


Opener = Callable[[], tuple[Source, Recogniser]]


@dataclass(frozen=True)
class Paths:
    """Where a worker, on whatever machine, finds the dataset and the model."""

    dataset: str
    model: str
    reading: Reading = Reading()  # noqa: RUF009 (frozen)

    def __call__(self) -> tuple[Source, Recogniser]:
        """Open both; the model computes with one thread a call, or on the GPU."""
        from glint.models.recogniser import open_model
        from glint.shards.dataset import Dataset

        return Dataset(self.dataset), open_model(self.model, threads=1, reading=self.reading)


def embed(
    dataset: Source,
    model: Recogniser,
    out: Path,
    *,
    batch: int = 0,
    flip: bool = False,
    dtype: str = "float16",
    workers: int = 0,
    trim: bool = False,
    block: int = BLOCK,
    progress: Progress = log.silent,
    task: tasks.Task | None = None,
    engine: Engine | None = None,
    opener: Opener | None = None,
    table: LabelTable | None = None,
) -> results.Embed | results.EmbedShare:
    """Embed every image of `dataset` into the folder `out`; continue what a stop left there.

    batch, workers: as `batches.settle` takes them. flip: add the embedding of the mirrored image
    before scaling to length one. trim: leave samples more than 75 degrees from their centre out of
    it. A task embeds its share of the blocks, and its result has how many are `left` to others; an
    engine opens dataset and model by `opener`, which pickles and compares. table: labels in force,
    of whose images centres are made.
    Raises MismatchError when `out` was begun with other inputs, BusyError when another run writes
    there or it holds something else, InputError when no image can be embedded.
    """
    if dtype not in ("float16", "float32"):
        raise UsageError("GL0002", f"expected float16 or float32, found {dtype!r}", where="--dtype")
    space = Workspace(out, "embeddings")
    space.refuse_foreign()
    plan = _plan(dataset, model, flip=flip, dtype=dtype, trim=trim, block=block)
    work, last = space.work, space.result
    how = _How(str(work), opener, dataset.digest, model.digest, batch, flip, dtype, block, workers)
    left = 0
    with space.held(task) as held, atomic.writing(out):
        with tasks.planning(work, task):
            space.take_up(plan, "GL0402")
        finished = last.exists()
        if task is not None and not last.exists():
            _share(how, dataset, model, task, engine, progress)
        with tasks.ending(work, task):
            if task is not None and not last.exists():
                left = len(how.missing(dataset.n))
            if not left and not last.exists():
                rows = Rows(out, work, dataset.n, model.dim, dtype, block)
                try:
                    _gather(rows, how, engine, progress)
                    _fill(rows, dataset, model, batch, flip, workers, progress)
                    _finish(rows, dataset, table, out, work, plan)
                finally:
                    rows.journal.close()
            if not left and held.alone():
                _tidy(space)
            held.release()
    if left:
        blocks = how.blocks(dataset.n)
        return results.EmbedShare(
            out=str(out), images=dataset.n, blocks=blocks, task=str(task), left=left
        )
    about = atomic.read_json(last, "GL0402")
    if finished:  # by another call: nothing was written, so what lies there is looked at
        check_sums(out, about)
    keys = ("images", "dim", "failed", "failures", "empty_classes")
    return results.Embed(
        **{key: about[key] for key in keys},
        centres=about.get("centres") is not False,
        warning=about.get("warning"),
        out=str(out),
        task=None if task is None else str(task),
        left=None if task is None else left,
    )


def _plan(dataset: Source, model: Recogniser, **options: Any) -> dict[str, Any]:
    """Return what decides the rows, as embeddings.json repeats it."""
    return {
        "format": FORMAT,
        "dataset": dataset.digest,
        "model": model.digest,
        "name": model.name,
        "dim": int(model.dim),
        "size": int(model.size),
        "images": int(dataset.n),
        "classes": int(dataset.classes),
        **options,
    }


def check_out(out: Path) -> None:
    """Raise BusyError where `out` is not a folder that `embed` may write. Writes nothing."""
    Workspace(out, "embeddings").refuse_foreign()


@dataclass(frozen=True)
class _How:
    """What a worker needs to embed a block into a file of its own."""

    work: str
    opener: Opener | None
    dataset: str  # digests
    model: str
    batch: int
    flip: bool
    dtype: str
    block: int
    workers: int

    def path(self, number: int) -> Path:
        """Where the rows of a block are put down."""
        return Path(self.work) / "pieces" / f"{number:06d}.npz"

    def blocks(self, images: int) -> int:
        """Return the number of blocks."""
        return -(-images // self.block)

    def missing(self, images: int) -> list[int]:
        """List the blocks that are neither put down nor in a plain run's journal."""
        lines = atomic.journal_lines(Path(self.work) / "journal.jsonl")[0]
        there = {int(line["block"]) for line in lines}
        return [
            i for i in range(self.blocks(images)) if i not in there and not self.path(i).is_file()
        ]


def _put_down(
    how: _How, dataset: Source, model: Recogniser, pace: batches.Pace, number: int
) -> None:
    """Embed a block into its file, whose members are checked by their CRC when it is read."""
    cut = slice(number * how.block, min((number + 1) * how.block, dataset.n))
    parts = list(batches.embedded(dataset, model, cut, pace, how.flip))
    with atomic.replacing(how.path(number)) as file:
        np.savez(
            file,
            sample=np.concatenate([part[1] for part in parts]).astype(how.dtype),
            norm=np.concatenate([part[2] for part in parts]),
            status=np.concatenate([part[3] for part in parts]),
        )


@lru_cache(maxsize=1)
def _opened(opener: Opener) -> tuple[Source, Recogniser]:
    return opener()


def _elsewhere(how: _How, number: int) -> int:
    """Embed a block in a process that opens what it needs, once. Raises MismatchError GL0006."""
    assert how.opener is not None
    dataset, model = _opened(how.opener)
    if (dataset.digest, model.digest) != (how.dataset, how.model):
        raise MismatchError(
            "GL0006",
            f"this worker found dataset {dataset.digest} and model {model.digest}, "
            f"expected {how.dataset} and {how.model}",
            hint="every machine has to see the same files under the same paths",
        )
    pace = batches.settle(model, 0, how.batch, how.workers or batches.of_actor(model))
    _put_down(how, dataset, model, pace, number)
    return number


def _share(
    how: _How,
    dataset: Source,
    model: Recogniser,
    task: tasks.Task,
    engine: Engine | None,
    progress: Progress,
) -> None:
    """Put down the blocks of one task that are not there yet."""
    mine = tasks.share(task, range(how.blocks(dataset.n)))
    todo = tasks.share(task, how.missing(dataset.n))
    atomic.own_dir(how.path(0).parent)
    count = len(mine) - len(todo)

    def done(number: int, result: object) -> None:
        nonlocal count
        count += 1
        progress(min(count * how.block, dataset.n), min(len(mine) * how.block, dataset.n))

    if engine is not None:
        engine.each(_elsewhere, how, todo, 0, done)
        return
    pace = batches.settle(model, len(todo) * how.block, how.batch, how.workers)
    for number in todo:
        _put_down(how, dataset, model, pace, number)
        done(number, None)


def _gather(rows: Rows, how: _How, engine: Engine | None, progress: Progress) -> None:
    """Take the rows that were put down; an engine first puts down those that are missing."""
    missing = dict(rows.missing())
    for number in list(missing):
        if rows.take(number, how.path(number)):
            del missing[number]

    def done(number: int, result: object) -> None:
        rows.take(number, how.path(number))
        how.path(number).unlink(missing_ok=True)
        progress(rows.count(), rows.images)

    if engine is not None and missing:
        atomic.own_dir(how.path(0).parent)
        engine.each(_elsewhere, how, list(missing), 0, done)


def _fill(
    rows: Rows,
    dataset: Source,
    model: Recogniser,
    batch: int,
    flip: bool,
    workers: int,
    progress: Progress,
) -> None:
    """Embed every missing block."""
    done = rows.count()
    if 0 < done < rows.images:
        logger.info("continuing: %d of %d images are embedded already", done, rows.images)
    failed = 0
    missing = rows.missing()
    left = sum(cut.stop - cut.start for _, cut in missing)
    pace = batches.settle(model, left, batch, workers)
    for number, cut in missing:
        for into, row_nD, norm_n, status_n in batches.embedded(dataset, model, cut, pace, flip):
            rows.sample_ND[into] = row_nD
            rows.norm_N[into], rows.status_N[into] = norm_n, status_n
            failed += int((status_n != 0).sum())
            done += len(norm_n)
            progress(done, rows.images, f"{failed} failed" if failed else "")
        rows.commit(number)


def _finish(
    rows: Rows,
    dataset: Source,
    table: LabelTable | None,
    out: Path,
    work: Path,
    plan: dict[str, Any],
) -> None:
    """Write centres and the sample table, move the rows into place; embeddings.json comes last.

    Where no label has two images, there are no centres.
    """
    status_N = np.asarray(rows.status_N)
    failures = {name: int((status_N == code).sum()) for code, name in enumerate(STATUS) if code}
    failures = {name: count for name, count in failures.items() if count}
    failed = sum(failures.values())
    if failed == dataset.n:
        raise InputError(
            "GL0402",
            f"none of {dataset.n} images could be embedded: {failures}",
            where=str(out),
            hint=f"the model takes images of {plan['size']}x{plan['size']} pixels",
        )
    label_N = dataset.label if table is None else table.sample_label(dataset.label)
    if alone(label_N, dataset.classes):
        plan = {**plan, "centres": False}
        empty = dataset.classes - int(((status_N == 0) & (label_N >= 0)).sum())
    else:
        centre_CD = centres(rows.sample_ND, label_N, dataset.classes, trim=bool(plan["trim"]))
        empty = int(np.isnan(centre_CD).any(axis=1).sum())
        with atomic.replacing(out / "centres.npy") as file:
            write_array(file, centre_CD)
        del centre_CD
    key = dataset.key
    rows.write_table(out, key.column if isinstance(key, Text) else key)
    norm_N = np.asarray(rows.norm_N)
    with atomic.writing(out):
        (work / "samples.npy").replace(out / "samples.npy")
        atomic.sync_dir(out)  # before embeddings.json says that it is there
    about = {
        **plan,
        **({"labels": {"version": table.version, "images": table.images}} if table else {}),
        "failed": failed,
        "failures": failures,
        "empty_classes": empty,
        **({"warning": why} if (why := nonsense(rows.sample_ND)) else {}),
        "norm_mean": float(np.nanmean(norm_N)),
        "norm_std": float(np.nanstd(norm_N)),
        "files": {name: checksum(out / name) for name in arrays(plan)},
    }
    atomic.write_json(out / "embeddings.json", about)


def _tidy(space: Workspace) -> None:
    """Remove what only unfinished embeddings need; whoever calls holds the output alone."""
    shutil.rmtree(space.work / "pieces", ignore_errors=True)
    tasks.tidy(space.work)
    atomic.sweep(space.work)
    with atomic.writing(space.work):
        for path in (*(space.work / name for name in GROWING), space.plan):
            path.unlink(missing_ok=True)
