"""Every mistake: one clear error, its exit code, no stack trace."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from glint.cli import commands
from glint.cli.app import app

commands.register(app)

CASES = [
    ("shard /nope out", 2, "GL0001"),
    ("shard emptydir out", 3, "no image was found"),
    ("shard junk.onnx out", 3, "a file of kind .onnx"),
    ("embed emptydir --model x.onnx --out o", 3, "without manifest.json"),
    ("dedup-conflicts emptydir --embeddings emptydir --out c", 3, "without manifest.json"),
    ("dedup-conflicts apply emptydir", 3, "no conflicts.json"),
    ("dedup-conflicts undo emptydir", 3, "no conflicts.json"),
    ("balance emptydir", 3, "without manifest.json"),
    ("train nope", 2, "glint ls train"),
    ("train synth_tiny --set data.path=emptydir", 3, "without manifest.json"),
    ("train synth_tiny --set optim.lr=fast", 2, 'expected a number, found "fast"'),
    ("train synth_tiny --set optim.lrr=1", 2, "did you mean optim.lr"),
    ("eval --model nope --pairs junk.onnx", 2, "GL0001"),
    ("eval --model nope", 2, "Usage"),
    ("export emptydir o.onnx", 3, "no checkpoint here"),
    ("synth emptyfile", 4, "not empty"),
    ("synth x --identities 0", 2, "expected at least 1"),
    ("verify emptydir", 3, "without manifest.json"),
    ("info /nope", 3, "no such folder"),
    ("demo full", 4, "holds no finished demo"),
    ("plan --classes -1", 2, "expected at least 1"),
    ("frobnicate", 2, "No such command"),
]


@pytest.mark.parametrize(("line", "code", "text"), CASES, ids=[case[0] for case in CASES])
def test_a_mistake_is_told(
    line: str, code: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    (tmp_path / "emptydir").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    (tmp_path / "junk.onnx").write_text("junk")
    (tmp_path / "emptyfile").write_text("")
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == code, result.output
    assert text in result.output
    assert result.output.count("error GL") <= 1
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_options_that_would_do_nothing_are_refused(
    small: Any, tmp_path: Path, glint: Callable[..., Any]
) -> None:
    folder = tmp_path / "people" / "a"
    folder.mkdir(parents=True)
    out = tmp_path / "out"
    err = glint("shard", tmp_path / "people", out, "--resync", code=2)
    assert "--resync: SRC is not a RecordIO file" in err
    err = glint("shard", small.world, out, "--staging", tmp_path / "stage", code=2)
    assert "only a dataset in a store is staged" in err
    err = glint("shard", small.world, "memory://x/y", code=2)
    assert "is lost with this process" in err
    assert not out.exists()


def test_a_dry_run_looks_at_the_output_too(
    small: Any, tmp_path: Path, glint: Callable[..., Any]
) -> None:
    (tmp_path / "mine").write_text("mine")
    err = glint("shard", small.world, tmp_path, "--dry-run", code=4)
    assert "GL0004" in err
    err = glint("shard", small.world, small.world / "out", "--dry-run", code=2)
    assert "lies in the source" in err


def test_a_manifest_that_was_changed_is_not_shown(
    small: Any, tmp_path: Path, glint: Callable[..., Any]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(small.data, data)
    path = data / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"written": 2', '"written": 3', 1))
    assert path.read_text() != text
    err = glint("info", data, code=3)
    assert "GL0301" in err and "seal" in err
