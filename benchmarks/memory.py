"""Memory an image of each stage, on made datasets of tiny payloads; the slope between sizes.

    python benchmarks/memory.py [--quick] [--sizes N ...] [--only STAGE ...] [--work FOLDER]
                                [--out FILE]

A dataset's tables are written without shards (no stage here opens an image but `embed`, whose
images are two bytes and whose model is a table of random rows of 64 numbers). Every stage is a
process of its own. Memory is the most that is not of files (RssAnon), less what the process had
once everything was imported; mapped files (rows of embeddings) are the kernel's to drop. Of what is
not labelled every image is an identity of its own, else ten are. `shard` and `merge` write shards
of 1,000. One JSON line a figure.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from clusters_scale import Peak
from figures import ceiling, machine, told
from PIL import Image

from glint import schemas
from glint.files import atomic, parquet
from glint.search.graph_clusters import GraphRules
from glint.shards import embeddings
from glint.shards.dataset import FORMAT, Dataset

SIZES, DIM, EACH, MOST = (100_000, 400_000, 1_600_000), 64, 10, 250
BLOCK = 1 << 16


def dataset(root: Path, n: int, each: int) -> Path:
    """Write the tables of a dataset of n images, `each` of them an identity."""
    if (root / "manifest.json").exists():
        return root
    root.mkdir()
    row, classes = np.arange(n), -(-n // each)
    key = pa.array([f"{i:09d}" for i in range(n)], pa.string())
    columns = {
        "key": key, "label": row // each, "shard": np.zeros(n, np.int32),
        "offset": row * 512, "size": np.full(n, 2, np.int32),
        "digest": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(16), n, [None, pa.py_buffer(bytes(16 * n))]),
        "source": key, "source_label": key,
    }  # fmt: skip
    table = [columns[f.name] if f.name in columns else pa.nulls(n, f.type) for f in schemas.SAMPLES]
    parquet.write(root / "samples.parquet", pa.table(table, schema=schemas.SAMPLES))
    lines = np.arange(classes)
    person = {"label": lines, "source_label": pa.array(map(str, lines), pa.string()),
              "count": np.bincount(row // each)}  # fmt: skip
    table = [
        person[f.name] if f.name in person else pa.nulls(classes, f.type)
        for f in schemas.IDENTITIES
    ]
    parquet.write(root / "identities.parquet", pa.table(table, schema=schemas.IDENTITIES))
    manifest = {"format": FORMAT, "digest": f"sha256:{n}-{each}", "written": n,
                "identities": classes, "shards": [{"name": "shard-000000.tar"}]}  # fmt: skip
    atomic.write_json(root / "manifest.json", manifest)
    return root


def embedded(root: Path, data: Dataset) -> Path:
    """Write embeddings: ten faces of a person, whatever the labels."""
    if (root / "embeddings.json").exists():
        return root
    root.mkdir()
    rng = np.random.default_rng(0)
    x = np.lib.format.open_memmap(root / "samples.npy", "w+", np.float16, (data.n, DIM))
    for at in range(0, data.n, 10 * BLOCK):
        who = np.repeat(rng.standard_normal((BLOCK, DIM), np.float32), 10, axis=0)
        face = who + 0.5 * rng.standard_normal(who.shape, np.float32)
        x[at : at + 10 * BLOCK] = (face / np.linalg.norm(face, axis=1)[:, None])[: data.n - at]
    x.flush()
    table = [data.key.column, np.ones(data.n, np.float32), pa.array(["ok"] * data.n)]
    parquet.write(root / "samples.parquet", pa.table(table, schema=schemas.EMBEDDED))
    about = {"format": embeddings.FORMAT, "dataset": data.digest, "model": "sha256:m", "dim": DIM,
             "images": data.n, "classes": data.classes, "centres": False,
             "files": {"samples.npy": embeddings.checksum(root / "samples.npy")}}  # fmt: skip
    atomic.write_json(root / "embeddings.json", about)
    return root


class Tiny(Dataset):
    """A dataset whose images need no shard."""

    def read(self, row: int) -> bytes:
        return b"xx"


class Table:
    """A model that gives random rows."""

    dim, size, name, digest = DIM, 1, "table", "sha256:table"

    def embed(self, image_nHWC: np.ndarray) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((len(image_nHWC), DIM), np.float32)


def images(path: Path, n: int, first: int) -> Path:
    """Write a table of n JPEGs of 8 x 8 that differ in a comment, ten of a label."""
    if not path.exists():
        found = io.BytesIO()
        Image.new("RGB", (8, 8)).save(found, "JPEG")
        raw = np.frombuffer(found.getvalue()[:2] + b"\xff\xfe\0\x0a" + bytes(8)
                            + found.getvalue()[2:], np.uint8)  # fmt: skip
        raw_nb = np.tile(raw, (n, 1))
        raw_nb[:, 6:14] = (np.arange(n) + first).view(np.uint8).reshape(n, 8)
        image = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(len(raw)), n, [None, pa.py_buffer(raw_nb)]
        ).cast(pa.binary())
        table = pa.table({"image": image, "label": np.arange(n) // EACH + first})
        pq.write_table(table, path, row_group_size=BLOCK)
    return path


def written(name: str, folder: Path, n: int, begun: Callable[[], None]) -> None:
    """Shard, or merge two sets of half the size."""
    from glint.pipelines.dataset import merge, shard

    out = folder / f"out-{name}-{n}"
    plain = shard.Options(samples_per_shard=1000)
    if name == "merge":
        roots = [folder / f"half-{i}-{n}" for i in range(2)]
        for i, root in enumerate(roots):
            if not root.exists():
                shard.shard(images(folder / f"images-{i}-{n}.parquet", n // 2, i * n), root, plain)
        begun()
        merge.merge(out, roots, samples_per_shard=1000)
    else:
        source = images(folder / f"images-{n}.parquet", n, 0)
        begun()
        shard.shard(source, out, replace(plain, unlabelled=name == "shard-unlabelled"))
    shutil.rmtree(out)


def stage(name: str, folder: Path, n: int, begun: Callable[[], None]) -> None:
    """Run a stage; what comes before `begun` is not its own."""
    if name in ("merge", "shard", "shard-unlabelled"):
        written(name, folder, n, begun)
        return
    from glint.pipelines import balance, batches, cluster, cluster_graph, coreset, embed
    from glint.search import nms  # noqa: F401

    single = name in ("embed-unlabelled", "cluster-graph", "cluster-online")
    root = dataset(folder / f"{'one' if single else 'ten'}-{n}", n, 1 if single else EACH)
    out = folder / f"out-{name}-{n}"
    if name.startswith("embed"):
        batches._decode = lambda data, row, size: (0, np.zeros((1, 1, 3), np.uint8))  # type: ignore
        begun()
        embed.embed(Tiny(root), Table(), out, batch=2048)  # type: ignore[arg-type]
        return
    data = Dataset(root)
    emb = embedded(folder / f"emb-{root.name}", data)
    del data
    begun()
    if name == "cluster-graph":
        cluster.run([emb], out, GraphRules(exact=0, join=0.6, connect=0.6, edge=0.55, recall=0.01))
    elif name == "cluster-online":
        cluster.run([emb], out, cluster_graph.rules("online", {"join": 0.6, "connect": 0.6}))
    else:
        data = Dataset(root)
        if name == "coreset":
            found = embeddings.load(emb, data.digest, images=data.n, classes=data.classes)
            coreset.run(data, found, out, coreset.Options(threshold=0.8))
        else:
            balance.balance(data, balance.Options(), folder / f"sampling-{n}.parquet")


STAGES = ("embed-unlabelled", "embed", "cluster-graph", "coreset", "balance",
          "shard-unlabelled", "merge")  # fmt: skip


def run(name: str, folder: Path, n: int) -> dict[str, float]:
    """Make the inputs of a stage in one process, and measure it in another."""
    for what in ("--make", "--one"):
        done = subprocess.run(
            [sys.executable, __file__, what, name, str(folder), str(n)], capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    """Measure all stages."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute; says little")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--only", nargs="+", default=list(STAGES))
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        stage(args.make[0], Path(args.make[1]), int(args.make[2]), sys.exit)
    if args.one:
        peak: list[Any] = []

        def begun() -> None:
            import gc

            import torch  # noqa: F401

            gc.collect()
            pa.default_memory_pool().release_unused()
            peak[:] = [Peak(), time.process_time()]

        stage(args.one[0], Path(args.one[1]), int(args.one[2]), begun)
        print(json.dumps({"cpu": time.process_time() - peak[1], "bytes": peak[0].end()}))
        return 0
    sizes = [20_000, 60_000] if args.quick else args.sizes
    said = machine("numpy", "pyarrow", "torch")
    lines = [{"figure": "machine", "target": None, "holds": None, "value": said}]
    print(json.dumps(lines[0]))
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        for name in args.only:
            used = {n: run(name, Path(folder), n) for n in sizes}
            few, many = min(used), max(used)
            figures = [
                {**told(f"{name}: {n:,} images, MB", used[n]["bytes"] / 1e6),
                 "cpu_s": round(used[n]["cpu"], 1)} for n in sizes
            ]  # fmt: skip
            slope = (used[many]["bytes"] - used[few]["bytes"]) / (many - few)
            figures.append(ceiling(f"{name}: bytes an image, slope of the ends", slope, MOST))
            for line in figures:
                print(json.dumps(line), flush=True)
            lines += figures
            if args.out:
                args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0 if args.quick or all(line["holds"] is not False for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
