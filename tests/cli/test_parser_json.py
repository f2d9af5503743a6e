"""Mistakes that are found before a command begins are JSON too; paths that no system takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    "arguments, what",
    [
        (["shard", "src", "--json"], "Missing argument"),
        (["shard", "src", "out", "--json", "--sed", "3"], "No such option: --sed"),
        (["shard", "--json", "src", "out", "--seed", "x"], "Invalid value for '--seed'"),
        (["shrad", "--json"], "No such command 'shrad'"),
    ],
)
def test_the_parser_s_errors(arguments: list[str], what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "glint", *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    told = json.loads(done.stdout)
    assert told["schema"] == "glint/error@1" and told["exit"] == 2
    assert (told["error"], told["slug"]) == ("GL0002", "bad-option") and what in told["what"]
    assert what in done.stderr


def test_a_stack_trace_does_not_cost_the_json(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "glint", "info", tmp_path, "--json", "--debug"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 3 and json.loads(done.stdout)["error"] == "GL0301"
    assert "Traceback" in done.stderr and "error GL0301 not-a-dataset" in done.stderr


def test_help_beside_json_is_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "glint", "shard", "--json", "--help"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "Usage:" in done.stdout


def test_paths_that_no_system_takes(glint: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "src" / "a").mkdir(parents=True)
    src, component, whole = tmp_path / "src", "x" * 300, "y" * 99 + "/y" * 3000
    for arguments in (("shard", src, component), ("shard", whole, "out"), ("info", component)):
        said = glint(*arguments, code=2)
        assert "GL0002 bad-option" in said and "File name too long" in said
        assert len(said) < 400


def test_a_name_that_only_its_files_make_too_long(
    glint: Callable[..., Any], tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    """The folder itself can be; what lies in it cannot."""
    (tmp_path / "src" / "a").mkdir(parents=True)
    (tmp_path / "src" / "a" / "0.jpg").write_bytes(jpeg(0))
    room = os.pathconf(tmp_path, "PC_PATH_MAX") - len(str(tmp_path)) - 30
    parts = ["d" * 200] * (room // 201)
    deep = tmp_path.joinpath(*parts, "e" * (room - 201 * len(parts)))
    said = glint("shard", tmp_path / "src", deep, code=6)
    assert "GL0007 not-writable" in said and "File name too long" in said


def test_a_link_that_leads_nowhere(glint: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "src" / "a").mkdir(parents=True)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lost").symlink_to("nowhere")
    for name in ("loop", "lost"):
        said = glint("shard", tmp_path / "src", tmp_path / name, code=4)
        assert "GL0004 output-exists" in said and "a link that leads nowhere" in said
        assert (tmp_path / name).is_symlink()
