"""A page of curves and histograms: opens from disk, runs no script, needs no network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glint.files import atomic
from glint.review.chart import Chart
from glint.review.lines import Lines
from glint.review.report import MODE, TEMPLATES, data_uri, digest, render


@dataclass(frozen=True)
class Table:
    """Rows of words under heads."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Faces:
    """Pairs of images side by side: words, and both as JPEG or PNG."""

    title: str
    pairs: Sequence[tuple[str, bytes, bytes]]


@dataclass(frozen=True)
class Plots:
    """All that the page shows.

    counts: (number, words), the headline first. faces: the page is its owner's only. status: when
    it was written, of what. refresh: seconds until it loads itself again, 0 for never.
    """

    title: str
    counts: Sequence[tuple[str, str]]
    facts: Sequence[tuple[str, str]]
    lines: Sequence[Lines] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    faces: Sequence[Faces] = ()
    status: str = ""
    refresh: int = 0


def html(page: Plots) -> str:
    """Render the page: every text escaped, the style allowed by its hash, nothing else."""
    style = (TEMPLATES / "report.css").read_text() + (TEMPLATES / "plots.css").read_text()
    images = "img-src data:; " if page.faces else ""
    policy = f"default-src 'none'; style-src {digest(style)}; {images}base-uri 'none'; "
    policy += "form-action 'none'"
    return render("plots.html", page=page, style=style, policy=policy, data_uri=data_uri)


def write(path: Path, page: Plots) -> None:
    """Write the page, readable by its owner only where it shows faces. Raises ResourceError."""
    with atomic.replacing(path) as file:
        if page.faces:
            os.fchmod(file.fileno(), MODE)
        file.write(html(page).encode(errors="backslashreplace"))
