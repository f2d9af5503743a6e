"""`glint run`: a road walked once, gone on with where it stopped, and never twice over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glint.cli import run as command
from glint.errors import InputError
from tests.cli.conftest import ENV

ROAD = """
[shard]
source = "{source}"
out = "data"
[embed]
model = "{model}"
out = "emb"
[quality]
out = "quality"
least = "10%"
[balance]
cap = 4
[look]
out = "look.html"
[train]
recipe = "synth_tiny"
out = "first"
set = ["schedule.epochs=1", "schedule.max_steps=2", "run.val=[]"]
[export]
out = "model.onnx"
[eval]
pairs = ["{pairs}"]
"""


def walk(place: Path, *more: str, code: int = 0) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "glint", "run", "road.toml", "--out", "sum", "--json", *more],
        cwd=place, capture_output=True, text=True, env=ENV, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.mark.slow
def test_a_road_stops_goes_on_and_starts_over(small: Any, toy_run: Any, tmp_path: Path) -> None:
    place = tmp_path / "it"
    place.mkdir()
    pairs = place / "pairs.bin"
    road = ROAD.format(source=small.world, model=toy_run(), pairs=pairs)
    (place / "road.toml").write_text(road)

    told = walk(place, code=2)[1]  # there are no pairs yet
    assert "GL0001" in told and "run the same `glint run` again" in told
    steps = json.loads((place / "sum/steps.json").read_text())["steps"]
    assert [one["command"][1] for one in steps] == [
        "shard", "embed", "quality", "balance", "look", "train", "export"
    ]  # fmt: skip
    assert "not yet" in (place / "sum/summary.html").read_text()

    pairs.write_bytes(small.pairs.read_bytes())
    was = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    got, told = walk(place)
    result = json.loads(got)
    assert told.count("done before") == 6 and len(result["steps"]) == 8
    assert 0 < result["accuracy"][0] <= 1
    made = [place / name for name in ("model.onnx", "look.html", "data/sampling.parquet")]
    assert all(was[path] == path.stat().st_mtime_ns for path in made)
    checked = json.loads(
        subprocess.run(
            [sys.executable, "-m", "glint", "eval", "pairs", pairs, "--model", "model.onnx",
             "--json"], cwd=place, capture_output=True, check=True, env=ENV,
        ).stdout
    )  # fmt: skip
    assert checked["accuracy"] == result["accuracy"][0]
    assert f"{100 * checked['accuracy']:.2f} %" in (place / "sum/summary.html").read_text()

    told = walk(place, "--set", "balance.cap=3", "--set", "train.out=second")[1]
    assert told.count("done before") == 2  # embed, quality; the first looks at its source
    assert "balance data --cap 3" in told and (place / "second").is_dir()


def test_what_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    road = [["glint", name] for name in ("shard", "embed", "balance", "train")]
    ran: list[str] = []
    digest, broken = "one", ""

    def result(line: list[str]) -> dict[str, Any]:
        ran.append(" ".join(line[1:]))
        if line[1] == broken:
            raise SystemExit(5)
        return {"digest": digest, "loss": 0.1234567, "odd": "<i>"}

    def again(road: list[list[str]]) -> list[str]:
        ran.clear()
        command.walk(tmp_path, road)
        return ran

    monkeypatch.setattr(command, "command_result", result)
    broken = "balance"
    with pytest.raises(SystemExit) as stop:
        again(road)
    assert stop.value.code == 5 and ran == ["shard", "embed", "balance"]
    broken = ""
    assert again(road) == ["shard", "balance", "train"]
    assert again(road) == ["shard"]
    page = (tmp_path / "summary.html").read_text()
    assert "4 of 4" in page and "loss 0.1235" in page and "<i>" not in page
    changed = [*road[:2], ["glint", "balance", "--cap", "3"], road[3]]
    assert again(changed) == ["shard", "balance --cap 3", "train"]
    broken = "shard"  # what was done is still known after a stop at the first
    with pytest.raises(SystemExit):
        again(changed)
    broken = ""
    assert again(changed) == ["shard"]
    digest = "two"
    assert again(changed) == ["shard", "embed", "balance --cap 3", "train"]
    assert again(road[:2]) == ["shard"]
    net, pairs = tmp_path / "net.onnx", tmp_path / "pairs.bin"  # the files that a command names
    net.write_text("a"), pairs.write_text("b")
    named = [*road[:2], ["glint", "export", str(pairs), "--model", str(net)], road[3]]
    assert again(named)[1:] == [" ".join(named[2][1:]), "train"] and again(named) == ["shard"]
    net.write_text("c")
    assert again(named)[1:] == [" ".join(named[2][1:]), "train"]
    pairs.unlink()
    assert again(named)[1:] == [" ".join(named[2][1:]), "train"]
    (tmp_path / "steps.json").write_text("{")
    with pytest.raises(InputError, match="GL0006"):
        again(road)


def test_labels_that_somebody_else_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    road = [["glint", name] for name in ("shard", "embed", "apply", "balance", "train")]
    ran: list[str] = []
    now = "sharded"

    def result(line: list[str]) -> dict[str, Any]:
        nonlocal now
        ran.append(line[1])
        now = "applied" if line[1] == "apply" else now
        return {"digest": "one"}

    def again() -> list[str]:
        ran.clear()
        command.walk(tmp_path, road)
        return ran

    monkeypatch.setattr(command, "command_result", result)
    monkeypatch.setattr(command, "_labels", lambda first: now)
    assert again() == ["shard", "embed", "apply", "balance", "train"] and again() == ["shard"]
    now = "dropped"
    assert again() == ["shard", "balance", "train"] and again() == ["shard"]
    now = "sharded"  # undone
    assert again() == ["shard", "apply", "balance", "train"] and again() == ["shard"]


def test_mistakes(glint: Any, tmp_path: Path) -> None:
    for text, part in (
        ('[embed]\nmodel = "m"\nout = "e"\n', "one of the tables [shard] and [align]"),
        ('[shard]\nsource = "a"\nout = "d"\n[cluster]\nout = "c"\n', "needs the embeddings"),
        ('[shard]\nsource = "a"\nout = "d"\n[export]\nout = "c"\n', "needs the run"),
        ('[align]\nsource = "a"\nout = "d"\ndetector = "x"\nunlabelled = true\n'
         '[train]\nrecipe = "r"\nout = "o"\n', "needs names"),
        ('[shard]\nsource = "a"\nout = "d"\n[embed]\nmodel = "m"\nout = "d"\n', "same folder"),
        ('[shard]\nsource = "a"\nout = "d"\n[embed]\nmodel = "m"\nout = "e"\n[quality]\n'
         'out = "q"\nmethod = "steady"\n', "goes with method"),
    ):  # fmt: skip
        path = tmp_path / "road.toml"
        path.write_text(text)
        told = glint("run", path, "--out", tmp_path / "sum", code=2)
        assert part in told and not (tmp_path / "sum").exists()
