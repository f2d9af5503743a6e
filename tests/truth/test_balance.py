"""`glint balance` against docs/balance.md in numpy, and against what the training stream gives.

An epoch is drained through the stream that `glint train` builds; whose picture it was is told by
its pixels, never by the stream's own row or label. Constants, and what is put against them: GROUP
16 steps planned at once (90 and more), HELD 2 windows of WINDOW 64 blocks (three and more), 64 rows
a chunk of EpochCounts (20,010), LONGEST 8 MiB a read (a shard of 25 MB read whole), and, as no test
of seconds has so many rows, `columns.SMALL` 2^20 and `draws._PART` 2^22, set to 1,000. The slow
test has 4.3 million rows, more than either.
"""

# n images, C identities as sharded

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from glint.pipelines.balance import Options, balance
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.stream import columns, draws
from glint.stream.loader import Images, Stream
from glint.stream.order import Order

Shown = dict[bytes, tuple[str, int]]


def table_of(count_C: np.ndarray, *, cap: float, least: int, q: float, t: float, r: float):
    """Give weight, repeat and draws as docs/balance.md states them."""
    kept_C = count_C >= least
    power_C = np.where(kept_C, count_C.astype(float) ** q, 0)
    weight_C = power_C / power_C.sum() * count_C[kept_C].sum()
    share_C = count_C / count_C[kept_C].sum()
    repeat_C = np.minimum(np.maximum(1, np.sqrt(t / share_C)), r)
    draws_C = np.minimum(np.minimum(weight_C * repeat_C, cap), r * count_C)
    return weight_C, repeat_C, np.where(kept_C, draws_C, 0)


def drain(streams: list[Stream], epoch: int, shown: Shown) -> list[tuple[str, int]]:
    """Draw an epoch on every rank; give whose picture each was, repeats at the end left out."""
    seen = []
    for stream in streams:
        for batch in stream.batches(epoch):
            for pixel, place in zip(batch.image.numpy(), batch.position.tolist()):
                if place < stream.epoch_samples:
                    seen.append(shown[pixel.tobytes()])
    return seen


def test_the_table_is_the_formula_and_the_stream_draws_it(
    world, rows, copied, shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copied(world.root)
    dataset = Dataset(root)
    told = balance(dataset, Options(cap=9, least=2, power=0.9, repeat=4e-4, most=1.5))
    name = pq.read_table(root / "identities.parquet")["source_label"].to_pylist()
    size = Counter(name[row.label] for row in rows(world.root))
    count_C = np.array([size[one] for one in name])
    weight_C, repeat_C, draws_C = table_of(count_C, cap=9, least=2, q=0.9, t=4e-4, r=1.5)
    table = pq.read_table(root / "sampling.parquet")
    assert table["label"].to_pylist() == list(range(len(name)))
    assert table["count"].to_pylist() == count_C.tolist()
    kept_C = count_C >= 2
    np.testing.assert_allclose(table["weight"].to_numpy(), weight_C, rtol=1e-12)
    np.testing.assert_allclose(table["repeat"].to_numpy()[kept_C], repeat_C[kept_C], rtol=1e-12)
    np.testing.assert_allclose(table["draws"].to_numpy(), draws_C, rtol=1e-12)
    assert told.never_seen == int((draws_C == 0).sum()) == int((count_C < 2).sum())
    assert len({*draws_C.tolist()}) > 6 and (draws_C % 1 > 0).sum() > 500

    monkeypatch.setattr(draws, "_PART", 1000)
    sampling = root / "sampling.parquet"
    options = {
        "labels": labels.current(root, dataset.classes), "images": Images(size=16),
        "drop_last": False, "seed": 4,
        "columns": columns.open_columns(dataset, small=1000),
    }  # fmt: skip
    assert list((root / "_glint").glob("columns-*.bin"))
    two = [
        Stream(dataset, rank=r, world=2, batch=48, order=Order(sampling), **options) for r in (0, 1)
    ]
    windows = [Stream(dataset, batch=100, workers=2, order=Order(sampling, 64), **options)]
    whole = [Stream(dataset, batch=100, order=Order(sampling, 256), **options)]
    rng = np.random.default_rng(0)
    for streams, epochs in ((two, (0, 1)), (windows, (2,)), (whole, (3,))):
        image: Counter[tuple[str, int]] = Counter()
        for epoch in epochs:
            seen = drain(streams, epoch, shown)
            image.update(seen)
            assert len(seen) == np.ceil(draws_C.sum() - 1e-6), "an epoch is the sum of the draws"
            whose = Counter(one for one, _ in seen)
            drawn_C = np.array([whose[one] for one in name])
            spare_C = np.where(draws_C == draws_C.max(), 1, 1e-6)  # the rest of a whole number
            assert (drawn_C >= np.floor(draws_C - 1e-6)).all()
            assert (drawn_C <= np.ceil(draws_C + spare_C)).all()
            for a, b in np.sort(rng.integers(0, len(name) + 1, (200, 2)), axis=1):
                off = drawn_C[a:b].sum() - draws_C[a:b].sum()
                assert -1.001 < off < 2.001, f"identities {a} to {b}: {off} draws off"
        times = defaultdict(list)
        for (who, _), n in image.items():
            times[who].append(n)
        for who, some in times.items():
            some += [0] * (size[who] - len(some))
            assert max(some) - min(some) <= 1, f"{who}: an image again before all had their turn"


def write_index(root: Path, label_n: np.ndarray, image: list[bytes]) -> None:
    """Write a dataset whose index says each row's image is its label's, all of them in one tar."""
    (root / "data").mkdir(parents=True)
    at, place = 0, []
    with (root / "data/train-000000.tar").open("wb") as file:
        for data in image:  # no reader of the index looks at headers
            place.append(at)
            file.write(data + bytes(-len(data) % 512))
            at = file.tell()
    size_L = np.array([len(data) for data in image], np.int32)
    digest = np.array([xxhash.xxh3_128_digest(data) for data in image], dtype="S16")
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(label_n), np.int32)), ["x"])
    table = {
        "key": text.cast(pa.string()), "label": label_n, "source_label": text.cast(pa.string()),
        "shard": np.zeros(len(label_n), np.int32), "offset": np.array(place)[label_n],
        "size": size_L[label_n], "source": text.cast(pa.string()),
        "digest": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(16), len(label_n), [None, pa.py_buffer(digest[label_n].tobytes())]
        ),
        "width": np.full(len(label_n), 8, np.int32), "height": np.full(len(label_n), 8, np.int32),
    }  # fmt: skip
    pq.write_table(pa.table(table), root / "samples.parquet")
    names = [str(i) for i in range(len(image))]
    count = np.bincount(label_n, minlength=len(image))
    identities = {"label": range(len(image)), "source_label": names, "name": names, "count": count}
    pq.write_table(
        pa.table({k: list(v) for k, v in identities.items()}), root / "identities.parquet"
    )
    about = {
        "format": "glint/dataset@1", "written": len(label_n), "identities": len(image),
        "digest": "sha256:by hand", "shards": [{"name": "train-000000.tar"}],
    }  # fmt: skip
    (root / "manifest.json").write_text(json.dumps(about))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_more_rows_than_any_constant_of_the_stream(tmp_path: Path) -> None:
    """4.3 million rows of 5,000 identities: more than `_PART` (2^22) and `SMALL` (2^20).

    All images of an identity are the same bytes, so whose it was is told by what was read.
    """
    rng = np.random.default_rng(1)
    image = [b"\xff\xd8" + rng.bytes(100) + b"%d\xff\xd9" % i for i in range(5000)]
    label_n = rng.permutation(np.repeat(np.arange(5000), 500 + np.arange(5000) % 721))
    assert len(label_n) > draws._PART > columns.SMALL
    write_index(tmp_path / "set", label_n, image)
    dataset = Dataset(tmp_path / "set")
    balance(dataset, Options(cap=80, power=0.5))
    count_C = np.bincount(label_n)
    _, _, draws_C = table_of(count_C, cap=80, least=1, q=0.5, t=0, r=4)
    version = labels.current(dataset.root, 5000)
    whose = {data: i for i, data in enumerate(image)}
    for block in (None, 64):
        stream = Stream(
            dataset, labels=version, batch=1000, drop_last=False,
            order=Order(dataset.root / "sampling.parquet", block),
        )  # fmt: skip
        seen, places = [], []
        for data, label, row_n in stream.stored(0):
            seen += [whose[one] for one in data]
            assert label.tolist() == seen[-1000:]
            places.append(row_n)
        row_m, seen_m = np.concatenate(places)[: stream.epoch_samples], np.array(seen)
        assert (label_n[row_m] == seen_m[: len(row_m)]).all()
        assert len(np.unique(row_m)) == len(row_m), "no image has two turns in so short an epoch"
        drawn_C = np.bincount(seen_m[: stream.epoch_samples], minlength=5000)
        assert len(row_m) == np.ceil(draws_C.sum() - 1e-6)
        assert (drawn_C >= np.floor(draws_C)).all() and (drawn_C <= np.ceil(draws_C) + 1).all()
    assert list((dataset.root / "_glint").glob("columns-*.bin"))
