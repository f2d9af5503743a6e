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
    checkpoint: Path = typer.Argument(
        ...,
        metavar="MODEL",
        help="A run directory or one of its checkpoints; with --int8 or --fp16 also ONNX.",
    ),
    out: Path = typer.Argument(..., metavar="OUT", help="The .onnx file to write."),
    opset: int = typer.Option(17, "--opset", help="ONNX operator set, 11 to 20."),
    crops: int = typer.Option(
        32, "--crops", min=1, help="Random crops on which to compare with torch."
    ),
    overwrite: bool = typer.Option(
        False, "--overwrite", help="Replace a file that glint did not make."
    ),
    int8: bool = typer.Option(False, "--int8", help="Quantise: needs --calibrate and --pairs."),
    fp16: bool = typer.Option(False, "--fp16", help="Half precision inside: needs --pairs."),
    calibrate: Path | None = typer.Option(
        None, "--calibrate", metavar="DATASET", help="Images whose activations set int8's ranges."
    ),
    pairs: Path | None = typer.Option(
        None, "--pairs", metavar="PACK.bin", help="What int8 or fp16 is verified on."
    ),
    limit: float = typer.Option(
        0.2, "--limit", min=0.0, help="Percentage points of accuracy that int8 or fp16 may lose."
    ),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Write a trained net as ONNX; check it against torch and in insightface's loader."""

    def work() -> results.Export | results.ExportSmall:
        from glint.errors import UsageError
        from glint.models.export_onnx import export_onnx

        kind = "int8" if int8 else "fp16"
        needs = {"--pairs": pairs, **({"--calibrate": calibrate} if int8 else {})}
        given = {"--pairs": pairs, "--calibrate": calibrate}
        if int8 and fp16:
            raise UsageError("GL0002", "one of the two", where="--int8, --fp16")
        if int8 or fp16:
            from glint.evals.small_onnx import shrink

            if lacking := [name for name, value in needs.items() if value is None]:
                raise UsageError("GL0002", f"--{kind} needs {' and '.join(lacking)}")
            assert pairs is not None
            with console.progress("export") as progress:
                return shrink(
                    checkpoint, out, kind, pairs, calibrate=calibrate, limit=limit,
                    overwrite=overwrite, progress=progress,
                )  # fmt: skip
        if unread := [name for name, value in given.items() if value is not None]:
            raise UsageError("GL0002", "only read with --int8 or --fp16", where=", ".join(unread))
        with console.progress("export") as progress:
            return export_onnx(
                checkpoint, out, opset=opset, crops=crops, overwrite=overwrite, progress=progress
            )

    console.run(work, as_json, debug=debug, say=_say)


def _say(result: results.Export | results.ExportSmall) -> str:
    from glint.results import models as results

    if isinstance(result, results.ExportSmall):
        spared = f", {result.spared} layers in float32" if result.spared else ""
        return (
            f"{result.onnx}: {result.kind}{spared}\n"
            f"  accuracy {100 * result.accuracy_before:.2f} % -> {100 * result.accuracy:.2f} % "
            f"on {console.count(result.pairs, 'pair')}\n"
            f"  size     {result.bytes_before / 1e6:.2f} MB -> {result.bytes / 1e6:.2f} MB\n"
            f"  time     {result.ms_before:.1f} ms -> {result.ms:.1f} ms an image, one thread"
        )
    loader = "insightface loads it" if result.insightface else "insightface is not installed"
    return (
        f"{result.onnx}: {result.backbone}, {result.dim} numbers per face, "
        f"{result.bytes / 1e6:.1f} MB, opset {result.opset}\n"
        f"  lowest cosine with torch {result.cosine_min:.7f} over "
        f"{console.count(result.crops, 'crop')}; {loader}\n"
        f"Next: glint eval pairs FILE.bin --model {console.quoted(result.onnx)}"
    )
