"""`glint drop`: honour a take-down request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import complete, console

if TYPE_CHECKING:
    from glint.results import datasets as results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("drop")(drop)


def drop(
    dataset: Path = typer.Argument(
        ...,
        parser=console.local,
        metavar="DATASET",
        autocompletion=complete.datasets,
        help="A dataset.",
    ),
    identity: list[str] = typer.Option([], "--identity", "--id", help="LABEL or NAME; repeatable."),
    ids_from: Path | None = typer.Option(
        None, "--ids-from", metavar="FILE", help="Identities too, a line each: of `glint split`."
    ),
    key: list[str] = typer.Option([], "--key", help="Key of a single image; repeatable."),
    failed: Path | None = typer.Option(
        None,
        "--failed",
        metavar="EMBEDDINGS",
        help="The images that `glint embed` could not decode, as masks: no shard changes.",
    ),
    reason: str = typer.Option(..., "--reason", help="The reason, kept in the tombstone."),
    erase: Path | None = typer.Option(
        None,
        "--erase",
        parser=console.local,
        metavar="PATH",
        help="Write a new dataset without these images and names.",
    ),
    copies: bool = typer.Option(
        False, "--copies", help="Also the images of others that have the same bytes."
    ),
    workers: int = typer.Option(0, help="Processes for --erase; 0 = one per core."),
    dry_run: bool = console.DRY_RUN,
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Take identities out of training; with --erase out of the data; leave a tombstone."""

    def work() -> results.Drop | results.Erase | results.ErasePlan:
        import os

        from glint.pipelines.dataset import drop as stage

        keys = [*key, *(stage.failed_keys(dataset, failed) if failed else ())]
        named = [*identity, *(stage.listed(ids_from) if ids_from else ())]
        with console.progress("drop") as progress:
            return stage.drop(
                dataset,
                named,
                reason,
                keys=keys,
                erase=erase,
                copies=copies,
                workers=workers or len(os.sched_getaffinity(0)),
                dry_run=dry_run,
                progress=progress,
            )

    console.run(work, as_json, debug=debug, say=_say)


def _say(result: results.Drop | results.Erase | results.ErasePlan) -> str:
    from glint.results import datasets as results

    would = "would " if result.dry_run else ""
    some = ", ".join(map(str, result.identities[:10]))
    some += " ..." if len(result.identities) > 10 else ""
    lines = [f"identities   {len(result.identities)} ({some})"] if result.identities else []
    if result.merged_with:
        lines.append(
            f"             {len(result.merged_with)} of them by the labels in force, "
            "which say they are the same person"
        )
    if result.below:
        lines.append(
            f"             {len(result.below)} of them by their folders, which lie inside another's"
        )
    lines.append(f"images       {result.images}")
    if result.copies and result.copies_erased:
        lines.append(
            f"             {console.count(result.copies, 'image')} of them under other identities, "
            "of the same bytes"
        )
    elif result.copies:
        lines.append(
            f"note         {console.count(result.copies, 'image')} of other identities: the same "
            "bytes, and they stay; glint info --duplicates lists them, --copies takes them out too"
        )
    if result.alike:
        others = ", ".join(f"label:{i}" for i in result.alike[:10])
        others += " ..." if len(result.alike) > 10 else ""
        lines.append(
            f"note         {others}: the same name, but for letter case or Unicode form, and "
            "they stay; take them down, too, if they are the same person"
        )
    if not isinstance(result, results.Drop):
        lines.append(
            f"{'would write' if would else 'wrote':13s}{result.erased_to}: "
            f"{console.count(result.written, 'sample')}; "
            f"{result.dataset} still holds all of them, and is trained on with them: drop them "
            "there, too, without --erase"
        )
        if isinstance(result, results.Erase):
            lines += [f"still there  {place}" for place in result.left[:10]]
            more = result.left_count - min(len(result.left), 10)
            lines += [f"             and {console.count(more, 'place')} more"] if more else []
            if not result.left_count:
                lines.append("searched     no image and no name of theirs is in it")
            lines.append(
                f"next         glint verify {console.quoted(result.erased_to)} --deep; then remove "
                f"{result.dataset}, its embeddings and its reports"
            )
        return "\n".join(lines)
    if result.version == result.version_before:
        lines.append(f"nothing new  dropped since label version {result.version} or before")
        return "\n".join(lines)
    lines.append(
        f"{would + 'set':13s}label version {result.version_before} -> "
        f"{result.version}, {console.count(result.classes, 'class')} left"
    )
    if not would:
        lines.append(
            "note         the images are still in the shards: --erase OUT writes a "
            "dataset without them"
        )
        lines.append(
            f"next         glint balance {console.quoted(result.dataset)} "
            "(if a sampling table is in use)"
        )
    return "\n".join(lines)
