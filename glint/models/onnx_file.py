"""What an ONNX file of a recogniser says of itself: pixels, files, its package's manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from glint.errors import InputError, UsageError
from glint.files import reads
from glint.models import checkpoint

PIXELS = (127.5, 127.5)  # mean and std where a file says nothing, as in the field
ITSELF = "the net scales them itself"
UNKNOWN = "assumed: its first nodes do not tell what pixels it takes; --mean and --std overrule it"
MOST_NUMBERS = 1 << 18  # of constants before the first layer: an image of means, say
_SAME = {
    "Cast", "Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Resize",
    "Upsample", "Pad", "Gather", "Slice", "Split", "Concat", "Clip", "Min", "Max", "Dropout",
    "QuantizeLinear", "DequantizeLinear", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip
_LAYERS = {
    "Conv", "ConvInteger", "QLinearConv", "DynamicQuantizeLinear", "FusedConv", "Einsum",
    "MatMul", "MatMulInteger", "Gemm", "AveragePool", "MaxPool", "GlobalAveragePool", "LpPool",
}  # fmt: skip
_SCALES = {"Sub", "Add", "Mul", "Div", "Neg", "BatchNormalization"}


@dataclass(frozen=True)
class Reading:
    """How a user says that an ONNX file is to be read; None and "" leave it to the file."""

    output: str = ""
    mean: float | None = None
    std: float | None = None
    bgr: bool = False

    @property
    def given(self) -> bool:
        """Whether anything is said."""
        return self != Reading()


def package(
    path: Path, task: str = "recognition", usual: tuple[float, float] = PIXELS
) -> tuple[Path, Reading] | None:
    """Return the model of an insightface package folder, and how its manifest reads it.

    usual: mean and std where the manifest says nothing.

    None for a folder without a manifest of version 2. Raises InputError GL0401 where a manifest
    names none, a file outside, of another digest, or of another size than 112 pixels.
    """
    try:
        told = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(told, dict) or told.get("manifest_version") != 2:
        return None
    where = str(path / "manifest.json")
    one = told.get("tasks", {}).get(task) if isinstance(told.get("tasks"), dict) else None
    if not isinstance(one, dict) or not isinstance(one.get("file"), str):
        raise InputError("GL0401", f"the package has no {task} model", where=where)
    file = (path / one["file"]).resolve()
    if path.resolve() not in file.parents or not file.is_file():
        raise InputError("GL0401", f"its model {one['file']} is not in the package", where=where)
    digest = one.get("sha256")
    if digest is not None and checkpoint.sha256(file) != digest:
        raise InputError("GL0401", f"{one['file']} is not the file of its sha256", where=where)
    pixels = one.get("preprocessing", {"mean": usual[0], "std": usual[1]})
    if pixels == "embedded":
        return file, Reading(mean=0.0, std=1.0)
    try:
        mean, std = float(pixels["mean"]), float(pixels["std"])
    except (TypeError, KeyError, ValueError):
        raise InputError("GL0401", f"preprocessing {pixels!r}", where=where) from None
    return file, Reading(mean=mean, std=std)


def loaded(path: Path, what: str = "recogniser") -> Any:
    """Parse an ONNX file without the weights beside it. Raises InputError GL0401."""
    import onnx

    if why := reads.stand_in(path):
        raise InputError("GL0401", f"expected an ONNX {what}, found {why}", where=str(path))
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's errors share no base class
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        if path.suffix in (".safetensors", ".pt", ".pth", ".toml"):
            text = f"a file of {path.suffix}: give a run's or checkpoint's folder, or export it"
        said = f"expected an ONNX {what}, found {text[:200]}"
        raise InputError("GL0401", said, where=str(path)) from None
    for name in sorted(beside(model)):
        if not (path.parent / name).is_file():
            said = f"its weights lie in {name} beside it, which is not there"
            raise InputError("GL0401", said, where=str(path), hint="copy both files together")
    return model


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _tensors(inner)


def beside(model: Any) -> set[str]:
    """Return the names of files that a model keeps weights in."""
    return {
        entry.value
        for tensor in _tensors(model.graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }


def digest(path: Path, names: set[str], reading: Reading = Reading()) -> str:
    """Return the SHA-256 of a model: of its file, of those beside it, of how it is read."""
    own = checkpoint.sha256(path)
    lines = [own, *(f"{checkpoint.sha256(path.parent / name)} {name}" for name in sorted(names))]
    lines += [repr(reading)] if reading.given else []
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if len(lines) > 1 else own


def pixel_range(model: Any, path: Path) -> tuple[float, float, str]:
    """Return (mean, std) that pixels 0..255 need before a net, and in words how that is known.

    What stands before the first real layer is run on even images: (0, 1) where it takes pixels
    0..255, (0, 255) where it takes 0..1. The words are UNKNOWN where that tells neither.
    """
    try:
        taps, by_name = _before_layers(model.graph)
        told = {_judged(_response(model, tap, by_name, path)) for tap in taps}
    except Exception:  # odd graphs fail in many ways; the net itself is opened and tried anyway
        told = set()
    return told.pop() if len(told) == 1 else (*PIXELS, UNKNOWN)


def _before_layers(graph: Any) -> tuple[list[str], dict[str, Any]]:
    """Return the tensors that the first layers take, and by its outputs each node before them.

    What comes before layers: nodes that move, clip, quantise, scale or shift single pixels.
    """
    known = {tensor.name: tensor for tensor in graph.initializer}
    pixels = {next(one.name for one in graph.input if one.name not in known)}
    constant, by_name, taps = {*known, ""}, dict[str, Any](), list[str]()
    for node in graph.node:
        taken = pixels.intersection(node.input)
        if node.op_type in ("Shape", "Size") or constant.issuperset(node.input):
            constant.update(node.output)
        elif taken and _moves(node, pixels, constant, known):
            pixels.update(node.output)
        elif taken and node.op_type not in _LAYERS:
            raise ValueError(f"{node.op_type} before the first layer")
        else:
            taps += taken
            continue
        by_name |= dict.fromkeys(node.output, node)
    ends = pixels.intersection(one.name for one in graph.output)
    return list(dict.fromkeys([*taps, *ends])), by_name


def _moves(node: Any, pixels: set[str], constant: set[str], known: dict[str, Any]) -> bool:
    """Say whether a node does the same to each pixel, or moves pixels, by constants alone."""
    if not (pixels | constant).issuperset(node.input):
        return False
    if node.op_type == "Conv":  # colours weighed, or each one alone
        shape = [*known[node.input[1]].dims] if node.input[1] in known else []
        return shape in ([3, 3, 1, 1], [3, 1, 1, 1])
    if node.op_type in _SCALES:
        return sum(name in pixels for name in node.input) == 1
    return node.op_type in _SAME


def _response(model: Any, tap: str, by_name: dict[str, Any], path: Path) -> list[float]:
    """Run what stands between the input and a tensor on images of -1, 0, 1 and 255 everywhere."""
    import onnx
    import onnxruntime

    graph = model.graph
    known = {tensor.name: tensor for tensor in graph.initializer}
    data = next(one for one in graph.input if one.name not in known)
    wanted, names = [tap], {tap}
    for name in wanted:
        for other in by_name[name].input if name in by_name else ():
            wanted += [] if other in names else [other]
            names.add(other)
    nodes = [node for node in graph.node if names.intersection(node.output)]
    values = [known[name] for name in names if name in known]
    if sum(np.prod(one.dims) for one in values) > MOST_NUMBERS:
        raise ValueError("more numbers than a scaling needs")
    load, save = onnx.numpy_helper.to_array, onnx.numpy_helper.from_array
    values = [save(load(one, str(path.parent)), one.name) for one in values]
    sizes = [one.dim_value for one in data.type.tensor_type.shape.dim]
    usual = (1, 112, 112, 3) if sizes[3] == 3 and sizes[1] != 3 else (1, 3, 112, 112)
    shape = [size if size > 0 else other for size, other in zip(sizes, usual, strict=True)]
    kind = onnx.helper.tensor_dtype_to_np_dtype(data.type.tensor_type.elem_type)
    if not nodes:
        return [-1.0, 0.0, 1.0, 255.0]
    given = onnx.helper.make_graph(nodes, "before", [data], [onnx.ValueInfoProto(name=tap)], values)
    inner = onnx.helper.make_model(given, opset_imports=model.opset_import)
    inner.ir_version = model.ir_version
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(
        inner.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [
        float(np.median(session.run([tap], {data.name: np.full(shape, value, kind)})[0]))
        for value in (-1, 0, 1, 255)
    ]


def _judged(response: list[float]) -> tuple[float, float, str]:
    """Judge by what -1, 0, 1 and 255 become which numbers a net takes, as `pixel_range` returns."""
    below, zero, one, white = response
    floor, ceiling = below == zero, abs(white - zero) < 2 * abs(one - zero)  # what is clipped
    scale = (one - zero) if ceiling else (white - zero) / 255
    if not scale:
        return *PIXELS, UNKNOWN
    middle, steep = -zero / scale, abs(scale)  # the input that becomes 0
    if not ceiling and (floor or 50 < middle < 205 or (not zero and 0.9 < abs(white) < 1.1)):
        return 0.0, 1.0, ITSELF
    if floor or (0.2 < middle <= 1 <= steep) or (abs(middle) < 0.01 and 250 < steep < 260):
        return 0.0, 255.0, ITSELF
    if (abs(middle) <= 0.2 and (ceiling or 0.5 <= steep <= 10)) or -1.1 < middle < -0.9:
        return *PIXELS, "as usual"  # -1..1
    if middle > 2 or steep < 0.1:
        return 0.0, 1.0, UNKNOWN
    return (0.0, 255.0, UNKNOWN) if 0.2 < middle <= 1 else (*PIXELS, UNKNOWN)


def settled(
    reading: Reading, found: tuple[float, float, str], raw: bool
) -> tuple[float, float, str]:
    """Return mean and std of the pixels, and in words who says so.

    found: what `pixel_range` returns; raw: the net takes bytes. Raises UsageError GL0002.
    """
    mean, std, why = found
    if raw:
        mean, std, why = 0.0, 1.0, "it takes bytes"
    if reading.mean is not None or reading.std is not None:
        mean = mean if reading.mean is None else reading.mean
        std, why = std if reading.std is None else reading.std, "as given"
    if not std:
        raise UsageError("GL0002", "expected a number other than 0", where="--std")
    if raw and (mean, std) != (0.0, 1.0):
        raise UsageError("GL0002", "the model takes bytes as they are", where="--mean, --std")
    return mean, std, why


def over(given: Reading, manifest: Reading) -> Reading:
    """Return what a user says, over what a manifest says."""
    mean = manifest.mean if given.mean is None else given.mean
    return replace(given, mean=mean, std=manifest.std if given.std is None else given.std)


def parameters(model: Any) -> int:
    """Count the numbers of a net: its tensors of floats, or of 8 bits where it is quantised."""
    counted = (1, 10, 11, 2, 3, 16)  # float32, float16, float64, uint8, int8, bfloat16
    return sum(
        int(np.prod(list(one.dims), dtype=np.int64))
        for one in _tensors(model.graph)
        if one.data_type in counted
    )
