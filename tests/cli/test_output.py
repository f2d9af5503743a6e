"""Where what a command prints goes: a full disk and a reader that leaves are told as such."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

LS = [sys.executable, "-m", "glint", "ls"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(LS, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 6
    assert done.stderr.startswith("error GL0901 ") and "No space left" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_reader_that_has_seen_enough() -> None:
    seen, shown = os.pipe()
    os.close(seen)
    done = subprocess.run(LS, stdout=shown, stderr=subprocess.PIPE, text=True, check=False)
    os.close(shown)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_mistake_of_the_parser_has_its_exit_code() -> None:
    done = subprocess.run([*LS, "--nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--nothing" in done.stderr and not done.stdout


def test_closed_streams_are_no_traceback(tmp_path: Path) -> None:
    """And no file that is written gets the number of one of them."""
    out = tmp_path / "faces.toml"
    for closed in (">&-", "2>&-", "<&- >&- 2>&-"):
        command = f"{sys.executable} -m glint cp synth_tiny {out} {closed}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert (
            "synth_tiny" not in out.read_text().splitlines()[0] and "Next:" not in out.read_text()
        )
        out.unlink()


@pytest.mark.parametrize("url", ["reference://x/y", "dbfs://x/y", "foo://a", "hdfs://x/y"])
def test_an_odd_url_is_an_error(url: str) -> None:
    done = subprocess.run([*LS[:3], "info", url], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error GL000"), done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_whose_name_is_not_utf_8(tmp_path: Path, jpeg: Callable[[int], bytes]) -> None:
    top = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    for i in range(4):
        path = top / "src" / f"id{i // 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i))
    for args in (
        ["shard", top / "src", top / "set"],
        ["info", top / "set", "--json"],
        ["balance", top / "set"],
        ["balance", top / "set"],
        ["reshard", top / "set", top / "new", "--samples-per-shard", "3"],
        ["verify", top / "new", "--deep"],
        ["drop", top / "set", "--identity", "id1", "--reason", "x"],
    ):
        done = subprocess.run([*LS[:3], *args], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")


def test_a_label_of_5000_digits(tmp_path: Path, jpeg: Callable[[int], bytes]) -> None:
    (tmp_path / "src/a").mkdir(parents=True)
    (tmp_path / "src/a/0.jpg").write_bytes(jpeg(0))
    subprocess.run([*LS[:3], "shard", tmp_path / "src", tmp_path / "set"], check=True)
    for option in ("--identity", "--key"):
        args = ["drop", str(tmp_path / "set"), option, "1" * 5000, "--reason", "x"]
        if option == "--key":
            args += ["--erase", str(tmp_path / "new")]
        done = subprocess.run([*LS[:3], *args], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and "GL0002" in done.stderr, done.stderr
