"""`glint balance`: how often each identity is drawn in an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import console

if TYPE_CHECKING:
    from glint.results import identities as results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("balance")(balance)


def balance(
    dataset: str = console.DATASET,
    cap: int | None = typer.Option(None, "--cap", help="Most images of an identity per epoch."),
    least: int = typer.Option(1, "--min", help="Leave out identities with fewer images."),
    power: float = typer.Option(
        1.0,
        "--power",
        help="Draw n^POWER of n images: 1 = as they are, 0 = identities equally often.",
    ),
    repeat: float | None = typer.Option(
        None, "--repeat", help="Repeat identities with less than this share of the images."
    ),
    most: float = typer.Option(
        4.0, "--max-repeat", help="With --repeat: most draws per image, on average."
    ),
    each: int = typer.Option(
        0, "--per-identity", help="Draw K images of one identity after another (P x K batches)."
    ),
    coreset: str | None = typer.Option(
        None, "--coreset", metavar="FOLDER", help="Draw only what `glint coreset` kept there."
    ),
    quality: str | None = console.QUALITY,
    least_quality: str | None = console.MIN_QUALITY,
    out: str | None = typer.Option(
        None, "--out", "-o", metavar="FILE", help="Default: DATASET/sampling.parquet"
    ),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Write the sampling table for training; by default every image is drawn once per epoch."""

    def work() -> results.Balance:
        from glint.pipelines import balance as stage
        from glint.shards.dataset import Dataset

        options = stage.Options(
            cap=cap, least=least, power=power, repeat=repeat, most=most, each=each
        )
        file = None if out is None else console.path(out, "--out")
        chosen = None if coreset is None else console.path(coreset, "--coreset")
        data = Dataset(dataset)
        poor_N = console.poor(data, quality, least_quality)
        return stage.balance(data, options, file, chosen, poor_N)

    console.run(work, as_json, debug=debug, say=lambda r: _say(r, dataset))


def _say(r: results.Balance, dataset: str) -> str:
    own = Path(r.sampling).resolve() == (Path(dataset) / "sampling.parquet").resolve()
    change = "data.sampling=" + ("auto" if own else r.sampling)
    return (
        f"{console.count(r.identities, 'identity')}, {console.count(r.images, 'image')} "
        f"(labels version {r.label_version})\n"
        f"epoch {console.count(r.epoch_samples, 'sample')}; Gini {r.gini_before:.2f} -> "
        f"{r.gini_after:.2f}; the smaller half of the identities gets "
        f"{100 * r.tail_share:.1f} %; {console.count(r.never_seen, 'identity')} never seen\n"
        f"wrote {r.sampling}\n"
        f"Next: glint train RECIPE --set {console.quoted(change)}"
    )
