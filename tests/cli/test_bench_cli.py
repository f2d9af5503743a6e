"""`glint bench` and `glint split` as scripts call them."""

from __future__ import annotations

import json
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from glint.cli import app as command_line
from glint.cli import commands
from glint.models import recogniser
from glint.models.recogniser import Recogniser

Call = Callable[..., tuple[int, str, str]]


def seen(image_nHWC: np.ndarray) -> np.ndarray:
    part = image_nHWC.reshape(len(image_nHWC), 4, 28, 4, 28, 3).mean((2, 4))
    return (part.reshape(len(part), -1) - 127.5).astype(np.float32)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    if not command_line.app.registered_commands:
        commands.register(command_line.app)

    def opened(path: Path, **_: Any) -> Recogniser:
        few = 16 if "few" in path.name else 48
        return Recogniser(
            path.name, few, 112, f"sha {path}", "toy", 0, 1, lambda x: seen(x)[:, :few], 7
        )

    monkeypatch.setattr(recogniser, "open_model", opened)

    def invoke(*args: str | Path) -> tuple[int, str, str]:
        result = CliRunner().invoke(command_line.app, [str(a) for a in args])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return result.exit_code, result.stdout, result.stderr

    return invoke


def test_two_models_one_page_and_an_error_row(small: Any, call: Call, tmp_path: Path) -> None:
    sets, page = tmp_path / "sets", tmp_path / "page.html"
    sets.mkdir()
    shutil.copy(small.pairs, sets / "mine.bin")
    (sets / "lost_pairs.txt").write_text("1\t1\nA\t1\t2\nA\t1\tB\t2\n")
    (sets / "notes.md").write_text("no test")
    args = ("bench", "all.onnx", "few.onnx", "--sets", sets, "--report", page, "--draws", "50")
    code, out, err = call(*args, "--json")
    made = json.loads(out)
    assert code == 1 and made["schema"] == "glint/bench@1" and made["errors"] == 2
    assert "notes.md: a document" in err and "pack of" in err
    rows = {(row["set"], row["model"]): row for row in made["rows"]}
    assert "GL0802" in rows["lost_pairs", "all.onnx"]["error"]
    whole = rows["mine", "all.onnx"]
    low, high = whole["accuracy_interval"]
    assert low < whole["figures"]["accuracy"] < high + 1e-9
    assert whole["figures"]["accuracy"] != rows["mine", "few.onnx"]["figures"]["accuracy"]
    assert [one["parameters"] for one in made["models"]] == [7, 7]
    assert all(one["ms_per_image"] > 0 for one in made["models"])
    assert made["published"] == []  # 60 pairs are no published set
    text = page.read_text()
    assert stat.S_IMODE(page.stat().st_mode) == 0o600  # it shows faces
    assert "data:image/jpeg;base64" in text and "img-src data:" in text
    assert "http" not in text.replace("http-equiv", "") and "<script" not in text
    assert "least alike" in text and "could not be run" in text and "lost_pairs" in text
    best = max(row["figures"]["accuracy"] for row in made["rows"] if row["set"] == "mine")
    headline = re.findall(r'class="count first"><b>([^<]*)</b><span>([^,]*)', text)
    assert headline == [(f"{100 * best:.2f} %", "accuracy on mine")]
    code, out, _ = call(*args)
    assert code == 1 and "Measured" in out and "2 rows could not be run" in out
    (sets / "lost_pairs.txt").unlink()
    assert call(*args)[0] == 0


def test_mistakes_are_named_before_anything_is_embedded(
    small: Any, call: Call, tmp_path: Path
) -> None:
    sets = tmp_path / "sets"
    sets.mkdir()
    assert call("bench", "a.onnx", "--sets", tmp_path / "none")[0] == 2
    code, _, err = call("bench", "a.onnx", "--sets", sets)
    assert code == 3 and "no test set" in err
    shutil.copy(small.pairs, sets / "mine.bin")
    code, _, err = call("bench", "a.onnx", "--sets", sets, "--trained-on", small.data)
    assert code == 2 and "go together" in err
    code, _, err = call("bench", "a.onnx", "--sets", sets, "--report", tmp_path / "no" / "p.html")
    assert code == 2 and "no such folder" in err
    assert call("bench", "a.onnx", "a.onnx", "--sets", sets)[0] == 2


def test_split_then_drop(small: Any, call: Call, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(small.data, data)
    code, out, _ = call(
        "split", data, tmp_path / "held", "--people", "20", "--pairs", "60", "--json"
    )
    made = json.loads(out)
    assert code == 0 and made["people"] == 20 and made["lists"]["easy"] == 60
    code, out, _ = call("drop", data, "--ids-from", made["ids"], "--reason", "test", "--json")
    assert code == 0 and len(json.loads(out)["identities"]) == 20
    code, _, err = call("split", data, tmp_path / "held", "--people", "20")
    assert code == 4 and "GL0004" in err
