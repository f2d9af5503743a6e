"""`glint export`: a trained net as an ONNX file that insightface loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import console

if TYPE_CHECKING:
    from glint.results import models as results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export)


def export(
    checkpoint: Path = typer.Argument(..., help="A run directory or one of its checkpoints."),
    out: Path = typer.Argument(..., help="The .onnx file to write."),
    opset: int = typer.Option(17, "--opset", help="ONNX operator set, 11 to 20."),
    crops: int = typer.Option(
        32, "--crops", min=1, help="Random crops on which to compare with torch."
    ),
    overwrite: bool = typer.Option(
        False, "--overwrite", help="Replace a file that glint did not make."
    ),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Write a trained net as ONNX; check it against torch and in insightface's loader."""

    def work() -> results.Export:
        from glint.models.export_onnx import export_onnx

        with console.progress("export") as progress:
            return export_onnx(
                checkpoint, out, opset=opset, crops=crops, overwrite=overwrite, progress=progress
            )

    console.run(work, as_json, debug=debug, say=_say)


def _say(result: results.Export) -> str:
    loader = "insightface loads it" if result.insightface else "insightface is not installed"
    return (
        f"{result.onnx}: {result.backbone}, {result.dim} numbers per face, "
        f"{result.bytes / 1e6:.1f} MB, opset {result.opset}\n"
        f"  lowest cosine with torch {result.cosine_min:.7f} over {result.crops} crops; "
        f"{loader}\n"
        f"Next: glint eval pairs FILE.bin --model {console.quoted(result.onnx)}"
    )
