"""The page: escaped, offline, allowed by hash, and right in its numbers."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from glint.review import report
from glint.review.chart import chart
from glint.review.report import Card, Exhibit, Group, Page, Review, Side, Strip, Tab, html, write

BAD = "<script>alert(1)</script>\"><img src=x onerror=alert(2)>' & {{ 7*7 }} http://example.org/"
JPEG = b"\xff\xd8\xff\xe0not really"


def page(
    name: str = BAD, faces: tuple[bytes, ...] = (JPEG, b"<svg onload=alert(3)>"), **options: object
) -> Page:
    a, b = Side(3, name, name, 5, faces), Side(70, "", name, 1, faces)
    card = Card(a, b, 0.812, 0.7, 0.6, 0.97, 0.72, 0.8, "merge", name)
    bars = chart(
        "pairs",
        "cosine",
        [("pairs", name, np.array([0.5, 0.8, np.nan]), True)],
        [(0.4, name)],
        start=0.3,
        stop=1.0,
    )
    values = {
        "title": "Identities",
        "facts": [("command", name)],
        "cards": [card],
        "counts": [("merge", "1", "pairs to merge")],
        "charts": [bars],
        "groups": [Group(1, [a, b, a], [[1, 0.9, 0.3], [0.9, 1, 0.8], [0.3, 0.8, 1]], name)],
        "left_out": 12,
        "tabs": [
            Tab(
                "inside",
                name,
                name,
                [
                    Exhibit(
                        "mask",
                        name,
                        [Strip(name, name, faces, (8, 9), True, 3, 70, name)],
                        [(name, name)],
                    )
                ],
                3,
                name,
            )
        ],
        **options,
    }
    return Page(**values)


class Tags(HTMLParser):
    """Collect every tag, its attributes and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": [], "data": [], "faces": []}
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = dict(attrs).get("id", tag) if tag == "script" else tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in self.inline:
            self.inline[self.inside].append(data)


def test_nothing_from_data_becomes_markup() -> None:
    tags = Tags(html(page()))
    kinds = [a.get("type") for name, a in tags.tags if name == "script"]
    assert kinds == [None, "application/json", "application/json"]
    assert "alert" not in "".join(tags.inline["script"])
    assert not set("<>&") & set("".join(tags.inline["data"]))
    [*_, name] = json.loads("".join(tags.inline["data"]))["reasons"]
    assert name == BAD
    for name, attributes in tags.tags:
        assert not [a for a in attributes if a.startswith("on")], (name, attributes)
        assert "style" not in attributes
    assert "{{ 7*7 }}" in html(page())


def test_the_page_asks_the_network_for_nothing() -> None:
    text = html(page(name="plain"))
    assert not re.search(r"https?:|//[a-z]", re.sub(r"data:image/[^\"]*|sha256-[\w+/=]*", "", text))
    for name, attributes in Tags(text).tags:
        assert name not in ("link", "iframe", "object", "embed", "base", "form")
        for key in ("src", "href", "action", "srcset"):
            assert attributes.get(key, "data:image/").startswith("data:image/")


def test_style_and_script_are_allowed_by_their_hash() -> None:
    tags = Tags(html(page()))
    [policy] = [
        a["content"] for name, a in tags.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        digest = hashlib.sha256("".join(tags.inline[kind]).encode()).digest()
        assert f"{kind}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy


def test_only_images_are_embedded() -> None:
    text = html(page())
    sources = [a["src"] for name, a in Tags(text).tags if name == "img"]
    uri = "data:image/jpeg;base64," + base64.b64encode(JPEG).decode()
    assert set(sources) == {uri}
    assert "no image" in text
    shown = json.loads("".join(Tags(text).inline["faces"]))
    assert shown == {"0": [[uri, ""], [uri, ""]]}
    bare = Tags(html(page(thumbs=False)))
    assert [n for n, _ in bare.tags].count("img") == 0
    assert bare.inline["faces"] == ["{}"]


def test_faces_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards keep their numbers when the faces of the page have no more room."""
    cards = page().cards * 3
    size = 2 * sum(map(len, cards[0].a.faces))
    monkeypatch.setattr(report, "FACES", 2 * size + 1)
    text = html(page(cards=cards))
    assert sorted(json.loads("".join(Tags(text).inline["faces"]))) == ["0", "1"]
    assert len(report.data(page(cards=cards))["a"]) == 3


def test_numbers_and_words() -> None:
    text = html(
        page(
            name="Ann",
            review=Review("sha256:12", 90, 1, [0], "e"),
            split={"cosine": [0.9, np.nan, 0.8], "strength": [1.0]},
        )
    )
    for expected in ("12 further", "not merged", "do not upload"):
        assert expected in text
    assert re.search(r'weakest">0\.30<', text)
    got = json.loads("".join(Tags(text).inline["data"]))
    assert {name: got[name] for name in ("a", "b", "cosine", "mean", "low", "score", "strength",
                                      "need")} == {
        "a": [3], "b": [70], "cosine": [8120], "mean": [7000], "low": [6000], "score": [9700],
        "strength": [7200], "need": [8000],
    }  # fmt: skip
    assert (got["label"], got["name"], got["images"]) == ([3, 70], ["Ann", ""], [5, 1])
    assert (got["probability"], got["verdict"], got["reasons"]) == ([None], ["merge"], ["Ann"])
    assert (got["report"], got["split"]) == (
        "sha256:12",
        {"cosine": [8000, 9000], "strength": [10000]},
    )
    empty = html(page(cards=[], groups=[], left_out=0))
    assert "No pair of identities reached the search threshold." in empty


def test_mode_is_private_even_over_an_older_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    path.chmod(0o644)
    write(path, page())
    assert path.stat().st_mode & 0o777 == 0o600


def test_chart_counts_and_places() -> None:
    got = chart(
        "t",
        "x",
        [("pairs", "pairs", np.array([0.05, 0.05, 0.95, 7, np.nan]), True)],
        [(0.5, "half"), (3, "outside")],
        start=0.0,
        stop=1.0,
        step=0.1,
    )
    [series] = got.series
    assert series.words == "pairs (4)"
    points = [tuple(map(float, p.split(","))) for p in series.points.split()]
    assert points[0] == (got.frame.left, got.frame.floor)
    assert points[-1] == (got.frame.right, got.frame.floor)
    heights = [got.frame.floor - y for _, y in points[1:-1:2]]
    assert heights[0] == heights[9] > 0
    assert heights[1:9] == [0] * 8
    assert [tick.words for tick in got.lines] == ["half"]
    assert got.lines[0].at == pytest.approx((got.frame.left + got.frame.right) / 2)
    assert [tick.words for tick in got.up] == ["1", "10"]


def test_an_empty_chart_can_be_drawn() -> None:
    got = chart("t", "x", [("pairs", "pairs", np.empty(0), True)], [], start=0.0, stop=1.0)
    assert got.series[0].words == "pairs (0)"
