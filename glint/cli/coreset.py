"""`glint coreset`: faces of an identity that look alike are kept once (Face-NMS)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from glint.cli import console

if TYPE_CHECKING:
    from glint.results import identities as results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("coreset")(coreset)


def coreset(
    dataset: str = console.DATASET,
    embeddings: str = typer.Option(
        ..., "--embeddings", "--emb", metavar="FOLDER", help="From `glint embed`."
    ),
    out: str = typer.Option(..., "--out", "-o", metavar="FOLDER", help="Folder for the tables."),
    ratio: float | None = typer.Option(
        None, "--keep-ratio", help="Exact share of the images to keep."
    ),
    threshold: float | None = typer.Option(
        None, "--threshold", help="Largest cosine between kept faces of an identity."
    ),
    least: int = typer.Option(2, "--min", help="Fewest faces to keep of an identity."),
    degrees: float = typer.Option(
        75.0,
        "--outliers",
        help="First drop faces this far from the mean of their identity; 180 = none.",
    ),
    centres: int = typer.Option(
        1, "--sub-centres", help="Measure --outliers from the largest of this many sub-centres."
    ),
    quality: str | None = console.QUALITY,
    least_quality: str | None = console.MIN_QUALITY,
    apply: bool = typer.Option(
        False, "--apply", help="Leave outliers out in a new label version too; `labels` undoes it."
    ),
    dry_run: bool = console.DRY_RUN,
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Select images to train on; the sampling table carries the selection."""

    def work() -> results.Coreset:
        from glint.pipelines import coreset as stage
        from glint.shards.dataset import Dataset
        from glint.shards.embeddings import load

        options = stage.Options(threshold, ratio, least, degrees, centres)
        folder = console.path(out, "--out")
        stage.check_out(folder)  # before gigabytes are read
        data = Dataset(dataset)
        rows = console.path(embeddings, "--embeddings")
        emb = load(rows, data.digest, images=data.n, classes=data.classes)
        poor_N = console.poor(data, quality, least_quality)
        with console.progress("coreset") as progress:
            return stage.run(
                data,
                emb,
                folder,
                options,
                poor_N=poor_N,
                apply=apply,
                dry_run=dry_run,
                progress=progress,
            )

    console.run(work, as_json, debug=debug, say=_say)


def _say(r: results.Coreset) -> str:
    lines = [
        f"kept {r.kept} of {console.count(r.images, 'image')} ({100 * r.ratio:.2f} %) of "
        f"{r.identities_kept} of {console.count(r.identities, 'identity')} (labels version "
        f"{r.label_version})",
        f"  threshold {r.threshold:.4f}: {r.similar} more similar than that to a kept face, "
        f"{r.restored} restored",
        f"  {r.outlier} outliers, {r.no_embedding} without an embedding, "
        f"{r.low_quality} of low quality",
        "  images of an identity   identities     images       kept",
    ]
    for one in r.by_size:
        size = f"{one.images_from} to {one.images_to}" if one.images_to else "more"
        share = f"{100 * one.kept / one.images:.0f} %"
        lines.append(
            f"  {size:>21} {one.identities:>12} {one.images:>10} {one.kept:>10} {share:>6}"
        )
    if r.label_version != r.label_version_before:
        lines.append(f"labels are now at version {r.label_version}, which leaves the outliers out")
    if r.dry_run:
        return "\n".join([*lines, "--dry-run: nothing written"])
    change = console.quoted(f"data.sampling={r.sampling}")
    lines += [
        f"wrote {r.out}/coreset.parquet: every image, and what it was too similar to",
        f"Next: glint train RECIPE --set {change}",
    ]
    return "\n".join(lines)
