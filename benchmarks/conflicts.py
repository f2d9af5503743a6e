"""The search behind `glint dedup-conflicts`: is it exact, what does it cost, what do others miss?

    python benchmarks/conflicts.py --quick
    python benchmarks/conflicts.py --out benchmarks/results/conflicts.jsonl
    python benchmarks/conflicts.py --only large [--work FOLDER] [--full]
    python benchmarks/conflicts.py --only end-to-end [--work FOLDER]

One JSON line a figure: {"figure", "value", "target", "holds"}; exit 1 where one falls short.
Made-up centres, 512 numbers each, cosine at least 0.4: "structured" ones lie in 500 super-clusters
(cosine 0.2 within), "unstructured" ones anywhere; a third is drawn to a cosine of 0.3 to 0.9 with
another one. Every search is a process of its own; imports and reading do not count.

equality  the pairs against products of all in float64
join      100,000 centres, one thread, rounds in turn: CPU-seconds of glint from rows to sorted
          pairs, and of faiss's IndexFlatIP (add and range_search) with OPENBLAS_CORETYPE=SKYLAKEX,
          its best; as the wheel comes, from a tenth of the queries
indexes   recall of faiss's IVF and HNSW, one thread, building counted, beside exact search: true,
          and as an audit of 1,000 rows searched exactly would tell it
kills     a search killed with SIGKILL at random instants and started again
large     360,232 centres (Glint360K) whole and 2,059,906 (WebFace42M) from a stretch of block rows,
          all cores, with the folder that a search goes on from; --full: the second one whole
end-to-end  the stage behind the command, all cores: a sharded dataset of 360,232 identities and
          about three images each, made-up embeddings with planted splits and look-alikes (as in
          planted.py); search, verifying and judging, inside identities, tables, report. Near
          duplicates are left out: the images, of 8 x 8 pixels, stand for nobody
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from figures import ceiling, floor, machine, told

CUT = 0.4
DIM = 512
KINDS = ("structured", "unstructured")
LONG = ("large", "end-to-end")
BEST = {"OPENBLAS_CORETYPE": "SKYLAKEX"}
Figure = dict[str, Any]

# ---- material -----------------------------------------------------------------------------------


def unit(x_nD: np.ndarray) -> np.ndarray:
    """Scale rows to length one."""
    return x_nD / np.linalg.norm(x_nD, axis=1, keepdims=True)


def centres(folder: Path, kind: str, count: int, dim: int = DIM) -> Path:
    """Write made-up centres, float32, unless they lie there."""
    path = folder / f"{kind}-{count}-{dim}.npy"
    if path.exists():
        return path
    draw = np.random.default_rng([count, KINDS.index(kind)])
    middle = unit(draw.standard_normal((500, dim), np.float32))
    part = path.with_suffix(".part")
    out = np.lib.format.open_memmap(part, "w+", np.float32, (count, dim))
    first = count - count // 3  # from here on each is drawn to one before
    partner = draw.permutation(first)[: count // 3]
    starts = [*range(0, first, 8192), *range(first, count, 8192), count]
    for start, stop in itertools.pairwise(starts):
        x_nD = unit(draw.standard_normal((stop - start, dim), np.float32))
        if kind == "structured":
            x_nD = unit(0.2**0.5 * middle[draw.integers(500, size=len(x_nD))] + 0.8**0.5 * x_nD)
        if start >= first:
            to_nD = out[partner[start - first : stop - first]]
            own_nD = unit(x_nD - (x_nD * to_nD).sum(1, keepdims=True) * to_nD)
            t_n1 = draw.uniform(0.3, 0.9, (len(x_nD), 1)).astype(np.float32)
            x_nD = t_n1 * to_nD + np.sqrt(1 - t_n1**2) * own_nD
        out[start:stop] = x_nD
    out.flush()
    del out
    part.rename(path)
    return path


# ---- processes ----------------------------------------------------------------------------------


def child(what: str, path: Path, threads: int = 1, **more: Any) -> Any:
    """Run a function of `CHILDREN` in a process of its own and give what it returns."""
    env = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    env.update(more.pop("env", {}), OMP_NUM_THREADS=str(threads))
    args = [sys.executable, __file__, "--child", what, json.dumps({"path": str(path), **more})]
    done = subprocess.run(args, stdout=subprocess.PIPE, env=env, check=True)
    return json.loads(done.stdout)


def peak() -> float:
    """Give the most memory that this process held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(path: str, engine: str = "auto", pairs: str = "", work: str = "") -> Any:
    """Search; seconds, CPU-seconds, MiB, and the pairs into a file."""
    import torch

    from glint.search.pairs import pairs_above

    pairs_above(np.eye(64, dtype=np.float32), CUT, engine=engine)  # libraries are loaded
    x_ND = np.load(path, mmap_mode="r")
    cpu, wall = time.process_time(), time.perf_counter()
    got = pairs_above(x_ND, CUT, engine=engine, work=Path(work) if work else None)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    if pairs:
        np.savez(pairs, a=got.a, b=got.b, cosine=got.cosine)
    return {"cpu": cpu, "seconds": wall, "mib": peak(), "engine": got.engine,
            "pairs": len(got.a), "threads": torch.get_num_threads()}  # fmt: skip


def flat(path: str, queries: int = 0, pairs: str = "") -> Any:
    """Search with faiss's exact index, all rows or the first `queries`."""
    import faiss

    x_ND = np.load(path)
    faiss.IndexFlatIP(DIM).add(x_ND[:10])
    cpu = time.process_time()
    index = faiss.IndexFlatIP(x_ND.shape[1])
    index.add(x_ND)
    asked = x_ND[:queries] if queries else x_ND
    limits, _, found = index.range_search(asked, CUT)
    limits = limits.astype(np.int64)
    cpu = (time.process_time() - cpu) * len(x_ND) / len(asked)
    if pairs:
        np.save(pairs, upper(np.repeat(np.arange(len(asked)), np.diff(limits)), found))
    return {"cpu": cpu}


def upper(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Give the pairs a < b once each, sorted: (k, 2)."""
    both = np.stack([np.minimum(a, b), np.maximum(a, b)], axis=1).astype(np.int64)
    return np.unique(both[(both[:, 0] != both[:, 1]) & (both[:, 0] >= 0)], axis=0)


def approximate(path: str, index: str, tries: list[int], pairs: str) -> Any:
    """Build an index of faiss and search it with several efforts; pairs of each into a file."""
    import faiss

    x_ND = np.load(path)
    began = time.process_time()
    if index == "IVF":
        built: Any = faiss.index_factory(DIM, f"IVF{1024 if len(x_ND) >= 40_000 else 128},Flat",
                                         faiss.METRIC_INNER_PRODUCT)  # fmt: skip
        built.train(x_ND)
    else:
        built = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
        built.hnsw.efConstruction = 40
    built.add(x_ND)
    building, told_ = time.process_time() - began, []
    for effort in tries:
        began = time.process_time()
        if index == "IVF":
            built.nprobe = effort
            limits, _, found = built.range_search(x_ND, CUT)
            times = np.diff(limits.astype(np.int64))
            got = upper(np.repeat(np.arange(len(x_ND)), times), found)
        else:
            built.hnsw.efSearch = effort
            score, found = built.search(x_ND, 10)
            row, rank = np.nonzero(score >= CUT)
            got = upper(row, found[row, rank])
        told_.append({"effort": effort, "cpu": building + time.process_time() - began})
        np.save(f"{pairs}-{effort}.npy", got)
    return told_


def stretch(path: str, seconds: float) -> Any:
    """Search block rows spread over a large set for some seconds; say what all would take."""
    from glint.search import pairs

    pairs.pairs_above(np.eye(64, dtype=np.float32), CUT)
    x_ND = np.load(path, mmap_mode="r")
    began = time.perf_counter()
    good = np.flatnonzero(pairs.usable(x_ND))
    screen = pairs.open_screen(pairs.choose("auto"), x_ND, good, CUT, pairs.BLOCK)
    pairs._name(x_ND, CUT, pairs.BLOCK, screen.parts)
    ready = time.perf_counter() - began
    rows, tiles, searched = -(-len(good) // pairs.BLOCK), 0, []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        row = int((len(searched) + 0.5) * 0.6180339887 % 1 * rows)
        pairs.search_row(screen, row * pairs.BLOCK, x_ND, good, CUT)
        searched.append(row)
        tiles += rows - row
    took = time.perf_counter() - began
    return {"minutes": (ready + took / tiles * rows * (rows + 1) / 2) / 60, "ready": ready,
            "stretch": took, "rows": len(searched), "of": rows, "mib": peak()}  # fmt: skip


def material(path: str, people: int) -> Any:
    """Write records, shard them, and lay embeddings of planted.py's world beside them."""
    import simplejpeg
    from planted import made_up

    from glint.files import atomic
    from glint.shards import embeddings, recordio
    from glint.shards.dataset import Dataset

    folder = Path(path)
    world = made_up(people, (0.55, 0.8), 0, dim=DIM, images=(0.35, 12))
    jpeg = simplejpeg.encode_jpeg(np.full((8, 8, 3), 128, np.uint8))
    records = folder / "records"
    records.mkdir()
    with recordio.Writer(records / "train.rec", records / "train.idx") as writer:
        for i, label in enumerate(world.label_N.tolist()):
            note = b"\xff\xfe\x00\x0a%08x" % i  # a comment: no image is like another
            image = jpeg[:2] + note + jpeg[2:]
            writer.write(i + 1, recordio.pack(float(label), i + 1, 0, image))
    data, emb = folder / "data", folder / "emb"
    shard = [sys.executable, "-m", "glint", "shard", str(records), str(data)]
    shard += ["--samples-per-shard", "50000"]
    subprocess.run(shard, stdout=subprocess.DEVNULL, check=True)
    shutil.rmtree(records)
    dataset = Dataset(data)
    place_N = np.array([int(source) - 1 for source in dataset.source])
    emb.mkdir()
    x_ND = world.x_ND[place_N]
    np.save(emb / "samples.npy", x_ND)
    np.save(emb / "centres.npy", embeddings.centres(x_ND, dataset.label, dataset.classes))
    sums = {name: embeddings.checksum(emb / name) for name in embeddings.ARRAYS}
    about = {"format": embeddings.FORMAT, "dataset": dataset.digest, "model": "made up", "dim": DIM,
             "files": sums}  # fmt: skip
    atomic.write_json(emb / "embeddings.json", about)
    return {}


def stages(path: str, out: str) -> Any:
    """Run the stage; seconds of its parts, MiB, bytes of the page, what it says."""
    from glint.conflicts import verdicts
    from glint.pipelines.conflicts import find, outliers
    from glint.pipelines.conflicts import page as gallery
    from glint.search import pairs
    from glint.shards.dataset import Dataset
    from glint.shards.embeddings import load

    pairs.pairs_above(np.eye(64, dtype=np.float32), CUT)  # libraries are loaded
    seconds: dict[str, float] = {}

    def timed(where: Any, name: str, part: str) -> None:
        work = getattr(where, name)

        def wrapped(*args: Any, **more: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*args, **more)
            finally:
                seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - began

        setattr(where, name, wrapped)

    timed(verdicts, "pairs_above", "search")
    timed(verdicts.calibrate, "calibrate", "calibrating")
    timed(find, "find", "find")
    timed(outliers, "look_inside", "inside identities")
    timed(gallery, "write", "report")
    began = time.perf_counter()
    data = Dataset(path + "/data")
    emb = load(Path(path) / "emb", data.digest, images=data.n, classes=data.classes)
    seconds["reading, checksums"] = time.perf_counter() - began
    got = find.run(data, emb, Path(out), verdicts.ConflictOptions(), near=False)
    whole = time.perf_counter() - began
    seconds["verifying and judging"] = seconds.pop("find") - seconds["search"]
    seconds["verifying and judging"] -= seconds["calibrating"]
    seconds["tables and the rest"] = whole - sum(seconds.values())
    page = (Path(out) / "report.html").stat().st_size
    return {"whole": whole, "seconds": seconds, "mib": peak(), "page": page / 2**20,
            **{k: getattr(got, k) for k in ("pairs", "merge", "mask", "keep", "groups", "outliers",
                                            "mixed", "identities", "low")},
            "images": data.n}  # fmt: skip


CHILDREN = {f.__name__: f for f in (ours, flat, approximate, stretch, material, stages)}

# ---- figures ------------------------------------------------------------------------------------


def equality(folder: Path, quick: bool) -> Iterator[Figure]:
    """Compare the pairs with those of float64 products."""
    from glint.search import pairs

    for kind in KINDS:
        path = centres(folder, kind, 6000 if quick else 40_000)
        unit_ND = pairs.unit64(np.load(path))
        want = []
        for start in range(0, len(unit_ND), 1000):
            score = unit_ND[start : start + 1000] @ unit_ND[start:].T
            near = np.argwhere(np.triu(score, 1) >= CUT - 1e-9) + start  # then term by term
            want.append(near[(unit_ND[near[:, 0]] * unit_ND[near[:, 1]]).sum(1) >= CUT])
        for engine in ("auto", "torch"):
            child("ours", path, engine=engine, pairs=str(folder / "got.npz"))
            got = np.load(folder / "got.npz")
            other = set(zip(got["a"].tolist(), got["b"].tolist())) ^ set(
                map(tuple, np.concatenate(want).tolist())
            )
            if len(got["a"]) < len(unit_ND) // 5:
                raise SystemExit("the made-up centres hold no pairs")
            yield {**ceiling(f"pairs unlike float64's, {kind}, {engine}", len(other), 0),
                   "rows": len(unit_ND), "pairs": len(got["a"])}  # fmt: skip


def join(folder: Path, quick: bool, rounds: int) -> Iterator[Figure]:
    """Measure the exact search beside faiss's."""
    count = 20_000 if quick else 100_000
    path = centres(folder, "unstructured", count)
    glint, best = [], []
    for _ in range(rounds):
        glint.append(child("ours", path, pairs=str(folder / "ours.npz")))
        best.append(child("flat", path, pairs=str(folder / "flat.npy"), env=BEST)["cpu"])
    wheel = child("flat", path, queries=count // 10)["cpu"]
    cpu = [one["cpu"] for one in glint]
    told_ = {"rows": count, "rounds": rounds, "engine": glint[0]["engine"]}
    yield {**told("CPU-seconds of an exact join, glint", statistics.median(cpu)), **told_}
    yield {**told("CPU-seconds of an exact join, faiss, its best BLAS", statistics.median(best)),
           **told_}  # fmt: skip
    yield {**told("CPU-seconds of an exact join, faiss as the wheel comes", wheel),
           **told_, "from": "a tenth of the queries"}  # fmt: skip
    ratio = statistics.median(b / g for b, g in zip(best, cpu))
    figure = "exact join: faiss at its best over glint, CPU-seconds"
    yield {**(told(figure, ratio) if quick else floor(figure, ratio, 3.4)), **told_}
    got = np.load(folder / "ours.npz")
    a, b = got["a"], got["b"]
    far = got["cosine"] > CUT + 1e-5  # nearer, float32 may err
    flat_ = set(map(tuple, np.load(folder / "flat.npy").tolist()))
    missed = set(zip(a[far].tolist(), b[far].tolist())) - flat_
    more = flat_ - set(zip(a.tolist(), b.tolist()))
    x_ND = np.load(path)
    more = {(i, j) for i, j in more if float(x_ND[i].astype(float) @ x_ND[j]) > CUT + 1e-5}
    yield {**ceiling("exact join: pairs that only one of the two finds", len(missed | more), 0),
           **told_, "pairs": len(a)}  # fmt: skip


def wilson(hits: int, of: int) -> list[float]:
    """Give the 95 % interval of a share."""
    z, p = 1.96, hits / of
    middle, spread = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return [round((middle + s * spread) / (1 + z * z / of), 4) for s in (-1, 1)]


def indexes(folder: Path, quick: bool) -> Iterator[Figure]:
    """Measure what approximate indexes find in the time of the exact search."""
    from glint.search import pairs

    count = 10_000 if quick else 100_000
    for kind in KINDS[1:] if quick else KINDS:
        path = centres(folder, kind, count)
        exact = child("ours", path, pairs=str(folder / "exact.npz"))
        got = np.load(folder / "exact.npz")
        true = set(zip(got["a"].tolist(), got["b"].tolist()))
        unit_ND = pairs.unit64(np.load(path))
        asked = np.random.default_rng(0).choice(count, 1000, replace=False)
        asked = asked[np.argsort(asked)]
        row, other = np.nonzero(unit_ND[asked] @ unit_ND.T >= CUT)
        sampled = set(map(tuple, upper(asked[row], other).tolist()))
        yield {**told(f"recall of exact search, {kind}", 1.0), "rows": count,
               "cpu_seconds": round(exact["cpu"], 2), "pairs": len(true)}  # fmt: skip
        within = 0.0
        for index, tries in (("IVF", [1, 4, 16]), ("HNSW", [16, 64])):
            made = child("approximate", path, index=index, tries=tries[: 1 if quick else 3],
                         pairs=str(folder / index), env=BEST)  # fmt: skip
            for one in made:
                found = set(map(tuple, np.load(folder / f"{index}-{one['effort']}.npy").tolist()))
                recall, audit = len(true & found) / len(true), len(sampled & found)
                if one["cpu"] <= exact["cpu"]:
                    within = max(within, recall)
                name = "nprobe" if index == "IVF" else "ef"
                yield {**told(f"recall of {index}, {name} {one['effort']}, {kind}", recall),
                       "rows": count, "cpu_seconds": round(one["cpu"], 2),
                       "times_exact": round(one["cpu"] / exact["cpu"], 2),
                       "audit": round(audit / len(sampled), 4),
                       "audit_95": wilson(audit, len(sampled))}  # fmt: skip
        yield {**told(f"best recall of an index in the time of exact search, {kind}", within),
               "rows": count}  # fmt: skip


SEARCH = """
import sys
from pathlib import Path
import numpy as np
from glint.search.pairs import pairs_above
path, engine, block, work, out = sys.argv[1:]
x = np.load(path)
pairs_above(x[:9], 0.4, engine=engine)
print("ready", flush=True)
got = pairs_above(x, 0.4, engine=engine, block=int(block), work=Path(work))
np.savez(out, a=got.a, b=got.b, cosine=got.cosine)
"""


def killed(path: Path, folder: Path, count: int, *, engine: str, block: int, seed: int = 0) -> Any:
    """Kill a search `count` times at random instants and let it go on; count what differs.

    Each time one comes to its end its pairs are compared and the next begins anew.
    """
    from glint.search import pairs

    rng = random.Random(seed)
    whole = pairs.pairs_above(np.load(path), CUT, engine=engine, block=block)
    out, work = folder / "got.npz", folder / "work"
    args = [sys.executable, "-c", SEARCH, str(path), engine, str(block), str(work), str(out)]
    seen = {"kills": 0, "midway": 0, "searches": 0, "unlike": 0, "pairs": len(whole.a)}
    took = 0.0  # seconds of the first search, which is not killed
    while not took or seen["kills"] < count or work.exists():
        with subprocess.Popen(args, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            began = time.monotonic()
            if took and seen["kills"] < count:
                try:
                    process.wait(rng.random() * 0.7 * took)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
            code = process.wait()
        if code == -signal.SIGKILL:
            kept = len(list(work.glob("*.pairs")))
            seen["kills"] += 1
            seen["midway"] += kept > 0
        elif code == 0:
            got = np.load(out)
            seen["searches"] += 1
            seen["unlike"] += not all(
                np.array_equal(got[k], getattr(whole, k)) for k in ("a", "b", "cosine")
            )
            took = took or time.monotonic() - began
            shutil.rmtree(work)
        else:
            raise SystemExit(f"a search ended with {code}")
    return seen


def kills(folder: Path, quick: bool) -> Iterator[Figure]:
    """Kill searches."""
    count = 5 if quick else 50
    path = centres(folder, "unstructured", 6000 if quick else 20_000)
    seen = killed(path, folder, count, engine="auto", block=256)
    yield {**floor("kills of a search", seen["kills"], count), **seen}
    yield floor("kills between the first block row and the last", seen["midway"], count // 2)
    yield ceiling("killed searches with other pairs", seen["unlike"], 0)


def large(folder: Path, quick: bool, full: bool) -> Iterator[Figure]:
    """Measure whole datasets' centres."""
    cores = len(os.sched_getaffinity(0))
    count, target = (30_000, 60.0) if quick else (360_232, 100.0)
    path = centres(folder, "unstructured", count)
    work = folder / f"search-{count}"
    got = child("ours", path, cores, work=str(work))
    shutil.rmtree(work)
    about = {"engine": got["engine"], "threads": got["threads"], "pairs": got["pairs"],
             "cpu_seconds": round(got["cpu"], 1)}  # fmt: skip
    yield {**ceiling(f"seconds of {count} centres", got["seconds"], target), **about}
    yield ceiling(f"peak MiB of {count} centres, mapped rows counted", got["mib"], 2048)
    if quick:
        return
    count = 2_059_906
    path = centres(folder, "unstructured", count)
    if full:
        work = folder / f"search-{count}"
        got = child("ours", path, cores, work=str(work))
        shutil.rmtree(work)
        yield {**ceiling(f"minutes of {count} centres", got["seconds"] / 60, 60),
               "mib": round(got["mib"]), "pairs": got["pairs"]}  # fmt: skip
        return
    got = child("stretch", path, cores, seconds=60.0)
    figure = f"minutes of {count} centres, estimated from a stretch"
    yield {**ceiling(figure, got["minutes"], 60), **{
        "stretch_seconds": round(got["stretch"], 1), "block_rows": f"{got['rows']} of {got['of']}",
        "seconds_before": round(got["ready"], 1), "mib": round(got["mib"])}}  # fmt: skip


def end_to_end(folder: Path, quick: bool) -> Iterator[Figure]:
    """Measure the whole stage."""
    cores = len(os.sched_getaffinity(0))
    people = 10_000 if quick else 343_079  # and a twentieth of them twice
    place = folder / f"whole-{people}"
    if not (place / "emb" / "embeddings.json").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        child("material", place, cores, people=people)
    out = place / "out"
    shutil.rmtree(out, ignore_errors=True)
    got = child("stages", place, cores, out=str(out))
    shutil.rmtree(out)
    keys = "identities", "images", "low", "pairs", "merge", "mask", "keep", "outliers", "mixed"
    yield {**told("end to end: seconds", got["whole"]), **{key: got[key] for key in keys}}
    for part, seconds in got["seconds"].items():
        yield told(f"end to end: seconds, {part}", seconds)
    rest = got["whole"] - got["seconds"]["search"]
    yield told("end to end: all but the search, over the search", rest / got["seconds"]["search"])
    yield ceiling("end to end: peak MiB, mapped rows counted", got["mib"], 6144)
    yield ceiling("end to end: MiB of the page", got["page"], 80)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sets, no target of speed")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts")
    parser.add_argument("--rounds", type=int, default=3, help="of the exact join")
    parser.add_argument(
        "--large", action="store_true", help="the parts `large` and `end-to-end` too"
    )
    parser.add_argument("--full", action="store_true", help="large: search all of the second set")
    parser.add_argument("--work", type=Path, help="a folder to keep: made-up centres, a search")
    parser.add_argument("--out", type=Path, help="append the figures to this file")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, options = args.child
        print(json.dumps(CHILDREN[name](**json.loads(options))))
        return 0
    parts = args.only or [p for p in PARTS if p not in LONG or args.large or args.quick]
    about = machine("numpy", "torch", "faiss-cpu")
    short = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for part in parts:
            more = {"large": (args.full,), "join": (1 if args.quick else args.rounds,)}
            for figure in PARTS[part](folder, args.quick, *more.get(part, ())):
                line = json.dumps({**figure, **about})
                print(line, flush=True)
                short += figure["holds"] is False
                if args.out:
                    with args.out.open("a") as file:
                        file.write(line + "\n")
    return 1 if short else 0


PARTS = {"equality": equality, "join": join, "indexes": indexes, "kills": kills, "large": large,
         "end-to-end": end_to_end}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
