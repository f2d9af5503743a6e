"""`glint align`: a dataset of aligned crops from photographs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import console, parallel, source

if TYPE_CHECKING:
    from glint.results import datasets as results


DETECTOR: str = typer.Option(
    "buffalo_l",
    "--detector",
    "-d",
    metavar="FILE|PACK",
    help="An ONNX file (SCRFD, RetinaFace), a pack's folder, or its name in "
    "~/.insightface/models. Never downloaded.",
)
FACES: str = typer.Option(
    "largest",
    help="Of a photo with several: largest, central, all, or one (several quarantine it).",
)
MAX_FACES: int = typer.Option(10, help="With --faces all: so many of a photo, the largest.")
MIN_SCORE: float = typer.Option(0.5, help="Faces that the detector scores lower are left out.")
MIN_FACE: float = typer.Option(
    10, help="Faces with a shorter side below this are left out: pixels of the photo."
)
INPUT_SIZE: str = typer.Option(
    "640x640", help="What the detector sees, where its file leaves it open."
)
ANTIALIAS: bool = typer.Option(
    True,
    "--antialias/--no-antialias",
    help="Average pixels before a crop shrinks 1.5 times or more; without, as the field does.",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("align")(align)


def align(
    src: list[Path] = typer.Argument(
        ...,
        parser=console.local,
        metavar="SRC",
        help="Photographs: what `glint shard` reads, of any size, turned by Exif or not.",
    ),
    out: str = console.OUT,
    detector: str = DETECTOR,
    faces: str = FACES,
    max_faces: int = MAX_FACES,
    min_score: float = MIN_SCORE,
    min_face: float = MIN_FACE,
    input_size: str = INPUT_SIZE,
    antialias: bool = ANTIALIAS,
    quality: int = typer.Option(95, help="Of the crops' JPEG, 1 to 100."),
    subsampling: str = typer.Option("444", help="Of their colours: 444, 422 or 420."),
    label_depth: int = source.LABEL_DEPTH,
    label_from: str = source.LABEL_FROM,
    labels: str = source.LABELS,
    label_column: str = source.LABEL_COLUMN,
    image_column: str = source.IMAGE_COLUMN,
    label_member: str = source.LABEL_MEMBER,
    exclude: list[str] = source.EXCLUDE,
    follow_links: bool = source.FOLLOW_LINKS,
    unlabelled: bool = source.UNLABELLED,
    samples_per_shard: int = typer.Option(500, help="Photos per shard."),
    seed: int = typer.Option(0, help="Seed of the permutation of all photos."),
    max_bad: float = typer.Option(0.5, help="Accepted share of photos without a usable face."),
    workers: int = console.WORKERS,
    device: str = typer.Option("cpu", help="Of the detector: cpu, cuda or cuda:N."),
    task: str = parallel.TASK,
    engine: str = parallel.ENGINE,
    ray_address: str = parallel.RAY_ADDRESS,
    staging: Path | None = console.STAGING,
    dry_run: bool = console.DRY_RUN,
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Find faces in photographs, align and cut them to 112x112; the crops are a dataset."""

    def work() -> results.Align | results.AlignShare | results.AlignPlan:
        from glint.cli.shard import check
        from glint.pipelines.dataset import align as stage
        from glint.shards import sources

        folder = console.place(out, "OUT")
        rule = sources.Rule(
            label_depth, label_from, labels, label_column, image_column, label_member,
            tuple(exclude), follow_links, unlabelled,
        )  # fmt: skip
        check(src, folder, staging, False, rule)
        mine = parallel.task(task)
        where = parallel.engine(engine, ray_address, workers)
        options = stage.Align(
            samples_per_shard=samples_per_shard, seed=seed, unlabelled=unlabelled,
            detector=stage.Model(detector, size=input_size.replace(" ", ""), device=device),
            faces=faces, max_faces=max_faces, min_score=min_score, min_face=min_face,
            antialias=antialias, quality=quality, subsampling=subsampling,
        )  # fmt: skip
        if dry_run:
            return stage.survey(src, options, rule, out=folder)
        with console.progress("align") as progress:
            return stage.align(
                src, folder, options, rule, workers=workers or parallel.cores(),
                max_bad=max_bad, progress=progress, task=mine, engine=where, staging=staging,
            )  # fmt: skip

    console.run(work, as_json, debug=debug, say=lambda result: _say(result, unlabelled))


_NOTES = {
    "already-aligned": "{} are aligned crops already: kept as they are where they are JPEGs; "
    "`glint shard` packs such without a detector",
    "several-faces": "{} photos with several faces",
    "small-faces": "{} faces under --min-face left out of photos that gave others",
    "faces-over": "{} faces over --max-faces left out",
    "turned": "{} photos turned as their Exif record asks",
    "not-whole": "{} photos of which a part is lost: cut short or overwritten, and grey there",
}


def _say(result: results.Align | results.AlignShare | results.AlignPlan, unlabelled: bool) -> str:
    from glint.results import datasets as results

    lines = source.say(result.recognised)
    told = result.recognised["align"]
    lines.append(f"detector     {told['detector']}, SHA-256 {told['digest'][:12]}...")
    if isinstance(result, results.AlignShare):
        return "\n".join([*lines, parallel.left(result, result.shards)])
    if isinstance(result, results.AlignPlan):
        photos, shards = (
            console.count(n, what) for n, what in ((result.read, "photo"), (result.shards, "shard"))
        )
        return "\n".join([*lines, f"would read   {photos}, into {shards}"])
    good = result.read - result.quarantined
    lines.append(
        f"read         {console.count(result.read, 'photo')} = {good} with "
        f"{console.count(result.written, 'crop')} + {result.quarantined} quarantined"
    )
    for reason, count in result.quarantine_reasons.items():
        lines.append(f"             {count:8d} {reason}")
    for name, count in result.notes.items():
        lines.append(f"note         {_NOTES[name].format(count)}")
    resumed = f", {result.resumed_shards} of them before" if result.resumed_shards else ""
    colours = ":".join(told["subsampling"])
    lines += [
        f"wrote        {result.out}: {console.count(result.shards, 'shard')}{resumed}, "
        f"{result.bytes / 1e6:.1f} MB; crops are encoded anew as JPEG {told['quality']}, {colours}",
        f"digest       {result.digest}",
        f"next         glint embed {console.quoted(result.out)} --model MODEL.onnx --out EMB"
        + ", then glint cluster EMB --out CLUSTERS" * unlabelled,
    ]
    return "\n".join(lines)
