"""Complete or absent; journalled; one at a time."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glint.errors import BusyError, InputError, ResourceError
from glint.files import atomic


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    atomic.write_bytes(path, b"old")
    with pytest.raises(RuntimeError), atomic.replacing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a"]
    atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_the_order_of_system_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (
            calls.append("dir" if Path(f"/proc/self/fd/{fd}").is_dir() else "file"),
            fsync(fd),
        )[1],
    )
    monkeypatch.setattr(Path, "replace", lambda a, b: (calls.append("rename"), replace(a, b))[1])
    atomic.write_bytes(tmp_path / "a", b"x")
    assert calls == ["file", "rename", "dir"]


@pytest.mark.parametrize(
    "number, code",
    [(errno.ENOSPC, "GL0901"), (errno.EDQUOT, "GL0901"), (errno.EIO, "GL0007")],
)
def test_disk_errors_have_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def broken(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(ResourceError, match=code):
        atomic.write_bytes(tmp_path / "a", b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = atomic.Journal(path)
    journal.append({"shard": 1})
    journal.append({"shard": 2})
    journal.close()
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    journal = atomic.Journal(path)
    assert journal.lines == [{"shard": 1}]
    journal.append({"shard": 3})
    journal.close()
    assert atomic.Journal(path).lines == [{"shard": 1}, {"shard": 3}]
    path.write_bytes(data.replace(b"1", b"7", 1))
    assert atomic.Journal(path).lines == []


def test_one_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "from glint.files import atomic; from glint.errors import BusyError\n"
        f"try:\n with atomic.lock({str(path)!r}): print('held')\n"
        "except BusyError as error: print(error)"
    )
    ask = [sys.executable, "-c", code]
    with atomic.lock(path):
        said = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
        assert "GL0005 output-busy" in said and f"process {os.getpid()} on" in said
        with pytest.raises(BusyError), atomic.lock(path):
            pass
    assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout == "held\n"


def test_json_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(InputError, match=r"GL0301 .*expected a JSON object"):
        atomic.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match=r"GL0304 .*cannot be read"):
        atomic.read_json(tmp_path / "a.json", "GL0304")


def test_a_lock_on_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, *args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    held = atomic.Held(tmp_path / "lock", shared=False)
    held.take(0.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", full)
        held.release()  # who held it is only said for people
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(ResourceError, match="GL0901"), atomic.lock(tmp_path / "lock"):
            pass
    with atomic.lock(tmp_path / "lock"):
        pass


def test_a_lock_given_up_is_free_though_a_fork_still_has_its_file(tmp_path: Path) -> None:
    """A loader's worker is forked while a thread fetches a shard: it must not keep that lock."""
    with atomic.lock(tmp_path / "lock"):
        fork = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        fork.start()
    try:
        with atomic.lock(tmp_path / "lock"):
            pass
    finally:
        fork.kill()
        fork.join()


def test_a_fork_does_not_give_up_the_lock_of_its_parent(tmp_path: Path) -> None:
    held = atomic.Held(tmp_path / "lock", shared=False)
    held.take(0.0)
    fork = multiprocessing.get_context("fork").Process(target=held.release)
    fork.start()
    fork.join()
    with pytest.raises(BusyError), atomic.lock(tmp_path / "lock"):
        pass
    held.release()


def test_a_journal_on_a_disk_that_is_full(tmp_path: Path) -> None:
    journal = atomic.Journal(tmp_path / "journal.jsonl")
    journal.append({"a": 1})
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, journal._file.fileno())
    os.close(full)
    with pytest.raises(ResourceError, match="GL0901"):
        journal.append({"a": 2})
    journal.close()  # the same error again would hide the first
    assert atomic.Journal(tmp_path / "journal.jsonl").lines == [{"a": 1}]


@pytest.mark.parametrize("dangling", [False, True])
def test_locks_and_journals_follow_no_link(tmp_path: Path, dangling: bool) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    if not dangling:
        victim.write_bytes(b"precious")
    link.symlink_to(victim)
    for work in (
        lambda: atomic.Held(link, shared=False),
        lambda: atomic.Journal(link),
        lambda: atomic.open_own(link, os.O_WRONLY | os.O_CREAT),
    ):
        with pytest.raises(BusyError, match=r"GL0004.*expected a file.*a symbolic link"):
            work()
    assert not victim.exists() if dangling else victim.read_bytes() == b"precious"
    (tmp_path / "to folder").symlink_to(tmp_path)
    with pytest.raises(BusyError, match=r"GL0004.*expected a folder.*a symbolic link"):
        atomic.own_dir(tmp_path / "to folder")


def test_a_private_file_is_a_plain_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        for flags in (os.O_RDWR, os.O_WRONLY):
            with pytest.raises(BusyError, match="GL0004"):
                atomic.open_own(tmp_path / name, flags | os.O_CREAT)


def test_only_half_files_are_swept(tmp_path: Path) -> None:
    half = atomic.temporary_name(tmp_path / "samples.parquet")
    for path in (half, tmp_path / "notes.tmp.old", tmp_path / "samples.parquet"):
        path.touch()
    atomic.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.tmp.old", "samples.parquet"}


def test_half_files_of_one_name_go_when_their_process_is_gone(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine = atomic.temporary_name(tmp_path / "a.json")
    dead = mine.with_name(mine.name.replace(f".{os.getpid()}-", f".{gone.pid}-"))
    others = [dead.with_name(dead.name.replace("a.json", "b.json")), mine,
              dead.with_name(f"a.json.tmp.elsewhere.{gone.pid}-abcdef")]  # fmt: skip
    for path in (dead, *others):
        path.write_bytes(b"half")
    atomic.sweep(tmp_path, "a.json")
    assert sorted(tmp_path.iterdir()) == sorted(others)
