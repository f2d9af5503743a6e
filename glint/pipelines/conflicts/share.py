"""Stage `conflicts`, its search: begun once, done by tasks, processes or Ray, a block row each.

Block row r of R costs R - r tiles, and rows are taken in order, so that the dear ones come first:
whoever takes row after row ends within a block row of the others. Tasks are dealt rows forwards and
backwards in turn, 0 1 2 2 1 0 0 1 2, so that what one has more in one turn it has less in the next.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from glint.errors import InputError
from glint.files import atomic
from glint.jobs import tasks, workers
from glint.jobs.workspace import DIFFERENT, Workspace
from glint.log import Progress
from glint.search import pairs
from glint.shards.embeddings import Embeddings

LIMIT = 50_000_000  # pairs
FOLDER = "_glint/search"  # what is searched, until the report stands


@dataclass(frozen=True)
class How:
    """Who searches: one task of several, an engine, or so many processes; and on which device."""

    task: tasks.Task | None = None
    engine: workers.Engine | None = None
    workers: int = 1
    device: str = "cpu"

    @property
    def here(self) -> str:
        """The device of this process, where an engine's are elsewhere."""
        return self.device if self.engine is None else "cpu"

    @property
    def shared(self) -> bool:
        """Whether other processes than this one take part."""
        return self.task is not None or self.engine is not None or self.workers > 1


def finished(space: Workspace, plan: dict[str, Any]) -> dict[str, Any] | None:
    """Return conflicts.json where it was made by this plan, and the page after it."""
    if space.plan.exists() or not space.result.is_file():
        return None
    about = atomic.read_json(space.result, "GL0501")
    return about if about.get("plan") == plan else None


def refuse_other(space: Workspace, plan: dict[str, Any]) -> None:
    """Raise MismatchError GL0006 where a finished report was made by another plan."""
    if space.plan.exists() or not space.result.is_file():
        return
    found = atomic.read_json(space.result, "GL0501").get("plan")
    if found != plan:
        known = found if isinstance(found, dict) else {}
        differ = [key for key, value in plan.items() if known.get(key) != value]
        raise space.other_plan(
            f"a report stands here, other in {', '.join(differ)}",
            "choose another --out, or start the command once without --task",
        )


def begun(space: Workspace, plan: dict[str, Any], task: tasks.Task | None) -> pairs.Search | None:
    """Return the search that was begun by this plan; None where there is none.

    Raises MismatchError GL0006 where a task finds another plan.
    """
    if not space.plan.is_file():
        return None
    found = atomic.read_json(space.plan, "GL0501")
    differ = [key for key, value in plan.items() if found.get(key) != value]
    if differ and task is not None and "search" in found:
        raise space.other_plan(", ".join(differ), DIFFERENT)
    if differ or "search" not in found:
        return None
    try:
        search = pairs.Search(**found["search"])
    except TypeError:
        raise InputError("GL0501", "is no plan", where=str(space.plan), hint=DIFFERENT) from None
    return search if Path(search.folder).is_dir() else None


def begin(
    space: Workspace,
    plan: dict[str, Any],
    emb: Embeddings,
    low: float,
    engine: str,
    how: How,
) -> pairs.Search:
    """Begin the search of the centres of `emb`; whoever calls lets nobody else begin."""
    search = pairs.begin(emb.centre_CD, low, space.root / FOLDER, engine=engine, device=how.here)
    space.begin({**plan, "search": asdict(search)})
    return search


def search(
    begun: pairs.Search, how: How, engine: str, *, limit: int = LIMIT, progress: Progress
) -> None:
    """Do the block rows of this task that are not done, or all. Raises ResourceError GL0503."""
    threads = 0
    if how.engine is not None or how.workers > 1:
        threads = max(1, len(os.sched_getaffinity(0)) // how.workers) if how.engine is None else 1
    engine = engine if how.engine is not None else pairs.choose(engine, how.device)
    mine = replace(begun, engine=engine, device=how.device, threads=threads)
    share = dealt(how.task, mine.block_rows)
    todo = sorted({*share} & {*mine.missing()})
    total, found = mine.tiles(share), 0
    done = total - mine.tiles(todo)

    def ended(row: int, count: int) -> None:
        nonlocal done, found
        done, found = done + mine.tiles([row]), found + count
        if found > limit:
            raise pairs.too_many(limit, mine.threshold, where="pair search")
        progress(done, total, f"{found} pairs")

    try:
        workers.each(pairs.search_piece, mine, todo, how.workers, ended, engine=how.engine)
    finally:
        pairs.close()


def dealt(task: tasks.Task | None, rows: int) -> list[int]:
    """Return the block rows of a task; without one, all."""
    if task is None:
        return list(range(rows))
    turns = range(0, rows, task.of)
    mine = [at + (task.of - 1 - task.index if i % 2 else task.index) for i, at in enumerate(turns)]
    return [row for row in mine if row < rows]


def searched(emb: Embeddings, search: pairs.Search) -> Embeddings:
    """Return the embeddings with the centres that are searched, to the bit."""
    return replace(emb, centres_CD=np.load(search.rows, mmap_mode="r", allow_pickle=False))
