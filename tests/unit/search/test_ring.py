"""Rows on several ranks: the pairs of one process, whatever the ranks hold."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from glint.dist.launch import run_ranks
from glint.search import pairs, ring
from tests.unit.search.test_pairs import brute, cloud

PROGRAM = """
import sys
import numpy as np
import torch
import torch.distributed as dist
from glint.dist.world import join, leave
from glint.errors import ResourceError, UsageError
from glint.search.ring import pairs_in_ring

torch.set_num_threads(1)
folder, world = sys.argv[1], join()
x, cuts = np.load(folder + "/x.npy"), np.load(folder + "/cuts.npy")
mine = x[cuts[world.rank] : cuts[world.rank + 1]]
for engine in ("auto", "torch"):
    got = pairs_in_ring(mine, 0.4, group=world, engine=engine)
    np.savez(f"{folder}/{engine}-{world.rank}.npz", a=got.a, b=got.b, cosine=got.cosine,
             excluded=got.excluded)
for error, rows, options in (
    (UsageError, mine[:, : 33 - (world.rank == 1)], {}),
    (ResourceError, mine, {"limit": 50}),
):
    try:
        pairs_in_ring(rows, 0.4, group=world, **options)
    except error:
        continue
    raise SystemExit("no error")
leave(world)
"""


FOUR = pytest.param([0, 90, 251, 252, 400], marks=pytest.mark.slow)


@pytest.mark.parametrize("cuts", [[0, 170, 400], [0, 150, 150, 400], FOUR])
def test_ranks_of_gloo(tmp_path: Path, cuts: list[int]) -> None:
    """Two, three and four, one of them without rows; every rank has all pairs."""
    x_ND = cloud(400, 33, 0).astype(np.float32)
    x_ND[3], x_ND[200] = np.nan, 0
    np.save(tmp_path / "x.npy", x_ND)
    np.save(tmp_path / "cuts.npy", cuts)
    root = str(Path(ring.__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    world = len(cuts) - 1
    assert run_ranks([sys.executable, "-c", PROGRAM, str(tmp_path)], world, env) == 0
    good = np.flatnonzero(pairs.usable(x_ND))
    a, b, cosine = brute(x_ND[good], 0.4)
    assert len(a) > 100
    for engine in ("auto", "torch"):
        for rank in range(world):
            got = np.load(tmp_path / f"{engine}-{rank}.npz")
            np.testing.assert_array_equal(got["a"], good[a])
            np.testing.assert_array_equal(got["b"], good[b])
            np.testing.assert_array_equal(got["cosine"], cosine)
            assert got["excluded"] == 2


def test_one_rank_is_a_plain_search() -> None:
    x_ND = cloud(100, 33, 0)
    got, want = ring.pairs_in_ring(x_ND, 0.4), pairs.pairs_above(x_ND, 0.4)
    np.testing.assert_array_equal(got.a, want.a)
    np.testing.assert_array_equal(got.cosine, want.cosine)
