"""What a GPU would be asked to do in a step, counted without one: launches, waits, bytes.

    python benchmarks/gpu_count.py [--package CHECKOUT] [--quick] [--out FILE]

On the pretended card of `tests/gpuless`: the head of a recipe (10 % of the classes, 512 numbers,
128 images) at two sizes, and by straight lines at ten million classes; and a whole training step of
toy nets. Bytes are what operations read and write, each operand once; kernels by what they are
given. CHECKOUT: another version of glint, to count it beside this one. One JSON line a figure:
{"figure", "value", "target", "holds"}; the table goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from figures import ROOT, machine, told

FULL, RUN = 10_000_000, 33_792  # classes; rows that kernels take at a time
HEADS: dict[str, dict[str, Any]] = {
    "torch, float32, block 1024": {"kernels": "torch"},
    "torch, bf16, block 8192": {"kernels": "torch", "gemm": "bf16", "block": 8192},
    "kernels, bf16": {"kernels": "triton", "gemm": "bf16", "block": 8192},
}
RULES = ("none", "dense_exact", "adamw")
STEPS = ("float32", "bf16", "f2c", "dcq")


def touched(name: str, given: dict[str, Any]) -> int:
    """Count the bytes that a kernel reads and writes, each operand once."""
    rows, wide = given["rows"], given["D"]
    sizes = {key: one.element_size() for key, one in given.items() if hasattr(one, "element_size")}
    table = sizes.get("weight_cD", 0) + (sizes.get("momentum_cD", 0) if given.get("BEHIND") else 0)
    if name == "gather":
        return int(rows * wide * (table + sizes["operand_kD"]))
    if name == "stream":
        sums = given["feature_grad_SND"]
        return int(rows * wide * sizes["operand_kD"] + 2 * sums.numel() * sums.element_size())
    if name == "centre_grad":
        return int(rows * wide * (table + sizes["grad_kD"]))
    both = sizes["weight_cD"] + (sizes["momentum_cD"] if given["MOMENTUM"] else 0)
    return int(rows * wide * (sizes["grad_kD"] + 2 * both))


def head(classes: int, rule: str, options: dict[str, Any]) -> dict[str, float]:
    """Count the second step of a head."""
    import card
    import record
    import torch
    from triton.runtime.interpreter import InterpretedFunction

    from glint.dist.world import World
    from glint.nn.heads import fused
    from glint.nn.heads.options import PartialFCOptions
    from glint.nn.heads.partial_fc import PartialFC
    from glint.nn.margins import CosFace

    moved = [0, 0]

    def launched(self: Any, *args: Any, **given: Any) -> None:
        moved[0] += 1
        moved[1] += touched(self.fn.__name__, {**dict(zip(self.arg_names, args)), **given})

    InterpretedFunction.run = launched
    fused._tiles = lambda *_: fused.Tiles(64, 64, 8, 2, 132, RUN, RUN)  # nearly an H200's
    assert record.WIDE  # imported for the interpreter it asks for
    with card.pretended() as book:
        made = PartialFC(
            classes, 512, PartialFCOptions(rate=0.1, rule=rule, **options),  # type: ignore[arg-type]
            margin=CosFace(), world=World(device=card.CUDA),
        )  # fmt: skip
        feature_nD, label_n = torch.randn(128, 512), torch.arange(128) * 7 % classes
        for step in range(2):
            leaf_nD, target_n = feature_nD.to(card.CUDA).requires_grad_(), label_n.to(card.CUDA)
            book.clear()
            moved[:] = 0, 0
            made(leaf_nD, target_n, step=step).backward()
            made.update(step=step, lr=0.1)
        return {
            "launches": sum(book.launches.values()) + moved[0],
            "waits": sum(book.waits.values()),
            "GB": (sum(book.bytes.values()) + moved[1]) / 1e9,
        }


def step(case: str, place: Path) -> dict[str, float]:
    """Count the last step but one of a training run of a toy net."""
    import card
    import test_train

    from glint.dist.world import join
    from glint.train import loop

    class Made:
        data, pairs = place / "data", place / "world" / "pairs.bin"

    real, seen = loop.train_step, list[dict[str, float]]()

    def counted(*args: Any) -> Any:
        late = [n for kind, n, _ in card.BOOK.copies if "pageable" in kind and n > 64 << 10]
        seen.append({"launches": sum(card.BOOK.launches.values()), "large pageable": len(late),
                     "waits": sum(card.BOOK.waits.values())})  # fmt: skip
        card.BOOK.clear()
        return real(*args)

    loop.train_step = counted
    try:
        with card.pretended():
            test_train.run(Made, case, join("cuda"), place / case, "run.log_every=100")
    finally:
        loop.train_step = real
    return seen[-1]


def figures(quick: bool) -> list[dict[str, Any]]:
    few, many = (40_000, 80_000) if quick else (10 * RUN, 20 * RUN)
    lines = []
    for label, options in HEADS.items():
        for rule in RULES:
            small, large = head(few, rule, options), head(many, rule, options)
            for name in ("launches", "waits", "GB"):
                slope = (large[name] - small[name]) / (many - few)
                value = large[name] + slope * (FULL - many)
                lines.append(told(f"head, {label}, {rule}: {name} a step at 10M", value))
    with tempfile.TemporaryDirectory() as folder:
        from glint.pipelines.dataset import shard
        from glint.synth import world as synth

        place = Path(folder)
        world = synth.World(identities=40, images=4, conflicts=0, lookalikes=0, damaged=0,
                            unseen=20, pairs=20)  # fmt: skip
        synth.make(world, place / "world")
        shard.shard(place / "world", place / "data", shard.Options(100))
        for case in STEPS:
            for name, value in step(case, place).items():
                lines.append(told(f"training step, {case}: {name}", value))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--package", default=str(ROOT), help="a checkout whose glint is counted")
    parser.add_argument("--quick", action="store_true", help="fewer classes, for tests")
    parser.add_argument("--out", default="", help="write the lines to this file too")
    options = parser.parse_args()
    sys.path[:0] = [options.package, str(ROOT / "tests" / "gpuless")]
    import record  # asks for Triton's interpreter before torch is used

    import glint

    assert record.real and str(Path(glint.__file__).parents[1]) == str(Path(options.package))
    version = machine("torch", "triton")
    lines = figures(options.quick)
    for line in lines:
        print(f"{line['figure']:75} {line['value']:14,.2f}", file=sys.stderr)
    version["commit"] = commit(Path(options.package))
    text = "".join(json.dumps({**line, **version}) + "\n" for line in lines)
    print(text, end="")
    if options.out:
        with open(options.out, "a") as file:
            file.write(text)


def commit(package: Path) -> str:
    """Name the version that was counted."""
    import subprocess

    words = ["git", "-C", str(package), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
