"""The weights of an ONNX recogniser as a checkpoint that trains: layer by layer, then compared."""

# n images, E embedding

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glint.errors import InputError
from glint.models import export_onnx, onnx_file
from glint.models.recogniser import Recogniser, open_model
from glint.nn.backbones import create
from glint.nn.names import ONNX

COSINE, CROPS = 0.9999, 16  # least agreement with the file itself, over so many crops
SAME = ("Identity", "Dropout")
PLAIN = {"Add": "add", "Mul": "mul", "Relu": "relu", "Sigmoid": "sigmoid", "Flatten": "flatten",
         "GlobalAveragePool": "pool"}  # fmt: skip


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the backbone that computes what an ONNX recogniser does, and its tensors.

    Pixels come to it as to every net here, (pixel - 127.5) / 127.5. It is run beside the file on
    random crops. Raises InputError GL0401 for a layer that is none of `glint.nn.backbones.graph`,
    and where the two differ; what `open_model` raises.
    """
    opened = open_model(path, device="cpu", threads=1)
    if opened.size != 112:
        raise _other(path, f"it takes crops of {opened.size} pixels, nets here take 112")
    model = onnx_file.loaded(path)
    made = _Reader(model, path, opened)
    made.walk()
    text = "; ".join(made.layers)
    options = {"graph": text}
    net = create(ONNX, opened.dim, **options)
    net.load_state_dict(made.state(net.state_dict()))
    try:
        least = _agreement(net.eval(), opened)
    except (RuntimeError, ValueError) as error:
        said = str(error).splitlines()[0][:160]
        raise _other(path, f"the layers read do not compute what it does ({said})") from None
    if not least >= COSINE:
        raise _other(path, f"the layers read do not compute what it does (cosine {least:.6f})")
    return {"name": ONNX, "embedding": opened.dim, "options": options}, net.state_dict()


def _other(path: Path, what: str) -> InputError:
    hint = "give --backbone: a student is trained by it"
    return InputError("GL0401", what, where=str(path), hint=hint)


def _agreement(net: torch.nn.Module, opened: Recogniser) -> float:
    ours_nE, theirs_nE = export_onnx.both(net, opened, export_onnx.random_crops(CROPS, seed=1))
    if ours_nE.shape != theirs_nE.shape:
        raise ValueError(f"{tuple(ours_nE.shape)} numbers, not {tuple(theirs_nE.shape)}")
    if not bool(ours_nE.isfinite().all()):
        return math.nan
    length = ((ours_nE - theirs_nE).norm() / theirs_nE.norm()).item()
    cosine = torch.nn.functional.cosine_similarity(ours_nE, theirs_nE).min().item()
    return cosine if length < 0.01 else -abs(cosine)


class _Reader:
    """Walks the nodes of a graph, in their order, and writes a layer for each."""

    def __init__(self, model: Any, path: Path, opened: Recogniser) -> None:
        import onnx

        self.path, self.onnx = path, onnx
        self.graph = model.graph
        to_array, folder = onnx.numpy_helper.to_array, str(path.parent)
        self.constant: dict[str, Any] = {
            one.name: to_array(one, folder) for one in model.graph.initializer
        }
        odd = {str(one.dtype) for one in self.constant.values() if one.dtype.kind == "f"}
        if odd - {"float32"}:
            raise _other(path, f"its numbers are {', '.join(sorted(odd))}, expected float32")
        self.value: dict[str, int] = {}  # tensor -> value of the graph
        self.flat: set[int] = set()  # values of two dimensions
        self.layers: list[str] = []
        self.tensors: dict[int, dict[str, Any]] = {}
        # what pixels are scaled by before the net, undone for (pixel - 127.5) / 127.5
        scale, shift = 127.5 / opened.std, (127.5 - opened.mean) / opened.std
        self.even: dict[int, tuple[int, Any, Any]] = {
            0: (0, np.full(1, scale), np.full(1, shift))
        }  # values that no layer made yet: another one, scaled and shifted
        self.used: set[str] = set()

    def walk(self) -> None:
        """Read all nodes. Raises InputError."""
        data = [one.name for one in self.graph.input if one.name not in self.constant]
        if len(data) != 1 or len(self.graph.output) != 1:
            raise _other(self.path, f"{len(data)} inputs and {len(self.graph.output)} outputs")
        self.value[data[0]] = 0
        for node in self.graph.node:
            try:
                self._read(node)
            except (IndexError, TypeError, ValueError, KeyError) as error:
                what = f"{node.name or node.output[0]}: a {node.op_type} that cannot be read"
                raise _other(self.path, f"{what} ({error})") from None
        last = self.value.get(self.graph.output[0].name, -1)
        if last != len(self.layers) or last in self.even:
            raise _other(self.path, "its last layer is none that is trained")

    def state(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors by the names of the net made of the layers."""
        made = {}
        for name, there in own.items():
            number, key = name.split(".")[2:]
            if key == "num_batches_tracked":
                made[name] = torch.zeros_like(there)
                continue
            found = torch.from_numpy(np.array(self.tensors[int(number)][key], dtype=np.float32))
            if found.shape != there.shape:
                shapes = f"{tuple(found.shape)}, expected {tuple(there.shape)}"
                raise _other(self.path, f"layer {number} has a {key} of {shapes}")
            made[name] = found
        return made

    def _read(self, node: Any) -> None:
        kind, where = node.op_type, node.name or node.output[0]
        if node.domain not in ("", "ai.onnx"):
            raise _other(self.path, f"{where}: a {kind} of {node.domain}")
        attributes = {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute}
        if kind == "Constant" or (node.input and all(n in self.constant for n in node.input)):
            if kind == "Identity":  # torch writes equal tensors once
                self.constant[node.output[0]] = self.constant[node.input[0]]
            elif kind == "Constant" and "value" in attributes:
                self.constant[node.output[0]] = self.onnx.numpy_helper.to_array(attributes["value"])
            else:
                raise _other(self.path, f"{where}: a {kind} of constants")
            return
        takes = [name for name in node.input if name and name not in self.constant]
        fixed = [self.constant[name] for name in node.input if name in self.constant]
        if any(name not in self.value for name in takes):
            raise _other(self.path, f"{where}: takes {takes}, which nothing made")
        free = (*PLAIN, *SAME, "Sub", "Div", "Reshape")
        shared = [name for name in node.input if name in self.used and kind not in free]
        if shared:
            raise _other(self.path, f"{where}: shares {shared[0]} with another layer")
        self.used.update(name for name in node.input if name in self.constant)
        at = [self.value[name] for name in takes]
        if kind in SAME:
            self.value[node.output[0]] = at[0]
            return
        if kind == "Reshape" and self._is_flat(node, fixed):
            kind, fixed = "Flatten", []
        if kind in ("Sub", "Add", "Mul", "Div") and len(fixed) == 1 and len(at) == 1:
            self._even(node, kind, at[0], fixed[0], node.input[0] in self.constant)
            return
        build = getattr(self, f"_{kind.lower()}", None)
        at = [self._settled(one) for one in at]
        if kind in PLAIN:
            if kind == "Flatten" and attributes.get("axis", 1) not in (1, -3):
                raise _other(self.path, f"{where}: flattens from axis {attributes['axis']}")
            self._add(node, f"{PLAIN[kind]} {','.join(map(str, at))}", {})
        elif build is not None:
            build(node, where, at, fixed, attributes)
        else:
            raise _other(self.path, f"{where}: a layer of the kind {kind} is not trained here")

    def _add(self, node: Any, text: str, tensors: dict[str, Any]) -> None:
        self.layers.append(text)
        kind, takes = text.split()[:2]
        if kind in ("linear", "flatten") or {*map(int, takes.split(","))} <= self.flat:
            self.flat.add(len(self.layers))
        self.tensors[len(self.layers)] = tensors
        self.value[node.output[0]] = len(self.layers)

    def _is_flat(self, node: Any, fixed: list[Any]) -> bool:
        if len(fixed) == 1 and fixed[0].size == 2 and -1 in fixed[0].tolist():
            return True
        raise _other(self.path, f"{node.name}: reshapes to {[f.tolist() for f in fixed]}")

    def _even(self, node: Any, kind: str, at: int, constant: Any, first: bool) -> None:
        """Take up a scale or a shift; several in a row become one layer."""
        source, scale, shift = self.even.get(at, (at, np.ones(1), np.zeros(1)))
        shape = constant.shape
        usual = len(shape) in (3, 4) and shape[-2:] == (1, 1) and shape[:-3] in ((), (1,))
        if source in self.flat:
            usual = shape in ((constant.size,), (1, constant.size))
        if constant.size != 1 and not usual:
            raise _other(self.path, f"{node.name}: {kind} by numbers of shape {shape}")
        by = constant.reshape(-1).astype(np.float64)
        if kind == "Add":
            shift = shift + by
        elif kind == "Mul":
            scale, shift = scale * by, shift * by
        elif kind == "Sub":
            scale, shift = (-scale, by - shift) if first else (scale, shift - by)
        elif first:
            raise _other(self.path, f"{node.name}: divides a constant by a value")
        else:
            scale, shift = scale / by, shift / by
        mark = -len(self.even)  # a value that no layer makes yet
        self.value[node.output[0]] = mark
        self.even[mark] = source, scale, shift

    def _settled(self, at: int) -> int:
        """Return a value as a layer made it: scale and shift that wait become one."""
        if at not in self.even:
            return at
        source, scale, shift = self.even[at]
        if bool((scale == 1).all()) and bool((shift == 0).all()):
            return source
        dim = max(scale.size, shift.size)
        self.layers.append(f"affine {source} dim={dim}")
        if source in self.flat:
            self.flat.add(len(self.layers))
        self.tensors[len(self.layers)] = {
            "scale": np.broadcast_to(scale, (dim,)), "shift": np.broadcast_to(shift, (dim,)),
        }  # fmt: skip
        return len(self.layers)

    def _conv(self, node: Any, where: str, at: list[int], fixed: list[Any], has: Any) -> None:
        weight = fixed[0]
        pads = has.get("pads", [0, 0, 0, 0])
        usual = has.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        if weight.ndim != 4 or pads[:2] != pads[2:] or not usual:
            raise _other(self.path, f"{where}: a convolution with pads {pads}")
        groups, pair = has.get("group", 1), "{0[0]}x{0[1]}".format
        words = {
            "in": weight.shape[1] * groups, "out": weight.shape[0], "k": pair(weight.shape[2:]),
            "s": pair(has.get("strides", [1, 1])), "p": pair(pads),
            "d": pair(has.get("dilations", [1, 1])), "g": groups, "bias": len(fixed) - 1,
        }  # fmt: skip
        self._layer(node, "conv", at, words, dict(zip(("weight", "bias"), fixed)))

    def _gemm(self, node: Any, where: str, at: list[int], fixed: list[Any], has: Any) -> None:
        if has.get("transA", 0) or has.get("alpha", 1.0) != 1 or has.get("beta", 1.0) != 1:
            raise _other(self.path, f"{where}: a product with {sorted(has)}")
        weight = fixed[0] if has.get("transB", 0) else fixed[0].T
        self._linear(node, at, [weight, *(one.reshape(-1) for one in fixed[1:])])

    def _matmul(self, node: Any, where: str, at: list[int], fixed: list[Any], _: Any) -> None:
        if len(fixed) != 1 or fixed[0].ndim != 2 or node.input[0] in self.constant:
            raise _other(self.path, f"{where}: a product of two values")
        self._linear(node, at, [fixed[0].T])

    def _linear(self, node: Any, at: list[int], fixed: list[Any]) -> None:
        words = {"in": fixed[0].shape[1], "out": fixed[0].shape[0], "bias": len(fixed) - 1}
        self._layer(node, "linear", at, words, dict(zip(("weight", "bias"), fixed)))

    def _batchnormalization(
        self, node: Any, where: str, at: list[int], fixed: list[Any], has: Any
    ) -> None:
        if len(fixed) != 4 or has.get("training_mode", 0) or has.get("spatial", 1) != 1:
            raise _other(self.path, f"{where}: a norm with {sorted(has)}")
        kind = "norm1d" if at[0] in self.flat else "norm"
        words = {"dim": fixed[0].size, "eps": f"{has.get('epsilon', 1e-5):.9g}"}
        names = ("weight", "bias", "running_mean", "running_var")
        self._layer(node, kind, at, words, dict(zip(names, fixed)))

    def _prelu(self, node: Any, where: str, at: list[int], fixed: list[Any], _: Any) -> None:
        shape = fixed[0].shape if fixed else ()
        usual = (
            shape[-2:] == (1, 1) if len(shape) > 2 else at[0] in self.flat or shape in ((), (1,))
        )
        if len(fixed) != 1 or fixed[0].size != max(shape, default=1) or not usual:
            raise _other(self.path, f"{where}: slopes of shape {[one.shape for one in fixed]}")
        self._layer(node, "prelu", at, {"dim": fixed[0].size}, {"weight": fixed[0].reshape(-1)})

    def _leakyrelu(self, node: Any, _: str, at: list[int], __: list[Any], has: Any) -> None:
        self._layer(node, "leaky", at, {"slope": f"{has.get('alpha', 0.01):.9g}"}, {})

    def _layer(
        self, node: Any, kind: str, at: list[int], words: dict[str, Any], tensors: dict[str, Any]
    ) -> None:
        more = " ".join(f"{key}={value}" for key, value in words.items())
        self._add(node, f"{kind} {','.join(map(str, at))} {more}", tensors)
