"""The index as mapped columns: the same as Parquet's, derived again whenever it does not fit."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glint.errors import InputError
from glint.shards.dataset import Dataset
from glint.stream import columns as module
from glint.stream.columns import key_of, open_columns


def same(a, b):
    return all(
        (getattr(a, f.name) == getattr(b, f.name)).all()
        and getattr(a, f.name).dtype == getattr(b, f.name).dtype
        for f in dataclasses.fields(a)
        if f.name != "own_n"  # none as they are on disk
    )


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_columns_are_those_of_the_index(small, limit):
    columns = open_columns(small, limit)
    record = columns.record
    assert (record["label"] == small.label).all() and (record["size"] == small.size).all()
    assert (record["block"].astype(np.int64) * 512 == small.offset).all()
    assert (record["digest"] == small.digests).all()
    assert (columns.shard_of(np.arange(small.n)) == small.shard).all()
    for label in range(small.classes):
        rows = columns.member[columns.first_L[label] : columns.first_L[label + 1]]
        assert (rows == small.rows_of(label)).all()
    assert all(key_of(small, row) == small.key[row] for row in (0, 31, 49))


def files(dataset):
    return sorted((dataset.root / "_glint").glob("columns-*.bin"))


def test_the_file_is_written_once_and_may_be_deleted(make):
    dataset = make([0, 1, 2, 1] * 8)
    first = open_columns(dataset, 0)
    written = files(dataset)
    assert len(written) == 1
    stamp = written[0].stat().st_mtime_ns
    assert same(first, open_columns(dataset, 0)) and written[0].stat().st_mtime_ns == stamp
    assert not first.record.flags.writeable  # mapped
    written[0].unlink()
    assert same(first, open_columns(dataset, 0)) and files(dataset) == written


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: os.truncate(path, path.stat().st_size - 1),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"{}" + path.read_bytes()[2:]),
    ],
)
def test_a_file_that_is_not_whole_is_not_used(make, spoil):
    dataset = make([0, 1, 2, 1] * 8)
    want = open_columns(dataset, 0)
    kept = dataclasses.replace(
        want, **{f.name: getattr(want, f.name).copy() for f in dataclasses.fields(want)[:-1]}
    )
    spoil(files(dataset)[0])
    assert same(kept, open_columns(dataset, 0))


def rewrite(dataset, rows=None, **columns):
    path = dataset.root / "samples.parquet"
    table = pq.read_table(path).slice(0, rows)
    for name, value in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pa.array(value, table.schema.field(at).type))
    pq.write_table(table, path)
    return Dataset(dataset.root)


def test_another_index_has_another_file(make):
    dataset = make([0, 1] * 8)
    open_columns(dataset, 0)
    other = rewrite(dataset, label=[1, 0] * 8)
    assert (open_columns(other, 0).record["label"] == other.label).all()
    assert len(files(dataset)) == 2


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"label": [0, 9] * 8}, "labels run from 0 to 9, expected 0 to 1"),
        ({"shard": [0, 1] * 8}, "not stand in the order of their shards"),
        ({"shard": [-1] * 16}, "not stand in the order of their shards"),
        ({"shard": [7] * 16}, "a shard that the manifest lacks"),
        ({"offset": [513] * 16}, "not a multiple of 512"),
        ({"size": [-1] * 16}, "a size is negative"),
    ],
)
def test_an_index_that_cannot_be_is_refused(make, change, text):
    dataset = rewrite(make([0, 1] * 8), **change)
    with pytest.raises(InputError, match=text) as caught:
        open_columns(dataset)
    assert caught.value.code == "GL0301" and "samples.parquet" in caught.value.where


def test_an_index_of_another_length_is_refused(make):
    dataset = make([0, 1] * 8)
    with pytest.raises(InputError, match="the manifest says 16 samples, found 15"):
        open_columns(rewrite(dataset, 15))
    dataset.n = 14
    with pytest.raises(InputError, match="the manifest says 14 samples, found more"):
        open_columns(dataset)


def test_a_damaged_index_is_refused(make):
    dataset = make([0, 1] * 8)
    path = dataset.root / "samples.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="damaged") as caught:
        open_columns(dataset)
    assert caught.value.code == "GL0301"


def test_a_folder_that_cannot_be_written_costs_memory_only(make, monkeypatch, caplog):
    dataset = make([0, 1] * 8)
    (dataset.root / "_glint").write_text("in the way")
    want = open_columns(dataset)
    assert same(want, open_columns(dataset, 0))


def test_another_rank_at_work_is_no_obstacle(make):
    dataset = make([0, 1] * 8)
    path = dataset.root / "_glint" / f"columns-{module.fingerprint(dataset)}.bin"
    path.parent.mkdir()
    with module.atomic.lock(path.with_suffix(".lock")):
        assert same(open_columns(dataset), open_columns(dataset, 0))


def test_rows_of_other_labels(make):
    rng = np.random.default_rng(3)
    label = rng.integers(0, 7, 200)
    columns = open_columns(make(label.tolist()))
    row = np.sort(rng.choice(200, 90, replace=False))
    own = rng.integers(-1, 7, 90)
    after = label.copy()
    after[row] = own
    found = columns.relabelled(row, own)
    assert found.label.tolist() == after.tolist() and columns.label.tolist() == label.tolist()
    for one in range(7):
        mine = found.member[found.first_L[one] : found.first_L[one + 1]]
        assert mine.tolist() == np.flatnonzero(after == one).tolist()
    assert sorted(found.member.tolist()) == list(range(200))
    assert found.member.dtype == columns.member.dtype and found.first_L.dtype == np.int64
    none = columns.relabelled(np.empty(0, np.int64), np.empty(0, np.int64))
    assert none is columns


def test_a_bit_that_turned_is_found_and_the_file_made_again(make, caplog):
    """Wherever in the file it is: a label, a digest, a row of an identity, the head."""
    dataset = make([0, 1, 2, 1] * 8)
    want = open_columns(dataset, 0)
    path = files(dataset)[0]
    raw = path.read_bytes()
    held = {f.name: getattr(want, f.name) for f in dataclasses.fields(want)}
    kept = {name: array.copy() for name, array in held.items() if array is not None}
    head = raw[: module._PAGE].rstrip(b"\0")
    places = [*range(0, len(head), 7)]
    for at, count in json.loads(head)["columns"].values():
        places += [at, at + 5, at + count]
    logging.getLogger("glint").propagate = True
    for place in places:
        spoilt = bytearray(raw)
        spoilt[place] ^= 1
        path.write_bytes(spoilt)
        caplog.clear()
        assert same(dataclasses.replace(want, **kept), open_columns(dataset, 0)), place
        assert "is damaged and is made again" in caplog.text
        assert path.read_bytes() == raw


def test_zeroed_rows_are_found(make):
    dataset = make([0, 1, 2, 1] * 8)
    want = open_columns(dataset, 0).member.copy()
    path = files(dataset)[0]
    raw = bytearray(path.read_bytes())
    at, count = json.loads(raw[: module._PAGE].rstrip(b"\0"))["columns"]["member"]
    raw[at : at + 4 * count] = bytes(4 * count)
    path.write_bytes(raw)
    assert (open_columns(dataset, 0).member == want).all()


def test_a_linked_private_folder_costs_only_memory(make, tmp_path_factory):
    dataset, other = make([0, 1, 2, 1] * 8), tmp_path_factory.mktemp("other")
    shutil.rmtree(dataset.root / "_glint", ignore_errors=True)
    (dataset.root / "_glint").symlink_to(other)
    assert (open_columns(dataset, 0).record["label"] == dataset.label).all()
    assert list(other.iterdir()) == []
