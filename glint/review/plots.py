"""A page of curves and histograms: opens from disk, runs no script, needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glint.files import atomic
from glint.review.chart import Chart
from glint.review.lines import Lines
from glint.review.report import TEMPLATES, digest


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
    import jinja2

    style = (TEMPLATES / "report.css").read_text() + (TEMPLATES / "plots.css").read_text()
    policy = f"default-src 'none'; style-src {digest(style)}; base-uri 'none'; form-action 'none'"
    space = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return space.get_template("plots.html").render(page=page, style=style, policy=policy)


def write(path: Path, page: Plots) -> None:
    """Write the page. Raises ResourceError."""
    atomic.write_bytes(path, html(page).encode())
