"""Planted outliers, second people and repeats of a small dataset, in tables and on the page."""

from __future__ import annotations

import base64
import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg

from glint import schemas
from glint.conflicts import decisions
from glint.conflicts.verdicts import ConflictOptions
from glint.errors import InputError, MismatchError
from glint.pipelines import embed
from glint.pipelines.conflicts import apply, find
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.shards.embeddings import Embeddings, load

COUNTS = [9, 10, 12] * 12
STRANGER = (4, 2)  # label 4 shows person 500 there
TAKEN = [(9, number) for number in range(5)]  # label 9 shows person 600 there
TWICE = ((12, 5), (20, 1))  # the same bytes
AGAIN = (15, 3)  # the picture of (15, 2) in fewer pixels' worth of bytes


@pytest.fixture
def dataset(make_dataset, picture_of) -> Dataset:
    shows = {STRANGER: picture_of(500, 0)}
    shows |= {place: picture_of(600, number) for number, place in enumerate(TAKEN)}
    shows |= {place: picture_of(12, 5) for place in TWICE}
    pixels = simplejpeg.decode_jpeg(picture_of(15, 2))
    shows[AGAIN] = simplejpeg.encode_jpeg(pixels, quality=70)
    names = ["<script>alert(1)</script>"] * len(COUNTS)
    return make_dataset(COUNTS, names, shows=shows)


@pytest.fixture
def emb(dataset: Dataset, blocks, tmp_path: Path) -> Embeddings:
    embed.embed(dataset, blocks, tmp_path / "emb")
    return load(tmp_path / "emb", dataset.digest, images=dataset.n, classes=dataset.classes)


def row_of(label: int, number: int) -> int:
    return sum(COUNTS[:label]) + number


def test_what_was_planted_is_found(dataset: Dataset, emb: Embeddings, tmp_path: Path) -> None:
    out = tmp_path / "conf"
    got = find.run(dataset, emb, out, ConflictOptions())
    told = json.loads((out / "conflicts.json").read_text())
    assert pq.read_schema(out / "inside.parquet").names == schemas.INSIDE.names
    rows = pq.read_table(out / "inside.parquet").to_pylist()
    far = {row["key"] for row in rows if row["kind"] == "outlier"}
    # the image of person 12 under label 20 is a stranger there too
    assert far == {dataset.key[row_of(*STRANGER)], dataset.key[row_of(*TWICE[1])]}
    [visitor] = [row for row in rows if row["key"] == dataset.key[row_of(*TWICE[1])]]
    assert (visitor["label"], visitor["towards"], visitor["side"]) == (20, 12, None)
    assert visitor["towards_cosine"] > 0.8 > 0.3 > visitor["cosine"]
    mixed = [row for row in rows if row["kind"] == "mixed"]
    assert {row["label"] for row in mixed} == {9}
    sides = {row["key"]: row["side"] for row in mixed}
    assert len(sides) == COUNTS[9]
    assert {key for key, side in sides.items() if side == sides[dataset.key[row_of(9, 0)]]} == {
        dataset.key[row_of(*place)] for place in TAKEN
    }
    assert all(row["towards"] is None and row["z"] > 4 for row in mixed)

    repeats = pq.read_table(out / "duplicates.parquet").to_pylist()
    exact = [row for row in repeats if row["kind"] == "exact"]
    assert [(row["label"], row["across"], row["bits"]) for row in exact] == [
        (12, True, 0), (20, True, 0)
    ]  # fmt: skip
    near = {row["key"]: row for row in repeats if row["kind"] == "near"}
    pair = [near[dataset.key[row_of(15, number)]] for number in (2, 3)]
    assert pair[0]["group"] == pair[1]["group"] > exact[0]["group"]
    assert pair[0]["cosine"] == pair[1]["cosine"] > 0.99
    assert not pair[0]["across"] and pair[0]["bits"] <= 4
    counts = told["counts"]
    assert (counts["outliers"], counts["mixed"]) == (2, 1) == (got.outliers, got.mixed)
    assert (counts["duplicates"], counts["duplicates_across"]) == (1, 1)
    assert counts["near_duplicates"] == len({row["group"] for row in near.values()}) >= 1
    assert counts["near_duplicates_across"] == 0
    assert told["files"].keys() == {
        "pairs.parquet", "groups.parquet", "inside.parquet", "duplicates.parquet"
    }  # fmt: skip

    page = (out / "report.html").read_text()
    assert "<script>alert(1)" not in page
    for tab in ("inside", "duplicates"):
        assert f'data-tab="{tab}"' in page and f'<section class="tab" id="{tab}" hidden>' in page
    assert 'id="overlap"' not in page
    assert base64.b64encode(dataset.read(row_of(*STRANGER))).decode() in page
    rows = [
        json.loads(unescape(one)) for one in re.findall(r'class="strip" data-rows="([^"]*)"', page)
    ]
    assert [row_of(*STRANGER)] in rows
    assert {row_of(9, number) for number in range(COUNTS[9])} <= {r for one in rows for r in one}
    assert "first set" in page and "set 1 of label" not in page


def test_what_is_suggested_is_applied_and_taken_back(
    dataset: Dataset, emb: Embeddings, tmp_path: Path
) -> None:
    """The stranger is left out, the image of person 12 under label 20 goes home; undo is exact."""
    out = tmp_path / "conf"
    find.run(dataset, emb, out, ConflictOptions())
    rows = pq.read_table(out / "inside.parquet").to_pylist()
    stranger, visitor = row_of(*STRANGER), row_of(*TWICE[1])
    assert {row["key"]: row["suggested"] for row in rows if row["kind"] == "outlier"} == {
        dataset.key[stranger]: "exclude", dataset.key[visitor]: "move"
    }  # fmt: skip
    got = apply.apply(out, flagged=True)
    assert (got.images_left_out, got.images_moved) == (1, 1)
    table = pq.read_table(dataset.root / "labels/v0001.images.parquet")
    assert dict(zip(*table.to_pydict().values())) == {stranger: -1, visitor: 12}
    assert apply.apply(out, flagged=True).already
    with pytest.raises(MismatchError, match="in force with other decisions"):
        apply.apply(out)
    apply.undo(out)
    assert labels.current(dataset.root, dataset.classes).version == 0

    line = {"schema": decisions.IMAGE_SCHEMA, "report": decisions.report_id(out), "by": "ann",
            "image": visitor, "action": "keep", "seq": 1}  # fmt: skip
    (out / "decisions.jsonl").write_text(json.dumps(line) + "\n")
    got = apply.apply(out, flagged=True)
    assert (got.images_left_out, got.images_moved) == (1, 0)
    table = pq.read_table(dataset.root / f"labels/v{got.version:04d}.images.parquet")
    assert table.to_pylist() == [{"row": stranger, "label": -1}]


def test_a_suggestion_that_is_none_is_refused(
    dataset: Dataset, emb: Embeddings, tmp_path: Path
) -> None:
    out = tmp_path / "conf"
    find.run(dataset, emb, out, ConflictOptions())
    table = pq.read_table(out / "inside.parquet")
    place = table.schema.get_field_index("suggested")
    for column, value in (("suggested", "erase"), ("key", "no-such-image")):
        place = table.schema.get_field_index(column)
        odd = table.set_column(place, column, [[value] * table.num_rows])
        pq.write_table(odd.cast(table.schema), out / "inside.parquet")
        with pytest.raises(InputError, match="expected an image of the dataset to move"):
            apply.apply(out, flagged=True)
    assert not (dataset.root / "labels/current.json").exists()


def test_repeats_stand_by_the_identities_that_share_them(dataset: Dataset, emb: Embeddings) -> None:
    """Many repeats under two labels are one exhibit, each image beside the one it repeats."""
    from glint.conflicts.evidence import Samples
    from glint.conflicts.outliers import Outliers
    from glint.pipelines.conflicts import exhibits, outliers
    from glint.shards import duplicates

    def shared(*pairs: tuple[tuple[int, int], tuple[int, int]]) -> duplicates.Equals:
        row = np.array([row_of(*place) for pair in pairs for place in pair], np.int64)
        group = np.repeat(np.arange(len(pairs)), 2)
        return duplicates.by_identity(row, group, dataset.label[row])

    none = np.empty(0)
    exact = shared(((4, 0), (4, 1)), ((20, 0), (12, 1)), ((9, 0), (15, 0)), ((12, 3), (20, 2)))
    repeats = outliers.Repeats(exact, shared(), none.astype(np.int64), none)
    far = Outliers(none.astype(np.int64), none, none, none, none.astype(bool))
    samples = Samples(emb.sample_ND, dataset.label, dataset.classes)
    faces = exhibits.Faces(dataset, emb, samples, dataset.label, True)
    inside = outliers.Inside(far, none.astype(np.int64), none, [], repeats)
    tab = exhibits.repeats_tab(faces, inside)
    found = [
        (one.pill, [(s.label, list(s.rows), s.to) for s in one.strips]) for one in tab.exhibits
    ]
    assert found == [
        ("same bytes, several labels", [(12, [row_of(12, 1), row_of(12, 3)], 20),
                                        (20, [row_of(20, 0), row_of(20, 2)], 12)]),
        ("same bytes, several labels", [(9, [row_of(9, 0)], 15), (15, [row_of(15, 0)], 9)]),
        ("same bytes, one label", [(4, [row_of(4, 0), row_of(4, 1)], -1)]),
    ]  # fmt: skip
    assert tab.exhibits[0].numbers == [("pictures", "2"), ("images", "4")]
    assert all(strip.flagged and len(strip.faces) == len(strip.rows)
               for one in tab.exhibits for strip in one.strips)  # fmt: skip


def test_what_is_dropped_is_not_told(dataset: Dataset, emb: Embeddings, tmp_path: Path) -> None:
    target = np.arange(len(COUNTS))
    for label in (9, 12):
        target[target > target[label]] -= 1
        target[label] = -1
    labels.apply(dataset.root, target, np.empty((0, 2), np.int64), {"stage": "test"})
    out = tmp_path / "conf"
    got = find.run(dataset, emb, out, ConflictOptions(), thumbs=False, near=False)
    assert (got.mixed, got.duplicates, got.near_duplicates) == (0, 0, 0)
    rows = pq.read_table(out / "inside.parquet").to_pylist()
    assert {row["label"] for row in rows} == {4, 20}
    assert 12 not in {row["towards"] for row in rows}
    assert "data:image" not in (out / "report.html").read_text()


def test_damaged_images_take_no_part(dataset: Dataset, emb: Embeddings, tmp_path: Path) -> None:
    shard = dataset.root / "data" / dataset.shards[0]
    raw = bytearray(shard.read_bytes())
    raw[int(dataset.offset[row_of(15, 2)]) + 100] ^= 0xFF
    shard.write_bytes(raw)
    find.run(Dataset(dataset.root), emb, tmp_path / "conf", ConflictOptions())
    repeats = pq.read_table(tmp_path / "conf/duplicates.parquet").to_pylist()
    assert dataset.key[row_of(15, 2)] not in {row["key"] for row in repeats}
