from __future__ import annotations

import pytest
import torch

from glint.dist.collectives import all_gather_rows, all_reduce_, barrier, reduce_scatter_rows
from glint.dist.world import World


@pytest.mark.parametrize("counts", [[3], [2, 2], [1, 3, 2], [0, 2, 1], [4, 0]])
def test_gather_and_scatter_uneven_rows(ranks, counts):
    total = sum(counts)
    whole = torch.arange(total * 2, dtype=torch.float64).reshape(total, 2)

    def work(world):
        barrier(world)
        first = sum(counts[: world.rank])
        mine = whole[first : first + counts[world.rank]]
        gathered = all_gather_rows(mine, world, counts)
        return gathered, reduce_scatter_rows(whole * (world.rank + 1), world, counts)

    results = ranks(len(counts), work)
    assert all(torch.equal(gathered, whole) for gathered, _ in results)
    factor = sum(range(1, len(counts) + 1))
    assert torch.equal(torch.cat([part for _, part in results]), whole * factor)


def test_even_rows_need_no_counts(ranks):
    def work(world):
        x = torch.full((2, 3), world.rank, dtype=torch.int64)
        return all_gather_rows(x, world), reduce_scatter_rows(torch.ones(4, 1), world)

    for gathered, part in ranks(2, work):
        assert gathered[:, 0].tolist() == [0, 0, 1, 1]
        assert part.tolist() == [[2.0], [2.0]]


@pytest.mark.parametrize(("op", "expected"), [("sum", 6.0), ("max", 3.0), ("min", 1.0)])
def test_all_reduce(ranks, op, expected):
    results = ranks(3, lambda world: all_reduce_(torch.tensor([world.rank + 1.0]), world, op))
    assert [float(x) for x in results] == [expected] * 3


def test_alone_everything_is_the_identity():
    x = torch.randn(3, 2)
    assert all_gather_rows(x, World()) is x
    assert reduce_scatter_rows(x, World()) is x
    assert all_reduce_(x, World()) is x


def test_counts_that_do_not_fit(ranks):
    with pytest.raises(ValueError, match="do not say 2 for rank 0"):
        all_gather_rows(torch.ones(2, 1), World(0, 2), [1, 1])
    with pytest.raises(ValueError, match="do not add up to 3"):
        reduce_scatter_rows(torch.ones(3, 1), World(0, 2))


def test_an_error_of_one_rank_reaches_the_test(ranks):
    def work(world):
        if world.rank == 1:
            raise KeyError("rank 1 fails")
        return all_gather_rows(torch.ones(1), world)

    with pytest.raises(KeyError, match="rank 1 fails"):
        ranks(3, work)
