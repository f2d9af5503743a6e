"""A page served to people of this machine: the door that every server of glint's pages has.

The standard library's server does: a few routes on the loopback, a few people, no more packages to
install. Who may ask: a link works once and leaves a cookie; every request names this host and port
(against DNS rebinding), every write comes from this page (JSON, own Origin).
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from glint.errors import GlintError, UsageError

HOST = "127.0.0.1"
BODY = 32 << 20  # most bytes of one request
SILENT = 30.0  # seconds that a client may hold a connection without a word
BREATH = 0.2  # seconds until a connection that could not be taken is tried again
HTML = "text/html; charset=utf-8"

Query = dict[str, list[str]]


class Refused(Exception):
    """A request that is answered with `status` and one line."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


class Local(ThreadingHTTPServer):
    """A server on the loopback. `get` and `post` answer those who opened one of its links.

    Raises UsageError GL0002 where it cannot listen.
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        self.writing = threading.Lock()
        self._links: list[str] = []
        self._sessions: list[str] = []
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise UsageError(
                "GL0002", f"cannot listen: {error.strerror}", where=f"--port {port}"
            ) from None

    def get(self, path: str, query: Query) -> tuple[str, bytes] | object:
        """Answer a GET: (type, bytes), or what is sent as JSON. Raises Refused."""
        raise Refused(404, "no such page")

    def post(self, path: str, body: dict[str, Any]) -> object:
        """Answer a POST with what is sent as JSON. Raises Refused."""
        raise Refused(404, "no such page")

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


def same(one: str, other: str) -> bool:
    """Compare two secrets in a time that does not depend on where they differ."""
    return hmac.compare_digest(one.encode(), other.encode("utf-8", "surrogatepass"))


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    timeout = SILENT
    server_version, sys_version = "glint", ""

    @property
    def local(self) -> Local:
        """Return the server, by its own type."""
        return cast(Local, self.server)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep links and names out of the terminal."""

    def do_GET(self) -> None:
        """Answer what is asked for."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Take what is sent."""
        self._answer(self._post)

    def _answer(self, work: Callable[[], None]) -> None:
        try:
            hosts = [f"{name}:{self.local.server_port}" for name in (HOST, "localhost")]
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
            session = self.local.enter(query["token"][0])
            if session is None:
                raise Refused(403, "this link was used already, or is none of this server's")
            self.send_response(303)
            self.send_header("Location", "/")
            self.send_header(
                "Set-Cookie", f"{self.local.cookie}={session}; HttpOnly; SameSite=Strict; Path=/"
            )
            self._end(b"")
            return
        self._known()
        answer = self.local.get(url.path, query)
        if isinstance(answer, tuple):
            self._send(200, *answer)
        else:
            self._json(answer)

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
        self._json(self.local.post(urlsplit(self.path).path, body))

    def _known(self) -> None:
        """Raise Refused where the request carries no session of this server."""
        try:
            held = SimpleCookie(self.headers.get("Cookie", "")).get(self.local.cookie)
        except CookieError:
            held = None
        if held is None or not self.local.knows(held.value):
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


def number(query: Query, name: str) -> int:
    """Read a whole number of a query. Raises Refused."""
    try:
        return int(query[name][0])
    except (KeyError, ValueError):
        raise Refused(400, f"expected a number for {name}") from None
