"""`glint shard` and `glint info`: a dataset from a source, and what a dataset holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import console, parallel, source

if TYPE_CHECKING:
    from glint.results import datasets as results
    from glint.shards.sources import Rule


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("shard")(shard)
    app.command("info")(info)


def shard(
    src: list[Path] = typer.Argument(
        ...,
        parser=console.local,
        metavar="SRC",
        help="A .rec file, or a folder of images, tars, zips or tables; several are of one "
        "label space.",
    ),
    out: str = console.OUT,
    label_depth: int = source.LABEL_DEPTH,
    label_from: str = source.LABEL_FROM,
    labels: str = source.LABELS,
    label_column: str = source.LABEL_COLUMN,
    image_column: str = source.IMAGE_COLUMN,
    label_member: str = source.LABEL_MEMBER,
    names: Path | None = typer.Option(
        None, "--names", metavar="TABLE", help="Label and name, a line each, for nameless labels."
    ),
    exclude: list[str] = source.EXCLUDE,
    follow_links: bool = source.FOLLOW_LINKS,
    unlabelled: bool = source.UNLABELLED,
    samples_per_shard: int = typer.Option(10_000, help="Records per shard."),
    workers: int = console.WORKERS,
    seed: int = typer.Option(0, help="Seed of the permutation of all records."),
    with_json: bool = typer.Option(False, "--with-json", help="Add KEY.json to each sample."),
    members: str = typer.Option(
        "jpg,cls", help="Files per sample: jpg,cls; or jpg, with the label in its name."
    ),
    formats: str = typer.Option("jpg", help="Image formats to accept: jpg,png,webp."),
    size: str = typer.Option("112x112", help="Expected width and height."),
    on_size: str = typer.Option("keep", help="Images of another size: keep or reject."),
    on_exif: str = typer.Option("reject", help="Images with an Exif rotation: reject or keep."),
    decode: bool = source.DECODE,
    to_jpeg: int = source.TO_JPEG,
    max_bad: float = typer.Option(
        0.001, help="Accepted share of bad records; at least 16 records, or half, unless 0."
    ),
    resync: bool = typer.Option(False, "--resync", help="RecordIO: skip damage and continue."),
    rebuild_idx: bool = source.REBUILD_IDX,
    task: str = parallel.TASK,
    engine: str = parallel.ENGINE,
    ray_address: str = parallel.RAY_ADDRESS,
    staging: Path | None = console.STAGING,
    dry_run: bool = console.DRY_RUN,
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Pack images and labels into checksummed tar shards; image bytes are not changed."""

    def work() -> results.Shard | results.ShardShare | results.ShardPlan:
        from glint.pipelines.dataset import shard as stage
        from glint.shards import sources

        folder = console.place(out, "OUT")
        rule = sources.Rule(
            label_depth, label_from, labels, label_column, image_column, label_member,
            tuple(exclude), follow_links, unlabelled,
        )  # fmt: skip
        check(src, folder, staging, resync, rule)
        mine = parallel.task(task)
        where = parallel.engine(engine, ray_address, workers)
        chosen = tuple(f.strip() for f in formats.split(",") if f.strip())
        options = stage.Options(
            samples_per_shard, seed, with_json, chosen, members.replace(" ", ""),
            size.replace(" ", ""), on_size, on_exif, unlabelled, decode, to_jpeg,
        )  # fmt: skip
        if dry_run:
            return stage.survey(src, options, rule, resync=resync, out=folder, names=names)
        for one in src if rebuild_idx else ():
            sources.rebuild_idx(sources.recognise(one)[1], resync)
        with console.progress("shard") as progress:
            return stage.shard(
                src, folder, options, rule, workers=workers or parallel.cores(),
                max_bad=max_bad, progress=progress, task=mine, engine=where, staging=staging,
                resync=resync, names=names,
            )  # fmt: skip

    console.run(work, as_json, debug=debug, say=lambda result: _say(result, unlabelled))


def check(
    src: list[Path], folder: Path | str, staging: Path | None, resync: bool, rule: Rule
) -> None:
    """Raise UsageError GL0002 for options that do not fit together."""
    from glint.errors import UsageError
    from glint.shards import sources

    if staging is not None and isinstance(folder, Path):
        raise UsageError("GL0002", "only a dataset in a store is staged", where="--staging")
    if str(folder).startswith("memory:"):
        raise UsageError("GL0002", "a dataset in memory is lost with this process", where="OUT")
    if resync and any(sources.recognise(one, rule)[0] != "recordio" for one in src):
        raise UsageError("GL0002", "SRC is not a RecordIO file", where="--resync")


_NOTES = {
    "exif-rotated": "{} written with an Exif rotation, which glint does not apply",
    "other-size": "{} written with a size other than --size",
    "not-whole": "{} written of which a part is lost: cut short or overwritten, and grey there",
    "made-jpeg": "{} were no JPEGs and were encoded anew as such (--to-jpeg): pixels changed",
    "trailing-bytes": "{} written with bytes after the end of the JPEG",
}


def _say(result: results.Shard | results.ShardShare | results.ShardPlan, unlabelled: bool) -> str:
    from glint.results import datasets as results

    lines = source.say(result.recognised)
    if isinstance(result, results.ShardShare):
        return "\n".join([*lines, parallel.left(result, result.shards)])
    size = f"{result.bytes / 1e6:.1f} MB"
    if isinstance(result, results.ShardPlan):
        return "\n".join(
            [
                *lines,
                f"would write  at most {console.count(result.read, 'sample')} in "
                f"{console.count(result.shards, 'shard')}, about {size}",
            ]
        )
    reasons = "".join(
        f"\n             {count:8d} {reason}" for reason, count in result.quarantine_reasons.items()
    )
    noted = "".join(
        f"\nnote         {_NOTES[name].format(count)}" for name, count in result.notes.items()
    )
    if called := result.recognised.get("names"):
        lines.append(
            f"names        {called['named']} of {called['of']} labels, by {called['table']}"
        )
    resumed = f", {result.resumed_shards} of them before" if result.resumed_shards else ""
    lines += [
        f"read         {result.read} = {result.written} written + "
        f"{result.quarantined} quarantined{reasons}{noted}",
        f"wrote        {result.out}: {console.count(result.shards, 'shard')}{resumed}, {size}",
        f"digest       {result.digest}",
        f"next         glint embed {console.quoted(result.out)} --model MODEL.onnx --out EMB"
        + ", then glint cluster EMB --out CLUSTERS" * unlabelled,
    ]
    return "\n".join(lines)


def info(
    dataset: str = console.DATASET,
    duplicates: bool = typer.Option(
        False, "--duplicates", help="Find images that occur more than once, byte for byte."
    ),
    out: str = typer.Option(
        "", help="With --duplicates: write them to this Parquet file, one row per image."
    ),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Print what a dataset holds: counts, labels in force, digest."""

    def work() -> results.Info:
        return _info(dataset, duplicates or bool(out), out or None)

    console.run(work, as_json, debug=debug, say=_say_info)


def _info(dataset: str, equals: bool, out: str | None) -> results.Info:
    import numpy as np

    from glint.files import seal
    from glint.results import datasets as results
    from glint.shards import duplicates, labels
    from glint.shards.dataset import Dataset

    data = Dataset(dataset)
    seal.check(data.root / "manifest.json")
    table = labels.current(data.root, data.classes)
    count = data.identities().column("count").to_numpy()
    manifest = data.manifest
    return results.Info(
        duplicates=duplicates.find(data, table, out) if equals else None,
        dataset=data.name,
        source=manifest["source"],
        layout=manifest["layout"],
        recognised=manifest.get("recognised", {}),
        read=manifest["read"],
        written=data.n,
        quarantined=manifest["quarantined"],
        quarantine_reasons=manifest["quarantine_reasons"],
        identities=data.classes,
        images_per_identity={
            "least": int(count.min()),
            "median": float(np.median(count)),
            "most": int(count.max()),
        }
        if len(count)
        else {},
        shards=len(data.shards),
        bytes=sum(s["bytes"] for s in manifest["shards"]),
        label_version=table.version,
        classes=table.classes,
        dropped_identities=int((table.target < 0).sum()),
        images_left_out=int((table.label < 0).sum()),
        images_moved=int((table.label >= 0).sum()),
        masked_pairs=len(table.masks),
        digest=data.digest,
        glint=manifest["glint"],
    )


def _say_images(result: results.Info) -> str:
    if not (result.images_left_out or result.images_moved):
        return ""
    out = console.count(result.images_left_out, "image")
    return f"{out} left out, {result.images_moved} of another identity"


def _say_info(result: results.Info) -> str:
    per = result.images_per_identity
    places = [one["source"] for one in result.recognised.get("sources", ())] or [result.source]
    spread = f", {per['least']} to {per['most']} images each" if per else ""
    return "\n".join(
        [
            f"dataset      {result.dataset}, from {' + '.join(places)} ({result.layout})",
            *(source.say(result.recognised)[1:] if "label" in result.recognised else []),
            f"samples      {result.written} in {console.count(result.shards, 'shard')}, "
            f"{result.bytes / 1e6:.1f} MB; {result.quarantined} of {result.read} "
            "quarantined",
            f"identities   {result.identities}{spread}",
            f"labels       version {result.label_version}: "
            f"{console.count(result.classes, 'class')}, "
            f"{console.count(result.dropped_identities, 'identity')} dropped, "
            f"{result.masked_pairs} pairs masked"
            + (f"; {one}" if (one := _say_images(result)) else ""),
            *_say_equals(result.duplicates),
            f"digest       {result.digest}",
        ]
    )


def _say_equals(found: results.Duplicates | None) -> list[str]:
    if found is None:
        return []
    lines = [
        f"duplicates   {found.groups} images occur more than once ({found.images} samples): "
        f"{found.under_one_identity} under one identity, {found.under_several} under several"
    ]
    for group in found.shown:
        told = ", ".join(f"{k} (label {n})" for k, n in zip(group.keys, group.labels))
        lines.append(f"             {told}")
    return lines + ([f"wrote        {found.out}"] if found.out is not None else [])
