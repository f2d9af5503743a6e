"""A dataset written straight to a store: the bytes of a local run, whatever fails on the way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from glint.errors import BusyError, InputError, MismatchError, ResourceError, UsageError
from glint.files import atomic, store
from glint.files.store import Store
from glint.jobs import tasks
from glint.pipelines.dataset import merge, reshard, upload
from glint.pipelines.dataset import shard as stage
from glint.shards import recordio
from glint.shards import verify as check
from glint.shards.dataset import Dataset


class Stale(MemoryFileSystem):
    """A store in memory: listings stay empty, objects are there; uploads fail at will."""

    protocol = "stale"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    fail: Callable[[str], bool] = staticmethod(lambda path: False)
    put: list[str] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("stale://", "memory://"))

    def ls(self, path, detail=True, **kwargs):
        return []

    def put_file(self, lpath, rpath, **kwargs):
        if Stale.fail(rpath):
            raise ConnectionResetError("the network is away")
        Stale.put.append(self._strip_protocol(rpath).removeprefix("/bucket/ds/"))
        MemoryFileSystem.pipe_file(self, rpath, Path(lpath).read_bytes())

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if mode == "overwrite" and Stale.fail(path):
            raise ConnectionResetError("the network is away")
        super().pipe_file(path, value, mode, **kwargs)
        Stale.put.append(self._strip_protocol(path).removeprefix("/bucket/ds/"))


fsspec.register_implementation("stale", Stale, clobber=True)
URL = "stale://bucket/ds"
OPTIONS = stage.Options(20)


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(store, "WAIT", 0.001)
    monkeypatch.setattr(store, "_ATOMIC", {*store._ATOMIC, "stale"})
    monkeypatch.setenv("GLINT_CACHE", str(tmp_path / "cache"))
    Stale.store.clear()
    Stale.put.clear()
    monkeypatch.setattr(Stale, "fail", staticmethod(lambda path: False))
    yield
    Stale.store.clear()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, jpeg: Callable[[int], bytes]) -> Path:
    folder = tmp_path_factory.mktemp("world")
    with recordio.Writer(folder / "train.rec", folder / "train.idx") as writer:
        for key in range(120):
            image = b"no picture" if key == 50 else jpeg(key)
            writer.write(key, recordio.pack(float(key // 8), key, 0, image))
    return folder


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    stage.shard(world, out, OPTIONS)
    return out


def near(root: Path) -> dict[str, bytes]:
    """The files of a local dataset, its lock aside."""
    made = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }
    made.pop("_glint/lock")
    return made


def far() -> dict[str, bytes]:
    return {path.removeprefix("/bucket/ds/"): file.getvalue() for path, file in Stale.store.items()}


def staging(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_the_bytes_are_those_of_a_local_run(world: Path, whole: Path, tmp_path: Path) -> None:
    told, plain = stage.shard(world, URL, OPTIONS), stage.shard(world, whole, OPTIONS)
    assert far() == near(whole)
    assert told.out == URL and told.digest == plain.digest and told.written == 119
    assert staging(tmp_path) == []  # nothing is left here
    assert Stale.put[0] == "_glint/plan.json" and Stale.put[-1] == "manifest.json"
    entries = [name for name in Stale.put if name.endswith(".json") and "parts" in name]
    for entry in entries:  # the entry of a shard goes up after its files
        tar = f"data/train-{entry[-11:-5]}.tar"
        assert Stale.put.index(tar) < Stale.put.index(entry)
    assert len(entries) == 6
    Stale.put.clear()
    again = stage.shard(world, URL, OPTIONS)
    assert again.resumed_shards == 6 and again.digest == told.digest
    assert Stale.put == [] and far() == near(whole)


def test_two_processes_and_a_store_of_files(world: Path, whole: Path, tmp_path: Path) -> None:
    stage.shard(world, f"file://{tmp_path}/there", OPTIONS, workers=2)
    made = near(whole)
    for path in (tmp_path / "there").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == made.pop(path.relative_to(tmp_path / "there").as_posix())
    assert made == {}


def test_only_shards_under_way_are_here(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = []

    def look(path: str) -> bool:
        most.append(sum(here.suffix == ".tar" for here in staging(tmp_path)))
        return False

    monkeypatch.setattr(Stale, "fail", staticmethod(look))
    stage.shard(world, URL, OPTIONS)
    assert max(most) == 1


@pytest.mark.parametrize("name", ["data/train-000003.tar", "_glint/parts/000003.json", "manifest"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_store_that_goes_away(
    world: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    elsewhere: bool,
) -> None:
    monkeypatch.setattr(Stale, "fail", staticmethod(lambda path: name in path))
    with pytest.raises(ResourceError, match=r"GL0007.*cannot write: ConnectionResetError"):
        stage.shard(world, URL, OPTIONS)
    assert "manifest.json" not in far()
    if elsewhere:  # the same command on another machine
        monkeypatch.setenv("GLINT_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(Stale, "fail", staticmethod(lambda path: False))
    told = stage.shard(world, URL, OPTIONS)
    assert told.resumed_shards == (6 if name == "manifest" else 3)
    assert far() == near(whole)


def test_what_was_uploaded_is_looked_at_before_it_counts(
    world: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stale, "fail", staticmethod(lambda path: "manifest" in path))
    with pytest.raises(ResourceError):
        stage.shard(world, URL, OPTIONS)
    there = Store(URL)
    monkeypatch.setattr(Stale, "fail", staticmethod(lambda path: False))
    there.remove("data/train-000000.tar")
    data = there.get("data/train-000001.tar")
    assert data is not None
    there.put_bytes("data/train-000001.tar", data[:-1] + b"?")
    there.put_bytes("_glint/parts/000002.json", b"{half")
    there.remove("_glint/parts/000003.parquet")
    assert stage.shard(world, URL, OPTIONS).resumed_shards == 2
    assert far() == near(whole)


def test_who_was_here_first(world: Path, whole: Path) -> None:
    stage.shard(world, URL, OPTIONS)
    with pytest.raises(MismatchError, match=r"GL0006.*options.samples_per_shard was 20, is 30"):
        stage.shard(world, URL, stage.Options(30))
    assert stage.shard(world, URL, OPTIONS).resumed_shards == 6
    Store(URL).remove("_glint/plan.json")
    with pytest.raises(BusyError, match=r"GL0004.*a dataset without a plan is there already"):
        stage.shard(world, URL, OPTIONS)
    Stale.store.clear()
    Store(URL).put_bytes("_glint/plan.json", b"mine")
    with pytest.raises(BusyError, match=r"GL0004.*expected a plan of glint, found another file"):
        stage.shard(world, URL, OPTIONS)
    assert far() == {"_glint/plan.json": b"mine"}


def test_a_half_run_with_other_options(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stale, "fail", staticmethod(lambda path: "manifest" in path))
    with pytest.raises(ResourceError):
        stage.shard(world, URL, OPTIONS)
    with pytest.raises(MismatchError) as error:
        stage.shard(world, URL, stage.Options(30))
    assert error.value.where == URL


def test_a_finished_dataset_that_lost_a_shard(world: Path) -> None:
    stage.shard(world, URL, OPTIONS)
    Store(URL).remove("data/train-000004.tar")
    with pytest.raises(InputError, match=r"GL0302.*data/train-000004.tar: expected .* no object"):
        stage.shard(world, URL, OPTIONS)


def test_what_a_killed_run_had_no_time_to_remove(
    world: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload.Staged, "tidy", lambda self, plan: None)
    stage.shard(world, URL, OPTIONS)
    assert len(far()) > len(near(whole))
    monkeypatch.undo()
    stage.shard(world, URL, OPTIONS)
    assert far() == near(whole)


def test_the_same_command_twice_at_once(
    world: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two machines, so two staging folders: work is done twice, the bytes are the same."""
    told: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda i=i: told.append(
                stage.shard(world, URL, OPTIONS, staging=tmp_path / f"machine-{i}")
            )
        )
        for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 2 and told[0].digest == told[1].digest
    stage.shard(world, URL, OPTIONS)
    assert far() == near(whole)


def test_tasks_on_machines_that_share_no_folder(world: Path, whole: Path, tmp_path: Path) -> None:
    left = []
    for i in range(3):
        told = stage.shard(
            world, URL, OPTIONS, task=tasks.Task(i, 3), staging=tmp_path / f"machine-{i}"
        )
        left.append(told.left)
    assert left == [4, 2, 0] and told.written == 119
    assert far() == near(whole)


def test_no_credential_is_written(
    world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    with caplog.at_level("DEBUG"):
        stage.shard(world, URL, OPTIONS)
        with pytest.raises(UsageError) as error:
            stage.shard(world, "stale://me:wJalrXUtnFEMI@bucket/ds", OPTIONS)
    assert "wJalr" not in str(error.value) + caplog.text + "".join(capfd.readouterr())
    assert not any(b"wJalr" in data for data in far().values())


def test_reshard_to_a_store(whole: Path, tmp_path: Path) -> None:
    plain = reshard.reshard(whole, tmp_path / "plain", 50)
    for _ in range(2):
        told = reshard.reshard(whole, URL, 50)
        assert told.content == plain.content and told.digest == plain.digest
        assert told.out == URL and far() == near(tmp_path / "plain")
    assert check.verify(URL, deep=True).ok


def test_what_takes_local_folders_only(whole: Path, tmp_path: Path) -> None:
    for path in whole.rglob("*"):
        if path.is_file():
            Store(URL).put(path.relative_to(whole).as_posix(), path)
    assert Dataset(URL).n == 119
    for call in (
        lambda: reshard.reshard(URL, tmp_path / "out", 50),
        lambda: merge.merge(tmp_path / "out", [URL, whole]),
        lambda: merge.merge(Path(URL), [whole, whole]),
    ):
        with pytest.raises(UsageError, match="GL0002"):
            call()
    assert not (tmp_path / "out").exists() and not Path("stale:").exists()


def test_a_local_output_is_no_staging_folder(whole: Path) -> None:
    with upload.output(whole) as place:
        assert (place.folder, place.shown) == (whole, str(whole))
    assert json.loads((whole / "manifest.json").read_bytes())["written"] == 119
    assert atomic.read_json(whole / "manifest.json")["quarantined"] == 1
