"""In a browser: images excluded, moved and kept, and an audit that shows no verdict."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glint.conflicts import audit, decisions
from glint.conflicts.decisions import Decision, ImageDecision
from glint.review import report
from glint.review.report import Page
from glint.review.server import Review, allowed

pytestmark = pytest.mark.slow
Pairs = Callable[..., Page]


def stands(said: list[decisions.Said]) -> dict[int, str]:
    """Give the last word on each image."""
    images = sorted((one for one in said if isinstance(one, ImageDecision)), key=lambda d: d.seq)
    return {one.image: one.verdict for one in images if one.verdict != "none"} | {
        one.image: "none" for one in images[-1:] if one.verdict == "none"
    }


def last(tab: Any) -> str:
    text: str = tab.value("document.querySelector('#imagebar .last').textContent")
    return text


def test_images_by_key(browser: Callable[[], Any], pictures: Page, tmp_path: Path) -> None:
    tab = browser()
    tab.screen(1280, 720, False)
    tab.begin(pictures, tmp_path / "report.html")
    tab.click("button[data-tab=inside]")
    tab.press("jj")  # the first outlier
    tab.press("m")  # to the identity it is nearest to
    tab.press("eo")  # the next two
    assert "3 of 13 decided by you; exclude 1, move 1, keep 1" in tab.text("imagetally")
    tab.press("kkkk")  # the two sets
    tab.press("a")
    tab.press("m")
    assert "Move where?" in last(tab)
    tab.choose("to", "nobody")
    tab.press("Enter")
    assert "no identity of this report: nobody" in last(tab)
    tab.choose("to", "10000")
    tab.press("Enter")
    assert "no identity of this report" in last(tab)
    tab.choose("to", "5")
    tab.press("Enter")
    assert "of that identity already" in last(tab)
    tab.choose("to", "PERSON 90")
    tab.press("Enter")
    assert last(tab) == "4 images: moved to person 90"
    tab.press("ArrowRight", "ArrowRight", "ArrowRight")
    tab.press("ArrowRight", "ArrowRight", shift=True)
    assert tab.text("picked") == "3 selected:"
    tab.press("e")
    want = {20: "move to 7", 21: "exclude", 22: "keep"} | dict.fromkeys(range(10, 13), "move to 90")
    want |= dict.fromkeys(range(13, 16), "exclude")
    said = tab.downloaded(tmp_path / "one", pictures)
    assert stands(said) == want
    assert {one.by for one in said} == {"reviewer"}

    tab.begin((tmp_path / "report.html").as_uri() + "?again")  # localStorage remembers
    tab.click("button[data-tab=inside]")
    assert "9 of 13 decided by you" in tab.text("imagetally")
    tab.press("uuu")
    assert stands(tab.downloaded(tmp_path / "two", pictures)).keys() & {13, 14, 15} <= {13, 14, 15}
    assert "6 of 13 decided by you; exclude 1, move 4, keep 1" in tab.text("imagetally")
    assert tab.text("pairtally").startswith("0 of 60")
    assert tab.errors == []


def test_images_by_mouse(browser: Callable[[], Any], pictures: Page, tmp_path: Path) -> None:
    tab = browser()
    tab.screen(1280, 720, False)
    tab.begin(pictures, tmp_path / "report.html")
    tab.click("button[data-tab=inside]")
    pick = "#inside .pick[data-row='{}'] input".format
    tab.click(pick(21))
    tab.click(pick(24), shift=True)
    assert tab.text("picked") == "4 selected:"
    tab.click(pick(22))
    tab.click("#imagebar button[data-act=move]")
    assert "3 of 13 decided by you; exclude 0, move 3, keep 0" in tab.text("imagetally")
    tab.click("#inside .strip[data-rows='[14, 15, 16]'] button[data-act=exclude]")
    assert last(tab) == "Select images first."
    tab.click("#inside .strip[data-rows='[14, 15, 16]'] button[data-act=all]")
    tab.click("#inside .strip[data-rows='[14, 15, 16]'] button[data-act=exclude]")
    tab.click("#inside .strip[data-rows='[25]'] button[data-act=keep]")
    tab.click("#inside .pick[data-row='25'] img")
    assert tab.value("document.querySelector('#large').open")
    tab.press("Escape")
    tab.click("button[data-tab=duplicates]")
    tab.click("#duplicates .strip[data-label='2'] .pick input")
    tab.click("#duplicates .strip[data-label='2'] button[data-act=move]")
    want = {21: "move to 7", 23: "move to 7", 24: "move to 7", 25: "keep", 32: "move to 1"}
    want |= dict.fromkeys((14, 15, 16), "exclude")  # the one that is not shown too
    assert stands(tab.downloaded(tmp_path / "one", pictures)) == want
    tab.click("#imagebar button[data-act=undo]")
    assert "0 of 4 decided by you" in tab.text("imagetally")
    assert tab.errors == []


def served(tmp_path: Path, page: Page, pairs: set[tuple[int, int]], face: bytes) -> Review:
    book = decisions.Book(tmp_path / decisions.NAME, page.review.report)
    text = allowed(report.html(page))
    server = Review(text, book, frozenset(pairs), lambda label: [face], image=lambda row: face,
                    images=50, classes=10_000)  # fmt: skip
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


def test_images_of_a_served_report(
    browser: Callable[[], Any],
    pictures: Page,
    tmp_path: Path,
    jpeg: Callable[[int], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(report, "FACES", 0)  # the page has no room: the server has the images
    server = served(tmp_path, pictures, {(0, 1)}, jpeg(1))
    try:
        tabs = [browser(), browser()]
        for tab, name in zip(tabs, ("alice", "bob")):
            tab.screen(1280, 720, False)
            tab.begin(server.invite())
            tab.choose("name", name)
            tab.click("button[data-tab=inside]")
            tab.until(
                "[...document.querySelectorAll('#inside .strip')].slice(0, 2).every((one) =>"
                "!one.querySelector('.gone') && one.querySelector('img[alt^=Ann]'))"
            )
            tab.press("jj")
        tabs[0].press("m")
        tabs[1].press("e")
        for tab in tabs:
            tab.until("document.querySelector('.mark').parentNode && "
                      "document.getElementById('imagetally').textContent.includes('contradictions')")  # fmt: skip  # noqa: E501
        said = [(d.about, d.verdict, d.by) for d in decisions.read(server.book.path, pictures.review.report)]  # fmt: skip  # noqa: E501
        assert sorted(said) == [(20, "exclude", "bob"), (20, "move to 7", "alice")]
        assert tabs[0].errors == tabs[1].errors == []
    finally:
        server.shutdown()
        server.server_close()
        server.book.close()


@pytest.mark.parametrize("wrong", [0, 2])
def test_an_audit_is_blind_and_ends_in_a_bound(
    browser: Callable[[], Any], pairs: Pairs, tmp_path: Path, jpeg: Callable[[int], bytes],
    wrong: int,
) -> None:  # fmt: skip
    page = pairs(120, jpeg(1), 10)
    merges = page.review.merges
    drawn = [7, 3, 30, 1, 12, 0, 20, 9, 5, 2, 11, 17]
    page = dataclasses.replace(page, review=dataclasses.replace(page.review, drawn=drawn))
    tab = browser()
    tab.screen(1280, 720, False)
    tab.begin(page, tmp_path / "report.html")
    assert tab.text("audit").strip() == "Estimate: 0.5 are wrong."
    tab.choose("which", "audit")
    assert tab.text("shown") == "1 to 12 of 12 pairs"
    assert tab.value("[...document.querySelectorAll('.card')].map((c) => +c.dataset.pair)") == drawn
    for telling in (".card .pill", ".card.merge", ".card dl", ".card .need"):
        assert tab.value(f"document.querySelector('{telling}')") is None
    tab.press("x" * wrong + "m" * (11 - wrong))
    assert tab.text("audit") == "Estimate: 0.5 are wrong. Audit: 11 of 12 drawn pairs decided."
    assert tab.text("pairtally") == "11 of 12 decided by you"
    tab.press("m")
    said = decisions.standing(tab.downloaded(tmp_path / "one", page))
    found = audit.judge([(2 * k, 2 * k + 1) for k in drawn], said, merges)
    assert (found.decided, found.wrong) == (12, wrong)
    assert tab.text("audit") == "Audit: " + audit.sentence(found) + "."
    assert "at most 22.1 %" in tab.text("audit") or wrong
    assert tab.errors == []


def test_a_served_audit_shows_the_drawn_alone(
    browser: Callable[[], Any], pairs: Pairs, tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    nan = float("nan")
    cards = [
        dataclasses.replace(one, cosine=nan, cross_mean=nan, cross_q10=nan, score=nan,
                            strength=nan, need=nan, probability=nan)
        for one in pairs(4).cards
    ]  # fmt: skip
    mine = report.Review("sha256:" + "cd" * 32, 100, 4, range(4), "Four of four.", True)
    page = Page("Audit", [], [], [], cards, review=mine)
    server = served(tmp_path, page, {(0, 1), (2, 3), (4, 5), (6, 7)}, jpeg(1))
    try:
        tab = browser()
        tab.screen(390, 844, True)
        tab.begin(server.invite())
        assert tab.value("document.querySelectorAll('.tabs button[data-tab]').length") == 0
        assert not tab.value("document.querySelector('.filters').checkVisibility()")
        tab.until("document.querySelectorAll('.card img').length > 1")
        for k, act in enumerate(("merge", "merge", "mask", "keep")):
            tab.click(f".card[data-pair='{k}'] button[data-act={act}]")
        end = time.monotonic() + 10
        while len(server.book.decisions) < 4:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert tab.text("audit") == (
            "Audit: of 4 drawn, 1 wrong, 1 unsure (counted as wrong): 50.0 % of the merges are "
            "wrong (all were reviewed)."
        )
        kinds = {type(one) for one in server.book.decisions}
        assert kinds == {Decision} and tab.errors == []
    finally:
        server.shutdown()
        server.server_close()
        server.book.close()
