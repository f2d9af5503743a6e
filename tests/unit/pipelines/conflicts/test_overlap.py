"""People and images of another dataset, or of a test set, are told with where they stand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from glint import schemas
from glint.conflicts.verdicts import ConflictOptions
from glint.errors import MismatchError, UsageError
from glint.pipelines import embed
from glint.pipelines.conflicts import find, overlap
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.shards.embeddings import Embeddings, load

COUNTS = [4, 3, 5, 6] * 8
THERE = [3, 4, 2, 5, 3, 0]  # label 1 there is person 7 here, 3 is person 10


def embedded(dataset: Dataset, model, folder: Path) -> Embeddings:
    embed.embed(dataset, model, folder)
    return load(folder, dataset.digest, images=dataset.n, classes=dataset.classes)


@pytest.fixture
def here(make_dataset) -> Dataset:
    return make_dataset(COUNTS)


@pytest.fixture
def there(make_dataset, picture_of) -> Dataset:
    """A set of strangers but for two people; label 4 shows one image that label 20 here has."""
    people = {label: 900 + label for label in range(len(THERE))} | {1: 7, 3: 10}
    return make_dataset(THERE, folder="probes", same_as=people, shows={(4, 0): picture_of(20, 2)})


@pytest.fixture
def emb(here: Dataset, blocks, tmp_path: Path) -> Embeddings:
    return embedded(here, blocks, tmp_path / "emb")


def rows_of(folder: Path) -> dict[tuple[int, int], dict]:
    rows = pq.read_table(folder / "overlap.parquet").to_pylist()
    return {(row["label"], row["dataset_label"]): row for row in rows}


def test_people_and_images_in_both(
    here: Dataset, there: Dataset, emb: Embeddings, blocks, tmp_path: Path
) -> None:
    embedded(there, blocks, tmp_path / "emb2")
    out = tmp_path / "conf"
    others = overlap.opened([], [there.root], [tmp_path / "emb2"], emb)
    got = find.run(here, emb, out, ConflictOptions(), against=others)
    [told] = got.against
    assert (told["name"], told["test"], told["merge"], told["leaks"]) == ("probes", True, 2, 3)
    assert told["shared_images"] == 1
    assert json.loads((out / "conflicts.json").read_text())["against"] == [told]
    rows = rows_of(out)
    assert {pair for pair, row in rows.items() if row["verdict"] == "merge"} == {(7, 1), (10, 3)}
    assert {pair for pair, row in rows.items() if row["leak"]} == {(7, 1), (10, 3), (20, 4)}
    known = rows[10, 3]
    assert (known["dataset"], known["dataset_source_label"], known["test"]) == (
        "probes",
        "id3",
        True,
    )
    assert (known["n_a"], known["n_b"], known["shared"]) == (COUNTS[10], THERE[3], 0)
    assert known["score"] == pytest.approx(1, abs=0.15)
    image = rows[20, 4]
    assert (image["shared"], image["verdict"]) == (1, "mask")
    [shared] = pq.read_table(out / "shared.parquet").to_pylist()
    assert shared == {
        "digest": here.digests[int(here.rows_of(20)[2])].tobytes(),
        "dataset": "probes",
        "dataset_key": there.key[int(there.rows_of(4)[0])],
        "key": here.key[int(here.rows_of(20)[2])],
        "label": 20,
    }
    page = (out / "report.html").read_text()
    assert '<section class="tab" id="overlap" hidden>' in page
    assert "id3 in probes" in page and "3 identities here leak" in page
    assert pq.read_schema(out / "overlap.parquet").names == schemas.OVERLAP.names

    # Two ways of saying the same set of people, and no test set: no leak.
    plain = overlap.opened([there.root], [], [tmp_path / "emb2"], emb)
    got = find.run(here, emb, out, ConflictOptions(), against=plain, thumbs=False)
    assert got.against[0]["leaks"] == 0
    again = rows_of(out)
    assert again.keys() == rows.keys() and not any(row["leak"] for row in again.values())
    overlap.write(out, here, [])  # as a run without other datasets does
    assert not (out / "overlap.parquet").exists() and not (out / "shared.parquet").exists()


def test_who_is_dropped_takes_no_part(
    here: Dataset, there: Dataset, emb: Embeddings, blocks, tmp_path: Path
) -> None:
    embedded(there, blocks, tmp_path / "emb2")
    for dataset, label in ((here, 20), (there, 3)):
        target = np.arange(dataset.classes)
        target[label:] -= 1
        target[label] = -1
        labels.apply(dataset.root, target, np.empty((0, 2), np.int64), {"stage": "test"})
    others = overlap.opened([there.root], [], [tmp_path / "emb2"], emb)
    got = find.run(here, emb, tmp_path / "conf", ConflictOptions(), against=others, thumbs=False)
    assert (got.against[0]["merge"], got.against[0]["shared_images"]) == (1, 0)
    assert {(a, b) for a, b in rows_of(tmp_path / "conf") if a == 20 or b == 3} == set()


def test_embeddings_that_do_not_fit(
    here: Dataset, there: Dataset, emb: Embeddings, blocks, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"GL0002.*expected embeddings of .*found none among no f"):
        overlap.opened([there.root], [], [], emb)
    with pytest.raises(UsageError, match=r"GL0002.*no --against"):
        overlap.opened([], [], [tmp_path / "emb"], emb)
    blocks.digest = "sha256:other"
    embedded(there, blocks, tmp_path / "emb3")
    with pytest.raises(MismatchError, match=r"GL0402.*made with model sha256:other, expected"):
        overlap.opened([there.root], [], [tmp_path / "emb3"], emb)
    with pytest.raises(UsageError, match="found none among"):
        overlap.opened([there.root], [], [tmp_path / "emb"], emb)


def test_images_in_both_by_their_digests() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 3, (2, 60, 16), np.uint8)
    one[:, 1:], other[:, 1:] = 0, 0
    other = other[:25]
    expected = [(i, j) for i in range(60) for j in range(25) if (one[i] == other[j]).all()]
    assert sorted(map(tuple, overlap.shared(one, other).tolist())) == expected
    assert len(overlap.shared(one[:0], other)) == 0
