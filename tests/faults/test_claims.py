"""Small files that claim much, and files that never end: one clear error, soon."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glint import schemas
from glint.errors import InputError
from glint.files import atomic, parquet, seal, strings
from glint.pipelines.dataset import shard
from glint.shards import embeddings, labels
from glint.shards.dataset import Dataset
from glint.shards.verify import verify
from glint.stream.columns import open_columns

Jpeg = Callable[[int], bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, jpeg: Jpeg) -> Path:
    root = tmp_path_factory.mktemp("claims")
    for i in range(12):
        path = root / "src" / f"id{i // 4}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i))
    shard.shard(root / "src", root / "set")
    return root / "set"


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "set"))


def claim(data: Path, **fields: Any) -> None:
    path = data / "manifest.json"
    atomic.write_json(path, seal.sealed({**atomic.read_json(path), **fields}))


@pytest.mark.parametrize("field", ["written", "identities"])
@pytest.mark.parametrize("count", [10**15, 1 << 40, 3 << 20, -1])
def test_counts_that_no_table_can_hold(data: Path, field: str, count: int) -> None:
    claim(data, **{field: count})
    with pytest.raises(InputError, match=rf"GL0301.*claims {count} rows"):
        Dataset(data)
    assert not verify(data).ok


def many_rows(path: Path, rows: int, schema: pa.Schema) -> int:
    """Write a table of zeros; a row takes next to nothing."""
    part = 1 << 20
    columns = []
    for one in schema:
        zero = pa.array(np.zeros(part, np.int64))
        text = pa.array(["a"]).take(zero)
        fixed = pa.types.is_fixed_size_binary(one.type)
        columns.append(
            pa.array([bytes(16)] * part, one.type)
            if fixed
            else text.cast(one.type)
            if pa.types.is_string(one.type)
            else zero.cast(one.type)
        )
    table = pa.table(columns, schema=schema)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for _ in range(rows // part):
            writer.write_table(table)
    return path.stat().st_size


def test_a_small_table_of_many_rows(data: Path) -> None:
    """Refused before a row is read, also where the manifest claims the same."""
    path = data / "identities.parquet"
    assert many_rows(path, 1 << 24, schemas.IDENTITIES) < 2 << 20
    with pytest.raises(InputError, match=r"GL0301.*identities.parquet.*claims 16777216 rows"):
        Dataset(data).identities()
    with pytest.raises(InputError, match=r"GL0301.*claims 16777216 rows"):
        parquet.read(path)
    claim(data, identities=1 << 24)
    with pytest.raises(InputError, match=r"GL0301.*claims 16777216 rows"):
        Dataset(data)
    assert not verify(data).ok


def test_a_table_of_other_rows_than_the_manifest_says(data: Path) -> None:
    for name, read in (
        ("identities", lambda: Dataset(data).identities()),
        ("written", lambda: Dataset(data).label),
    ):
        said = atomic.read_json(data / "manifest.json")[name]
        claim(data, **{name: said + 1})
        with pytest.raises(InputError, match=rf"GL0301.*expected {said + 1} rows"):
            read()
        claim(data, **{name: said})


def test_tables_that_glint_writes_claim_what_they_may(tmp_path: Path) -> None:
    """The barest tables, with a row for each label, are far from the bound."""
    rows = np.arange(3 << 20)
    for schema, columns in (
        (schemas.LABELS, [rows, np.full(len(rows), -1)]),
        (schemas.MASKS, [rows, rows + 1]),
    ):
        parquet.write(tmp_path / "table", pa.table(columns, schema=schema))
        assert parquet.read(tmp_path / "table").num_rows == len(rows)
        assert (tmp_path / "table").stat().st_size > len(rows)


def npz(path: Path, members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, raw in members.items():
            archive.writestr(name, raw)
    return path


def npy(shape: tuple[int, ...], raw: bytes = b"") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + raw


def test_archives_of_arrays_that_claim_much(tmp_path: Path) -> None:
    held = {"a": np.arange(6.0).reshape(2, 3), "b": np.array("text"), "c": np.empty(0, np.int64)}
    np.savez(tmp_path / "good.npz", **held)
    found = strings.load_arrays(tmp_path / "good.npz")
    assert found.keys() == held.keys()
    assert all(np.array_equal(found[name], held[name]) for name in held)
    for name, path in {
        "shape": npz(tmp_path / "shape.npz", {"a.npy": npy((10**15,))}),
        "deflated": npz(
            tmp_path / "bomb.npz", {"a.npy": npy((1 << 22,), bytes(8 << 22))}, zipfile.ZIP_DEFLATED
        ),
        "objects": npz(tmp_path / "objects.npz", {"a.npy": npy((1,)).replace(b"<f8", b"|O8")}),
        "no archive": tmp_path / "no.npz",
        "no array": npz(tmp_path / "none.npz", {"a.npy": b"hello"}),
    }.items():
        if not path.exists():
            path.write_bytes(b"PK")
        with pytest.raises(ValueError, match=r"."):
            strings.load_arrays(path)
            raise AssertionError(name)
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(OSError, match="no plain file"):
        strings.load_arrays(tmp_path / "pipe.npz")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_nothing_waits_for_a_pipe(data: Path, kind: str) -> None:
    """In the place of each table, journal and list of a dataset, and of embeddings."""
    labels.apply(data, np.array([0, 0, 1]), np.empty((0, 2), np.int64), {"by": "test"})
    dataset = Dataset(data)
    for name, read in {
        "samples.parquet": lambda: Dataset(data).label,
        "identities.parquet": lambda: Dataset(data).identities(),
        "labels/current.json": lambda: labels.current(data, 3),
        "labels/v0001.parquet": lambda: labels.current(data, 3),
        "labels/history.jsonl": lambda: labels.history(data),
        "data/train-000000.tar": lambda: Dataset(data).read(0),
        "samples.npy": lambda: embeddings._open(data / "samples.npy", 3),
        "centres.npy": lambda: embeddings.checksum(data / "centres.npy"),
    }.items():
        path = data / name
        kept = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
        with pytest.raises((InputError, OSError)):
            read()
        path.unlink()
        if kept is not None:
            path.write_bytes(kept)
    path = data / "samples.parquet"
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="GL0301"):
        open_columns(dataset, 0)


@pytest.mark.faults
@pytest.mark.timeout(400)
@pytest.mark.parametrize("spoil", ["count", "rows", "pipe"])
def test_commands_end_soon(data: Path, tmp_path: Path, spoil: str) -> None:
    if spoil == "count":
        claim(data, identities=10**15)
    elif spoil == "rows":
        many_rows(data / "identities.parquet", 1 << 26, schemas.IDENTITIES)
    else:
        for name in ("samples.parquet", "identities.parquet"):
            (data / name).unlink()
            os.mkfifo(data / name)
    for args in (
        ["info"], ["card"], ["verify"], ["balance"], ["drop", "--identity", "id1", "--reason", "x"],
        ["embed", "--model", tmp_path, "--out", tmp_path / "emb"],
        ["reshard", tmp_path / "new", "--samples-per-shard", "5"],
        ["dedup-conflicts", "--embeddings", tmp_path, "--out", tmp_path / "report"],
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "glint", str(args[0]), str(data), *map(str, args[1:])],
            capture_output=True, text=True, timeout=40, check=False,
        )  # fmt: skip
        told = done.stdout + done.stderr
        assert "Traceback" not in told, told
        assert done.returncode in (0, *range(2, 11)), (args, told)  # 0: reads none of them
