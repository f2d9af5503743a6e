"""What users of torch do with a head: it is right, or one clear error."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from glint.dist.world import World
from glint.errors import MismatchError, UsageError
from glint.nn.heads.options import PartialFCOptions
from glint.nn.heads.partial_fc import PartialFC
from glint.nn.margins import CosFace

C, D = 10, 6


def head(rule: str = "none", world: World | None = None, **given: object) -> PartialFC:
    options = PartialFCOptions(rate=0.5, rule=rule, scale=16.0)
    return PartialFC(C, D, options, margin=CosFace(0.2), world=world, dtype=torch.float64, **given)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    feature = torch.randn(4, D, generator=generator, dtype=torch.float64)
    return feature.requires_grad_(), torch.randint(0, C, (4,), generator=generator)


def go(model: PartialFC, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        loss = model(*batch(step))
        loss.backward()
        model.update(lr=0.5)
        losses.append(loss.item())
    return losses


RULES = ("none", "v1_stale", "lazy_decay", "dense_exact", "adamw")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "save"])
def test_a_copy_goes_on_as_the_head_would(rule: str, how: str) -> None:
    whole, parts = head(rule), head(rule)
    expected = go(whole, 0, 4)
    state = whole.state_dict()  # brings rows up to date, in both
    expected += go(whole, 4, 8)
    begun = go(parts, 0, 4)
    if how == "state_dict":
        file = io.BytesIO()
        torch.save(parts.state_dict(), file)
        file.seek(0)
        other = head(rule)
        other.load_state_dict(torch.load(file, weights_only=True))
    elif how == "deepcopy":
        parts.state_dict()
        other = copy.deepcopy(parts)
    else:
        parts.state_dict()
        file = io.BytesIO()
        torch.save(parts, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert {"weight", "place"} <= state.keys()
    assert begun + go(other, 4, 8) == expected
    assert torch.equal(other.weight, whole.weight)


def test_another_table_is_refused_by_what_it_is() -> None:
    state = head().state_dict()
    other = PartialFC(C + 1, D, margin=CosFace(0.2), dtype=torch.float64)
    with pytest.raises(MismatchError, match="rows 0 to 11 of 11"):
        other.load_state_dict(state)
    half = head(world=World(0, 2))
    with pytest.raises(
        MismatchError, match="expected the rows 0 to 5 of 10 classes, found 0 to 10"
    ):
        half.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        head().load_state_dict({})


def test_a_forgotten_update_is_named() -> None:
    model = head()
    model(*batch(0)).backward()
    with torch.no_grad():
        model(*batch(1))  # looking costs nothing
    with pytest.raises(UsageError, match="gradients of 1 passes wait, and no update came"):
        model(*batch(1))
    model.drop()
    model(*batch(1)).backward()
    model.update(lr=0.1)
    model.passes = 2
    for step in (2, 3):
        model(*batch(step)).backward()
    model.update(lr=0.1, divide=2)


def test_to_moves_all_of_it_and_keeps_the_type() -> None:
    model = head("lazy_decay", masks=[[0, 1]], tally=True)
    model.half().float()
    assert model.weight.dtype == torch.float64 and model.last.dtype == torch.int32
    assert not list(model.parameters()) and not list(model.buffers())
    model.to("meta")
    assert model.tally is not None and model._pairs is not None
    places = {model.weight, model.momentum, model.last, model._pairs.label_d, model.tally.played_c}
    assert {one.device.type for one in places} == {"meta"} == {model.world.device.type}


@pytest.mark.parametrize("given", [{"lr": float("nan")}, {"lr": -0.1}, {"lr": 0.1, "divide": 0}])
def test_an_update_that_would_spoil_the_table_is_refused(given: dict[str, float]) -> None:
    model = head()
    model(*batch(0)).backward()
    with pytest.raises(UsageError, match="GL0002"):
        model.update(**given)
    model.update(lr=0.1)
    assert model.weight.isfinite().all() and model.steps == 1
    with pytest.raises(UsageError, match="rate is 5"):
        model(*batch(0), rate=5.0)


@pytest.mark.parametrize("what", ["masks", "ddp_mean", "rows", "step"])
def test_ranks_that_differ_in_anything_are_told(what: str, ranks: Any) -> None:
    def rank(world: World) -> str:
        number = world.rank
        given = {
            "masks": {"masks": [[0, 1 + number]]}, "ddp_mean": {"ddp_mean": bool(number)}
        }.get(what, {})  # fmt: skip
        model = head(world=world, **given)
        feature, label = batch(0)
        cut = slice(4 - number if what == "rows" else 4)
        with pytest.raises(MismatchError, match="GL0602"):
            model(feature[cut], label[cut], **({"step": number} if what == "step" else {}))
        return "told"

    assert ranks(2, rank) == ["told", "told"]


RANK = """
import json, sys
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from glint.nn.heads.options import PartialFCOptions
from glint.nn.heads.partial_fc import PartialFC
from glint.nn.margins import CosFace
rank, size, way, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]

def make(seed=0):
    options = PartialFCOptions(rate=0.5, rule="v1_stale", scale=16.0)
    return PartialFC(10, 6, options, margin=CosFace(0.2), seed=seed, dtype=torch.float64)

class Both(nn.Module):
    def __init__(self, net, head):
        super().__init__()
        self.net, self.head = net, head
    def forward(self, x, y):
        return self.head(self.net(x), y)

def loop(head, how):
    torch.manual_seed(0)
    net, losses = nn.Linear(6, 6).double(), []
    model = Both(net, head)
    if size > 1:
        model = DDP(model) if how == "inside" else Both(DDP(net), head)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    centres = head.optimizer(lr=0.1)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 6, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 10, (8,), generator=generator)
        mine = slice(rank * 8 // size, (rank + 1) * 8 // size)
        loss = model(x[mine], y[mine])
        loss.backward()
        sgd.step(); sgd.zero_grad()
        centres.step() if how == "inside" else head.update(lr=0.1)
        losses.append(loss.item())
    return losses

early = make() if way == "early" else None
if size > 1:
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=size)
try:
    if way == "right":
        found = [loop(make(), how) for how in ("outside", "inside")]
    else:
        found = loop(early or make(rank), "outside")
except Exception as error:
    found = str(error)
print(json.dumps(found))
"""


def world_of(size: int, way: str, place: Path) -> list[object]:
    """Run so many processes of a user's own loop; give what each printed."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(size), way, str(place / f"{way}{size}")],
            stdout=subprocess.PIPE,
        )
        for rank in range(size)
    ]
    return [json.loads(one.communicate(timeout=100)[0]) for one in started]


def test_in_a_loop_of_ones_own_on_two_ranks(tmp_path: Path) -> None:
    """Without `world=`, and inside what DDP wraps, ranks share one table: one rank's losses."""
    [alone] = world_of(1, "right", tmp_path)
    assert isinstance(alone, list) and len(alone[0]) == 5 and alone[0] == alone[1]
    for found in world_of(2, "right", tmp_path):
        assert isinstance(found, list), found
        for losses in found:
            assert losses == pytest.approx(alone[0], rel=1e-12)


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("early", "made before the process group: every rank would train a whole head"),
        ("seed", "ranks have other classes, options, margins, masks, seeds"),
    ],
)
def test_what_would_be_wrong_on_two_ranks_is_named(way: str, said: str, tmp_path: Path) -> None:
    assert all(said in str(one) for one in world_of(2, way, tmp_path))


def test_no_group_is_left() -> None:
    assert not dist.is_initialized()
