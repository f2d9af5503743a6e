"""One output, several processes on one machine or on many: whose pieces, whose locks, who ends it.

Task i of N works on the pieces with number % N == i. Locks in OUT/_glint, all of them flock's:
`lock` is held alone by a plain run and shared by tasks, `task-i-of-N.lock` by the one task of that
name, `plan.lock` while the plan is made, `merge.lock` by the one that looks whether all is done.
Whoever is the last to leave tidies up. What a killed process held is free at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from glint.errors import UsageError
from glint.files import atomic

START = 10.0  # seconds that a task waits for one that is just leaving
WAIT = 3600.0  # seconds that a task waits for another that plans or merges


@dataclass(frozen=True)
class Task:
    """Task `index` of `of`, counted from 0 as Slurm and Kubernetes count."""

    index: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Task | None:
        """Read `i/N`; an empty text is no task. Raises UsageError GL0002."""
        if not text:
            return None
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        task = cls(int(found[1]), int(found[2])) if found else None
        if task is None or task.index >= task.of:
            raise UsageError(
                "GL0002",
                f"expected i/N with i from 0 to N-1, found {text!r}",
                where="--task",
                hint="eight tasks are 0/8 to 7/8",
            )
        return task

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    @property
    def name(self) -> str:
        """The task in the names of files: I-of-N."""
        return f"{self.index}-of-{self.of}"


def share(task: Task | None, pieces: Iterable[int]) -> list[int]:
    """Return the pieces that are this task's; without a task, all."""
    return [p for p in pieces if task is None or p % task.of == task.index]


def journal(task: Task | None) -> str:
    """Return the file name of a task's journal, or of a plain run's."""
    return f"journal-{task.name}.jsonl" if task else "journal.jsonl"


@contextmanager
def claim(state: Path, task: Task | None) -> Iterator[atomic.Held]:
    """Hold an output: alone, or shared and its task alone. Raises BusyError GL0005."""
    with ExitStack() as stack:
        wait = START if task else 0.0
        held = stack.enter_context(atomic.lock(state / "lock", shared=bool(task), wait=wait))
        if task:
            stack.enter_context(atomic.lock(state / f"task-{task.name}.lock"))
        yield held


def _planned(state: Path) -> bool:
    """Return whether a plan and its rows are there, or all that was planned."""
    dealt = any((state / "plan").glob("*.xxh3")) or (state.parent / "manifest.json").exists()
    return dealt and (state / "plan.json").exists()


@contextmanager
def planning(state: Path, task: Task | None) -> Iterator[None]:
    """Let one task make the plan while the others wait; they come in when it lies there."""
    with ExitStack() as stack:
        if task and not _planned(state):
            stack.enter_context(atomic.lock(state / "plan.lock", wait=WAIT))
            if _planned(state):
                stack.close()  # all others check it at once
        yield


@contextmanager
def ending(state: Path, task: Task | None) -> Iterator[None]:
    """Let one task at a time look whether all pieces are there, and join them."""
    with ExitStack() as stack:
        if task:
            stack.enter_context(atomic.lock(state / "merge.lock", wait=WAIT))
        yield


def tidy(state: Path) -> None:
    """Remove journals and the locks of tasks; whoever calls holds the output alone."""
    with atomic.writing(state):
        for pattern in ("journal*.jsonl", "task-*.lock", "plan.lock", "merge.lock"):
            for path in state.glob(pattern):
                path.unlink(missing_ok=True)
