"""`glint split`: identities held out of a dataset as a test of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import complete, console

if TYPE_CHECKING:
    from glint.results import bench as results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("split")(split)


def split(
    dataset: Path = typer.Argument(
        ...,
        parser=console.local,
        metavar="DATASET",
        autocompletion=complete.datasets,
        help="A dataset.",
    ),
    out: Path = typer.Argument(..., parser=console.local, metavar="OUT", help="A new folder."),
    people: int = typer.Option(..., "--people", min=20, help="Identities to hold out."),
    pairs: int = typer.Option(6000, "--pairs", min=20, help="Pairs of a list, at most."),
    embeddings: Path | None = typer.Option(
        None, "--embeddings", "--emb", help="Of DATASET: also write a list of hard pairs."
    ),
    groups: Path | None = typer.Option(
        None, "--groups", help="A table of name and group: also write a list balanced by group."
    ),
    seed: int = typer.Option(0, "--seed", min=0, help="Seed of the choice."),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Hold people out for a test; lists of pairs, packs, and ids.txt for `drop --ids-from`."""

    def work() -> results.Split:
        from glint.errors import InputError
        from glint.evals.sets import group_table
        from glint.pipelines.dataset import split as stage

        table = None
        if groups is not None and (table := group_table(groups)) is None:
            what = "expected a first line that names a column of names and one of groups"
            raise InputError("GL0802", what, where=str(groups), hint="such as: name,group")
        return stage.split(
            dataset, out, people, pairs=pairs, embeddings=embeddings, groups=table, seed=seed
        )

    console.run(work, as_json, debug=debug, say=lambda made: _say(made, dataset))


def _say(result: results.Split, dataset: Path) -> str:
    of = "".join(f", {count} of {name}" for name, count in result.groups.items())
    lines = [f"held out     {result.people} people{of}, {console.count(result.images, 'image')}"]
    lines += [f"wrote        {name}.tsv and {name}.bin: {console.count(pairs, 'pair')}"
              for name, pairs in result.lists.items()]  # fmt: skip
    where = console.quoted(dataset)
    lines.append(
        f"next         glint drop {where} --ids-from {console.quoted(result.ids)} --reason "
        "held-out (else they are trained on); glint bench MODEL --sets "
        f"{console.quoted(result.out)}"
    )
    return "\n".join(lines)
