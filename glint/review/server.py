"""The conflict report served to reviewers of this machine, who decide in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from glint.conflicts import decisions
from glint.errors import InputError
from glint.review.local import HTML, Local, Query, Refused, number
from glint.review.report import data_uri

CLOSED = 'content="default-src &#39;none&#39;;'  # the page's policy as it stands in report.html
OPENED = CLOSED + " connect-src &#39;self&#39;;"

Pairs = frozenset[tuple[int, int]]
Faces = Callable[[int], Sequence[bytes]]


class Review(Local):
    """A report being reviewed. page: from `opened`; pairs: those that may be decided.

    faces: images of a label; image: that of a row, b"" for none; images, classes: how many images
    and labels as sharded there are to decide on.
    """

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
        super().__init__(port)

    def get(self, path: str, query: Query) -> tuple[str, bytes] | object:
        """Answer a page, decisions or faces."""
        if path == "/":
            return HTML, self.page
        if path == "/decisions":
            return self.since(number(query, "since"))
        if path == "/faces":
            if "row" in query:
                images: Sequence[bytes] = [self.image(number(query, "row"))]
            else:
                images = self.faces(number(query, "label"))
            return {"faces": [data_uri(image) for image in images]}
        raise Refused(404, "no such page")

    def post(self, path: str, body: dict[str, Any]) -> object:
        """Take decisions, make a link."""
        if path == "/decide":
            return {"decisions": self.decide(body)}
        if path == "/invite":
            return {"link": self.invite()}
        raise Refused(404, "no such page")

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
