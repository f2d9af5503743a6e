"""Samples followed by other images of their identity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glint.errors import UsageError
from glint.pipelines import balance
from glint.shards.labels import LabelTable
from glint.stream.class_rows import ClassRows
from glint.stream.loader import Stream
from glint.stream.order import Order
from glint.stream.plan import Plan
from glint.stream.positives import PositivePlan


def labels(dataset):
    return LabelTable(0, np.arange(dataset.classes), dataset.classes, np.empty((0, 2), np.int64))


def stream(dataset, **options):
    return Stream(
        dataset,
        **{
            "labels": labels(dataset),
            "batch": 8,
            "seed": 3,
            "order": Order(positives=1),
            **options,
        },
    )


def test_samples_come_as_without_positives_each_with_its_own(small):
    plain = list(stream(small, order=Order(positives=0), batch=4).batches(1))
    made = list(stream(small).batches(1))
    assert len(made) == len(plain) > 5
    other = 0
    for pair, single in zip(made, plain):
        row, label = pair.row.reshape(4, 2), pair.label.reshape(4, 2)
        assert (row[:, 0] == single.row).all() and torch.equal(pair.image[0::2], single.image)
        assert (label[:, 0] == label[:, 1]).all() and (small.label[pair.row] == pair.label).all()
        other += int((row[:, 0] != row[:, 1]).sum())
    assert other > 0.6 * 4 * len(made)


@pytest.mark.parametrize("options", [{"workers": 2}, {"threads": 2}])
def test_workers_change_nothing(small, options):
    for a, b in zip(stream(small).batches(0), stream(small, **options).batches(0), strict=True):
        assert torch.equal(a.image, b.image) and torch.equal(a.flip, b.flip)
        assert (a.row == b.row).all()


def test_taken_up_under_another_world(small):
    whole = [b.row for b in stream(small, batch=12, order=Order(positives=2)).batches(2)]
    ranks = [stream(small, batch=6, order=Order(positives=2), rank=r, world=2) for r in range(2)]
    parts = [[b.row for b in rank.batches(2, start_step=1)] for rank in ranks]
    assert (np.concatenate(whole[1:]) == np.concatenate(np.concatenate(parts, 1))).all()


def test_positives_are_uniform_and_of_the_class_in_force():
    label = np.repeat(np.arange(4), [1, 2, 3, 5])
    target = np.array([1, 0, 0, 2])  # labels 1 and 2 are one person
    first = np.concatenate([[0], np.cumsum(np.bincount(label))])
    members = ClassRows(np.arange(len(label), dtype=np.uint32), first, target, 3)
    plan = PositivePlan(Plan(len(label), 7), members, label, 2, 7)
    drawn = np.zeros((len(label), len(label)))
    for epoch in range(100):
        row = plan.rows_at(epoch, np.arange(plan.length)).reshape(-1, 3)
        assert sorted(row[:, 0]) == list(range(len(label)))
        for positive in (1, 2):
            np.add.at(drawn, (row[:, 0], row[:, positive]), 1)
    same = target[label][:, None] == target[label]
    share = drawn / drawn.sum(1, keepdims=True)
    assert (drawn[~same] == 0).all()
    want = same / same.sum(1, keepdims=True)
    assert (np.abs(share - want) <= 4.5 * np.sqrt(want * (1 - want) / 200)).all()
    with pytest.raises(UsageError, match="positives of a sample must be at least 1, found 0"):
        PositivePlan(Plan(len(label), 7), members, label, 0, 7)


def test_a_table_that_groups_as_many_does_without(small, tmp_path):
    made = tmp_path / "pk.parquet"
    balance.balance(small, balance.Options(each=2), made)
    table = stream(small, order=Order(sampling=made, positives=1))
    assert table.epoch_samples == 2 * 7  # every identity once: no sample by image
    label = next(iter(table.batches(0))).label.reshape(-1, 2)
    assert (label[:, 0] == label[:, 1]).all() and len(label[:, 0].unique()) == 4
    with pytest.raises(UsageError, match=r"GL0002.*puts 2 images .* each sample takes 2 more"):
        stream(small, order=Order(sampling=made, positives=2), batch=9)
    with pytest.raises(UsageError, match="batch of 8 does not hold whole groups of 3"):
        stream(small, order=Order(positives=2))
