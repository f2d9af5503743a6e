"""How pixels reach an ONNX net is read in what its nodes do, against the same net in numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.models.recogniser import open_model

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(147, 8)).astype(np.float32)
CROPS = RNG.integers(0, 256, (2, 112, 112, 3), np.uint8)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
Array = np.ndarray


def net(pixel_nHWC: Array) -> Array:
    """Mean of 7 x 7 fields, times a matrix: what every file below does after its own scaling."""
    field = pixel_nHWC.transpose(0, 3, 1, 2).reshape(2, 3, 7, 16, 7, 16).mean((3, 5))
    return field.reshape(2, -1) @ WEIGHT


# (op, constants behind the input) ..., the type and shape of the input, and what the net then sees
usual = (CROPS - 127.5) / 127.5
CASES: dict[str, tuple[list[tuple[str, Any]], str, Array]] = {
    "nothing": ([], "FLOAT", usual),
    "mul add": ([("Mul", 1 / 127.5), ("Add", -1.0)], "FLOAT", usual),
    "sub div": ([("Sub", 127.5), ("Div", 127.5)], "FLOAT", usual),
    "0 to 1": ([("Sub", MEAN), ("Div", STD)], "FLOAT", (CROPS / 255 - MEAN) / STD),
    "0 to 255": (
        [("Div", 255.0), ("Sub", MEAN), ("Div", STD)], "FLOAT", (CROPS / 255 - MEAN) / STD,
    ),
    "not a scaling of pixels": ([("Add", 1.0), ("Mul", 0.5)], "FLOAT", (usual + 1) * 0.5),
    "bytes": ([("Sub", 127.5), ("Div", 127.5)], "UINT8", usual),
    "double": ([], "DOUBLE", usual),
    "half": ([("Sub", 127.5), ("Div", 127.5)], "FLOAT16", usual),
}  # fmt: skip


@pytest.mark.parametrize("constants", [False, True], ids=["initialisers", "nodes"])
@pytest.mark.parametrize("rows", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", CASES)
def test_pixels_are_scaled_once(tmp_path: Path, name: str, rows: bool, constants: bool) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    steps, kind, seen = CASES[name]
    make: Callable[..., Any] = onnx.helper.make_node
    tensor = onnx.numpy_helper.from_array
    nodes, initial, last = [make("Cast", ["x"], ["c"], to=1)], [tensor(WEIGHT, "W")], "c"
    if rows:
        nodes.append(make("Transpose", [last], ["r"], perm=[0, 3, 1, 2]))
        last = "r"
    for i, (op, value) in enumerate(steps):
        array = np.asarray(value, np.float32)
        array = array.reshape(1, 3, 1, 1) if array.size == 3 else array
        if constants:
            nodes.append(make("Constant", [], [f"k{i}"], value=tensor(array)))
        else:
            initial.append(tensor(array, f"k{i}"))
        nodes.append(make(op, [last, f"k{i}"], [f"s{i}"]))
        last = f"s{i}"
    nodes += [
        make("AveragePool", [last], ["p"], kernel_shape=[16, 16], strides=[16, 16]),
        make("Flatten", ["p"], ["f"]),
        make("MatMul", ["f", "W"], ["y"]),
    ]
    shape = ["n", 112, 112, 3] if rows else ["n", 3, 112, 112]
    taken = onnx.helper.make_tensor_value_info("x", getattr(onnx.TensorProto, kind), shape)
    given = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 8])
    graph = onnx.helper.make_graph(nodes, "g", [taken], [given], initial)
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "n.onnx")
    found = open_model(tmp_path / "n.onnx", threads=1, device="cpu").embed(CROPS)
    assert np.abs(found - net(seen)).max() < 0.02
