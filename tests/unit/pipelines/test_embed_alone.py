"""Embeddings of images that nobody named: there are no centres, and every reader says so."""

from __future__ import annotations

import json

import numpy as np
import pytest

from glint.conflicts.verdicts import ConflictOptions
from glint.errors import InputError
from glint.pipelines import cluster, coreset
from glint.pipelines.conflicts import find
from glint.pipelines.embed import embed
from glint.search.graph_clusters import GraphRules
from glint.shards import embeddings, labels
from glint.shards.dataset import Dataset


class Pixels:
    """Colours of the blocks of a picture: of one person, about the same."""

    dim, size, name, digest = 147, 112, "pixels", "sha256:pixels"

    def embed(self, image_nHWC):
        small = image_nHWC.reshape(-1, 7, 16, 7, 16, 3).mean(axis=(2, 4))
        return small.reshape(len(small), -1) - 128


@pytest.fixture
def crawl(make_dataset, tmp_path):
    """60 images, each with a label of its own, of 60 people or, of the first 20, of ten."""
    dataset = make_dataset([1] * 60, same_as={2 * i + 1: 2 * i for i in range(10)})
    embed(dataset, Pixels(), tmp_path / "emb")
    return dataset, tmp_path / "emb"


def opened(dataset: Dataset, folder):
    return embeddings.load(folder, dataset.digest, images=dataset.n, classes=dataset.classes)


def test_none_are_made_and_readers_say_so(crawl, tmp_path) -> None:
    dataset, folder = crawl
    about = json.loads((folder / "embeddings.json").read_text())
    assert about["centres"] is False and list(about["files"]) == ["samples.npy"]
    assert not (folder / "centres.npy").exists() and about["empty_classes"] == 0
    again = embed(dataset, Pixels(), folder)
    assert again.centres is False and again.images == 60
    emb = opened(dataset, folder)
    with pytest.raises(InputError, match=r"GL0402.*no centres: no identity has two images"):
        _ = emb.centre_CD
    now = labels.current(dataset.root, dataset.classes)
    assert emb.under(now, dataset.label).centres_CD is None
    with pytest.raises(InputError, match=r"GL0402.*no centres"):
        find.run(dataset, emb, tmp_path / "conflicts", ConflictOptions())
    chosen = coreset.run(dataset, emb, tmp_path / "core", coreset.Options(threshold=0.9))
    assert chosen.kept == 60
    rows = np.load(folder / "samples.npy")
    rows[0, 0] += 1
    np.save(folder / "samples.npy", rows)
    with pytest.raises(InputError, match=r"GL0402.*checksum"):
        opened(dataset, folder)


def test_labels_of_clusters_have_centres(crawl, tmp_path) -> None:
    """Of float64 means, at the first label of each identity."""
    dataset, folder = crawl
    cluster.run([folder], tmp_path / "ids", GraphRules(join=0.9, connect=0.9, edge=0.9))
    applied = cluster.apply(tmp_path / "ids", dataset.root, least=1)
    assert applied.classes == 50
    now = labels.current(dataset.root, dataset.classes)
    emb = opened(dataset, folder).under(now, dataset.label)
    row = np.load(folder / "samples.npy").astype(np.float64)
    person = now.sample_person(dataset.label)
    for label in range(60):
        mine = row[person == label]
        if not len(mine):
            assert np.isnan(emb.centre_CD[label]).all()
            continue
        mean = mine.sum(axis=0) / np.linalg.norm(mine.sum(axis=0))
        np.testing.assert_allclose(emb.centre_CD[label], mean, atol=2e-6)


def test_two_images_of_one_are_enough_for_centres(make_dataset, tmp_path) -> None:
    dataset = make_dataset([1] * 9 + [2])
    made = embed(dataset, Pixels(), tmp_path / "emb")
    assert made.centres and np.load(tmp_path / "emb/centres.npy").shape == (10, 147)


def test_alone() -> None:
    assert embeddings.alone(np.arange(5), 5)
    assert embeddings.alone(np.array([0, -1, 3, 2, 4]), 5)
    assert embeddings.alone(np.array([0, 3, 2]), 5)  # two labels whose images cannot be used
    assert not embeddings.alone(np.array([0, 1, 3, 3, 4]), 5)
    assert not embeddings.alone(np.array([0, 1, 1]), 2)
    assert not embeddings.alone(np.array([0]), 1)
