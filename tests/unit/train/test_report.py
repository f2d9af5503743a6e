"""The page of a run tells the log's figures, escapes its words and survives a damaged log."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest

from glint.errors import UsageError
from glint.review.plots import html
from glint.train import report


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lines = []
    for step in range(1, 61):
        entry = {
            "kind": "step", "step": step, "epoch": step // 20, "lr": 0.1, "images_per_s": 500.0,
            "loss": None if step == 30 else 40.0 - step / 2, "positive_cosine": step / 100,
            "time": {"data": 0.1, "forward": 0.3, "head": 0.2, "backward": 0.4},
        }  # fmt: skip
        lines.append(json.dumps(entry))
    for step, accuracy in ((0, 0.5), (20, 0.91), (40, 0.9)):
        entry = {"kind": "verification", "step": step, "set": "<script>lfw", "accuracy": accuracy}
        lines.append(json.dumps(entry))
    (tmp_path / "log.jsonl").write_text("\n".join([*lines[:5], "torn {", "[1]", *lines[5:]]) + "\n")
    return tmp_path


def test_the_figures_of_the_log_are_told(run: Path) -> None:
    made = report.page(run)
    assert made.counts[0] == ("60", "steps") and made.counts[1] == ("10.000", "loss")
    assert made.counts[2][0] == "91.00 %" and made.counts[3][0] == "500"
    assert made.tables[0].rows == [("<script>lfw", "90.00 %", "91.00 %", "20")]
    titles = [drawing.title for drawing in made.lines]
    assert titles[:2] == ["Loss", "Verification accuracy, %"] and len(titles) == 6
    assert len(made.lines[0].curves[0].pieces) == 2  # step 30 has no loss
    assert made.notes == ["1 logged steps had no finite loss and were skipped"]


def test_words_are_escaped_and_nothing_is_fetched(run: Path) -> None:
    text = html(report.page(run))
    assert "<script" not in text and "&lt;script&gt;lfw" in text
    assert not re.search(r"(?:src|href)=|url\(|https?:", text)
    assert "default-src 'none'" in unescape(text)


def test_it_is_written_beside_the_log(run: Path) -> None:
    assert report.make(run) == run / "report.html"
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    report.keep_up(run / "absent")  # tells, and does not raise
    with pytest.raises(UsageError, match=r"no log\.jsonl here"):
        report.make(run / "absent")
