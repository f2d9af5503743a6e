"""The search of conflicts by tasks and processes: the tables of one process, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.cli import conflicts
from glint.conflicts.verdicts import ConflictOptions
from glint.errors import BusyError, GlintError, MismatchError, ResourceError
from glint.jobs import tasks
from glint.jobs.ray import Ray
from glint.jobs.tasks import Task
from glint.pipelines import embed
from glint.pipelines.conflicts import find, share
from glint.results.identities import Conflicts, ConflictsShare
from glint.search import pairs
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.shards.embeddings import Embeddings, load
from tests.unit.search.test_pairs import brute, cloud

COUNTS = [4, 3, 5, 6, 2, 4, 0, 3] * 4
TABLES = ("pairs.parquet", "groups.parquet", "inside.parquet", "duplicates.parquet")


@pytest.fixture
def dataset(make_dataset) -> Dataset:
    """Thirty-two identities; 20 shows person 3, and 29 shows person 0."""
    return make_dataset(COUNTS, same_as={20: 3, 29: 0})


@pytest.fixture
def emb(dataset: Dataset, blocks, tmp_path: Path) -> Embeddings:
    embed.embed(dataset, blocks, tmp_path / "emb")
    return load(tmp_path / "emb", dataset.digest, images=dataset.n, classes=dataset.classes)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for one in (pairs.pairs_above, pairs.begin):
        monkeypatch.setattr(one, "__kwdefaults__", {**one.__kwdefaults__, "block": 4})


def tables(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in TABLES}


def run(dataset: Dataset, emb: Embeddings, out: Path, task: str = "", **more: Any) -> Any:
    options, overwrite = more.pop("options", ConflictOptions()), more.pop("overwrite", False)
    how = share.How(Task.parse(task), **more)
    return find.run(dataset, emb, out, options, thumbs=False, how=how, overwrite=overwrite)


def test_tasks_one_after_the_other(dataset: Dataset, emb: Embeddings, tmp_path: Path) -> None:
    whole = run(dataset, emb, tmp_path / "whole")
    out = tmp_path / "out"
    first, again, second = (run(dataset, emb, out, f"{i}/3") for i in (0, 0, 2))
    assert first == again == ConflictsShare(out=str(out), block_rows=7, task="0/3", left=4)
    assert second.left == 2 and not (out / "pairs.parquet").exists()
    last = run(dataset, emb, out, "1/3")
    assert isinstance(last, Conflicts) and (last.task, last.left) == ("1/3", 0)
    told = replace(last, task=None, left=None, out=whole.out, report=whole.report)
    assert told == whole and whole.merge == 2
    assert tables(out) == tables(tmp_path / "whole")
    assert [path.name for path in (out / "_glint").iterdir()] == ["lock"]
    made = (out / "conflicts.json").stat().st_mtime_ns
    late = run(dataset, emb, out, "2/3")  # after all is done
    assert replace(late, task="1/3") == last
    assert (out / "conflicts.json").stat().st_mtime_ns == made
    assert not (out / "_glint/plan.json").exists()


def test_one_process_takes_what_tasks_have_done(
    dataset: Dataset, emb: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(dataset, emb, tmp_path / "whole")
    out = tmp_path / "out"
    run(dataset, emb, out, "0/2")
    searched: list[int] = []
    search = pairs.search_row
    monkeypatch.setattr(pairs, "search_row", lambda s, first, *a: searched.append(first // 4)
                        or search(s, first, *a))  # fmt: skip
    run(dataset, emb, out)
    assert searched == [1, 2, 5, 6] and tables(out) == tables(tmp_path / "whole")


def test_a_block_row_that_was_damaged(dataset: Dataset, emb: Embeddings, tmp_path: Path) -> None:
    """The last task searches it again; another order of the rows is refused."""
    run(dataset, emb, tmp_path / "whole")
    out = tmp_path / "out"
    run(dataset, emb, out, "0/2")
    path = sorted((out / "_glint/search").glob("*.pairs"))[1]
    path.write_bytes(path.read_bytes()[:-2] + b"??")
    (order,) = (out / "_glint/search").glob("*-order.npy")
    good = np.load(order)
    np.save(order, good[::-1])
    with pytest.raises(MismatchError, match=r"GL0006.*not the rows of the search"):
        run(dataset, emb, out, "1/2")
    np.save(order, good)
    assert run(dataset, emb, out, "1/2").left == 0
    assert tables(out) == tables(tmp_path / "whole")


def test_the_last_task_dies_before_the_page(
    dataset: Dataset, emb: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes next judges again: an older page does not stand beside the new tables."""
    out = tmp_path / "out"
    run(dataset, emb, out, options=ConflictOptions(cap=3))
    old = (out / "report.html").read_bytes()
    with pytest.raises(MismatchError, match=r"GL0006.*a report stands here, other in options"):
        run(dataset, emb, out, "0/2")
    assert not (out / "_glint/plan.json").exists()
    run(dataset, emb, out, "0/2", overwrite=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(find.page, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(dataset, emb, out, "1/2")
    assert (out / "report.html").read_bytes() == old
    assert run(dataset, emb, out, "0/2").left == 0
    run(dataset, emb, tmp_path / "whole")
    assert tables(out) == tables(tmp_path / "whole") and old != (out / "report.html").read_bytes()


def test_tasks_of_other_plans(dataset: Dataset, emb: Embeddings, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(dataset, emb, out, "0/2")
    for options in (ConflictOptions(cap=3), ConflictOptions(low=0.3)):
        with pytest.raises(MismatchError, match=r"GL0006.*\(options\)"):
            run(dataset, emb, out, "1/2", options=options)
    target = np.r_[np.arange(29), 0, np.arange(29, 31)]
    labels.apply(dataset.root, target, np.empty((0, 2), np.int64), {"stage": "other"})
    with pytest.raises(MismatchError, match=r"GL0006.*\(labels\)"):
        run(Dataset(dataset.root), emb, out, "1/2")
    for i in range(2):  # centres of labels in force lie in no file of the embeddings
        got = run(Dataset(dataset.root), emb, tmp_path / "later", f"{i}/2")
    run(Dataset(dataset.root), emb, tmp_path / "whole")
    assert got.merge == 1 and tables(tmp_path / "later") == tables(tmp_path / "whole")


def test_a_task_beside_one_process(
    dataset: Dataset, emb: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "START", 0.1)

    def inside(done: int, total: int, note: str = "") -> None:
        with pytest.raises(BusyError, match="GL0005"):
            run(dataset, emb, tmp_path / "out", "0/2")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find.run(dataset, emb, tmp_path / "out", ConflictOptions(), progress=inside)


class Dies:
    """`search_piece` that kills its process at one block row, once."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __call__(self, search: pairs.Search, row: int) -> int:
        if row == 3 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return pairs.search_piece(search, row)


def begun(tmp_path: Path, rows: int = 400, block: int = 40) -> tuple[np.ndarray, pairs.Search]:
    x_ND = cloud(rows, 33, 0).astype(np.float32)
    np.save(tmp_path / "x.npy", x_ND)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    return x_ND, pairs.begin(mapped, 0.4, tmp_path / "work", block=block)


def test_processes_one_of_which_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x_ND, search = begun(tmp_path)
    monkeypatch.setattr(share.pairs, "search_piece", Dies(tmp_path / "died"))
    shown: list[tuple[int, int]] = []
    share.search(search, share.How(workers=2), "auto",
                 progress=lambda done, total, note="": shown.append((done, total)))  # fmt: skip
    assert (tmp_path / "died").exists() and shown[-1] == (55, 55)
    assert search.rows == str(tmp_path / "x.npy")  # mapped, not copied
    got = pairs.pairs_above(x_ND, 0.4, block=40, work=tmp_path / "work")
    want = brute(x_ND, 0.4)
    assert len(want[0]) > 100
    for name, one in zip(("a", "b", "cosine"), want):
        np.testing.assert_array_equal(getattr(got, name), one)


def test_too_many_pairs_end_a_share(tmp_path: Path) -> None:
    _, search = begun(tmp_path)
    with pytest.raises(ResourceError, match=r"GL0503 .*more than 5 pairs reach cosine 0.400"):
        share.search(search, share.How(), "auto", limit=5, progress=lambda *_: None)


@pytest.mark.parametrize(("rows", "of"), [(489, 4), (176, 8), (98, 4), (1006, 64)])
def test_shares_are_even(rows: int, of: int) -> None:
    search = pairs.Search("", "", "", 0.4, 2048, rows, "int8")
    shares = [share.dealt(Task(i, of), rows) for i in range(of)]
    assert sorted(row for one in shares for row in one) == share.dealt(None, rows)
    assert shares[0][:2] == [0, 2 * of - 1] and shares == [sorted(one) for one in shares]
    tiles = [search.tiles(one) for one in shares]
    assert max(tiles) - min(tiles) <= of and max(tiles) / (sum(tiles) / of) < 1.01


def test_the_command_s_options() -> None:
    """A screen may still be called an engine."""
    read = conflicts._how
    assert read("auto", "faiss", "", "", 1, "cpu") == ("faiss", share.How())
    assert read("torch", "local", "", "1/4", 3, "cpu") == ("torch", share.How(Task(1, 4), None, 3))
    screen, how = read("torch", "ray", "10.0.0.1:6379", "", 1, "cuda")
    assert screen == "torch" and how.engine == Ray("10.0.0.1:6379", 0, True)
    for words, what in (
        (("auto", "abacus", "", "", 1, "cpu"), "--engine.*expected local or ray, found abacus"),
        (("abacus", "local", "", "", 1, "cpu"), "--screen.*expected one of auto, int8, torch"),
        (("auto", "int8", "auto", "", 1, "cpu"), "--ray-address.*needs --engine ray"),
        (("auto", "local", "", "4/4", 1, "cpu"), "--task.*expected i/N"),
        (("auto", "local", "", "", 1, "tpu"), "--device.*device tpu was asked for"),
    ):
        with pytest.raises(GlintError, match=f"GL0002.*{what}"):
            read(*words)


def test_cards_of_an_engine_are_not_asked_for_here(tmp_path: Path) -> None:
    """The machine that starts a Ray with GPUs may have none."""
    seen: list[pairs.Search] = []

    class Elsewhere:
        def each(self, work: Any, plan: Any, todo: Any, workers: int, done: Any) -> None:
            seen.append(plan)

    _, search = begun(tmp_path)
    how = share.How(engine=Elsewhere(), device="cuda")
    share.search(search, how, "auto", progress=lambda *_: None)
    assert (seen[0].engine, seen[0].device, how.here) == ("auto", "cuda", "cpu")
    with pytest.raises(ResourceError, match=r"GL0002.*torch finds none"):
        share.search(search, share.How(device="cuda"), "auto", progress=lambda *_: None)


@pytest.mark.faults
def test_commands_at_once_one_killed(dataset: Dataset, emb: Embeddings, tmp_path: Path) -> None:
    """Three tasks; one is killed as it works or before, and started again."""
    run(dataset, emb, tmp_path / "whole")
    out = tmp_path / "out"

    def start(i: int) -> subprocess.Popen[str]:
        words = ["dedup-conflicts", dataset.root, "--embeddings", emb.root, "--out", out]
        return subprocess.Popen(
            [*(sys.executable, "-m", "glint"), *map(str, words), "--task", f"{i}/3", "--json"],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    started = [start(i) for i in range(3)]
    deadline = time.monotonic() + 60
    while not (out / "_glint/task-1-of-3.lock").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    started[1].kill()
    told = [json.loads(one.communicate(timeout=100)[0] or "{}") for one in started]
    assert [one.returncode for one in started] == [0, -signal.SIGKILL, 0]
    if told[0]["left"] and told[2]["left"]:
        again = start(1)
        told[1] = json.loads(again.communicate(timeout=100)[0])
        assert again.returncode == 0
    assert [one for one in told if one.get("merge") == 2]
    assert tables(out) == tables(tmp_path / "whole")
