"""`glint labels`: the versions of a dataset's labels; undo and redo the last change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import console

if TYPE_CHECKING:
    from glint.results import identities as results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("labels")(labels)


def labels(
    dataset: Path = console.LOCAL_DATASET,
    undo: bool = typer.Option(False, "--undo", help="Restore the labels before the last change."),
    redo: bool = typer.Option(False, "--redo", help="Put back what was undone last."),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """List the label versions of a dataset and what made them; undo or redo the last change."""

    def work() -> results.Labels:
        from glint.errors import UsageError
        from glint.pipelines.dataset import versions
        from glint.shards import labels as table
        from glint.shards.dataset import Dataset

        if undo and redo:
            raise UsageError("GL0002", "expected one of them", where="--undo and --redo")
        data = Dataset(dataset)
        if undo:
            table.undo(data.root)
        if redo:
            table.redo(data.root)
        return versions.listed(data)

    console.run(work, as_json, debug=debug, say=_say)


def _say(r: results.Labels) -> str:
    lines = ["  version  from  identities  dropped  masks  left out  moved  made by"]
    for one in r.versions:
        mark = "*" if one.version == r.version else " "
        came = "" if one.made_from is None else str(one.made_from)
        lines.append(
            f"{mark} {one.version:>7} {came:>5} {one.classes:>11} {one.dropped:>8} {one.masks:>6} "
            f"{one.images_left_out:>9} {one.images_moved:>6}  {one.made_by}"
        )
    return "\n".join([*lines, f"* in force in {r.dataset}"])
