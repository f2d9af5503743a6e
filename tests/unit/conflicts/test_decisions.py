"""Lines of decisions: what is refused, what stands, what survives a crash."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.conflicts import decisions
from glint.conflicts.decisions import Book, Decision, read, settle, standing
from glint.errors import InputError, ResourceError

REPORT = "sha256:" + "0" * 64


def line(**changed: Any) -> dict[str, Any]:
    return {**Decision(1, 2, "merge", "alice", 7).line(REPORT), **changed}


def test_a_line_comes_back(tmp_path: Path) -> None:
    path = tmp_path / decisions.NAME
    path.write_text(json.dumps(line(a=2, b=1)) + "\n\n" + json.dumps(line(verdict="none")))
    assert read(path, REPORT) == [
        Decision(1, 2, "merge", "alice", 7),
        Decision(1, 2, "none", "alice", 7),
    ]
    assert read(tmp_path / "absent", REPORT) == []


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([], "expected a JSON object"),
        (line(schema="other"), "expected schema 'glint/decision@1', found 'other'"),
        (line(report="sha256:1"), "decided on the report 'sha256:1'"),
        (line(a=-1), "expected a number from 0 for a, found -1"),
        (line(b=True), "expected a number from 0 for b, found True"),
        (line(seq="7"), "expected a number from 0 for seq, found '7'"),
        (line(verdict="drop"), "expected merge, mask, keep or none, found 'drop'"),
        (line(by=""), "expected the name of a reviewer"),
        (line(by="a\nb"), "expected the name of a reviewer"),
        (line(by="x" * 65), "expected the name of a reviewer"),
    ],
)
def test_what_is_no_decision_is_refused_by_line(tmp_path: Path, value: object, what: str) -> None:
    path = tmp_path / decisions.NAME
    path.write_text(json.dumps(line()) + "\n" + json.dumps(value) + "\n")
    with pytest.raises(InputError, match=f"GL0501.*line 2.*{what}"):
        read(path, REPORT)


def test_a_torn_last_line_is_left_out_and_cut_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / decisions.NAME
    book = Book(path, REPORT)
    book.add("alice", [(1, 2, "merge"), (3, 4, "keep")])
    book.close()
    whole = path.read_bytes()
    for length in range(len(whole) - 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert [d.a for d in read(path, REPORT)] == [1]
    assert "torn by a crash" in caplog.text
    again = Book(path, REPORT)
    again.add("bob", [(5, 6, "mask")])
    again.close()
    assert [(d.a, d.by) for d in read(path, REPORT)] == [(1, "alice"), (5, "bob")]
    path.write_text("{torn\n" + json.dumps(line()) + "\n")
    with pytest.raises(InputError, match=r"GL0501.*line 1.*no JSON"):
        read(path, REPORT)


def test_a_last_line_without_its_end_is_ended(tmp_path: Path) -> None:
    path = tmp_path / decisions.NAME
    path.write_text(json.dumps(line()))
    book = Book(path, REPORT)
    made = book.add("bob", [(9, 8, "merge")])
    book.close()
    assert made[0].seq > 7
    assert [(d.a, d.b, d.by) for d in read(path, REPORT)] == [(1, 2, "alice"), (8, 9, "bob")]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / decisions.NAME
    book = Book(path, REPORT)
    book.add("alice", [(1, 2, "merge")])

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(ResourceError, match="GL0901"):
        patch.setattr(os, "fsync", full)
        book.add("alice", [(3, 4, "merge")])
    book.add("alice", [(5, 6, "merge")])
    book.close()
    assert [d.a for d in book.decisions] == [1, 5]
    assert read(path, REPORT) == book.decisions


def test_the_last_word_stands_and_none_withdraws() -> None:
    said = [
        Decision(1, 2, "merge", "alice", 5),
        Decision(1, 2, "keep", "alice", 9),
        Decision(1, 2, "mask", "alice", 7),
        Decision(1, 2, "merge", "bob", 1),
        Decision(3, 4, "merge", "bob", 2),
        Decision(3, 4, "none", "bob", 3),
    ]
    for order in (said, said[::-1]):
        assert standing(order) == {(1, 2): {"alice": "keep", "bob": "merge"}}
    twice = [Decision(1, 2, "merge", "bob", 5), Decision(1, 2, "keep", "bob", 5)]
    with pytest.raises(InputError, match=r"bob said two things at once about the identities 1 and"):
        standing(twice)
    assert standing([*twice, Decision(1, 2, "mask", "bob", 6)]) == {(1, 2): {"bob": "mask"}}


A, B = np.array([0, 0, 1, 5]), np.array([1, 2, 2, 6])
FOUND = np.array(["merge", "merge", "mask", "keep"])


def test_decisions_go_before_the_report() -> None:
    got = settle(
        [Decision(5, 6, "merge", "alice", 1), Decision(0, 1, "keep", "bob", 1)], A, B, FOUND
    )
    assert got.tolist() == ["keep", "merge", "mask", "merge"]
    assert FOUND.tolist() == ["merge", "merge", "mask", "keep"]
    assert settle([], A, B, FOUND).tolist() == FOUND.tolist()


@pytest.mark.parametrize(
    ("decisions", "what"),
    [
        (
            [Decision(5, 6, "merge", "alice", 1), Decision(5, 6, "keep", "bob", 2)],
            "reviewers disagree about the identities 5 and 6: merge by alice, keep by bob",
        ),
        (
            [Decision(1, 2, "keep", "alice", 1)],
            r"merges join what was kept apart: 1 and 2 \(keep by alice\) by way of \[0\]",
        ),
        ([Decision(3, 4, "merge", "alice", 1)], "the identities 3 and 4, which are no pair"),
    ],
)
def test_contradictions_are_named(decisions: list[Decision], what: str) -> None:
    with pytest.raises(InputError, match=f"GL0501.*{what}"):
        settle(decisions, A, B, FOUND)


def test_many_contradictions_are_counted() -> None:
    pairs = np.arange(0, 40, 2)
    both = [Decision(a, a + 1, v, v, 1) for a in pairs.tolist() for v in ("merge", "keep")]
    with pytest.raises(InputError, match="8 and 9: keep by keep, merge by merge; and 15 more"):
        settle(both, pairs, pairs + 1, np.full(20, "mask"))
