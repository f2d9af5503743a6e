"""Images read straight to where they stand in the tar are the images of the source."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from glint.pipelines import shard as stage
from glint.shards import blocks, parquet, recordio
from glint.shards.sources import open_source
from glint.shards.sources.source import read_many
from glint.shards.write import Shard, Tar


def test_records_whose_images_begin_elsewhere(tmp_path: Path, jpeg: Callable[[int], bytes]) -> None:
    """Labels before the image, from none to more than a block of them; parts; damage."""
    images, draw = [], np.random.default_rng(0)
    with recordio.Writer(tmp_path / "a.rec", tmp_path / "a.idx") as writer:
        for key, labels in enumerate([3, 3, 3, 0, 5, 200, 3, 0, 0, 121, 120, 1] * 4):
            image = jpeg(key)
            if key % 7 == 2:  # the magic number inside: a record of several parts
                image = (
                    image[:-2] + b"\0" * (-len(image) % 4) + b"\x0a\x23\xd7\xce" * 9 + b"\xff\xd9"
                )
            images.append(image)
            label = tuple(map(float, range(key, key + labels))) if labels else float(key)
            writer.write(key, recordio.pack(label, key, 0, image))
    source = open_source(tmp_path / "a.rec")
    for most in (1 << 10, 20_000, 1 << 20):
        for room in (blocks.Room(), blocks.Room(after=1024)):
            order_n = draw.permutation(source.n)
            seen = 0
            for run in read_many(source, order_n, most, room):
                for start, stop in zip(run.start_n.tolist(), run.stop_n.tolist()):
                    assert run.data[start:stop].tobytes() == images[order_n[seen]]
                    seen += 1
                assert not run.bad
            assert seen == len(images)
    stage.shard(tmp_path / "a.rec", tmp_path / "set", stage.Options(1000))
    plain = io.BytesIO()
    tar = Tar(plain)
    rows = parquet.read(tmp_path / "set/samples.parquet")
    by_key = {str(i): image for i, image in enumerate(images)}
    for row in rows.select(["key", "label", "source"]).to_pylist():
        tar.add(int(row["key"]), "jpg", by_key[row["source"]])
        tar.add(int(row["key"]), "cls", b"%d" % row["label"])
    tar.close()
    assert (tmp_path / "set/data/train-000000.tar").read_bytes() == plain.getvalue()


@pytest.mark.parametrize("gone", [(), (0,), (3, 4), (9,), (0, 5, 9)])
def test_rejected_images_leave_no_gap(gone: tuple[int, ...]) -> None:
    draw = np.random.default_rng(1)
    images = [draw.bytes(int(size)) for size in draw.integers(1, 3000, 10)]
    file, plain = io.BytesIO(), io.BytesIO()
    out, tar = Shard(file, 0), Tar(plain)
    data, start_n = out.room.lay(np.array([len(image) for image in images]))
    data[:] = 0xEE  # what lay there before
    for image, at in zip(images, start_n.tolist()):
        data[at : at + len(image)] = np.frombuffer(image, np.uint8)
    keep = np.delete(np.arange(10), gone)
    size_n = np.array([len(images[i]) for i in keep])
    one = np.ones(len(keep), np.int32)
    text = pa.array(["x"] * len(keep))
    suffixes = np.array(["jpg"] * len(keep))
    begin_n = start_n[keep]
    out.extend(keep, data, begin_n, begin_n + size_n, suffixes, one, one, keep % 3, text, text)
    out.close()
    for i in keep.tolist():
        tar.add(i, "jpg", images[i])
        tar.add(i, "cls", b"%d" % (i % 3))
    tar.close()
    assert file.getvalue() == plain.getvalue()
