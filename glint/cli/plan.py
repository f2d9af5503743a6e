"""`glint plan` and `glint train --dry-run`: what a run would take, before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from glint.cli import console
from glint.nn.heads.options import OPTIONS

if TYPE_CHECKING:
    from glint.results import models as results


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    group = typer.Typer(
        cls=_Plan,
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Estimate what a head, or a dataset's stages, would take. "
        "`glint plan --classes N` is `head`.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    group.command("head")(plan)
    group.command("data")(data)
    app.add_typer(group, name="plan")


class _Plan(console.Bare):
    bare = "head"


def _option(key: str, default: Any = None) -> Any:
    """Make an option of the command as the head declares it."""
    option = OPTIONS[key]
    return typer.Option(
        option.default if default is None else default, f"--{key}", help=option.metadata["help"]
    )


def plan(
    classes: int = typer.Option(..., "--classes", help="Number of identities."),
    dim: int = typer.Option(512, "--dim", help="Length of an embedding."),
    world: int = typer.Option(1, "--world", help="Ranks (GPUs)."),
    batch: int = typer.Option(128, "--batch", help="Images per rank and step."),
    rate: float = _option("rate", 0.1),
    rule: str = _option("rule"),
    storage: str = _option("storage"),
    gemm: str = _option("gemm"),
    block: int = _option("block"),
    kind: str = typer.Option("partial_fc", "--kind", help="As head.kind in a recipe."),
    slots: int = _option("slots"),
    gallery: int = _option("gallery"),
    card: float = typer.Option(0.0, "--card", help="GB per rank available to the head."),
    gpu: str = typer.Option("h100", "--gpu", help="Whose data sheet: a100, h100, h200 or l40s."),
    tflops: float = typer.Option(
        0.0, "--tflops", help="TFLOP/s of matrix products on a rank, as measured; 0 = the GPU's."
    ),
    gbps: float = typer.Option(0.0, "--gbps", help="GB/s at which a rank reads and writes rows."),
    link: float = typer.Option(0.0, "--link", help="GB/s at which a rank receives messages."),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Estimate memory, messages and step time of a head; per rank."""

    def work() -> results.Plan:
        from glint.train import memory

        values = {"rate": rate, "rule": rule, "storage": storage, "gemm": gemm, "block": block}
        values |= {"kind": kind, "slots": slots, "gallery": gallery}
        return memory.plan(
            values, classes, dim=dim, world=world, batch=batch, card=card, gpu=gpu,
            tflops=tflops, gbps=gbps, link=link,
        )  # fmt: skip

    console.run(work, as_json, debug=debug, say=_say)


def _say(found: results.Plan) -> str:
    need, head, took = found.memory, found.head, found.seconds
    lines = [
        f"{head['classes']} classes x {head['dim']} on {head['world']} ranks: "
        f"{found.rows} rows a rank, {found.playing} in a step"
    ]
    lines += [f"  {name:<13} {value / 1e9:10.3f} GB" for name, value in need.items()]
    lines.append(f"  dense momentum SGD over autograd: {found.reference_memory / 1e9:.3f} GB")
    lines.append(
        f"  messages {found.communication['received'] / 1e6:.3f} MB a step in "
        f"{found.communication['collectives']} collectives"
    )
    lines.append(
        f"  step about {1000 * took['total']:.1f} ms: products "
        f"{1000 * took['products']:.1f}, rows {1000 * took['rows']:.1f}, messages "
        f"{1000 * took['messages']:.1f} ({found.on}; no launches, no waits)"
    )
    if found.card is not None:
        unit = "slots" if head["slots"] else "classes"
        verdict = "fits" if found.fits else "does not fit"
        lines.append(f"  {found.card:g} GB a rank: {verdict}; at most {found.largest} {unit}")
    return "\n".join(lines)


def data(
    images: float = typer.Option(..., "--images", help="Number of images, such as 1e9."),
    identities: float = typer.Option(..., "--identities", help="Number of identities."),
    machines: int = typer.Option(1, "--machines", help="Machines that share the work."),
    cores: int = typer.Option(16, "--cores", help="Cores of a machine."),
    gpus: int = typer.Option(0, "--gpus", help="GPUs of a machine, for embed."),
    memory: float = typer.Option(256.0, "--memory", help="GB of a machine."),
    dim: int = typer.Option(512, "--dim", help="Length of an embedding."),
    image_kb: float = typer.Option(6.0, "--image-kb", help="kB (1,000 bytes) of an image."),
    ms_per_image: float = typer.Option(
        0.0, "--ms-per-image",
        help="ms of the net for an image, on a GPU or a core; 0 = a small net on a core.",
    ),
    pairs: float = typer.Option(1.0, "--pairs", help="Pairs that are proposed, an identity."),
    unlabelled: bool = typer.Option(
        False, "--unlabelled", help="No labels: cluster instead of looking for conflicts."
    ),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:  # fmt: skip
    """Estimate time, memory and traffic of a dataset; from measured unit costs."""

    def work() -> results.DataPlan:
        from glint.pipelines import cost

        given = cost.Dataset(images, identities, dim, image_kb * 1000, pairs, unlabelled)
        return cost.plan(given, cost.Machines(machines, cores, gpus, memory * 1e9, ms_per_image))

    console.run(work, as_json, debug=debug, say=_say_data)


def _say_data(found: results.DataPlan) -> str:
    from glint.pipelines.cost import duration

    gpus = f" and {found.gpus} GPUs" * bool(found.gpus)
    lines = [
        f"{found.images:,} images of {found.identities:,} identities, {found.dim} numbers each, on "
        f"{found.machines} machines of {found.cores} cores{gpus}",
        f"  {'stage':<18} {'machines':>8} {'cores':>5} {'time':>10} {'CPU':>10} {'memory':>9} "
        f"{'read':>10} {'written':>10} {'a machine':>10}",
    ]
    for one in found.stages:
        read, written, traffic = (
            f"{x / 1e9:,.1f} GB" for x in (one.read, one.written, one.traffic)
        )
        lines.append(
            f"  {one.name:<18} {one.machines:>8} {one.cores:>5} {duration(one.seconds):>10} "
            f"{duration(one.cpu_seconds):>10} {one.memory / 1e9:>6,.1f} GB "
            f"{read:>10} {written:>10} {traffic:>10}"
        )
    lines.append(
        f"  all, one after the other: {duration(found.seconds)}, of CPU "
        f"{duration(found.cpu_seconds)}"
    )
    lines.append(f"First wall: {found.wall}")
    single = ", ".join(one.name for one in found.stages if one.machines == 1)
    if found.machines > 1:
        lines.append(f"On one machine whatever is given, as they cannot be shared out: {single}")
    lines.append(f"Unit costs of {found.measured_on}; no GPU, network or disk was measured.")
    return "\n".join(lines)


def dry_run(recipe: str, change: list[str], world: int, classes: int) -> results.TrainPlan:
    """Return what `glint train --dry-run` prints; `classes` 0: those of the dataset."""
    from glint.recipes import shelf
    from glint.recipes.load import load
    from glint.train.recipe import Recipe

    settings = load(shelf.find("train", recipe), Recipe, change)

    from glint.errors import InputError, UsageError
    from glint.shards import labels
    from glint.shards.dataset import Dataset
    from glint.train import dry

    if not classes:
        try:
            dataset = Dataset(settings.data.path)
            classes = labels.current(dataset.root, dataset.classes).classes
        except (InputError, UsageError) as error:
            hint = f"{error.hint}; " * bool(error.hint) + "--classes N counts without the data"
            raise type(error)(error.code, error.what, where=error.where, hint=hint) from None
    return dry.run(settings, classes, world)


def say_dry_run(found: results.TrainPlan) -> str:
    """Return it as text."""
    lines = [
        f"{found.backbone}: {found.parameters:,} parameters, {found.trained:,} trained, "
        f"{found.macs / 1e9:.3f} G multiply-adds per image",
        f"{found.classes:,} identities over {found.world} ranks, {found.batch} images "
        f"each, global batch {found.global_batch:,}; a rank holds",
    ]
    lines += [f"  {name:<13} {value / 1e9:10.3f} GB" for name, value in found.memory.items()]
    lines.append(f"and saves {found.checkpoint / 1e9:.3f} GB, copied into the host's memory first.")
    lines.append("Not counted: workspaces, allocator fragmentation, prefetched batches.")
    return "\n".join(lines)
