"""`glint card`: the README of a dataset."""

from __future__ import annotations

from typing import Any

import typer

from glint.cli import console as show


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("card")(card)


def card(
    dataset: str = show.DATASET,
    licence: str | None = typer.Option(
        None, "--license", help="An SPDX name, or text; must be given once."
    ),
    consent: str | None = typer.Option(
        None, "--consent", help="What the people shown agreed to; must be given once."
    ),
    contact: str | None = typer.Option(
        None, "--contact", help="Where to ask for removal; must be given once."
    ),
    title: str | None = typer.Option(None, "--title", help="Default: the folder's name."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the card, write nothing."),
    as_json: bool = show.JSON,
    debug: bool = show.DEBUG,
) -> None:
    """Write DATASET/README.md, a Hugging Face dataset card; your text between marks is kept."""

    def work() -> dict[str, Any]:
        from glint.pipelines.dataset import card as stage

        return stage.card(
            dataset, licence=licence, consent=consent, contact=contact, title=title, dry_run=dry_run
        )

    show.run(work, "glint/card-result@1", as_json, debug=debug, say=_say)


def _say(result: dict[str, Any]) -> str:
    if result["dry_run"]:
        return str(result["text"])
    lines = [f"wrote        {result['card']} (license: {result['license']})"]
    if result["kept"]:
        lines.append(f"kept         {', '.join(result['kept'])}")
    if result["replaced"]:
        lines.append(f"replaced     {', '.join(result['replaced'])}")
    return "\n".join([*lines, "next         fill in what the card says is not stated"])
