"""The page in a real browser: from disk, by keyboard, at 100,000 pairs, and served."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.conflicts import decisions
from glint.review import report
from glint.review.chart import chart
from glint.review.report import Card, Group, Page, Side
from glint.review.server import Review

pytestmark = pytest.mark.slow


def pairs(count: int, face: bytes = b"", faced: int = 0) -> Page:
    """Draw pairs (2k, 2k + 1), most alike first."""
    rng = np.random.default_rng(3)
    score = np.sort(rng.uniform(0, 1.3, count))[::-1]
    verdict = np.where(score > 0.9, "merge", np.where(score > 0.6, "mask", "keep"))
    cards = [
        Card(
            Side(2 * k, f"person {2 * k}", str(2 * k), 1 + k % 7, (face,) * 6 * (k < faced)),
            Side(2 * k + 1, "<b>&", str(2 * k + 1), 2, (face,) * 6 * (k < faced)),
            float(score[k]) / 1.4,
            0.5,
            0.4,
            float(score[k]),
            float(score[k]) / 1.5,
            0.8,
            str(verdict[k]),
            "",
            float(score[k]) / 1.4,
        )
        for k in range(count)
    ]
    cosine = score / 1.4
    drawn = [
        chart(
            title,
            name,
            [("pairs", "pairs", values, True), ("same", "split", values[: count // 3], False)],
            [(0.4, "blind")],
            start=0.0,
            stop=stop,
            cut=name,
        )
        for title, name, values, stop in (
            ("by cosine", "cosine", cosine, 1.0),
            ("by strength", "strength", score / 1.5, 1.0),
        )
    ]
    sides = [cards[0].a, cards[0].b, cards[1].a]
    return Page(
        title="Identities that look like one person",
        facts=[("digest", "d")],
        counts=[("merge", "1", "pairs to merge")],
        charts=drawn,
        cards=cards,
        groups=[Group(1, sides, [[1, 0.9, 0.3], [0.9, 1, 0.8], [0.3, 0.8, 1]], "a chain")],
        report="sha256:" + "ab" * 32,
        split={"cosine": cosine[::3].tolist(), "strength": (score[::3] / 1.5).tolist()},
    )


def saved(tmp_path: Path, page: Page) -> Path:
    path = tmp_path / "report.html"
    report.write(path, page)
    return path


def begin(tab: Any, address: str) -> None:
    tab.open(address)
    tab.until("document.documentElement.dataset.ready === 'yes'")


def downloaded(tab: Any, folder: Path, page: Page) -> list[decisions.Decision]:
    folder.mkdir()
    tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    tab.value("document.getElementById('download').click()")
    path = folder / "decisions.jsonl"
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    return decisions.read(path, page.report)


def test_fifty_pairs_by_keyboard_from_disk(
    browser: Callable[[], Any], tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    page = pairs(70, jpeg(1), faced=10)
    path = saved(tmp_path, page)
    tab = browser()
    begin(tab, path.as_uri())
    assert tab.value("document.querySelectorAll('.card').length") == 50
    assert tab.value("document.querySelectorAll('.card img').length") == 120
    assert tab.value("[...document.images].every((one) => one.naturalWidth === 112)")
    assert tab.value("document.querySelector('.card .side:last-child b').textContent") == "<b>&"

    keys = "msx" * 17
    tab.press(keys[:50])
    assert "50 of 70 decided" in tab.value("document.getElementById('tally').textContent")
    tab.press("uu" + "x" + "k" + "m")  # the 49th anew: keep, then merge; the 50th open again
    means = {"m": "merge", "s": "mask", "x": "keep"}
    want = {(2 * k, 2 * k + 1): means[keys[k]] for k in range(48)} | {(96, 97): "merge"}
    told = downloaded(tab, tmp_path / "first", page)
    said = {pair: one["reviewer"] for pair, one in decisions.standing(told).items()}
    assert said == want

    begin(tab, path.as_uri() + "?again")  # a fresh load remembers, by localStorage
    assert "49 of 70 decided" in tab.value("document.getElementById('tally').textContent")
    again = decisions.standing(downloaded(tab, tmp_path / "second", page))
    assert again == {pair: {"reviewer": verdict} for pair, verdict in want.items()}
    outside = [one for one in tab.requests if not one.startswith(("file:", "data:", "blob:"))]
    assert outside == []
    assert tab.errors == []


def test_filters_bulk_cut_and_tabs(browser: Callable[[], Any], tmp_path: Path) -> None:
    page = pairs(400)
    tab = browser()
    begin(tab, saved(tmp_path, page).as_uri())

    def shown() -> str:
        text: str = tab.value("document.getElementById('shown').textContent")
        return text

    tab.value("document.querySelector('button[data-verdict=merge]').click()")
    merges = sum(card.verdict == "merge" for card in page.cards)
    assert shown() == f"1 to 50 of {merges} pairs"
    tab.value("document.getElementById('bulk').click()")
    assert tab.value("document.getElementById('bulk').textContent") == (
        f"really decide {merges} pairs?"
    )
    tab.value("document.getElementById('bulk').click()")
    assert f"{merges} of 400 decided" in tab.value("document.getElementById('tally').textContent")
    tab.press("u")
    assert "0 of 400 decided" in tab.value("document.getElementById('tally').textContent")

    # Drag the cut over the first histogram.
    tab.value("document.querySelector('svg[data-cut=cosine]').scrollIntoView()")
    box = tab.value(
        "(() => { const b = document.querySelector('svg[data-cut=cosine]')"
        ".getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
    )
    x = [box[0] + box[2] * (44 + (640 - 8 - 44) * share) / 640 for share in (0.2, 0.4, 0.5)]
    y = box[1] + box[3] / 2
    tab.mouse("mousePressed", x[0], y)
    for at in x[1:]:
        tab.mouse("mouseMoved", at, y)
    tab.until("document.getElementById('cut').textContent.includes('0.50')")
    tab.mouse("mouseReleased", x[2], y)
    text = tab.value("document.getElementById('cut').textContent")
    value = float(text.split()[3].rstrip(":"))
    assert value == pytest.approx(0.5, abs=0.01)
    over = [card for card in page.cards if card.cosine >= value]
    total = sum(card.a.images + card.b.images for card in over)
    assert f"{len(over)} pairs; would join {2 * len(over)} identities to {len(over)} groups" in text
    assert f"{total} images" in text
    tab.value("document.querySelector('button[data-verdict=\"\"]').click()")
    tab.value("document.getElementById('above').click()")
    assert shown() == f"1 to 50 of {len(over)} pairs"

    tab.value("document.querySelector('button[data-tab=groups]').click()")
    assert tab.value("document.getElementById('pairs').hidden")
    assert not tab.value("document.getElementById('groups').hidden")
    tab.value("document.querySelector('button[data-tab=calibration]').click()")
    assert tab.value("document.querySelectorAll('#bands tr').length") == 13
    assert tab.errors == []


def test_a_hundred_thousand_pairs(
    browser: Callable[[], Any], tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    """The page stays within its bound and is painted less than a second after a small one."""
    face = jpeg(1)
    paint: list[float] = []
    for count, faced in ((50, 50), (100_000, 260)):
        page = pairs(count, face, faced)
        path = saved(tmp_path, page)
        tab = browser()
        begin(tab, path.as_uri())
        painted = "performance.getEntriesByName('first-contentful-paint')"
        tab.until(f"{painted}.length")
        paint.append(tab.value(f"{painted}[0].startTime"))
    assert path.stat().st_size < 100_000 * 150 + 2 * 4 / 3 * report.FACES
    tab.press("m")
    assert "1 of 100000 decided" in tab.value("document.getElementById('tally').textContent")
    assert tab.value("document.querySelectorAll('.card').length") == 50
    print(f"first paint {paint[0]:.0f} and {paint[1]:.0f} ms, {path.stat().st_size >> 20} MiB")
    assert paint[1] - paint[0] < 1000
    assert [one for one in tab.requests if not one.startswith(("file:", "data:"))] == []
    assert tab.errors == []


def test_two_reviewers_of_a_served_report(
    browser: Callable[[], Any], tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    page = pairs(60)
    known = frozenset((card.a.label, card.b.label) for card in page.cards)
    book = decisions.Book(tmp_path / decisions.NAME, page.report)
    server = Review(saved(tmp_path, page), book, known, lambda label: [jpeg(label)])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        tabs = [browser(), browser()]
        for tab, name in zip(tabs, ("alice", "bob")):
            begin(tab, server.invite())
            tab.value(
                f"(() => {{ const box = document.getElementById('name'); box.value = '{name}';"
                "box.dispatchEvent(new Event('change')); })()"
            )
        assert tabs[0].value("location.search") == ""  # the token is gone from the address
        tabs[0].press("mmx")
        tabs[1].press("mx")
        tabs[0].until("document.querySelectorAll('.card img').length > 0")  # read as they show
        end = time.monotonic() + 10
        while len(book.decisions) < 5:
            assert time.monotonic() < end
            time.sleep(0.02)
        said = decisions.standing(decisions.read(book.path, page.report))
        assert said == {
            (0, 1): {"alice": "merge", "bob": "merge"},
            (2, 3): {"alice": "merge", "bob": "keep"},
            (4, 5): {"alice": "keep"},
        }
        tabs[0].until("document.getElementById('tally').textContent.includes('1 contradictions')")
        allowed = (server.origin, "data:", "about:")
        assert [r for tab in tabs for r in tab.requests if not r.startswith(allowed)] == []
        assert tabs[0].errors == tabs[1].errors == []
    finally:
        server.shutdown()
        server.server_close()
        book.close()
    assert json.loads(book.path.read_text().splitlines()[0])["schema"] == decisions.SCHEMA
