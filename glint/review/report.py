"""The conflict report: one HTML page that opens from disk and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glint.files import atomic
from glint.review.chart import Chart

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("decisions.js", "images.js", "cut.js", "report.js")  # one script in the page
MODE = 0o600  # the page holds faces: its owner only
FACES = 24 << 20  # most bytes of faces in the cards, and as many in the groups and tabs


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
    """One pair with its evidence.

    strength: what the judge compares with its cut, NaN where it has no model. need: the cosine
    from which centres of so many images merge.
    """

    a: Side
    b: Side
    cosine: float
    cross_mean: float
    cross_q10: float
    score: float
    strength: float
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
class Strip:
    """Images side by side, with a title and words.

    rows: the images' rows in the dataset, those that are shown first. flagged: a reviewer may
    exclude, move and keep them; label: theirs as sharded; to: the identity to move them to, or -1.
    """

    title: str
    words: str
    faces: Sequence[bytes] = ()
    rows: Sequence[int] = ()
    flagged: bool = False
    label: int = -1
    to: int = -1
    to_name: str = ""


@dataclass(frozen=True)
class Exhibit:
    """Something that was found: its strips and numbers. kind: the class that colours it."""

    kind: str
    pill: str
    strips: Sequence[Strip]
    numbers: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Tab:
    """A tab of exhibits under the name `name`. left_out: those that are in `file` only."""

    name: str
    title: str
    words: str
    exhibits: Sequence[Exhibit]
    left_out: int
    file: str


@dataclass(frozen=True)
class Review:
    """What decisions made in the page rest on.

    report: names conflicts.json; decisions say it. identities: labels as sharded that an image can
    move to. drawn: cards of the audit, in the order drawn, of `merges` pairs that would merge;
    estimate: what the judge expects to be wrong; blind: the page is the audit's alone.
    """

    report: str = ""
    identities: int = 0
    merges: int = 0
    drawn: Sequence[int] = ()
    estimate: str = ""
    blind: bool = False


@dataclass(frozen=True)
class Page:
    """All that the page shows. cards: most alike first; the script draws those in sight.

    split: the axis that a cut counts, of identities split in two. left_out: pairs that are in
    pairs.parquet only.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    counts: Sequence[tuple[str, str, str]]  # kind, number, words
    charts: Sequence[Chart]
    cards: Sequence[Card]
    groups: Sequence[Group] = ()
    left_out: int = 0
    thumbs: bool = True
    notes: Sequence[str] = field(default_factory=tuple)
    review: Review = Review()
    split: Mapping[str, Sequence[float]] = field(default_factory=dict)
    tabs: Sequence[Tab] = ()


def data_uri(image: bytes) -> str:
    """Embed an image; empty where the bytes are of no kind that a page may show."""
    for magic, kind in ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n", "png"), (b"RIFF", "webp")):
        if image.startswith(magic):
            return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
    return ""


def digest(text: str) -> str:
    """Name a style or script as a content policy does, by its SHA-256."""
    value = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(value).decode('ascii')}'"


def data(page: Page) -> dict[str, Any]:
    """Return the pairs as columns of small numbers: about 90 bytes a pair as JSON.

    Cosines, scores and probabilities in units of 1/10,000; null where there is none.
    """
    sides = {side.label: side for card in page.cards for side in (card.a, card.b)}
    reasons = sorted({card.reason for card in page.cards})
    reason = {text: i for i, text in enumerate(reasons)}
    return {
        "report": page.review.report,
        "identities": page.review.identities,
        "merges": page.review.merges,
        "drawn": list(page.review.drawn),
        "blind": page.review.blind,
        "thumbs": page.thumbs,
        "label": list(sides),
        "name": [side.name for side in sides.values()],
        "source": [side.source_label for side in sides.values()],
        "images": [side.images for side in sides.values()],
        "a": [card.a.label for card in page.cards],
        "b": [card.b.label for card in page.cards],
        "cosine": [_whole(card.cosine) for card in page.cards],
        "mean": [_whole(card.cross_mean) for card in page.cards],
        "low": [_whole(card.cross_q10) for card in page.cards],
        "score": [_whole(card.score) for card in page.cards],
        "strength": [_whole(card.strength) for card in page.cards],
        "need": [_whole(card.need) for card in page.cards],
        "probability": [_whole(card.probability) for card in page.cards],
        "verdict": [card.verdict for card in page.cards],
        "reason": [reason[card.reason] for card in page.cards],
        "reasons": reasons,
        "split": {
            axis: sorted(_whole(v) or 0 for v in values if math.isfinite(v))
            for axis, values in page.split.items()
        },
    }


def _whole(value: float) -> int | None:
    return round(value * 10_000) if math.isfinite(value) else None


def faces(page: Page) -> dict[int, list[list[str]]]:
    """Return the faces of the first cards, by card, as long as they fit into FACES bytes."""
    shown: dict[int, list[list[str]]] = {}
    total = 0
    for k, card in enumerate(page.cards if page.thumbs else ()):
        images = [card.a.faces, card.b.faces]
        size = sum(len(image) for side in images for image in side)
        if not size or total + size > FACES:
            continue
        total += size
        shown[k] = [[data_uri(image) for image in side] for side in images]
    return shown


def embedded(value: object) -> str:
    """Write JSON that can stand in a script element of type application/json."""
    text = json.dumps(value, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def render(template: str, **values: object) -> str:
    """Fill in a template of this folder; every text is escaped, and every name must be known."""
    import jinja2

    space = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return space.get_template(template).render(**values)


def html(page: Page) -> str:
    """Render the page: every text escaped, style and script allowed by their hash, nothing else."""
    style = (TEMPLATES / "report.css").read_text()
    script = "".join((TEMPLATES / name).read_text() for name in SCRIPTS)
    policy = (
        f"default-src 'none'; img-src data:; style-src {digest(style)}; "
        f"script-src {digest(script)}; base-uri 'none'; form-action 'none'"
    )
    left = FACES  # of the groups and tabs

    def image(face: bytes) -> str:
        nonlocal left
        left -= len(face)
        return data_uri(face) if left >= 0 else ""

    return render(
        "report.html",
        page=page,
        style=style,
        script=script,
        policy=policy,
        data=embedded(data(page)),
        faces=embedded(faces(page)),
        data_uri=image,
    )


def write(path: Path, page: Page) -> None:
    """Write the page, readable by its owner only. Raises ResourceError."""
    write_private(path, html(page))


def write_private(path: Path, text: str) -> None:
    """Write a page of faces, readable by its owner only. Raises ResourceError."""
    with atomic.replacing(path) as file:
        os.fchmod(file.fileno(), MODE)
        file.write(text.encode(errors="backslashreplace"))  # a name that is not UTF-8
