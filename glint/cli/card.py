"""`glint card`: the README of a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from glint.cli import console

if TYPE_CHECKING:
    from glint.results import datasets as results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("card")(card)


def card(
    dataset: str = console.DATASET,
    licence: str | None = typer.Option(
        None, "--license", help="An SPDX name or text; required once."
    ),
    consent: str | None = typer.Option(
        None, "--consent", help="What the people shown consented to; required once."
    ),
    contact: str | None = typer.Option(
        None, "--contact", help="Where to request removal; required once."
    ),
    title: str | None = typer.Option(None, "--title", help="Default: the folder's name."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the card; write nothing."),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Write DATASET/README.md, a Hugging Face dataset card; keeps your text between its marks."""

    def work() -> results.Card:
        from glint.pipelines.dataset import card as stage

        return stage.card(
            dataset, licence=licence, consent=consent, contact=contact, title=title, dry_run=dry_run
        )

    console.run(work, as_json, debug=debug, say=_say)


def _say(result: results.Card) -> str:
    if result.dry_run:
        return str(result.text)
    lines = [f"wrote        {result.card} (license: {result.license})"]
    if result.kept:
        lines.append(f"kept         {', '.join(result.kept)}")
    if result.replaced:
        lines.append(f"replaced     {', '.join(result.replaced)}")
    return "\n".join([*lines, "next         fill in what the card lists as not stated"])
