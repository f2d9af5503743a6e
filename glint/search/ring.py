"""Exact self-join of rows that lie on several ranks: each holds its own, and they go round.

In step s every rank joins its rows with those of the rank s before it; after half a round every
two ranks have met, and a rank has held its own rows and two sets on their way, no more. With an
even number of ranks the last step brings every two together twice: each joins one half.
"""

# n rows on this rank, m rows of another, K pairs, D embedding

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from glint import log
from glint.dist.collectives import all_gather_rows, all_reduce_, differing
from glint.dist.world import World, present
from glint.errors import ResourceError, UsageError
from glint.log import Progress
from glint.search import pairs
from glint.search.cross import pairs_across
from glint.search.pairs import Pairs
from glint.search.resume import BlockPairs


def pairs_in_ring(
    x_nD: npt.NDArray[np.floating],
    threshold: float,
    *,
    group: World | dist.ProcessGroup | None = None,
    engine: str = "auto",
    limit: int = 50_000_000,
    progress: Progress = log.silent,
) -> Pairs:
    """Find what `pairs_above` finds among the rows of all ranks, stacked in rank order.

    x_nD: this rank's rows. Every rank calls it and gets all pairs. Each step has to end within the
    group's timeout of the slowest rank. Raises what `pairs_above` raises, on all ranks where one
    has more than `limit` pairs; UsageError GL0002 where ranks call it with rows of other widths or
    types, or another threshold.
    """
    world = present(group)
    device = str(world.device)
    x_nD = np.ascontiguousarray(pairs.table(x_nD, threshold))
    said = f"{x_nD.shape[1]} numbers of {x_nD.dtype}, threshold {threshold!r}"
    if other := differing(said, world):
        what = f"rank {other[0]} has other rows or another threshold than rank 0"
        raise UsageError("GL0002", f"{what}; rank {world.rank}: {said}", where="pair search")
    size = torch.tensor([len(x_nD)], device=world.device)
    rows = all_gather_rows(size, world).tolist()
    start = np.cumsum([0, *rows])
    found: list[BlockPairs] = []
    visitor_mD, half = x_nD, world.size // 2
    excluded = torch.tensor([int((~pairs.usable(x_nD)).sum())], device=world.device)
    for step in range(half + 1):
        owner = (world.rank - step) % world.size
        if step:
            visitor_mD = _passed_on(visitor_mD, rows[owner], world)
        too_many = 0
        try:
            found.append(
                _met(x_nD, visitor_mD, owner, step, start, threshold, engine, limit, world)
            )
        except ResourceError:
            too_many = limit + 1
        held = too_many or sum(len(one.a) for one in found)
        if int(all_reduce_(torch.tensor([held], device=world.device), world)) > limit:
            raise pairs.too_many(limit, threshold, where="pair search")
        progress(step + 1, half + 1, f"{held} pairs on rank {world.rank}")
    mine = pairs.joined(found, 0, pairs.choose(engine, device))
    counts = all_gather_rows(torch.tensor([len(mine.a)], device=world.device), world).tolist()
    a, b, cosine = (
        all_gather_rows(torch.from_numpy(part).to(world.device), world, counts).cpu().numpy()
        for part in (mine.a, mine.b, mine.cosine)
    )
    left_out = int(all_reduce_(excluded, world))
    return pairs.joined([BlockPairs(a, b, cosine)], left_out, mine.engine)


def _met(
    x_nD: npt.NDArray[np.floating],
    visitor_mD: npt.NDArray[np.floating],
    owner: int,
    step: int,
    start: npt.NDArray[np.int64],
    threshold: float,
    engine: str,
    limit: int,
    world: World,
) -> BlockPairs:
    """Join this rank's rows with those of `owner`; numbers are those of all ranks' rows."""
    device, own = str(world.device), int(start[world.rank])
    if not step:
        alone = pairs.pairs_above(x_nD, threshold, engine=engine, device=device, limit=limit)
        return BlockPairs(alone.a + own, alone.b + own, alone.cosine)
    cut, other_cut = slice(None), slice(None)
    if 2 * step == world.size:  # the two meet twice: the rows of the lower rank, half by half
        if world.rank < owner:
            cut = slice(0, len(x_nD) // 2)
        else:
            other_cut = slice(len(visitor_mD) // 2, None)
    met = pairs_across(
        x_nD[cut], visitor_mD[other_cut], threshold, engine=engine, device=device, limit=limit
    )
    one, two = met.a + own, met.b + (int(start[owner]) + (other_cut.start or 0))
    return BlockPairs(np.minimum(one, two), np.maximum(one, two), met.cosine)


def _passed_on(
    visitor_mD: npt.NDArray[np.floating], rows: int, world: World
) -> npt.NDArray[np.floating]:
    """Give the visiting rows to the next rank and take those of the one before."""
    shape, kind = (rows, visitor_mD.shape[1]), visitor_mD.dtype
    sent = _bytes(visitor_mD).to(world.device)
    got = torch.empty(rows * shape[1] * kind.itemsize, dtype=torch.uint8, device=world.device)
    after, before = (_global((world.rank + step) % world.size, world) for step in (1, -1))
    calls = []
    if len(sent):
        calls.append(dist.P2POp(dist.isend, sent, after, world.group))
    if len(got):
        calls.append(dist.P2POp(dist.irecv, got, before, world.group))
    for one in dist.batch_isend_irecv(calls) if calls else ():
        one.wait()
    taken: npt.NDArray[np.floating] = got.cpu().numpy().view(kind).reshape(shape)
    return taken


def _bytes(x_mD: npt.NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x_mD).reshape(-1).view(np.uint8).copy())


def _global(rank: int, world: World) -> int:
    return rank if world.group is None else dist.get_global_rank(world.group, rank)
