"""What a reviewer sees: faces on the first screen, words that can be read, what is decided."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glint.conflicts import decisions
from glint.review.report import Page

pytestmark = pytest.mark.slow
Pairs = Callable[..., Page]

SCREENS = [(w, h, dark) for w, h in ((1280, 720), (390, 844)) for dark in (False, True)]

# Every visible text whose contrast with its background is below WCAG AA, but for disabled buttons.
FAINT = """
(() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), faint = [];
  let seen = 0;
  while (walk.nextNode()) {
    const one = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(one.tagName)) { continue; }
    if (!one.checkVisibility() || one.closest(":disabled, option")) { continue; }
    const style = getComputedStyle(one), ink = parts(one.closest("svg") ? style.fill : style.color);
    let box = one;
    while (box && (parts(getComputedStyle(box).backgroundColor)[3] ?? 1) < 1) { box = box.parentElement; }
    const [a, b] = [light(ink), light(parts(getComputedStyle(box || document.body).backgroundColor))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    seen += 1;
    if (ratio < 4.5) { faint.push(walk.currentNode.data.trim().slice(0, 40) + " " + ratio.toFixed(2)); }
  }
  return [seen, faint];
})()
"""  # noqa: E501


@pytest.mark.parametrize(("width", "height", "dark"), SCREENS)
def test_faces_are_on_the_first_screen_and_everything_can_be_read(
    browser: Callable[[], Any],
    pictures: Page,
    tmp_path: Path,
    width: int,
    height: int,
    dark: bool,
) -> None:
    tab = browser()
    tab.screen(width, height, dark)
    tab.begin(pictures, tmp_path / "report.html")
    assert not tab.value("document.getElementById('charts').open")
    for face in (".side:first-child .face img", ".side:last-child .face img"):
        _, top, wide, tall = tab.box(f".card {face}")
        assert 112 <= wide <= 160 and wide == pytest.approx(tall, abs=1)
        assert top > 0 and top + tall <= height, (face, top)
    assert "0 of 60 decided by you" in tab.text("pairtally")

    def looked_at(where: str) -> None:
        assert tab.value("document.documentElement.scrollWidth <= innerWidth"), where
        seen, faint = tab.value(FAINT)
        assert seen > 20 and faint == [], where
        small = tab.value(
            "[...document.querySelectorAll('.face img')].filter((one) => one.checkVisibility())"
            ".map((one) => one.getBoundingClientRect().width).filter((w) => w < 112 || w > 160.5)"
        )
        assert small == [], where
        tab.picture(tmp_path / f"{width}-{'dark' if dark else 'light'}-{where}.png")

    tab.press("msx")
    looked_at("pairs")
    tab.value("document.getElementById('charts').open = true; scrollTo(0, 0)")
    looked_at("charts")
    assert tab.value("[...document.querySelectorAll('figure')].map((f) => f.lastElementChild"
                     ".textContent)") == ["One sentence."] * 2  # fmt: skip
    for name in ("groups", "inside", "duplicates"):
        tab.click(f"button[data-tab={name}]")
        tab.press("jeo ")
        looked_at(name)
    tab.press("?")
    looked_at("help")
    assert tab.value("[...document.images].every((one) => one.alt.length > 4)")
    assert tab.errors == []


def test_two_hundred_pairs_by_mouse_and_two_hundred_by_keys(
    browser: Callable[[], Any], pairs: Pairs, tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    page = pairs(400, jpeg(1), faced=100)
    tab = browser()
    tab.screen(1280, 720, False)
    tab.begin(page, tmp_path / "report.html")
    verdicts = ("merge", "mask", "keep", "keep", "merge", "mask", "mask")
    want = {(2 * k, 2 * k + 1): verdicts[k % 7] for k in range(400)}
    for k in range(200):
        if k and k % 50 == 0:
            tab.click("#on")
        tab.click(f".card[data-pair='{k}'] button[data-act={verdicts[k % 7]}]")
    assert "200 of 400 decided by you" in tab.text("pairtally")
    tab.click("#on")
    assert tab.value("document.querySelector('.card.at').dataset.pair") == "200"
    tab.press("".join({"merge": "m", "mask": "s", "keep": "x"}[want[2 * k, 2 * k + 1]]
                      for k in range(200, 400)))  # fmt: skip
    said = tab.downloaded(tmp_path / "all", page)
    assert len(said) == 400
    assert decisions.standing(said) == {pair: {"reviewer": one} for pair, one in want.items()}
    assert tab.errors == []


def test_the_selected_pair_is_in_sight_and_a_key_decides_nothing_else(
    browser: Callable[[], Any], pairs: Pairs, tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    tab = browser()
    tab.screen(1280, 720, False)
    tab.begin(pairs(120, jpeg(1), faced=60), tmp_path / "report.html")

    def in_sight() -> bool:
        _, top, _, tall = tab.box(".card.at")
        bar = tab.box("#pairbar")
        return bool(top >= bar[1] + bar[3] and top + tall <= 720)

    def decided() -> int:
        return int(tab.text("pairtally").split()[0])

    tab.press("jjj")
    assert in_sight()
    tab.value("scrollTo(0, 9000)")
    assert not in_sight()
    tab.press("x")
    assert decided() == 0 and in_sight()
    assert "look, then press again" in tab.value("document.querySelector('.last').textContent")
    tab.press("x")
    assert decided() == 1 and in_sight()
    assert tab.value("document.querySelector('.card.at').dataset.pair") == "4"
    for name, value in (("sort", "images"), ("which", "undecided"), ("find", "person 1")):
        tab.value("scrollTo(0, 9000)")
        tab.choose(name, value)
        assert in_sight(), name
        tab.value("scrollTo(0, 9000)")
        tab.press("s")
        assert decided() == 1 and in_sight(), name
    tab.value("scrollTo(0, 9000)")
    tab.click("button[data-verdict=merge]")
    assert in_sight()
    assert tab.errors == []


def test_a_face_is_enlarged_and_keys_are_explained(
    browser: Callable[[], Any], pairs: Pairs, tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    tab = browser()
    tab.screen(1280, 720, False)
    tab.begin(pairs(60, jpeg(1), faced=10), tmp_path / "report.html")
    tab.click(".card[data-pair='1'] .side:last-child .face:nth-child(2) img")
    assert tab.value("document.querySelector('#large').open")
    words = "document.querySelector('#large p').textContent"
    assert tab.value(words) == "<b>&, image 2 of 6"
    assert tab.box("#large img")[2] > 300
    tab.press("ArrowLeft", "ArrowLeft")
    assert tab.value(words) == "person 2, image 6 of 6"
    tab.press("x")
    tab.press("Escape")
    assert not tab.value("document.querySelector('#large').open")
    assert tab.text("pairtally").startswith("0 of 60")
    tab.press("?")
    keys = tab.value("document.querySelector('#help').innerText")
    assert tab.value("document.querySelector('#help').open")
    assert re.search(r"e m o\s+images: exclude, move, keep", keys)
    tab.press("Escape")
    assert not tab.value("document.querySelector('#help').open")
    assert tab.errors == []
