"""The output folder of a stage or a training run: whose it is, who works in it, and its end.

`_glint/plan.json` (of a training run `_glint/run.json`) is there from the beginning of a run,
`_glint/lock` is held while one works, and CONTENTS.json, written last, says that all is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glint.errors import BusyError, InputError, MismatchError
from glint.files import atomic, reads
from glint.jobs import tasks

DIFFERENT = "choose another --out, or delete this folder"


@dataclass(frozen=True)
class Workspace:
    """The folder `root` that a stage fills with `contents`: "embeddings", "conflicts", ...

    The field `format` of the plan and of CONTENTS.json is glint/CONTENTS@ and a number. plan_name:
    the plan's file in `_glint`.
    """

    root: Path
    contents: str
    plan_name: str = "plan.json"

    @property
    def work(self) -> Path:
        """The private folder: plan, lock, journals."""
        return self.root / "_glint"

    @property
    def plan(self) -> Path:
        """The mark of a run that began."""
        return self.work / self.plan_name

    @property
    def result(self) -> Path:
        """The mark of a run that came to its end."""
        return self.root / f"{self.contents}.json"

    def refuse_foreign(self) -> None:
        """Raise BusyError GL0004 for a file, a dataset or a folder of something else.

        Writes nothing.
        """
        kind = f"glint/{self.contents}@"
        with reads.reading(self.root):  # for a folder that cannot be listed
            if not self.root.exists():
                return
            if not self.root.is_dir():
                found = "expected a folder, found a file"
            elif _format(self.root / "manifest.json").startswith("glint/dataset@"):
                found = f"this is a dataset, not a folder for {self.contents}"
            elif link := next((path for path in self._private() if path.is_symlink()), None):
                raise atomic.foreign(link, "a file or folder")
            elif self._unbegun() or any(
                _format(mark).startswith(kind) for mark in (self.result, self.plan)
            ):
                return
            else:
                found = f"the folder is not empty and holds no {self.contents}"
        raise BusyError("GL0004", found, where=str(self.root), hint="choose another --out")

    def _private(self) -> Iterator[Path]:
        """Yield the private folder and what is in it, no link followed."""
        yield self.work
        if self.work.is_dir() and not self.work.is_symlink():
            yield from self.work.iterdir()

    def _unbegun(self) -> bool:
        """Return whether nothing is there but, at most, a lock: no run began to write."""
        if [path.name for path in self.root.iterdir()] not in ([], ["_glint"]):
            return False
        if not self.work.exists():
            return True
        return self.work.is_dir() and all(
            path.name.endswith("lock") or path.name.startswith(f"{self.plan_name}.tmp.")
            for path in self.work.iterdir()
        )

    @contextmanager
    def held(self, task: tasks.Task | None = None) -> Iterator[atomic.Held]:
        """Hold the folder: alone, or with other tasks; alone, half files of killed runs go.

        Embeddings and what is found by them are biometric: what is made meanwhile is its owner's.
        Raises BusyError GL0005, GL0004 where the private folder is a link.
        """
        before = os.umask(0o077)
        if self.contents == "run":
            os.umask(before)
        try:
            with self._held(task) as held:
                yield held
        finally:
            os.umask(before)

    @contextmanager
    def _held(self, task: tasks.Task | None) -> Iterator[atomic.Held]:
        atomic.own_dir(self.work)
        with tasks.claim(self.work, task) as held:
            for folder in (self.root, self.work) if task is None else ():
                atomic.sweep(folder)
            yield held

    def begin(self, plan: dict[str, Any]) -> None:
        """Write the plan, from which `refuse_foreign` knows the folder again."""
        atomic.write_json(self.plan, plan)

    def take_up(self, plan: dict[str, Any], code: str) -> None:
        """Begin with a plan, or go on where the folder was begun, or finished, from the same one.

        Raises MismatchError GL0006 for another plan, InputError `code` for one that is spoilt.
        """
        path = next((path for path in (self.result, self.plan) if path.exists()), None)
        if path is None:
            self.begin(plan)
            return
        found = atomic.read_json(path, code)
        differ = [
            f"{key}: {found.get(key)} there, {value} now"
            for key, value in plan.items()
            if found.get(key) != value
        ]
        if differ:
            raise self.other_plan("; ".join(differ), DIFFERENT)

    def other_plan(self, differ: str, hint: str) -> MismatchError:
        """Return the error of a folder that was begun from another plan."""
        what = f"begun from other inputs or options ({differ})"
        return MismatchError("GL0006", what, where=str(self.root), hint=hint)

    def finish(self, about: dict[str, Any], tables: Iterable[str]) -> dict[str, Any]:
        """Write CONTENTS.json: `about`, and the SHA-256 of those of `tables` that are there."""
        there = [name for name in tables if (self.root / name).is_file()]
        about = {**about, "files": {name: sha256(self.root / name) for name in there}}
        atomic.write_json(self.result, about)
        return about


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as a stage names it: `sha256:` and hex digits."""
    return "sha256:" + atomic.sha256_of(path)


def _format(path: Path) -> str:
    """Return the field `format` of a JSON file, "" where there is none."""
    try:
        return str(atomic.read_json(path).get("format", ""))
    except InputError:
        return ""
