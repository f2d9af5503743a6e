"""Single images and identities' images in lock step, and P x K tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glint.errors import InputError, UsageError
from glint.pipelines import balance
from glint.shards.labels import LabelTable
from glint.stream.dual import Dual, Place
from glint.stream.loader import Stream
from glint.stream.order import Order


def labels(dataset):
    return LabelTable(0, np.arange(dataset.classes), dataset.classes, np.empty((0, 2), np.int64))


def dual(dataset, **options):
    return Dual(dataset, **{"labels": labels(dataset), "batch": 8, "seed": 3, **options})


def test_two_images_of_every_identity_beside_single_ones(small):
    both = dual(small)
    steps = list(both.batches(both.start()))
    assert len(steps) == both.steps_per_epoch == 6
    plain = Stream(small, labels=labels(small), batch=8, seed=3)
    for (single, grouped), want in zip(steps, plain.batches(0)):
        assert torch.equal(single.image, want.image) and torch.equal(single.label, want.label)
        label = grouped.label.reshape(8, 2)
        assert (label[:, 0] == label[:, 1]).all()
        assert (grouped.label.numpy() == small.label[grouped.row]).all()
        row = grouped.row.reshape(8, 2)
        several = np.bincount(small.label)[label[:, 0].numpy()] > 1
        assert (row[several, 0] != row[several, 1]).all()
    seen = torch.cat([g.label[::2] for _, g in steps])[:42].reshape(6, 7)
    assert all(sorted(cycle) == list(range(7)) for cycle in seen.tolist())
    assert len({tuple(cycle) for cycle in seen.tolist()}) > 1  # another order each cycle


@pytest.mark.parametrize("options", [{"workers": 2}, {"threads": 2}])
def test_workers_change_nothing(small, options):
    both, other = dual(small), dual(small, **options)
    for a, b in zip(both.batches(both.start(1)), other.batches(other.start(1)), strict=True):
        assert torch.equal(a[0].image, b[0].image) and torch.equal(a[1].image, b[1].image)
        assert torch.equal(a[1].flip, b[1].flip) and (a[1].row == b[1].row).all()


def rows(steps):
    return [np.concatenate([s[i].row for s in steps]) for i in range(2)]


def test_taken_up_under_another_world(small):
    both = dual(small, batch=12, identities=6)
    whole = list(both.batches(both.start(2)))
    place = both.place(both.start(2), 1)
    assert place == Place(2, 12, 2 * 4 * 12 + 12)
    ranks = [dual(small, batch=4, identities=2, rank=r, world=3) for r in range(3)]
    steps = [s for step in zip(*(r.batches(place) for r in ranks), strict=True) for s in step]
    for a, b in zip(rows(whole[1:]), rows(steps)):
        assert (a == b).all()
    assert ranks[0].place(place, 2) == both.place(both.start(2), 3)


def test_a_table_of_identities_is_honoured(small, tmp_path):
    path = tmp_path / "pk.parquet"
    result = balance.balance(small, balance.Options(each=3, least=4), path)
    count = np.bincount(small.label)
    kept = np.flatnonzero(count >= 4)
    assert result.epoch_samples == 3 * len(kept) and len(kept) > 0
    stream = Stream(
        small, labels=labels(small), batch=6, seed=1, order=Order(sampling=path), drop_last=False
    )
    made = list(stream.batches(0))
    label = torch.cat([b.label for b in made])[: 3 * len(kept)].reshape(-1, 3)
    assert sorted(label[:, 0].tolist()) == kept.tolist() and (label == label[:, :1]).all()
    assert stream.coverage(2).draws == 3 * len(kept)
    image_uniform = balance.balance(small, balance.Options(), tmp_path / "uniform.parquet")
    other = Stream(
        small, labels=labels(small), batch=6, order=Order(sampling=image_uniform.sampling)
    )
    assert other.sampling_digest != stream.sampling_digest


def test_what_does_not_fit_is_refused(small, tmp_path):
    path = tmp_path / "pk.parquet"
    balance.balance(small, balance.Options(each=3), path)
    with pytest.raises(UsageError, match="batch of 8 does not hold whole groups of 3"):
        Stream(small, labels=labels(small), batch=8, order=Order(sampling=path))
    with pytest.raises(UsageError, match="expected it alone"):
        balance.Options(each=2, power=0.5)
    with pytest.raises(UsageError, match="per-identity"):
        balance.Options(each=2, most=8.0)
    with pytest.raises(UsageError, match="per-identity"):
        balance.Options(each=-1)
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"each": b"2"}), path)
    with pytest.raises(InputError, match="expected draws of 0 or of '2' images") as caught:
        Stream(small, labels=labels(small), batch=6, order=Order(sampling=path))
    assert caught.value.code == "GL0305"
