"""A head's table through torch.distributed.checkpoint, from three ranks to two and to one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from glint.errors import MismatchError
from glint.nn.heads.options import PartialFCOptions
from glint.nn.heads.partial_fc import PartialFC
from glint.nn.margins import CosFace

C, D, N = 4, 6, 12  # of three ranks the last one has no rows

LOOP = """
import torch
from glint.nn.heads.options import PartialFCOptions
from glint.nn.heads.partial_fc import PartialFC
from glint.nn.margins import CosFace
C, D, N = 4, 6, 12

def make(rule):
    options = PartialFCOptions(rate=0.5, rule=rule, scale=16.0)
    return PartialFC(C, D, options, margin=CosFace(0.2), dtype=torch.float64)

def go(head, first, last, rank=0, size=1):
    losses = []
    optimizer = head.optimizer(lr=0.5)
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(N, D, generator=generator, dtype=torch.float64)
        y = torch.randint(0, C, (N,), generator=generator)
        mine = slice(rank * N // size, (rank + 1) * N // size)
        loss = head(x[mine].requires_grad_(), y[mine])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
"""

RANK = """
import json, sys
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
rank, size, place, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=size)
found = {}
for rule in ("v1_stale", "dense_exact"):
    head = make(rule)
    if size == 3:
        go(head, 0, 4, rank, size)
        dcp.save({"head": head.sharded()}, checkpoint_id=f"{folder}/{rule}")
    else:
        dcp.load({"head": head.sharded()}, checkpoint_id=f"{folder}/{rule}")
    found[rule] = go(head, 4, 8, rank, size)
state = make("none").state_dict()
if size == 3:
    dcp.save(state, checkpoint_id=f"{folder}/plain")
    try:
        dcp.load(state, checkpoint_id=f"{folder}/plain")
        make("none").load_state_dict(state)
    except BaseException as error:  # DCP's own is no Exception
        found["plain"] = str(error)
print(json.dumps(found))
"""


def ranks(size: int, folder: Path) -> list[dict[str, list[float]]]:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", LOOP + RANK, str(rank), str(size), f"{folder}.{size}", folder],
            stdout=subprocess.PIPE,
        )
        for rank in range(size)
    ]
    return [json.loads(one.communicate(timeout=100)[0]) for one in started]


@pytest.mark.slow
def test_it_goes_on_at_another_world_size(tmp_path: Path) -> None:
    here: dict[str, object] = {}
    exec(LOOP, here)
    whole = here["make"], here["go"]
    saved = ranks(3, tmp_path / "state")
    loaded = ranks(2, tmp_path / "state")
    for rule in ("v1_stale", "dense_exact"):
        make, go = whole
        head = make(rule)  # type: ignore[operator]
        go(head, 0, 4)  # type: ignore[operator]
        head.state_dict()  # brings rows up to date, as a save does
        truth = go(head, 4, 8)  # type: ignore[operator]
        for found in saved + loaded:
            assert found[rule] == pytest.approx(truth, rel=1e-12)
        alone = make(rule)  # type: ignore[operator]
        dcp.load({"head": alone.sharded()}, checkpoint_id=tmp_path / "state" / rule)
        assert alone.steps == 4
        assert go(alone, 4, 8) == pytest.approx(truth, rel=1e-12)  # type: ignore[operator]
    # DCP takes plain tensors for copies of one another: nobody goes on with another's rows
    assert all("Size mismatch" in str(one["plain"]) for one in saved)


def test_another_table_is_refused(tmp_path: Path) -> None:
    def head(classes: int) -> PartialFC:
        return PartialFC(classes, D, PartialFCOptions(), margin=CosFace(0.2))

    state = head(C).sharded().state_dict()
    assert isinstance(state["weight"], torch.Tensor)
    with pytest.raises(MismatchError, match="expected 5 classes of 6 numbers, found 4 of 6"):
        head(C + 1).sharded().load_state_dict(state)
