"""Who may ask the review server what, and that an answered decision is on disk."""

from __future__ import annotations

import http.client
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from glint.conflicts import decisions
from glint.errors import InputError, UsageError
from glint.review import report
from glint.review.report import Card, Page, Side
from glint.review.server import Review, opened

REPORT = "sha256:" + "1" * 64
PNG = b"\x89PNG\r\n\x1a\nnot really"


class Client:
    """One browser, by hand: its cookie and the headers that it sends."""

    def __init__(self, server: Review) -> None:
        self.server, self.cookie = server, ""

    def ask(
        self, method: str, path: str, body: object = None, **headers: str | None
    ) -> tuple[int, str, Any]:
        given = {"Host": f"127.0.0.1:{self.server.server_port}", "Cookie": self.cookie}
        if method == "POST":
            given["Content-Type"] = "application/json"
        given |= {name.replace("_", "-"): text for name, text in headers.items()}
        link = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=10)
        link.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        if method == "POST":
            given.setdefault("Content-Length", str(len(raw)))
        for name, text in given.items():
            if text is not None:
                link.putheader(name, text)
        link.endheaders()
        if method == "POST":
            link.send(raw)
        reply = link.getresponse()
        told = reply.read().decode()
        link.close()
        return reply.status, told, reply.headers

    def enter(self) -> Client:
        link = urlsplit(self.server.invite())
        status, _, headers = self.ask("GET", f"{link.path}?{link.query}")
        assert status == 303
        self.cookie = headers["Set-Cookie"].split(";")[0]
        return self


@pytest.fixture
def book(tmp_path: Path) -> Iterator[decisions.Book]:
    made = decisions.Book(tmp_path / decisions.NAME, REPORT)
    yield made
    made.close()


@pytest.fixture
def server(tmp_path: Path, book: decisions.Book) -> Iterator[Review]:
    card = Card(
        Side(1, "Ann", "1", 2), Side(2, "An", "2", 1), 0.8, 0.7, 0.6, 0.9, 0.8, 0.7, "merge"
    )
    page = Page("Identities", [], [], [], [card], review=report.Review(REPORT))
    report.write(tmp_path / "report.html", page)
    with Review(
        opened(tmp_path / "report.html"),
        book,
        frozenset({(1, 2), (3, 4)}),
        lambda label: [PNG, b"<svg>"],
        images=20,
        classes=10,
    ) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join(10)


def test_a_link_opens_once(server: Review) -> None:
    link = urlsplit(server.invite())
    assert link.hostname == "127.0.0.1"
    assert len(link.query) > 45
    client = Client(server)
    assert client.ask("GET", "/")[0] == 403
    for wrong in ("x", "", "%ff", link.query[6:-1]):
        assert client.ask("GET", "/?token=" + wrong)[0] == 403
    status, _, headers = client.ask("GET", "/?" + link.query)
    assert (status, headers["Location"]) == (303, "/")
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert link.query[6:] not in cookie
    assert client.ask("GET", "/?" + link.query)[0] == 403
    assert client.ask("GET", "/")[0] == 403  # the cookie was not sent
    assert client.ask("GET", "/", Cookie=cookie.split(";")[0] + "x")[0] == 403
    status, page, headers = client.ask("GET", "/", Cookie=cookie.split(";")[0])
    assert status == 200
    assert "default-src 'none'; connect-src 'self'; img-src data:" in unescape(page)
    assert headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in headers


def test_nothing_without_a_session(server: Review, book: decisions.Book) -> None:
    stranger = Client(server)
    body = {"by": "eve", "decisions": [[1, 2, "keep"]]}
    for method, path in (
        ("GET", "/decisions?since=0"),
        ("GET", "/faces?label=1"),
        ("GET", "/report.html"),
        ("POST", "/decide"),
        ("POST", "/invite"),
    ):
        assert stranger.ask(method, path, body)[0] == 403, path
    assert book.decisions == []


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "", None])
def test_another_name_for_this_machine_is_refused(server: Review, host: str | None) -> None:
    client = Client(server).enter()
    assert client.ask("GET", "/", Host=host)[0] == 403
    assert client.ask("GET", "/", Host=f"localhost:{server.server_port}")[0] == 200


def test_another_site_cannot_write(server: Review, book: decisions.Book) -> None:
    client = Client(server).enter()
    body = {"by": "eve", "decisions": [[1, 2, "keep"]]}
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        assert client.ask("POST", "/decide", body, Origin=origin)[0] == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        assert client.ask("POST", "/decide", body, Content_Type=kind)[0] == 415
    assert client.ask("OPTIONS", "/decide", Origin="http://evil.example")[0] == 501
    assert book.decisions == []
    assert client.ask("POST", "/decide", body, Origin=server.origin)[0] == 200


def test_an_answered_decision_is_on_disk(server: Review, book: decisions.Book) -> None:
    alice, bob = Client(server).enter(), Client(server).enter()
    body = {"by": "alice", "decisions": [[1, 2, "merge"], [4, 3, "keep"]]}
    status, told, _ = alice.ask("POST", "/decide", body)
    assert status == 200
    on_disk = decisions.read(book.path, REPORT)
    assert [d.line(REPORT) for d in on_disk] == json.loads(told)["decisions"]
    bob.ask("POST", "/decide", {"by": "bob", "decisions": [[1, 2, "keep"]]})
    alice.ask("POST", "/decide", {"by": "alice", "decisions": [[3, 4, "none"]]})
    said = decisions.standing(decisions.read(book.path, REPORT))
    assert said == {(1, 2): {"alice": "merge", "bob": "keep"}}
    _, told, _ = bob.ask("GET", "/decisions?since=2")
    news = json.loads(told)
    assert (news["next"], [d["by"] for d in news["decisions"]]) == (4, ["bob", "alice"])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[" * 100_000, 400),
        ([], 400),
        ({"by": "a"}, 400),
        ({"by": "a", "decisions": []}, 400),
        ({"by": "", "decisions": [[1, 2, "keep"]]}, 400),
        ({"by": ["a"], "decisions": [[1, 2, "keep"]]}, 400),
        ({"by": "a", "decisions": [[1, 2, "drop"]]}, 400),
        ({"by": "a", "decisions": [[1, 2, ["keep"]]]}, 400),
        ({"by": "a", "decisions": [[1, 3, "keep"]]}, 400),
        ({"by": "a", "decisions": [[True, 2, "keep"]]}, 400),
        ({"by": "a", "decisions": [["1", 2, "keep"]]}, 400),
        ({"by": "a", "decisions": [{"a": 1}]}, 400),
        ({"by": "a", "decisions": [[1, 2, "keep"], [1, 9, "keep"]]}, 400),
        ({"by": "a", "decisions": [{"image": 20, "action": "exclude"}]}, 400),
        ({"by": "a", "decisions": [{"image": True, "action": "exclude"}]}, 400),
        ({"by": "a", "decisions": [{"image": 1, "action": "merge"}]}, 400),
        ({"by": "a", "decisions": [{"image": 1, "action": "move"}]}, 400),
        ({"by": "a", "decisions": [{"image": 1, "action": "move", "to": 10}]}, 400),
        ({"by": "a", "decisions": [{"image": 1, "action": "exclude", "to": 1}]}, 400),
    ],
)
def test_what_is_no_decision_is_not_written(
    server: Review, book: decisions.Book, body: object, status: int
) -> None:
    assert Client(server).enter().ask("POST", "/decide", body)[0] == status
    assert book.path.read_bytes() == b""


def test_what_is_to_become_of_images_is_taken_beside_pairs(
    server: Review, book: decisions.Book
) -> None:
    wanted = [
        {"image": 19, "action": "move", "to": 9},
        [1, 2, "keep"],
        {"image": 3, "action": "exclude"},
        {"image": 3, "action": "none", "to": None},
    ]
    body = {"by": "ann", "decisions": wanted}
    status, told, _ = Client(server).enter().ask("POST", "/decide", body)
    assert status == 200
    assert json.loads(told)["decisions"] == [one.line(REPORT) for one in book.decisions]
    said = [(one.about, one.verdict) for one in decisions.read(book.path, REPORT)]
    assert said == [((1, 2), "keep"), (19, "move to 9"), (3, "exclude"), (3, "none")]


def test_sizes_paths_and_faces(server: Review) -> None:
    client = Client(server).enter()
    assert client.ask("POST", "/decide", {}, Content_Length=str(1 << 40))[0] == 413
    assert client.ask("POST", "/decide", {}, Content_Length="-1")[0] == 413
    assert client.ask("POST", "/decide", {}, Content_Length="x")[0] == 411
    assert client.ask("POST", "/other", {})[0] == 404
    assert client.ask("GET", "/../../etc/passwd")[0] == 404
    assert client.ask("GET", "/decisions?since=x")[0] == 400
    status, told, _ = client.ask("GET", "/faces?label=1")
    uris = json.loads(told)["faces"]
    assert status == 200
    assert uris[0].startswith("data:image/png;base64,")
    assert uris[1] == ""
    assert json.loads(client.ask("GET", "/faces?row=7")[1]) == {"faces": [""]}
    assert client.ask("GET", "/faces?row=x")[0] == 400
    status, told, _ = client.ask("POST", "/invite", {})
    assert status == 200
    assert json.loads(told)["link"].startswith(server.origin + "/?token=")


def test_a_page_that_cannot_be_reviewed_and_a_port_in_use(
    server: Review, book: decisions.Book, tmp_path: Path
) -> None:
    old = tmp_path / "old.html"
    old.write_text("<!doctype html>")
    with pytest.raises(InputError, match=r"GL0501.*is not a page that can be reviewed"):
        opened(old)
    with pytest.raises(InputError, match=r"GL0501.*cannot be read"):
        opened(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"GL0002.*cannot listen"):
        Review(b"", book, frozenset(), lambda label: [], port=server.server_port)


def test_connections_beyond_the_open_files_cost_no_processor(server: Review) -> None:
    """They wait; when others leave, the server answers again."""
    client = Client(server).enter()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[socket.socket] = [socket.socket() for _ in range(24)]
    most = max(one.fileno() for one in held) + 1  # the clients' sockets are there: none is left
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        for one in held:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", server.server_port))
        time.sleep(0.3)
        began = time.process_time()
        time.sleep(1.0)
        assert time.process_time() - began < 0.3
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in held:
            one.close()
    assert client.ask("GET", "/decisions?since=0")[0] in (200, 404)
