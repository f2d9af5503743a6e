"""A page of curves and histograms: opens from disk, runs no script, needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glint.files import atomic
from glint.review.chart import Chart
from glint.review.lines import Lines
from glint.review.report import TEMPLATES, digest, render


@dataclass(frozen=True)
class Table:
    """Rows of words under heads."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Plots:
    """All that the page shows. counts: (number, words)."""

    title: str
    counts: Sequence[tuple[str, str]]
    facts: Sequence[tuple[str, str]]
    lines: Sequence[Lines] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


def html(page: Plots) -> str:
    """Render the page: every text escaped, the style allowed by its hash, nothing else."""
    style = (TEMPLATES / "report.css").read_text() + (TEMPLATES / "plots.css").read_text()
    policy = f"default-src 'none'; style-src {digest(style)}; base-uri 'none'; form-action 'none'"
    return render("plots.html", page=page, style=style, policy=policy)


def write(path: Path, page: Plots) -> None:
    """Write the page. Raises ResourceError."""
    atomic.write_bytes(path, html(page).encode())
