from __future__ import annotations

import pytest

from glint.errors import UsageError
from glint.recipes.load import dump, load
from glint.train.recipe import Recipe

LEAST = """
[data]
path = "set"
[backbone]
name = "iresnet"
options = { layers = [1, 1, 1, 1], se = true, drop = 0.1, act = "prelu" }
[head]
margin = "cosface"
[optim]
lr = 0.1
[schedule]
epochs = 10
"""


def test_defaults() -> None:
    recipe = load(LEAST, Recipe)
    assert recipe.data.batch == 64
    assert recipe.head.rate == 1.0
    assert recipe.run.precision == "float32"
    options = recipe.backbone.options
    assert options == {"layers": [1, 1, 1, 1], "se": True, "drop": 0.1, "act": "prelu"}
    assert options["se"] is True


def test_arcface_has_a_margin_of_its_own() -> None:
    assert load(LEAST, Recipe).head.m == 0.4
    arcface = load(LEAST, Recipe, ["head.margin=arcface"])
    assert arcface.head.m == 0.5 and load(dump(arcface), Recipe) == arcface
    assert load(LEAST, Recipe, ["head.margin=arcface", "head.m=0.3"]).head.m == 0.3


def test_rates_by_epoch() -> None:
    recipe = load(LEAST, Recipe, ["head.rate=[[0, 0.1], [8, 1.0]]"])
    assert [recipe.head.rate_at(epoch) for epoch in (0, 7.99, 8, 9.5)] == [0.1, 0.1, 1.0, 1.0]
    assert recipe.head.options()["rate"] == 1.0  # what a plan counts
    assert load(dump(recipe), Recipe) == recipe
    assert load(LEAST, Recipe, ["head.rate=0.3"]).head.rate_at(5) == 0.3


def test_the_resolved_recipe_reads_back() -> None:
    recipe = load(LEAST, Recipe, ["head.margin=combined", "head.m2=0.5"])
    assert load(dump(recipe), Recipe) == recipe
    assert load(dump(load(LEAST, Recipe)), Recipe) == load(LEAST, Recipe)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["head.m2=0.5"], 'head.m2: only read with margin = "combined"; cosface reads m'),
        (["head.margin=combined"], 'head.margin: "combined" needs at least one of m1, m2, m3'),
        (
            ["head.margin=combined", "head.m3=0.2", "head.m=0.3"],
            'head.m: not read with margin = "combined", which has m1, m2, m3',
        ),
        (["head.hard=0.3"], "head.hard: head.hard and head.near are given together, or neither"),
        (["head.near=r"], "head.hard: head.hard and head.near are given together, or neither"),
        (
            ["head.hard=0.3", "head.near=r"],
            "head.hard: only read with a rate between 0 and 1, found 1.0",
        ),
        (["head.slots=5"], 'head.slots: not read with kind = "partial_fc"'),
        (
            ["head.kind=class_pool", "head.slots=5", "head.rate=0.1", "data.batch=12"],
            'head.rate: not read with kind = "class_pool"',
        ),
        (
            ["head.kind=class_pool", "run.ema=0.9", "data.batch=12"],
            'head.slots: kind = "class_pool" needs at least 1',
        ),
        (
            ["head.kind=class_pool", "head.slots=5", "data.batch=12"],
            'run.ema: head.kind = "class_pool" compares with the moving average of the net; '
            "0.99 or 0.999",
        ),
        (
            ["head.kind=class_pool", "head.slots=5", "run.ema=0.9"],
            'data.batch: head.kind = "class_pool" needs a multiple of 6',
        ),
        (
            ["head.kind=class_pool", "head.slots=5", "run.ema=0.9", "head.gallery=2"],
            'head.gallery: not read with kind = "class_pool"',
        ),
        (
            ["head.kind=class_queue", "head.slots=9", "run.ema=0.9", "head.gallery=2"],
            'data.batch: head.kind = "class_queue" with gallery = 2 needs a multiple of 3',
        ),
        (
            ["head.kind=class_queue", "head.slots=9", "run.ema=0.9", "data.block=64"],
            'data.block: not read with head.kind = "class_queue"',
        ),
        (
            ["head.kind=class_queue", "head.slots=9"],
            'run.ema: head.kind = "class_queue" compares with the moving average of the net; '
            "0.99 or 0.999",
        ),
        (["head.rate=1.5"], "head.rate: expected a number <= 1.0 or an array, found 1.5"),
        (["head.rate=[[1, 0.5]]"], "head.rate: stages must begin at epoch 0 and rise, found [1.0]"),
        (
            ["head.rate=[[0, 0.5], [0, 1]]"],
            "head.rate: stages must begin at epoch 0 and rise, found [0.0, 0.0]",
        ),
        (["head.rate=[]"], "head.rate: stages must begin at epoch 0 and rise, found []"),
        (
            ["head.rate=[[0, 2]]"],
            "head.rate: expected stages [epoch, share from 0 to 1], found [[0.0, 2.0]]",
        ),
        (
            ["head.rate=[[0, 0.1], [10, 1]]"],
            "head.rate: stages must begin before epoch 10, found [10.0]",
        ),
        (
            ["head.straight_through=true"],
            'head.straight_through: only read with margin = "arcface"',
        ),
        (
            ["schedule.warmup=10"],
            "schedule.warmup: must end before the run does: 10.0 of 10 epochs",
        ),
        (
            ["schedule.kind=step"],
            'schedule.milestones: kind = "step" needs at least one epoch at which the rate falls',
        ),
        (
            ["schedule.milestones=[3]"],
            'schedule.milestones: only read with kind = "step", found kind = "poly"',
        ),
        (
            ["schedule.kind=step", "schedule.milestones=[5, 3]"],
            "schedule.milestones: must rise, found [5.0, 3.0]",
        ),
        (
            ["schedule.kind=step", "schedule.milestones=[5, 12]"],
            "schedule.milestones: must lie inside the run of 10 epochs, found [12.0]",
        ),
        (
            ["optim.kind=adamw", "optim.nesterov=true"],
            'optim.nesterov: only for kind = "sgd", found kind = "adamw"',
        ),
        (["optim.nesterov=true", "optim.momentum=0"], "optim.nesterov: needs momentum > 0"),
        (["optim.lr=inf"], "optim.lr: expected a finite number, found inf"),
        (
            ["run.device=cpu", "run.precision=fp16"],
            'run.precision: fp16 needs device = "cuda"; on cpu use float32 or bf16',
        ),
        (["data.batch=0"], "data.batch: expected a number >= 1, found 0"),
        (["run.val=a.bin"], 'run.val: expected an array, found "a.bin"'),
    ],
)
def test_mistakes(overrides: list[str], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(LEAST, Recipe, overrides)
    assert caught.value.what.removesuffix(" (from --set)") == told


@pytest.mark.parametrize(
    ("rule", "kind", "good"),
    [
        ("adamw", "adamw", True),
        ("none", "adamw", True),
        ("none", "sgd", True),
        ("dense_exact", "sgd", True),
        ("adamw", "sgd", False),
        ("dense_exact", "adamw", False),
    ],
)
def test_the_centres_rule_goes_with_the_optimiser(rule, kind, good):
    change = [f"head.rule={rule}", f"optim.kind={kind}", "optim.nesterov=false"]
    if good:
        assert load(LEAST, Recipe, change).head.rule == rule
    else:
        with pytest.raises(UsageError, match=rf'"{rule}" does not go with optim.kind = "{kind}"'):
            load(LEAST, Recipe, change)


def test_bf16_heads_need_float32():
    with pytest.raises(UsageError, match="gemm and storage must be"):
        load(LEAST, Recipe, ["head.gemm=bf16", "run.precision=float64"])
