"""`glint look`: a dataset to page through in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import console

if TYPE_CHECKING:
    from glint.results import datasets as results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("look")(look)


def look(
    dataset: str = console.DATASET,
    embeddings: str | None = typer.Option(
        None, "--embeddings", "--emb", metavar="FOLDER",
        help="From `glint embed`: shows images unlike the others of their identity first.",
    ),
    quality: str | None = typer.Option(
        None, "--quality", metavar="FOLDER", help="From `glint quality`: a column to sort by."
    ),
    photographs: Path | None = typer.Option(
        None, "--photographs", metavar="FOLDER", exists=True, file_okay=False,
        help="The folder it was made from, to see what was quarantined.",
    ),
    out: str | None = typer.Option(
        None, "--out", "-o", metavar="FILE", help="Write a page with a sample, and serve nothing."
    ),
    port: int = typer.Option(
        0, "--port", min=0, max=65535, help="Port on 127.0.0.1; 0 = a free one."
    ),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:  # fmt: skip
    """Serve a dataset's faces on this machine to page through; Ctrl-C ends it."""

    def work() -> results.Look:
        from glint.errors import UsageError
        from glint.pipelines import look as stage
        from glint.results import datasets as results
        from glint.review import report
        from glint.shards.dataset import Dataset
        from glint.shards.embeddings import load

        file = None if out is None else console.path(out, "--out")
        if file is not None and file.is_dir():
            what = f"expected a file, found the folder {file}"
            raise UsageError("GL0002", what, where="--out")
        data = Dataset(dataset)
        emb = None
        if embeddings is not None:
            rows = console.path(embeddings, "--embeddings")
            emb = load(rows, data.digest, images=data.n, classes=data.classes)
        folder = None if quality is None else console.path(quality, "--quality")
        catalogue = stage.Catalogue(data, emb, folder, photographs)
        shown = data.n
        if file is not None:
            sample = catalogue.sample()
            report.write_private(file, catalogue.page(served=False, sample=sample))
            shown = len(sample.images)
        else:
            with stage.Look(catalogue, port) as server:
                console.tell(f"open {server.invite()}")
                console.tell("the link works once; Ctrl-C ends it")
                console.serve(server)
        return results.Look(
            images=data.n, identities=len(catalogue.count_C), shown=shown,
            columns=[one.name for one in catalogue.columns], page=None if file is None else out,
        )  # fmt: skip

    console.run(work, as_json, debug=debug, say=_say)


def _say(r: results.Look) -> str:
    people = console.count(r.identities, "identity")
    about = f"{console.count(r.images, 'image')} of {people}, by {', '.join(r.columns)}"
    if r.page is None:
        return about
    return f"{about}\nwrote {r.page}: {console.count(r.shown, 'image')}, readable by you alone"
