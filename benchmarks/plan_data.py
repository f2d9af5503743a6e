"""Unit costs of `glint plan data`: every stage at three sizes, and the fit held to a fourth.

    GLINT_SHARED=../shared python benchmarks/plan_data.py [--quick] [--only STAGE ...]
                                       [--work FOLDER] [--out FILE] [--units FILE]
    python benchmarks/plan_data.py --units FILE --write glint/pipelines/cost.toml

Made datasets of tiny payloads (embed and near duplicates decode JPEGs of 4 to 6 kB). Every stage
is a process of its own, with one thread, and counts once everything is imported: CPU seconds of it
and its children (the machine may be loaded), split where a stage can be shared out into what is
(`cpu`) and what is not (`once`); the most memory that is not of files (RssAnon). Non-negative least
squares of relative errors over three sizes gives the cost of each driver (an image, a byte, a tile
of 2,048 x 2,048, ... : `drivers` of glint/pipelines/cost.py); a size that took no part in the fit
judges: within 25 %. Memory judged is what the stage adds to its imports. The graph's figures are
those of benchmarks/results/clusters_scale.jsonl.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from clusters_scale import Peak
from conflicts import CUT, centres
from figures import ROOT, ceiling, machine, told
from memory import Table, Tiny, dataset, embedded
from scipy.optimize import nnls
from shard import forked, pictures

from glint.pipelines import balance as _b  # noqa: F401  (imported once, before the forks)
from glint.pipelines import coreset as _c  # noqa: F401
from glint.pipelines import cost
from glint.pipelines import embed as _e  # noqa: F401
from glint.pipelines.conflicts import outliers as _o  # noqa: F401
from glint.pipelines.dataset import merge as _m  # noqa: F401
from glint.pipelines.dataset import reshard as _r  # noqa: F401
from glint.pipelines.dataset import shard as _s  # noqa: F401
from glint.search import nms as _n  # noqa: F401
from glint.stream import columns as _i  # noqa: F401

SHARED = Path(os.environ.get("GLINT_SHARED", ROOT.parent / "shared"))
MOST = 0.25
SHORT = 8.0  # CPU seconds below which a run is one of three: the machine may be busy
TINY = b"\xff\xc0\x00\x0b\x08\x00\x70\x00\x70\x01\x01\x11\x00\xff\xd9"
Begun = Callable[[], None]
D = cost.Dataset


class Spent:
    """CPU seconds of this process and its ended children, those inside `shared` apart."""

    def __init__(self) -> None:
        self.first, self.shared = self.now(), 0.0

    @staticmethod
    def now() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **more: Any) -> Any:
            began = self.now()
            try:
                return work(*args, **more)
            finally:
                self.shared += self.now() - began

        return counted


# ---- stages: make what is needed, call begun, work -----------------------------------------------


def records(folder: Path, data: D) -> Path:
    """Write RecordIO of JPEGs of a size: a comment of random bytes and a header."""
    from glint.shards import recordio

    size = int(data.image_bytes)
    root = folder / f"rec-{data.images:.0f}-{size}"
    if not root.exists():
        root.mkdir()
        rng = np.random.default_rng([int(data.images), size])
        with recordio.Writer(root / "train.rec", root / "train.idx") as writer:
            for i in range(int(data.images)):
                text = rng.integers(1, 250, size - 6 - len(TINY), np.uint8).tobytes()
                image = b"\xff\xd8\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + TINY
                writer.write(i + 1, recordio.pack(float(i // 10), i + 1, 0, image))
    return root / "train.rec"


def sharded(folder: Path, data: D) -> Path:
    from glint.pipelines.dataset import shard as stage

    out = folder / f"shards-{data.images:.0f}-{data.image_bytes:.0f}"
    if not (out / "manifest.json").exists():
        stage.shard(records(folder, data), out, stage.Options())
    return out


def shard(folder: Path, data: D, begun: Callable[[], Spent], more: dict[str, Any]) -> None:
    from glint.jobs import workers
    from glint.pipelines.dataset import shard as stage

    source = records(folder, data)
    spent = begun()
    workers.each = spent.around(workers.each)  # type: ignore[assignment]
    stage.shard(source, folder / "out", stage.Options())


def reshard(folder: Path, data: D, begun: Callable[[], Spent], more: dict[str, Any]) -> None:
    from glint.jobs import workers
    from glint.pipelines.dataset import reshard as stage

    source = sharded(folder, data)
    spent = begun()
    workers.each = spent.around(workers.each)  # type: ignore[assignment]
    stage.reshard(source, folder / "out", 5000)


def merge(folder: Path, data: D, begun: Callable[[], Spent], more: dict[str, Any]) -> None:
    from glint.jobs import workers
    from glint.pipelines.dataset import merge as stage

    n = data.images / 2
    roots = [sharded(folder, D(n + i, n // 10, image_bytes=data.image_bytes)) for i in (0, 10)]
    spent = begun()
    workers.each = spent.around(workers.each)  # type: ignore[assignment]
    stage.merge(folder / "out", roots)


class Real(Tiny):
    """A dataset whose images are a few pictures, again and again."""

    pictures: list[bytes]

    def read(self, row: int) -> bytes:
        return self.pictures[row % len(self.pictures)]


class Rows(Table):
    """A model that costs next to nothing."""

    size = 112

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.rows = np.random.default_rng(0).standard_normal((4096, dim), np.float32)

    def embed(self, image_nHWC: np.ndarray) -> np.ndarray:
        return self.rows[: len(image_nHWC)]


def embed(folder: Path, data: D, begun: Callable[[], Spent], more: dict[str, Any]) -> None:
    from glint.pipelines import batches
    from glint.pipelines import embed as stage

    root = dataset(folder / f"data-{data.images:.0f}-{data.identities:.0f}", int(data.images),
                   round(data.images / data.identities))  # fmt: skip
    Real.pictures, model = pictures(), Rows(data.dim)
    image = np.zeros((112, 112, 3), np.uint8)
    batches._decode = lambda data, row, size: (0, image)  # `decode` measures that
    spent = begun()
    stage._fill = spent.around(stage._fill)
    stage.embed(Real(root), model, folder / "out")


def decode(folder: Path, data: D, begun: Callable[[], Spent], more: dict[str, Any]) -> None:
    from glint.pipelines import batches

    n = int(data.images)
    Real.pictures = pictures()
    found = Real(dataset(folder / f"data-{n}", n, 10))
    begun()
    for row in range(n):
        batches._decode(found, row, 112)


def near_duplicates(
    folder: Path, data: D, begun: Callable[[], Spent], more: dict[str, Any]
) -> None:
    from glint.pipelines.conflicts import outliers

    n = int(data.images)
    root = dataset(folder / f"data-{n}", n, 10)
    Real.pictures, data_set = pictures(), Real(root)
    begun()
    outliers._hashed(data_set, np.arange(n), lambda *_: None)


def hashes(folder: Path, data: D, begun: Callable[[], Spent], more: dict[str, Any]) -> None:
    from glint.conflicts import image_hash

    n, rng = int(data.images), np.random.default_rng(0)
    hash_n = np.zeros(n, np.uint64)  # as many free bits in each of seven bands
    for low, _ in pairwise([64 * i // 7 for i in range(8)]):
        hash_n |= rng.integers(0, 1 << more["bits"], n).astype(np.uint64) << np.uint64(low)
    begun()
    image_hash.near(hash_n)


def search(folder: Path, data: D, begun: Callable[[], Spent], more: dict[str, Any]) -> None:
    from glint.search import pairs

    path = centres(folder, "unstructured", int(data.identities))
    pairs.pairs_above(np.eye(64, dtype=np.float32), CUT)  # libraries are loaded
    spent = begun()
    x_ND = np.load(path, mmap_mode="r")
    begin = pairs.begin(x_ND, CUT, folder / "out")
    piece = spent.around(pairs.search_piece)
    for row in range(begin.block_rows):
        piece(begin, row)
    pairs.pairs_above(x_ND, CUT, work=folder / "out")


def evidence(folder: Path, data: D, begun: Callable[[], Spent], more: dict[str, Any]) -> None:
    from glint.conflicts import evidence as stage

    draw, c = np.random.default_rng(0), int(data.identities)
    label_N = np.repeat(np.arange(c), round(data.images / c))
    x_ND = draw.standard_normal((len(label_N), data.dim), np.float32).astype(np.float16)
    np.save(folder / "rows.npy", x_ND)
    del x_ND
    x_ND = np.load(folder / "rows.npy", mmap_mode="r")
    a, b = np.sort(draw.integers(0, c, (2, int(data.pairs * c))), axis=0)
    cosine = draw.uniform(0.4, 0.9, len(a))
    begun()
    stage.collect(stage.Samples(x_ND, label_N, c), a, b, cosine, 0.6)


def _faces(folder: Path, data: D) -> tuple[Any, Any]:
    from glint.shards.dataset import Dataset

    n, each = int(data.images), round(data.images / data.identities)
    found = Dataset(dataset(folder / f"data-{n}-{each}", n, each))
    import memory

    memory.DIM = data.dim
    return found, embedded(folder / f"emb-{n}-{data.dim}", found)


def coreset(folder: Path, data: D, begun: Callable[[], Spent], more: dict[str, Any]) -> None:
    from glint.pipelines import coreset as stage
    from glint.search import nms  # noqa: F401
    from glint.shards import embeddings
    from glint.shards.dataset import Dataset

    found, emb = _faces(folder, data)
    root = found.root
    del found
    begun()
    found = Dataset(root)
    rows = embeddings.load(emb, found.digest, images=found.n, classes=found.classes)
    stage.run(found, rows, folder / "out", stage.Options(threshold=0.8))


def balance(folder: Path, data: D, begun: Callable[[], Spent], more: dict[str, Any]) -> None:
    from glint.pipelines import balance as stage
    from glint.shards.dataset import Dataset

    n = int(data.images)
    root = dataset(folder / f"data-{n}", n, 10)
    begun()
    stage.balance(Dataset(root), stage.Options(), folder / "sampling.parquet")


def index(folder: Path, data: D, begun: Callable[[], Spent], more: dict[str, Any]) -> None:
    from glint.shards.dataset import Dataset
    from glint.stream import columns

    n = int(data.images)
    root = dataset(folder / f"data-{n}", n, 10)
    begun()
    columns.open_columns(Dataset(root))


def _each(points: list[D], bits: list[int] | None = None) -> list[tuple[D, dict[str, Any]]]:
    return [(one, {"bits": bits[i]} if bits else {}) for i, one in enumerate(points)]


def _ten(*sizes: int) -> list[D]:
    return [D(n, n // 10, 64) for n in sizes]


_SHARDS = [D(40_000, 4000, image_bytes=300), D(30_000, 3000, image_bytes=5000),
           D(200_000, 20_000, image_bytes=300), D(400_000, 40_000, image_bytes=500)]  # fmt: skip
# stage: (function, drivers of cpu, of once, of memory, points; the last takes no part in the fit)
STAGES: dict[str, tuple[Callable[..., None], str, str, str, list[tuple[D, dict[str, Any]]]]] = {
    "shard": (shard, "image byte", "image byte", "one image", _each(_SHARDS)),
    "embed": (embed, "image number", "image number centre", "one image centre", _each([
        D(100_000, 100_000, 64, unlabelled=True), D(60_000, 30_000, 512),
        D(200_000, 50_000, 128), D(300_000, 100_000, 64), D(400_000, 50_000, 256)])),
    "decode": (decode, "image", "", "one", _each(_ten(10_000, 20_000, 30_000, 50_000))),
    "near duplicates": (near_duplicates, "image", "", "one", _each(
        _ten(10_000, 20_000, 30_000, 45_000))),
    "hashes": (hashes, "image_log hash", "", "one image", _each(
        _ten(100_000, 200_000, 100_000, 160_000), [6, 6, 5, 5])),
    "conflict search": (search, "tile", "centre", "one centre", _each(
        [D(c, c) for c in (16_384, 32_768, 49_152, 81_920)])),
    "conflict evidence": (evidence, "pair face number", "", "one image pair", _each([
        D(60_000, 30_000, 256), D(120_000, 15_000, 256, pairs=10), D(320_000, 10_000, 128, pairs=3),
        D(160_000, 10_000, 256, pairs=8)])),
    "coreset": (coreset, "image number", "", "one image", _each([
        D(100_000, 10_000, 64), D(200_000, 20_000, 64), D(100_000, 10_000, 512),
        D(300_000, 30_000, 256)])),
    "balance": (balance, "image", "", "one image", _each(
        _ten(1_000_000, 2_000_000, 3_000_000, 4_000_000))),
    "reshard": (reshard, "image byte", "image byte", "one image", _each(_SHARDS)),
    "merge": (merge, "image byte", "image byte", "one image", _each([
        D(40_000, 4000, image_bytes=300), D(30_000, 3000, image_bytes=5000),
        D(120_000, 12_000, image_bytes=300), D(240_000, 24_000, image_bytes=500)])),
    "train index": (index, "image", "", "one image", _each(
        _ten(1_500_000, 2_000_000, 3_000_000, 4_000_000))),
}  # fmt: skip


def one(name: str, place: int, folder: Path, making: bool) -> dict[str, float]:
    """Be the process of a stage: up to what is measured, or with it."""
    spent: list[Any] = []

    class Made(Exception):
        pass

    def begun() -> Spent:
        if making:
            raise Made
        gc.collect()
        pa.default_memory_pool().release_unused()
        spent[:] = [Peak(), Spent()]
        return spent[1]

    work, _, _, _, points = STAGES[name]
    data, more = points[place]
    try:
        work(folder, data, begun, more)
    except Made:
        return {}
    total = Spent.now() - spent[1].first
    grown = spent[0].end()
    once = total - spent[1].shared if spent[1].shared else 0.0
    return {"cpu": total - once, "once": once, "base": spent[0].first, "bytes": grown}


def run(name: str, place: int, folder: Path) -> dict[str, float]:
    """Make the inputs in one process and measure in others; that of least CPU counts."""
    forked(lambda: one(name, place, folder, True))
    seen: list[dict[str, float]] = []
    while len(seen) < 3 and (not seen or seen[0]["cpu"] + seen[0]["once"] < SHORT):
        for left in (folder / left for left in ("out", "sampling.parquet")):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        for left in folder.glob("*/_glint/columns-*"):
            left.unlink()
        seen.append(forked(lambda: one(name, place, folder, False)).said)
    least = min(seen, key=lambda one: one["cpu"] + one["once"])
    return {**least, "bytes": float(np.median([one["bytes"] for one in seen]))}


# ---- fits ---------------------------------------------------------------------------------------


def fit(names: str, points: list[dict[str, float]], found: list[float]) -> dict[str, float]:
    """Fit non-negative unit costs to what was found, by relative errors."""
    if not names or max(found) <= 0:
        return {}
    a = np.array([[by[name] for name in names.split()] for by in points])
    found_m = np.maximum(np.array(found), 1e-3 * max(found))
    scale = np.linalg.norm(a / found_m[:, None], axis=0)
    scale[scale == 0] = 1
    unit = nnls(a / found_m[:, None] / scale, np.ones(len(found)))[0] / scale
    return {n: float(f"{v:.4g}") for n, v in zip(names.split(), unit) if v > 0}


def judged(
    name: str, forms: tuple[str, str, str], by: list[dict[str, float]], seen: list[dict[str, float]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Fit a stage without its last point; return unit costs and figures."""
    keys = ("cpu", "once", "bytes")
    unit = {
        key: fit(form, by[:-1], [one[key] for one in seen[:-1]]) for key, form in zip(keys, forms)
    }
    cpu = cost.dot(unit["cpu"], by[-1]) + cost.dot(unit["once"], by[-1])
    wanted, size = seen[-1]["cpu"] + seen[-1]["once"], cost.dot(unit["bytes"], by[-1])
    about = {"fitted": [{k: round(v, 3) for k, v in one.items()} for one in seen[:-1]],
             "seen": {k: round(v, 3) for k, v in seen[-1].items()}}  # fmt: skip
    figures = [
        {**told(f"{name}: CPU seconds at {by[-1]['image']:,.0f} images, "
                f"{by[-1]['identity']:,.0f} identities", wanted),
         "planned": round(cpu, 3), **about},
        {**told(f"{name}: MB there beside imports", seen[-1]["bytes"] / 1e6),
         "planned": round(size / 1e6, 3)},
        ceiling(f"{name}: CPU, error of the plan", abs(cpu / wanted - 1), MOST),
        ceiling(f"{name}: memory, error of the plan", abs(size / seen[-1]["bytes"] - 1), MOST),
    ]  # fmt: skip
    base = float(np.mean([one["base"] for one in seen]))
    unit["bytes"]["one"] = float(f"{unit['bytes'].get('one', 0.0) + base:.4g}")
    return unit, figures


def graph() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Fit the graph's cost to what `clusters_scale.py` found."""
    text = (ROOT / "benchmarks" / "results" / "clusters_scale.jsonl").read_text()
    found: dict[int, dict[str, float]] = {}
    for line in map(json.loads, text.splitlines()):
        size = re.match(r"([\d,]+) faces: (CPU ms|memory, bytes) a face$", line["figure"])
        if size:
            n = int(size[1].replace(",", ""))
            key, scale = ("cpu", n / 1e3) if "CPU" in size[2] else ("bytes", n)
            found.setdefault(n, {"once": 0.0, "base": 2e8})[key] = line["value"] * scale
    sizes = sorted(found)[:4]
    by = [cost.drivers(D(n, n // 10)) for n in sizes]
    forms = ("image_log", "", "one image")
    return judged("cluster graph", forms, by, [found[n] for n in sizes])


# ---- the TOML -----------------------------------------------------------------------------------

# How far a stage can be shared out (machines by --task, cores of one machine, one core), and the
# bytes it reads and writes by driver, by count of the files' formats: a tar of images and labels
# takes 1,792 bytes an image beside them, samples.parquet 45, and every shard is read back once.
SHAPES: dict[str, dict[str, Any]] = {
    "shard": {"spread": "tasks", "processes": True, "read": {"byte": 2, "image": 1840},
              "write": {"byte": 1, "image": 1837}},
    "embed": {"spread": "tasks", "read": {"byte": 1, "image": 45, "number": 4},
              "write": {"number": 2, "image": 16, "centre": 4}},
    "near duplicates": {"spread": "cores", "threads": 8, "read": {"byte": 1, "image": 45},
                        "write": {}},
    "conflict search": {"spread": "tasks", "processes": True, "reads_all": True,
                        "read": {"centre": 5}, "write": {"centre": 1, "pair": 16}},
    "conflict evidence": {"spread": "one", "read": {"number": 2, "face": 1024},
                          "write": {"pair": 60}},
    "cluster graph": {"spread": "one", "read": {"number": 34},
                      "write": {"number": 2, "image": 120}},
    "coreset": {"spread": "one", "read": {"number": 2, "image": 45}, "write": {"image": 2}},
    "balance": {"spread": "one", "read": {"image": 45}, "write": {"identity": 20}},
    "reshard": {"spread": "tasks", "processes": True, "read": {"byte": 2, "image": 3629},
                "write": {"byte": 1, "image": 1837}},
    "merge": {"spread": "cores", "processes": True, "read": {"byte": 2, "image": 3629},
              "write": {"byte": 1, "image": 1837}},
    "train index": {"spread": "one", "read": {"image": 45}, "write": {"image": 32, "identity": 8}},
}  # fmt: skip
HEAD = """\
# Unit costs of `glint plan data`, written by benchmarks/plan_data.py --units FILE --write THIS:
# seconds (cpu: can be shared out as `spread` says; once: cannot) and bytes for each driver of
# glint/pipelines/cost.py. One thread of the machine named; benchmarks/results/plan_data.jsonl has
# how far they miss a size that was not fitted. embed's cpu counts decoding; `milliseconds` is a
# net of 1 M parameters on a core (embed_speed.jsonl). The graph's are of clusters_scale.jsonl.
"""


def written(units: list[dict[str, Any]], milliseconds: float) -> str:
    """Return the TOML of all stages."""
    found = {unit.pop("stage"): unit for unit in units}
    about = machine("numpy")
    lines = [
        HEAD,
        "[machine]",
        f'name = "{about["machine"]}, one core"',
        f'date = "{about["date"]}"',
    ]
    decode, hashes, evidence = (found[name] for name in ("decode", "hashes", "conflict evidence"))
    found["embed"]["cpu"]["image"] = (
        found["embed"]["cpu"].get("image", 0.0) + decode["cpu"]["image"]
    )
    found["near duplicates"] |= {"once": hashes["cpu"], "bytes": hashes["bytes"]}
    # By count, as the sizes that were run do not show them: rows sorted by label, pairs and scores;
    # sums of centres and their squares; a label, a key, a norm (memory.jsonl).
    evidence["bytes"] |= {"image": 32.0, "pair": 80.0}
    found["embed"]["bytes"] |= {"centre": 8.0, "image": 46.0}
    for name, shape in SHAPES.items():
        lines += ["", f'[stage."{name}"]']
        extra = {"milliseconds": milliseconds} if name == "embed" else {}
        extra |= found["chance"] if name == "near duplicates" else {}
        unit = found[name]
        tables = {"cpu": unit["cpu"], "once": unit["once"], "memory": unit["bytes"]}
        for key, value in {**shape, **extra, **tables}.items():
            if isinstance(value, dict):
                inside = ", ".join(f"{driver} = {float(f'{x:.4g}')}" for driver, x in value.items())
                lines.append(f"{key} = {{{inside}}}")
            else:
                lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def shared_keys() -> float:
    """Return how often two faces of LFW agree in three bands of their hashes; 0 without LFW."""
    import simplejpeg

    from glint.conflicts import image_hash
    from glint.shards import recordio

    path = SHARED / "data" / "lfw" / "train.rec"
    if not path.exists():
        return 0.0
    small = []
    data = path.read_bytes()
    at = data.find(b"\xff\xd8\xff")
    del recordio
    while at >= 0:
        end = data.find(b"\xff\xd9", at) + 2
        try:
            grey = simplejpeg.decode_jpeg(data[at:end], "GRAY", fastdct=True)
            small.append(image_hash.shrunk(grey[..., 0]))
        except ValueError:
            pass
        at = data.find(b"\xff\xd8\xff", end)
    hash_n = np.unique(image_hash.phash(np.stack(small)))
    edge = [64 * i // image_hash.BANDS for i in range(image_hash.BANDS + 1)]
    band = [(1 << stop) - (1 << start) for start, stop in pairwise(edge)]
    shares = []
    for chosen in combinations(band, 3):
        count = np.unique(hash_n & np.uint64(sum(chosen)), return_counts=True)[1].astype(float)
        shares.append((count * (count - 1)).sum() / (len(hash_n) * (len(hash_n) - 1)))
    return float(np.mean(shares))


def main() -> int:
    """Measure, fit, judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute; says little")
    parser.add_argument("--only", nargs="+", default=[*STAGES, "cluster graph", "chance"])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--units", type=Path, help="add the unit costs to this file, as JSON")
    parser.add_argument("--write", type=Path, help="write --units as TOML, and measure nothing")
    args = parser.parse_args()
    if args.write:
        last = {
            unit["stage"]: unit for unit in map(json.loads, args.units.read_text().splitlines())
        }
        said = (ROOT / "benchmarks" / "results" / "embed_speed.jsonl").read_text().splitlines()
        speed = next(one["value"] for one in map(json.loads, said)
                     if one["figure"] == "plain loop, one thread: CPU ms an image")  # fmt: skip
        args.write.write_text(written(list(last.values()), speed))
        return 0
    names = ["balance", "cluster graph"] if args.quick else args.only
    held, lines = True, [{**told("machine", 0), "value": machine("numpy", "pyarrow", "torch")}]
    print(json.dumps(lines[0]))
    for name in names:
        with tempfile.TemporaryDirectory(dir=args.work) as folder:
            if name == "chance":
                unit: dict[str, Any] = {"chance": shared_keys()}
                figures = [told("-log2 of two faces of LFW that share a key of hashes",
                                -float(np.log2(unit["chance"] or 1)))]  # fmt: skip
            elif name == "cluster graph":
                unit, figures = graph()
            else:
                _, *forms, points = STAGES[name]
                by = [
                    cost.drivers(data, 2.0 ** (-3 * more["bits"]) if more else 0)
                    for data, more in points
                ]
                seen = [run(name, place, Path(folder)) for place in range(len(points))]
                unit, figures = judged(name, tuple(forms), by, seen)  # type: ignore[arg-type]
        print(json.dumps({"unit": name, **unit}))
        for line in figures:
            print(json.dumps(line), flush=True)
            held &= line["holds"] is not False
        lines += figures
        if args.units:
            with args.units.open("a") as file:
                file.write(json.dumps({"stage": name, **unit}) + "\n")
        if args.out:
            args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0 if args.quick or held else 1


if __name__ == "__main__":
    raise SystemExit(main())
