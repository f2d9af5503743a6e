"""glint verify, reshard, merge, drop and card as people call them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from glint.cli import card, console, drop, merge, reshard, verify
from glint.pipelines.dataset import shard


@pytest.fixture
def call() -> Iterator[Callable[..., Any]]:
    """Run a command in this process; give its JSON or text, or its stderr where it must fail."""
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    for module in (card, drop, merge, reshard, verify):
        module.register(app)
    logger = logging.getLogger("glint")
    before = (logger.handlers[:], logger.level, logger.propagate)

    def run(*args: str | Path, code: Any = 0) -> Any:
        done = CliRunner().invoke(app, list(map(str, args)))
        right = done.exit_code > 1 if code is Any else done.exit_code == code
        assert right, (done.output, done.exception)
        if code:
            return done.stderr
        return json.loads(done.stdout) if "--json" in args else done.stdout

    yield run
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture
def data(tmp_path: Path, jpeg: Callable[[int], bytes]) -> Path:
    for i in range(12):
        path = tmp_path / "src" / f"id{i // 4}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i))
    shard.shard(tmp_path / "src", tmp_path / "set", shard.Options(5))
    return tmp_path / "set"


def test_the_round(call: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    said = call("verify", data, "--deep", "--json")
    assert (said["schema"], said["ok"], said["shards"]) == ("glint/verify-result@1", True, 3)
    said = call("reshard", data, tmp_path / "re", "--samples-per-shard", "7", "--json")
    assert (said["schema"], said["shards"]) == ("glint/reshard-result@1", 2)
    text = call("merge", data, tmp_path / "re", tmp_path / "both", "--workers", "1")
    assert "duplicates   12 images are in more than one dataset (24 samples)" in text
    text = call("drop", data, "--identity", "id1", "--reason", "asked to")
    assert "label version 0 -> 1, 2 classes left" in text
    assert "the images are still in the shards" in text
    said = call("card", data, "--license", "MIT", "--consent", "drawn", "--contact", "me", "--json")
    assert said["schema"] == "glint/card-result@1" and (data / "README.md").is_file()


def digest(dataset: Path) -> str:
    return str(json.loads((dataset / "manifest.json").read_text())["digest"])


def test_merge_takes_out_last_and_still_first(
    call: Callable[..., Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    re, new, old = tmp_path / "re", tmp_path / "new", tmp_path / "old"
    said: list[str] = []
    tell = console.tell
    monkeypatch.setattr(
        console, "tell", lambda text, **more: said.append(text) or tell(text, **more)
    )
    call("reshard", data, re, "--samples-per-shard", "7")
    small = ("--samples-per-shard", "9", "--workers", "1")
    call("merge", data, re, new, *small)
    assert "note: OUT" not in "".join(said)
    call("merge", old, data, re, *small)
    assert f"read as: glint merge {data} {re} {old}" in "".join(said)
    files = {p.relative_to(new): p.read_bytes() for p in new.rglob("*.tar")}
    assert files == {p.relative_to(old): p.read_bytes() for p in old.rglob("*.tar")} and files
    assert digest(new) == digest(old)
    # again, in either order: nothing is written anew, and no input is taken for the output
    call("merge", data, re, new, *small)
    call("merge", old, data, re, *small)
    assert digest(new) == digest(old)
    assert "GL0301" in call("merge", data, tmp_path / "typo", tmp_path / "out", *small, code=3)
    # a slip in the first path, and OUT is there: not read as a merge of OUT into the slip
    wrong = call("merge", tmp_path / "typo", data, re, new, *small, code=2)
    assert "GL0002" in wrong and "datasets first, OUT last" in wrong
    assert not (tmp_path / "typo").exists() and not (tmp_path / "out").exists()


def test_merge_writes_over_no_dataset(
    call: Callable[..., Any], data: Path, tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    re, other = tmp_path / "re", tmp_path / "other"
    call("reshard", data, re, "--samples-per-shard", "7")
    call("reshard", data, other, "--samples-per-shard", "3")
    begun, broken = tmp_path / "begun", tmp_path / "broken"
    call("merge", data, re, begun, "--workers", "1")
    (begun / "manifest.json").unlink()  # begun, and by another command than those below
    call("reshard", data, broken, "--samples-per-shard", "4")
    (broken / "manifest.json").write_text("{")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for line in (
        [data, re, other],  # OUT was forgotten: `other` is no merge of the two
        [other, data, re],
        [data, other, re, begun],  # begun by other sources
        [begun, data, other],
        [data, re, broken],
        [broken, data, re],
        [data, re],
        [data, re, data],  # OUT is one of the inputs
    ):
        call("merge", *line, "--workers", "1", code=Any)
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert after == before


def test_verify_fails_with_its_findings(call: Callable[..., Any], data: Path) -> None:
    path = data / "data/train-000001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    done = subprocess.run(
        [sys.executable, "-m", "glint", "verify", str(data), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    said = json.loads(done.stdout)
    assert not said["ok"] and said["problem_count"] == 1
    assert said["problems"][0]["shard"] == "train-000001.tar"
    assert f"error GL0306 verification-failed: {data}: 1 problem found" in done.stderr
    assert "GL0306" in call("verify", data, code=3)


def test_verify_against_the_source(call: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    src = tmp_path / "src"
    said = call("verify", data, "--against", src, "--json")
    assert said["ok"] and said["against"] == {
        "source": [str(src)], "compared": 12, "missing": 0, "other_bytes": 0, "other_label": 0,
        "unknown": 0,
    }  # fmt: skip
    text = call("verify", data, "--deep", "--sha256", "--against", src)
    assert "12 images compared, 0 with other bytes" in text and "all as written" in text
    said = call("verify", data, "--against", src, "--against", data, "--dry-run", "--json")
    assert [one["kind"] for one in said["against"]] == ["folder", "dataset"]
    assert f"folder {src}" in call("verify", data, "--against", src, "--dry-run")
    (src / "id0" / "0.jpg").write_bytes((src / "id0" / "1.jpg").read_bytes())
    assert "GL0306" in call("verify", data, "--against", src, code=3)
    assert "GL0001" in call("verify", data, "--against", tmp_path / "none", code=2)
    assert "--against" in call("verify", data, "--deep", "--against", src, "--task", "0/2", code=2)


def test_what_is_refused(call: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    assert "GL0301 not-a-dataset" in call("verify", tmp_path, code=3)
    assert "bad-option: --license" in call("card", data, "--contact", "me", code=2)
    assert "--samples-per-shard" in call("reshard", data, tmp_path / "x", code=2)


def test_dry_runs_write_nothing(call: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    card = ("--license", "MIT", "--consent", "drawn", "--contact", "me")
    for line in (
        ["verify", data],
        ["reshard", data, tmp_path / "x", "--samples-per-shard", "3"],
        ["drop", data, "--identity", "0", "--reason", "r"],
        ["drop", data, "--identity", "0", "--reason", "r", "--erase", tmp_path / "x"],
        ["card", data, *card],
    ):
        assert call(*line, "--dry-run", "--json")["dry_run"] is True
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
