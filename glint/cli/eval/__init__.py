"""`glint eval pairs | all-pairs | ijb | identify`: how well a model tells people apart."""

from __future__ import annotations

from pathlib import Path

import typer

from glint.cli import complete, console

EMBEDDINGS = typer.Option(..., "--embeddings", "--emb", help="A folder that `glint embed` wrote.")
REPORT = typer.Option(None, "--report", help="Also write an HTML page to this file.")
THREADS = typer.Option(0, "--threads", min=0, help="Compute threads; 0 = as many as fit.")
DEVICE = typer.Option(None, "--device", help="cpu or cuda; by default cuda where there is one.")
FLIP = typer.Option(True, "--flip/--no-flip", help="Add the embedding of the mirrored image.")
BATCH = typer.Option(32, "--batch", min=1, help="Images per call of the model.")
DETECTOR = typer.Option(
    True, "--detector/--no-detector", help="Weigh each image by its detector score."
)
WORK = typer.Option(None, "--work", help="Folder for intermediate results, to resume from.")


class _Group(console.Bare):
    """Also takes the options of 0.1, which had no subcommands."""

    bare = "options"


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    group = typer.Typer(
        cls=_Group,
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Measure a model; on verification pairs, on all pairs of a dataset, on IJB, or by "
        "identification among distractors.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    group.command("pairs")(pairs)
    group.command("all-pairs")(all_pairs)
    group.command("ijb")(ijb)
    group.command("identify")(identify)
    group.command("options", hidden=True)(options)
    app.add_typer(group, name="eval")


def pairs(
    files: list[Path] = typer.Argument(
        ...,
        metavar="PAIRS",
        help="Verification .bin files; or, with --dataset, lists of pairs (LFW's pairs.txt).",
    ),
    model: Path = typer.Option(
        ..., "--model", "-m", help="ONNX file, run directory or checkpoint directory."
    ),
    dataset: Path | None = typer.Option(
        None,
        "--dataset",
        "-d",
        help="The dataset, or folder of images, whose images a text list names.",
    ),
    flip: bool = FLIP,
    batch: int = BATCH,
    threads: int = THREADS,
    device: str | None = DEVICE,
    report: Path | None = REPORT,
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
    output: str = console.OUTPUT,
    mean: float | None = console.MEAN,
    std: float | None = console.STD,
    bgr: bool = console.BGR,
) -> None:
    """Verify pairs of faces in ten folds, the protocol of LFW."""
    from glint.cli.eval import text, work
    from glint.models.onnx_file import Reading

    reading = Reading(output, mean, std, bgr)
    console.run(
        lambda: work.pairs(files, model, dataset, flip, batch, threads, device, report, reading),
        as_json,
        debug=debug,
        say=text.pairs,
    )


def all_pairs(
    dataset: Path = console.LOCAL_DATASET,
    embeddings: Path = EMBEDDINGS,
    work: Path | None = WORK,
    threads: int = THREADS,
    device: str | None = DEVICE,
    report: Path | None = REPORT,
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Compare every pair of images of a dataset; TAR at FAR down to 1e-6."""
    from glint.cli.eval import text
    from glint.cli.eval import work as stage

    console.run(
        lambda: stage.all_pairs(dataset, embeddings, work, threads, device, report),
        as_json,
        debug=debug,
        say=text.all_pairs,
    )


def ijb(
    folder: Path = typer.Argument(
        ..., metavar="FOLDER", help="The folder with the lists of IJB-B or IJB-C."
    ),
    embeddings: Path = typer.Option(
        ...,
        "--embeddings",
        "--emb",
        help="A .npy file with one raw embedding per line of the image list; with --dataset, a "
        "folder that `glint embed` wrote.",
    ),
    dataset: Path | None = typer.Option(
        None, "--dataset", "-d", help="The dataset of the embeddings."
    ),
    detector: bool = DETECTOR,
    report: Path | None = REPORT,
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Run the 1:1 and 1:N protocols of IJB-B or IJB-C."""
    from glint.cli.eval import text, work

    console.run(
        lambda: work.ijb(folder, embeddings, dataset, detector, report),
        as_json,
        debug=debug,
        say=text.ijb,
    )


def identify(
    probes: Path = typer.Argument(
        ...,
        metavar="DATASET",
        autocompletion=complete.datasets,
        help="A dataset with several images per person.",
    ),
    embeddings: Path = EMBEDDINGS,
    distractors: Path = typer.Option(..., "--distractors", help="A dataset of other people."),
    distractor_embeddings: Path = typer.Option(
        ..., "--distractor-embeddings", help="The embeddings of --distractors by the same model."
    ),
    report: Path | None = REPORT,
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Identify people among distractors, the protocol of MegaFace."""
    from glint.cli.eval import text, work

    console.run(
        lambda: work.identify(probes, embeddings, distractors, distractor_embeddings, report),
        as_json,
        debug=debug,
        say=text.identify,
    )


def options(
    model: Path | None = typer.Option(None, "--model", "-m"),
    files: list[Path] = typer.Option([], "--pairs", "-p"),
    dataset: Path | None = typer.Option(None, "--dataset", "-d"),
    every: Path | None = typer.Option(None, "--all-pairs"),
    lists: Path | None = typer.Option(None, "--ijb"),
    probes: Path | None = typer.Option(None, "--identify"),
    embeddings: Path | None = typer.Option(None, "--embeddings", "--emb"),
    distractors: Path | None = typer.Option(None, "--distractors"),
    others: Path | None = typer.Option(None, "--distractor-embeddings"),
    detector: bool = DETECTOR,
    work: Path | None = WORK,
    report: Path | None = REPORT,
    flip: bool = FLIP,
    batch: int = BATCH,
    threads: int = THREADS,
    device: str | None = DEVICE,
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Take the options of 0.1: deprecated."""
    kinds = {"--pairs": files, "--all-pairs": every, "--ijb": lists, "--identify": probes}
    named = [name for name, value in kinds.items() if value]
    if len(named) != 1:
        found = " and ".join(named) or "none"
        raise typer.BadParameter(
            f"expected one of --pairs, --all-pairs, --ijb and --identify, found {found}"
        )
    needed = {"--model": model} if files else {"--embeddings": embeddings}
    if probes:
        needed |= {"--distractors": distractors, "--distractor-embeddings": others}
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise typer.BadParameter(f"{named[0]} also needs {' and '.join(missing)}")
    console.tell(
        f"note: `glint eval {named[0]}` is deprecated and will be removed in the next version; use "
        f"`glint eval {named[0][2:]}`"
    )
    if model and files:
        pairs(
            files, model, dataset, flip, batch, threads, device, report, as_json, debug,
            "", None, None, False,
        )  # fmt: skip
    elif every and embeddings:
        all_pairs(every, embeddings, work, threads, device, report, as_json, debug)
    elif lists and embeddings:
        ijb(lists, embeddings, dataset, detector, report, as_json, debug)
    elif probes and embeddings and distractors and others:
        identify(probes, embeddings, distractors, others, report, as_json, debug)
