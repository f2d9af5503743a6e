"""`glint quality`: how well a face can be told from each image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import console, parallel

if TYPE_CHECKING:
    from glint.results import identities as results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("quality")(quality)


def quality(
    dataset: str = console.DATASET,
    out: str = typer.Option(..., "--out", "-o", metavar="FOLDER", help="Folder for the table."),
    embeddings: str | None = typer.Option(
        None, "--embeddings", "--emb", metavar="FOLDER",
        help="From `glint embed`: its norms are the quality, or errors are drawn by it.",
    ),
    model: Path | None = typer.Option(
        None, "--model", "-m", help="A recogniser (--method steady), or a quality net (net)."
    ),
    method: str = typer.Option(
        "norm", "--method",
        help="norm (of the embedding), sharpness, steady (how little it moves) or net.",
    ),
    batch: int = typer.Option(64, "--batch", min=1, help="Images per call of the model."),
    workers: int = typer.Option(2, "--workers", min=1, help="Decoding threads."),
    output: str = console.OUTPUT,
    mean: float | None = console.MEAN,
    std: float | None = console.STD,
    bgr: bool = console.BGR,
    task: str = parallel.TASK,
    engine: str = parallel.ENGINE,
    ray_address: str = parallel.RAY_ADDRESS,
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:  # fmt: skip
    """Give every image a quality; `balance` and `coreset` leave out the worst."""

    def work() -> results.Quality | results.EmbedShare:
        from glint.errors import UsageError
        from glint.jobs.workers import ending
        from glint.models.onnx_file import Reading
        from glint.models.quality import Opener
        from glint.pipelines import quality as stage
        from glint.shards.dataset import Dataset
        from glint.shards.embeddings import load

        if method not in stage.METHODS:
            what = f"expected one of {', '.join(stage.METHODS)}, found {method!r}"
            raise UsageError("GL0002", what, where="--method")
        needs = {"norm": "--embeddings", "steady": "--model", "net": "--model"}.get(method)
        if needs and (embeddings if method == "norm" else model) is None:
            raise UsageError("GL0002", f"--method {method} needs {needs}", where="--method")
        if method in ("norm", "sharpness") and model is not None:
            raise UsageError("GL0002", f"--method {method} takes no model", where="--model")
        folder = console.path(out, "--out")
        stage.refuse(folder)  # before a model is opened or gigabytes are read
        data = Dataset(dataset)
        emb = None
        if embeddings is not None:
            rows = console.path(embeddings, "--embeddings")
            emb = load(rows, data.digest, images=data.n, classes=data.classes)
        how = Opener(str(model or ""), method == "steady", Reading(output, mean, std, bgr))
        mine, where = parallel.task(task), parallel.engine(engine, ray_address, actors=True)
        with console.progress("quality") as progress, ending():
            return stage.run(
                data, folder, emb=emb, model=None if method == "norm" else how(), batch=batch,
                workers=workers, progress=progress, task=mine, engine=where,
                opener=stage.Opened(str(dataset), how),
            )  # fmt: skip

    console.run(work, as_json, debug=debug, say=lambda r: _say(r, dataset))


def _say(r: results.Quality | results.EmbedShare, dataset: str) -> str:
    from glint.results import identities as results

    if isinstance(r, results.EmbedShare):
        return parallel.left(r, r.blocks, "blocks")
    shares = ", ".join(f"{100 * float(q):g} % {value:.4g}" for q, value in r.quantiles.items())
    lines = [
        f"{r.scored} of {r.images} images have a quality ({r.method}), {r.mean:.4g} on average",
        f"  quality below which a share of the images lies: {shares}",
    ]
    if r.curve:
        at = r.curve["discarded"].index(0.1)
        all_, tenth, chance = r.curve["fnmr"][0], r.curve["fnmr"][at], r.curve["at_random"][at]
        if None not in (all_, tenth, chance):
            lines.append(
                f"  pairs of one person rejected: {100 * all_:.2f} %; without the worst tenth "
                f"{100 * tenth:.2f} %, without a tenth drawn at random {100 * chance:.2f} %"
            )
    lines += [
        f"wrote {r.page}",
        f"Next: glint balance {console.quoted(dataset)} --quality {console.quoted(r.out)} "
        "--min-quality 5%",
    ]
    return "\n".join(lines)
