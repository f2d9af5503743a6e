"""Collectives over rows, which may be uneven over the ranks.

At world size 1 each is the identity and needs no process group.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from glint.dist.world import World

# n rows on this rank, N over all ranks, p rows of the longest rank


_OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


@contextmanager
def _counted(world: World) -> Iterator[None]:
    began = time.perf_counter()
    yield
    if world.device.type == "cpu":
        world.waited.seconds += time.perf_counter() - began


def even(rows: int, world: World) -> tuple[int, ...]:
    """Return the row counts of ranks that all hold as many rows as this one."""
    return (rows,) * world.size


def all_gather_rows(x_n: Tensor, world: World, counts: Sequence[int] | None = None) -> Tensor:
    """Stack every rank's rows in rank order: (n, ...) -> (N, ...).

    counts: rows on each rank, the same list on every rank; None means that all hold n.
    """
    if world.size == 1:
        return x_n
    counts = _checked(x_n.shape[0], world, counts)
    p = max(counts)
    padded_p = x_n.contiguous()
    if x_n.shape[0] < p:
        padded_p = x_n.new_zeros((p, *x_n.shape[1:]))
        padded_p[: x_n.shape[0]] = x_n
    out = x_n.new_empty((p * world.size, *x_n.shape[1:]))
    with _counted(world):
        _single("all_gather_single", "all_gather_into_tensor")(out, padded_p, group=world.group)
    if min(counts) == p:
        return out
    return torch.cat([out[r * p : r * p + count] for r, count in enumerate(counts)])


def differing(said: str, world: World) -> list[int]:
    """Return the ranks that say something else than rank 0, the same list on every rank."""
    digest = hashlib.sha256(said.encode()).digest()
    mine = torch.frombuffer(bytearray(digest), dtype=torch.uint8).to(world.device)
    seen = all_gather_rows(mine[None], world)
    ranks: list[int] = (seen != seen[:1]).any(1).nonzero().flatten().tolist()
    return ranks


def reduce_scatter_rows(x_N: Tensor, world: World, counts: Sequence[int] | None = None) -> Tensor:
    """Sum over ranks and keep this rank's rows: (N, ...) -> (n, ...).

    counts: rows that each rank keeps, the same list on every rank; None splits N evenly.
    """
    if world.size == 1:
        return x_N
    if counts is None:
        counts = even(x_N.shape[0] // world.size, world)
    if sum(counts) != x_N.shape[0] or len(counts) != world.size:
        raise ValueError(f"counts {list(counts)} do not add up to {x_N.shape[0]} rows")
    p = max(counts)
    if min(counts) == p:
        padded = x_N.contiguous()
    else:
        padded = x_N.new_zeros((p * world.size, *x_N.shape[1:]))
        for r, part in enumerate(torch.split(x_N, list(counts))):
            padded[r * p : r * p + part.shape[0]] = part
    out = x_N.new_empty((p, *x_N.shape[1:]))
    with _counted(world):
        _single("reduce_scatter_single", "reduce_scatter_tensor")(out, padded, group=world.group)
    return out[: counts[world.rank]]


def all_reduce_(x: Tensor, world: World, op: str = "sum") -> Tensor:
    """Reduce over ranks in place with op "sum", "max" or "min"; return `x`."""
    if world.size > 1:
        with _counted(world):
            dist.all_reduce(x, op=_OPS[op], group=world.group)
    return x


def barrier(world: World) -> None:
    """Wait until every rank is here."""
    all_reduce_(torch.zeros(1, device=world.device), world)


def _single(name: str, older: str) -> Callable[..., Any]:
    """Return a one-tensor collective by its name since torch 2.13, or by its older one."""
    found: Callable[..., Any] = getattr(dist, name, None) or getattr(dist, older)
    return found


def _checked(n: int, world: World, counts: Sequence[int] | None) -> Sequence[int]:
    if counts is None:
        return even(n, world)
    if len(counts) != world.size or counts[world.rank] != n:
        raise ValueError(
            f"counts {list(counts)} do not say {n} for rank {world.rank} of {world.size}"
        )
    return counts
