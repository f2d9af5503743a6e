"""`glint synth`: a synthetic world to try everything on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import console

if TYPE_CHECKING:
    from glint.results import models as results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("synth")(synth)


def synth(
    out: Path = typer.Argument(..., metavar="OUT", help="A new folder."),
    identities: int = typer.Option(1000, "--identities", help="People to train on."),
    images: int = typer.Option(
        20, "--images", "--images-per-identity", help="Mean images per label."
    ),
    conflicts: int | None = typer.Option(
        None, "--conflicts", help="People with a second label (default 10, or a tenth)."
    ),
    lookalikes: int | None = typer.Option(
        None, "--lookalikes", help="Pairs of people who look alike (default: as --conflicts)."
    ),
    likeness: float = typer.Option(
        0.5, "--likeness", help="Share of latents in which look-alikes differ."
    ),
    noise: float = typer.Option(0.0, "--noise", help="Share of images with a wrong label."),
    damaged: int = typer.Option(3, "--damaged", help="Records with broken image bytes."),
    tail: float = typer.Option(
        0.5, "--tail", help="Spread of images per label (standard deviation of the logarithm)."
    ),
    unseen: int = typer.Option(
        200, "--unseen", help="People of pairs.bin, who are not in the dataset."
    ),
    pairs: int = typer.Option(600, "--pairs", help="Pairs in pairs.bin."),
    seed: int = typer.Option(0, "--seed", help="Another number draws another world."),
    workers: int = typer.Option(1, "--workers", min=1, help="Rendering processes."),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Draw a synthetic face dataset with known faults; RecordIO, with its ground truth."""

    def work() -> results.Synth:
        from glint.synth.world import World, make

        twice = min(10, identities // 10) if conflicts is None else conflicts
        spare = max(0, identities - twice) // 4
        alike = min(10, identities // 10, spare) if lookalikes is None else lookalikes
        world = World(
            identities, images, twice, alike, likeness, noise, damaged, tail, unseen, pairs, seed
        )
        with console.progress("synth") as progress:
            return make(world, out, workers=workers, progress=progress)

    console.run(work, as_json, debug=debug, say=_say)


def _say(result: results.Synth) -> str:
    return (
        f"{console.count(result.images, 'image')} of {result.persons} persons under "
        f"{result.identities} labels, {result.damaged} damaged, {result.flipped} flipped, "
        f"{result.pairs} pairs of unseen persons -> {result.out}\n"
        f"Next: glint shard {console.quoted(result.out)} DATASET"
    )
