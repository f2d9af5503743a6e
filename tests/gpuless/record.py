"""Kernels on a pretended card: what a head gives them, how often, and what it waits for.

A child process, as Triton reads TRITON_INTERPRET when it is imported. `record.py ARCHES CASES`,
both lists in JSON (no cases: all), prints JSON: the launches of a step by rule and rows, and by
architecture every signature that a card would compile in these cases.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from functools import partial
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import card
import torch
from triton.runtime.interpreter import InterpretedFunction

from glint.dist.world import World
from glint.nn.heads import fused
from glint.nn.heads.options import PartialFCOptions
from glint.nn.heads.partial_fc import PartialFC
from glint.nn.margins import CosFace

SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32"}
CARDS = {80: (166_912, 108), 89: (101_376, 128), 90: (232_448, 132), 100: (232_448, 148)}
WIDE = {"rate": 0.5, "gemm": "bf16"}
# what a card may be asked for: each by itself, and all options together
SIGNED: dict[str, dict[str, Any]] = {
    "none": WIDE,
    "dense_exact": {**WIDE, "rule": "dense_exact"},
    "lazy_decay": {**WIDE, "rule": "lazy_decay"},
    "every centre, bf16": {**WIDE, "rate": 1.0, "storage": "bf16", "rule": "v1_stale"},
    "masked, cut, bf16": {**WIDE, "threshold": 0.4, "storage": "bf16", "rule": "dense_exact",
                          "masks": [(i, i + 1) for i in range(0, 2000, 2)]},
    "tf32": {**WIDE, "gemm": "tf32"},
    "float32": {**WIDE, "gemm": "float32"},
    "128 numbers": {**WIDE, "dim": 128},
    "500 numbers": {**WIDE, "dim": 500},
}  # fmt: skip
real = InterpretedFunction.run
signatures: dict[str, list[str]] = {}
calls: Counter[str] = Counter()
case = ""


def kind(value: Any) -> tuple[str, bool]:
    if isinstance(value, torch.Tensor):
        return "*" + SHORT[value.dtype], value.data_ptr() % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    return ("i32" if -(2**31) <= value < 2**31 else "i64"), False


def launched(self: Any, *args: Any, **options: Any) -> None:
    """Note a launch and do nothing."""
    options.pop("grid")
    names = [*self.arg_names]
    for name, value in zip(names, args):
        if isinstance(value, torch.Tensor) and not card.on_card(value):
            raise card.Mismatch(f"{self.fn.__name__} is given {name} in host memory")
    calls[self.fn.__name__] += 1
    constants = {name: value for name, value in options.items() if name in names}
    chosen = {name: value for name, value in options.items() if name not in names}
    types = {name: kind(value) for name, value in zip(names, args)}
    key = json.dumps([self.fn.__name__, types, constants, chosen], sort_keys=True)
    signatures.setdefault(key, []).append(case)


def steps(n: int, classes: int, *, dim: int = 512, masks: Any = None, **options: Any) -> Any:
    """Do two steps; return launches and waits of the second."""
    with card.pretended() as book:
        head = PartialFC(
            classes, dim, PartialFCOptions(kernels="triton", **options),
            margin=CosFace(), masks=masks, world=World(device=card.CUDA),
        )  # fmt: skip
        feature, label = torch.randn(n, dim), torch.arange(n) % classes
        for step in range(2):
            leaf, target = feature.to(card.CUDA).requires_grad_(), label.to(card.CUDA)
            book.clear(), calls.clear()  # type: ignore[func-returns-value]
            head(leaf, target, step=step).backward()
            head.update(step=step, lr=0.1)
        waits = {f"{what} {at}": count for (what, at), count in book.waits.items() if count}
        return {"torch": sum(book.launches.values()), "kernels": dict(calls), "waits": waits}


def main(arches: list[int], cases: list[str]) -> None:
    global case
    InterpretedFunction.run = launched
    fused.Fused.precision, fused.FusedTf32.precision = "ieee", "tf32"  # as on a card
    fused._tiles = partial(fitting, 90)
    counted = {}
    for rule in ("none", "v1_stale", "lazy_decay", "dense_exact", "adamw"):
        for classes in (40_000, 60_000, 400_000):
            counted[f"{rule} {classes}"] = steps(64, classes, dim=16, rule=rule, block=4096, **WIDE)
    found = {}
    for arch in arches:
        fused._tiles = partial(fitting, arch)
        signatures.clear()
        for case in cases or SIGNED:
            steps(256, 20_000, **SIGNED[case])
        found[arch] = [[*json.loads(key), sorted({*used})] for key, used in signatures.items()]
    print(json.dumps({"counted": counted, "signatures": found}))


def fitting(arch: int, device: torch.device, wide: int, size: int, exact: bool) -> fused.Tiles:
    return fused.fitting(wide, size, *CARDS[arch], arch, exact)


if __name__ == "__main__":
    main(*map(json.loads, sys.argv[1:]))
