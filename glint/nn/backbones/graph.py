"""A net from a list of its layers, as ONNX files have them: to train weights that come as such.

One text says all, `;` between layers: a kind, the numbers of the values it takes (0 is the image,
layer i makes value i), and what it needs to be built, as in

    conv 0 in=3 out=64 k=3x3 s=2x2 p=1x1 d=1x1 g=1 bias=0; norm 1 dim=64; prelu 2 dim=64; add 3,1

`glint.models.import_onnx` writes it. The last value is the embedding.
"""

# n batch, C channels, H W height and width, E embedding

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from glint.errors import UsageError
from glint.nn.backbones.parts import full_precision, require_faces

MOST, ALL, LONGEST = 1 << 28, 1 << 30, 1 << 12  # numbers of a layer's weight, of all; layers
WIDEST = 1 << 13  # channels
FIELDS = {
    "conv": "in out k s p d g bias", "linear": "in out bias", "norm": "dim eps",
    "norm1d": "dim eps", "prelu": "dim", "leaky": "slope", "affine": "dim",
    "add": "", "mul": "", "relu": "", "sigmoid": "", "flatten": "", "pool": "",
}  # fmt: skip
TWO = ("add", "mul")
ACTIVATIONS = ("relu", "prelu", "leaky")
PLAIN: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "mul": torch.mul, "relu": torch.relu, "sigmoid": torch.sigmoid,
    "flatten": lambda x: x.flatten(1), "pool": lambda x: x.mean((2, 3), keepdim=True),
}  # fmt: skip


class Affine(nn.Module):
    """scale * x + shift by constants of the file, which are not trained."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("shift", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        form = (1, -1) + (1,) * (x.ndim - 2)
        scale, shift = (self.get_buffer(name).view(form) for name in ("scale", "shift"))
        return x * scale.to(x.dtype) + shift.to(x.dtype)


class Layer:
    """One layer as the text has it: kind, values that it takes, and its other words."""

    def __init__(self, text: str, number: int) -> None:
        kind, *words = text.split() or [""]
        if kind not in FIELDS or not words:
            raise wrong(number, f"{kind!r} is none of {', '.join(FIELDS)}, with its values")
        self.kind, self.number = kind, number
        try:
            self.takes = [int(value) for value in words[0].split(",")]
            self.words = dict(word.split("=") for word in words[1:])
        except ValueError:
            raise wrong(number, f"cannot read {text!r}") from None
        if not all(0 <= value < number for value in self.takes):
            raise wrong(number, f"takes values {words[0]}, expected 0 to {number - 1}")
        if len(self.takes) != (2 if kind in TWO else 1):
            raise wrong(number, f"{kind} takes {len(self.takes)} values")
        if [*self.words] != FIELDS[kind].split():
            raise wrong(number, f"{kind} has {' '.join(self.words)}, expected {FIELDS[kind]}")

    def module(self) -> nn.Module | None:
        """Build what has tensors; None for the rest. Raises UsageError GL0002."""
        try:
            return self._module()
        except (ValueError, TypeError, RuntimeError) as error:
            raise wrong(self.number, f"{self.kind}: {error}") from None

    def numbers(self) -> int:
        """Count the numbers of its weight. Raises UsageError GL0002 for too many."""
        try:
            made = 0
            if self.kind == "conv":
                shape = self._count("in") // self._count("g"), self._count("out", WIDEST)
                made = math.prod(shape) * math.prod(self._pair("k"))
                self._pair("p", 8)
            elif self.kind == "linear":
                made = self._count("in") * self._count("out")
            if made > MOST:
                raise ValueError(f"{made} numbers in one weight")
        except ValueError as error:
            raise wrong(self.number, f"{self.kind}: {error}") from None
        return made

    def _module(self) -> nn.Module | None:
        words = self.words
        if self.kind == "conv":
            c_in, c_out, groups = (self._count(key) for key in ("in", "out", "g"))
            size, stride, pad, dilation = (self._pair(key) for key in "kspd")
            return nn.Conv2d(c_in, c_out, size, stride, pad, dilation, groups, words["bias"] == "1")
        if self.kind == "linear":
            d_in, d_out = self._count("in"), self._count("out")
            return nn.Linear(d_in, d_out, words["bias"] == "1")
        if self.kind in ("norm", "norm1d"):
            norm = nn.BatchNorm2d if self.kind == "norm" else nn.BatchNorm1d
            return norm(self._count("dim"), float(words["eps"]))
        if self.kind == "leaky":
            return nn.LeakyReLU(float(words["slope"]))
        if self.kind in ("prelu", "affine"):
            return (nn.PReLU if self.kind == "prelu" else Affine)(self._count("dim"))
        return None

    def _count(self, key: str, most: int = 1 << 20) -> int:
        value = int(self.words[key])
        if not 1 <= value <= most:
            raise ValueError(f"{key} is {value}")
        return value

    def _pair(self, key: str, most: int = 256) -> tuple[int, int]:
        a, b = map(int, self.words[key].split("x"))
        if not 0 <= min(a, b) <= max(a, b) <= most:
            raise ValueError(f"{key} is {self.words[key]}")
        return a, b


class Graph(nn.Module):
    """The net that `graph` says. Stages end where one value alone goes on."""

    def __init__(self, embedding: int, graph: str) -> None:
        super().__init__()
        texts = graph.split(";") if isinstance(graph, str) else [""]
        if len(texts) > LONGEST:
            raise wrong(LONGEST, f"there are {len(texts)} layers")
        self.layers = [Layer(text, number) for number, text in enumerate(texts, 1)]
        if sum(layer.numbers() for layer in self.layers) > ALL:
            raise wrong(len(texts), f"more than {ALL} numbers in all layers")
        last = {0: 0}  # value -> the layer that takes it last
        for layer in self.layers:
            last |= dict.fromkeys(layer.takes, layer.number) | {layer.number: layer.number}
        self._gone: list[list[int]] = [[] for _ in range(len(texts) + 1)]
        for value, number in last.items():
            if value != len(texts):
                self._gone[number].append(value)
        self.units = nn.ModuleList()
        self._unit: dict[int, int] = {}  # of a layer with tensors
        unit = nn.ModuleDict()
        for layer in self.layers:
            made = layer.module()
            if made is not None:
                unit[str(layer.number)] = made
                self._unit[layer.number] = len(self.units)
            if len(unit) and self._ends(layer.number, last):
                self.units.append(unit)
                unit = nn.ModuleDict()
        if len(unit):
            self.units.append(unit)
        widths = [one.words["out"] for one in self.layers if one.kind in ("linear", "conv")]
        if not widths or int(widths[-1]) != embedding:
            raise wrong(len(texts), f"the last layer makes {widths[-1:]}, embedding = {embedding}")

    def _ends(self, number: int, last: dict[int, int]) -> bool:
        """Whether a stage ends at a layer: nothing else goes on, after or before what ends one."""
        going = [v for v, until in last.items() if v <= number < until and v != number]
        if going or number == len(self.layers):
            return False
        here, after = self.layers[number - 1].kind, self.layers[number].kind
        return (here in (*ACTIVATIONS, "add") and after not in ACTIVATIONS) or after == "flatten"

    def forward(self, image_nCHW: Tensor) -> Tensor:
        """Map (n, 3, 112, 112) to (n, E)."""
        require_faces(image_nCHW)
        value: dict[int, Tensor] = {0: image_nCHW}
        for layer in self.layers:
            taken = [value[at] for at in layer.takes]
            value[layer.number] = self._run(layer, taken)
            for at in self._gone[layer.number]:
                value.pop(at, None)
        return value[len(self.layers)]

    def _run(self, layer: Layer, taken: list[Tensor]) -> Tensor:
        if layer.number not in self._unit:
            return PLAIN[layer.kind](*taken)
        units: Any = self.units
        module = units[self._unit[layer.number]][str(layer.number)]
        if layer.kind in ("linear", "norm1d"):
            return full_precision(module, taken[0], module.weight)
        made: Tensor = module(taken[0])
        return made


def wrong(number: int, what: str) -> UsageError:
    """Return the error of a text that is no net."""
    return UsageError("GL0002", f"layer {number} of the graph: {what}", where="backbone onnx")
