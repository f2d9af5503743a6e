"""`glint report`: the page of a run, or of several over each other."""

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
    runs: list[Path] = typer.Argument(..., metavar="RUN...", help="Folders of runs."),
    out: Path | None = typer.Option(
        None, "--out", help="The page; default RUN/report.html, of several runs runs.html here."
    ),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Write the logs of runs as one HTML page that opens offline."""

    def work() -> results.Report:
        from glint.errors import BusyError
        from glint.results import models as results
        from glint.train.report import make

        if out is not None and out.exists() and out.suffix not in (".html", ".htm"):
            raise BusyError(
                "GL0004", "a file is here that is no page", where=str(out),
                hint="name a .html file",
            )  # fmt: skip
        return results.Report(page=str(make(*runs, out=out)))

    console.run(work, as_json, debug=debug, say=lambda result: str(result.page))
