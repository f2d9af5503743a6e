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
_SAME = ("Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Resize", "Pad")


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


def package(path: Path) -> tuple[Path, Reading] | None:
    """Return the recogniser of an insightface package folder, and how its manifest reads it.

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
    task = told.get("tasks", {}).get("recognition") if isinstance(told.get("tasks"), dict) else None
    if not isinstance(task, dict) or not isinstance(task.get("file"), str):
        raise InputError("GL0401", "the package has no recognition model", where=where)
    file = (path / task["file"]).resolve()
    if path.resolve() not in file.parents or not file.is_file():
        raise InputError("GL0401", f"its model {task['file']} is not in the package", where=where)
    digest = task.get("sha256")
    if digest is not None and checkpoint.sha256(file) != digest:
        raise InputError("GL0401", f"{task['file']} is not the file of its sha256", where=where)
    pixels = task.get("preprocessing", {"mean": PIXELS[0], "std": PIXELS[1]})
    if pixels == "embedded":
        return file, Reading(mean=0.0, std=1.0)
    try:
        mean, std = float(pixels["mean"]), float(pixels["std"])
    except (TypeError, KeyError, ValueError):
        raise InputError("GL0401", f"preprocessing {pixels!r}", where=where) from None
    return file, Reading(mean=mean, std=std)


def loaded(path: Path) -> Any:
    """Parse an ONNX file without the weights beside it. Raises InputError GL0401."""
    import onnx

    if why := reads.stand_in(path):
        raise InputError("GL0401", f"expected an ONNX recogniser, found {why}", where=str(path))
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's errors share no base class
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        if path.suffix in (".safetensors", ".pt", ".pth", ".toml"):
            text = f"a file of {path.suffix}: give a run's or checkpoint's folder, or export it"
        what = f"expected an ONNX recogniser, found {text[:200]}"
        raise InputError("GL0401", what, where=str(path)) from None
    for name in sorted(beside(model)):
        if not (path.parent / name).is_file():
            what = f"its weights lie in {name} beside it, which is not there"
            raise InputError("GL0401", what, where=str(path), hint="copy both files together")
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


def pixel_range(model: Any, path: Path) -> tuple[float, float] | None:
    """Return (mean, std) that pixels 0..255 need before a net that scales them itself, or None.

    By what the first nodes do to the input: constants added, subtracted, multiplied, divided.
    (0, 1) where they take pixels 0..255, (0, 255) where they take 0..1.
    """
    import onnx

    graph = model.graph
    known = {tensor.name: tensor for tensor in graph.initializer}
    for node in (node for node in graph.node if node.op_type == "Constant"):
        for one in node.attribute:
            value = one.t if one.name == "value" else onnx.numpy_helper.from_array(np.array(one.f))
            known[node.output[0]] = value
    data = next((i.name for i in graph.input if i.name not in known), "")
    scale, shift, steps = 1.0, 0.0, 0
    while True:
        after = [node for node in graph.node if data in node.input]
        if len(after) != 1:
            break
        node = after[0]
        if node.op_type not in (*_SAME, "Sub", "Add", "Mul", "Div"):
            break
        if node.op_type in _SAME:
            data = node.output[0]
            continue
        other = next((name for name in node.input if name != data), "")
        if other not in known or known[other].ByteSize() > 1 << 16:
            break
        tensor = known[other]
        value = float(np.mean(onnx.numpy_helper.to_array(tensor, str(path.parent))))
        first = node.input[0] == data
        if node.op_type == "Sub":
            scale, shift = (scale, shift - value) if first else (-scale, value - shift)
        elif node.op_type == "Add":
            shift += value
        elif node.op_type == "Mul" or (first and value):
            by = value if node.op_type == "Mul" else 1 / value
            scale, shift = scale * by, shift * by
        else:
            break
        data, steps = node.output[0], steps + 1
    if not steps or not scale:
        return None
    middle = -shift / scale  # the input that becomes 0
    if middle > 2 or abs(scale) < 0.1:
        return 0.0, 1.0
    return (0.0, 255.0) if 0.2 < middle <= 1 else None


def settled(
    reading: Reading, found: tuple[float, float] | None, raw: bool
) -> tuple[float, float, str]:
    """Return mean and std of the pixels, and in words who says so.

    found: what `pixel_range` returns; raw: the net takes bytes. Raises UsageError GL0002.
    """
    mean, std, why = (*(found or PIXELS), "the net scales them itself" if found else "as usual")
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
