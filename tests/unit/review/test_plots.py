"""Pages of plots: what they tell of an evaluation, and how they stand in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.review import accepts, plots
from glint.review.chart import chart, number, short
from glint.review.lines import lines
from glint.train import report

ROOT = Path(__file__).parents[3]
FARS = ("1e-1", "1e-2", "1e-3", "1e-4", "1e-6")


def result(genuine: int = 3000, impostors: int = 3000) -> dict[str, Any]:
    far = np.geomspace(1 / impostors, 1, 30)
    counts = np.zeros(200, int)
    counts[95:105] = impostors // 10
    return {
        "genuine": genuine, "impostors": impostors,
        "roc": [[float(x), min(1.0, 0.9 + float(x))] for x in far],
        "histogram": {"impostors": counts.tolist(), "genuine": (counts[::-1] // 2).tolist()},
        "tar_at_far": dict(zip(FARS, (1.0, 0.98765, 0.9, 0.5, None))),
        "threshold_at_far": dict(zip(FARS, (-0.000001, 0.2, 0.3, 0.4, None))),
    }  # fmt: skip


def eval_page(path: Path, **more: Any) -> str:
    accepts.write_page(path, "Verification", [("lfw", result())], **more)
    return path.read_text()


def test_accuracy_comes_first_and_shares_have_the_digits_they_are_worth(tmp_path: Path) -> None:
    text = eval_page(tmp_path / "e.html", headline=[("99.82 %", "accuracy on lfw")])
    tiles = re.findall(r'class="count[^"]*"><b>([^<]*)</b><span>([^<]*)', text)
    assert tiles[0] == ("99.82 %", "accuracy on lfw")
    assert tiles[1] == ("90.00 %", "lfw, TAR at FAR 1e-3")  # 3000 pairs say nothing of 1e-4
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", text)
    assert cells[:6] == ["1e-1", "100.00", "0.0000", "1e-2", "98.77", "0.2000"]
    assert [accepts.digits_of(n) for n in (0, 20, 3000, 10**5, 10**9)] == [2, 2, 2, 3, 4]
    assert not re.search(r">[^<]*-0(\.0*)?[^.\de]", text) and "TAR <b>1" not in text


def test_every_drawing_says_how_to_read_it(tmp_path: Path) -> None:
    text = eval_page(tmp_path / "e.html")
    drawings = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    assert len(drawings) == 2
    for drawing in drawings:
        assert any(
            len(p.split()) > 8 for p in re.findall(r'<p class="legend">([^<]+)</p>', drawing)
        )


@pytest.mark.parametrize(
    "value, words",
    [(-0.0, "0"), (0.1, "0.1"), (-0.5, "-0.5"), (5000, "5000"), (200_000, "200k"),
     (99.9925, "99.9925"), (3e6, "3M"), (1e10, "10G"), (1e-5, "1e-5")],
)  # fmt: skip
def test_words_of_an_axis(value: float, words: str) -> None:
    assert short(value) == words


def test_a_zero_has_no_sign() -> None:
    found = [number(-0.0), number(-1e-9, ".2f"), number(-0.004, ".1f"), number(-0.06, ".1f")]
    assert found == ["0", "0.00", "0.0", "-0.1"]
    drawn = chart("t", "c", [("same", "w", np.array([-0.315]), True)], [], start=-0.4, stop=-0.0)
    assert [tick.words for tick in drawn.across][-1] == "0" and f"{drawn.stop}" == "0.0"
    assert drawn.reads[8].head == "c -0.32 to -0.31" and drawn.reads[8].values == [("same", "w 1")]


def test_less_than_a_decade_has_ticks_too() -> None:
    x = np.array([0.03, 0.04, 0.08])
    drawing = lines("t", "FAR", [("a", x, x)], logarithmic=True)
    assert drawing is not None and [tick.words for tick in drawing.across] == ["0.05"]
    drawing = lines("t", "FAR", [("a", np.array([0.05, 1.0]), x[:2])], logarithmic=True)
    assert drawing is not None and [t.words for t in drawing.across] == ["0.1", "1"]
    drawing = lines("t", "FAR", [("a", np.array([0.1]), x[:1])], logarithmic=True)  # one point
    assert drawing is not None


def test_what_a_pointer_reads_is_what_is_drawn() -> None:
    x = np.arange(1000.0)
    drawing = lines("t", "step", [("a", x, x), ("b", x[:500], -x[:500])])
    assert drawing is not None
    frame = drawing.frame
    for read in drawing.reads:
        told = float(read.head.split()[1].replace(",", ""))
        assert read.at == pytest.approx(frame.x(told / 998.5), abs=1)
        a = next(words for kind, words in read.values if kind == "f0")
        assert float(a.split()[1]) == pytest.approx(told, abs=2)
        assert len(read.values) == (2 if told < 500 else 1)  # b ends: nothing is said of it


def test_drawings_of_the_pages_follow_the_screen(browser: Callable[[], Any]) -> None:
    """Drawings of docs/img are dark on a dark screen, with letters that can be read."""
    tab = browser()
    for path in sorted((ROOT / "docs" / "img").glob("*.svg")):
        if path.stem == "terminal":  # a dark window on any screen
            continue
        tab.open(path.as_uri())
        for dark in (False, True):
            tab.screen(800, 600, dark)
            colours = [
                tab.value(f"getComputedStyle(document.querySelector('{name}')).fill")
                for name in ("rect", "text")
            ]
            paper, letters = (sum(map(int, re.findall(r"\d+", one)[:3])) for one in colours)
            assert (paper < 150 and letters > 600) if dark else (paper > 700 and letters < 150)


def test_in_a_browser(browser: Callable[[], Any], tmp_path: Path) -> None:
    """No page is wider than a phone; a pointer shows values; a live page loads itself again."""
    long = "a_model_with_a_rather_long_name/step-00000032_of_this_run"
    wide = plots.Table("Wide", [f"TAR@FAR 1e-{k} %" for k in range(9)], [[long, *["99.99"] * 8]])
    path = tmp_path / "e.html"
    accepts.write_page(path, long, [(long, result())], facts=[(long, "f" * 200)], tables=[wide])
    tab = browser()
    for width in (390, 1400):
        tab.screen(width, 1000, False)
        tab.open(path.as_uri())
        assert tab.value("innerWidth") == width
        assert tab.value("document.documentElement.scrollWidth") <= width
    shown = "[...document.querySelectorAll('.at text')].filter(e => getComputedStyle(e).visibility"
    shown += " === 'visible').map(e => e.textContent)"
    assert tab.value(shown) == []
    left, top, across, up = tab.box("svg")
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=left + across / 2, y=top + up / 2)
    tab.until(f"{shown}.length === 1")
    assert re.fullmatch(r"FAR 0\.0\d+TAR 9\d(\.\d+)?", tab.value(shown)[0])
    assert not tab.errors

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.jsonl").write_text('{"kind": "step", "step": 3, "loss": 1.5}\n')
    report.make(folder, out=path, live=True)
    path.write_text(path.read_text().replace(f'content="{report.EVERY}"', 'content="1"'))
    tab.open(path.as_uri())
    report.make(folder, out=path)  # the run has ended meanwhile
    tab.until("!document.querySelector('meta[http-equiv=refresh]')")
    assert not tab.errors


def test_a_point_alone_is_a_dot() -> None:
    """A line of no length shows nothing: the first verification of a run stands alone."""
    one, two = np.array([0.0]), np.array([0.0, 1.0])
    for x, dots in ((one, 1), (two, 0)):
        drawn = lines("Accuracy", "step", [("pairs", x, x + 0.5)])
        assert drawn is not None
        page = plots.html(plots.Plots("Run", [], [], [drawn]))
        assert len(re.findall(r'class="curve c0 dot"', page)) == dots
