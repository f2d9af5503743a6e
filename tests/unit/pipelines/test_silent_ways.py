"""Ways to be wrong with exit 0 that no other test tries: docs/acceptance.md lists all of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glint.conflicts.verdicts import ConflictOptions
from glint.errors import GlintError, InputError, MismatchError
from glint.models import checkpoint
from glint.pipelines import balance, coreset, embed
from glint.pipelines.conflicts import find
from glint.pipelines.dataset import drop, merge, reshard, rewrite
from glint.pipelines.dataset import shard as sharding
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.shards.embeddings import load
from glint.shards.verify import verify
from glint.stream import sampling

NO_MASKS = np.empty((0, 2), np.int64)
Make = Callable[..., Dataset]


class Stopped(Exception):
    """In the place of a kill."""


def stopping(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: int) -> None:
    """Have a function stop its caller, once it was called so often."""
    real, calls = getattr(owner, name), 0

    def stop(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Stopped
        return real(*args, **more)

    monkeypatch.setattr(owner, name, stop)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, jpeg: Callable[[int], bytes]) -> Path:
    """Two datasets of as many images and identities, in three shards."""
    top = tmp_path_factory.mktemp("sharded")
    for first, name in ((0, "one"), (20, "two")):
        for i in range(12):
            path = top / f"{name}-src" / f"p{i // 3}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(first + i))
        sharding.shard(top / f"{name}-src", top / name, sharding.Options(4))
    return top


@pytest.fixture
def sets(tmp_path: Path, sharded: Path) -> tuple[Path, Path]:
    """Copies of the two datasets."""
    one, two = (shutil.copytree(sharded / name, tmp_path / name) for name in ("one", "two"))
    return one, two


@pytest.mark.parametrize("finished", [False, True])
def test_another_dataset_of_the_same_shape_in_a_folder_of_embeddings(
    sets: tuple[Path, Path], blocks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    finished: bool,
) -> None:  # fmt: skip
    one, two = map(Dataset, sets)
    with monkeypatch.context() as patch:
        if not finished:
            stopping(patch, embed, "_finish", 0)
        try:
            embed.embed(one, blocks, tmp_path / "emb")
        except Stopped:
            assert not finished
    with pytest.raises(MismatchError, match="GL0006"):
        embed.embed(two, blocks, tmp_path / "emb")
    embed.embed(one, blocks, tmp_path / "emb")
    with pytest.raises(MismatchError, match="GL0402"):
        load(tmp_path / "emb", two.digest, images=12, classes=4)


def test_arrays_of_another_folder_of_embeddings(
    sets: tuple[Path, Path], blocks: Any, tmp_path: Path
) -> None:
    one, two = map(Dataset, sets)
    for name, dataset in (("a", one), ("b", two)):
        embed.embed(dataset, blocks, tmp_path / name)
    for name in ("samples.npy", "centres.npy"):
        mixed = shutil.copytree(tmp_path / "a", tmp_path / f"a-{name}")
        shutil.copy(tmp_path / "b" / name, mixed / name)
        with pytest.raises(InputError, match=f"GL0402.*{name}: expected the checksum"):
            load(mixed, one.digest, images=12, classes=4)


def test_centres_of_images_that_have_another_label_by_now(
    sets: tuple[Path, Path], blocks: Any, tmp_path: Path
) -> None:
    data = Dataset(sets[0])
    embed.embed(data, blocks, tmp_path / "emb")
    old = load(tmp_path / "emb", data.digest, images=12, classes=4)
    row = data.rows_of(0)[:1]
    labels.apply(data.root, np.arange(4), NO_MASKS, {}, row=row, label=np.array([1]))
    table = labels.current(data.root, 4)
    new = old.under(table, data.label)
    for label in range(4):
        mine = new.sample_ND[table.sample_label(data.label) == label].astype(np.float64)
        mean = mine.mean(0) / np.linalg.norm(mine.mean(0))
        np.testing.assert_allclose(new.centre_CD[label], mean, atol=1e-3)
    assert (new.centre_CD[:2] != old.centre_CD[:2]).any(axis=1).all()


def test_a_sampling_table_of_another_dataset_with_the_same_labels(
    sets: tuple[Path, Path],
) -> None:
    one, two = map(Dataset, sets)
    balance.balance(one, balance.Options())
    here, there = labels.current(one.root, 4), labels.current(two.root, 4)
    assert here.digest == there.digest
    with pytest.raises(GlintError, match="GL0305"):
        sampling.read(one.root / "sampling.parquet", np.full(4, 3), there, two.digest)


def test_a_core_set_of_another_dataset(
    sets: tuple[Path, Path], blocks: Any, tmp_path: Path
) -> None:
    one, two = map(Dataset, sets)
    embed.embed(one, blocks, tmp_path / "emb")
    rows = load(tmp_path / "emb", one.digest, images=12, classes=4)
    coreset.run(one, rows, tmp_path / "core", coreset.Options(ratio=0.75))
    with pytest.raises(GlintError, match="GL0305"):
        balance.balance(two, balance.Options(), coreset=tmp_path / "core")


def test_shards_that_changed_names(sets: tuple[Path, Path]) -> None:
    data = Dataset(sets[0])
    a, b = (data.shard_path(i) for i in (0, 1))
    a.rename(a.with_suffix(".x")), b.rename(a), a.with_suffix(".x").rename(b)
    with pytest.raises(InputError, match=r"GL030[23]"):
        Dataset(sets[0]).read(0)
    assert not verify(sets[0], deep=True).ok


def test_parts_of_two_checkpoints_in_one(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(
            tmp_path, step, backbone={"w": torch.full((2,), float(step))}, optimizer={},
            head=(0, 3, {"weight": torch.full((3, 2), float(step))}), state={}, keep=9,
        )  # fmt: skip
    one, two = checkpoint.all_in(tmp_path)
    for name in ("backbone.safetensors", "head-00000.safetensors", "state.json"):
        mixed = Path(shutil.copytree(two, tmp_path / "mixed" / two.name))
        shutil.copy(one / name, mixed / name)
        assert name in checkpoint.problem(mixed)
        shutil.rmtree(mixed.parent)


@pytest.mark.parametrize(
    "command, change",
    [
        *((command, change) for command in ("merge", "reshard", "erase")
          for change in ("labels", "drop", "nothing")),
        ("merge", "sources"),
    ],
)  # fmt: skip
def test_a_source_that_changed_before_the_same_command_went_on(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str,
    change: str,
) -> None:  # fmt: skip
    one, two = sets
    out = tmp_path / "out"
    sources = [two, one] if change == "sources" else [one, two]

    def work(roots: list[Path]) -> Any:
        if command == "merge":
            return merge.merge(out, roots, samples_per_shard=5)
        if command == "reshard":
            return reshard.reshard(roots[0], out, 5)
        return drop.drop(roots[0], ["label:1"], "asked", erase=out)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stopping(patch, rewrite, "write_manifest", 0)
        work([one, two])
    if change == "labels":
        labels.apply(one, np.array([0, 0, 1, 2]), NO_MASKS, {})
    if change == "drop":
        drop.drop(one, ["label:2"], "asked")
    if change == "nothing":
        work(sources)
        assert verify(out, deep=True).ok
        return
    with pytest.raises(MismatchError, match="GL0006"):
        work(sources)


def test_a_search_that_stopped_goes_on_with_the_rows_of_another_model(
    sets: tuple[Path, Path], blocks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Dataset(sets[0])
    real = type(blocks).embed
    for name, sign in (("a", 1.0), ("b", -1.0)):
        blocks.digest = f"sha256:{name}"
        blocks.embed = lambda image, sign=sign: np.cbrt(sign * real(blocks, image))
        embed.embed(data, blocks, tmp_path / name)
    options = ConflictOptions(threshold=0.2)
    first, second = (
        load(tmp_path / name, data.digest, images=12, classes=4) for name in ("a", "b")
    )
    find.run(data, second, tmp_path / "fresh", options, near=False, thumbs=False)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stopping(patch, find.outliers, "look_inside", 0)
        find.run(data, first, tmp_path / "conf", options, near=False, thumbs=False)
    find.run(data, second, tmp_path / "conf", options, near=False, thumbs=False)
    for name in ("pairs.parquet", "groups.parquet"):
        assert (tmp_path / "conf" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
