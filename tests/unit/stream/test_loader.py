"""Batches: the same for every world, worker and thread count; every fault by its name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch

from glint import schemas
from glint.errors import InputError, LostError, UsageError
from glint.shards.labels import LabelTable
from glint.stream.loader import Batch, Images, Stream
from glint.stream.order import Order
from glint.stream.workers import Workers


def identity_table(classes, target=None):
    target = np.arange(classes) if target is None else np.asarray(target)
    return LabelTable(0, target.astype(np.int64), int(target.max()) + 1, np.empty((0, 2), np.int64))


def stream(dataset, **options):
    options = {"batch": 8, "seed": 3, "labels": identity_table(dataset.classes), **options}
    return Stream(dataset, **options)


def same(a: Batch, b: Batch) -> bool:
    return (
        torch.equal(a.image, b.image)
        and torch.equal(a.label, b.label)
        and torch.equal(a.flip, b.flip)
        and (a.row == b.row).all()
        and (a.position == b.position).all()
        and (a.epoch, a.step, a.repeats) == (b.epoch, b.step, b.repeats)
    )


def join(batches):
    return [
        torch.cat([b.image for b in batches]),
        torch.cat([b.label for b in batches]),
        torch.from_numpy(np.concatenate([b.row for b in batches])),
    ]


def sampling(path, label, count, draws, **names):
    columns = {
        "label": label,
        "count": count,
        "weight": [1.0] * len(label),
        "repeat": [1.0] * len(label),
        "draws": np.asarray(draws, dtype=float),
    }
    schema = schemas.SAMPLING.with_metadata({k: str(v) for k, v in names.items()} or None)
    pq.write_table(pa.table(columns, schema=schema), path)
    return path


def test_batches_hold_the_decoded_images_of_their_rows(small):
    made = list(stream(small).batches(0))
    assert len(made) == stream(small).steps_per_epoch == 6
    flipped = 0
    for batch in made:
        assert batch.image.shape == (8, 112, 112, 3) and batch.image.dtype == torch.uint8
        assert batch.label.dtype == torch.int64
        assert (batch.label.numpy() == small.label[batch.row]).all()
        for image, row in zip(batch.image.numpy(), batch.row):
            assert (image == simplejpeg.decode_jpeg(small.read(int(row)))).all()
        assert batch.flip.dtype == torch.bool and len(batch.flip) == 8
        flipped += int(batch.flip.sum())
    assert 10 < flipped < 38
    assert not any(b.flip.any() for b in stream(small, images=Images(flip=False)).batches(0))
    rows = np.concatenate([b.row for b in made])
    assert len(set(rows.tolist())) == 48
    assert np.concatenate([b.position for b in made]).tolist() == list(range(48))


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 1},
        {"workers": 2},
        {"workers": 3},
        {"workers": 2, "threads": 2},
        {"threads": 1},
        {"threads": 3},
        {"images": Images(verify=False)},
    ],
)
def test_workers_and_threads_change_nothing(small, options):
    for epoch, start in ((0, 0), (2, 0), (2, 4)):
        want = list(stream(small).batches(epoch, start))
        got = list(stream(small, **options).batches(epoch, start))
        assert len(got) == len(want) == 6 - start
        assert all(same(a, b) for a, b in zip(want, got))


def test_epochs_differ(small):
    a, b = (next(stream(small).batches(e)) for e in range(2))
    assert (a.row != b.row).any()


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("block", [None, 8])
def test_world_one_is_the_concatenation_of_ranks(small, world, block):
    one = stream(small, batch=4 * world, order=Order(block=block))
    ranks = [
        stream(small, batch=4, rank=r, world=world, order=Order(block=block)) for r in range(world)
    ]
    assert {r.steps_per_epoch for r in ranks} == {one.steps_per_epoch}
    for whole, *parts in zip(one.batches(1), *(r.batches(1) for r in ranks)):
        for a, b in zip(join([whole]), join(parts)):
            assert torch.equal(a, b)


def test_resume_with_another_world_and_batch_goes_on_in_the_same_order(small):
    want = join(list(stream(small, batch=1).batches(0)))
    first = stream(small, batch=8)
    got = [b for b, _ in zip(first.batches(0), range(2))]
    origin = first.position(2)
    assert origin == 16
    ranks = [stream(small, batch=3, rank=r, world=2, drop_last=False) for r in range(2)]
    steps = list(zip(*(r.batches(0, origin=origin) for r in ranks)))
    got += [b for step in steps for b in step]
    assert [b.repeats for b in got[-2:]] == [0, 2]  # 34 left = 5 x 6 + 4
    for a, b in zip(want, join(got)):
        assert torch.equal(a, b[:50])


def test_last_batch_filled_by_flagged_repeats(small):
    full = stream(small, drop_last=False)
    made = list(full.batches(0))
    assert len(made) == full.steps_per_epoch == 7 and [b.repeats for b in made] == [0] * 6 + [6]
    rows = np.concatenate([b.row for b in made])
    assert sorted(rows[:50].tolist()) == list(range(50)) and (rows[50:] == rows[:6]).all()


def test_label_table_merges_and_drops(small):
    table = identity_table(7, [0, 1, 1, -1, 2, 3, 4])
    merged = stream(small, labels=table, drop_last=False, batch=1)
    made = list(merged.batches(0))
    assert len(merged.selection.count_C) == 5 and merged.epoch_samples == int(
        (small.label != 3).sum()
    )
    rows = np.concatenate([b.row for b in made])
    assert sorted(rows.tolist()) == np.flatnonzero(small.label != 3).tolist()
    labels = torch.cat([b.label for b in made]).numpy()
    assert (labels == table.target[small.label[rows]]).all()


def test_sampling_table_is_honoured(small, tmp_path):
    count = np.bincount(small.label, minlength=7)
    draws = [0, 3, 3, 3, 3, 3, 30]
    path = sampling(tmp_path / "s.parquet", range(7), count, draws)
    drawn = stream(small, order=Order(sampling=path), batch=5)
    assert drawn.epoch_samples == 45 and drawn.steps_per_epoch == 9
    for epoch in range(3):
        labels = torch.cat([b.label for b in drawn.batches(epoch)])
        assert torch.bincount(labels, minlength=7).tolist() == draws
    figures = drawn.coverage(3)
    assert figures.draws == 45 and figures.drawn_identities == 6
    assert drawn.sampling_digest and not stream(small).sampling_digest
    workers = list(stream(small, order=Order(sampling=path), batch=5, workers=2).batches(2))
    assert all(same(a, b) for a, b in zip(drawn.batches(2), workers))


def test_sampling_counts_targets_not_labels(small, tmp_path):
    table = identity_table(7, [0, 1, 1, -1, 2, 3, 4])
    count = np.bincount(table.target[small.label][small.label != 3], minlength=5)
    path = sampling(tmp_path / "s.parquet", range(5), count, [2] * 5)
    labels = torch.cat(
        [
            b.label
            for b in stream(small, labels=table, order=Order(sampling=path), batch=5).batches(0)
        ]
    )
    assert torch.bincount(labels).tolist() == [2] * 5


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"count": [1] * 7}, "counts differ, first: label"),
        ({"label": [0, 1, 2, 3, 4, 5, 7]}, "labels run from 0 to 7, there are 7"),
        ({"label": [0, 1, 2, 3, 4, 5, 5]}, "a label stands twice"),
        ({"draws": [1, 1, 1, 1, 1, 1, -1]}, "not negative"),
        ({"label_version": 4}, "made for label version 4, version 0 is in force"),
        ({"dataset": "sha256:other"}, "made for dataset sha256:other, this is sha256:test"),
    ],
)
def test_a_sampling_table_of_other_labels_is_refused(small, tmp_path, change, text):
    count = np.bincount(small.label, minlength=7)
    options = {"label": range(7), "count": count, "draws": [1] * 7, **change}
    path = sampling(tmp_path / "s.parquet", **options)
    with pytest.raises(InputError, match=text) as caught:
        stream(small, order=Order(sampling=path))
    assert caught.value.code == "GL0305" and str(path) in str(caught.value)


def test_other_bad_options(small, tmp_path):
    with pytest.raises(UsageError, match="no such sampling table"):
        stream(small, order=Order(sampling=tmp_path / "absent.parquet"))
    with pytest.raises(UsageError, match="batch must be at least 1"):
        stream(small, batch=0)
    with pytest.raises(UsageError, match="rank 3 of 2"):
        stream(small, rank=3, world=2)
    with pytest.raises(InputError, match="expected 7 labels, found 6") as caught:
        stream(small, labels=identity_table(6))
    assert caught.value.code == "GL0304"
    bad = LabelTable(1, np.array([0, 1, 2, 9, 4, 5, 6]), 7, np.empty((0, 2), np.int64))
    with pytest.raises(InputError, match=r"data/train-0000..\.tar key \d{9}.*below 7, found 9"):
        stream(small, labels=bad)


def test_fewer_images_than_a_batch(small):
    assert stream(small, batch=51).steps_per_epoch == 0
    for workers in (0, 2):  # an epoch of nothing trains nothing, without a word
        with pytest.raises(UsageError, match="50 samples make no batch of 51"):
            list(stream(small, batch=51, workers=workers).batches(0))
    with pytest.raises(UsageError, match="expected a Dataset"):
        Stream("folder", batch=4)
    made = list(stream(small, batch=120, drop_last=False).batches(0))
    assert len(made) == 1 and made[0].repeats == 70


def spoil(dataset, row, change=1):
    path = dataset.shard_path(int(dataset.shard[row]))
    with path.open("r+b") as file:
        file.seek(int(dataset.offset[row]) + 200)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ change]))


@pytest.mark.parametrize("options", [{}, {"workers": 1}, {"workers": 2}, {"threads": 2}])
def test_a_flipped_bit_is_named_by_shard_and_key(make, options):
    dataset = make([0, 1] * 20)
    spoil(dataset, 21)
    began = time.monotonic()
    with pytest.raises(InputError, match=r"train-000001\.tar key 000000021") as caught:
        list(stream(dataset, **options).batches(0))
    assert caught.value.code == "GL0303" and time.monotonic() - began < 5


@pytest.mark.parametrize("options", [{}, {"workers": 2}])
def test_a_truncated_shard_is_an_error(make, options):
    dataset = make([0, 1] * 20)
    path = dataset.shard_path(1)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(InputError, match=r"train-000001\.tar") as caught:
        list(stream(dataset, **options).batches(0))
    assert caught.value.code == "GL0302"


def test_a_missing_shard_is_an_error(make):
    dataset = make([0, 1] * 20)
    dataset.shard_path(2).unlink()
    with pytest.raises(InputError, match=r"train-000002\.tar") as caught:
        list(stream(dataset).batches(0))
    assert caught.value.code == "GL0302"


@pytest.mark.parametrize("options", [{}, {"workers": 1}])
def test_a_picture_of_another_size_is_named(make, options):
    small_picture = simplejpeg.encode_jpeg(np.zeros((64, 64, 3), dtype=np.uint8))
    good = simplejpeg.encode_jpeg(np.zeros((112, 112, 3), dtype=np.uint8))
    dataset = make([0] * 8, images=[good] * 5 + [small_picture] + [good] * 2)
    with pytest.raises(InputError, match=r"data/train-000000\.tar key 000000005.*64x64"):
        list(stream(dataset, **options).batches(0))


def children():
    me = os.getpid()
    with open(f"/proc/{me}/task/{me}/children") as file:
        return [int(pid) for pid in file.read().split()]


def test_a_killed_worker_is_a_named_error_in_seconds(small):
    before = set(children())
    batches = stream(small, batch=2, workers=2).batches(0)
    next(batches)
    first = min(set(children()) - before)
    os.kill(first, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(LostError, match="was killed by SIGKILL") as caught:
        list(batches)
    assert time.monotonic() - began < 5
    assert caught.value.code == "GL0902" and "memory" in caught.value.hint
    assert not set(children()) - before


def test_a_stuck_worker_is_a_named_error(small):
    def stall(step, image, threads):
        time.sleep(30)

    workers = Workers(stall, (1,), 2, deadline=0.3)
    try:
        with pytest.raises(LostError, match="no batch from worker 0"):
            next(workers.batches(range(4)))
    finally:
        workers.close()


def test_a_bug_in_a_worker_shows_its_stack():
    def fail(step, image, threads):
        raise KeyError("here")

    workers = Workers(fail, (1,), 1)
    try:
        with pytest.raises(RuntimeError, match=r"failed at step 0(.|\n)*KeyError: 'here'"):
            next(workers.batches(range(4)))
    finally:
        workers.close()


def test_leaving_early_ends_the_workers(small):
    before = set(children())
    batches = stream(small, batch=2, workers=2).batches(0)
    next(batches)
    assert len(set(children()) - before) == 2
    batches.close()
    assert not set(children()) - before


def test_batches_of_workers_stay_valid(small):
    made = list(stream(small, batch=2, workers=2).batches(0))
    want = list(stream(small, batch=2).batches(0))
    assert all(same(a, b) for a, b in zip(want, made))


def test_workers_end_when_the_training_process_is_gone(small):
    code = (
        "import os, sys\n"
        "from glint.stream.workers import Workers\n"
        "workers = Workers(lambda step, image, threads: None, (1,), 2)\n"
        "next(workers.batches(range(4)))\n"
        "print(*workers.pids, flush=True)\n"
        "os._exit(1)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    pids = [int(pid) for pid in run.stdout.split()]
    assert len(pids) == 2, run.stderr
    until = time.monotonic() + 8
    while time.monotonic() < until and any(alive(pid) for pid in pids):
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
