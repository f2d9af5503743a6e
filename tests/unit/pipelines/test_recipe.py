from __future__ import annotations

import pytest

from glint.errors import UsageError
from glint.pipelines.recipe import Recipe, commands
from glint.recipes.load import load

FULL = """
[shard]
source = "src"
out = "set"
samples_per_shard = 500
seed = 3
[embed]
model = "m.onnx"
out = "emb"
[conflicts]
out = "con"
threshold = 0.6
[balance]
cap = 100
min = 2
power = 0.5
"""


def test_every_stage() -> None:
    road = [" ".join(one) for one in commands(load(FULL, Recipe))]
    assert road == [
        "glint shard src set --samples-per-shard 500 --seed 3",
        "glint embed set --model m.onnx --out emb",
        "glint dedup-conflicts set --embeddings emb --out con --threshold 0.6",
        "glint balance set --cap 100 --min 2 --power 0.5",
    ]


def test_a_stage_left_out_is_not_walked() -> None:
    road = commands(load('[shard]\nsource = "a b"\nout = "set"\n', Recipe))
    assert road == [["glint", "shard", "a b", "set"]]


def test_apply_only_on_request() -> None:
    road = commands(load(FULL, Recipe, ["conflicts.apply=true"]))
    assert road[3] == ["glint", "dedup-conflicts", "apply", "con"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("embed.out=set", "embed.out: is the same folder as shard.out: set"),
        ("conflicts.out=emb", "conflicts.out: is the same folder as embed.out: emb"),
        ("balance.min=200", "balance.min: must not exceed cap = 100, found 200"),
        ("conflicts.threshold=2", "conflicts.threshold: expected a number <= 1.0, found 2"),
        ("shard.source=", 'shard.source: expected text that is not empty, found ""'),
    ],
)
def test_mistakes(override: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(FULL, Recipe, [override])
    assert caught.value.what.removesuffix(" (from --set)") == told


def test_conflicts_need_embeddings() -> None:
    text = '[shard]\nsource = "a"\nout = "b"\n[conflicts]\nout = "c"\n'
    with pytest.raises(UsageError, match="conflicts: needs the embeddings"):
        load(text, Recipe)
