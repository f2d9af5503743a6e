"""Identities held out: whom the lists name, folds apart, groups even, and who is then dropped."""

from __future__ import annotations

import csv
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.errors import InputError, UsageError
from glint.evals.packs import read_bin
from glint.pipelines import embed
from glint.pipelines.dataset.drop import drop, listed
from glint.pipelines.dataset.shard import shard
from glint.pipelines.dataset.split import split
from glint.shards import labels
from glint.shards.dataset import Dataset


class Colours:
    dim, size, name, digest = 48, 112, "colours", "sha256:none"

    def embed(self, image_nHWC: np.ndarray) -> np.ndarray:
        part = image_nHWC.reshape(len(image_nHWC), 4, 28, 4, 28, 3).mean((2, 4))
        return (part.reshape(len(part), -1) - 127.5).astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, jpeg: Any) -> Path:
    root = tmp_path_factory.mktemp("split")
    for person in range(60):
        for number in range(1 if person < 5 else 4):
            path = root / "faces" / f"P{person:02d}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(1000 * person + number))
    shard(root / "faces", root / "data")
    return root / "data"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_held_out_people_fill_folds_of_their_own(data: Path, tmp_path: Path) -> None:
    made = split(data, tmp_path / "test", 40, pairs=400, seed=3)
    named = rows(tmp_path / "test" / "easy.tsv")
    assert made.lists == {"easy": len(named)} and made.people == 40 and made.images == 160
    assert sum(row["same"] == "1" for row in named) * 2 == len(named)
    fold_of: dict[str, str] = {}
    for row in named:
        one, two = row["a"].split("/")[0], row["b"].split("/")[0]
        assert (one == two) == (row["same"] == "1") and row["a"] != row["b"]
        assert {fold_of.setdefault(p, row["fold"]) for p in (one, two)} == {row["fold"]}
    assert len({(row["a"], row["b"]) for row in named}) == len(named)
    pack = read_bin(tmp_path / "test" / "easy.bin")
    source = {name: i for i, name in enumerate(Dataset(data).source)}
    assert pack.images[1] == Dataset(data).read(source[named[0]["b"]])
    assert pack.same.tolist() == [row["same"] == "1" for row in named]
    assert split(data, tmp_path / "again", 40, pairs=400, seed=3).lists == made.lists
    again = (tmp_path / "again" / "easy.tsv").read_bytes()
    assert again == (tmp_path / "test" / "easy.tsv").read_bytes()


def test_who_is_held_out_is_dropped_and_no_one_else(data: Path, tmp_path: Path) -> None:
    split(data, tmp_path / "test", 40, pairs=100)
    ids = listed(tmp_path / "test" / "ids.txt")
    assert len(ids) == 40
    told = drop(data, ids, "held out", dry_run=True)
    held = {
        row[side].split("/")[0] for row in rows(tmp_path / "test" / "easy.tsv") for side in "ab"
    }
    names = Dataset(data).identities().column("source_label").to_pylist()
    assert held <= {names[i] for i in told.identities} and len(told.identities) == 40
    assert labels.current(data, 60).classes == 60
    (tmp_path / "bad.txt").write_text("nobody\n")
    with pytest.raises(UsageError, match="nobody"):
        drop(data, listed(tmp_path / "bad.txt"), "held out", dry_run=True)
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(UsageError, match="no identity"):
        listed(tmp_path / "none.txt")


def test_hard_pairs_are_harder_and_groups_are_even(data: Path, tmp_path: Path) -> None:
    embed.embed(Dataset(data), Colours(), tmp_path / "emb", dtype="float32", workers=1)
    groups = {f"P{p:02d}": "ab"[p % 2] for p in range(60)}
    made = split(data, tmp_path / "test", 40, pairs=400, embeddings=tmp_path / "emb", groups=groups)
    assert made.groups == {"a": 20, "b": 20}
    x = np.load(tmp_path / "emb" / "samples.npy")
    row = {name: i for i, name in enumerate(Dataset(data).source)}
    mean = {}
    for name in ("easy", "hard"):
        for same in "01":
            own = [r for r in rows(tmp_path / "test" / f"{name}.tsv") if r["same"] == same]
            mean[name, same] = np.mean([x[row[r["a"]]] @ x[row[r["b"]]] for r in own])
    assert mean["hard", "1"] < mean["easy", "1"] and mean["hard", "0"] > mean["easy", "0"]
    count: dict[tuple[str, str], int] = {}
    for one in rows(tmp_path / "test" / "balanced.tsv"):
        a, b = (groups[one[side].split("/")[0]] for side in "ab")
        assert a == b
        count[a, one["same"]] = count.get((a, one["same"]), 0) + 1
    assert len(set(count.values())) == 1 and len(count) == 4
    with pytest.raises(UsageError, match="are asked for"):
        split(data, tmp_path / "more", 58)


def record(path: Path, label: int, image: bytes, key: int) -> None:
    """Append a record as mxnet writes it."""
    data = struct.pack("<IfQQ", 0, float(label), key, 0) + image
    with path.open("ab") as file:
        file.write(struct.pack("<II", 0xCED7230A, len(data)) + data + b"\0" * (-len(data) % 4))


def test_nameless_labels_get_names(tmp_path: Path, jpeg: Any) -> None:
    (tmp_path / "src").mkdir()
    for key in range(12):
        record(tmp_path / "src" / "train.rec", key // 3, jpeg(key), key)
    table = tmp_path / "names.tsv"
    table.write_text("key\tlabel\tperson\n1\t0\tAnn\n2\t0\tAnn\n3\t1\tBo\n4\t3\tDi\n")
    made = shard(tmp_path / "src" / "train.rec", tmp_path / "data", names=table)
    assert made.recognised["names"] == {"table": "names.tsv", "named": 3, "of": 4}
    assert Dataset(tmp_path / "data").identities().column("name").to_pylist() == [
        "Ann", "Bo", None, "Di",
    ]  # fmt: skip
    table.write_text("0\tAnn\n0\tBo\n")
    with pytest.raises(InputError, match="both Ann and Bo"):
        shard(tmp_path / "src" / "train.rec", tmp_path / "two", names=table)
    table.write_text("17\tAnn\n")
    with pytest.raises(InputError, match="none of the 4 labels"):
        shard(tmp_path / "src" / "train.rec", tmp_path / "three", names=table)
