"""The conflict report: one HTML page that opens from disk and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from glint.review.chart import Chart
from glint.shards import commit

TEMPLATES = Path(__file__).parent / "templates"
MODE = 0o600  # the page holds faces: its owner only


@dataclass(frozen=True)
class Side:
    """One identity of a pair. faces: encoded images, nearest to the other side first."""

    label: int
    name: str
    source_label: str
    images: int
    faces: Sequence[bytes] = ()


@dataclass(frozen=True)
class Card:
    """One pair with its evidence. need: the score from which a pair of these sizes merges."""

    a: Side
    b: Side
    cosine: float
    cross_mean: float
    cross_q10: float
    score: float
    need: float
    verdict: str
    reason: str = ""
    probability: float = math.nan


@dataclass(frozen=True)
class Group:
    """Three or more identities that merge, or a chain that does not (`reason` says why).

    cosine: a square table of centre cosines in the order of the members.
    """

    number: int
    members: Sequence[Side]
    cosine: Sequence[Sequence[float]]
    reason: str = ""

    @property
    def weakest(self) -> float:
        """Return the lowest cosine between two members."""
        size = range(len(self.members))
        return min(self.cosine[i][j] for i in size for j in size if i != j)


@dataclass(frozen=True)
class Page:
    """All that the page shows. Pairs beyond the cards stand in a table, without faces.

    left_out: pairs that stand in pairs.parquet only.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    counts: Sequence[tuple[str, str, str]]  # kind, number, words
    charts: Sequence[Chart]
    cards: Sequence[Card]
    rows: Sequence[Card] = ()
    groups: Sequence[Group] = ()
    left_out: int = 0
    thumbs: bool = True
    notes: Sequence[str] = field(default_factory=tuple)


def _data_uri(image: bytes) -> str:
    """Embed an image; empty where the bytes are of no kind that a page may show."""
    for magic, kind in ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n", "png")):
        if image.startswith(magic):
            return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
    return ""


def digest(text: str) -> str:
    """Name a style or script as a content policy does, by its SHA-256."""
    told = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(told).decode('ascii')}'"


def html(page: Page) -> str:
    """Render the page: every text escaped, style and script allowed by their hash, nothing else."""
    import jinja2

    style = (TEMPLATES / "report.css").read_text()
    script = (TEMPLATES / "report.js").read_text()
    policy = (
        f"default-src 'none'; img-src data:; style-src {digest(style)}; "
        f"script-src {digest(script)}; base-uri 'none'; form-action 'none'"
    )
    space = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    space.filters["data_uri"] = _data_uri
    return space.get_template("report.html").render(
        page=page, style=style, script=script, policy=policy
    )


def write(path: Path, page: Page) -> None:
    """Write the page, readable by its owner only. Raises ResourceError."""
    with commit.atomic(path) as file:
        os.fchmod(file.fileno(), MODE)
        file.write(html(page).encode())
