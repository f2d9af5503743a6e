"""Datasets made from datasets, step by step, and what each must hold by then."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import oracle
import pyarrow.parquet as pq
from sources import Sample

Glint = Callable[..., None]  # runs a command; raises where it fails
STEPS = ("reshard", "tasks", "merge", "drop", "erase", "upload")


@dataclass(frozen=True)
class Data:
    """A dataset, the samples that its shards must hold, and the labels that were dropped."""

    root: Path
    form: str
    samples: Counter[Sample]
    dropped: frozenset[int] = field(default_factory=frozenset)

    def held(self) -> oracle.Held:
        """Return what the shards hold; AssertionError where that is not what they must."""
        held = oracle.read(self.root, self.form)
        wrong = oracle.compare(held, self.samples) + self._labels(len(held.names))
        assert not wrong, f"{self.root.name}: {'; '.join(wrong)}"
        return held

    def _labels(self, classes: int) -> list[str]:
        """Say where labels in force differ from those as sharded, less the dropped ones."""
        path, dropped = self.root / "labels" / "current.json", frozenset[int]()
        if path.exists():
            table = pq.read_table(path.parent / json.loads(path.read_text())["file"])
            target = table.column("target").to_pylist()
            dropped = frozenset(i for i, one in enumerate(target) if one < 0)
            kept = [one for one in target if one >= 0]
            if len(target) != classes or kept != list(range(len(kept))):
                return ["labels in force are not those of the shards"]
        return [] if dropped == self.dropped else ["other labels are dropped than were asked for"]


class Chain:
    """Take one dataset through steps; every one is read again before the next."""

    def __init__(self, glint: Glint, place: Path, seed: int, workers: Sequence[int]) -> None:
        self.glint, self.place, self.workers = glint, place, workers
        self.chance = random.Random(seed)
        self.count = self.written = 0  # sets made, and bytes of shards read again

    def _new(self) -> Path:
        self.count += 1
        return self.place / f"set{self.count}"

    @property
    def _shards(self) -> list[object]:
        size = self.chance.choice((7, 30, 64, 333, 10_000))
        return ["--samples-per-shard", size, *self._workers]

    @property
    def _workers(self) -> list[object]:
        return ["--workers", self.chance.choice(self.workers)]

    def shard(self, source: Path, form: str, samples: Counter[Sample], how: str = "") -> Data:
        """Make a dataset of a source; `how`: by "tasks", or in a store, fetched by hand."""
        command = ("shard", source, *oracle.FORMS[form])
        data = Data(self._new(), form, samples)
        data = self._tasked(command, data) if how == "tasks" else self._written(command, data, how)
        self._check(data)
        return data

    def _check(self, data: Data) -> None:
        data.held()
        self.written += sum(path.stat().st_size for path in data.root.glob("data/*.tar"))

    def _written(self, command: Sequence[object], data: Data, how: str = "") -> Data:
        """Have `command SRC` write a dataset; in a store, fetched from there by hand."""
        url = f"file://{data.root}" if how == "upload" else data.root
        self.glint(*command[:2], url, *command[2:], *self._shards)
        if how != "upload":
            return data
        data.held()
        back = replace(data, root=self._new())
        data.root.rename(back.root)
        return back

    def _tasked(self, command: Sequence[object], data: Data) -> Data:
        options, count = self._shards, self.chance.choice((2, 3))
        for i in self.chance.sample(range(count), count):
            self.glint(*command[:2], data.root, *command[2:], *options, "--task", f"{i}/{count}")
        return data

    def step(self, name: str, data: Data, other: Data) -> Data:
        """Take a step; `other` is what a merge adds. AssertionError where the outcome is wrong.

        What came before is removed, `other` left out.
        """
        made: Data = getattr(self, f"_{name}")(data, other)
        self._check(made)
        if data.root not in (made.root, other.root):
            shutil.rmtree(data.root)
        return made

    def _reshard(self, data: Data, other: Data) -> Data:
        return self._written(("reshard", data.root), replace(data, root=self._new()))

    def _tasks(self, data: Data, other: Data) -> Data:
        return self._tasked(("reshard", data.root), replace(data, root=self._new()))

    def _upload(self, data: Data, other: Data) -> Data:
        return self._written(("reshard", data.root), replace(data, root=self._new()), "upload")

    def _apart(self, data: Data, other: Data) -> Data:
        """Return a copy where the dataset is `other` itself."""
        if data.root != other.root:
            return data
        return replace(data, root=shutil.copytree(other.root, self._new()))

    def _merge(self, data: Data, other: Data) -> Data:
        data = self._apart(data, other)
        root, first = self._new(), len(data.held().names)
        self.glint("merge", data.root, other.root, root, *self._shards)
        dropped = data.dropped | {first + label for label in other.dropped}
        return Data(root, data.form, data.samples + other.samples, dropped)

    def _pick(self, data: Data) -> tuple[oracle.Held, int]:
        held = data.held()
        return held, self.chance.choice(sorted({label for _, label, _ in held.rows} - data.dropped))

    def _drop(self, data: Data, other: Data) -> Data:
        label, data = self._pick(data)[1], self._apart(data, other)
        self.glint("drop", data.root, "--identity", f"label:{label}", "--reason", "truth")
        return replace(data, dropped=data.dropped | {label})

    def _erase(self, data: Data, other: Data) -> Data:
        held, label = self._pick(data)
        gone = data.dropped | {label}
        key = self.chance.choice([key for key, label, _ in held.rows if label not in gone])
        root = self._new()
        self.glint(
            "drop", data.root, "--id", f"label:{label}", "--key", key, "--reason", "truth",
            "--erase", root, *self._workers,
        )  # fmt: skip
        rows = [row for row in held.rows if row[1] not in gone and row[0] != key]
        return Data(root, data.form, replace(held, rows=rows).samples, gone)
