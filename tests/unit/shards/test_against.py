"""glint verify --against: every image and label is that of the source, whatever the index says."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from glint.errors import InputError, UsageError
from glint.files import atomic, parquet, seal
from glint.pipelines.dataset import drop as taking
from glint.pipelines.dataset import merge as joining
from glint.pipelines.dataset import shard as stage
from glint.pipelines.dataset.reshard import reshard
from glint.shards import recordio
from glint.shards.verify import survey, verify

Jpeg = Callable[[int], bytes]
N = 24
ZEROS = {"missing": 0, "other_bytes": 0, "other_label": 0, "unknown": 0}


def image(jpeg: Jpeg, i: int) -> bytes:
    """Give an image, padded so that several are of one size; one is quarantined."""
    return jpeg(i) + bytes(-len(jpeg(i)) % 256) if i != 5 else b"<html>"


def folder(root: Path, jpeg: Jpeg) -> Path:
    for i in range(N):
        path = root / f"id{i // 4}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(jpeg, i))
    return root


def records(root: Path, jpeg: Jpeg) -> Path:
    root.mkdir()
    with recordio.Writer(root / "train.rec", root / "train.idx") as writer:
        for i in range(N):
            writer.write(i + 1, recordio.pack(float(3 * (i // 4)), i + 1, 0, image(jpeg, i)))
    return root / "train.rec"


def tar(root: Path, jpeg: Jpeg) -> Path:
    with tarfile.open(root, "w") as out:
        for i in [*range(N), 3]:  # one name twice: the second is quarantined
            info = tarfile.TarInfo(f"set/id{i // 4}/{i}.jpg")
            info.size = len(image(jpeg, i))
            out.addfile(info, io.BytesIO(image(jpeg, i)))
    return root


def webdataset(root: Path, jpeg: Jpeg) -> Path:
    root.mkdir()
    for number in range(2):
        with tarfile.open(root / f"part-{number}.tar", "w") as out:
            for i in range(number, N, 2):
                for suffix, data in (("jpg", image(jpeg, i)), ("cls", b"%d" % (i // 4))):
                    info = tarfile.TarInfo(f"{i // 2}.{suffix}")  # names of the two are the same
                    info.size = len(data)
                    out.addfile(info, io.BytesIO(data))
    return root


def table(root: Path, jpeg: Jpeg) -> Path:
    root.mkdir()
    for number in range(2):
        rows = range(number, N, 2)
        images = pa.array([image(jpeg, i) for i in rows], pa.binary())
        columns = {"image": images, "label": [i // 4 for i in rows]}
        pq.write_table(pa.table(columns), root / f"part-{number}.parquet")
    return root


SOURCES = {f.__name__: f for f in (folder, records, tar, webdataset, table)}


def told(root: Path, *sources: Path, deep: bool = False) -> dict[str, Any]:
    result = verify(root, sources=sources, deep=deep)
    assert result.ok == (not result.problem_count)
    return result


def good(root: Path, *sources: Path, n: int = N - 1, **other: int) -> None:
    result = told(root, *sources)
    assert result.ok, result.shown
    said = {"source": [str(source) for source in sources], "compared": n, **ZEROS, **other}
    assert asdict(result.against) == said


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, jpeg: Jpeg) -> Path:
    """Give a folder of identities as `src` and its dataset of three shards as `set`."""
    root = tmp_path_factory.mktemp("against")
    stage.shard(folder(root / "src", jpeg), root / "set", stage.Options(8))
    return root


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    """Give a copy of the dataset that a test may spoil."""
    return Path(shutil.copytree(made / "set", tmp_path / "set"))


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("options", [{}, {"members": "jpg"}, {"unlabelled": True}])
def test_every_kind_of_source(
    tmp_path: Path, jpeg: Jpeg, kind: str, options: dict[str, Any]
) -> None:
    source = SOURCES[kind](tmp_path / "src", jpeg)
    stage.shard(source, tmp_path / "set", stage.Options(10, with_json=not options, **options))
    steps: list[tuple[int, int]] = []
    verify(tmp_path / "set", sources=[source], progress=lambda d, t, note="": steps.append((d, t)))
    assert steps[-1][0] == steps[-1][1] >= N
    good(tmp_path / "set", source)
    reshard(tmp_path / "set", tmp_path / "again", 7)
    good(tmp_path / "again", source)
    good(tmp_path / "again", tmp_path / "set")


def test_a_dataset_proves_nothing_of_itself(data: Path) -> None:
    with pytest.raises(UsageError, match=r"GL0002 .*nothing of itself"):
        told(data, data.parent / "." / data.name)


def test_merged_and_erased(tmp_path: Path, jpeg: Jpeg) -> None:
    sources = [folder(tmp_path / "src" / "a", jpeg), records(tmp_path / "src" / "b", jpeg)]
    a, b, both, all_ = (tmp_path / name for name in ("a", "b", "both", "all"))
    stage.shard(sources[0], a, stage.Options(9))
    stage.shard(sources[1], b, stage.Options(9, unlabelled=True))
    joining.merge(both, [a, b], samples_per_shard=11)
    good(both, a, b, n=2 * N - 2)
    good(both, *sources, n=2 * N - 2)
    with pytest.raises(UsageError, match=r"expected 2 \(in this order: a, b\), found 1"):
        told(both, a)
    with pytest.raises(UsageError, match="expected one, found 2"):
        told(a, *sources)
    assert not told(both, b, a).ok
    joining.merge(all_, [a, both])
    good(all_, a, both, n=3 * N - 3)
    reshard(both, tmp_path / "re", 5)
    good(tmp_path / "re", both, n=2 * N - 2)
    good(tmp_path / "re", a, b, n=2 * N - 2)
    taking.drop(tmp_path / "re", ["label:2"], reason="asked", erase=tmp_path / "less")
    good(tmp_path / "less", both, n=2 * N - 6, missing=4)
    good(tmp_path / "less", *sources, n=2 * N - 6, missing=4)
    taking.drop(a, ["id1"], reason="asked", erase=tmp_path / "a1")  # with the quarantined record
    good(tmp_path / "a1", sources[0], n=N - 4, missing=4)
    good(tmp_path / "a1", a, n=N - 4, missing=3)
    taking.drop(tmp_path / "a1", ["id2"], reason="asked", erase=tmp_path / "a2")
    good(tmp_path / "a2", tmp_path / "a1", n=N - 8, missing=4)
    manifest = atomic.read_json(tmp_path / "a2/manifest.json")
    atomic.write_json(tmp_path / "a2/manifest.json", seal.sealed({**manifest, "erased": 8}))
    assert any("not as many as were erased" in line for line in told(tmp_path / "a2", a).shown)


def sealed_again(root: Path, rows: pa.Table | None = None) -> None:
    """Make index and manifest agree with the shards as they are now."""
    path = root / "samples.parquet"
    rows = pq.read_table(path) if rows is None else rows
    names = sorted(p.name for p in (root / "data").glob("*.tar"))
    tars = {name: (root / "data" / name).read_bytes() for name in names}
    digests = []
    for row in rows.select(["shard", "offset", "size"]).to_pylist():
        raw = tars[names[row["shard"]]][row["offset"] : row["offset"] + row["size"]]
        digests.append(xxhash.xxh3_128_digest(raw))
    place = rows.schema.get_field_index("digest")
    parquet.write(path, rows.set_column(place, "digest", pa.array(digests, pa.binary(16))))
    manifest = atomic.read_json(root / "manifest.json")
    for entry in manifest["shards"]:
        entry["sha256"] = hashlib.sha256(tars[entry["name"]]).hexdigest()
        entry["bytes"] = len(tars[entry["name"]])
    manifest["files"] = [seal.entry(root / entry["name"]) for entry in manifest["files"]]
    atomic.write_json(root / "manifest.json", seal.sealed(manifest))


def replaced(rows: pa.Table, name: str, values: list[Any]) -> pa.Table:
    place = rows.schema.get_field_index(name)
    return rows.set_column(place, name, pa.array(values, rows.schema.field(place).type))


def test_a_lie_that_deep_cannot_see(data: Path, made: Path, jpeg: Jpeg) -> None:
    """Two images of one size change places, and all digests are made anew."""
    rows = pq.read_table(data / "samples.parquet").to_pylist()
    size = {}
    one, two = next(
        (size[row["size"]], row) for row in rows if size.setdefault(row["size"], row) is not row
    )
    names = sorted(p for p in (data / "data").glob("*.tar"))
    for row, other in ((one, two), (two, one)):
        raw = bytearray(names[row["shard"]].read_bytes())
        data_ = image(jpeg, int(Path(other["source"]).stem))
        raw[row["offset"] : row["offset"] + len(data_)] = data_
        names[row["shard"]].write_bytes(raw)
    sealed_again(data)
    assert verify(data, deep=True).ok
    result = told(data, made / "src", deep=True)
    assert result.against.other_bytes == result.problem_count == 2
    assert {p.key for p in result.problems} == {one["key"], two["key"]}
    assert {p.code for p in result.problems} == {"GL0303"}
    assert f"not that of {one['source']} in the source" in " ".join(result.shown)
    assert told(data, made / "set").against.other_bytes == 2


def test_a_swapped_label_that_deep_cannot_see(data: Path, made: Path) -> None:
    rows = pq.read_table(data / "samples.parquet")
    label = rows.column("label").to_pylist()
    i, j = 0, next(k for k in range(len(label)) if label[k] != label[0])
    sizes = {row["key"]: row for row in rows.to_pylist()}
    for row in (i, j):  # the text in KEY.cls is one digit: the same place in the tar
        said = sizes[f"{rows.column('key')[row].as_py()}"]
        path = sorted((data / "data").glob("*.tar"))[said["shard"]]
        raw, at = bytearray(path.read_bytes()), said["offset"] + said["size"]
        at += -said["size"] % 512 + 512
        assert raw[at : at + 1] == b"%d" % label[row]
        raw[at : at + 1] = b"%d" % label[j if row == i else i]
        path.write_bytes(raw)
    for columns in (["label"], ["label", "source_label"]):
        lie = rows
        for name in columns:
            values = rows.column(name).to_pylist()
            values[i], values[j] = values[j], values[i]
            lie = replaced(lie, name, values)
        sealed_again(data, lie)
        assert verify(data, deep=True).ok
        for source in (made / "src", made / "set"):
            result = told(data, source)
            assert asdict(result.against) == {
                "source": [str(source)], "compared": N - 1, **ZEROS, "other_label": 2
            }  # fmt: skip
            assert result.problem_count == 2 and "label is not that of" in result.shown[0]


def test_what_is_missing_and_what_came_from_nowhere(data: Path, made: Path, tmp_path: Path) -> None:
    src = Path(shutil.copytree(made / "src", tmp_path / "src"))
    (src / "id0" / "0.jpg").rename(src / "id0" / "new.jpg")
    result = told(data, src)
    assert asdict(result.against) == {
        "source": [str(src)], "compared": N - 2, **ZEROS, "missing": 1, "unknown": 1
    }  # fmt: skip
    assert {(p.expected, p.found) for p in result.problems} == {
        ("id0/new.jpg", "no sample"),
        ("a record", "id0/0.jpg"),
    }
    (src / "id0" / "new.jpg").rename(src / "id0" / "0.jpg")
    good(data, src)
    (src / "id1" / "6.jpg").write_bytes(b"")
    (src / "id1" / "7.jpg").write_bytes((src / "id1" / "7.jpg").read_bytes() + b"x")
    assert told(data, src).against.other_bytes == 2


def test_names_of_one_hash(
    data: Path, made: Path, monkeypatch: pytest.MonkeyPatch, jpeg: Jpeg
) -> None:
    from glint.shards import against

    whole = against._hash
    monkeypatch.setattr(against, "_hash", lambda *words: whole(*words) % 3)
    result = told(data, made / "src").against
    assert result.other_bytes == result.missing == result.unknown == 0
    assert result.compared == N - 1


def test_damaged_datasets_are_compared_as_far_as_can_be(data: Path, made: Path) -> None:
    src, first = made / "src", data / "data/train-000000.tar"
    files = [p for p in sorted(data.rglob("*")) if p.is_file() and "_glint" not in p.parts]
    whole = {path: path.read_bytes() for path in files}
    for path in files:
        for data_ in (b"", whole[path][:-9], bytes(len(whole[path])), whole[path] + b"x", None):
            path.unlink()
            if data_ is None:
                os.mkfifo(path)
            else:
                path.write_bytes(data_)
            try:
                assert not told(data, src, deep=True).ok or path.name == "lock"
            except InputError as error:
                assert path.name == "manifest.json" and data_ is None, error
            path.unlink()
            path.write_bytes(whole[path])
    first.unlink()
    result = told(data, src)
    assert result.problem_count == 1 and result.against.compared == N - 1 - 8
    first.mkdir()
    (problem,) = told(data, src, deep=True).problems
    assert (problem.code, problem.found) == ("GL0302", "a folder")
    first.rmdir()
    first.write_bytes(bytes(len(whole[first])))
    assert told(data, src).against.other_bytes == 8


def test_what_would_be_read(made: Path) -> None:
    said = survey(made / "set", [made / "src", made / "set"])
    assert [asdict(one) for one in said.against] == [
        {"source": str(made / "src"), "kind": "folder"},
        {"source": str(made / "set"), "kind": "dataset"},
    ]
    with pytest.raises(UsageError, match="GL0001"):
        verify(made / "set", sources=[made / "none"])


def test_real_faces(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "lfw" / "train.rec"
    if not source.exists():
        pytest.skip("GLINT_SHARED holds no LFW")
    stage.shard(source, tmp_path / "set", stage.Options(3000))
    good(tmp_path / "set", source, n=13233)
    path = tmp_path / "set/data/train-000002.tar"
    raw = bytearray(path.read_bytes())
    raw[4_000_000] ^= 1
    path.write_bytes(raw)
    assert told(tmp_path / "set", source).problem_count <= 1
    assert told(tmp_path / "set", source, deep=True).problem_count >= 1
