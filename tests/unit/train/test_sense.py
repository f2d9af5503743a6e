"""What cannot be learnt from stops a run before it starts, and is let pass by its name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from glint.errors import UsageError
from glint.evals.packs import Pairs
from glint.recipes import shelf
from glint.recipes.load import load
from glint.shards.embeddings import nonsense
from glint.train import dry, sense
from glint.train.recipe import Recipe


def recipe(*change: str) -> Recipe:
    return load(shelf.find("train", "synth_tiny"), Recipe, list(change))


def check(counts: list[int], *change: str, packs: dict[str, Pairs] | None = None) -> None:
    table = pa.table({"count": counts})
    dataset: Any = SimpleNamespace(identities=lambda: table)
    labels: Any = SimpleNamespace(target=np.arange(len(counts)), classes=len(counts))
    sense.check(recipe(*change), dataset, labels, packs or {})


@pytest.mark.parametrize(
    ("counts", "name", "said"),
    [
        ([18], "one-identity", "all 18 images are of one identity"),
        ([0, 18, 0], "one-identity", "all 18 images are of one identity"),
        ([1] * 9, "image-labels", "as many identities as images (9)"),
        ([95, 3, 2], "one-large", "95 % of 100 images are of one identity"),
    ],
)
def test_labels_that_say_nothing(counts: list[int], name: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(counts)
    assert said in caught.value.what and f"--allow {name}" in caught.value.hint
    check(counts, f'run.allow=["{name}"]')


@pytest.mark.parametrize("counts", [[2, 1], [5, 5, 5], [10, 3], [30, 3, 3], [1, 1, 1, 2]])
def test_sound_labels_are_let_pass(counts: list[int]) -> None:
    check(counts)


def test_pairs_that_say_nothing() -> None:
    packs = {"lfw": Pairs([b"a", b"b", b"c", b"d"], np.array([True, True]))}
    with pytest.raises(UsageError, match=r"run\.val lfw: all 2 pairs are of one person"):
        check([5, 5], packs=packs)
    check([5, 5], 'run.allow=["pairs"]', packs=packs)


def test_a_loss_of_nothing() -> None:
    sense.first_loss(recipe(), 3.0)
    with pytest.raises(UsageError, match="the loss of the first step is 0"):
        sense.first_loss(recipe(), 0.0)
    sense.first_loss(recipe('run.allow=["zero-loss"]'), 0.0)
    sense.first_loss(load(shelf.find("train", "synth_tiny_attfc"), Recipe), 0.0)  # no negatives yet
    sense.first_loss(recipe("run.finetune=RUN"), 0.0)


def test_a_batch_of_one_is_told_before_the_start() -> None:
    for change in (("data.batch=1",), ("data.batch=1", "run.accumulate=4")):
        with pytest.raises(UsageError, match="batch norm, and a rank passes 1 image") as caught:
            sense.require_step(recipe(*change))
        assert caught.value.code == "GL0002" and "data.batch=2" in caught.value.hint
        with pytest.raises(UsageError, match="batch norm"):
            dry.run(recipe(*change), 10, 1)
    sense.require_step(recipe("data.batch=2"))


def test_an_embedding_that_is_the_same_for_all() -> None:
    rng = np.random.default_rng(0)
    row_nD = rng.normal(size=(300, 16))
    row_nD /= np.linalg.norm(row_nD, axis=1, keepdims=True)
    assert nonsense(row_nD) == ""
    row_nD[::7] = np.nan
    assert nonsense(row_nD) == ""
    same_nD = np.eye(16)[:1] + 0.01 * row_nD
    same_nD /= np.linalg.norm(same_nD, axis=1, keepdims=True)
    assert "the model says the same of all" in nonsense(same_nD)
