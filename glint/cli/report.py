"""`glint report`: the page of a run."""

from __future__ import annotations

from pathlib import Path

import typer

from glint.cli import console as show


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report)


def report(
    run: Path = typer.Argument(..., help="The folder of a run."),
    out: Path | None = typer.Option(None, "--out", help="The page (default RUN/report.html)."),
    as_json: bool = show.JSON,
    debug: bool = show.DEBUG,
) -> None:
    """Draw a run's log as one HTML page that opens offline."""

    def work() -> dict[str, object]:
        from glint.train.report import make

        return {"page": str(make(run, out))}

    show.run(
        work, "glint/report-result@1", as_json, debug=debug, say=lambda result: str(result["page"])
    )
