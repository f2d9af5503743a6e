"""Objects of a store: whole or absent, checked, retried, bounded in time; and their cache."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from glint.errors import InputError, ResourceError, UsageError
from glint.files import store
from glint.files.store import Store
from glint.pipelines.dataset import shard as stage
from glint.shards import labels, recordio, remote
from glint.shards import verify as check
from glint.shards.dataset import Dataset


class Flaky(MemoryFileSystem):
    """A store in memory whose listings are empty, and whose requests fail, lag or lie at will."""

    protocol = "flaky"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    fail = 0  # so many requests fail
    lie = 0  # so many uploads lose a byte
    delay = 0.0
    calls: list[str] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://"))

    def _ask(self, what: str, path: str) -> None:
        kind = type(self)
        kind.calls.append(f"{what} {path}")
        time.sleep(kind.delay)
        if kind.fail > 0:
            kind.fail -= 1
            raise ConnectionResetError("the network is away")

    def ls(self, path, detail=True, **kwargs):
        return []

    def info(self, path, **kwargs):
        self._ask("info", path)
        return super().info(path, **kwargs)

    def cat_file(self, path, start=None, end=None, **kwargs):
        self._ask("cat", path)
        return super().cat_file(path, start, end, **kwargs)

    def put_file(self, lpath, rpath, **kwargs):
        self._ask("put", rpath)
        data = Path(lpath).read_bytes()
        if Flaky.lie > 0:
            Flaky.lie -= 1
            data = data[:-1] + b"?"
        MemoryFileSystem.pipe_file(self, rpath, data)


fsspec.register_implementation("flaky", Flaky, clobber=True)


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(store, "WAIT", 0.001)
    monkeypatch.setattr(store, "_ATOMIC", {*store._ATOMIC, "flaky"})
    monkeypatch.setenv("GLINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GLINT_CACHE_SIZE", raising=False)
    Flaky.fail = Flaky.lie = 0
    Flaky.delay = 0.0
    Flaky.store.clear()
    Flaky.calls.clear()
    yield
    Flaky.fail = Flaky.lie = 0
    Flaky.delay = 0.0


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, jpeg: Callable[[int], bytes]) -> Path:
    """120 images of 15 people in 6 shards."""
    folder = tmp_path_factory.mktemp("world")
    with recordio.Writer(folder / "train.rec", folder / "train.idx") as writer:
        for key in range(120):
            writer.write(key, recordio.pack(float(key // 8), key, 0, jpeg(key)))
    out = tmp_path_factory.mktemp("local") / "out"
    stage.shard(folder, out, stage.Options(20))
    return out


def upload(local: Path, url: str = "flaky://bucket/ds") -> str:
    there = Store(url)
    for path in sorted(local.rglob("*")):
        if path.is_file():
            there.put(str(path.relative_to(local)), path)
    Flaky.calls.clear()
    return url


def test_what_is_a_url() -> None:
    assert store.is_url("s3://bucket/ds") and store.is_url("file:///x")
    assert not store.is_url("data/ds") and not store.is_url("s3:/bucket") and not store.is_url("")


@pytest.mark.parametrize(
    "url, seen",
    [
        ("s3://KEY:SECRET@bucket/ds", "s3://bucket/ds"),
        ("https://host/ds?token=SECRET", "https://host/ds"),
        ("https://me:SECRET@host:8080/a/b?SECRET#x", "https://host:8080/a/b"),
    ],
)
def test_credentials_in_a_url_are_refused_and_never_shown(url: str, seen: str) -> None:
    with pytest.raises(UsageError) as told:
        Dataset(url)
    assert told.value.code == "GL0002" and told.value.where == seen
    assert "SECRET" not in str(told.value) + told.value.hint
    assert store.shown(url) == seen


def test_errors_are_told_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcSECRETdef")

    def fail(self: Flaky, path: str, **kwargs: object) -> None:
        raise OSError("abcSECRETdef sent to https://me:pw@host/x?sig=123")

    monkeypatch.setattr(Flaky, "info", fail)
    with pytest.raises(InputError) as told:
        Store("flaky://b/ds").stat("x")
    assert str(told.value) == (
        "GL0903 read-failed: flaky://b/ds/x: cannot be read: OSError: *** sent to https://host/x"
    )


def test_what_is_pickled_holds_the_url_only() -> None:
    there = Store("flaky://b/ds")
    there.put_bytes("x", b"1")
    assert there.__getstate__() == {"url": "flaky://b/ds"}
    assert pickle.loads(pickle.dumps(there)).get("x") == b"1"


def test_a_put_is_retried_and_then_named(tmp_path: Path) -> None:
    path, there = tmp_path / "x", Store("flaky://b/ds")
    path.write_bytes(b"0123456789")
    Flaky.fail = 2
    there.put("x", path)
    assert there.get("x") == b"0123456789"
    Flaky.fail = 100
    with pytest.raises(ResourceError, match=r"GL0007.*cannot write: ConnectionResetError"):
        there.put("y", path)
    assert Flaky.fail == 100 - 4
    Flaky.fail = 0
    assert there.stat("y") is None


def test_an_upload_that_is_not_kept_is_found(tmp_path: Path) -> None:
    path, there = tmp_path / "x", Store("flaky://b/ds")
    path.write_bytes(b"0123456789")
    Flaky.lie = 3
    there.put("x", path)
    assert there.get("x") == b"0123456789"
    Flaky.lie = 4
    with pytest.raises(ResourceError, match="the store holds other bytes"):
        there.put("x", path)


def test_a_digest_that_the_store_states_spares_the_read(tmp_path: Path, monkeypatch) -> None:
    path, there = tmp_path / "x", Store("flaky://b/ds")
    path.write_bytes(b"0123456789")
    plain = Flaky.info
    for tag in ('"781e5e245d69b566979b86e28d23f2c7"', '"0000-2"'):  # the MD5 of it; some other
        monkeypatch.setattr(
            Flaky, "info", lambda self, path, tag=tag: {**plain(self, path), "ETag": tag}
        )
        Flaky.calls.clear()
        assert there.put("x", path).tag == tag.strip('"')
        assert any(call.startswith("cat") for call in Flaky.calls) == (tag[1] == "0")


def test_the_digest_of_an_upload_in_parts(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    monkeypatch.setattr(store, "PART", 4)
    parts = b"".join(hashlib.md5(x).digest() for x in (b"0123", b"4567", b"89"))
    assert f"{hashlib.md5(parts).hexdigest()}-3" in store._digests(path).tags


def test_a_claim_is_exclusive() -> None:
    there = Store("flaky://b/ds")
    told: list[bytes] = []
    threads = [
        threading.Thread(target=lambda i=i: told.append(there.claim("plan", b"%d" % i)))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 8 and set(told) == {there.get("plan")}


def test_a_store_that_hangs_is_named_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "DEADLINE", 0.05)
    Flaky.delay = 0.5
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"GL0903.*TimeoutError: no answer for"):
        Store("flaky://b/ds").get("x")
    assert time.monotonic() - begun < 5


def test_an_upload_is_given_time_by_its_size(tmp_path: Path, monkeypatch) -> None:
    path, there = tmp_path / "x", Store("flaky://b/ds")
    path.write_bytes(bytes(1000))
    monkeypatch.setattr(store, "DEADLINE", 0.4)
    monkeypatch.setattr(store, "SLOWEST", 100.0)
    Flaky.delay = 0.2  # of each request: an upload takes three
    there.put("x", path)
    monkeypatch.setattr(store, "SLOWEST", 1e9)
    with pytest.raises(ResourceError, match=r"GL0007.*no answer for"):
        there.put("x", path)


def test_a_file_url_is_a_store_too(local: Path, tmp_path: Path) -> None:
    url = upload(local, f"file://{tmp_path}/there")
    data, plain = Dataset(url), Dataset(local)
    assert [data.read(i) for i in range(120)] == [plain.read(i) for i in range(120)]
    assert not list((tmp_path / "there").rglob("*.tmp.*"))
    again = Store(url)
    assert again.claim("_glint/new", b"1") == b"1" == again.claim("_glint/new", b"2")


def test_a_dataset_is_read_as_a_local_one_though_listings_are_empty(local: Path) -> None:
    data, plain = Dataset(upload(local)), Dataset(local)
    assert data.name == "flaky://bucket/ds" and len(data) == 120
    np.testing.assert_array_equal(data.label, plain.label)
    assert [data.read(i) for i in range(120)] == [plain.read(i) for i in range(120)]
    other = pickle.loads(pickle.dumps(data))
    Flaky.store.clear()  # all is in the cache
    assert other.read(119) == plain.read(119)
    assert other.shard_path(3).read_bytes() == plain.shard_path(3).read_bytes()


def test_no_dataset_and_half_a_dataset(local: Path) -> None:
    with pytest.raises(InputError, match=r"GL0301.*bucket/none: expected a dataset, found no"):
        Dataset("flaky://bucket/none")
    url = upload(local)
    Store(url).remove("manifest.json")
    with pytest.raises(InputError, match=r"GL0301.*unfinished"):
        Dataset(url)


def test_a_local_path_is_asked_for_where_a_url_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a local folder, found a URL"):
        Dataset(Path("s3://bucket/ds"))
    with pytest.raises(UsageError):
        store.refuse("s3://bucket/ds")
    store.refuse(tmp_path)
    store.refuse("data/ds:/x")


def test_requests_that_fail_for_a_while(local: Path) -> None:
    data = Dataset(upload(local))
    Flaky.fail = 3
    assert data.read(0) == Dataset(local).read(0)
    assert Flaky.fail == 0


@pytest.mark.parametrize("how", ["lost", "short", "other"])
def test_a_spoilt_shard_is_named(local: Path, how: str) -> None:
    url = upload(local)
    data, there = Dataset(url), Store(url)
    name = "data/train-000002.tar"
    whole = there.get(name)
    assert whole is not None
    there.remove(name)
    if how != "lost":
        there.put_bytes(name, whole[:-512] if how == "short" else b"?" + whole[1:])
    with pytest.raises(InputError) as told:
        data.read(59)
    assert told.value.code == "GL0302" and told.value.where == f"{url}/{name}"
    assert {
        "lost": "no such object",
        "short": f"expected {len(whole)} bytes, found {len(whole) - 512} bytes",
        "other": "expected sha256",
    }[how] in told.value.what
    assert not list(Path(data.root / "data").glob("train-000002*"))


def test_a_table_is_checked_before_use(local: Path) -> None:
    url = upload(local)
    table = Store(url).get("samples.parquet")
    assert table is not None
    Store(url).put_bytes("samples.parquet", table[:-1] + b"?")
    with pytest.raises(InputError, match=r"GL0301.*its bytes have changed"):
        Dataset(url)


def test_a_dataset_written_anew_meets_no_old_shard(local: Path, tmp_path: Path) -> None:
    url = upload(local)
    old = Dataset(url)
    old.read(0)
    manifest = (local / "manifest.json").read_bytes()
    Store(url).put_bytes("manifest.json", manifest.replace(b'"seed": 0', b'"seed": 1'))
    assert Dataset(url).root != old.root


def test_labels_are_those_in_force_now(local: Path) -> None:
    url = upload(local)
    there = Store(url)
    root = Dataset(url).root
    assert not (root / "sampling.parquet").exists()
    there.put_bytes("sampling.parquet", b"one")
    Dataset(url)
    assert (root / "sampling.parquet").read_bytes() == b"one"
    there.remove("sampling.parquet")
    Dataset(url)
    assert not (root / "sampling.parquet").exists()


def kept(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "data").iterdir())


def test_the_cache_is_bounded_and_the_oldest_leave(local: Path, monkeypatch) -> None:
    data = Dataset(upload(local))
    assert data.remote is not None
    sizes = [entry["bytes"] for entry in data.manifest["shards"]]
    monkeypatch.setenv("GLINT_CACHE_SIZE", str(sum(sizes[:3])))
    assert not data.remote.fits
    for shard in (0, 1, 2):
        data.shard_path(shard)
        time.sleep(0.02)
    open_still = data.open_shard(1)
    time.sleep(0.02)
    data.shard_path(0)  # used again: the last to leave
    data.shard_path(3)
    data.shard_path(4)
    assert kept(data.root) == [data.shards[i] for i in (0, 3, 4)]
    assert open_still.read() == Dataset(local).shard_path(1).read_bytes()
    monkeypatch.setenv("GLINT_CACHE_SIZE", "10KB")
    with pytest.raises(UsageError, match=r"GL0002.*one shard takes"):
        data.shard_path(5)


def test_two_that_fetch_one_shard_fetch_it_once(local: Path) -> None:
    url = upload(local)
    several = [Dataset(url) for _ in range(4)]
    Flaky.calls.clear()
    Flaky.delay = 0.02
    threads = [threading.Thread(target=data.shard_path, args=(0,)) for data in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(call.startswith("cat") for call in Flaky.calls) == 1
    assert several[0].shard_path(0).read_bytes() == Dataset(local).shard_path(0).read_bytes()


def test_ahead_nobody_waits_for_a_shard_that_another_fetches(local: Path) -> None:
    data = Dataset(upload(local))
    assert data.remote is not None
    data.remote.try_fetch(0)
    lock = data.root / "locks" / "data-train-000001.tar"
    with remote._held(lock, 1):
        assert data.remote.try_fetch(1)
        assert kept(data.root) == ["train-000000.tar"]
        with pytest.raises(InputError, match=r"GL0903.*another process has been fetching it"):
            data.remote._fetch(*data.remote._entry(1), "GL0302", patience=0.1)
    assert data.remote.try_fetch(1)
    assert kept(data.root) == ["train-000000.tar", "train-000001.tar"]
    Store(data.name).remove("data/train-000002.tar")
    assert not data.remote.try_fetch(2)


def test_what_a_killed_process_left_is_removed(local: Path, monkeypatch) -> None:
    data = Dataset(upload(local))
    data.shard_path(0)
    left = data.root / "data" / "train-000004.tar.part"
    left.write_bytes(b"half")
    data.shard_path(1)
    assert not left.exists()


@pytest.mark.parametrize(
    "text, size",
    [("50GB", 50 * 10**9), ("1.5 kb", 1500), ("2MiB", 2 << 20), ("7", 7), ("1T", 10**12)],
)
def test_sizes(text: str, size: int) -> None:
    assert remote.parse(text) == size


def test_a_size_that_is_none() -> None:
    with pytest.raises(UsageError, match="expected a size such as 50GB, found 'lots'"):
        remote.parse("lots")


def problems(url: str, deep: bool = False) -> list[tuple[str, str]]:
    result = check.verify(url, deep=deep, workers=2)
    return [(problem.file, problem.what) for problem in result.problems]


def test_verify_reads_the_store_and_not_the_cache(local: Path) -> None:
    url = upload(local)
    data = Dataset(url)
    for shard in range(6):
        data.shard_path(shard)
    assert problems(url) == [] == problems(url, deep=True)
    assert check.verify(url, deep=True).dataset == url
    there = Store(url)
    name = "data/train-000001.tar"
    whole = there.get(name)
    assert whole is not None
    there.put_bytes(name, whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    assert problems(url) == []
    found = problems(url, deep=True)
    assert found and {file for file, _ in found} == {name}
    there.put_bytes(name, whole[:-512])
    assert problems(url) == [(name, "the shard has another size")]
    there.remove(name)
    assert problems(url) == [(name, "the shard is missing")] == problems(url, deep=True)
    there.put_bytes(name, whole)
    index, table = there.get("data/train-000000.idx"), there.get("quarantine.parquet")
    assert index is not None and table is not None
    there.put_bytes("data/train-000000.idx", index + b" ")
    there.put_bytes("quarantine.parquet", table[:-1] + b"?")
    assert sorted(problems(url)) == [
        ("data/train-000000.idx", "the index for DALI has changed"),
        ("quarantine.parquet", "the file's bytes have changed"),
    ]
    there.remove("data/train-000000.idx")
    there.remove("quarantine.parquet")
    assert sorted(problems(url)) == [
        ("data/train-000000.idx", "the index for DALI is missing"),
        ("quarantine.parquet", "the file is missing"),
    ]
    assert not list(data.root.glob("fresh.*"))


def test_a_task_verifies_its_share_with_an_empty_cache(local: Path) -> None:
    told = check.verify(upload(local), deep=True, task=(1, 2))
    assert told.ok and told.shards == 3 and told.task == "1/2"


def test_labels_that_were_applied_are_fetched_and_renewed(local: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(local, own)
    target = np.arange(15, dtype=np.int64)
    for last in (0, -1):
        target[-1] = last
        images = {"row": np.array([1]), "label": np.array([last])}
        labels.apply(own, target, np.empty((0, 2), np.int64), {"why": "a test"}, **images)
        url = upload(own)
        data = Dataset(url)
        table = labels.current(data.root, 15)
        assert table.version > 0 and table.target.tolist() == target.tolist()
        assert (table.row.tolist(), table.label.tolist()) == ([1], [last])
    path = data.root / "labels" / f"v{table.version:04d}.parquet"
    good = path.read_bytes()
    path.write_bytes(bytes(len(good)))
    Dataset(url)
    assert path.read_bytes() == good


def test_a_bit_that_turns_in_the_cache(local: Path) -> None:
    data = Dataset(upload(local))
    path = data.shard_path(0)
    whole = bytearray(path.read_bytes())
    whole[int(data.offset[0])] ^= 1
    path.write_bytes(whole)
    with pytest.raises(InputError) as error:
        data.read(0)
    assert error.value.code == "GL0303" and error.value.hint.startswith(f"remove {path}, it is")
    path.unlink()
    assert Dataset(data.name).read(0) == Dataset(local).read(0)


def test_a_new_cache_is_its_owner_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jpeg: Callable[[int], bytes]
) -> None:
    (tmp_path / "src/a").mkdir(parents=True)
    (tmp_path / "src/a/0.jpg").write_bytes(jpeg(0))
    stage.shard(tmp_path / "src", tmp_path / "set")
    monkeypatch.setenv("GLINT_CACHE", str(tmp_path / "deep/cache"))
    assert Dataset(f"file://{tmp_path}/set").read(0) == jpeg(0)
    assert (tmp_path / "deep/cache").stat().st_mode & 0o777 == 0o700
