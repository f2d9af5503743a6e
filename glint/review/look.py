"""The page of `glint look`: one HTML page, alone or with the server that it comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glint.review.chart import Chart
from glint.review.local import Query, Refused
from glint.review.report import TEMPLATES, data_uri, digest, embedded, render

PHOTO = 64 << 20  # bytes of the largest photograph that a thumbnail is made of
CLOSED = "default-src &#39;none&#39;; img-src data:;"  # the policy as it stands in the page
OPENED = "default-src &#39;none&#39;; img-src data: &#39;self&#39;; connect-src &#39;self&#39;;"

Answer = dict[str, Any]  # {"total": int, "items": [...]}


@dataclass(frozen=True)
class Asked:
    """What a request asks for. who: images of one identity; low, high: limits of `column`."""

    sort: str = ""
    down: bool = False
    text: str = ""
    column: str = ""
    low: float = -math.inf
    high: float = math.inf
    who: int | None = None
    start: int = 0
    count: int = 50

    @staticmethod
    def of(query: Query, most: int) -> Asked:
        """Read the words of a query. Raises Refused."""
        one = {name: values[0] for name, values in query.items()}
        try:
            return Asked(
                one.get("sort", ""), one.get("down") == "1", one.get("text", "")[:200],
                one.get("column", ""), float(one.get("low") or -math.inf),
                float(one.get("high") or math.inf), int(one["who"]) if "who" in one else None,
                max(0, int(one.get("from", "0"))), min(most, max(1, int(one.get("count", "50")))),
            )  # fmt: skip
        except ValueError:
            raise Refused(400, "expected numbers") from None


@dataclass(frozen=True)
class Sample:
    """What a page that is one file holds. faces: by row; photos: by place in `rejected`."""

    identities: Sequence[dict[str, Any]]
    images: Sequence[dict[str, Any]]
    rejected: Sequence[dict[str, Any]]
    faces: dict[int, bytes]
    photos: dict[int, bytes]


def html(
    title: str,
    counts: Sequence[tuple[str, str]],
    facts: Sequence[tuple[str, str]],
    charts: Sequence[Chart],
    meta: dict[str, Any],
    sample: Sample | None,
) -> str:
    """Render the page: every text escaped, style and script allowed by their hash, nothing else."""
    style = (TEMPLATES / "report.css").read_text() + (TEMPLATES / "look.css").read_text()
    script = (TEMPLATES / "look.js").read_text()
    policy = (
        f"default-src 'none'; img-src data:; style-src {digest(style)}; "
        f"script-src {digest(script)}; base-uri 'none'; form-action 'none'"
    )
    held = sample or Sample([], [], [], {}, {})
    data = {
        "meta": meta, "identities": held.identities, "images": held.images,
        "rejected": held.rejected,
        "faces": {str(row): _packed(image) for row, image in held.faces.items()},
        "photos": {str(at): _packed(image) for at, image in held.photos.items() if image},
    }  # fmt: skip
    return render(
        "look.html", title=title, counts=counts, facts=facts, charts=charts, style=style,
        script=script, policy=policy, data=embedded(data), sampled=sample is not None,
        shown=len(held.images), meta=meta,
    )  # fmt: skip


def opened(page: str) -> bytes:
    """Let the page ask the server that it comes from."""
    assert CLOSED in page[:4096]
    return page.replace(CLOSED, OPENED, 1).encode(errors="backslashreplace")


def kind(data: bytes) -> str:
    """Return the media type of an encoded image."""
    return data_uri(data).split(":", 1)[1].split(";", 1)[0]


def _packed(image: bytes) -> str:
    return data_uri(image) if image else ""
