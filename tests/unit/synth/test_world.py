"""The synthetic world: its layout, its truth, and that its bytes depend on its options alone."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg

from glint.errors import BusyError, UsageError
from glint.evals.packs import read_bin
from glint.shards import recordio
from glint.synth import world as synth
from glint.synth.world import UNSEEN, World, cast, make

SMALL = World(identities=12, images=5, conflicts=2, lookalikes=2, damaged=3, unseen=20, pairs=40,
              seed=3)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "world"
    make(SMALL, out)
    return out


def records(out: Path) -> dict[int, tuple[recordio.Header, bytes]]:
    data = (out / "train.rec").read_bytes()
    idx = [line.split("\t") for line in (out / "train.idx").read_text().splitlines()]
    return {int(key): recordio.unpack(recordio.parse(data, int(offset))[0]) for key, offset in idx}


def test_layout_is_the_identity_layout(made: Path) -> None:
    found = records(made)
    keys = [int(line.split("\t")[0]) for line in (made / "train.idx").read_text().splitlines()]
    plan = cast(SMALL)
    total, labels = int(plan.count_C.sum()), 14
    assert keys == [*range(1, total + labels + 1), 0]
    header, payload = found[0]
    assert (header.flag, tuple(header.label), header.id2) == (2, (total + 1, total + labels + 1), 1)
    assert payload == b""
    at = 1
    for label in range(labels):
        header, payload = found[total + 1 + label]
        assert payload == b"" and tuple(header.label) == (at, at + plan.count_C[label])
        for key in range(at, at + int(plan.count_C[label])):
            assert found[key][0].label == label and found[key][0].flag == 0
        at += int(plan.count_C[label])
    assert (made / "property").read_text() == "14,112,112\n"
    assert not list(made.glob("*.tmp"))


def test_truth_says_what_was_planted(made: Path) -> None:
    truth = json.loads((made / "truth.json").read_text())
    rows = pq.read_table(made / "truth.parquet").to_pylist()
    person = {row["label"]: row["person"] for row in rows}
    for a, b in truth["conflicts"]:
        assert a < b and person[a] == person[b]
    views = [(row["person"], row["image"]) for row in rows]
    assert len(set(views)) == len(views)  # both labels of a person show other photographs
    alone = {p for p in person.values() if list(person.values()).count(p) == 1}
    for a, b in truth["lookalikes"]:
        assert person[a] != person[b] and {person[a], person[b]} <= alone
    assert sum(list(person.values()).count(p) == 2 for p in set(person.values())) == 2
    found = records(made)
    assert len(truth["damaged_keys"]) == 3
    assert set(truth["damaged_keys"].values()) == {"empty", "jpeg-truncated", "not-an-image"}
    for row in rows:
        payload = found[row["key"]][1]
        if row["damage"]:
            assert truth["damaged_keys"][str(row["key"])] == row["damage"]
            with pytest.raises(ValueError):
                simplejpeg.decode_jpeg(payload)
        else:
            assert simplejpeg.decode_jpeg(payload).shape == (112, 112, 3)


def test_images_of_a_person_vary_and_a_lookalike_shares_latents(made: Path) -> None:
    found = records(made)
    assert len({payload for _, payload in found.values() if payload}) == sum(
        1 for _, payload in found.values() if payload
    )
    plan = cast(SMALL)
    who, of = next(iter(plan.model.items()))
    one, two = synth.latents(SMALL, plan, who), synth.latents(SMALL, plan, of)
    assert 0.4 <= np.mean(one == two) <= 0.6
    assert np.mean(synth.latents(SMALL, plan, 0) == synth.latents(SMALL, plan, 1)) == 0


def test_pairs_are_balanced_and_people_stay_in_their_fold(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = read_bin(made / "pairs.bin")
    assert len(pack.same) == 40 and len(pack.images) == 80
    assert [int(fold.sum()) for fold in np.split(pack.same, 10)] == [2] * 10
    asked: list[tuple[int, int]] = []

    def note(latents: object, seed: int, who: int, view: int) -> bytes:
        asked.append((who, view))
        return b"x"

    monkeypatch.setattr(synth, "photograph", note)
    _, flags = synth.pairs(SMALL)
    folds = [{who for who, _ in asked[8 * f : 8 * f + 8]} for f in range(10)]
    assert all(who >= UNSEEN for fold in folds for who in fold)
    assert sum(len(fold) for fold in folds) == len(set().union(*folds))
    for i, same in enumerate(flags):
        (a, u), (b, v) = asked[2 * i], asked[2 * i + 1]
        assert (a == b) == same and (a, u) != (b, v)


def test_two_workers_write_the_same_bytes(made: Path, tmp_path: Path) -> None:
    make(SMALL, tmp_path / "again", workers=2)
    for name in ("train.rec", "train.idx", "property", "pairs.bin", "truth.json"):
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes(), name


def test_flipped_labels_are_told(tmp_path: Path) -> None:
    world = World(identities=10, images=6, conflicts=0, lookalikes=0, noise=0.3, damaged=0, pairs=0)
    got = make(world, tmp_path / "w")
    rows = pq.read_table(tmp_path / "w" / "truth.parquet").to_pylist()
    plan = cast(world)
    wrong = [row for row in rows if row["person"] != plan.person_C[row["label"]]]
    assert len(wrong) == got.flipped == sum(row["flipped"] for row in rows)
    assert 0.1 < len(wrong) / len(rows) < 0.5
    assert not (tmp_path / "w" / "pairs.bin").exists()


def test_the_tail_is_long_and_counts_keep_their_mean() -> None:
    counts = cast(World(identities=4000, images=20, tail=0.8)).count_C
    assert counts.min() >= 2 and abs(counts.mean() - 20) < 1
    assert np.quantile(counts, 0.99) > 4 * np.median(counts)
    assert set(cast(World(identities=50, images=20, tail=0.0, conflicts=0)).count_C) == {20}


def test_memory_does_not_grow_with_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synth, "photograph", lambda *_: bytes(5000))

    def peak(images: int) -> int:
        world = World(identities=50, images=images, damaged=0, pairs=0, tail=0.0)
        tracemalloc.start()
        make(world, tmp_path / str(images))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(320) < peak(32) + (4 << 20)  # 16,000 images of 5 kB would be 80 MB


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"images": 1}, "--images is 1, expected at least 2"),
        ({"identities": 10, "conflicts": 9}, r"conflicts \+ 2 x lookalikes"),
        ({"noise": 1.5}, "--noise is 1.5"),
        ({"pairs": 30}, "multiple of 20"),
        ({"unseen": 5}, "--unseen is 5, expected at least 20"),
        ({"unseen": 20, "pairs": 6000}, "at most"),
    ],
)
def test_impossible_worlds_are_refused(tmp_path: Path, change: dict, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        make(World(**change), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(BusyError, match="not empty"):
        make(SMALL, tmp_path)
