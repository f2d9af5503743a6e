"""glint verify: all that is not as it was written is found and named."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glint.errors import InputError, MismatchError
from glint.files import atomic, parquet, seal
from glint.pipelines.dataset import shard as stage
from glint.shards import labels
from glint.shards import walk as walking
from glint.shards.dataset import Dataset
from glint.shards.tar import BLOCK
from glint.shards.verify import verify
from glint.shards.walk import Problem, index

Jpeg = Callable[[int], bytes]
NONE = np.empty((0, 2), np.int64)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, jpeg: Jpeg) -> Path:
    """Give a dataset of three shards, one quarantined record and two label versions."""
    root = tmp_path_factory.mktemp("verify")
    for i in range(24):
        path = root / "src" / f"id{i // 4}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i) if i != 5 else b"<html>")
    stage.shard(root / "src", root / "set", stage.Options(8, with_json=True))
    labels.apply(root / "set", np.array([0, 0, 1, 2, 3, 4]), np.array([[1, 2]]), {"by": "test"})
    labels.apply(root / "set", np.array([0, 0, 1, 2, -1, 3]), NONE, {"by": "test"})
    seal.append(root / "set/_glint/tombstones.jsonl", {"op": "drop", "labels": [4]}, "GL0304")
    return root / "set"


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    """Give a copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "set"))


def said(root: Path, deep: bool = True) -> list[dict[str, Any]]:
    result = verify(root, deep=deep, workers=2)
    assert result.ok == (result.problem_count == 0) == (not result.problems)
    problems = [asdict(problem) for problem in result.problems]
    return problems


def flip(path: Path, bit: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)


def test_a_good_dataset_is_good(made: Path) -> None:
    steps: list[tuple[int, int]] = []
    result = verify(
        made,
        deep=True,
        workers=2,
        progress=lambda done, total, note="": steps.append((done, total)),
    )
    assert result.ok and result.problems == [] and result.notes == []
    assert (result.samples, result.shards, result.label_version) == (23, 3, 2)
    assert steps[-1] == (result.bytes, result.bytes)
    assert said(made, deep=False) == []


def test_every_flipped_bit_is_found(made: Path) -> None:
    """Flip bits everywhere in every file that glint wrote; each must be found, and its file named.

    Bits are drawn at random, and every bit of the manifest's first and last bytes is tried.
    """
    rng = np.random.default_rng(0)
    files = [
        p for p in sorted(made.rglob("*")) if p.is_file() and p.name not in ("lock", "plan.json")
    ]
    assert len(files) == 18
    for path in files:
        raw = path.read_bytes()
        bits = set(rng.integers(0, 8 * len(raw), 8).tolist())
        if path.suffix in (".json", ".jsonl"):
            bits |= {*range(8), *range(8 * len(raw) - 8, 8 * len(raw))}
        for bit in sorted(bits):
            flip(path, bit)
            try:
                problems = said(made)
                named = str(path.relative_to(made))
                assert problems, (named, bit)
                assert any(p["file"] in (named, "labels") for p in problems), (named, bit, problems)
            finally:
                path.write_bytes(raw)
    assert said(made) == []


def test_every_bit_of_a_sample_is_found_where_it_is(data: Path) -> None:
    """Headers, image, paddings and label of one sample: named by key and place."""
    dataset = Dataset(data)
    row = 10
    path = data / "data" / dataset.shards[int(dataset.shard[row])]
    at, size, key = int(dataset.offset[row]), int(dataset.size[row]), dataset.key[row]
    end = int(dataset.offset[row + 1]) - BLOCK
    for byte in [
        *range(at - BLOCK, at + 40, 9),
        at + size - 1,
        at + size,
        at + size + 1,
        *range(at + size + -size % BLOCK, at + size + -size % BLOCK + 600, 29),
        end - 1,
    ]:
        flip(path, 8 * byte + byte % 8)
        (problem,) = said(data)
        assert problem["file"] == f"data/{path.name}" and problem["shard"] == path.name
        where = problem["offset"]
        if problem["key"] is None:  # a byte of KEY.json: only the shard's own digest covers it
            assert byte > at + size and "sha256" in problem["expected"]
        else:
            assert problem["key"] == key and problem["expected"] != problem["found"]
            assert where % BLOCK == 0 or where == byte
            assert where <= byte < where + max(BLOCK, size)
        flip(path, 8 * byte + byte % 8)
    assert said(data) == []


def test_what_a_problem_says(data: Path) -> None:
    dataset = Dataset(data)
    at, key = int(dataset.offset[0]), dataset.key[0]
    flip(data / "data/train-000000.tar", 8 * (at + 5))
    result = verify(data, deep=True)
    digest = dataset.digests[0].tobytes().hex()
    assert result.shown[0].startswith(
        f"GL0303 data/train-000000.tar key {key} @ 0x{at:x}: the image bytes do not match their "
        f"checksum: expected xxh3-128 {digest}, found "
    )
    assert verify(data).ok  # not deep: no shard is read
    assert str(Problem("GL0302", "gone", "data/x.tar")) == "GL0302 data/x.tar: gone"


def test_cut_shards(data: Path) -> None:
    path = data / "data/train-000001.tar"
    raw = path.read_bytes()
    for size in [0, 1, 511, 512, *range(1024, len(raw), 3072), len(raw) - 1]:
        path.write_bytes(raw[:size])
        for deep in (True, False):
            problems = said(data, deep)
            assert problems[0]["what"] == "the shard has another size" or problems[0]["offset"] > 0
            assert any(p["found"] == f"{size} bytes" for p in problems), (size, problems)
    path.write_bytes(b"\0" * len(raw))
    assert len(said(data)) == 14  # an image and a header of each sample
    path.write_bytes(raw + b"\0" * 512)
    assert said(data)[0]["what"] == "the shard has another size"


def test_missing_extra_renamed_swapped(data: Path) -> None:
    one, two = data / "data/train-000000.tar", data / "data/train-000001.tar"
    raw = {p: p.read_bytes() for p in (one, two)}
    one.rename(data / "data/train-000009.tar")
    lost, extra = said(data)
    assert lost["what"] == "the shard is missing" and lost["shard"] == one.name
    assert extra["file"] == "data/train-000009.tar"
    assert extra["found"] == "the bytes of train-000000.tar"
    assert [p["file"] for p in said(data, deep=False)] == [lost["file"], extra["file"]]
    (data / "data/train-000009.tar").rename(one)
    one.write_bytes(raw[two])
    two.write_bytes(raw[one])
    assert [(p["shard"], p["found"]) for p in said(data)] == [
        (one.name, f"the bytes of {two.name}"),
        (two.name, f"the bytes of {one.name}"),
    ]
    one.write_bytes(raw[one])
    two.write_bytes(raw[two])
    (data / "data/train-000002.tar.tmp.77").write_bytes(b"half")
    result = verify(data, deep=True)
    assert result.ok and "was left by a run that was killed" in result.notes[0]


def test_a_well_sealed_lie_is_found(data: Path) -> None:
    """A table changed with its digest renewed contradicts the shards, the counts or itself."""

    def lie(table: Any) -> list[dict[str, Any]]:
        parquet.write(data / "samples.parquet", table)
        manifest = atomic.read_json(data / "manifest.json")
        manifest["files"][0] = seal.entry(data / "samples.parquet")
        atomic.write_json(data / "manifest.json", seal.sealed(manifest))
        return said(data)

    good = pq.read_table(data / "samples.parquet")
    assert lie(good) == []

    def change(name: str, row: int, value: object) -> Any:
        column = good.column(name).to_pylist()
        column[row] = value
        place = good.schema.get_field_index(name)
        field = good.schema.field(place)
        return good.set_column(place, field, pa.array(column, field.type))

    assert any("checksum" in p["what"] for p in lie(change("digest", 3, b"x" * 16)))
    assert any(
        p["what"] == "the label in the shard is not the index's"
        for p in lie(change("label", 3, (good.column("label")[3].as_py() + 1) % 6))
    )
    assert any("another size than the index" in p["what"] for p in lie(change("size", 3, 77)))
    assert any("does not describe a tar" in p["what"] for p in lie(change("offset", 3, 513)))
    assert any("does not describe a tar" in p["what"] for p in lie(change("size", 3, 2**31 - 1)))
    assert any("has another name" in p["what"] for p in lie(change("key", 22, "999999999")))
    assert any("keys do not ascend" in p["what"] for p in lie(change("key", 3, "000000000")))
    assert any("not nine digits" in p["what"] for p in lie(change("key", 3, "00.00")))
    assert any("out of range" in p["what"] for p in lie(change("label", 3, 6)))
    assert any("follows shard" in p["what"] for p in lie(change("shard", 3, 2)))
    assert any("empty cell" in p["what"] for p in lie(change("digest", 3, None)))
    found = lie(good.slice(0, 20))
    assert {
        "the index has another number of samples",
        "the index has another number of samples of this shard",
    } <= {p["what"] for p in found}
    assert lie(good) == []


def test_labels_and_takedowns(data: Path) -> None:
    with pytest.raises(MismatchError, match=r"GL0308.*identity 4 was taken down"):
        labels.undo(data)  # to version 1: identity 4, taken down, would be back
    assert said(data, deep=False) == []
    now = (data / "labels/current.json").read_bytes()
    atomic.write_json(data / "labels/current.json", {"version": 1, "file": "v0001.parquet"})
    assert said(data, deep=False) == []  # one line behind, as after a crash: the history counts
    atomic.write_json(data / "labels/current.json", {"version": 0, "file": None})
    assert {problem["code"] for problem in said(data, deep=False)} == {"GL0304"}
    (data / "labels/current.json").write_bytes(now)
    assert said(data, deep=False) == []
    (data / "labels/v0001.masks.parquet").unlink()
    (problem,) = said(data, deep=False)
    assert (problem["file"], problem["what"]) == (
        "labels/v0001.masks.parquet",
        "the file is missing",
    )


def test_what_is_no_dataset(tmp_path: Path, data: Path) -> None:
    with pytest.raises(InputError, match="GL0301 not-a-dataset"):
        verify(tmp_path / "none")
    manifest = atomic.read_json(data / "manifest.json")
    del manifest["seal"], manifest["files"]
    atomic.write_json(data / "manifest.json", manifest)
    found = said(data)
    assert found[0]["expected"] == "" and "field 'seal'" in found[0]["what"]
    assert sum("no digest of" in p["what"] for p in found) == 3
    (data / "manifest.json").write_bytes(b"{}")
    assert said(data)[0]["file"] == "manifest.json"


def test_problems_are_counted_and_capped(data: Path) -> None:
    assert [(number, len(rows.label_n)) for number, rows in index(Dataset(data))] == [
        (0, 8),
        (1, 7),
        (2, 8),
    ]
    for path in sorted((data / "data").glob("*.tar")):  # an image and a header of each sample
        path.write_bytes(b"\0" * path.stat().st_size)
    for i in range(80):
        (data / f"data/more-{i}.tar").touch()
    result = verify(data, deep=True)
    assert (result.problem_count, len(result.problems)) == (80 + 2 * 23, 100)


def test_a_tar_that_tarfile_wrote_is_walked(data: Path) -> None:
    """The walk reads USTAR as it is, not only what glint's own writer makes of it."""
    path = data / "data/train-000000.tar"
    plain = io.BytesIO()
    with (
        tarfile.open(path) as old,
        tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as new,
    ):
        for member in old:
            member.uname = "somebody"
            new.addfile(member, old.extractfile(member))
    path.write_bytes(plain.getvalue())
    (problem,) = said(data)  # only its digest tells: names, sizes, labels and images are right
    assert problem["what"] == "the shard's bytes have changed"


def test_a_tombstone_that_is_gone(data: Path) -> None:
    table = labels.current(data, Dataset(data).classes)
    target = table.target.copy()
    target[target == target.max()] = -1
    gone = int(np.flatnonzero((target < 0) & (table.target >= 0))[0])
    labels.apply(data, target, np.zeros((0, 2), np.int64), {"stage": "drop", "labels": [gone]})
    (problem,) = said(data, deep=False)
    assert problem["what"] == f"identity {gone} was taken down and has no tombstone (1 in all)"
    seal.append(data / "_glint/tombstones.jsonl", {"op": "drop", "labels": [gone]}, "GL0304")
    assert said(data, deep=False) == []


def test_what_stands_in_the_place_of_a_file(data: Path) -> None:
    """A folder, a pipe, a device or a link to nowhere is named, and nothing waits for it."""
    files = [p for p in sorted(data.rglob("*")) if p.is_file() and "_glint" not in p.parts]
    makers: dict[str, Callable[[Path], None]] = {
        "a folder": Path.mkdir,
        "a pipe": os.mkfifo,
        "a device": lambda path: path.symlink_to("/dev/zero"),
        "a link that leads nowhere": lambda path: path.symlink_to("nowhere"),
    }
    for path in [*files, data / "_glint/tombstones.jsonl", data / "sampling.parquet"]:
        raw, named = path.read_bytes() if path.exists() else None, str(path.relative_to(data))
        for what, make in makers.items():
            path.unlink(missing_ok=True)
            make(path)
            for deep in (True, False):
                if path.name == "manifest.json":
                    with pytest.raises(InputError, match="GL0301"):
                        verify(data, deep=deep)
                    continue
                problems = said(data, deep)
                found = [p for p in problems if p["file"] in (named, named.split("/")[0])]
                assert any(what in p["found"] + p["what"] for p in found), (named, what, problems)
            path.rmdir() if what == "a folder" else path.unlink()
        if raw is not None:
            path.write_bytes(raw)
    assert said(data) == []


def test_reads_that_fail_are_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(walking._Hashed, "readinto", fail)
        problems = said(data)
        assert {p["code"] for p in problems} == {"GL0903"} and len(problems) == 3
    for place, name in ((atomic, "sha256"), (seal, "lines"), (Path, "iterdir"), (seal, "check")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fail)
            assert {p["code"] for p in said(data)} == {"GL0903"}, name


@pytest.mark.parametrize("what", ["link", "dangling", "pipe", "file"])
@pytest.mark.parametrize("name", ["_glint", "labels", "_glint/lock", "labels/lock", "_glint/x.bin"])
def test_what_glint_writes_to_is_its_own(data: Path, name: str, what: str) -> None:
    """A link, a pipe or a file in the place of a private folder, and a link or pipe of a lock."""
    path, named = data / name, name
    if path.is_dir():
        path.rename(data.parent / "elsewhere")
    else:
        path.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(path)
    elif what == "file":
        if "/" in name:
            return
        path.touch()
    else:
        path.symlink_to(data.parent / ("elsewhere" if what == "link" else "nowhere"))
    for deep in (True, False):
        found = [p["what"] for p in said(data, deep) if p["file"] == named]
        wanted = {"pipe": "a pipe", "file": "a file"}.get(what, "a symbolic link")
        assert any("glint's own" in one and wanted in one for one in found), found


def test_links_elsewhere_are_noted(data: Path) -> None:
    for name in ("data/train-000001.tar", "data/train-000002.tar"):
        (data / name).rename(data.parent / Path(name).name)
        (data / name).symlink_to(data.parent / Path(name).name)
    result = verify(data, deep=True)
    assert result.ok
    assert result.notes == [
        "data/train-000001.tar and 1 more: symbolic links, read where they lead"
    ]
