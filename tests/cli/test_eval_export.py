"""`glint eval` and `glint export` as scripts call them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from glint.cli import app as command_line
from glint.cli import commands
from glint.evals.packs import write_bin

Toy = Callable[..., Path]
Jpeg = Callable[..., bytes]
FIGURES = {"accuracy", "std", "folds", "tar_at_far", "threshold", "pairs", "model", "set", "flip"}


@pytest.fixture(scope="module")
def run(toy_run: Toy) -> Path:
    return toy_run(width=0.125)


@pytest.fixture(scope="module")
def pack(jpeg: Jpeg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pairs; the same ones are byte for byte one image."""
    path = tmp_path_factory.mktemp("pack") / "toy.bin"
    same = [i % 2 == 0 for i in range(12)]
    images = [jpeg(i if flag else i + 100 * side) for i, flag in enumerate(same) for side in (0, 1)]
    write_bin(path, images, same)
    return path


@pytest.fixture(scope="module")
def call() -> Callable[..., tuple[int, str, str]]:
    if not command_line.app.registered_commands:
        commands.register(command_line.app)

    def invoke(*args: str | Path) -> tuple[int, str, str]:
        result = CliRunner().invoke(command_line.app, [str(a) for a in args])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, result.stdout, result.stderr

    return invoke


def test_export_then_eval_in_processes_of_their_own(
    glint: Callable[..., Any], run: Path, pack: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "net.onnx"
    made = glint("export", run, path, "--crops", "4", "--json")
    assert made["schema"] == "glint/export@1"
    assert made["cosine_min"] >= 0.99999
    assert {"onnx", "bytes", "opset", "cosine_min", "insightface"} <= set(made)
    found = glint("eval", "pairs", pack, "--model", path, "--threads", "1", "--json")
    assert found["schema"] == "glint/eval@1"
    assert set(found) >= FIGURES
    assert (found["pairs"], found["set"], len(found["folds"])) == (12, "toy", 10)
    assert found["accuracy"] == pytest.approx(np.mean(found["folds"]))
    assert found["tar_at_far"]["1e-4"] == 1.0  # the same pairs are one image each
    assert found["model_digest"] == made["sha256"]


def test_a_run_and_its_export_agree(
    call: Callable[..., Any], run: Path, pack: Path, tmp_path: Path
) -> None:
    code, out, _ = call("eval", "pairs", pack, "-m", run, "--device", "cpu", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["engine"] == "torch"
    code, out, _ = call(
        "eval", "pairs", pack, pack, "-m", run, "--device", "cpu", "--no-flip", "--json"
    )
    both = json.loads(out)
    assert [one["set"] for one in both["sets"]] == ["toy", "toy"]
    assert both["accuracy"] == both["sets"][0]["accuracy"]
    assert both["flip"] is False


def test_people_get_a_table(call: Callable[..., Any], run: Path, pack: Path) -> None:
    code, out, _ = call("eval", "pairs", pack, "-m", run, "--device", "cpu")
    assert code == 0
    head, row, about = out.splitlines()
    assert head.split() == ["set", "pairs", "accuracy", "%", "TAR@FAR", "1e-3", "1e-4"]
    assert row.split()[:2] == ["toy", "12"]
    assert "through torch, 32 numbers, mirrored image added" in about


def test_the_form_of_0_1_still_works(call: Callable[..., Any], run: Path, pack: Path) -> None:
    code, out, err = call("eval", "-m", run, "--pairs", pack, "--device", "cpu", "--json")
    new = call("eval", "pairs", pack, "-m", run, "--device", "cpu", "--json")
    assert (code, out, new[2]) == (0, new[1], "")
    assert err.splitlines() == [
        "note: `glint eval --pairs` is deprecated and will be removed in the next version; use "
        "`glint eval pairs`"
    ]


def test_mistakes_have_codes(
    call: Callable[..., Any], run: Path, pack: Path, tmp_path: Path
) -> None:
    table = tmp_path / "pairs.tsv"
    table.write_text("fold\ta\tb\tsame\n0\ta\tb\t1\n")
    evil = tmp_path / "evil.bin"
    evil.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    text = tmp_path / "text.onnx"
    text.write_text("hello")
    cases: list[tuple[int, str, tuple[str | Path, ...]]] = [
        (2, "GL0001", ("eval", "pairs", pack, "-m", tmp_path / "none.onnx")),
        (2, "GL0001", ("eval", "pairs", tmp_path / "none.bin", "-m", run)),
        (2, "GL0002", ("eval", "pairs", table, "-m", run)),
        (2, "GL0002", ("eval", "pairs", pack, "-m", run, "--device", "tpu")),
        (3, "GL0301", ("eval", "pairs", table, "-m", run, "--dataset", tmp_path)),
        (3, "GL0401", ("eval", "pairs", pack, "-m", text)),
        (3, "GL0701", ("eval", "pairs", pack, "-m", tmp_path)),
        (8, "GL0801", ("eval", "pairs", evil, "-m", run)),
        (2, "GL0001", ("export", tmp_path / "none", tmp_path / "a.onnx")),
        (2, "GL0002", ("export", run, tmp_path / "a.pt")),
        (3, "GL0701", ("export", tmp_path, tmp_path / "a.onnx")),
        (4, "GL0004", ("export", run, text)),
    ]
    for exit_code, error, args in cases:
        code, out, err = call(*args, "--json")
        assert code == exit_code, (args, out, err)
        assert err.startswith(f"error {error} "), (args, err)
        told = json.loads(out)
        assert (told["error"], told["exit"]) == (error, exit_code)


def test_a_pairs_table_over_a_dataset(
    call: Callable[..., Any], run: Path, jpeg: Jpeg, tmp_path: Path
) -> None:
    faces, data, table = tmp_path / "faces", tmp_path / "data", tmp_path / "pairs.tsv"
    for person in range(5):
        (faces / f"p{person}").mkdir(parents=True)
        for i in range(3):
            (faces / f"p{person}" / f"{i}.jpg").write_bytes(jpeg(10 * person + min(i, 1)))
    assert call("shard", faces, data, "--json")[0] == 0
    rows = [f"{p % 2}\tp{p}/1.jpg\tp{p}/2.jpg\t1" for p in range(5)]  # one image under two names
    rows += [f"{p % 2}\tp{p}/0.jpg\tp{(p + 1) % 5}/0.jpg\t0" for p in range(5)]
    table.write_text("\n".join(["fold\ta\tb\tsame", *rows, ""]))
    args = ("eval", "pairs", table, "-m", run, "--dataset", data, "--device", "cpu", "--json")
    code, out, err = call(*args)
    assert code == 0, err
    found = json.loads(out)
    assert (found["pairs"], len(found["folds"]), found["set"]) == (10, 2, "pairs")
    assert found["cosine_same"] == pytest.approx(1)
    assert found["tar_at_far"]["1e-4"] == 1.0
    table.write_text(table.read_text() + "0\tnobody/1.jpg\tnobody/2.jpg\t1\n")
    code, out, err = call(*args)
    assert (code, json.loads(out)["error"]) == (3, "GL0802")
    assert "GL0802" in err
    assert "2 of 17 sources are not in the dataset: nobody/1.jpg, nobody/2.jpg" in err
