"""`glint bench`: models on every test of a folder, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glint.cli import console
from glint.cli.eval import BATCH, DEVICE, FLIP, THREADS

if TYPE_CHECKING:
    from glint.evals.sets import Look
    from glint.models.onnx_file import Reading
    from glint.models.recogniser import Recogniser
    from glint.pipelines.bench.run import Options, Ran
    from glint.results import bench as results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(bench)


def bench(
    model: list[Path] = typer.Argument(
        ...,
        parser=console.local,
        metavar="MODEL",
        help="ONNX files, packages of insightface, run or checkpoint directories.",
    ),
    sets: Path = typer.Option(..., "--sets", "-s", help="A folder of test sets, of any kinds."),
    trained_on: Path | None = typer.Option(
        None, "--trained-on", metavar="DATASET", help="Look for the tests' people in this dataset."
    ),
    embeddings: Path | None = typer.Option(
        None, "--embeddings", "--emb", help="Of --trained-on, by `glint embed` with a MODEL."
    ),
    report: Path | None = typer.Option(
        None, "--report", help="Also write an HTML page; it shows faces and is its owner's only."
    ),
    flip: bool = FLIP,
    batch: int = BATCH,
    draws: int = typer.Option(1000, "--draws", min=20, help="Draws of people for the intervals."),
    seed: int = typer.Option(0, "--seed", min=0, help="Seed of these draws."),
    threads: int = THREADS,
    device: str | None = DEVICE,
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
    output: str = console.OUTPUT,
    mean: float | None = console.MEAN,
    std: float | None = console.STD,
    bgr: bool = console.BGR,
) -> None:
    """Run models on every test that lies in a folder; leave with 1 where one could not be run."""
    failed = 0

    def work() -> results.Bench:
        nonlocal failed
        from glint.cli.eval.work import place
        from glint.errors import UsageError
        from glint.evals.sets import look
        from glint.models.onnx_file import Reading
        from glint.pipelines.bench.run import Options

        if (trained_on is None) != (embeddings is None):
            raise UsageError("GL0002", "--trained-on and --embeddings go together")
        if not sets.is_dir():
            raise UsageError("GL0001", "no such folder", where=str(sets))
        if report is not None and not report.resolve().parent.is_dir():
            raise UsageError("GL0001", "no such folder for the page", where=str(report))
        where = place(threads, device)
        found = look(sets)
        console.tell(_found(found))
        options = Options(flip, batch, draws, seed, where, report is not None)
        against = (trained_on, embeddings) if trained_on and embeddings else None
        made = _run(model, found, options, Reading(output, mean, std, bgr), against, report,
                    threads or None, device)  # fmt: skip
        failed = made.errors
        return made

    console.run(work, as_json, debug=debug, say=_say)
    if failed:
        raise typer.Exit(1)


def _found(look: Look) -> str:
    lines = [f"{'found':12s} {one.name:24s} {one.words}" for one in look.parts]
    lines += [f"{'not run':12s} {path.relative_to(look.root)}: {why}" for path, why in look.skipped]
    return "\n".join(lines)


def _opened(
    paths: list[Path], reading: Reading, threads: int | None, device: str | None
) -> list[tuple[str, Path, Recogniser]]:
    """Open models under names that tell them apart."""
    from glint.errors import UsageError
    from glint.models.recogniser import open_model

    found = [open_model(path, threads=threads, device=device, reading=reading) for path in paths]
    names = [one.name for one in found]
    names = [str(path) if names.count(name) > 1 else name for name, path in zip(names, paths)]
    if len({*names}) < len(names):
        raise UsageError("GL0002", "a model is named twice", where=str(paths[0]))
    return list(zip(names, paths, found))


def _run(
    paths: list[Path], look: Look, options: Options, reading: Reading,
    against: tuple[Path, Path] | None, report: Path | None, threads: int | None, device: str | None,
) -> results.Bench:  # fmt: skip
    from glint.evals import published
    from glint.pipelines.bench import page
    from glint.pipelines.bench.contamination import TrainedOn
    from glint.pipelines.bench.run import Timed, pooled, run
    from glint.results import bench as results

    opened = _opened(paths, reading, threads, device)
    made: dict[tuple[str, str], Ran] = {}
    models: dict[str, results.BenchModel] = {}
    known, order = None, [*opened]
    with console.progress("bench") as progress:
        if against is not None:
            digests = [one.digest for _, _, one in opened]
            trained = TrainedOn(*against, digests, progress=progress)
            known = trained.known
            order.sort(key=lambda one: one[2].digest != trained.model)  # it says who is known
        for name, path, model in order:
            timed = Timed(model)
            for part in look.parts:
                made[part.name, name] = run(
                    part, timed.model, look, options, known=known, progress=progress
                )
            ms = 1000 * timed.seconds / timed.images if timed.images else None
            models[name] = results.BenchModel(
                name=name, path=str(path), digest=model.digest, engine=model.engine, dim=model.dim,
                parameters=model.parameters, ms_per_image=ms,
            )  # fmt: skip
    names = [name for name, _, _ in opened]
    rans = [(name, made[part.name, name]) for part in look.parts for name in names]
    rows = [_row(name, ran) for name, ran in rans]
    groups = {name: pooled([ran for n, ran in rans if n == name]) for name in names}
    sizes = {row.set: int(row.figures.get("pairs", 0)) for row in rows}
    found = results.Bench(
        sets=[results.BenchSet(set=one.name, kind=one.kind, path=str(one.path), run_as=one.words)
              for one in look.parts],
        skipped=[results.BenchSkipped(path=str(place), reason=why) for place, why in look.skipped],
        models=[models[name] for name in names],
        rows=rows,
        pooled_groups={name: rows for name, rows in groups.items() if rows},
        published=[results.Published(**vars(one)) for one in published.rows(sizes)],
        flip=options.flip,
        errors=sum(row.error is not None for row in rows),
        page=str(report) if report is not None else None,
    )  # fmt: skip
    if report is not None:
        page.make(report, found, rans)
    return found


def _row(name: str, ran: Ran) -> results.BenchRow:
    from glint.results import bench as results

    about: dict[str, Any] = {"accuracy_interval": None, "tar_intervals": {}, "people": None}
    if ran.intervals is not None:
        about = {"accuracy_interval": ran.intervals.accuracy, "tar_intervals": ran.intervals.tar,
                 "people": ran.intervals.people}  # fmt: skip
    return results.BenchRow(
        set=ran.part.name, model=name, error=str(ran.error) if ran.error is not None else None,
        figures=ran.figures, people_by=ran.people, groups=ran.groups, warnings=ran.warnings,
        contamination=ran.contamination, **about,
    )  # fmt: skip


def _say(found: results.Bench) -> str:
    from glint.pipelines.bench import page

    lines: list[str] = []
    for one in page.tables(found):
        if one.title == "Not run":
            continue
        lines += ["", one.title] if one.title else [""]
        rows = [tuple(one.heads), *(tuple(row) for row in one.rows)]
        width = [min(60, max(len(row[i]) for row in rows)) for i in range(len(one.heads))]
        lines += ["  ".join(f"{text:{w}s}" for text, w in zip(row, width)).rstrip() for row in rows]
    lines += ["", "accuracy [95 % interval, drawn over people]"]
    lines += [f"warning      {row.set}, {row.model}: {text}" for row in found.rows
              for text in row.warnings]  # fmt: skip
    lines += [f"page         {found.page}"] if found.page else []
    if found.errors:
        lines.append(f"error        {console.count(found.errors, 'row')} could not be run")
    return "\n".join(lines[1:])
