"""Random files of decisions, applied to a dataset on disk and undone, against a plain oracle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glint import schemas
from glint.conflicts import decisions
from glint.conflicts.groups import components
from glint.errors import InputError
from glint.files import atomic, parquet
from glint.pipelines.conflicts import apply
from glint.shards import labels
from glint.shards.dataset import FORMAT

CLASSES = 7
PAIRS = [(a, b) for a in range(CLASSES) for b in range(a + 1, CLASSES)]
REPORTS = 4

lines_of = st.lists(
    st.tuples(
        st.sampled_from(PAIRS),
        st.sampled_from(["merge", "merge", "mask", "keep", "none"]),
        st.sampled_from(["alice", "bob"]),
        st.integers(0, 9),
    ),
    max_size=9,
)


def make(root: Path, number: int) -> tuple[Path, list[str]]:
    """Write a dataset, labels in force for every other one, and a report; give its verdicts."""
    rng = np.random.default_rng(number)
    root.mkdir()
    manifest = {"written": 0, "identities": CLASSES, "digest": f"sha256:{number}", "shards": []}
    atomic.write_json(root / "manifest.json", {"format": FORMAT, **manifest})
    if number % 2:
        target = np.array([0, 1, 2, 3, 3, -1, 4])
        labels.apply(root, target, np.array([[0, 4], [1, 3]]), {"stage": "before"})
        shutil.copytree(root / "labels", root / "start")
    verdict = rng.choice(["keep", "keep", "keep", "mask", "merge"], len(PAIRS)).tolist()
    folder = root / "report"
    folder.mkdir()
    rows = {name: [None] * len(PAIRS) for name in schemas.PAIRS.names}
    rows |= {"a": [a for a, _ in PAIRS], "b": [b for _, b in PAIRS], "verdict": verdict}
    parquet.write(folder / "pairs.parquet", pa.table(rows, schema=schemas.PAIRS))
    merged = [pair for pair, what in zip(PAIRS, verdict) if what == "merge"]
    a, b = np.array(merged, np.int64).reshape(-1, 2).T
    groups = components(a, b)
    parquet.write(
        folder / "groups.parquet",
        pa.table(
            {
                "group": [i for i, piece in enumerate(groups) for _ in piece],
                "label": [int(label) for piece in groups for label in piece],
            },
            schema=schemas.GROUPS,
        ),
    )
    about = {"path": "..", "absolute": str(root), "digest": manifest["digest"]}
    about["label_version"] = number % 2
    atomic.write_json(
        folder / "conflicts.json", {"format": apply.FORMAT, "dataset": about, "n": number}
    )
    return folder, verdict


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> Iterator[list[tuple[Path, list[str]]]]:
    """A few reports; what is not synced to disk here is not what these tests are about."""
    patch = pytest.MonkeyPatch()
    patch.setattr("os.fsync", lambda fd: None)
    base = tmp_path_factory.mktemp("reports")
    yield [make(base / f"set{number}", number) for number in range(REPORTS)]
    patch.undo()


def oracle(verdict: list[str], lines: list) -> tuple[str, dict[tuple[int, int], str]]:
    """Say how the lines are refused ("" where they are not) and what every pair becomes."""
    said: dict[tuple, dict[int, set[str]]] = {}
    for pair, what, by, seq in lines:
        said.setdefault((pair, by), {}).setdefault(seq, set()).add(what)
    last = {key: seqs[max(seqs)] for key, seqs in said.items()}
    if any(len(what) > 1 for what in last.values()):
        return "said two things at once", {}
    heard: dict[tuple[int, int], set[str]] = {}
    for (pair, _), what in last.items():
        if what != {"none"}:
            heard.setdefault(pair, set()).update(what)
    if any(len(what) > 1 for what in heard.values()):
        return "reviewers disagree about the identities", {}
    settled = dict(zip(PAIRS, verdict)) | {pair: next(iter(w)) for pair, w in heard.items()}
    group = list(range(CLASSES))
    for _ in range(CLASSES):
        for (a, b), what in settled.items():
            if what == "merge":
                group[a] = group[b] = min(group[a], group[b])
    for (a, b), what in heard.items():
        if what != {"merge"} and group[a] == group[b]:
            return "merges join what was kept apart", {}
    return "", settled


def put_down(folder: Path, lines: list, order) -> list[Path]:
    """Write the lines, some of them twice, in any order to any of three files; give two of them."""
    report = decisions.report_id(folder)
    some = [*lines, *order.sample(lines, len(lines) // 2)]
    order.shuffle(some)
    text: list[list[str]] = [[], [], []]
    for (a, b), what, by, seq in some:
        one = decisions.Decision(a, b, what, by, seq).line(report)
        if order.random() < 0.5:
            one["a"], one["b"] = b, a
        order.choice(text).append(json.dumps(one) + "\n")
    paths = [folder / decisions.NAME, folder / "one.jsonl", folder / "two.jsonl"]
    for path, part in zip(paths, text):
        path.write_text("".join(part))
    return paths[1:]


def laws(report: tuple[Path, list[str]], lines: list, order) -> None:
    """Apply, apply again from other files, undo, apply those; or be refused by name."""
    folder, verdict = report
    root = folder.parent
    labels.forget(root)
    if (root / "start").exists():
        shutil.copytree(root / "start", root / "labels")
    before = labels.current(root, CLASSES)
    more = put_down(folder, lines, order)
    refused, settled = oracle(verdict, lines)
    if refused:
        said = []
        for _ in range(2):
            with pytest.raises(InputError, match=f"GL0501.*{refused}") as caught:
                apply.apply(folder, more=more)
            said.append(str(caught.value))
            more = put_down(folder, lines, order)
        assert said[0] == said[1]
        assert labels.current(root, CLASSES).version == before.version
        return
    first = apply.apply(folder, more=more)
    now = labels.current(root, CLASSES)
    assert (first.classes, first.masks) == (now.classes, len(now.masks))
    expect_targets(before, now, settled)
    more = put_down(folder, lines, order)
    again = apply.apply(folder, more=more)
    if not first.applied:
        assert first.nothing and again.nothing and now.version == before.version
        return
    assert again.already and labels.current(root, CLASSES).version == now.version
    apply.undo(folder)
    back = labels.current(root, CLASSES)
    assert back.version == before.version
    np.testing.assert_array_equal(back.target, before.target)
    np.testing.assert_array_equal(back.masks, before.masks)
    apply.apply(folder, more=more)
    then = labels.current(root, CLASSES)
    np.testing.assert_array_equal(then.target, now.target)
    np.testing.assert_array_equal(then.masks, now.masks)


def expect_targets(before: labels.LabelTable, now: labels.LabelTable, settled: dict) -> None:
    """Merge targets that merged pairs join, by way of dropped labels too; mask what is masked."""
    own = {
        label: t if t >= 0 else CLASSES + label for label, t in enumerate(before.target.tolist())
    }
    group = {node: node for node in own.values()}
    linked = [(own[a], own[b], what) for (a, b), what in settled.items()]
    for _ in range(2 * CLASSES):
        for a, b, what in linked:
            if what == "merge":
                group[a] = group[b] = min(group[a], group[b])
    alive = [(a, b, what) for a, b, what in linked if max(a, b) < CLASSES]
    group = {node: head for node, head in group.items() if node < CLASSES}
    number = {head: i for i, head in enumerate(sorted(set(group.values())))}
    expected = [number[group[t]] if t >= 0 else -1 for t in before.target.tolist()]
    assert now.target.tolist() == expected
    masks = [(a, b) for a, b, what in alive if what == "mask"] + before.masks.tolist()
    wanted = {tuple(sorted((number[group[a]], number[group[b]]))) for a, b in masks}
    assert set(map(tuple, now.masks.tolist())) == {(a, b) for a, b in wanted if a < b}


options = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=100, **options)
@given(number=st.integers(0, REPORTS - 1), lines=lines_of, order=st.randoms(use_true_random=False))
def test_files_of_decisions_on_disk(reports, number: int, lines: list, order) -> None:
    laws(reports[number], lines, order)


@pytest.mark.faults
@pytest.mark.timeout(1800)
@settings(max_examples=10_000, **options)
@given(number=st.integers(0, REPORTS - 1), lines=lines_of, order=st.randoms(use_true_random=False))
def test_ten_thousand_files_of_decisions_on_disk(reports, number: int, lines, order) -> None:
    laws(reports[number], lines, order)
