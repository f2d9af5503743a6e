"""`glint reshard`: the same samples in shards of another size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from glint.cli import console as show
from glint.cli import parallel


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("reshard")(reshard)


def reshard(
    src: Path = typer.Argument(..., parser=show.local, metavar="SRC", help="A dataset."),
    out: str = typer.Argument(..., help="The new dataset: a folder or URL, or one to continue."),
    samples_per_shard: int = typer.Option(..., help="Records dealt to each shard."),
    drop_quarantine: bool = typer.Option(
        False, "--drop-quarantine", help="Leave the list of quarantined records behind."
    ),
    workers: int = typer.Option(0, help="Processes; 0 = one per core. Bytes do not depend on it."),
    task: str = parallel.TASK,
    engine: str = parallel.ENGINE,
    ray_address: str = parallel.RAY_ADDRESS,
    staging: Path | None = typer.Option(
        None, help="Where shards wait for their upload to a URL; default: in the cache."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be done, write nothing."),
    as_json: bool = show.JSON,
    debug: bool = show.DEBUG,
) -> None:
    """Write a dataset's samples into shards of another size; keys and image bytes stay."""

    def work() -> dict[str, Any]:
        from glint.pipelines.dataset import reshard as stage

        mine = parallel.task(task)
        where = parallel.engine(engine, ray_address, workers)
        with show.progress("reshard") as progress:
            return stage.reshard(
                src,
                show.place(out, "OUT"),
                samples_per_shard,
                drop_quarantine=drop_quarantine,
                workers=workers or parallel.cores(),
                dry_run=dry_run,
                progress=progress,
                task=mine,
                engine=where,
                staging=staging,
            )

    show.run(work, "glint/reshard-result@1", as_json, debug=debug, say=_say)


def _say(result: dict[str, Any]) -> str:
    if result.get("left"):
        return parallel.left(result)
    told = f"{show.count(result['written'], 'sample')} in {show.count(result['shards'], 'shard')}"
    if result.get("dry_run"):
        return f"would write  {told}"
    resumed = f", {result['resumed_shards']} of them before" if result["resumed_shards"] else ""
    return "\n".join(
        [
            f"wrote        {result['out']}: {told}{resumed}, {result['bytes'] / 1e6:.1f} MB",
            f"content      {result['content']}, that of the old one",
            f"digest       {result['digest']}",
            f"next         glint verify {result['out']} --deep",
        ]
    )
