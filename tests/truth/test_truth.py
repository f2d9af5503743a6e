"""What lies on disk is what the sources hold, by tarfile, hashlib and the sources alone.

The short form: 70 MiB a source, so that every buffer is filled many times; `tests/faults/prove.py
truth` is the long one.
"""

from __future__ import annotations

import random
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import chains
import numpy as np
import oracle
import pytest
import sources
from sources import Image

pytestmark = pytest.mark.timeout(600)  # on a busy disk; 20 s in all on a quiet one
MIB = 1 << 20
PER_SHARD = 60
# What the first record of each shard is: a buffer is grown, or just not, by what comes first.
FIRST = (1, 900, 4 * MIB - 1, 4 * MIB, 5 * MIB, 9_000_000)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("truth")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def room(tmp_path: Path) -> Iterator[None]:
    """Leave nothing behind: pytest would keep 2 GiB."""
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def world(place: Path) -> list[Image]:
    """Give images of all sizes, in an order whose first of each shard have the sizes FIRST.

    The order in shards depends on the number of records and the seed alone: small images show it.
    """
    label_n = sorted(10 + i % 20 for i in range(PER_SHARD * len(FIRST)))
    chance = np.random.default_rng(0)
    images = [(label, sources.photo(100, chance)) for label in label_n]
    index = {sources.sha(data): i for i, (_, data) in enumerate(images)}
    source = sources.folder(place / "small", images)
    shard("both", source, place / "order", cwd=place)
    sizes = sources.STRADDLING + [sources.SMALLEST, sources.SMALLEST + 1] + [0, 1] * 3
    sizes += chance.integers(64, 20_000, len(images) - len(FIRST) - len(sizes)).tolist()
    random.Random(0).shuffle(sizes)
    at = {}
    for first, tar in zip(FIRST, sorted(place.glob("order/data/*.tar"))):
        at[index[sources.sha(next(oracle.members(tar))[1])]] = first
    size_n = [at[i] if i in at else sizes.pop() for i in range(len(images))]
    made = sources.images(size_n, label_n, 1)
    assert not sizes and sum(size_n) > 64 * MIB
    return made


def shard(form: str, source: Path, out: Path, cwd: Path, workers: int = 1) -> None:
    options = (*oracle.FORMS[form], "--samples-per-shard", PER_SHARD, "--workers", workers)
    oracle.glint("shard", source, out, *options, cwd=cwd)


def check(out: Path, form: str, images: list[Image]) -> None:
    held = oracle.read(out, form)
    assert oracle.compare(held, sources.usable(images)) == []
    assert oracle.quarantined(out) == sources.unusable(images)


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("folder", "both"),
        ("recordio", "both"),
        ("recordio", "jpg"),
        ("insightface", "both"),
        ("tar", "json"),
        ("webdataset", "jpg"),
        ("zip", "both"),
        ("deflated", "json"),
        ("parquet", "both"),
    ],
)
def test_a_source(kind: str, form: str, world: list[Image], tmp_path: Path) -> None:
    source, out = sources.MAKERS[kind](tmp_path / "source", world), tmp_path / "out"
    shard(form, source, out, tmp_path, workers=2 if form == "jpg" else 1)
    check(out, form, world)
    first_s = [len(next(oracle.members(tar))[1]) for tar in sorted(out.glob("data/*.tar"))]
    assert len(first_s) == len(FIRST) and first_s[1:] == [*FIRST[1:]]  # of one byte: no image


def test_in_memory(world: list[Image], place: Path, tmp_path: Path) -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("no file system in memory here")
    source = sources.webdataset(tmp_path / "source", world)
    out = Path("/dev/shm") / f"glint-truth-{tmp_path.parent.name}-{tmp_path.name}"
    try:
        shard("both", source, out, tmp_path)
        check(out, "both", world)
    finally:
        shutil.rmtree(out, ignore_errors=True)


@pytest.mark.parametrize(
    ("form", "steps"),
    [
        ("both", ["reshard", "merge", "drop", "erase", "reshard"]),
        ("json", ["reshard", "erase"]),
        ("jpg", ["reshard", "merge", "erase"]),
    ],
)
def test_a_chain(form: str, steps: list[str], tmp_path: Path) -> None:
    """Rewrites keep images, labels and the members that a sample has."""
    images = sources.mixed(20 * MIB, seed=2)
    chain = chains.Chain(partial(oracle.glint, cwd=tmp_path), tmp_path, seed=5, workers=(1,))
    source = sources.recordio(tmp_path / "source", images)
    data = first = chain.shard(source, form, sources.usable(images))
    for step in steps:
        data = chain.step(step, data, first)


def lfw(folder: Path) -> list[Image]:
    """Return labels and images of a record file."""
    record = (folder / "train.rec").read_bytes()
    images = []
    for line in (folder / "train.idx").read_text().splitlines():
        at = int(line.split()[1])
        length, flag, label = struct.unpack_from("<4xIIf", record, at)
        assert length < 1 << 29  # one part
        if flag == 0 and length > 24:
            images.append((int(label), record[at + 32 : at + 8 + length]))
    return images


def test_real_size(shared: Path, tmp_path: Path) -> None:
    """LFW whole through shard, reshard, merge and erase; folders of it, with large ones between."""
    source = shared / "data" / "lfw"
    images = lfw(source)
    glint = partial(oracle.glint, cwd=tmp_path)
    glint("shard", source / "train.rec", tmp_path / "shard")
    for name in ("copy", "last"):
        shutil.copytree(tmp_path / "shard", tmp_path / name)
    glint("reshard", tmp_path / "shard", tmp_path / "reshard", "--samples-per-shard", 3000)
    glint("merge", tmp_path / "merge", tmp_path / "shard", tmp_path / "copy")
    erase = ("--id", "label:0", "--erase", tmp_path / "erase", "--reason", "truth")
    glint("drop", tmp_path / "last", *erase)
    some = [(i % 700, data) for i, (_, data) in enumerate(images[:6000])]
    behind = random.Random(0).randbytes(6 * MIB)
    large = [(label, data + behind * (i % 1500 == 0)) for i, (label, data) in enumerate(some)]
    sources.folder(tmp_path / "src", some)
    glint("shard", tmp_path / "src", tmp_path / "folder")
    glint("shard", tmp_path / "src", tmp_path / "json", "--with-json")
    shutil.rmtree(tmp_path / "src")
    sources.folder(tmp_path / "src", large)
    glint("shard", tmp_path / "src", tmp_path / "large")
    whole = sources.usable(images)
    left = Counter({k: n for k, n in whole.items() if k[1] != "0"})
    wanted: dict[str, Callable[[], Counter[sources.Sample]]] = {
        "shard": lambda: whole,
        "reshard": lambda: whole,
        "merge": lambda: whole + whole,
        "erase": lambda: left,
        "folder": lambda: sources.usable(some),
        "json": lambda: sources.usable(some),
        "large": lambda: sources.usable(large),
    }
    wrong = {}
    for name, expected in wanted.items():
        held = oracle.read(tmp_path / name, "json" if name == "json" else "both")
        wrong[name] = oracle.compare(held, expected())
    assert not any(wrong.values()), wrong
