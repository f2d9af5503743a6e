"""A dataset of many identities without images, and commands that race a take-down on it.

Run alone it races them many times: `python -m tests.faults.take_down_races --people 100000`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue as queues
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from glint import schemas
from glint.errors import GlintError
from glint.files import atomic, parquet
from glint.jobs.workspace import sha256
from glint.pipelines import cluster
from glint.pipelines.conflicts import apply
from glint.pipelines.dataset import drop
from glint.shards import labels, tombstones

OTHERS = ("apply", "undo", "cluster")
DIGEST = "sha256:" + "5" * 64


def dataset(root: Path, people: int, seed: int = 0) -> Path:
    """Write the tables of a dataset of `people` labels of one image each; its shard is empty."""
    rng = np.random.default_rng(seed)
    label = np.arange(people)
    names = pa.array([f"n{i}" for i in range(people)], pa.string())
    keys = pa.array([f"{i:09d}" for i in range(people)], pa.string())
    columns = {
        "key": keys,
        "label": label,
        "source_label": names,
        "shard": np.zeros(people, np.int32),
        "offset": label * 1024 + 512,
        "size": np.ones(people, np.int32),
        "digest": pa.array([rng.bytes(16) for _ in range(people)], pa.binary(16)),
        "source": names,
        "width": np.ones(people, np.int32),
        "height": np.ones(people, np.int32),
    }
    root.mkdir(parents=True)
    parquet.write(root / "samples.parquet", pa.table(columns, schema=schemas.SAMPLES))
    rows = {"label": label, "source_label": names, "name": names, "count": np.ones(people, int)}
    parquet.write(root / "identities.parquet", pa.table(rows, schema=schemas.IDENTITIES))
    shards = [{"name": "train-000000.tar", "samples": people, "bytes": 0, "sha256": ""}]
    about = {"format": "glint/dataset@1", "digest": DIGEST, "written": people, "read": people}
    atomic.write_json(root / "manifest.json", {**about, "identities": people, "shards": shards})
    return root


def report(folder: Path, root: Path, pairs: list[tuple[int, int]], version: int) -> Path:
    """Write a report that merges pairs; no two share a label."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    a, b = np.array(sorted(pairs), np.int64).T
    table = {name: np.zeros(len(a), schemas.PAIRS.field(name).type.to_pandas_dtype())
             for name in schemas.PAIRS.names if name not in ("verdict", "reason")}  # fmt: skip
    said = pa.array(["merge"] * len(a), pa.string())
    table |= {"a": a, "b": b, "verdict": said, "reason": said}
    parquet.write(folder / "pairs.parquet", pa.table(table, schema=schemas.PAIRS))
    group = np.repeat(np.arange(len(a)), 2)
    groups = {"group": group, "label": np.stack([a, b], axis=1).reshape(-1)}
    parquet.write(folder / "groups.parquet", pa.table(groups, schema=schemas.GROUPS))
    named = {"path": str(root), "absolute": str(root), "digest": DIGEST, "label_version": version}
    atomic.write_json(folder / "conflicts.json", {"format": apply.FORMAT, "dataset": named})
    return folder


def identities(folder: Path, people: int, seed: int) -> Path:
    """Write the folder of clusters of two faces or so each, by chance."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rng = np.random.default_rng(seed)
    identity = rng.integers(0, max(people // 2, 1), people)
    columns = {
        "source": np.zeros(people, np.int32),
        "key": pa.array([f"{i:09d}" for i in range(people)], pa.string()),
        "cluster": identity,
        "identity": identity,
    }
    parquet.write(folder / "faces.parquet", pa.table(columns, schema=schemas.FACES))
    files = {"faces.parquet": sha256(folder / "faces.parquet")}
    about = {"format": cluster.FORMAT, "sources": [{"dataset": DIGEST}], "files": files}
    atomic.write_json(folder / "identities.json", about | {"seed": seed})
    return folder


def call(work: Callable[[], Any]) -> str:
    """Run a command; return "done" or the code of its refusal."""
    try:
        work()
    except GlintError as error:
        return error.code
    return "done"


def _run(work: Callable[[], Any], wait: float, results: Any) -> None:
    time.sleep(wait)
    results.put(call(work))


class Races:
    """Rounds on one dataset: a take-down beside another command, then a look at what is left."""

    def __init__(self, folder: Path, people: int, seed: int = 0) -> None:
        self.folder, self.people, self.rng = folder, people, random.Random(seed)
        self.root = dataset(folder / "set", people)
        self.gone: set[int] = set()
        self.seen: Counter[str] = Counter()
        self.span = 0.3

    def other(self, kind: str, who: int, turn: int) -> tuple[Callable[[], Any], tuple[int, int]]:
        """Prepare a command that touches `who`; return it and the pair that it merges."""
        one = self.rng.choice([i for i in self.rng.sample(range(self.people), 3) if i != who])
        pair = min(who, one), max(who, one)
        if kind == "cluster":
            made = identities(self.folder / "ids", self.people, turn)
            return lambda: cluster.apply(made, self.root, least=1), pair
        head = labels.unchecked(self.root, self.people).version
        made = report(self.folder / "report", self.root, [pair], head)
        if kind == "apply":
            return lambda: apply.apply(made), pair
        assert call(lambda: apply.apply(made)) == "done"
        return lambda: apply.undo(made), pair

    def round(self, kind: str, turn: int, start: Callable[..., Any], queue: Any) -> None:
        """Race one take-down with one command, and check that it holds."""
        who = self.rng.choice([i for i in self.rng.sample(range(self.people), 9)
                               if i not in self.gone])  # fmt: skip
        work, pair = self.other(kind, who, turn)
        before = labels.unchecked(self.root, self.people)
        first, second = self.rng.choice([(0.0, self.rng.uniform(0, self.span)),
                                         (self.rng.uniform(0, self.span), 0.0)])  # fmt: skip
        begun = time.monotonic()
        runs = [
            start(lambda: drop.drop(self.root, [f"label:{who}"], "a race"), first, queue[0]),
            start(work, second, queue[1]),
        ]
        for run in runs:
            run.join(300)
        self.span = 0.8 * self.span + 0.2 * (time.monotonic() - begun)
        dropped, told = queue[0].get(timeout=60), queue[1].get(timeout=60)
        assert dropped == "done", dropped
        self.seen[f"{kind} {told}"] += 1
        lines = tombstones.read(self.root)
        self.gone = tombstones.buried(lines)
        assert who in self.gone
        after = labels.current(self.root, self.people)
        alive = sorted(i for i in self.gone if after.target[i] >= 0)
        assert not alive, f"taken down and alive: {alive}"
        history = labels.history(self.root)
        assert history[-1]["version"] == after.version
        if told == "done":  # nor is what the other command said lost
            a, b = pair
            if kind == "apply" and not {a, b} & self.gone:
                assert after.target[a] == after.target[b]
            if kind == "cluster":
                assert any(line.get("why", {}).get("stage") == "cluster"
                           for line in labels.in_force(self.root, self.people))  # fmt: skip
        else:
            assert told in ("GL0309", "GL0005", "GL0501", "GL0502", "GL0308"), told
        made = [line for line in history[len(history) - 4 :] if line["version"] > before.version]
        numbers = [line["version"] for line in made if line["op"] == "apply"]
        assert len(numbers) == len(set(numbers))


def race(
    folder: Path, people: int, turns: int, seed: int = 0, *, processes: bool = True
) -> Counter[str]:
    """Race `turns` times for each other command; return what the others came to.

    In processes of their own or, beside other tests, whose libraries have threads, in threads.
    """
    context = multiprocessing.get_context("fork")
    kind: Any = context.Process if processes else threading.Thread
    inbox: Any = context.Queue if processes else queues.Queue

    def start(work: Callable[[], Any], wait: float, queue: Any) -> Any:
        run = kind(target=_run, args=(work, wait, queue), daemon=True)
        run.start()
        return run

    seen: Counter[str] = Counter()
    races = None
    for turn in range(turns * len(OTHERS)):
        if turn % 60 == 0:  # a fresh dataset: histories of hundreds of lines only cost time
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            seen += races.seen if races else Counter()
            races = Races(folder, people, seed + turn)
            print(turn, "races,", sum(seen.values()), "counted", flush=True)
        assert races is not None
        races.round(OTHERS[turn % 3], turn, start, (inbox(), inbox()))
    return seen + (races.seen if races else Counter())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--people", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=100, help="for each of the other commands")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        begun = time.monotonic()
        told = race(Path(place) / "races", args.people, args.turns)
        print(json.dumps({"people": args.people, "races": sum(told.values()), "lost": 0,
                          "others": dict(sorted(told.items())),
                          "seconds": round(time.monotonic() - begun)}))  # fmt: skip
