"""What an unfinished output keeps for its continuation is checked before it is used again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glint.errors import ResourceError
from glint.files import atomic, strings
from glint.pipelines.dataset import shard as stage
from glint.pipelines.dataset.output import Output
from glint.pipelines.dataset.write import write_shard

Jpeg = Callable[[int], bytes]
OPTIONS = stage.Options(8)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def source(tmp_path: Path, jpeg: Jpeg) -> Path:
    table = {"image": [jpeg(i) for i in range(40)], "label": [i // 4 for i in range(40)]}
    pq.write_table(pa.table(table), tmp_path / "faces.parquet")
    return tmp_path / "faces.parquet"


@pytest.fixture
def begun(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an output of which two shards of five are done."""

    def work(plan: stage.Plan, shard: int) -> dict[str, object]:
        if shard == 2:
            raise RuntimeError("killed")
        return write_shard(plan, shard)

    with monkeypatch.context() as patch:
        patch.setattr(Output, "work", staticmethod(work))
        with pytest.raises(RuntimeError):
            stage.shard(source, tmp_path / "out", OPTIONS)
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["rows.npy", "classes.arrow", "paths.arrow"])
@pytest.mark.parametrize("at", [-1, -20, 150])
def test_a_damaged_plan_is_made_again(
    source: Path, begun: Path, tmp_path: Path, name: str, at: int
) -> None:
    flip(begun / "_glint/plan" / name, at)
    assert not strings.checksums_hold(begun / "_glint/plan")
    assert stage.shard(source, begun, OPTIONS).resumed_shards == 2
    stage.shard(source, tmp_path / "whole", OPTIONS)
    assert files(begun) == files(tmp_path / "whole")


def test_a_kill_while_the_plan_is_made_again(source: Path, begun: Path, tmp_path: Path) -> None:
    plan = begun / "_glint/plan"
    plan.rename(plan.with_name("plan.new"))
    (plan.with_name("plan.new") / "paths.arrow").unlink()
    stage.shard(source, begun, OPTIONS)
    stage.shard(source, tmp_path / "whole", OPTIONS)
    assert files(begun) == files(tmp_path / "whole")


def test_a_copied_image_that_has_changed_is_not_written(source: Path, begun: Path) -> None:
    path = begun / "_glint/plan/images.bin"
    for at in range(300, path.stat().st_size, 2000):
        flip(path, at)
    with pytest.raises(ResourceError, match=r"GL0903 .*the copy of the images is damaged"):
        stage.shard(source, begun, OPTIONS)
    shutil.rmtree(begun / "_glint")
    shutil.rmtree(begun / "data")
    assert stage.shard(source, begun, OPTIONS).written == 40


def test_damaged_rows_of_a_shard_are_made_again(source: Path, begun: Path, tmp_path: Path) -> None:
    flip(begun / "_glint/parts/000001.parquet", 200)
    assert stage.shard(source, begun, OPTIONS).resumed_shards == 1
    stage.shard(source, tmp_path / "whole", OPTIONS)
    assert files(begun) == files(tmp_path / "whole")


def test_a_file_that_reads_back_otherwise_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lossy(atomic.Hashed):
        def write(self, data: bytes) -> int:
            self._hasher.update(data)
            return self._file.write(data[:-1] + b"?")

    monkeypatch.setattr(atomic, "Hashed", Lossy)
    with pytest.raises(ResourceError, match=r"GL0007 .*read back, the file is not what was"):
        atomic.write_bytes(tmp_path / "a", b"some bytes")
    assert list(tmp_path.iterdir()) == []
