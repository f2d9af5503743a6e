"""`glint import`: published weights as a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import complete, console

if TYPE_CHECKING:
    from glint.results import models as results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("import")(import_)


def import_(
    weights: Path = typer.Argument(
        ..., metavar="WEIGHTS", help="A .pt of arcface_torch, say, .safetensors, .onnx."
    ),
    out: Path = typer.Argument(..., metavar="OUT", help="A new or empty folder."),
    backbone: str = typer.Option(
        "",
        "--backbone",
        autocompletion=complete.nets,
        help="The net: r50, mbf, vit_b, ...; not needed in a known layout.",
    ),
    embedding: int = typer.Option(512, "--embedding", help="Length of an embedding."),
    inside: str = typer.Option(
        "", "--inside", metavar="NAME", help="Of several states in WEIGHTS: ema, ema.shadow, ..."
    ),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Import published weights as a checkpoint; no code in the file is run."""

    def work() -> results.Import:
        from glint.models.import_weights import import_weights

        return import_weights(
            console.path(str(weights), "WEIGHTS"),
            backbone,
            console.path(str(out), "OUT"),
            embedding=embedding,
            inside=inside,
        )

    console.run(work, as_json, debug=debug, say=_say)


def _say(result: results.Import) -> str:
    source = result.source
    layout = f"layout       {result.layout}\n" if result.layout else ""
    return layout + (
        f"{result.checkpoint}: {result.name}, {result.embedding} numbers per face, "
        f"{result.parameters:,} parameters, from {source.name} ({source.dtype})\n"
        f"Next: glint eval pairs FILE.bin --model {console.quoted(result.checkpoint)}"
    )
