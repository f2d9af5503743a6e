"""glint align, as a person and as a script see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Glint = Callable[..., Any]


@pytest.fixture
def heap(tmp_path: Path) -> Path:
    for i in range(6):
        picture = np.full((160, 160, 3), 120, np.uint8)
        for k in range(i % 3):
            picture[48 + 40 * k : 56 + 40 * k, 80:88] = 255, 0, 200
        folder = tmp_path / "heap" / f"person {i // 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{i}.png")
    return tmp_path / "heap"


def test_what_is_said(
    glint: Glint, heap: Path, made_detector: Callable[..., Path], tmp_path: Path
) -> None:
    made = made_detector()
    text = glint("align", heap, tmp_path / "out", "--detector", made, "--workers", "1")
    assert "recognised   folder: 6 images, 2 identities" in text
    assert "detector     made.onnx, SHA-256 " in text
    assert (
        "read         6 photos = 4 with 4 crops + 2 quarantined\n                    2 no-face"
        in text
    )
    assert "note         2 photos with several faces" in text
    assert "crops are encoded anew as JPEG 95, 4:4:4" in text
    told = glint("info", tmp_path / "out", "--json")["recognised"]["align"]
    assert (told["faces"], told["detector"], told["antialias"]) == ("largest", "made.onnx", True)
    every = glint(
        "align", heap, tmp_path / "all", "-d", made, "--faces", "all", "--unlabelled", "--json"
    )
    assert every["schema"] == "glint/align-result@1"
    assert (every["read"], every["written"], every["further"]) == (6, 6, 2)
    dry = glint("align", heap, tmp_path / "no", "-d", made, "--dry-run")
    assert "would read   6 photos, into 1 shard" in dry and not (tmp_path / "no").exists()
    share = glint("align", heap, tmp_path / "x", "-d", made, "--samples-per-shard", "3",
                  "--task", "0/2")  # fmt: skip
    assert "1 of 2 shards are left to other tasks" in share
    assert "run the same glint align command" in glint("info", tmp_path / "x", code=3)


@pytest.mark.parametrize(
    "arguments, code, text",
    [
        (["--detector", "nowhere"], 2, "GL0001 no-such-path: "),
        (["--detector", "{heap}/person 0/0.png"], 3, "GL0401 bad-model: "),
        (["--faces", "two"], 2, "--faces: expected largest, central, all, one, found two"),
        (["--device", "cuda"], 2, "this onnxruntime has no cuda"),
        (["--max-bad", "0"], 5, "GL0221 over-bad-budget"),
    ],
)
def test_mistakes(
    glint: Glint, heap: Path, made_detector: Callable[..., Path], tmp_path: Path,
    arguments: list[str], code: int, text: str,
) -> None:  # fmt: skip
    given = [one.format(heap=heap) for one in arguments]
    if "--detector" not in given:
        given += ["--detector", str(made_detector())]
    said = glint("align", heap, tmp_path / "out", "--workers", "1", *given, code=code)
    assert text in said
