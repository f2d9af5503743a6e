"""`glint verify`: is a dataset still what was written?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from glint.cli import console, parallel

if TYPE_CHECKING:
    from glint.results import datasets as results


AGAINST: list[str] = typer.Option(
    [],
    "--against",
    metavar="SRC",
    help="Compare every image with the source or dataset it came from; for a merged dataset "
    "give one for each, in the order of the merge, or of `glint shard SRC...`.",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify")(verify)


def verify(
    dataset: str = console.DATASET,
    deep: bool = typer.Option(False, "--deep", help="Read every byte of every shard."),
    decode: bool = typer.Option(
        False, "--decode", help="Decode every image: which give no picture, or a part of one?"
    ),
    sha256: bool = typer.Option(
        False, "--sha256", help="No effect: --deep always checks the SHA-256 of every shard."
    ),
    against: list[str] = AGAINST,
    labels: str = typer.Option(
        "", metavar="FILE", help="With --against: the list that the labels came from."
    ),
    workers: int = typer.Option(0, help="Shards to read at a time; 0 = one per core."),
    task: str = parallel.TASK,
    engine: str = parallel.ENGINE,
    ray_address: str = parallel.RAY_ADDRESS,
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Print what would be read; read nothing."
    ),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Check every file of a dataset; report what is not as it was written."""
    bad: list[results.Verify] = []

    def work() -> results.Verify | results.VerifyPlan:
        from glint.errors import UsageError
        from glint.shards import verify as check

        mine, where = parallel.task(task), parallel.engine(engine, ray_address, workers)
        if (mine or where) and not deep:
            raise UsageError(
                "GL0002",
                "only a deep check can be divided",
                where="--task" if mine else "--engine",
                hint="add --deep",
            )
        if sha256 and not deep:
            raise UsageError(
                "GL0002", "shards are read only with --deep", where="--sha256", hint="add --deep"
            )
        if (against or decode) and mine:
            option = "--against" if against else "--decode"
            raise UsageError(
                "GL0002", "cannot be divided into tasks", where=option, hint="leave out --task"
            )
        if dry_run:
            return check.survey(dataset, against, deep=deep)
        with console.progress("verify") as progress:
            count = workers or parallel.cores()
            result = check.verify(
                dataset,
                deep=deep,
                workers=count,
                progress=progress,
                task=(mine.index, mine.of) if mine else (0, 1),
                pool=where.pool(count) if where else None,
                sources=against,
                labels_file=labels,
                decode=decode,
            )
        bad.extend([] if result.ok else [result])
        return result

    console.run(work, as_json, debug=debug, say=_say)
    if bad:
        from glint.errors import InputError

        count = bad[0].problem_count
        console.fail(
            InputError(
                "GL0306",
                f"{count} problem{'s' if count > 1 else ''} found",
                where=str(dataset),
                hint=bad[0].hint,
            )
        )


def _say(result: results.Verify | results.VerifyPlan) -> str:
    from glint.results import datasets as results

    if isinstance(result, results.VerifyPlan):
        sources = [f", {one.kind} {one.source}" for one in result.against or ()]
        return (
            f"would read {console.count(result.files, 'table')} and "
            f"{console.count(result.shards, 'shard')}, {result.bytes / 1e6:.1f} MB"
            + "".join(sources)
        )
    lines = [f"bad          {line}" for line in result.shown]
    more = result.problem_count - len(lines)
    lines += [f"             and {more} more"] if more else []
    lines += [f"note         {note}" for note in result.notes]
    if result.shards is not None and result.samples is not None and result.bytes is not None:
        read = "every byte" if result.deep else "tables, names, sizes and counts"
        rate = ""
        if result.deep and result.seconds:
            rate = f", {result.bytes / 1e9 / result.seconds:.2f} GB/s"
        lines.append(
            f"checked      {read}: {console.count(result.shards, 'shard')}, "
            f"{console.count(result.samples, 'sample')}, "
            f"{result.bytes / 1e6:.1f} MB in {result.seconds:.1f} s{rate}"
        )
    if told := result.against:
        lines.append(
            f"against      {', '.join(told.source)}: {console.count(told.compared, 'image')} "
            f"compared, {told.other_bytes} with other bytes, {told.other_label} with another "
            f"label, {told.missing} missing, {told.unknown} of unknown origin"
        )
    looked = result.deep or result.against is not None or result.decoded
    share = f" in the share of task {result.task}" if result.task is not None else ""
    lines.append(
        "result       "
        + (
            (
                f"all as written{share}"
                if looked
                else f"tables and sizes as written{share}; no image read"
            )
            if result.ok
            else console.count(result.problem_count, "problem")
        )
    )
    if result.ok and not result.deep:
        lines.append(f"next         glint verify {result.dataset} --deep")
    return "\n".join(lines)
