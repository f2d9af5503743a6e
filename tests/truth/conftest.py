"""A world whose truth the tests know before glint sees it, and readers that are not glint's.

Every expected value comes from the bytes made here or from the tars, read with `tarfile`.
"""

# n images, H W height and width, C identities, D embedding

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import xxhash

from glint.pipelines.dataset import shard

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside these tests, by name

SIDE = 16  # pixels: small enough that 20,000 images are made, sharded and decoded in seconds
# Identities of the world by size. More rows than any block of rows that a stage holds: 16,384 of
# `embeddings.centres`, 2,048 of `embed.BLOCK`, 2^23 / 512 of `nms.ROOM`; the largest identity has
# more cosines (3,000^2) than `nms.ROOM`; more images than `samples_per_shard` (10,000).
SIZES = [3000, *[400] * 2, *[60] * 40, *[6 + i % 13 for i in range(600)]]
SIZES += [2 + i % 7 for i in range(1200)]
SIZES += [1] * (20_000 - sum(SIZES))
ODD = [
    (8, 8),
    (24, 24),
    (24, 24),
    (16, 24),
    (8, 24),
    (8, 24),
    (32, 32),
    (40, 40),
    (40, 40),
    (48, 8),
]
BAD = {"empty": b"", "not-an-image": b"<html>", "jpeg-truncated": None}


@dataclass(frozen=True)
class World:
    """A dataset, and what was put into it.

    image: of every good image its (identity, number); odd: those of a size of their own, each an
    identity alone; bad: how many records of each kind no dataset should hold; read: all records.
    """

    root: Path
    image: dict[bytes, tuple[str, int]]
    odd: set[bytes]
    bad: dict[str, int]
    read: int


def pictures(person: np.ndarray, seed: int) -> np.ndarray:
    """Draw uint8 (n, 16, 16, 3): four by four coloured cells of a person, moved by noise."""
    rng = np.random.default_rng(seed)
    base = rng.integers(60, 196, (int(person.max()) + 1, 4, 4, 3))
    cell = base[person] + rng.integers(-60, 60, (len(person), 4, 4, 3))
    return cell.astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)


def jpegs(image_nHW3: np.ndarray) -> list[bytes]:
    """Encode without chroma subsampling, so that no two decoders differ by more than rounding."""
    return [simplejpeg.encode_jpeg(one, quality=92, colorsubsampling="444") for one in image_nHW3]


def pack(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """20,000 images of 2,460 identities in three shards; ten of odd sizes and 18 bad records."""
    person = np.repeat(np.arange(len(SIZES)), SIZES)
    good = jpegs(pictures(person, 1))
    image = {data: (f"id{who:04d}", i) for i, (data, who) in enumerate(zip(good, person.tolist()))}
    assert len(image) == len(person) == 20_000, "two images are the same"
    rng = np.random.default_rng(2)
    odd = {}
    for i, (width, height) in enumerate(ODD):
        pixel = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        data = simplejpeg.encode_jpeg(pixel.repeat(8, axis=0).repeat(8, axis=1), quality=90)
        odd[data] = (f"odd{i}", len(image) + i)
    members = [(f"{name}/{i:05d}.jpg", data) for data, (name, i) in (image | odd).items()]
    bad = {name: 3 + 3 * i for i, name in enumerate(BAD)}
    for name, count in bad.items():
        data = good[0][:200] if BAD[name] is None else BAD[name]
        members += [(f"id{i:04d}/{name}.jpg", data) for i in range(count)]
    members = [members[i] for i in rng.permutation(len(members))]
    folder = tmp_path_factory.mktemp("world")
    pack(folder / "source.tar", members)
    shard.shard(folder / "source.tar", folder / "set", max_bad=0.01)
    (folder / "source.tar").unlink()
    return World(folder / "set", image | odd, set(odd), bad, len(members))


@pytest.fixture(scope="session")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> World:
    """4,400 images without labels: over 2 `embed.BLOCK`, 17 `online_clusters.BLOCK`."""
    good = jpegs(pictures(np.arange(4400) % 50, 3))
    image = {data: ("", i) for i, data in enumerate(good)}
    assert len(image) == 4400
    folder = tmp_path_factory.mktemp("crawl")
    pack(folder / "source.tar", [(f"all/{i:05d}.jpg", data) for i, data in enumerate(good)])
    options = shard.Options(samples_per_shard=1500, unlabelled=True)
    shard.shard(folder / "source.tar", folder / "set", options)
    return World(folder / "set", image, set(), {}, len(image))


@pytest.fixture(scope="session")
def packed() -> Callable[[Path, Sequence[tuple[str, bytes]]], None]:
    """Write a tar of (name, bytes)."""
    return pack


@dataclass(frozen=True)
class Row:
    """A sample as it lies in a tar."""

    key: str
    image: bytes
    label: int
    shard: int


@pytest.fixture(scope="session")
def rows() -> Callable[[Path], list[Row]]:
    """Read every sample of a dataset's tars, shard after shard, with `tarfile`; once a dataset."""

    @cache
    def read(root: Path) -> list[Row]:
        found: list[Row] = []
        for number, path in enumerate(sorted((root / "data").glob("*.tar"))):
            sample: dict[str, dict[str, bytes]] = {}
            with tarfile.open(path) as tar:
                for member in tar:
                    key, _, kind = member.name.partition(".")
                    sample.setdefault(key, {})[kind] = tar.extractfile(member).read()
            found += [Row(k, s["jpg"], int(s["cls"]), number) for k, s in sample.items()]
        return found

    return read


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Give a dataset of this test's own: the same tars by hard links, tables copied."""

    def copy(root: Path) -> Path:
        out = tmp_path / "own"
        shutil.copytree(root, out, ignore=shutil.ignore_patterns("data"))
        (out / "data").mkdir()
        for path in (root / "data").iterdir():
            os.link(path, out / "data" / path.name)
        return out

    return copy


@pytest.fixture
def embedded(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as an embedding folder by hand, as docs/embed.md says it looks."""

    def write(root: Path, keys: Sequence[str], sample_nD: np.ndarray, name: str = "emb") -> Path:
        out = tmp_path / name
        out.mkdir()
        said = json.loads((root / "manifest.json").read_text())
        classes = said["identities"]
        np.save(out / "samples.npy", sample_nD)
        np.save(out / "centres.npy", np.zeros((classes, sample_nD.shape[1]), np.float32))
        ok = np.isfinite(sample_nD[:, 0])
        table = {
            "key": pa.array(keys, pa.string()),
            "norm": pa.array(np.ones(len(keys)), pa.float32()),
            "status": ["ok" if one else "not-finite" for one in ok.tolist()],
        }
        pq.write_table(pa.table(table), out / "samples.parquet")
        sums = {
            name: "xxh3:" + xxhash.xxh3_128_hexdigest((out / name).read_bytes())
            for name in ("samples.npy", "centres.npy")
        }
        about = {
            "format": "glint/embeddings@2", "dataset": said["digest"], "model": "sha256:by hand",
            "images": len(keys), "classes": classes, "dim": sample_nD.shape[1], "files": sums,
        }  # fmt: skip
        (out / "embeddings.json").write_text(json.dumps(about))
        return out

    return write


def in_force(root: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Read targets and masks in force from `labels/`, by its files alone."""
    path = root / "labels/current.json"
    head = json.loads(path.read_text()) if path.exists() else {"file": None}
    if not head["file"]:
        return np.arange(classes), np.empty((0, 2), np.int64)
    table = pq.read_table(root / "labels" / head["file"])
    assert table["label"].to_pylist() == list(range(classes))
    masks = pq.read_table(root / "labels" / head["file"].replace(".parquet", ".masks.parquet"))
    return table["target"].to_numpy(), np.stack([masks["a"].to_numpy(), masks["b"].to_numpy()], 1)


@pytest.fixture(scope="session")
def targets() -> Callable[[Path, int], tuple[np.ndarray, np.ndarray]]:
    """Read targets and masks in force."""
    return in_force


@pytest.fixture(scope="session")
def shown(world: World) -> dict[bytes, tuple[str, int]]:
    """Say of the pixels of every image that fits a 16x16 net whose it is, and its number."""
    found = {
        simplejpeg.decode_jpeg(data).tobytes(): whose
        for data, whose in world.image.items()
        if data not in world.odd
    }
    assert len(found) == 20_000
    return found
