"""The light nets on real faces: what each costs, and what so many seconds of training teach it.

    GLINT_SHARED=../shared python benchmarks/light_nets.py [--quick] [--seconds 60] [--out FILE]

Of every net at full width (embedding 512): parameters, multiply-adds, whether insightface loads its
ONNX, and the CPU milliseconds that one thread of onnxruntime takes for it. Then each trains for the
same CPU seconds (loader included, one compute thread) by `glint train`'s own step, on the people of
benchmarks/real_training.py, and its ONNX is verified on the same 1,000 pairs of people never seen,
without mirrored images. No net converges in that budget: the images it saw stand beside its
accuracy. A JSON line a net. With --place what was learned is kept, and the next call goes on with
the nets that lack; --seconds 0 trains none and needs no faces.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import ROOT, machine, spent
from real_faces import SHARED, run_glint
from real_training import material, write_recipe

LR, DIM, BATCH = 0.003, 512, 16
NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "mobilefacenet": ("mobilefacenet", {}),
    "mbf": ("mbf", {}),
    "vargfacenet": ("vargfacenet", {}),
    "vargfacenet, se = false": ("vargfacenet", {"se": False}),
    **{
        f"{kind}_{size}": (f"{kind}_{size}", {})
        for size in ("xs", "s", "m")
        for kind in ("mixfacenet", "shufflemixfacenet")
    },
}


def milliseconds(onnx: Path, batch: int) -> float:
    """Time one thread of onnxruntime: least CPU milliseconds an image of a few calls."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).normal(size=(batch, 3, 112, 112)).astype(np.float32)
    took = []
    for _ in range(20 if batch == 1 else 4):
        began = time.process_time()
        session.run(None, {"data": image})
        took.append(time.process_time() - began)
    return 1000 * min(took) / batch


def written(net: Any, name: str, options: dict[str, Any], run: Path, onnx: Path) -> dict[str, Any]:
    """Put a net into a checkpoint and write it as ONNX, as `glint export` does."""
    from glint.models import checkpoint
    from glint.models.export_onnx import export_onnx

    made = {"name": name, "embedding": DIM, "options": options}
    checkpoint.save(
        run / "checkpoints", 1, backbone=net.state_dict(), optimizer={}, head=(0, 0, {}),
        state={"backbone": made}, keep=1,
    )  # fmt: skip
    return export_onnx(run, onnx, overwrite=True)


def costs(label: str) -> dict[str, Any]:
    """Tell what a net costs, trained or not: sizes, times, and whether its ONNX loads."""
    from glint.nn import backbones
    from glint.train.dry import _macs

    name, options = NETS[label]
    net = backbones.create(name, DIM, **options)
    with tempfile.TemporaryDirectory() as temporary:
        onnx = Path(temporary) / "net.onnx"
        exported = written(net, name, options, Path(temporary) / "run", onnx)
        times = {f"ms_batch_{b}": round(milliseconds(onnx, b), 2) for b in (1, 32)}
    return {
        "figure": f"light nets: {label}, insightface loads its ONNX",
        "value": exported.insightface, "target": True, "holds": exported.insightface,
        "net": label, "parameters": sum(p.numel() for p in net.parameters()), "macs": _macs(net),
        **times, "onnx_cosine": exported.cosine_min,
    }  # fmt: skip


def one(case: dict[str, Any]) -> dict[str, Any]:
    """Train, export and verify one net."""
    from glint.dist.world import World
    from glint.recipes.load import load
    from glint.train import loop, metrics
    from glint.train.build import build
    from glint.train.recipe import Recipe

    name, options = NETS[case["net"]]
    place = Path(case["place"])
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        path = write_recipe(
            out / "recipe.toml", place, epochs=1000, batch=BATCH, net=name, dim=DIM, lr=LR,
            options=options,
        )  # fmt: skip
        run = build(load(path, Recipe, []), World(), out / "run")
        log, images, loss = metrics.Log(run), 0, 0.0
        began = spent()
        for step, batches in loop._steps(run, 0, 1 << 20):
            share = (spent() - began) / case["seconds"]
            if share >= 1:
                break
            loss = loop.train_step(
                run, batches, step, LR * min(1, 0.1 + 10 * share, 1 - share), log
            ).loss
            images += BATCH
        seconds = spent() - began
        written(run.backbone, name, options, out / "run", out / "net.onnx")
        found = run_glint("eval", "--model", out / "net.onnx", "--pairs", place / "pairs.bin",
                          "--no-flip")  # fmt: skip
    result = {"accuracy": round(found["accuracy"], 4), "images_seen": images,
              "cpu_seconds": round(seconds, 1), "loss": round(loss, 3)}  # fmt: skip
    os._exit(print(json.dumps(result), flush=True) or 0)  # type: ignore[func-returns-value]


def table(lines: list[dict[str, Any]]) -> str:
    """Give the table of docs/backbones.md."""
    heads = ["net", "parameters", "MACs", "ms, batch 1", "ms, batch 32"]
    learned = any("accuracy" in line for line in lines)
    heads += ["images seen", "accuracy"] * learned
    rows = [" | ".join(heads), "|".join(["---", *["---:"] * (len(heads) - 1)])]
    for line in lines:
        cells = [f"`{line['net']}`", f"{line['parameters']:,}", f"{line['macs'] / 1e6:.0f} M",
                 f"{line['ms_batch_1']:.1f}", f"{line['ms_batch_32']:.1f}"]  # fmt: skip
        if learned:
            done = "accuracy" in line
            cells += (
                [f"{line['images_seen']:,}", f"{100 * line['accuracy']:.1f} %"]
                if done
                else ["-"] * 2
            )
        rows.append(" | ".join(cells))
    return "\n".join(f"|{row}|" if row.startswith("---") else f"| {row} |" for row in rows)


def learn(lines: list[dict[str, Any]], kept: Path | None, seconds: float, most: int) -> None:
    """Train net after net, each in a process of its own, and add to its line what it learned."""
    with tempfile.TemporaryDirectory() as temporary:
        place = kept or Path(temporary)
        material(place, most)
        for line in lines:
            file = place / f"{line['net']}, {seconds:g} s.json"
            if not file.exists():
                case = {"net": line["net"], "place": str(place), "seconds": seconds}
                done = subprocess.run([sys.executable, __file__, "--side", json.dumps(case)],
                                      stdout=subprocess.PIPE, check=True)  # fmt: skip
                file.write_bytes(done.stdout.splitlines()[-1])
            line.update(json.loads(file.read_text()), budget=seconds)


def main() -> int:
    """Train net after net, each in a process of its own; print the figures and the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two nets, two seconds each")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of CPU to train each net; 0: costs"
    )
    parser.add_argument("--only", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--place", type=Path, help="keep the material in this folder")
    parser.add_argument("--out", type=Path, help="write the figures, with the machine's name")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if args.side:
        one(json.loads(args.side))
    seconds, nets = args.seconds, args.only
    if args.quick:
        seconds, nets = 2.0, ["mixfacenet_xs", "shufflemixfacenet_xs"]
    if seconds and not (SHARED / "data" / "lfw").is_dir():
        print(f"no real faces under {SHARED}: set GLINT_SHARED", file=sys.stderr)
        return 2
    lines = [costs(net) for net in nets]
    if seconds:
        learn(lines, args.place, seconds, 1000 if args.quick else 0)
    where = machine("torch", "onnxruntime")
    for line in lines:
        print(json.dumps(line), flush=True)
    if args.out:
        args.out.write_text("".join(json.dumps({**x, **where}) + "\n" for x in lines))
    print(table(lines), file=sys.stderr)
    return 1 if any(line["holds"] is False for line in lines) else 0


if __name__ == "__main__":
    raise SystemExit(main())
