"""`glint reshard`: the same samples in shards of another size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import complete, console, parallel

if TYPE_CHECKING:
    from glint.results import datasets as results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("reshard")(reshard)


def reshard(
    src: Path = typer.Argument(
        ...,
        parser=console.local,
        metavar="SRC",
        autocompletion=complete.datasets,
        help="A dataset.",
    ),
    out: str = typer.Argument(
        ...,
        metavar="OUT",
        help="The new dataset: a folder or URL, or an unfinished one to continue.",
    ),
    samples_per_shard: int = typer.Option(..., help="Records per shard."),
    drop_quarantine: bool = typer.Option(
        False, "--drop-quarantine", help="Do not copy the list of quarantined records."
    ),
    workers: int = console.WORKERS,
    task: str = parallel.TASK,
    engine: str = parallel.ENGINE,
    ray_address: str = parallel.RAY_ADDRESS,
    staging: Path | None = console.STAGING,
    dry_run: bool = console.DRY_RUN,
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Rewrite a dataset with another shard size; keys and image bytes stay the same."""

    def work() -> results.Reshard | results.ReshardShare | results.ReshardPlan:
        from glint.pipelines.dataset import reshard as stage

        mine = parallel.task(task)
        where = parallel.engine(engine, ray_address, workers)
        with console.progress("reshard") as progress:
            return stage.reshard(
                src,
                console.place(out, "OUT"),
                samples_per_shard,
                drop_quarantine=drop_quarantine,
                workers=workers or parallel.cores(),
                dry_run=dry_run,
                progress=progress,
                task=mine,
                engine=where,
                staging=staging,
            )

    console.run(work, as_json, debug=debug, say=_say)


def _say(result: results.Reshard | results.ReshardShare | results.ReshardPlan) -> str:
    from glint.results import datasets as results

    if isinstance(result, results.ReshardShare):
        return parallel.left(result, result.shards)
    told = f"{console.count(result.written, 'sample')} in {console.count(result.shards, 'shard')}"
    if isinstance(result, results.ReshardPlan):
        return f"would write  {told}"
    resumed = f", {result.resumed_shards} of them before" if result.resumed_shards else ""
    return "\n".join(
        [
            f"wrote        {result.out}: {told}{resumed}, {result.bytes / 1e6:.1f} MB",
            f"content      {result.content}, same as the source",
            f"digest       {result.digest}",
            f"next         glint verify {result.out} --deep",
        ]
    )
