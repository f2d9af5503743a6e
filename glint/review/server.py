"""The conflict report served to reviewers of this machine, who decide in it.

The standard library's server does: half a dozen routes on the loopback, a few people, no more
packages to install. Who may ask: a link works once and leaves a cookie; every request names this
host and port (against DNS rebinding), every write comes from this page (JSON, own Origin).
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from glint.conflicts import decisions
from glint.errors import GlintError, InputError, UsageError
from glint.review.report import data_uri

HOST = "127.0.0.1"
CLOSED = 'content="default-src &#39;none&#39;;'  # the page's policy as it stands in report.html
OPENED = CLOSED + " connect-src &#39;self&#39;;"
BODY = 32 << 20  # most bytes of one request
SILENT = 30.0  # seconds that a client may hold a connection without a word
BREATH = 0.2  # seconds until a connection that could not be taken is tried again

Pairs = frozenset[tuple[int, int]]
Faces = Callable[[int], Sequence[bytes]]


class Refused(Exception):
    """A request that is answered with `status` and one line."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


class Review(ThreadingHTTPServer):
    """A report being reviewed. page: from `opened`; pairs: those that may be decided.

    faces: images of a label; image: that of a row, b"" for none; images, classes: how many images
    and labels as sharded there are to decide on.
    """

    daemon_threads = True

    def __init__(
        self,
        page: bytes,
        book: decisions.Book,
        pairs: Pairs,
        faces: Faces,
        *,
        image: Callable[[int], bytes] = lambda row: b"",
        images: int = 0,
        classes: int = 0,
        port: int = 0,
    ) -> None:
        self.image, self.images, self.classes = image, images, classes
        self.page, self.book, self.pairs, self.faces = page, book, pairs, faces
        self.writing = threading.Lock()
        self._links: list[str] = []
        self._sessions: list[str] = []
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise UsageError(
                "GL0002", f"cannot listen: {error.strerror}", where=f"--port {port}"
            ) from None

    def get_request(self) -> Any:
        """Take a connection; where no more files may be opened it waits, and costs no processor."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(BREATH)
            raise

    @property
    def origin(self) -> str:
        """Return where the server listens."""
        return f"http://{HOST}:{self.server_port}"

    @property
    def cookie(self) -> str:
        """Name the cookie: cookies know no ports, so the name does."""
        return f"glint-{self.server_port}"

    def invite(self) -> str:
        """Make a link that opens the review once."""
        self._links.append(secrets.token_urlsafe(32))
        return f"{self.origin}/?token={self._links[-1]}"

    def enter(self, token: str) -> str | None:
        """Use a link up and return the session that it opens; None where it opens none."""
        with self.writing:
            for link in self._links:
                if same(link, token):
                    self._links.remove(link)
                    self._sessions.append(secrets.token_urlsafe(32))
                    return self._sessions[-1]
        return None

    def knows(self, session: str) -> bool:
        """Return whether a session was opened here."""
        return any(same(held, session) for held in self._sessions)

    def decide(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Write what one reviewer decided; it lasts when this returns. Raises Refused.

        A decision is [a, b, verdict] or {"image": row, "action": ..., "to": label of a move}.
        """
        by, wanted = body.get("by"), body.get("decisions")
        if not decisions.usable_name(by):
            raise Refused(400, "a reviewer needs a name of 1 to 64 printable characters")
        if not isinstance(wanted, list) or not wanted:
            raise Refused(400, "expected decisions")
        verdicts, images = [], []
        for one in wanted:
            if isinstance(one, dict):
                images.append(self._image(one))
                continue
            if not (isinstance(one, list) and len(one) == 3):
                raise Refused(400, "expected [a, b, verdict] or an image")
            a, b, verdict = one
            known = type(a) is int and type(b) is int and (min(a, b), max(a, b)) in self.pairs
            if not known:
                raise Refused(400, f"no pair of this report: {str(one)[:80]}")
            if verdict not in (*decisions.VERDICTS, decisions.WITHDRAWN):
                raise Refused(400, f"no verdict: {str(verdict)[:80]}")
            verdicts.append((a, b, verdict))
        with self.writing:
            added = self.book.add(str(by), verdicts, images)
        return [one.line(self.book.report) for one in added]

    def _image(self, one: dict[str, Any]) -> tuple[int, str, int]:
        """Check what is to become of one image. Raises Refused."""
        row = one.get("image")
        if type(row) is not int or not 0 <= row < self.images:
            raise Refused(400, f"no image of this dataset: {str(row)[:80]}")
        try:
            action, to = decisions.checked_action(one, "")
        except InputError as error:
            raise Refused(400, error.what[:120]) from None
        if to >= self.classes:
            raise Refused(400, f"no identity of this dataset: {to}")
        return row, action, to

    def since(self, start: int) -> dict[str, Any]:
        """Return the decisions from number `start` on, and how many there are."""
        with self.writing:
            lines = [d.line(self.book.report) for d in self.book.decisions[max(start, 0) :]]
            return {"decisions": lines, "next": len(self.book.decisions)}


def same(one: str, other: str) -> bool:
    """Compare two secrets in a time that does not depend on where they differ."""
    return hmac.compare_digest(one.encode(), other.encode("utf-8", "surrogatepass"))


def opened(page: Path) -> bytes:
    """Read report.html and let it ask the server that it comes from. Raises InputError GL0501."""
    try:
        return allowed(page.read_text(encoding="utf-8"), str(page))
    except (OSError, ValueError) as error:
        raise InputError("GL0501", f"cannot be read: {error}", where=str(page)) from None


def allowed(text: str, where: str = "") -> bytes:
    """Let a page ask the server that it comes from. Raises InputError GL0501."""
    if CLOSED not in text[:4096] or 'id="data"' not in text:
        raise InputError(
            "GL0501",
            "is not a page that can be reviewed",
            where=where,
            hint="an older glint made it: run glint dedup-conflicts again",
        )
    return text.replace(CLOSED, OPENED, 1).encode()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    timeout = SILENT
    server_version, sys_version = "glint", ""

    @property
    def review(self) -> Review:
        """Return the server, by its own type."""
        return cast(Review, self.server)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep links and names out of the terminal."""

    def do_GET(self) -> None:
        """Answer a page, decisions or faces."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Take decisions, make a link."""
        self._answer(self._post)

    def _answer(self, work: Callable[[], None]) -> None:
        try:
            hosts = [f"{name}:{self.review.server_port}" for name in (HOST, "localhost")]
            if self.headers.get_all("Host") not in [[host] for host in hosts]:
                raise Refused(403, "this server answers to its own name only")
            work()
        except Refused as error:
            self._send(error.status, "text/plain", str(error).encode())
        except GlintError as error:
            self._send(500, "text/plain", str(error).encode())
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _get(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        if url.path == "/" and "token" in query:
            session = self.review.enter(query["token"][0])
            if session is None:
                raise Refused(403, "this link was used already, or is none of this server's")
            self.send_response(303)
            self.send_header("Location", "/")
            self.send_header(
                "Set-Cookie", f"{self.review.cookie}={session}; HttpOnly; SameSite=Strict; Path=/"
            )
            self._end(b"")
            return
        self._known()
        if url.path == "/":
            self._send(200, "text/html; charset=utf-8", self.review.page)
        elif url.path == "/decisions":
            self._json(self.review.since(_number(query, "since")))
        elif url.path == "/faces":
            if "row" in query:
                images: Sequence[bytes] = [self.review.image(_number(query, "row"))]
            else:
                images = self.review.faces(_number(query, "label"))
            self._json({"faces": [data_uri(image) for image in images]})
        else:
            raise Refused(404, "no such page")

    def _post(self) -> None:
        self._known()
        if self.headers.get("Origin") not in (None, f"http://{self.headers.get('Host')}"):
            raise Refused(403, "another site asks")
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "expected JSON")
        try:
            size = int(self.headers.get("Content-Length", ""))
        except ValueError:
            raise Refused(411, "expected a Content-Length") from None
        if not 0 <= size <= BODY:
            raise Refused(413, "too much at once")
        try:
            body = json.loads(self.rfile.read(size))
        except (ValueError, RecursionError):
            raise Refused(400, "is no JSON") from None
        if not isinstance(body, dict):
            raise Refused(400, "expected a JSON object")
        path = urlsplit(self.path).path
        if path == "/decide":
            self._json({"decisions": self.review.decide(body)})
        elif path == "/invite":
            self._json({"link": self.review.invite()})
        else:
            raise Refused(404, "no such page")

    def _known(self) -> None:
        """Raise Refused where the request carries no session of this server."""
        try:
            held = SimpleCookie(self.headers.get("Cookie", "")).get(self.review.cookie)
        except CookieError:
            held = None
        if held is None or not self.review.knows(held.value):
            raise Refused(403, "open the link that glint printed; it works once")

    def _json(self, value: object) -> None:
        self._send(200, "application/json", json.dumps(value).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self._end(body)

    def _end(self, body: bytes) -> None:
        self.send_header("Content-Length", str(len(body)))
        for name, value in (
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _number(query: dict[str, list[str]], name: str) -> int:
    try:
        return int(query[name][0])
    except (KeyError, ValueError):
        raise Refused(400, f"expected a number for {name}") from None
