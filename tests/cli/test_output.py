"""Where what a command prints goes: a full disk and a reader that leaves are told as such."""

from __future__ import annotations

import os
import subprocess
import sys
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
