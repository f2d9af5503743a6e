"""A synthetic world: people who do not exist, in the files that real training sets come in.

Writes what Glint360K ships (RecordIO in InsightFace's identity layout) and a verification pack of
people who are not in it, with known faults planted: identities under two labels, look-alikes,
damaged records, flipped labels, a long tail. The truth is written beside them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glint.errors import BusyError, UsageError
from glint.evals.packs import write_bin
from glint.files.atomic import make_dir, write_bytes, write_json, writing
from glint.log import Progress, silent
from glint.results import models as results
from glint.shards.recordio import Writer, pack
from glint.synth.faces import lookalike, person, photograph
from glint.synth.view import stream, uniform

UNSEEN = 1 << 40  # persons from this number on are only in pairs.bin
VIEWS = 8  # images of an unseen person that pairs are drawn from
FOLDS = 10
CHUNK = 64  # images per task
DAMAGE = ("jpeg-truncated", "empty", "not-an-image")
_SCHEMA = pa.schema(
    [
        ("key", pa.int64()),
        ("label", pa.int64()),
        ("person", pa.int64()),
        ("image", pa.int64()),
        ("flipped", pa.bool_()),
        ("damage", pa.string()),
    ]
)


@dataclass(frozen=True)
class World:
    """What to make.

    identities: persons; `conflicts` of them get a second label, so labels = both together.
    images: mean images per label; tail: spread of their logarithm (0 = all equal).
    lookalikes: pairs of persons who share all but `likeness` of their latents. noise: share of
    images that stand under a wrong label. damaged: records whose image bytes are broken.
    unseen: persons of pairs.bin, at least two a fold; pairs: how many, half of them same.
    """

    identities: int = 1000
    images: int = 20
    conflicts: int = 10
    lookalikes: int = 10
    likeness: float = 0.5
    noise: float = 0.0
    damaged: int = 3
    tail: float = 0.5
    unseen: int = 200
    pairs: int = 600
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError GL0002 for a world that cannot be."""
        for name, least in (
            ("identities", 1),
            ("images", 2),
            ("conflicts", 0),
            ("lookalikes", 0),
            ("damaged", 0),
            ("unseen", 0),
            ("pairs", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise _wrong(name, getattr(self, name), f"at least {least}")
        if self.conflicts + 2 * self.lookalikes > self.identities:
            raise _wrong("conflicts", self.conflicts, "conflicts + 2 x lookalikes <= identities")
        for name in ("noise", "likeness"):
            if not 0 <= getattr(self, name) <= 1:
                raise _wrong(name, getattr(self, name), "a share from 0 to 1")
        if not 0 <= self.tail <= 2:
            raise _wrong("tail", self.tail, "from 0 to 2")
        if self.pairs and self.unseen < 2 * FOLDS:
            raise _wrong("unseen", self.unseen, f"at least {2 * FOLDS}, or --pairs 0")
        if self.pairs % (2 * FOLDS):
            raise _wrong("pairs", self.pairs, f"a multiple of {2 * FOLDS}")
        most = FOLDS * (self.unseen // FOLDS) * VIEWS * (VIEWS - 1) // 2
        if self.pairs // 2 > most:
            raise _wrong("pairs", self.pairs, f"at most {2 * most} with {self.unseen} unseen")
        if self.damaged > self.identities * 2:
            raise _wrong("damaged", self.damaged, "at most two per identity")


def _wrong(name: str, found: object, expected: str) -> UsageError:
    return UsageError("GL0002", f"--{name} is {found}, expected {expected}")


@dataclass(frozen=True)
class Cast:
    """Who stands under which label: person and image count of each, and the planted faults."""

    person_C: np.ndarray
    first_C: np.ndarray  # number of the label's first image among the person's
    count_C: np.ndarray
    conflicts: list[list[int]]
    lookalikes: list[list[int]]
    model: dict[int, int]  # person -> the person they resemble

    @property
    def start_C(self) -> np.ndarray:
        """Key of the first image of each label; keys count from 1."""
        return 1 + np.concatenate([[0], np.cumsum(self.count_C)[:-1]])


def cast(world: World) -> Cast:
    """Decide labels, counts and planted faults: a function of `world` alone."""
    n, k = world.identities, world.conflicts
    draw = uniform(stream(world.seed, "world"), 4 * (n + k) + n)
    chosen = np.argsort(draw[:n], kind="stable")  # a random order of persons
    twice, alike = chosen[:k], chosen[k : k + 2 * world.lookalikes]
    draw = draw[n:]
    who = np.concatenate([np.arange(n), twice])
    order = np.argsort(draw[: n + k], kind="stable")
    person_C = who[order]
    label = np.empty(n + k, np.int64)
    label[order] = np.arange(n + k)  # label of (person, then second labels)
    a, b = draw[n + k : 2 * (n + k)], draw[2 * (n + k) : 3 * (n + k)]
    normal = np.sqrt(-2.0 * np.log1p(-a)) * np.cos(2.0 * math.pi * b)
    scale = world.images * np.exp(world.tail * normal - 0.5 * world.tail**2)
    count_C = np.clip(np.rint(scale), 2, 20 * world.images).astype(np.int64)
    first_C = np.zeros(n + k, np.int64)
    conflicts = []
    for number, one in enumerate(twice.tolist()):
        pair = sorted((int(label[one]), int(label[n + number])))
        count_C[pair] = np.maximum(count_C[pair], min(16, world.images))
        first_C[pair[1]] = count_C[pair[0]]
        conflicts.append(pair)
    model = {int(alike[2 * i + 1]): int(alike[2 * i]) for i in range(world.lookalikes)}
    lookalikes = [sorted((int(label[a]), int(label[b]))) for b, a in model.items()]
    return Cast(person_C, first_C, count_C, sorted(conflicts), sorted(lookalikes), model)


def make(
    world: World, out: Path, *, workers: int = 1, progress: Progress = silent
) -> results.Synth:
    """Write the world to `out` and return its counts.

    Bytes depend on `world` alone, not on workers. Memory does not grow with the number of images.
    Raises UsageError GL0002 for an impossible world, BusyError GL0004 where `out` holds files.
    """
    world.check()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BusyError(
            "GL0004",
            "is there already and not empty",
            where=str(out),
            hint="name another folder, or remove this one",
        )
    make_dir(out)
    plan = cast(world)
    labels, total = len(plan.person_C), int(plan.count_C.sum())
    damaged = _damaged(world, plan, total)
    start_C = plan.start_C
    tasks = _tasks(plan)
    rec, idx = out / "train.rec.tmp", out / "train.idx.tmp"
    truth = out / "truth.parquet.tmp"
    flipped = 0
    with (
        writing(out),
        Writer(rec, idx) as writer,
        pq.ParquetWriter(truth, _SCHEMA, write_page_checksum=True) as table,
    ):
        done = 0
        for (label, first, last), images in _rendered(world, plan, tasks, workers):
            rows: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
            for number, (who, view, data) in zip(range(first, last), images):
                key = int(start_C[label]) + number
                damage = damaged.get(key, "")
                writer.write(key, pack(float(label), key, 0, _break(data, damage)))
                wrong = who != int(plan.person_C[label])
                flipped += wrong
                for name, value in zip(rows, (key, label, who, view, wrong, damage)):
                    rows[name].append(value)
            table.write_table(pa.table(rows, schema=_SCHEMA))
            done += last - first
            progress(done, total)
        for label in range(labels):
            a = int(start_C[label])
            key = total + 1 + label
            writer.write(key, pack((a, a + int(plan.count_C[label])), key, 0, b""))
        writer.write(0, pack((total + 1, total + 1 + labels), 0, 1, b""))
    for path in (rec, idx, truth):
        path.replace(path.with_suffix(""))
    write_bytes(out / "property", b"%d,112,112\n" % labels)
    if world.pairs:
        images_, same = pairs(world)
        write_bin(out / "pairs.bin", images_, same)
    summary = {
        "identities": labels,
        "persons": world.identities,
        "images": total,
        "flipped": flipped,
        "damaged": len(damaged),
        "pairs": world.pairs,
    }
    write_json(out / "truth.json", {
        "format": "glint/synth@1", **summary, "world": asdict(world),
        "conflicts": plan.conflicts, "lookalikes": plan.lookalikes,
        "damaged_keys": {str(key): reason for key, reason in sorted(damaged.items())},
        "unseen": world.unseen,
    })  # fmt: skip
    return results.Synth(out=str(out), **summary)


def _damaged(world: World, plan: Cast, total: int) -> dict[int, str]:
    """Choose the keys of damaged records: never the first two images of a label."""
    spare = np.ones(total + 1, bool)
    spare[0] = False
    start_C = plan.start_C
    spare[start_C] = spare[start_C + 1] = False
    free = np.flatnonzero(spare)
    count = min(world.damaged, len(free))
    draw = uniform(stream(world.seed, "label", 1), len(free))
    keys = sorted(free[np.argsort(draw, kind="stable")[:count]].tolist())
    return {key: DAMAGE[i % len(DAMAGE)] for i, key in enumerate(keys)}


def _break(data: bytes, damage: str) -> bytes:
    if damage == "jpeg-truncated":
        return data[: len(data) * 2 // 3]
    if damage == "empty":
        return b""
    if damage == "not-an-image":
        return b"<html><body>403 Forbidden</body></html>"
    return data


Task = tuple[int, int, int]  # label, first and one past the last image of it
View = tuple[int, int, bytes]  # person, image of that person, JPEG


def _tasks(plan: Cast) -> Iterator[Task]:
    for label, count in enumerate(plan.count_C.tolist()):
        for first in range(0, count, CHUNK):
            yield label, first, min(count, first + CHUNK)


def _rendered(
    world: World, plan: Cast, tasks: Iterator[Task], workers: int
) -> Iterator[tuple[Task, list[View]]]:
    """Render the tasks in order; only a few per worker are ever in memory."""
    if workers <= 1:
        for task in tasks:
            yield task, _render(world, plan, task)
        return
    waiting: deque[tuple[Task, Future[list[View]]]] = deque()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            for task in tasks:
                waiting.append((task, pool.submit(_work, world, task)))
                if len(waiting) > 8 * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _work(world: World, task: Task) -> list[View]:
    """Render a task in a worker process."""
    return _render(world, _cast(world), task)


@lru_cache(maxsize=1)
def _cast(world: World) -> Cast:
    return cast(world)


def _render(world: World, plan: Cast, task: Task) -> list[View]:
    label, first, last = task
    own = int(plan.person_C[label])
    wrong = uniform(stream(world.seed, "label", 2, label), 2 * last)[2 * first :].reshape(-1, 2)
    views = []
    for number in range(first, last):
        who, view = own, int(plan.first_C[label]) + number
        chance, which = wrong[number - first].tolist()
        if chance < world.noise and world.identities > 1:
            who = (own + 1 + int(which * (world.identities - 1))) % world.identities
            view = (1 << 32) + int(plan.start_C[label]) + number  # a view of nobody else's
        views.append((who, view, photograph(latents(world, plan, who), world.seed, who, view)))
    return views


def latents(world: World, plan: Cast, who: int) -> np.ndarray:
    """Return the latents of person `who`, a look-alike's made from the one they resemble."""
    if who in plan.model:
        return lookalike(world.seed, who, person(world.seed, plan.model[who]), world.likeness)
    return person(world.seed, who)


def pairs(world: World) -> tuple[list[bytes], list[bool]]:
    """Render the verification pack: (2 x pairs JPEGs in pair order, same or not).

    Ten folds of equally many same and different pairs; a person is in one fold only.
    """
    images: list[bytes] = []
    flags: list[bool] = []
    per_fold = world.pairs // FOLDS
    persons = np.array_split(np.arange(world.unseen) + UNSEEN, FOLDS)
    for fold, people in enumerate(persons):
        bits = stream(world.seed, "pairs", fold)
        chosen: set[tuple[int, int, int, int]] = set()
        while len(chosen) < per_fold:
            same = 2 * len(chosen) < per_fold
            one, other, i, j = uniform(bits, 4).tolist()
            a = int(people[int(one * len(people))])
            rest: Sequence[int] = [int(p) for p in people if p != a]
            b = a if same else rest[int(other * len(rest))]
            u, v = int(i * VIEWS), int(j * VIEWS)
            if (a, u) == (b, v) or (b, v, a, u) in chosen or (a, u, b, v) in chosen:
                continue
            chosen.add((a, u, b, v))
            for who, view in ((a, u), (b, v)):
                images.append(photograph(person(world.seed, who), world.seed, who, view))
            flags.append(same)
    return images, flags
