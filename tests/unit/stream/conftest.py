"""A small dataset on disk, written by hand so that these tests need no other room."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import xxhash

from glint import schemas
from glint.shards.dataset import Dataset


def face(seed: int, size: int = 112) -> bytes:
    """Encode a smooth random picture that no mirror leaves unchanged."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (7, 7, 3), dtype=np.uint8)
    pixels = np.kron(coarse, np.ones((size // 7, size // 7, 1), dtype=np.uint8))
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=95))


def write(
    root: Path, labels: Sequence[int], per_shard: int = 16, images: Sequence[bytes] | None = None
) -> Dataset:
    """Write a dataset with these labels, in order."""
    (root / "data").mkdir(parents=True)
    classes = max(labels) + 1
    columns: dict[str, list[object]] = {name: [] for name in schemas.SAMPLES.names}
    shards = []
    for number, first in enumerate(range(0, len(labels), per_shard)):
        name = f"train-{number:06d}.tar"
        shards.append({"name": name})
        with tarfile.open(root / "data" / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in range(first, min(first + per_shard, len(labels))):
                image = images[row] if images else face(row)
                for suffix, data in ((".jpg", image), (".cls", b"%d" % labels[row])):
                    info = tarfile.TarInfo(f"{row:09d}{suffix}")
                    info.size = len(data)
                    if suffix == ".jpg":
                        offset = tar.offset + 512
                    tar.addfile(info, io.BytesIO(data))
                values = (
                    f"{row:09d}",
                    labels[row],
                    str(labels[row]),
                    number,
                    offset,
                    len(image),
                    xxhash.xxh3_128_digest(image),
                    f"{row}.jpg",
                    112,
                    112,
                )
                for column, value in zip(columns.values(), values):
                    column.append(value)
    pq.write_table(pa.table(columns, schema=schemas.SAMPLES), root / "samples.parquet")
    count = np.bincount(labels, minlength=classes)
    identities = {
        "label": range(classes),
        "source_label": [str(i) for i in range(classes)],
        "name": [None] * classes,
        "count": count,
    }
    pq.write_table(
        pa.table({k: list(v) for k, v in identities.items()}, schema=schemas.IDENTITIES),
        root / "identities.parquet",
    )
    (root / "manifest.json").write_text(
        json.dumps(
            {
                "format": "glint/dataset@1",
                "written": len(labels),
                "identities": classes,
                "shards": shards,
                "digest": "sha256:test",
            }
        )
    )
    return Dataset(root)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """50 images of 7 identities in 4 shards."""
    rng = np.random.default_rng(1)
    labels = [*range(7), *rng.integers(0, 7, 43).tolist()]
    return write(tmp_path_factory.mktemp("small"), labels)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Dataset]:
    """A writer of datasets of this test's own."""

    def at(labels: Sequence[int], **options: object) -> Dataset:
        return write(tmp_path / "dataset", labels, **options)  # type: ignore[arg-type]

    return at
