"""Every mistake: one clear error, its exit code, no stack trace."""

from __future__ import annotations

from pathlib import Path

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
