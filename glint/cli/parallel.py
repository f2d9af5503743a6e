"""Options of work that several processes or machines share: `--task i/N`, `--engine ray`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

from glint.errors import UsageError

if TYPE_CHECKING:
    from glint.jobs.ray import Ray
    from glint.jobs.tasks import Task
    from glint.results.datasets import Share
    from glint.results.identities import ConflictsShare, EmbedShare

TASK = typer.Option("", "--task", metavar="i/N", help="Do task i of N of the work, counted from 0.")
ENGINE = typer.Option("local", "--engine", help="local (processes on this machine) or ray.")
RAY_ADDRESS = typer.Option(
    "", "--ray-address", help="A Ray cluster: auto or HOST:PORT; by default one is started here."
)


def task(text: str) -> Task | None:
    """Read --task. Raises UsageError GL0002."""
    from glint.jobs.tasks import Task

    return Task.parse(text)


def engine(name: str, address: str, at_once: int = 0, *, actors: bool = False) -> Ray | None:
    """Return the engine, None for this machine. Raises UsageError GL0002, GL0003."""
    if name not in ("local", "ray"):
        raise UsageError("GL0002", f"expected local or ray, found {name}", where="--engine")
    if name == "local":
        if address:
            raise UsageError("GL0002", "needs --engine ray", where="--ray-address")
        return None
    from glint.jobs.ray import Ray

    ray = Ray(address, at_once, actors)
    ray.check()
    return ray


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def left(share: Share | EmbedShare | ConflictsShare, of: int, pieces: str = "shards") -> str:
    """Return the text of a task that has done its share."""
    return (
        f"wrote        the share of task {share.task} of {share.out}\n"
        f"left         {share.left} of {of} {pieces} are left to other tasks"
    )
