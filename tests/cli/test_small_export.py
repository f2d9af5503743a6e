"""`glint export --int8` and `--fp16`: verified on a pack, or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from glint.models.export_onnx import export_onnx, random_crops
from glint.models.recogniser import open_model

NET: dict[str, Any] = {"width": 0.125, "blocks": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def whole(toy_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "net.onnx"
    export_onnx(toy_run("mobilefacenet", 32, **NET), path, crops=2)
    return path


def cosine(a: Path, b: Path) -> float:
    first, second = (open_model(p, threads=1, device="cpu").embed(random_crops(8)) for p in (a, b))
    return float(
        min(
            (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
        )
    )


def test_int8_says_what_it_costs(glint: Any, small: Any, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    args = ("export", whole, out, "--int8", "--calibrate", small.data, "--pairs", small.pairs)
    found = glint(*args, "--limit", "100", "--json")
    assert found["kind"] == "int8" and found["bytes"] == out.stat().st_size
    model = onnx.load(str(out))
    kinds = {one.name: one.data_type for one in model.graph.initializer}
    weights = [one for one in kinds if one.endswith("_quantized")]
    assert len(weights) >= 20 and {kinds[one] for one in weights} <= {3, 6}  # int8; biases int32
    taken, given = model.graph.input[0], model.graph.output[0]
    assert {one.type.tensor_type.elem_type for one in (taken, given)} == {1}
    assert cosine(whole, out) > 0.9
    for name, model_file in (("accuracy_before", whole), ("accuracy", out)):
        judged = glint("eval", "pairs", small.pairs, "--model", model_file, "--device", "cpu",
                       "--json")  # fmt: skip
        assert judged["accuracy"] == found[name]


def test_fp16_is_half_the_size_and_nearly_the_same(
    glint: Any, small: Any, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "half.onnx"
    found = glint("export", whole, out, "--fp16", "--pairs", small.pairs, "--limit", "2", "--json")
    assert found["bytes"] < 0.7 * found["bytes_before"] and cosine(whole, out) > 0.999
    model = onnx.load(str(out))
    assert {one.data_type for one in model.graph.initializer} >= {10}
    ends = (*model.graph.input, *model.graph.output)
    assert {one.type.tensor_type.elem_type for one in ends} == {1}


def test_above_the_limit_nothing_is_left(
    small: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glint.errors import InputError
    from glint.evals import small_onnx

    accuracies = iter([0.9, 0.899, 0.9, 0.8979])

    class Found:
        @property
        def accuracy(self) -> float:
            return next(accuracies)

    monkeypatch.setattr(small_onnx, "verify", lambda *_, **__: Found())
    out = tmp_path / "half.onnx"
    made = small_onnx.shrink(whole, out, "fp16", small.pairs, limit=0.1)
    assert made.accuracy == 0.899 and out.exists()
    before = out.read_bytes()
    with pytest.raises(InputError, match=r"GL0707 .* fp16 verifies 89\.79 %, .* 90\.00 %"):
        small_onnx.shrink(whole, out, "fp16", small.pairs, limit=0.2)
    assert out.read_bytes() == before and [*tmp_path.iterdir()] == [out]


def test_mistakes(glint: Any, small: Any, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.onnx"
    assert "--int8 needs --pairs and --calibrate" in glint("export", whole, out, "--int8", code=2)
    wrong = glint("export", whole, out, "--pairs", small.pairs, code=2)
    assert "only read with --int8 or --fp16" in wrong
    assert "it is the source" in glint(
        "export", whole, whole, "--fp16", "--pairs", small.pairs, "--overwrite", code=4
    )
