"""The page in a real browser: from disk, by keyboard, at 100,000 pairs, and served."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glint.conflicts import decisions
from glint.review import report
from glint.review.report import Page
from glint.review.server import Review, opened

pytestmark = pytest.mark.slow
Pairs = Callable[..., Page]


def test_fifty_pairs_by_keyboard_from_disk(
    browser: Callable[[], Any], pairs: Pairs, tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    page = pairs(70, jpeg(1), faced=10)
    path = tmp_path / "report.html"
    tab = browser()
    tab.begin(page, path)
    assert tab.value("document.querySelectorAll('.card').length") == 50
    assert tab.value("document.querySelectorAll('.card img').length") == 120
    assert tab.value(
        "[...document.querySelectorAll('.card img')].every((one) => one.naturalWidth === 112)"
    )
    assert tab.value("document.querySelector('.card .side:last-child b').textContent") == "<b>&"

    keys = "msx" * 17
    tab.press(keys[:50])
    assert "50 of 70 decided" in tab.text("pairtally")
    tab.press("uu" + "x" + "k" + "m")  # the 49th anew: keep, then merge; the 50th open again
    means = {"m": "merge", "s": "mask", "x": "keep"}
    want = {(2 * k, 2 * k + 1): means[keys[k]] for k in range(48)} | {(96, 97): "merge"}
    told = tab.downloaded(tmp_path / "first", page)
    said = {pair: one["reviewer"] for pair, one in decisions.standing(told).items()}
    assert said == want

    tab.begin(path.as_uri() + "?again")  # a fresh load remembers, by localStorage
    assert "49 of 70 decided" in tab.text("pairtally")
    again = decisions.standing(tab.downloaded(tmp_path / "second", page))
    assert again == {pair: {"reviewer": verdict} for pair, verdict in want.items()}
    outside = [one for one in tab.requests if not one.startswith(("file:", "data:", "blob:"))]
    assert outside == []
    assert tab.errors == []


def test_filters_bulk_cut_and_tabs(
    browser: Callable[[], Any], pairs: Pairs, tmp_path: Path
) -> None:
    page = pairs(400)
    tab = browser()
    tab.begin(page, tmp_path / "report.html")

    def shown() -> str:
        text: str = tab.text("shown")
        return text

    tab.value("document.querySelector('button[data-verdict=merge]').click()")
    merges = sum(card.verdict == "merge" for card in page.cards)
    assert shown() == f"1 to 50 of {merges} pairs"
    tab.value("document.getElementById('bulk').click()")
    assert tab.value("document.getElementById('bulk').textContent") == (
        f"really decide {merges} pairs?"
    )
    tab.value("document.getElementById('bulk').click()")
    assert f"{merges} of 400 decided" in tab.text("pairtally")
    tab.press("u")
    assert "0 of 400 decided" in tab.text("pairtally")

    # Drag the cut over the first histogram, from a word of the chart: nothing gets selected.
    tab.value("document.getElementById('charts').open = true")
    tab.value("document.querySelector('svg[data-cut=cosine]').scrollIntoView({block: 'center'})")
    words = "document.querySelector('.ownwords').textContent"
    assert tab.value(words) == "your cut: drag me"
    left, top, width, height = tab.box("svg[data-cut=cosine]")
    x = [left + width * (44 + (640 - 8 - 44) * share) / 640 for share in (0.2, 0.4, 0.5)]
    y = top + height / 2
    tab.mouse("mousePressed", x[0], y)
    for at in x[1:]:
        tab.mouse("mouseMoved", at, y + height / 2)
    tab.until("document.getElementById('cut').textContent.includes('0.50')")
    tab.mouse("mouseReleased", x[2], y)
    assert tab.value("getSelection().toString()") == ""
    assert tab.value(words) == "your cut 0.50"
    text = tab.text("cut")
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
    assert tab.errors == []


def test_a_hundred_thousand_pairs(
    browser: Callable[[], Any], pairs: Pairs, tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    """The page stays within its bound, and its first paint does not wait for the pairs."""
    path = tmp_path / "report.html"
    tab = browser()
    paint = "performance.getEntriesByName('first-contentful-paint')"
    tab.begin(pairs(50, jpeg(1), 50), path)  # the browser's own first page is not timed
    page, took = pairs(100_000, jpeg(1), 260), []
    report.write(path, page)
    while min(took, default=200) >= 200 and len(took) < 15:  # a busy machine makes some slower
        tab.begin(path.as_uri() + f"?{len(took)}")
        tab.until(f"{paint}.length")
        took.append(tab.value(f"{paint}[0].startTime"))
    print(f"first paint {' '.join(f'{ms:.0f}' for ms in took)} ms, {path.stat().st_size >> 20} MiB")
    assert min(took) < 200
    assert path.stat().st_size < 100_000 * 150 + 2 * 4 / 3 * report.FACES
    tab.press("m")
    assert "1 of 100000 decided" in tab.text("pairtally")
    assert tab.value("document.querySelectorAll('.card').length") == 50
    assert [one for one in tab.requests if not one.startswith(("file:", "data:"))] == []
    assert tab.errors == []


def test_two_reviewers_of_a_served_report(
    browser: Callable[[], Any], pairs: Pairs, tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    page = pairs(60)
    known = frozenset((card.a.label, card.b.label) for card in page.cards)
    book = decisions.Book(tmp_path / decisions.NAME, page.review.report)
    report.write(tmp_path / "report.html", page)
    server = Review(opened(tmp_path / "report.html"), book, known, lambda label: [jpeg(label)])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        tabs = [browser(), browser()]
        for tab, name in zip(tabs, ("alice", "bob")):
            tab.begin(server.invite())
            tab.choose("name", name)
        assert tabs[0].value("location.search") == ""  # the token is gone from the address
        tabs[0].press("mmx")
        tabs[1].press("mx")
        tabs[0].until("document.querySelectorAll('.card img').length > 0")  # read as they show
        end = time.monotonic() + 10
        while len(book.decisions) < 5:
            assert time.monotonic() < end
            time.sleep(0.02)
        said = decisions.standing(decisions.read(book.path, page.review.report))
        assert said == {
            (0, 1): {"alice": "merge", "bob": "merge"},
            (2, 3): {"alice": "merge", "bob": "keep"},
            (4, 5): {"alice": "keep"},
        }
        tabs[0].until(
            "document.getElementById('pairtally').textContent.includes('1 contradictions')"
        )
        allowed = (server.origin, "data:", "about:")
        assert [r for tab in tabs for r in tab.requests if not r.startswith(allowed)] == []
        assert tabs[0].errors == tabs[1].errors == []
    finally:
        server.shutdown()
        server.server_close()
        book.close()
    assert json.loads(book.path.read_text().splitlines()[0])["schema"] == decisions.SCHEMA
