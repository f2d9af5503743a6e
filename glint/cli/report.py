"""`glint report`: the page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import console

if TYPE_CHECKING:
    from glint.results import models as results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report)


def report(
    run: Path = typer.Argument(..., metavar="RUN", help="The folder of a run."),
    out: Path | None = typer.Option(None, "--out", help="The page; default RUN/report.html."),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Write the log of a run as one HTML page that opens offline."""

    def work() -> results.Report:
        from glint.results import models as results
        from glint.train.report import make

        return results.Report(page=str(make(run, out)))

    console.run(work, as_json, debug=debug, say=lambda result: str(result.page))
