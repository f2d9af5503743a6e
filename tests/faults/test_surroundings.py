"""Clocks, locales, masks, small file systems and links: the same bytes, or a clear word."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults

NAMES = ("ILK", "ilk", "\u0131l\u0131k", "\u0130stanbul", "\u00e9t\u00e9", "\u732b", "0", "10", "9")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory, jpeg: Callable[[int], bytes]) -> Path:
    """Give 40 files of persons whose names sort and fold differently in different locales."""
    root = tmp_path_factory.mktemp("surroundings") / "faces"
    for i, name in enumerate([*NAMES, os.fsdecode(b"not utf-8 \xff")]):
        for k in range(4):
            path = root / name / f"{k}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(4 * i + k) if k < 3 else b"no image")
    return root


def command(faces: Path, out: Path, *more: str) -> list[str]:
    options = ["--samples-per-shard", "6", "--with-json", "--json", "--max-bad", "1"]
    return [sys.executable, "-m", "glint", "shard", str(faces), str(out), *options, *more]


def tree(out: Path) -> dict[str, bytes]:
    """Give all that is the dataset's: not the lock, nor the plan with the source's times."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.parent.name != "_glint"
    }


def environment(without: tuple[str, ...] = (), **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in without and not k.startswith("LC_")}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def shard(
    faces: Path,
    out: Path,
    *more: str,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    umask: int = 0o022,
    code: int = 0,
) -> str:
    done = subprocess.run(
        command(faces, out, *more),
        capture_output=True,
        env=env or environment(),
        cwd=cwd,
        umask=umask,
        timeout=300,
        check=False,
    )
    error = done.stderr.decode("utf-8", "replace")
    assert done.returncode == code and "Traceback" not in error, error
    return error if code else done.stdout.decode()


@pytest.fixture(scope="module")
def whole(faces: Path) -> dict[str, bytes]:
    shard(faces, faces.parent / "whole")
    found = tree(faces.parent / "whole")
    assert sum(name.endswith(".tar") for name in found) == 7
    return found


SURROUNDINGS: dict[str, dict[str, object]] = {
    "LC_ALL=C": {"env": environment(LC_ALL="C", PYTHONCOERCECLOCALE="0")},
    "TZ": {"env": environment(TZ="Asia/Kathmandu")},
    "umask 077": {"umask": 0o077},
    "hash seed": {"env": environment(PYTHONHASHSEED="4242")},
    "no HOME": {"env": environment(without=("HOME", "USER", "LOGNAME"))},
    "another folder": {"cwd": Path("/")},
    "Turkish": {"env": environment(LANG="tr_TR.UTF-8", LANGUAGE="tr")},
    "no UTF-8": {
        "env": environment(LC_ALL="POSIX", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    },
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_the_same_bytes(name: str, faces: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    shard(faces, tmp_path / "out", "--workers", "2", **SURROUNDINGS[name])  # type: ignore[arg-type]
    assert tree(tmp_path / "out") == whole
    if name == "umask 077":
        modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "out").rglob("*")}
        assert modes == {0o700, 0o600}  # the mask is obeyed on disk; in the tars it is 0644


def faked(tmp_path: Path) -> dict[str, str]:
    """Give an environment whose clock tells what the file `clock` says; skip where none can be."""
    found = shutil.which("faketime")
    if found is None:
        pytest.skip("libfaketime is not installed: no false clock to test with")
    preload = subprocess.run(
        [found, "-f", "+0", "sh", "-c", "echo $LD_PRELOAD"], capture_output=True, text=True,
        check=True,
    ).stdout.strip()  # fmt: skip
    return environment(
        LD_PRELOAD=preload,
        FAKETIME_TIMESTAMP_FILE=str(tmp_path / "clock"),
        FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )


@pytest.mark.parametrize("clock", ["-1y", "+1y", "@1970-01-02 00:00:00"])
def test_a_wrong_clock(clock: str, faces: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    env = faked(tmp_path)
    (tmp_path / "clock").write_text(clock + "\n")
    year = subprocess.run(
        [sys.executable, "-c", "import time; print(time.gmtime().tm_year)"],
        env=env, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert int(year) != time.gmtime().tm_year  # the false clock is believed
    shard(faces, tmp_path / "out", "--workers", "2", env=env)
    assert tree(tmp_path / "out") == whole
    (tmp_path / "clock").write_text("+5y\n")
    again = json.loads(shard(faces, tmp_path / "out", env=env))
    assert again["resumed_shards"] == 7 and tree(tmp_path / "out") == whole


def test_a_clock_that_jumps(faces: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Back and forth by years while two workers write."""
    env = faked(tmp_path)
    clock, jumps = tmp_path / "clock", 0
    clock.write_text("+0\n")
    with subprocess.Popen(
        command(faces, tmp_path / "out", "--workers", "2"), env=env, stdout=subprocess.PIPE
    ) as running:
        while running.poll() is None:
            jumps += 1
            fresh = tmp_path / "clock.new"
            fresh.write_text(("+1y", "-1y", "+30d", "@1970-01-02 00:00:00")[jumps % 4] + "\n")
            fresh.replace(clock)
            time.sleep(0.02)
            assert jumps < 10_000
    assert running.returncode == 0 and jumps > 10
    assert tree(tmp_path / "out") == whole


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a small file system; skip where that is not allowed."""
    made: list[Path] = []

    def at(options: str, again: bool = False) -> Path:
        place = tmp_path / "small"
        place.mkdir(exist_ok=True)
        options = ("remount," if again else "") + options
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
        if not again:
            made.append(place)
        return place

    yield at
    for place in made:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("inodes", [6, 12, 20, 28])
def test_no_inodes(
    inodes: int, faces: Path, whole: dict[str, bytes], tmp_path: Path, mount: Callable[..., Path]
) -> None:
    place = mount(f"size=64m,nr_inodes={inodes}")
    said = shard(faces, place / "out", "--workers", "2", code=6)
    assert "GL0901 disk-full" in said and "no inodes are left" in said
    assert "the same command continues" in said
    mount("size=64m,nr_inodes=10000", again=True)
    shard(faces, place / "out")
    assert tree(place / "out") == whole
    assert not list((place / "out").rglob("*.tmp.*"))


def test_an_output_that_leads_into_the_source(faces: Path, tmp_path: Path) -> None:
    """Links are followed before anything is written; nothing of the source is touched."""
    before = tree(faces)
    (tmp_path / "to source").symlink_to(faces)
    (tmp_path / "to person").symlink_to(faces / "ILK")
    (tmp_path / "to link").symlink_to(tmp_path / "to source")
    (tmp_path / "source by link").symlink_to(faces)
    for src, out in (
        (faces, tmp_path / "to source"),
        (faces, tmp_path / "to person"),
        (faces, tmp_path / "to source" / "out"),
        (faces, tmp_path / "to link" / "ILK" / "out"),
        (tmp_path / "source by link", faces / "out"),
        (tmp_path / "source by link", tmp_path / "source by link"),
        (faces, faces / "ILK" / ".." / "out"),
    ):
        said = shard(src, out, code=2)
        assert "GL0002 bad-option" in said and "the output lies in the source" in said
    assert not (faces / "out").exists() and tree(faces) == before


def test_an_output_that_is_a_link_elsewhere(
    faces: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """A link to an empty folder is that folder; one to a folder of somebody else is left alone."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "work.txt").write_text("of years")
    for name in ("empty", "theirs"):
        (tmp_path / f"to {name}").symlink_to(name)
    shard(faces, tmp_path / "to empty")
    assert (tmp_path / "to empty").is_symlink() and tree(tmp_path / "empty") == whole
    assert "GL0004" in shard(faces, tmp_path / "to theirs", code=4)
    assert [p.name for p in (tmp_path / "theirs").iterdir()] == ["work.txt"]
