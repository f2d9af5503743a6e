"""A dataset folder of synthetic pictures, written by hand in the format of the contract."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
import xxhash

from glint import schemas
from glint.files import atomic, parquet
from glint.shards.dataset import FORMAT, Dataset


def picture(label: int, number: int) -> bytes:
    """Draw blocks of colour that depend on the label and vary with the number."""
    base = np.random.default_rng(label).integers(40, 216, (7, 7, 3))
    noise = np.random.default_rng([label, number]).integers(-20, 20, (7, 7, 3))
    blocks = (base + noise).astype(np.uint8)
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(np.kron(blocks, np.ones((16, 16, 1), np.uint8))), quality=90
    )


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Dataset]:
    """Return make(counts, ...): one shard, rows label by label.

    same_as: label -> the label whose person it shows, under numbers of its own; shows: (label,
    number) -> the bytes of that image.
    """

    def make(
        counts: list[int],
        names: list[str] | None = None,
        folder: str = "set",
        images: bool = True,
        same_as: dict[int, int] | None = None,
        shows: dict[tuple[int, int], bytes] | None = None,
    ) -> Dataset:
        root = tmp_path / folder
        (root / "data").mkdir(parents=True)
        rows: dict[str, list] = {name: [] for name in schemas.SAMPLES.names}
        path = root / "data/train-000000.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for label, count in enumerate(counts):
                for number in range(count):
                    who = (same_as or {}).get(label, label)
                    other = 1000 * (who != label) + number
                    data = picture(who, other) if images else b"%d/%d" % (label, number)
                    data = (shows or {}).get((label, number), data)
                    key = f"{len(rows['key']):09d}"
                    info = tarfile.TarInfo(f"{key}.jpg")
                    info.size = len(data)
                    at = tar.offset + 512
                    tar.addfile(info, io.BytesIO(data))
                    values = (
                        key,
                        label,
                        f"id{label}",
                        0,
                        at,
                        len(data),
                        xxhash.xxh3_128_digest(data),
                        f"id{label}/{number}.jpg",
                        112,
                        112,
                    )
                    for name, value in zip(schemas.SAMPLES.names, values):
                        rows[name].append(value)
        parquet.write(root / "samples.parquet", pa.table(rows, schema=schemas.SAMPLES))
        parquet.write(
            root / "identities.parquet",
            pa.table(
                {
                    "label": list(range(len(counts))),
                    "count": counts,
                    "source_label": [f"id{i}" for i in range(len(counts))],
                    "name": names or [None] * len(counts),
                },
                schema=schemas.IDENTITIES,
            ),
        )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        atomic.write_json(
            root / "manifest.json",
            {
                "format": FORMAT,
                "written": sum(counts),
                "read": sum(counts),
                "identities": len(counts),
                "digest": f"sha256:{digest}",
                "shards": [{"name": path.name}],
            },
        )
        return Dataset(root)

    return make


class Blocks:
    """A recogniser of the coloured blocks that the pictures show."""

    name, dim, size, digest = "blocks", 147, 112, "sha256:blocks"

    def embed(self, image_nHWC: np.ndarray) -> np.ndarray:
        x = image_nHWC.reshape(-1, 7, 16, 7, 16, 3).mean((2, 4)).reshape(len(image_nHWC), -1)
        return (x - 127.5).astype(np.float32)


@pytest.fixture
def blocks() -> Blocks:
    """A recogniser of `picture_of`'s people."""
    return Blocks()


@pytest.fixture
def picture_of() -> Callable[[int, int], bytes]:
    """Return picture(label, number)."""
    return picture
