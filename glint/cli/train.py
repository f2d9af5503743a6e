"""`glint train`: one recipe, any number of ranks."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import console

if TYPE_CHECKING:
    from glint.results import models as results
    from glint.train.build import Run
    from glint.train.pace import Until
    from glint.train.recipe import Recipe

# what collectives raise on the other ranks when one has died, and where they cannot begin
GONE = re.compile(
    r"Connection (closed|reset)|Broken pipe|ncclRemoteError|aborted|[Tt]imed out|timeout|Socket"
)
NCCL = re.compile(r"NCCL|nccl[A-Z]")


ALLOW = typer.Option(
    [],
    "--allow",
    metavar="NAME",
    help="Go on with what an error calls nonsense, by the name it gives; repeatable.",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train")(train)


def train(
    recipe: str = console.RECIPE,
    change: list[str] = console.SET,
    nproc: int = typer.Option(
        1, "--nproc", min=1, help="Ranks to start here; under torchrun or srun it joins theirs."
    ),
    nnodes: int = typer.Option(1, "--nnodes", min=1, help="Machines with --nproc ranks each."),
    node_rank: int = typer.Option(
        0, "--node-rank", min=0, help="The number of this machine, from 0."
    ),
    master: str = typer.Option("", "--master", metavar="HOST:PORT", help="Address of machine 0."),
    max_restarts: int = typer.Option(
        3, "--max-restarts", min=0, help="Restarts after a lost rank without a new checkpoint."
    ),
    out: Path | None = typer.Option(
        None, "--out", help="The folder of the run; default runs/RECIPE. A run there is resumed."
    ),
    until: str = typer.Option(
        "",
        "--until",
        metavar="WHEN",
        help="Save, and stop with exit 75, after steps (5000) or a duration (90m, 3.5h), or at a "
        "time (@SECONDS since 1970).",
    ),
    allow: list[str] = ALLOW,
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Print what every rank would hold; allocate and write nothing."
    ),
    classes: int = typer.Option(
        0, "--classes", help="With --dry-run: number of identities, if the data is elsewhere."
    ),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Train a recipe with DDP and a sharded head; run it again to resume."""
    if allow:
        change = [*change, f"run.allow={json.dumps(allow)}"]
    if dry_run:
        from glint.cli import plan

        console.run(
            lambda: plan.dry_run(recipe, change, nproc * nnodes, classes),
            as_json,
            debug=debug,
            say=plan.say_dry_run,
        )
        return
    if classes:
        from glint.errors import UsageError

        console.fail(
            UsageError(
                "GL0002", "--classes needs --dry-run; training counts the classes of its dataset"
            )
        )
    from glint.dist import slurm

    os.environ.update(slurm.ranks(os.environ))
    inside = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    folder = out or Path("runs") / Path(recipe).stem
    if not inside and nproc * nnodes > 1:
        many = nnodes, node_rank, master
        console.run(
            lambda: _launch(
                recipe, change, nproc, many, max_restarts, folder, until, as_json, debug
            ),
            False,
            debug=debug,
        )
        return
    quiet = inside and os.environ["RANK"] != "0"
    console.run(
        lambda: one_rank(recipe, change, folder, until, quiet, debug),
        as_json and not quiet,
        debug=debug,
        say=None if quiet else _say,
    )


def _launch(
    recipe: str,
    change: list[str],
    nproc: int,
    nodes: tuple[int, int, str],
    restarts: int,
    folder: Path,
    until: str,
    as_json: bool,
    debug: bool,
) -> None:
    from glint.errors import GlintError

    try:
        code = _start(recipe, change, nproc, nodes, restarts, folder, until, as_json, debug)
    except GlintError as error:  # no rank has printed it
        if as_json:
            console.print_json(console.failure(error))
        raise
    if code:
        raise SystemExit(code)


def _start(
    recipe: str,
    change: list[str],
    nproc: int,
    nodes: tuple[int, int, str],
    restarts: int,
    folder: Path,
    until: str,
    as_json: bool,
    debug: bool,
) -> int:
    """Run the ranks, and again from the newest checkpoint when one was lost."""
    from glint.errors import LostError
    from glint.log import logger
    from glint.models.checkpoint import all_in
    from glint.recipes import shelf
    from glint.recipes.load import load
    from glint.train.pace import Until
    from glint.train.recipe import Recipe

    settings = load(shelf.find("train", recipe), Recipe, change)  # told once, not by every rank
    from glint.train import restore, sense

    batch = restore.batch_for_world(folder, settings.data.batch, nproc * nodes[0])
    data = settings.data.model_copy(update={"batch": batch})
    sense.require_step(settings.model_copy(update={"data": data}), nproc * nodes[0])

    from glint.dist.launch import Nodes, run_ranks

    many = Nodes.of(*nodes)
    argv = [sys.executable, "-m", "glint", "train", recipe, "--out", str(folder)]
    for value in change:
        argv += ["--set", value]
    if stop := Until.of(until).text():
        argv += ["--until", stop]
    argv += ["--json"] * as_json + ["--debug"] * debug
    left, last = restarts, None
    while True:
        try:
            return run_ranks(argv, nproc, stacks=folder / "_glint" / "stacks", nodes=many)
        except LostError as error:
            saved = all_in(folder / "checkpoints")
            if last is not None and saved[-1:] != last:  # it got on since
                left = restarts
            last = saved[-1:]
            if not left:
                raise
            left -= 1
            place = saved[-1].name if saved else "the start"
            logger.warning("%s; starting again from %s (%d left)", error, place, left)


def one_rank(
    recipe: str, change: list[str], folder: Path, until: str, quiet: bool, debug: bool
) -> results.Train:
    """Train a recipe as one of the ranks that the environment names; it may be the only one."""
    from glint.dist import heartbeat
    from glint.log import logger
    from glint.recipes import shelf
    from glint.recipes.load import load
    from glint.train.pace import Until
    from glint.train.recipe import Recipe

    heartbeat.start()
    settings, stop = load(shelf.find("train", recipe), Recipe, change), Until.of(until)
    try:
        if os.environ.get("RANK", "0") != "0":
            return _train(settings, folder, stop, quiet)

        from glint.train.restore import claimed

        with claimed(folder):
            return _train(settings, folder, stop, quiet)
    except RuntimeError as error:
        if debug:
            raise
        explain(error, settings)
        if not GONE.search(str(error)):
            raise
        logger.error("another rank is gone: %s", str(error).splitlines()[0][:200])
        raise SystemExit(1) from None  # the launcher reports why


def explain(error: RuntimeError, settings: Recipe) -> None:
    """Raise ResourceError for what another start would meet again: GL0904 memory, GL0603 NCCL."""
    import torch

    from glint.errors import ResourceError

    line = (str(error).splitlines() or [""])[0][:300]
    if isinstance(error, torch.OutOfMemoryError):
        more = settings.run.accumulate * 2
        raise ResourceError(
            "GL0904", line, where=f"data.batch={settings.data.batch}",
            hint=f"--set data.batch={max(1, settings.data.batch // 2)} run.accumulate={more} "
            "keeps the step's images; `glint plan` tells what a rank holds",
        ) from None  # fmt: skip
    if NCCL.search(str(error)) and not GONE.search(str(error)):
        raise ResourceError(
            "GL0603", " ".join(str(error).split())[:600],
            hint="one process a GPU; NCCL_DEBUG=INFO prints what NCCL sees",
        ) from None  # fmt: skip


def _train(settings: Recipe, folder: Path, until: Until, quiet: bool) -> results.Train:
    from glint.log import silent
    from glint.train import loop

    with built(settings, folder) as run:
        if quiet:
            return loop.train(run, silent, until)
        with console.progress("train") as progress:
            return loop.train(run, progress, until)


@contextmanager
def built(settings: Recipe, folder: Path) -> Iterator[Run]:
    """Join the other ranks, build the run of a recipe, and leave them at the end."""
    import torch

    from glint.dist.world import join, leave
    from glint.errors import UsageError
    from glint.files.store import is_url
    from glint.stream.loader import REMOTE_DEADLINE
    from glint.train import restore
    from glint.train.build import build

    device = settings.run.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "GL0002", "run.device is cuda and no CUDA device is visible", hint="run.device=cpu"
        )
    timeout = settings.run.timeout
    if is_url(settings.data.path):  # a rank may wait that long for a shard: it is not lost
        timeout = max(timeout, 1.1 * REMOTE_DEADLINE)
    world = join(device, timeout=timeout)
    try:
        batch = restore.batch_for_world(folder, settings.data.batch, world.size)
        settings = settings.model_copy(
            update={"data": settings.data.model_copy(update={"batch": batch})}
        )
        yield build(settings, world, folder)
    finally:
        leave(world)


def _say(result: results.Train) -> str:
    loss = result.loss
    before = "" if result.resumed_from < result.steps else "finished before: "
    lines = [
        f"{before}{console.count(result.steps, 'step')}, {console.count(result.images, 'image')}, "
        f"{console.count(result.classes, 'identity')}, ranks {result.world}"
        + ("" if loss is None else f": loss {loss:.4f}")
    ]
    for name, accuracy in result.verification.items():
        lines.append(f"  {name}  {100 * accuracy:.2f} %")
    lines.append(f"checkpoint {result.checkpoint}")
    lines.append(f"Next: glint eval pairs FILE.bin --model {console.quoted(result.checkpoint)}")
    return "\n".join(lines)
