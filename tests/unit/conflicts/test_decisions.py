"""Lines of decisions: what is refused, what stands, what survives a crash."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.conflicts import decisions
from glint.conflicts.decisions import (
    Book,
    Decision,
    ImageDecision,
    read,
    settle,
    settle_images,
    standing,
)
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
        (line(schema="other"), "expected schema .*image-decision@1', found 'other'"),
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


def image(**changed: Any) -> dict[str, Any]:
    return {**ImageDecision(7, "move", 3, "alice", 9).line(REPORT), **changed}


def test_lines_about_images_come_back_beside_those_about_pairs(tmp_path: Path) -> None:
    assert image() == {
        "schema": "glint/image-decision@1", "report": REPORT, "image": 7, "action": "move", "to": 3,
        "by": "alice", "seq": 9,
    }  # fmt: skip
    assert "to" not in ImageDecision(7, "exclude", -1, "alice", 9).line(REPORT)
    book = Book(tmp_path / decisions.NAME, REPORT)
    added = book.add("bob", [(2, 1, "keep")], [(7, "move", 3), (8, "exclude", -1)])
    book.add("bob", [], [(7, "none", -1)])
    book.close()
    found = read(book.path, REPORT)
    assert found == book.decisions
    assert found[:3] == added
    assert len({one.seq for one in found}) == 4
    assert standing(found) == {(1, 2): {"bob": "keep"}}
    lines = [json.loads(line) for line in book.path.read_text().splitlines()]
    assert [line["schema"] for line in lines] == [decisions.SCHEMA] + 3 * [decisions.IMAGE_SCHEMA]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (image(report="sha256:1"), "decided on the report 'sha256:1'"),
        (image(image=-1), "expected a number from 0 for image, found -1"),
        (image(image=True), "expected a number from 0 for image, found True"),
        (image(image=2**63), "expected a number from 0 for image"),
        (image(to=None), "expected a number from 0 for to, found None"),
        (image(to=-1), "expected a number from 0 for to, found -1"),
        (image(action="merge"), "expected exclude, move, keep or none, found 'merge'"),
        (image(action="exclude"), "exclude goes to no identity"),
        (image(by=""), "expected the name of a reviewer"),
        (image(seq=1.5), "expected a number from 0 for seq, found 1.5"),
    ],
)
def test_what_is_no_decision_about_an_image_is_refused(
    tmp_path: Path, value: object, what: str
) -> None:
    path = tmp_path / decisions.NAME
    path.write_text(json.dumps(image()) + "\n" + json.dumps(value) + "\n")
    with pytest.raises(InputError, match=f"GL0501.*line 2.*{what}"):
        read(path, REPORT)


ONE = np.array([0, 1, 1, 2, -1, 3])  # 1 and 2 are one person, 4 is dropped


def test_of_an_image_too_the_last_word_stands() -> None:
    said = [
        ImageDecision(0, "exclude", -1, "alice", 1),
        ImageDecision(0, "move", 2, "alice", 2),
        ImageDecision(0, "move", 1, "bob", 1),  # the same person
        ImageDecision(3, "exclude", -1, "bob", 5),
        ImageDecision(4, "keep", -1, "bob", 5),
        ImageDecision(9, "exclude", -1, "bob", 5),
        ImageDecision(9, "none", -1, "bob", 6),
        Decision(1, 2, "merge", "bob", 5),
    ]
    for order in (said, said[::-1]):
        row, label = settle_images(order, 12, ONE)
        assert row.tolist() == [0, 3]
        assert label.tolist() == [2, -1]
    assert [len(part) for part in settle_images([], 12, ONE)] == [0, 0]


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ([(12, "exclude", -1, "a", 1)], "names the image 12, the dataset has 12"),
        ([(0, "move", 6, "a", 1)], "dropped or unknown: image 0 to 6 by a"),
        ([(0, "move", 4, "a", 1)], "dropped or unknown: image 0 to 4 by a"),
        (
            [(0, "move", 3, "a", 1), (0, "move", 1, "b", 2)],
            "reviewers disagree about the image 0: move to 3 by a, move to 1 by b",
        ),
        (
            [(0, "keep", -1, "a", 1), (0, "exclude", -1, "b", 2)],
            "reviewers disagree about the image 0: keep by a, exclude by b",
        ),
        (
            [(0, "move", 3, "a", 1), (0, "exclude", -1, "a", 1)],
            r"a said two things at once about the image 0 \(seq 1\)",
        ),
        (
            [(0, "move", 3, "a", 1), (0, "move", 1, "a", 1)],
            r"a said two things at once about the image 0 \(seq 1\)",
        ),
    ],
)
def test_contradictions_about_images_are_refused_by_name(
    said: list[tuple[int, str, int, str, int]], what: str
) -> None:
    with pytest.raises(InputError, match=f"GL0501.*{what}"):
        settle_images([ImageDecision(*one) for one in said], 12, ONE)
