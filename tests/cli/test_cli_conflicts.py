"""The bare form, the subcommands, and what they say about mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ["embed", "dedup-conflicts", "balance"]


def glint(*args: str, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "glint", *args],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_help_names_the_subcommands() -> None:
    text = glint("dedup-conflicts", "--help").stdout
    for name in ("find", "apply", "undo", "dedup-conflicts DATASET"):
        assert name in text


@pytest.mark.parametrize(
    "args",
    [
        ["dedup-conflicts", "SET", "--embeddings", "e", "--out", "o"],
        ["dedup-conflicts", "find", "SET", "--embeddings", "e", "--out", "o"],
        ["dedup-conflicts", "--json", "SET", "--embeddings", "e", "--out", "o"],
        ["balance", "SET"],
    ],
)
def test_a_path_that_is_no_dataset(tmp_path: Path, args: list[str]) -> None:
    done = glint(*[str(tmp_path / a) if a in ("SET", "e", "o") else a for a in args], code=3)
    assert done.stdout == ""
    assert "error GL0301 not-a-dataset" in done.stderr
    assert "hint: " in done.stderr


@pytest.mark.parametrize("verb", ["apply", "undo"])
def test_apply_to_what_is_no_report(tmp_path: Path, verb: str) -> None:
    done = glint("dedup-conflicts", verb, str(tmp_path), "--json", code=3)
    assert "error GL0501 bad-decisions" in done.stderr


def test_usage_mistakes(tmp_path: Path) -> None:
    glint("dedup-conflicts", str(tmp_path), code=2)
    done = glint("balance", str(tmp_path), "--power", "2", code=2)
    assert "--power: expected from 0 to 1, found 2.0" in done.stderr


def test_importing_the_commands_is_light() -> None:
    code = (
        "import sys; from glint.cli import embed, conflicts, balance; "
        "bad = {'torch', 'faiss', 'numpy', 'pyarrow', 'scipy', 'jinja2'} & set(sys.modules); "
        "print(sorted(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []
