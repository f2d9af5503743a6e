"""`glint merge`: several datasets into one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import complete, console

if TYPE_CHECKING:
    from glint.results import datasets as results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("merge")(merge)


def merge(
    src: list[Path] = typer.Argument(
        ...,
        parser=console.local,
        metavar="SRC",
        autocompletion=complete.datasets,
        help="Two or more datasets.",
    ),
    out: Path = typer.Argument(
        ...,
        parser=console.local,
        metavar="OUT",
        help="The new dataset: a new folder, or an unfinished one to continue.",
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

        sources, target = places([*src, out])
        with console.progress("merge") as progress:
            return stage.merge(
                target,
                sources,
                samples_per_shard=samples_per_shard,
                seed=seed,
                workers=workers or len(os.sched_getaffinity(0)),
                same_labels=same_labels,
                dry_run=dry_run,
                progress=progress,
            )

    console.run(work, as_json, debug=debug, say=_say)


def places(paths: list[Path]) -> tuple[list[Path], Path]:
    """Return what is merged, and what is written: the last path; until 0.1 it was the first.

    Datasets are read, anything else is written. Where both ends are datasets, one may be the merge
    of the others, finished before. Raises UsageError GL0002 where it cannot be told, InputError
    GL0301.
    """
    from glint.errors import UsageError

    digests, came = zip(*map(_contents, paths))
    if digests[-1] is None or came[-1] == digests[:-1]:
        return paths[:-1], paths[-1]
    if digests[0] is not None and came[0] != digests[1:]:
        return paths[:-1], paths[-1]  # refused there, as another dataset
    if {*came[-1]} & {*digests}:
        what = f"{paths[-1]} is a merge of others named here, and {paths[0]} no dataset"
        hint = "datasets first, OUT last"
        raise UsageError("GL0002", what, where="SRC", hint=hint)
    rest = " ".join(map(console.quoted, [*paths[1:], paths[0]]))
    console.tell(f"note: OUT comes last since 0.2; this was read as: glint merge {rest}")
    return paths[1:], paths[0]


def _contents(root: Path) -> tuple[str | None, tuple[str, ...]]:
    """Return a dataset's digest, None of another folder, and those that it was merged from."""
    from glint.shards.dataset import Dataset

    if not (root / "manifest.json").exists():
        return None, ()
    data = Dataset(root)
    steps = data.manifest.get("derived", [])
    merged = steps[-1]["from"] if steps and steps[-1]["by"] == "merge" else ()
    return data.digest, tuple(one["digest"] for one in merged)


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
