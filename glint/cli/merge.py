"""`glint merge`: several datasets into one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import console

if TYPE_CHECKING:
    from glint.results import datasets as results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("merge")(merge)


def merge(
    out: Path = typer.Argument(
        ...,
        parser=console.local,
        metavar="OUT",
        help="The new dataset: a new folder, or an unfinished one to continue.",
    ),
    sources: list[Path] = typer.Argument(
        ..., parser=console.local, metavar="SRC...", help="Two or more datasets."
    ),
    samples_per_shard: int = typer.Option(10_000, help="Records per shard."),
    seed: int = typer.Option(0, help="Seed of the permutation of all samples."),
    workers: int = console.WORKERS,
    same_labels: bool = typer.Option(
        False,
        "--same-labels",
        help="What datasets call by one label is one identity: by source label, or by name where "
        "that is a number.",
    ),
    dry_run: bool = console.DRY_RUN,
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Merge datasets into one; labels are renumbered and every sample keeps its origin."""

    def work() -> results.Merge | results.MergePlan:
        import os

        from glint.pipelines.dataset import merge as stage

        with console.progress("merge") as progress:
            return stage.merge(
                out,
                sources,
                samples_per_shard=samples_per_shard,
                seed=seed,
                workers=workers or len(os.sched_getaffinity(0)),
                same_labels=same_labels,
                dry_run=dry_run,
                progress=progress,
            )

    console.run(work, as_json, debug=debug, say=_say)


def _say(result: results.Merge | results.MergePlan) -> str:
    from glint.results import datasets as results

    lines = [
        f"from         {one.name}: {console.count(one.samples, 'sample')}, "
        f"{console.count(one.identities, 'identity')} from label {one.first_label}"
        for one in result.from_
    ]
    if result.same_labels:
        lines.append(f"same labels  {result.same_labels} of one dataset stand in another: one each")
    lines.append(
        f"duplicates   {result.duplicate_images} images are in more than one "
        f"dataset ({console.count(result.duplicate_samples, 'sample')})"
    )
    samples, shards = console.count(result.written, "sample"), console.count(result.shards, "shard")
    if isinstance(result, results.MergePlan):
        return "\n".join([*lines, f"would write  {samples} in {shards}"])
    resumed = f", {result.resumed_shards} of them before" if result.resumed_shards else ""
    return "\n".join(
        [
            *lines,
            f"wrote        {result.out}: {samples} of "
            f"{console.count(result.identities, 'identity')} in {shards}{resumed}, "
            f"{result.bytes / 1e6:.1f} MB",
            f"digest       {result.digest}",
            f"next         glint embed {console.quoted(result.out)} --model MODEL.onnx --out EMB, "
            "then glint dedup-conflicts: one person may have a label in each dataset",
        ]
    )
