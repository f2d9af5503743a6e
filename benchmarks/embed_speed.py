"""`glint embed` against plain loops over onnxruntime: CPU time an image, in turns.

    GLINT_SHARED=../shared python benchmarks/embed_speed.py [--quick] [--out FILE]

LFW's crops and a published net of 1 M parameters (GLINT_SHARED). A plain loop decodes a batch of
8, scales it, calls the session, divides by lengths: with one thread a call, the same without the
memory arena, with two as onnxruntime comes (idle threads spin), and with two that do not. glint:
the whole stage, shards to embeddings.json, its checksums and syncs included, two threads. As
before: batches of 64, two threads in a call. All take turns, in one process; figures are medians
over rounds of ratios of CPU seconds. Rows of every batch and number of threads are compared to the
bit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from figures import ROOT, ceiling, machine, told

from glint.models.recogniser import open_model
from glint.pipelines import embed
from glint.pipelines.dataset import shard
from glint.shards import pixels, recordio
from glint.shards.dataset import Dataset

SHARED = Path(os.environ.get("GLINT_SHARED", ROOT.parent / "shared"))
NETS = ("mobilefacenet_y1_128d", "mobileface_v3_256d")
MOST = 1.05


def material(folder: Path, count: int) -> Dataset:
    """Shard some of LFW's crops."""
    source = Dataset(_sharded(SHARED / "data" / "lfw" / "train.rec", folder / "all"))
    few = folder / "few"
    few.mkdir()
    with recordio.Writer(few / "train.rec", few / "train.idx") as writer:
        for row in range(count):
            image = source.read(row)
            writer.write(row + 1, recordio.pack(float(source.label[row]), row + 1, 0, image))
    return Dataset(_sharded(few / "train.rec", folder / "data"))


def _sharded(source: Path, out: Path) -> Path:
    shard.shard(source, out, shard.Options())
    return out


def plain(
    data: Dataset, path: Path, threads: int, spin: bool, arena: bool = True
) -> Callable[[], Any]:
    """Make a plain loop: nothing is checked, nothing is written."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = arena
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    images = [data.read(row) for row in range(data.n)]
    read = open_model(path, threads=1, device="cpu")  # how the net takes its pixels
    mean, std = np.float32(read.mean), np.float32(read.std)

    def work() -> Any:
        rows = []
        for at in range(0, len(images), 8):
            batch = np.stack([pixels.rgb(one) for one in images[at : at + 8]])
            x = (batch.transpose(0, 3, 1, 2).astype(np.float32) - mean) / std
            y = session.run(None, {name: np.ascontiguousarray(x)})[0]
            rows.append(y / np.linalg.norm(y, axis=1, keepdims=True))
        return np.concatenate(rows).astype(np.float16)

    return work


def ours(data: Dataset, path: Path, out: Path, before: bool) -> Callable[[], Any]:
    """Make a run of the whole stage."""
    model = open_model(path, threads=None if before else 0, device="cpu")
    model = replace(model, concurrent=False) if before else model

    def work() -> Any:
        shutil.rmtree(out, ignore_errors=True)
        more = {"batch": 64, "workers": 2} if before else {"workers": 2}
        embed.embed(data, model, out, **more)  # type: ignore[arg-type]
        return np.load(out / "samples.npy")

    return work


def bits(data: Dataset, path: Path) -> int:
    """Count the batches and numbers of threads that give another bit than batches of 8."""
    image = np.stack([pixels.rgb(data.read(row)) for row in range(32)])
    found = set()
    for threads in (1, 2):
        model = open_model(path, threads=threads, device="cpu")
        for size in (1, 3, 4, 8, 16, 32):
            parts = [model.embed(image[at : at + size]) for at in range(0, 32, size)]
            found.add(np.concatenate(parts).tobytes())
    return len(found) - 1


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute; says little")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    count, rounds = (64, 2) if args.quick else (96, 3)
    lines = [{**told("machine", 0), "value": machine("numpy", "onnxruntime")}]
    path = SHARED / "data" / "models" / f"{NETS[0]}.onnx"
    with tempfile.TemporaryDirectory() as place:
        data = material(Path(place), count)
        runs = {
            "plain loop, one thread": plain(data, path, 1, True),
            "glint": ours(data, path, Path(place) / "emb", False),
            "plain loop, one thread, no arena": plain(data, path, 1, True, False),
            "plain loop, two threads that do not spin": plain(data, path, 2, False),
            "plain loop, two threads": plain(data, path, 2, True),
            "glint as before": ours(data, path, Path(place) / "old", True),
        }
        cpu: dict[str, list[float]] = {name: [] for name in runs}
        wall: dict[str, list[float]] = {name: [] for name in runs}
        made = {name: work() for name, work in runs.items()}  # memory and code are warm
        for _ in range(rounds):
            for name, work in runs.items():
                began = time.process_time(), time.perf_counter()
                work()
                cpu[name].append((time.process_time() - began[0]) / count * 1000)
                wall[name].append((time.perf_counter() - began[1]) / count * 1000)
        for name in runs:
            lines.append({**told(f"{name}: CPU ms an image", statistics.median(cpu[name])),
                          "wall": round(statistics.median(wall[name]), 2),
                          "least": round(min(cpu[name]), 2)})  # fmt: skip
        loops = [name for name in runs if name.startswith("plain")]
        best = min(loops, key=lambda name: statistics.median(cpu[name]))
        ratio = statistics.median(a / b for a, b in zip(cpu["glint"], cpu[best]))
        lines.append({**ceiling("glint over the best plain loop, CPU", ratio, MOST), "best": best,
                      "rounds": rounds})  # fmt: skip
        base = made["plain loop, one thread"]
        apart = max(float(np.abs(one.astype(np.float32) - base).max()) for one in made.values())
        lines.append(ceiling("largest difference of a number from the plain loop's", apart, 0))
        for net in NETS:
            other = bits(data, path.with_name(f"{net}.onnx"))
            lines.append(ceiling(f"{net}: batches and threads that change a bit", other, 0))
    for line in lines:
        print(json.dumps(line))
    if args.out:
        args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0 if args.quick or all(line["holds"] is not False for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
