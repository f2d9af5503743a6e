"""Blocks made as arrays are the blocks of the plain writer, byte for byte."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from glint.shards import blocks
from glint.shards.image import Rejected
from glint.shards.sources.source import joined
from glint.shards.write import Shard, Tar

SIZES = [0, 1, 511, 512, 513, 5000, 70_000, 8**7 + 5]
LABELS = [0, 9, 10, 99, 100, 12345, 10**9, 2**53 - 1]


def samples() -> list[tuple[int, bytes, tuple[str, int, int], int, str, str]]:
    draw = np.random.default_rng(1)
    kinds = ["jpg", "png", "jpg", "webp"] * 2
    return [
        (
            k * 123_456_789 % 10**9,
            draw.bytes(size),
            (kind, 100 + k, 7),
            label,
            f"id {label}",
            f"a/\u00e9{k}",
        )
        for k, (size, label, kind) in enumerate(zip(SIZES, LABELS, kinds))
    ]


@pytest.mark.parametrize("with_json", [False, True])
def test_a_shard_is_what_the_plain_writer_writes(with_json: bool) -> None:
    ours, theirs = io.BytesIO(), io.BytesIO()
    shard, tar = Shard(ours, 3, with_json=with_json), Tar(theirs)
    rows = []
    for key, data, seen, label, said, source in samples() * 2:
        shard.add(key, data, seen, label, said, source)
        offset = tar.add(key, seen[0], data)
        tar.add(key, "cls", b"%d" % label)
        if with_json:
            tar.add(
                key,
                "json",
                json.dumps(
                    {
                        "height": seen[2],
                        "label": label,
                        "source": source,
                        "source_label": said,
                        "width": seen[1],
                    },
                    sort_keys=True,
                ).encode(),
            )
        rows.append(
            (
                f"{key:09d}",
                label,
                said,
                3,
                offset,
                len(data),
                xxhash.xxh3_128_digest(data),
                source,
                *seen[1:],
            )
        )
    shard.close()
    tar.close()
    assert ours.getvalue() == theirs.getvalue()
    assert (shard.tar.size, shard.tar.sha256) == (tar.size, tar.sha256)
    assert shard.tar.sha256 == hashlib.sha256(theirs.getvalue()).hexdigest()
    assert [tuple(row.values()) for row in shard.samples().to_pylist()] == rows


def test_the_content_does_not_depend_on_how_samples_are_joined() -> None:
    said = []
    for step in (1, 3, 8):
        shard = Shard(io.BytesIO(), 0)
        for at in range(0, 8, step):
            key, data, seen, label, name, source = zip(*samples()[at : at + step])
            run = joined(data, {})
            suffix, width, height = zip(*seen)
            shard.extend(
                np.array(key),
                run.data,
                run.start_n,
                run.stop_n,
                np.array(suffix),
                np.array(width, np.int32),
                np.array(height, np.int32),
                np.array(label),
                pa.array(name),
                pa.array(["x", *source])[1:],
            )
        shard.close()
        said.append((shard.content(), shard.tar.sha256))
    assert len(set(said)) == 1
    other = Shard(io.BytesIO(), 0)
    for one in samples():
        other.add(*one[:5], "elsewhere")
    told = other.content()
    assert told != said[0][0]
    other.reject(Rejected("empty"), b"", None, "y", 0)
    assert other.content() != told


def test_an_empty_shard() -> None:
    file = io.BytesIO()
    shard = Shard(file, 0)
    shard.close()
    assert file.getvalue() == b"\0" * 10240
    assert shard.samples().num_rows == 0 and len(shard.content()) == 64


def test_one_member_holds_its_label_in_its_name() -> None:
    file = io.BytesIO()
    shard = Shard(file, 0, members="jpg")
    for one in samples():
        shard.add(*one)
    shard.close()
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:  # checks every header's checksum
        found = [(m.name, m.offset_data, m.size) for m in tar.getmembers()]
    offset = shard.samples().column("offset").to_pylist()
    assert found == [
        (f"{key:09d}_{label}.{seen[0]}", at, len(data))
        for (key, data, seen, label, _, _), at in zip(samples(), offset)
    ]


def test_keys_have_nine_digits() -> None:
    for key in (-1, 10**9):
        shard = Shard(io.BytesIO(), 0)
        shard.add(key, b"x", ("jpg", 1, 1), 0, "", "")
        with pytest.raises(ValueError, match="nine digits"):
            shard.close()


def test_numbers_as_text() -> None:
    value_n = np.array([0, 7, 8, 9, 10, 63, 64, 511, 512, 99_999, 123_456_789, 8**9 - 1])
    decimal, octal = blocks.decimal(value_n, 12), blocks.octal(value_n, 11)
    text, length = blocks.plain(value_n)
    for i, value in enumerate(value_n.tolist()):
        assert decimal[i].tobytes() == b"%012d" % value
        assert octal[i].tobytes() == b"%011o" % value
        assert text[i].tobytes().rstrip(b"\0") == b"%d" % value and length[i] == len(str(value))
    assert blocks.plain(np.empty(0, np.int64))[1].shape == (0,)
