"""`glint dedup-conflicts`: find identities that are one person; apply and undo the verdicts."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import console, parallel
from glint.errors import UsageError

if TYPE_CHECKING:
    from glint.pipelines.conflicts.share import How
    from glint.results import identities as results

AGAINST = typer.Option(
    [],
    "--against",
    metavar="DATASET",
    help="Another dataset: find people that are in both; repeatable.",
)
TESTS = typer.Option(
    [],
    "--against-test",
    metavar="DATASET",
    help="A test set: its people in this dataset are reported as leaks.",
)
AGAINST_EMBEDDINGS = typer.Option(
    [],
    "--against-embeddings",
    metavar="EMB",
    help="The embeddings of these datasets by the same model, in any order.",
)
SCREEN = typer.Option(
    "auto", "--screen", help="auto, int8, torch (float32) or faiss; all find the same pairs."
)
DEVICE = typer.Option("cpu", "--device", help="cpu, cuda or cuda:N: where pairs are searched.")


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    group = typer.Typer(
        cls=console.Bare,
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Find identities that are one person; review and apply the verdicts; undo. "
        "`glint dedup-conflicts DATASET ...` is `find`.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    group.command("find")(find)
    group.command("review")(review)
    group.command("apply")(apply)
    group.command("undo")(undo)
    app.add_typer(group, name="dedup-conflicts")


def find(
    dataset: Path = console.LOCAL_DATASET,
    embeddings: Path = typer.Option(..., "--embeddings", "--emb", help="From `glint embed`."),
    out: str = typer.Option(
        ..., "--out", "-o", metavar="FOLDER", help="Folder for the tables and the report."
    ),
    threshold: float | None = typer.Option(
        None, "--threshold", help="Merge at this centre cosine instead of the calibrated score."
    ),
    low: float | None = typer.Option(None, "--low", help="Search from this centre cosine."),
    rate: float = typer.Option(
        0.01, "--false-merge-rate", help="Largest accepted share of wrong merges."
    ),
    cap: int = typer.Option(8, "--cap", help="Largest group of identities to merge."),
    screen: str = SCREEN,
    device: str = DEVICE,
    workers: int = typer.Option(1, "--workers", min=1, help="Processes that search pairs."),
    task: str = parallel.TASK,
    engine: str = parallel.ENGINE,
    ray_address: str = parallel.RAY_ADDRESS,
    near: bool = typer.Option(
        True, "--near/--no-near", help="Decode every image to find near duplicates."
    ),
    against: list[Path] = AGAINST,
    tests: list[Path] = TESTS,
    against_embeddings: list[Path] = AGAINST_EMBEDDINGS,
    thumbs: bool = typer.Option(True, "--thumbs/--no-thumbs", help="Show faces in the report."),
    seed: int = typer.Option(0, "--seed", help="Seed of the calibration."),
    overwrite: bool = typer.Option(
        False, "--overwrite", help="Replace a report that is applied or was edited by hand."
    ),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Find pairs of identities that are one person; write tables and a report. Changes no label.

    Run the same command again to continue after a stop. Tasks share the search; the last one
    judges.
    """

    def work() -> results.Conflicts | results.ConflictsShare:
        from glint.conflicts.verdicts import ConflictOptions
        from glint.jobs.workers import ending
        from glint.pipelines.conflicts import find as stage
        from glint.pipelines.conflicts import overlap
        from glint.shards.dataset import Dataset
        from glint.shards.embeddings import load

        named, how = _how(screen, engine, ray_address, task, workers, device)
        options = ConflictOptions(threshold, low=low, cap=cap, engine=named, seed=seed, rate=rate)
        folder = console.path(out, "--out")
        data = Dataset(dataset)
        stage.check_out(folder, data, overwrite=overwrite)  # before gigabytes are read
        emb = load(embeddings, data.digest, images=data.n, classes=data.classes)
        others = overlap.opened(against, tests, against_embeddings, emb)
        with console.progress("dedup-conflicts") as progress, ending():
            return stage.run(
                data,
                emb,
                folder,
                options,
                thumbs=thumbs,
                overwrite=overwrite,
                command="glint " + " ".join(sys.argv[1:]),
                near=near,
                against=others,
                how=how,
                progress=progress,
            )

    console.run(work, as_json, debug=debug, say=lambda r: _say_found(r, thumbs))


def _how(
    screen: str, engine: str, address: str, task: str, workers: int, device: str
) -> tuple[str, How]:
    """Return the screen and who searches; a screen may be called an engine, as it was."""
    from glint.pipelines.conflicts.share import How
    from glint.search import pairs

    if engine in pairs.ENGINES:
        screen, engine = engine, "local"
    where = parallel.engine(engine, address, actors=device != "cpu")
    how = How(parallel.task(task), where, workers, device)
    pairs.choose(screen, how.here)
    return screen, how


def review(
    folder: Path = typer.Argument(
        ..., metavar="FOLDER", help="A folder that `glint dedup-conflicts` wrote."
    ),
    port: int = typer.Option(
        0, "--port", min=0, max=65535, help="Port on 127.0.0.1; 0 = a free one."
    ),
    audit: int | None = typer.Option(
        None,
        "--audit",
        min=1,
        metavar="N",
        help="Review N random pairs of those that would merge, to bound the share that is wrong.",
    ),
    serve: bool = typer.Option(
        True, "--serve/--no-serve", help="Without: print what was decided so far."
    ),
    decisions_files: list[Path] = typer.Option(
        [],
        "--decisions",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="With --no-serve: a downloaded decisions.jsonl to count too; repeatable.",
    ),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Serve the report to review pairs and images in a browser; Ctrl-C ends it."""

    def work() -> results.Review:
        from glint.pipelines.conflicts import review as stage

        drawn = audit or 0
        if decisions_files and serve:
            raise UsageError("GL0002", "goes with --no-serve", where="--decisions")
        if not serve:
            return stage.audited(folder, drawn, decisions_files)
        with stage.opened(folder, port=port, drawn=drawn) as server:
            before = len(server.book.decisions)
            console.tell(f"open {server.invite()}")
            console.tell(
                "the link works once; the page can make more links; Ctrl-C ends the review"
            )
            console.serve(server)
            new = len(server.book.decisions) - before
        return replace(stage.audited(folder, drawn), new=new)

    console.run(work, as_json, debug=debug, say=_say_reviewed)


def apply(
    folder: Path = typer.Argument(
        ..., metavar="FOLDER", help="A folder that `glint dedup-conflicts` wrote."
    ),
    decisions_files: list[Path] = typer.Option(
        [],
        "--decisions",
        metavar="FILE",
        help="A decisions.jsonl downloaded from the report; repeatable. FOLDER/decisions.jsonl is "
        "always read.",
    ),
    flagged: bool = typer.Option(
        False,
        "--flagged",
        help="Also move or leave out every flagged image that no reviewer decided on.",
    ),
    dry_run: bool = console.DRY_RUN,
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Apply the verdicts as a new label version; no shard is rewritten."""

    def work() -> results.Apply:
        from glint.pipelines.conflicts import apply as stage

        return stage.apply(folder, more=decisions_files, flagged=flagged, dry_run=dry_run)

    console.run(
        work,
        as_json,
        debug=debug,
        say=lambda r: _say_applied(r, decisions_files, flagged),
    )


def undo(
    folder: Path = typer.Argument(..., metavar="FOLDER", help="The folder that was applied."),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Restore the labels from before `apply`."""

    def work() -> results.Undo:
        from glint.pipelines.conflicts import apply as stage

        return stage.undo(folder)

    console.run(work, as_json, debug=debug, say=_say_applied)


def _say_found(r: results.Conflicts | results.ConflictsShare, thumbs: bool) -> str:
    from glint.results import identities as results

    if isinstance(r, results.ConflictsShare):
        return parallel.left(r, r.block_rows, "block rows")
    lines = [
        f"{console.count(r.pairs, 'pair')} of identities from centre cosine {r.low:.2f} "
        f"(exact, {r.engine})",
        f"  merge {r.merge}   one person: {console.count(r.groups, 'group')}, "
        f"largest {r.largest_group}",
        f"  mask  {r.mask}   may be one person: kept apart in the loss only",
        f"  keep  {r.keep}   look-alikes",
    ]
    if r.groups_refused:
        lines.append(f"  {r.groups_refused} groups refused (chains or too large): masked")
    lines.append(
        f"inside identities: {r.mixed} of two people, {console.count(r.outliers, 'outlier')}; "
        f"repeated images: {console.count(r.duplicates, 'group')} of the same bytes, "
        f"{r.near_duplicates} of the same picture"
    )
    for other in r.against:
        lines.append(
            f"in {other['name']} too: {other['merge']} one person, {other['mask']} may be, "
            f"{console.count(other['shared_images'], 'image')} in both"
            + (f": {other['leaks']} identities leak from this test set" if other["test"] else "")
        )
    if r.classes_excluded or r.samples_excluded:
        lines.append(
            f"  {console.count(r.samples_excluded, 'image')} and "
            f"{console.count(r.classes_excluded, 'identity')} "
            "without a usable embedding took no part"
        )
    lines += [f"  {note}" for note in {r.note, *(o["note"] for o in r.against)} if note]
    if not r.calibrated:
        lines.append("  not calibrated: too few identities have two images; give --threshold")
    out = console.quoted(r.out)
    lines += [
        f"identities {r.identities} -> {r.identities_after} when applied; nothing has changed yet",
        f"wrote {r.report} (offline{'; holds faces' if thumbs else ''}: mode 0600)",
        f"Next: glint dedup-conflicts review {out}   (or apply {out} --dry-run)",
    ]
    return "\n".join(lines)


def _say_reviewed(r: results.Review) -> str:
    from glint.conflicts import audit

    by = f" by {', '.join(r.reviewers)}" if r.reviewers else ""
    return (
        f"{r.file}: {console.count(r.decisions, 'decision')}{by}, {r.new} of them new\n"
        + (f"{audit.sentence(r.audit)}\n" if r.audit is not None else "")
        + f"Next: glint dedup-conflicts apply {console.quoted(r.out)} --dry-run"
    )


def _say_applied(r: results.Apply, files: Sequence[Path] = (), flagged: bool = False) -> str:
    if r.already:
        return (
            f"nothing to do: this report is already in force, as label version "
            f"{r.version} of {r.dataset}"
        )
    if r.nothing:
        return (
            f"nothing to apply: this report merges and masks nothing new; the labels of "
            f"{r.dataset} stay at version {r.version}"
        )
    verb = "would become" if r.dry_run else "are now"
    lines = [
        f"identities {r.classes_before} -> {r.classes}, masked pairs "
        f"{r.masks_before} -> {r.masks}; no shard rewritten",
    ]
    if r.decided:
        lines.append(f"{console.count(r.decided, 'pair')} as reviewers decided")
    if r.images_left_out or r.images_moved:
        lines.append(
            f"{console.count(r.images_left_out or 0, 'image')} left out, "
            f"{console.count(r.images_moved or 0, 'image')} given to another identity"
        )
    if r.dry_run:
        lines.append(f"the labels of {r.dataset} {verb} a new version (--dry-run: nothing written)")
        words = [str(word) for path in files for word in ("--decisions", path)]
        words += ["--flagged"] if flagged else []
        lines.append(
            "Next: " + shlex.join(["glint", "dedup-conflicts", "apply", str(r.report), *words])
        )
    else:
        lines.append(
            f"the labels of {r.dataset} {verb} at version {r.version} (was {r.version_before})"
        )
        lines.append(
            f"Next: glint balance {console.quoted(r.dataset)}"
            if r.applied
            else f"Next: glint dedup-conflicts apply {console.quoted(r.report)}   "
            "(to put it back; with the options that it had)"
        )
    return "\n".join(lines)
