"""Class numbers above 2^24: float32 merged them before glint saw them, integers stay exact."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glint.shards import recordio
from glint.shards.sources import open_source

LABELS = [2**24, 2**24 + 1, 2**53 + 1, 10**18 - 2, 10**18 - 1]
Jpeg = Callable[[int], bytes]


def test_of_a_record_file_they_are_read_as_they_stand(tmp_path: Path, jpeg: Jpeg) -> None:
    """Nothing in the file tells the two apart: a note says how many may have been merged."""
    path = tmp_path / "train.rec"
    with recordio.Writer(path, tmp_path / "train.idx") as writer:
        for key, label in enumerate([5, 2**24, 2**24 + 1], 1):
            writer.write(key, recordio.pack(float(label), key, 0, jpeg(key)))
    source = open_source(path)
    assert source.classes.to_pylist() == [b"5", b"16777216"]
    (note,) = (note for note in source.describe()["notes"] if "2^24" in note)
    assert note.startswith("2 ")


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_integers_are_exact(tmp_path: Path, jpeg: Jpeg, kind: str) -> None:
    if kind == "parquet":
        path = tmp_path / "a.parquet"
        images = [{"bytes": jpeg(i), "path": ""} for i in range(len(LABELS))]
        pq.write_table(pa.table({"image": images, "label": pa.array(LABELS)}), path)
    else:
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w") as tar:
            for i, label in enumerate(LABELS):
                for suffix, data in (("jpg", jpeg(i)), ("cls", b"%d" % label)):
                    member = tarfile.TarInfo(f"{i:04d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    assert [int(name) for name in open_source(path).classes] == LABELS
