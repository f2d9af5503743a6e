"""How pixels reach an ONNX net is read in what its nodes do, against the same net in numpy."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.log import logger
from glint.models.onnx_file import Reading
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


def layers(
    onnx: Any, path: Path, nodes: list[Any], last: str, initial: list[Any],
    kind: str = "FLOAT", rows: bool = False,
) -> None:  # fmt: skip
    """Write a file: the nodes given, then the net."""
    make = onnx.helper.make_node
    nodes = [
        *nodes,
        make("AveragePool", [last], ["p"], kernel_shape=[16, 16], strides=[16, 16]),
        make("Flatten", ["p"], ["f"]),
        make("MatMul", ["f", "W"], ["y"]),
    ]
    shape = ["n", 112, 112, 3] if rows else ["n", 3, 112, 112]
    taken = onnx.helper.make_tensor_value_info("x", getattr(onnx.TensorProto, kind), shape)
    given = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 8])
    graph = onnx.helper.make_graph(nodes, "g", [taken], [given], initial)
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)


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
    layers(onnx, tmp_path / "n.onnx", nodes, last, initial, kind, rows)
    found = open_model(tmp_path / "n.onnx", threads=1, device="cpu").embed(CROPS)
    assert np.abs(found - net(seen)).max() < 0.02


C = np.float32(127.5)
BATCH = {"g": np.ones(3, "f"), "b": np.zeros(3, "f"), "m": np.full(3, C), "v": np.full(3, C**2)}
Step = tuple[str, str, str, dict[str, Any]]
NORM: Step = ("BatchNormalization", "x g b m v", "z", {})
SUB: Step = ("Sub", "i C", "d", {})
DIV: Step = ("Div", "d C", "z", {})
# nodes (op, inputs, outputs, attributes), constants, and what a user of the file gives it
FORMS: dict[str, tuple[list[Step], dict[str, Any], Array]] = {
    "batch norm": ([NORM], BATCH, CROPS),
    "colours turned by gather": (
        [("Gather", "x k", "i", {"axis": 1}), SUB, DIV], {"k": np.array([2, 1, 0])}, CROPS,
    ),
    "colours turned by split": (
        [("Split", "x k", "r g b", {"axis": 1}), ("Concat", "b g r", "i", {"axis": 1}), SUB, DIV],
        {"k": np.array([1, 1, 1])}, CROPS,
    ),
    "clip": (
        [("Clip", "x lo hi", "i", {}), SUB, DIV],
        {"lo": np.float32(0), "hi": np.float32(255)}, CROPS,
    ),
    "quantised": (
        [("QuantizeLinear", "x s o", "q", {}), ("DequantizeLinear", "q s o", "i", {}), SUB, DIV],
        {"s": np.float32(1), "o": np.uint8(0)}, CROPS,
    ),
    "1 x 1 convolution": (
        [("Conv", "x w o", "z", {"kernel_shape": [1, 1]})],
        {"w": (np.eye(3) / C).astype("f")[..., None, None], "o": -np.ones(3, "f")}, CROPS,
    ),
    "constants passed on": ([("Identity", "C", "c", {}), ("Sub", "x c", "d", {}), DIV], {}, CROPS),
    "value_float": (
        [("Constant", "", "c", {"value_float": 127.5}), ("Sub", "x c", "d", {}), DIV], {}, CROPS,
    ),
    "shape": (
        [("Shape", "x", "n", {}), ("Reshape", "x n", "i", {}), SUB, DIV], {}, CROPS,
    ),
    "0 to 1, to bytes": (
        [("Mul", "x k", "e", {}), ("BatchNormalization", "e g b m v", "z", {})],
        {**BATCH, "k": np.float32(255)}, CROPS / 255,
    ),
    "0 to 1, clipped": (
        [("Clip", "x lo hi", "i", {}), ("Mul", "i C", "z", {})],
        {"lo": np.float32(0), "hi": np.float32(1)}, CROPS / 255,
    ),
    "learnt norm": ([NORM], {**BATCH, "m": np.full(3, -0.1, "f"), "v": np.ones(3, "f")}, usual),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_scaling_is_seen_in_other_forms(tmp_path: Path, name: str) -> None:
    ort = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    steps, constants, seen = FORMS[name]
    nodes = [onnx.helper.make_node(op, taken.split(), given.split(), **more)
             for op, taken, given, more in steps]  # fmt: skip
    initial = [onnx.numpy_helper.from_array(np.asarray(value), one)
               for one, value in {"W": WEIGHT, "C": C, **constants}.items()]  # fmt: skip
    layers(onnx, tmp_path / "n.onnx", nodes, "z", initial)
    session = ort.InferenceSession(str(tmp_path / "n.onnx"))
    (expected,) = session.run(None, {"x": seen.transpose(0, 3, 1, 2).astype(np.float32)})
    found = open_model(tmp_path / "n.onnx", threads=1, device="cpu").embed(CROPS)
    assert np.abs(found - expected).max() < 0.02


@pytest.mark.parametrize("op", ["Relu", "Pow", "Mul"])
def test_nodes_that_are_not_understood_are_told(
    tmp_path: Path, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node(op, ["x"] if op == "Relu" else ["x", "C"], ["z"])
    initial = [onnx.numpy_helper.from_array(value, one)
               for one, value in {"W": WEIGHT, "C": np.float32(0.03)}.items()]  # fmt: skip
    layers(onnx, tmp_path / "n.onnx", [node], "z", initial)
    said: list[tuple[int, str]] = []
    monkeypatch.setattr(logger, "log", lambda level, text, *rest: said.append((level, text % rest)))
    open_model(tmp_path / "n.onnx", device="cpu")
    open_model(tmp_path / "n.onnx", device="cpu", reading=Reading(mean=0.0, std=1.0))
    assert [level for level, _ in said] == [logging.WARNING, logging.INFO]
    assert "--mean and --std overrule it" in said[0][1]
    assert "(pixel - 0) / 1 (as given)" in said[1][1]
