"""`glint embed`: unit embeddings of every image and class centres."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import console, parallel

if TYPE_CHECKING:
    from glint.results import identities as results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("embed")(embed)


def embed(
    dataset: str = console.DATASET,
    model: Path = typer.Option(
        ..., "--model", "-m", help="ONNX file, run directory or checkpoint directory."
    ),
    out: str = typer.Option(
        ..., "--out", "-o", metavar="FOLDER", help="Folder for the embeddings."
    ),
    batch: int = typer.Option(
        0, "--batch", min=0, help="Images per call of the model; 0 = by a short trial."
    ),
    flip: bool = typer.Option(
        False, "--flip/--no-flip", help="Add the embedding of the mirrored image."
    ),
    dtype: str = typer.Option("float16", "--dtype", help="float16 or float32."),
    trim: bool = typer.Option(
        False, "--trim/--no-trim", help="Leave images over 75 degrees from a centre out of it."
    ),
    workers: int = typer.Option(
        0, "--workers", min=0, help="Threads that decode and embed; 0 = one per core."
    ),
    output: str = console.OUTPUT,
    mean: float | None = console.MEAN,
    std: float | None = console.STD,
    bgr: bool = console.BGR,
    task: str = parallel.TASK,
    engine: str = parallel.ENGINE,
    ray_address: str = parallel.RAY_ADDRESS,
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Embed every image of a dataset; run it again to continue after a stop."""

    def work() -> results.Embed | results.EmbedShare:
        from glint.jobs.workers import ending
        from glint.models.onnx_file import Reading
        from glint.models.recogniser import open_model
        from glint.pipelines import embed as stage
        from glint.shards import labels
        from glint.shards.dataset import Dataset

        folder = console.path(out, "--out")
        mine = parallel.task(task)
        where = parallel.engine(engine, ray_address, actors=True)
        data = Dataset(dataset)
        table = labels.current(data.root, data.classes)
        reading = Reading(output, mean, std, bgr)
        stage.check_out(folder)  # before the model is opened, which takes seconds
        with console.progress("embed") as progress, ending():
            return stage.embed(
                data,
                open_model(model, threads=0, reading=reading),
                folder,
                batch=batch,
                flip=flip,
                dtype=dtype,
                workers=workers,
                trim=trim,
                progress=progress,
                task=mine,
                engine=where,
                opener=stage.Paths(str(dataset), str(model), reading),
                table=table,
            )

    console.run(work, as_json, debug=debug, say=lambda r: _say(r, dataset))


def _say(result: results.Embed | results.EmbedShare, dataset: str) -> str:
    from glint.results import identities as results

    if isinstance(result, results.EmbedShare):
        return parallel.left(result, result.blocks, "blocks")
    lines = [f"{console.count(result.images, 'image')}, {result.dim} numbers each -> {result.out}"]
    if result.failed:
        why = ", ".join(f"{name} {count}" for name, count in result.failures.items())
        lines.append(f"  {result.failed} failed ({why}): rows of NaN, named in samples.parquet")
        lines.append(
            f"  glint drop {console.quoted(dataset)} --failed {console.quoted(result.out)} "
            "--reason 'does not decode' leaves them out of training, and changes no shard"
        )
    if result.warning:
        lines.append(f"  warning: {result.warning}")
    if result.empty_classes:
        lines.append(f"  {result.empty_classes} identities have no usable face: no centre")
    if not result.centres:
        lines.append("  no identity has two images: there are no centres")
    emb = console.quoted(result.out)
    lines.append(
        f"Next: glint cluster {emb} --out CLUSTERS"
        if not result.centres or _unlabelled(dataset)
        else f"Next: glint dedup-conflicts {console.quoted(dataset)} --embeddings {emb} "
        "--out CONFLICTS"
    )
    return "\n".join(lines)


def _unlabelled(dataset: str) -> bool:
    """Say whether every image is an identity of its own, by the labels in force."""
    from glint.shards import labels
    from glint.shards.dataset import Dataset

    data = Dataset(dataset)
    return bool(labels.current(data.root, data.classes).classes == data.n)
