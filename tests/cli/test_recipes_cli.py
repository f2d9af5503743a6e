from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from glint.cli import recipes
from glint.recipes import shelf

app = typer.Typer()
recipes.register(app)


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def told(*arguments: str) -> dict[str, Any]:
    code, out, _ = call(*arguments, "--json")
    assert code == 0
    assert out.count("\n") == 1
    answer = json.loads(out)
    assert answer["schema"] == f"glint/{arguments[0]}-result@1"
    return dict(answer)


def test_ls() -> None:
    rows = told("ls")["recipes"]
    assert len(rows) == len(shelf.entries())
    assert {row["shelf"] for row in rows} == set(shelf.SHELVES)
    code, out, _ = call("ls", "manifests")
    assert code == 0
    assert "  lfw         Labeled Faces in the Wild: 5,749 identities, 13,233 images" in out
    assert "glint360k_r50" not in out
    code, _, err = call("ls", "trian")
    assert code == 2
    assert "did you mean train?" in err


def test_cat_prints_the_file() -> None:
    path = shelf.find("train", "ms1mv3_r50")
    assert told("cat", "ms1mv3_r50")["text"] == path.read_text()
    assert call("cat", "ms1mv3_r50")[1] == path.read_text()


def test_cp_then_validate(tmp_path: Path) -> None:
    mine = str(tmp_path / "mine.toml")
    assert told("cp", "ms1mv3_r50", mine)["path"] == mine
    spaced = f"{mine[:-5]} too.toml"
    assert f"Next: glint validate '{spaced}'" in call("cp", "ms1mv3_r50", spaced)[1]
    code, _, err = call("cp", "ms1mv3_r50", mine)
    assert (code, "GL0004 output-exists" in err) == (4, True)
    assert call("cp", "ms1mv3_r50", mine, "--overwrite")[0] == 0
    answer = told("validate", mine, "--set", "optim.lr=0.05")
    assert answer["valid"] is True
    assert answer["shelf"] == "train"
    assert answer["recipe"]["optim"]["lr"] == 0.05
    assert answer["commands"] == [f"glint train {mine} --set optim.lr=0.05"]


def test_validate_tells_every_mistake_and_exits_2(tmp_path: Path) -> None:
    code, out, err = call(
        "validate", "ms1mv3_r50", "--set", "optim.lrr=1", "--set", "head.m=x", "--json"
    )
    told = json.loads(out)
    assert (code, told["error"], told["exit"]) == (2, "GL0102", 2)
    assert "error GL0102 bad-recipe" in err
    assert "optim.lrr: unknown key, did you mean optim.lr? (from --set)" in err
    assert 'head.m: expected a number, found "x" (from --set)' in err
    assert "Traceback" not in err
    file = tmp_path / "a.toml"
    file.write_text("a = = 1\n")
    code, _, err = call("validate", str(file))
    assert (code, "GL0101 bad-toml" in err) == (2, True)
    assert call("validate", str(tmp_path / "none.toml"))[0] == 2


def test_validate_tells_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    val = f'run.val=["{tmp_path}/a.bin", "{"x" * 300}"]'
    there = ["--set", f"data.path={tmp_path}/data"]
    answer = told("validate", "ms1mv3_r50", *there, "--set", val)
    assert answer["missing"] == [f"run.val = {tmp_path}/a.bin", f"run.val = {'x' * 300}"]
    assert told("validate", "ms1mv3_r50", *there)["missing"] == []
    assert "not there: data.path = datasets/ms1mv3\n" in call("validate", "ms1mv3_r50")[1]
    remote = told("validate", "ms1mv3_r50", "--set", "data.path=s3://bucket/set")
    assert remote["missing"] == []


def test_validate_builds_the_net(tmp_path: Path) -> None:
    for change in ("layerz=3", "layers=[1,1]"):
        code, _, err = call("validate", "synth_tiny", "--set", f"backbone.options.{change}")
        assert (code, "GL0002" in err, "layers" in err) == (2, True, True), err
    assert call("validate", "synth_tiny", "--set", "backbone.name=timm:resnet10t")[0] in (0, 2)


def test_validate_knows_a_file_of_ones_own_by_its_tables(tmp_path: Path) -> None:
    for one in ("pipelines", "manifests"):
        mine = tmp_path / f"{one}.toml"
        mine.write_bytes(shelf.entries(one)[0].path.read_bytes())
        assert told("validate", str(mine))["shelf"] == one
    mine.write_text("x = 1\n")
    code, _, err = call("validate", str(mine))
    assert code == 2
    assert "data: missing, expected a table [data]" in err
    code, _, err = call("validate", str(mine), "--shelf", "pipelines")
    assert "x: unknown key, known here: shard, align, embed" in err


def test_validate_prints_the_road() -> None:
    commands = told("validate", "folders", "--set", "shard.source=my faces")["commands"]
    assert commands[0] == "glint shard 'my faces' datasets/faces"
    assert "      glint embed datasets/faces" in call("validate", "folders")[1]


def test_through_the_real_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "glint", "validate", "ms1mv3_r50", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["valid"] is True
