"""Shards read in long reads: the same batches, few reads, bounded memory."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from glint.errors import InputError
from glint.shards.labels import LabelTable
from glint.stream.columns import open_columns
from glint.stream.files import HELD, Shards, Window
from glint.stream.loader import Stream
from glint.stream.order import Order
from glint.stream.plan import WINDOW, Plan


def stream(dataset, **options):
    table = LabelTable(0, np.arange(dataset.classes), dataset.classes, np.empty((0, 2), np.int64))
    return Stream(dataset, **{"labels": table, "batch": 7, "seed": 2, **options})


def test_a_window_holds_the_stored_bytes(small):
    shards = Shards(small, open_columns(small))
    window = Window(shards, np.array([3, 4, 5, 17, 18, 40, 4]))
    assert window.reads == 3
    for row in (3, 4, 5, 17, 18, 40):
        assert bytes(window[row]) == small.read(row)
    whole = Window(shards, np.arange(50))
    assert whole.reads == len(small.shards)
    size = sum(small.shard_path(s).stat().st_size for s in range(len(small.shards)))
    assert whole.bytes < size


@pytest.mark.parametrize("block", [1, 2, 3, 16, 200])
@pytest.mark.parametrize(
    "options", [{}, {"workers": 2}, {"threads": 3}, {"workers": 2, "threads": 2}]
)
def test_batches_hold_the_images_of_their_rows(small, block, options):
    made = list(stream(small, order=Order(block=block), drop_last=False, **options).batches(3))
    rows = np.concatenate([b.row for b in made])
    assert sorted(rows[:50].tolist()) == list(range(50)) and made[-1].repeats == 6
    plain = {
        int(r): image
        for b in stream(small, drop_last=False).batches(0)
        for r, image in zip(b.row, b.image)
    }
    assert all(torch.equal(image, plain[int(r)]) for b in made for r, image in zip(b.row, b.image))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_resumed_anywhere_under_any_world(make, world):
    dataset = make([0, 1, 2] * 60)
    whole = stream(dataset, order=Order(block=1), batch=1, drop_last=False)  # 180 rows: 3 windows
    want = np.concatenate([b.row for b in whole.batches(1)])
    origin = 61
    ranks = [
        stream(dataset, order=Order(block=1), batch=4, rank=r, world=world, drop_last=False)
        for r in range(world)
    ]
    steps = zip(*(r.batches(1, origin=origin) for r in ranks))
    got = np.concatenate([b.row for step in steps for b in step])
    assert (got[:119] == want[61:]).all()


def test_windows_are_runs_of_positions_that_hold_whole_blocks():
    for n, block, window in ((1000, 7, 5), (50, 8, 3), (64, 8, 4), (9, 20, 2)):
        plan = Plan(n, 3, None, block, window)
        for epoch in range(4):
            stop, rows = 0, plan.rows(epoch, 0, n)
            while stop < n:
                start, stop = plan.window_at(epoch, stop)
                assert all(plan.window_at(epoch, p) == (start, stop) for p in range(start, stop))
                blocks = {r // block for r in rows[start:stop].tolist()}
                held = sum(min(n, (b + 1) * block) - b * block for b in blocks)
                assert len(blocks) <= window and held == stop - start
            assert stop == n


def test_memory_is_bounded_and_said(make, caplog):
    dataset = make([0, 1] * 100)
    with caplog.at_level(logging.INFO, logger="glint"):
        made = stream(dataset, order=Order(block=1))
    assert "windows of 64 samples" in caplog.text and "MiB of stored bytes" in caplog.text
    held = 0
    for _ in made.batches(0):
        windows = made._windows.held
        assert len(windows) <= HELD
        held = max(held, sum(w.bytes for w in windows.values()))
    assert held > 0
    assert made.window_bytes >= HELD * WINDOW * 0.9 * dataset.size.mean()
    assert stream(dataset).window_bytes == 0


@pytest.mark.parametrize("options", [{}, {"workers": 2}])
def test_damage_is_named_as_without_windows(make, options):
    dataset = make([0, 1] * 20)
    path = dataset.shard_path(1)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(InputError, match=r"train-000001\.tar key 0000000..") as caught:
        list(stream(dataset, order=Order(block=4), **options).batches(0))
    assert caught.value.code == "GL0303"
    dataset.shard_path(2).unlink()
    with pytest.raises(InputError) as caught:
        list(stream(dataset, order=Order(block=4), **options).batches(0))
    assert caught.value.code in ("GL0302", "GL0303")


def test_stored_bytes_in_the_same_order(small):
    made = stream(small)
    for batch, (data, label, row) in zip(made.batches(1), made.stored(1)):
        assert (batch.row == row).all() and torch.equal(batch.label, label)
        assert data == [small.read(int(r)) for r in row]
