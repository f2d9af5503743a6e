"""Half of a made test stands in the training set: who is found, and the figures without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.errors import MismatchError
from glint.evals.sets import Look, look
from glint.models.recogniser import Recogniser
from glint.pipelines import embed
from glint.pipelines.bench.contamination import TrainedOn
from glint.pipelines.bench.run import Options, run
from glint.pipelines.dataset.shard import shard
from glint.shards.dataset import Dataset

OPTIONS = Options(flip=False, draws=50)
PLANTED = 30  # people of the test that are trained on, 10 of them with an image of the test


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, folk: Any, model: Recogniser) -> Any:
    root = tmp_path_factory.mktemp("made")
    folk.lfw(root / "test", range(60))
    for person in [*range(PLANTED), *range(200, 330)]:
        for number in range(11, 17):
            folk.write(root / "train" / f"T{person:03d}" / f"{number}.jpg", person, number)
    for person in range(10):
        folk.write(root / "train" / f"T{person:03d}" / "copy.jpg", person, 1)
    shard(root / "train", root / "data")
    embed.embed(Dataset(root / "data"), model, root / "emb", dtype="float32", workers=1)
    return root


def test_planted_people_are_found_and_the_figures_come_without_them(
    made: Path, model: Recogniser
) -> None:
    trained = TrainedOn(made / "data", made / "emb", [model.digest])
    found: Look = look(made / "test")
    (part,) = found.parts
    told = run(part, model, found, OPTIONS, known=trained.known).contamination
    assert told is not None
    people = trained.held[f"{part.path} {part.name}"]["people"]
    assert part.load is not None
    names = part.load().labels or []
    truth = np.array([int(name.split("/")[0][1:]) < PLANTED for name in names])
    assert (people & truth).sum() >= 0.95 * truth.sum()  # recall
    assert (people & truth).sum() >= 0.98 * people.sum()  # precision
    assert told["images_found"] == 10 and told["people_of_test"] == 60
    without = told["without_people"]
    assert without["pairs"] == 60  # the second of two folds of disjoint people
    assert told["without_images"]["pairs"] < 120 and 0.5 < without["accuracy"] <= 1


def test_embeddings_of_another_model_are_refused(made: Path) -> None:
    with pytest.raises(MismatchError, match="none of those named"):
        TrainedOn(made / "data", made / "emb", ["other"])
