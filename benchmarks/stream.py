"""The stream against a bare decode loop, webdataset, mosaicml-streaming, litdata and a folder.

    python benchmarks/stream.py --quick
    python benchmarks/stream.py --peer-python VENV/bin/python [--images 50000] [--only speed]

One JSON line a figure: {"figure", "value", "target", "holds"}; exit 1 where one falls short.
speed: the same pictures (smooth noise, 112 x 112, quality 95, about 5.3 kB) in every reader's
form; every reader is a process of its own that waits for its turn; turns are shuffled in every
round, so that a busy machine is busy for all; rates are medians, per CPU-second of the process
with its children unless "wall" is in the name; batch 128, simplejpeg, one torch thread, page cache
warm.
index: samples.parquet of 17,091,657 rows in 1,710 shards and of 42,474,557 in 4,248, made up, every
shard a link to one real shard; from opening the dataset to the first decoded batch. Memory is
counted without the pages of the mapped file, which all ranks of a machine share and which can be
dropped at any time; with them it stands beside.
order: how far the order is from a true permutation, next to webdataset's.
Peers live in an environment of their own: mosaicml-streaming drags in a CUDA torch, transformers
and torchvision, so it is installed with --no-deps and its readers of text and vision data, which
nothing here uses, are told that these are there. Peers that are missing are named.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from figures import PAPER, ceiling, floor, machine

ROOT = Path(__file__).parents[1]
BATCH, SIDE = 128, 112
SHARD = 1000  # samples per shard of the speed and order sections
BUFFER = 5000  # samples in webdataset's shuffle buffer
Epoch = Callable[[], int]  # does one epoch, gives the images it saw

# ---- readers, each in a process of its own ------------------------------------------------------


def decoder() -> Callable[[Any, int], None]:
    """Give the one decoder, into a batch that is used again and again."""
    import numpy as np
    import simplejpeg

    batch = np.empty((BATCH, SIDE, SIDE, 3), dtype=np.uint8)
    return lambda data, i: simplejpeg.decode_jpeg(data, "RGB", buffer=batch[i % BATCH])


def bare(forms: Path) -> Epoch:
    """Decode bytes that lie in memory: what no reader can beat."""
    data = [path.read_bytes() for path in sorted((forms / "folder").glob("*/*.jpg"))]
    decode = decoder()

    def epoch() -> int:
        for i, jpeg in enumerate(data):
            decode(jpeg, i)
        return len(data)

    return epoch


def glint(
    forms: Path,
    stored: bool = False,
    verify: bool = True,
    block: int | None = None,
    **options: Any,
) -> Epoch:
    """Stream as training does; another epoch each time."""
    from glint.shards import labels
    from glint.shards.dataset import Dataset
    from glint.stream.loader import Images, Stream
    from glint.stream.order import Order

    dataset = Dataset(forms / "glint")
    table = labels.current(dataset.root, dataset.classes)
    options |= {"order": Order(block=block), "images": Images(verify=verify)}
    stream = Stream(dataset, labels=table, batch=BATCH, seed=1, drop_last=False, **options)
    number = 0

    def epoch() -> int:
        nonlocal number
        number += 1
        if stored:
            return sum(len(data) for data, _, _ in stream.stored(number))
        return sum(len(batch.row) for batch in stream.batches(number))

    return epoch


def webdataset(forms: Path, decoded: bool = True) -> Epoch:
    """Read the same shards as webdataset's documentation does."""
    import webdataset as wds

    shards = [str(path) for path in sorted((forms / "glint" / "data").glob("*.tar"))]
    data = wds.WebDataset(shards, shardshuffle=len(shards), empty_check=False)
    data = data.shuffle(BUFFER).to_tuple("jpg", "cls")
    return over(data, decoded, lambda sample: sample[0])


def folder(forms: Path) -> Epoch:
    """Read files under torch's DataLoader."""
    import torch

    paths = sorted((forms / "folder").glob("*/*.jpg"))

    class Files(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, i: int) -> tuple[bytes, int]:
            with open(paths[i], "rb") as file:
                return file.read(), int(paths[i].parent.name)

    return over(
        torch.utils.data.DataLoader(Files(), batch_size=None, shuffle=True),
        True,
        lambda sample: sample[0],
    )


def mosaic(forms: Path) -> Epoch:
    """Read mosaicml-streaming's own form."""
    from streaming import StreamingDataset

    return over(
        StreamingDataset(local=str(forms / "mds"), shuffle=True, batch_size=BATCH),
        True,
        lambda sample: sample["jpg"],
    )


def litdata(forms: Path) -> Epoch:
    """Read litdata's own form."""
    from litdata import StreamingDataset

    return over(
        StreamingDataset(str(forms / "lit"), shuffle=True), True, lambda sample: sample["jpg"]
    )


def over(samples: Any, decoded: bool, pick: Callable[[Any], bytes]) -> Epoch:
    """Go through a peer's samples."""
    decode = decoder() if decoded else lambda data, i: None

    def epoch() -> int:
        count = 0
        for count, sample in enumerate(samples, 1):
            decode(pick(sample), count)
        return count

    return epoch


READERS: dict[str, Callable[[Path], Epoch]] = {
    "bare": bare,
    "glint": glint,
    "glint_unchecked": lambda forms: glint(forms, verify=False),
    "glint_windows": lambda forms: glint(forms, block=64),
    "glint_threads": lambda forms: glint(forms, threads=2),
    "glint_workers": lambda forms: glint(forms, workers=2),
    "glint_stored": lambda forms: glint(forms, stored=True),
    "webdataset": webdataset,
    "webdataset_stored": lambda forms: webdataset(forms, decoded=False),
    "folder": folder,
    "mosaicml-streaming": mosaic,
    "litdata": litdata,
}
PEERS = ("mosaicml-streaming", "litdata")


def stand_in() -> None:
    """Tell mosaicml-streaming that packages are there which only its other readers use."""
    anything = type("Anything", (), {})
    for name, names in {
        "transformers": (),
        "transformers.models": (),
        "transformers.models.auto": (),
        "transformers.models.auto.tokenization_auto": ("AutoTokenizer",),
        "transformers.feature_extraction_utils": ("BatchFeature",),
        "transformers.tokenization_utils_base": ("BatchEncoding",),
        "torchvision": (),
        "torchvision.datasets": ("VisionDataset",),
        "torchvision.transforms": (),
        "torchvision.transforms.functional": ("to_tensor",),
    }.items():
        module = types.ModuleType(name)
        module.__dict__.update(dict.fromkeys(names, anything), __path__=[])
        sys.modules[name] = module


def convert(name: str, forms: Path) -> None:
    """Write a peer's form of the folder; in the peer's environment."""
    files = [
        (path.read_bytes(), int(path.parent.name))
        for path in sorted((forms / "folder").glob("*/*.jpg"))
    ]
    if name == "mosaicml-streaming":
        from streaming import MDSWriter

        with MDSWriter(out=str(forms / "mds"), columns={"jpg": "bytes", "cls": "int"}) as out:
            for data, label in files:
                out.write({"jpg": data, "cls": label})
    else:
        from litdata.streaming.writer import BinaryWriter

        (forms / "lit").mkdir()
        writer = BinaryWriter(str(forms / "lit"), chunk_bytes=64 << 20)
        for i, (data, label) in enumerate(files):
            writer[i] = {"jpg": data, "cls": label}
        writer.done()
        writer.merge(1)


def spent() -> float:
    """Give CPU seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def serve(name: str, forms: Path) -> None:
    """Do an epoch for every line on stdin; print {images, cpu, wall} each."""
    import torch

    torch.set_num_threads(1)
    if name == "mosaicml-streaming":
        stand_in()
    if name in PEERS and not (forms / {"litdata": "lit"}.get(name, "mds")).exists():
        convert(name, forms)
    epoch = READERS[name](forms)
    print("ready", flush=True)
    for _ in sys.stdin:
        gc.collect()
        cpu, wall = spent(), time.perf_counter()
        images = epoch()
        print(
            json.dumps(
                {"images": images, "cpu": spent() - cpu, "wall": time.perf_counter() - wall}
            ),
            flush=True,
        )


# ---- speed --------------------------------------------------------------------------------------


class Reader:
    """A reader's process, and what it measured."""

    def __init__(self, name: str, python: str, forms: Path) -> None:
        self.name, self.rounds = name, list[dict[str, float]]()
        self._process = subprocess.Popen(
            [python, __file__, "--serve", name, "--forms", str(forms)],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
                "PYTHONWARNINGS": "ignore",
            },
        )

    def ready(self) -> None:
        """Wait until it has imported and opened everything. Raises RuntimeError if it cannot."""
        line = ""
        while line != "ready\n":
            line = self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None and self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            last = self._process.stderr.read().strip().splitlines()[-1:]
            raise RuntimeError(f"{self.name}: {' '.join(last) or 'ended'}")
        return line

    def go(self) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        line = self._line()
        while not line.startswith("{"):
            line = self._line()
        found: dict[str, float] = json.loads(line)
        return found

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(30)


def pictures(forms: Path, images: int) -> None:
    """Write a folder of JPEGs, ID/NUMBER.jpg, and the dataset that `glint shard` makes of it."""
    import numpy as np
    import simplejpeg
    import torch
    from torch.nn.functional import interpolate

    if (forms / "glint" / "manifest.json").exists():
        return
    rng = np.random.default_rng(0)
    identities = max(10, images // 50)
    for c in range(identities):
        (forms / "folder" / f"{c:05d}").mkdir(parents=True, exist_ok=True)
    for start in range(0, images, 500):
        coarse = torch.from_numpy(rng.integers(0, 256, (500, 3, 10, 10)).astype(np.float32))
        smooth = interpolate(coarse, (SIDE, SIDE), mode="bicubic").permute(0, 2, 3, 1).numpy()
        grain = rng.integers(-2, 3, (500, SIDE, SIDE, 1))
        pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        for i in range(min(500, images - start)):
            label = int(rng.integers(identities))
            path = forms / "folder" / f"{label:05d}" / f"{start + i:06d}.jpg"
            path.write_bytes(
                simplejpeg.encode_jpeg(
                    np.ascontiguousarray(pixels[i]), quality=95, colorsubsampling="420"
                )
            )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "glint",
            "shard",
            str(forms / "folder"),
            str(forms / "glint"),
            "--samples-per-shard",
            str(SHARD),
            "--workers",
            "1",
            "--json",
        ],
        check=True,
        capture_output=True,
        cwd=ROOT,
    )


def speed(args: argparse.Namespace, forms: Path) -> Iterator[dict[str, Any]]:
    """Time all readers in turns."""
    cores, busy = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    images = args.images or (2000 if args.quick else 50_000)
    pictures(forms, images)
    started = {
        name: Reader(name, python, forms)
        for name in READERS
        if (python := args.peer_python if name in PEERS else sys.executable)
    }
    readers: dict[str, Reader] = {}
    for name in READERS:
        try:
            if name not in started:
                raise RuntimeError(f"{name}: no --peer-python")
            started[name].ready()
            readers[name] = started[name]
        except RuntimeError as error:
            yield {
                "figure": f"speed missing {name}",
                "value": str(error),
                "target": None,
                "holds": None,
            }
    for number in range(args.rounds + 1):  # the first one warms up
        turns = list(readers.values())
        random.Random(number).shuffle(turns)  # nobody always finds the cache as one other left it
        for reader in turns:
            found = reader.go()
            if found["images"] < images:
                raise RuntimeError(f"{reader.name} saw {found['images']} of {images} images")
            if number:
                reader.rounds.append(found)
    for reader in readers.values():
        reader.close()

    def rate(name: str, clock: str = "cpu") -> float:
        return statistics.median(r["images"] / r[clock] for r in readers[name].rounds)

    def ratio(a: str, b: str, clock: str = "cpu") -> float:
        """Give how much faster a is: the median over rounds, as neighbours share the weather."""
        return statistics.median(
            (x["images"] / x[clock]) / (y["images"] / y[clock])
            for x, y in zip(readers[a].rounds, readers[b].rounds)
        )

    for name in readers:
        yield {
            "figure": f"speed {name} images per CPU-second",
            "value": round(rate(name)),
            "target": None,
            "holds": None,
            "wall": round(rate(name, "wall")),
        }
    for a, b, least in (
        ("glint", "bare", 0.93),
        ("glint", "webdataset", 2.0),
        ("glint", "mosaicml-streaming", 2.5),
        ("glint", "litdata", 1.1),
        ("glint", "folder", 1.1),
        ("glint_stored", "webdataset_stored", 8.0),
    ):
        if a in readers and b in readers:
            yield floor(f"speed {a} / {b}, per CPU-second", ratio(a, b), least)
    share = 1 - ratio("glint", "glint_unchecked")
    yield ceiling(
        "speed share of a decoded stream spent on checksums (noise of rounds in it)", share, 0.02
    )
    per_image = hashing(forms)
    yield ceiling("speed share spent on checksums, timed alone", per_image * rate("glint"), 0.02)
    best = max(ratio("glint_threads", "glint", "wall"), ratio("glint_workers", "glint", "wall"))
    figure = floor("speed two threads or workers / one, wall", best, 1.7)
    if busy > cores - 1.5:  # nothing can be said of wall time where others use the cores
        figure.update(holds=None, note="the machine was busy: not judged")
    yield {**figure, "cores": cores, "load before": round(busy, 1)}


def hashing(forms: Path) -> float:
    """Give CPU seconds that looking up and checking one digest takes."""
    import numpy as np
    import xxhash

    from glint.shards.dataset import Dataset
    from glint.stream.columns import open_columns

    dataset = Dataset(forms / "glint")
    columns = open_columns(dataset)
    row_n = np.random.default_rng(0).permutation(dataset.n)[:2048]
    data = [dataset.read(int(row)) for row in row_n]
    took = []
    for _ in range(15):
        start = time.process_time()
        for at in range(0, len(data), BATCH):
            digests = columns.record[row_n[at : at + BATCH]]["digest"].tobytes()
            for i, jpeg in enumerate(data[at : at + BATCH]):
                if xxhash.xxh3_128_digest(jpeg) != digests[16 * i : 16 * i + 16]:
                    raise RuntimeError("a checksum is wrong")
        took.append((time.process_time() - start) / len(data))
    return statistics.median(took)


# ---- index --------------------------------------------------------------------------------------


def made_up(root: Path, real: Path, rows: int, classes: int) -> None:
    """Write a dataset whose every shard is a link to one real shard, in plausible columns."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from glint import schemas
    from glint.files import parquet
    from glint.shards.dataset import Dataset

    dataset = Dataset(real)
    first = int((dataset.shard == 0).sum())
    times = 10_000 // first  # a shard of about 10,000 samples: the real one's, again and again
    per_shard = first * times
    shards = -(-rows // per_shard)
    (root / "data").mkdir(parents=True)
    for s in range(shards):
        (root / "data" / f"train-{s:06d}.tar").symlink_to(dataset.shard_path(0).resolve())
    digest = dataset.digests[:first]
    order = np.sort(np.arange(per_shard) % first)
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(root / "samples.parquet", schemas.SAMPLES, **parquet.OPTIONS) as out:
        for start in range(0, rows, 1 << 20):
            row = np.arange(start, min(rows, start + (1 << 20)))
            at = order[row % per_shard]
            label = rng.integers(0, classes, len(row))
            label[row < classes] = row[row < classes]
            text = pc.cast(pa.array(label), pa.string())
            out.write_table(
                pa.table(
                    {
                        "key": pc.utf8_lpad(pc.cast(pa.array(row), pa.string()), 9, "0"),
                        "label": label,
                        "source_label": text,
                        "shard": (row // per_shard).astype(np.int32),
                        "offset": dataset.offset[at],
                        "size": dataset.size[at],
                        "digest": pa.FixedSizeBinaryArray.from_buffers(
                            pa.binary(16), len(row), [None, pa.py_buffer(digest[at].tobytes())]
                        ),
                        "source": text,
                        "width": np.full(len(row), SIDE, np.int32),
                        "height": np.full(len(row), SIDE, np.int32),
                    },
                    schema=schemas.SAMPLES,
                )
            )
    (root / "manifest.json").write_text(
        json.dumps(
            {
                "format": "glint/dataset@1",
                "written": rows,
                "identities": classes,
                "shards": [{"name": f"train-{s:06d}.tar"} for s in range(shards)],
                "digest": f"sha256:made-up-{rows}",
            }
        )
    )
    count = np.full(classes, rows / classes)
    draws = np.minimum(count, 3.5)
    names = schemas.SAMPLING.with_metadata({"dataset": f"sha256:made-up-{rows}"})
    columns = {"label": np.arange(classes), "weight": draws, "repeat": draws, "draws": draws}
    label = pq.read_table(root / "samples.parquet", columns=["label"])["label"].to_numpy()
    columns["count"] = np.bincount(label, minlength=classes)
    pq.write_table(
        pa.table({name: columns[name] for name in schemas.SAMPLING.names}, schema=names),
        root / "sampling.parquet",
    )


FIRST_BATCH = """
import json, os, sys, time
import numpy as np, torch
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.stream.loader import Stream
from glint.stream.order import Order
torch.set_num_threads(1)
import pyarrow.parquet, scipy.sparse  # imports are no part of the figure
def memory():
    found = {}
    for line in open("/proc/self/smaps_rollup"):
        name, _, rest = line.partition(":")
        if name in ("Rss", "Anonymous"):
            found[name] = int(rest.split()[0]) / 1024
    return found
before, start, cpu = memory(), time.perf_counter(), time.process_time()
dataset = Dataset(sys.argv[1])
table = labels.current(dataset.root, dataset.classes)
stream = Stream(dataset, labels=table, batch=128, seed=1, order=Order(sys.argv[2] or None))
batches = stream.batches(epoch=0, start_step=stream.steps_per_epoch // 2)
image = next(batches).image
wall, cpu = time.perf_counter() - start, time.process_time() - cpu
after = memory()
other = stream.batches(epoch=5)
seek, start = [], time.perf_counter()
plan = stream.plan
for i in range(20):
    start = time.perf_counter()
    plan.rows_at(0, np.arange(128) + i * 7919 % plan.length)
    seek.append(time.perf_counter() - start)
print(json.dumps({"wall": wall, "cpu": cpu, "seek": sorted(seek)[10],
    "anonymous": after["Anonymous"] - before["Anonymous"] - image.numel() / 2**20,
    "resident": after["Rss"] - before["Rss"] - image.numel() / 2**20}))
"""


def first_batch(root: Path, sampling: str = "") -> dict[str, float]:
    """Open a dataset and make one batch, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_BATCH, str(root), sampling],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def index(args: argparse.Namespace, forms: Path) -> Iterator[dict[str, Any]]:
    """Measure start to first batch, and the memory it takes."""
    pictures(forms, args.images or (2000 if args.quick else 50_000))
    sets = (
        {"1.2M": (1_200_000, 50_000)}
        if args.quick
        else {"17M": (17_091_657, 360_232), "42M": (42_474_557, 2_059_906)}
    )
    for name, (rows, classes) in sets.items():
        root = forms / f"index-{name}"
        if not (root / "manifest.json").exists():
            made_up(root, forms / "glint", rows, classes)
        for old in (root / "_glint").glob("*"):
            old.unlink()
        cold = first_batch(root)
        yield {
            "figure": f"index {name} first start ever, the columns are written, seconds",
            "value": round(cold["wall"], 2),
            "target": None,
            "holds": None,
            "cpu": round(cold["cpu"], 2),
        }
        for kind, sampling in (
            ("", ""),
            (" with a sampling table", str(root / "sampling.parquet")),
        ):
            runs = [first_batch(root, sampling) for _ in range(1 if args.quick else 3)]
            middle = {k: statistics.median(run[k] for run in runs) for k in runs[0]}
            yield {
                **ceiling(f"index {name}{kind} start to first batch, seconds", middle["wall"], 1.0),
                "cpu": round(middle["cpu"], 3),
            }
            yield {
                **ceiling(
                    f"index {name}{kind} memory of each rank's own, MiB", middle["anonymous"], 300
                ),
                "with pages of the shared mapping": round(middle["resident"], 1),
            }
            yield ceiling(f"index {name}{kind} seek, milliseconds", 1e3 * middle["seek"], 50)


# ---- order --------------------------------------------------------------------------------------


def order(args: argparse.Namespace, forms: Path) -> Iterator[dict[str, Any]]:
    """Measure how well orders are shuffled; draw docs/img/shuffle.svg on request."""
    import numpy as np

    from glint.stream.plan import Plan

    n, shard, block = (200_000, SHARD, 64)
    plans = {
        "a true permutation": np.random.default_rng(0).permutation(n),
        "glint, whole epoch": Plan(n, 1).rows(0, 0, n),
        f"glint, block={block}": Plan(n, 1, block=block).rows(0, 0, n),
        f"webdataset, shuffle({BUFFER})": wds_order(n, shard),
    }
    scores = {name: shuffled(rows, shard) for name, rows in plans.items()}
    true = scores["a true permutation"]
    peer = scores[f"webdataset, shuffle({BUFFER})"]
    for name, score in scores.items():
        yield {
            "figure": f"order {name}",
            "value": round(score["ks"], 4),
            "target": None,
            "holds": None,
            **{k: round(v, 4) for k, v in score.items()},
        }
    whole, blocks = scores["glint, whole epoch"], scores[f"glint, block={block}"]
    yield ceiling(
        "order whole epoch: distance of a batch from uniform / a true permutation's",
        whole["ks"] / true["ks"],
        1.05,
    )
    yield ceiling(
        "order blocks: distance of a batch from uniform / webdataset's",
        blocks["ks"] / peer["ks"],
        1.0,
    )
    yield floor(
        "order blocks: shards in a batch / webdataset's",
        blocks["shards in a batch"] / peer["shards in a batch"],
        1.0,
    )
    if args.picture:
        draw(plans, n, args.picture)


def wds_order(n: int, shard: int) -> Any:
    """Give webdataset's order: shards shuffled, then its shuffle buffer."""
    import numpy as np
    from webdataset.filters import _shuffle

    shards = [range(s, min(s + shard, n)) for s in range(0, n, shard)]
    random.Random(0).shuffle(shards)
    rows = (row for one in shards for row in one)
    return np.fromiter(
        _shuffle(rows, BUFFER, BUFFER, rng=random.Random(1)), dtype=np.int64, count=n
    )


def shuffled(rows: Any, shard: int) -> dict[str, float]:
    """Score an order: over batches of 128, means.

    ks: Kolmogorov-Smirnov distance of a batch's rows from uniform over the data. shards in a
    batch: how many different ones. neighbours: share of steps of the order that stay inside
    1,000 rows. same label: pairs of a batch with one label, over a true permutation's
    expectation, if the data stood sorted by label with 50 rows each.
    """
    import numpy as np

    n = len(rows)
    batch = rows[: n // BATCH * BATCH].reshape(-1, BATCH)
    place = np.sort(batch, axis=1) / n
    step = np.arange(BATCH) / BATCH
    distance = np.maximum(place - step, step + 1 / BATCH - place).max(axis=1)
    label = np.sort(batch // 50, axis=1)
    pairs = 0
    for apart in range(1, 50):
        pairs += (label[:, apart:] == label[:, :-apart]).sum()
    expected = len(batch) * BATCH * (BATCH - 1) / 2 * 49 / (n - 1)
    different = [len(np.unique(one)) for one in batch // shard]
    return {
        "ks": float(distance.mean()),
        "shards in a batch": float(np.mean(different)),
        "neighbours": float((np.abs(np.diff(rows)) < 1000).mean()),
        "same label": float(pairs / expected),
    }


def draw(plans: dict[str, Any], n: int, path: Path) -> None:
    """Draw where the first samples of each order come from."""
    side, gap, shown = 220, 46, 6000
    parts = []
    for i, (name, rows) in enumerate(plans.items()):
        left = 30 + i * (side + gap)
        taken = rows[:shown][::4]
        dots = "".join(
            f"M{left + x * 4 * side / shown:.1f} {40 + side - y * side / n:.1f}h1"
            for x, y in enumerate(taken)
        )
        parts.append(
            f'<text x="{left}" y="26">{name}</text>'
            f'<rect x="{left}" y="40" width="{side}" height="{side}" fill="none" stroke="#999"/>'
            f'<path d="{dots}" stroke="#1a5fb4" stroke-width="1.4" fill="none"/>'
            f'<text x="{left}" y="{side + 58}" class="s">position 0 to {shown:,}</text>'
            f'<text transform="translate({left - 8} {side + 40}) rotate(-90)" class="s">'
            f"row 0 to {n:,}</text>"
        )
    width, height = 30 + len(plans) * (side + gap), side + 72
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="14">'
        f"{PAPER}{''.join(parts)}</svg>\n"
    )


SECTIONS = {"speed": speed, "index": index, "order": order}


def main() -> int:
    """Run sections, print their figures, keep them on request."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--only", choices=SECTIONS)
    parser.add_argument("--peer-python", help="an interpreter that has the peers")
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--forms", type=Path, help="where the data stands or shall stay")
    parser.add_argument("--out", type=Path, help="append the figures, with the machine's name")
    parser.add_argument("--picture", type=Path, help="draw the orders as SVG")
    parser.add_argument("--serve", choices=READERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.forms)
        return 0
    args.rounds = args.rounds or (2 if args.quick else 5)
    sys.path.insert(0, str(ROOT))
    holds = True
    with tempfile.TemporaryDirectory() as temporary:
        forms = args.forms or Path(temporary)
        where = machine("numpy", "torch", "simplejpeg")
        for name, section in SECTIONS.items():
            if args.only not in (None, name):
                continue
            for figure in section(args, forms):
                print(json.dumps(figure), flush=True)
                holds &= figure["holds"] is not False
                if args.out:
                    with args.out.open("a") as file:
                        file.write(json.dumps({**figure, **where}) + "\n")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
