"""The page of a run tells the log's figures, escapes its words and survives a damaged log."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from glint.cli import report as command
from glint.errors import UsageError
from glint.review.chart import LETTER
from glint.review.plots import html
from glint.train import report

SPE = 24


def start(step: int, world: int = 1, total: int = 408) -> dict[str, Any]:
    return {"kind": "start", "step": step, "steps": total, "steps_per_epoch": SPE, "world": world,
            "global_batch": 32}  # fmt: skip


def step_of(step: int, **more: Any) -> dict[str, Any]:
    return {
        "kind": "step", "step": step, "epoch": step // SPE, "lr": 0.1, "images_per_s": 500.0,
        "loss": 40.0 - step / 20, "positive_cosine": step / 1000, "hardest_negative": -0.00001,
        "centre_norm": 0.99925 + step * 1e-7,
        "time": {"data": 0.1, "forward": 0.3, "head": 0.2, "backward": 0.4}, **more,
    }  # fmt: skip


def write(folder: Path, entries: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in entries))
    return folder


def long(folder: Path, starts: list[dict[str, Any]] | None = None) -> Path:
    """Write the log of 408 steps, every tenth logged: the last line of a step is of 400."""
    entries = [*(starts or [start(0)]), *(step_of(step) for step in range(10, 408, 10))]
    for step in range(0, 409, SPE):
        accuracy = 0.5 + step / 1000
        entries.append({"kind": "verification", "step": step, "set": "lfw", "accuracy": accuracy})
    return write(folder, [*entries, {"kind": "save", "step": 408, "bytes": 1}])


class Texts(HTMLParser):
    """Reads every text of the drawings: (drawing's width and height, attributes, words)."""

    def __init__(self) -> None:
        super().__init__()
        self.box, self.at, self.found = (0.0, 0.0), dict[str, str](), list[Any]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {k: v or "" for k, v in attrs}
        if tag == "svg":
            self.box = tuple(map(float, given["viewbox"].split()[2:]))  # type: ignore[assignment]
        self.at = given if tag == "text" else {}

    def handle_data(self, data: str) -> None:
        if self.at and data.strip():
            self.found.append((self.box, self.at, data.strip()))


def texts(page: str) -> list[tuple[tuple[float, float], dict[str, str], str]]:
    reader = Texts()
    reader.feed(page)
    return reader.found


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
    assert made.counts[0] == ("91.00 %", "best accuracy")  # what it is for comes first
    assert made.counts[1] == ("60", "steps") and made.counts[2] == ("10.000", "loss")
    assert made.counts[3][0] == "500"
    assert made.tables[0].rows == [("<script>lfw", "90.00 %", "91.00 %", "20")]
    titles = [drawing.title for drawing in made.lines]
    assert titles[:2] == ["Verification accuracy, %", "Loss"] and len(titles) == 6
    assert len(made.lines[1].curves[0].pieces) == 2  # step 30 has no loss
    assert made.notes == ["1 logged step without a finite loss: skipped"]
    assert all(len(drawing.note.split()) > 5 for drawing in made.lines)  # how to read each


def test_words_are_escaped_and_nothing_is_fetched(run: Path) -> None:
    text = html(report.page(run, live=True))
    assert "<script" not in text and "&lt;script&gt;lfw" in text
    assert not re.search(r"(?:src|href)=|url\(|https?:", text)
    assert "default-src 'none'" in unescape(text)


def test_it_is_written_beside_the_log(run: Path) -> None:
    assert report.make(run) == run / "report.html"
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    with pytest.raises(UsageError, match=r"no log\.jsonl here"):
        report.make(run / "absent")


def test_ticks_stand_inside_their_drawing(tmp_path: Path) -> None:
    found = texts(html(report.page(long(tmp_path / "run"))))
    assert len([words for _, _, words in found if words == "400"]) >= 5
    for (width, height), at, words in found:
        if at.get("class") != "tick":
            continue
        size = LETTER * len(words)  # at the larger letters of a phone
        x, y = float(at["x"]), float(at["y"])
        left = {"end": x - size, "middle": x - size / 2, "start": x}[at["text-anchor"]]
        assert left >= -0.1 and left + size <= width + 0.1, (words, at)
        assert 11 <= y <= height, (words, at)


def test_steps_are_those_done_of_all(tmp_path: Path) -> None:
    made = report.page(long(tmp_path / "run"))
    assert ("408 of 408", "steps") in made.counts  # the last line of a step is of 400
    assert made.status.startswith("Finished.")


def test_no_zero_has_a_sign(tmp_path: Path) -> None:
    text = html(report.page(long(tmp_path / "run")))
    assert not re.search(r">[^<]*-0(\.0*)?[^.\de]", text)
    assert "-1e-05" in text  # what is no zero keeps its sign


def test_epochs_stand_above_the_steps_and_values_can_be_read(tmp_path: Path) -> None:
    (drawing,) = [one for one in report.page(long(tmp_path / "run")).lines if one.title == "Loss"]
    at = {tick.words: tick.at for tick in drawing.epochs}
    assert list(at) == ["5", "10", "15"]
    steps = {tick.words: tick.at for tick in drawing.across}
    share = (10 * SPE - 200) / 50  # of the way from step 200 to 250
    assert at["10"] == pytest.approx(steps["200"] + share * (steps["250"] - steps["200"]), abs=0.2)
    heads = {read.head: read for read in drawing.reads}
    assert heads["step 240, epoch 10"].values == [("f0", "loss 28")]
    covered = [(read.left, read.left + read.width) for read in drawing.reads]
    assert covered[0][0] == drawing.frame.left
    assert covered[-1][1] == pytest.approx(drawing.frame.right, abs=0.2)


def test_a_run_resumed_twice_shows_two_marks_and_the_change_of_ranks(tmp_path: Path) -> None:
    made = report.page(long(tmp_path / "run", [start(0), start(120), start(240, world=4)]))
    for drawing in made.lines:
        assert [mark.words for mark in drawing.marks] == ["resumed", "1 to 4 ranks"]
    assert html(made).count('class="mark"') == 2 * len(made.lines)
    assert made.status.endswith("Resumed 2 times: dashed lines.")
    assert not report.page(long(tmp_path / "other")).lines[0].marks


def test_it_loads_itself_again_only_while_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, clock = long(tmp_path / "run"), [0.0]
    page, refresh = run / "report.html", 'http-equiv="refresh"'
    monkeypatch.setattr(report.time, "monotonic", lambda: clock[0])
    with report.Kept(run) as kept:
        kept.keep_up()
        assert not page.exists()  # short runs are not held up
        clock[0] = report.EVERY
        kept.keep_up()
        assert refresh in page.read_text()
        page.unlink()
        clock[0] += report.EVERY / 2
        kept.keep_up()
        assert not page.exists()
        kept.keep_up(now=True)
        assert refresh in page.read_text()
    assert refresh not in page.read_text()
    report.make(run)
    assert refresh not in page.read_text()


def test_a_page_that_takes_long_is_drawn_the_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, drawn = [0.0], []

    def slow(*runs: Path, **options: Any) -> None:
        drawn.append(clock[0])
        clock[0] += 5

    monkeypatch.setattr(report.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(report, "make", slow)
    kept = report.Kept(tmp_path)
    while clock[0] < 5000:
        kept.keep_up()
        clock[0] += 1
    assert len(drawn) * 5 <= 0.015 * clock[0]


@pytest.mark.parametrize("failure", [OSError("no space"), ValueError("odd"), MemoryError()])
def test_a_page_that_fails_ends_no_run_and_is_told_once(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def fail(*runs: Path, **options: Any) -> None:
        raise failure

    monkeypatch.setattr(report, "make", fail)
    monkeypatch.setattr(report.logger, "warning", lambda text, *more: told.append(text % more))
    with report.Kept(tmp_path) as kept:
        kept.keep_up(now=True)
        kept.keep_up(now=True)
    assert len(told) == 1 and "the page of the run was not written" in told[0]


def test_runs_lie_over_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = long(tmp_path / "small_lr")
    two = write(tmp_path / "large_lr", [start(0), step_of(5), start(5, 2), step_of(20, loss=9.5)])
    made = report.page(one, two)
    by = {drawing.title: drawing for drawing in made.lines}
    assert [c.words for c in by["Loss"].curves] == ["small_lr", "large_lr"]
    assert [c.last for c in by["Loss"].curves] == ["20", "9.5"]
    assert [m.words for m in by["Loss"].marks] == ["large_lr: 1 to 2 ranks"]
    assert [c.words for c in by["Verification accuracy, %: lfw"].curves] == ["small_lr"]
    assert [read.values for read in by["Loss"].reads if read.head.startswith("step 20,")] == [
        [("f0", "small_lr 39"), ("f1", "large_lr 9.5")]
    ]
    monkeypatch.chdir(tmp_path)
    assert report.make(one, two) == Path("runs.html")
    text = (tmp_path / "runs.html").read_text()
    assert "small_lr" in text and "large_lr" in text
    with pytest.raises(UsageError, match="named twice"):
        report.page(one, tmp_path / "." / "small_lr")
    other = write(tmp_path / "b" / "small_lr", [start(0), step_of(5)])
    names = [curve.words for curve in report.page(one, other).lines[-1].curves]
    assert names == [str(one), str(other)]  # one name for both would tell nothing


def test_the_command_takes_one_run_or_several(tmp_path: Path) -> None:
    one, two = long(tmp_path / "one"), long(tmp_path / "two")
    app = typer.Typer()
    app.callback()(lambda: None)
    command.register(app)
    for runs, out in (([one], None), ([one, two], tmp_path / "both.html")):
        words = ["report", *map(str, runs), *(["--out", str(out)] if out else []), "--json"]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        page = Path(json.loads(done.stdout)["page"])
        assert page == (out or one / "report.html") and "408" in page.read_text()
