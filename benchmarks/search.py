"""The search of conflicts by several processes: the same pairs, and what sharing costs.

    python benchmarks/search.py --quick
    python benchmarks/search.py --out benchmarks/results/search.jsonl
    python benchmarks/search.py --only large --out benchmarks/results/search.jsonl

One JSON line a figure: {"figure", "value", "target", "holds"}; exit 1 where one falls short.
Made-up centres as in conflicts.py, 512 numbers each, cosine at least 0.4. Every process that is
measured is one of its own, with one thread; imports and reading do not count.

exact     40,000 centres by every engine, by tasks, processes, Ray nodes, ranks of gloo and on a
          pretended card: pairs unlike those of float64 products
shared    100,000 centres by one process, four tasks and two Ray nodes (processes of this machine,
          joined by address). Counted in CPU-seconds: what is begun once, the busiest share, the
          joining; against one process's, divided. On a busy machine a tile costs now more and now
          less, so "one process" is what the shares took together, without opening more than once;
          at 1,000,000 centres from the same parts: begin, open and join by rows, shares by tiles
kills     a task and a Ray node killed at random instants: pairs unlike one process's
evidence  microseconds a pair, in batches and in a plain loop, and the largest difference
large     360,232 centres (Glint360K): CPU-seconds from a sixteenth of the block rows; --full: all,
          with two processes, by the clock
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from conflicts import CUT, Figure, centres
from figures import ROOT, ceiling, floor, machine, told

NAMES = ("a", "b", "cosine")
LONG = ("large",)

# ---- processes ----------------------------------------------------------------------------------


def child(what: str, **more: Any) -> Any:
    """Run a function of `CHILDREN` in a process of its own and give what it returns."""
    done = subprocess.run(words(what, **more), capture_output=True, env=alone(), check=False)
    if done.returncode:  # else what Ray says of a node that died
        raise SystemExit(done.stderr.decode()[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def words(what: str, **more: Any) -> list[str]:
    return [sys.executable, __file__, "--child", what, json.dumps(more)]


def alone() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}


def spent(work: Callable[[], Any]) -> tuple[Any, float]:
    """Give what a call returns and its CPU-seconds."""
    began = time.process_time()
    return work(), time.process_time() - began


def whole(path: str, out: str, engine: str = "auto", work: str = "") -> Any:
    """Search in one process, or join what several have searched."""
    from glint.search import pairs

    pairs.pairs_above(np.eye(64, dtype=np.float32), CUT)  # libraries are loaded
    x_ND = np.load(path, mmap_mode="r")
    got, cpu = spent(
        lambda: pairs.pairs_above(x_ND, CUT, engine=engine, work=Path(work) if work else None)
    )
    np.savez(out, a=got.a, b=got.b, cosine=got.cosine)
    return {"cpu": cpu, "engine": got.engine, "pairs": len(got.a)}


def begin(path: str, work: str, block: int = 2048) -> Any:
    """Begin a search that several do."""
    from glint.search import pairs

    pairs.pairs_above(np.eye(64, dtype=np.float32), CUT)
    x_ND = np.load(path, mmap_mode="r")
    search, cpu = spent(lambda: pairs.begin(x_ND, CUT, Path(work), block=block))
    return {"search": asdict(search), "cpu": cpu}


def share(search: dict[str, Any], task: str = "", workers: int = 1) -> Any:
    """Do the share of a task, or all with several processes."""
    from glint.jobs.tasks import Task
    from glint.pipelines.conflicts import share as stage
    from glint.search import pairs

    pairs.pairs_above(np.eye(64, dtype=np.float32), CUT)
    print("ready", flush=True)
    how, begun = stage.How(Task.parse(task), None, workers), pairs.Search(**search)
    _, cpu = spent(lambda: stage.search(begun, how, "auto", progress=lambda *_: None))
    _, opened = spent(lambda: pairs._screen_of(begun))
    return {"cpu": cpu, "open": opened}


@dataclass(frozen=True)
class Counted:
    """`search_piece` that leaves the CPU-seconds of its process behind, by node of Ray."""

    folder: str

    def __call__(self, search: Any, row: int) -> int:
        import ray

        from glint.search import pairs

        began = time.process_time()
        found = pairs.search_piece(search, row)
        node = ray.get_runtime_context().get_node_id()[:8]
        with open(f"{self.folder}/{node}-{os.getpid()}.cpu", "a") as file:
            file.write(f"{time.process_time() - began}\n")
        return found


def nodes(search: dict[str, Any], folder: str, kill: float = 0.0) -> Any:
    """Search on two Ray nodes, the second of which dies when this share of the tiles is done."""
    import ray
    from ray.cluster_utils import Cluster

    from glint.jobs.ray import Ray
    from glint.pipelines.conflicts import share as stage
    from glint.search import pairs

    sizes = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**sizes, "include_dashboard": False})
    node = cluster.add_node(**sizes)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    cluster.wait_for_nodes()
    ray.cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    dead: list[Any] = []

    def progress(done: int, total: int, note: str = "") -> None:
        if kill and not dead and done > kill * total:
            dead.append(cluster.remove_node(node, allow_graceful=False))

    pairs_module: Any = stage.pairs
    pairs_module.search_piece, real = Counted(folder), pairs_module.search_piece
    try:
        how = stage.How(engine=Ray(cluster.address))
        stage.search(pairs.Search(**search), how, "auto", progress=progress)
    finally:
        pairs_module.search_piece = real
        ray.shutdown()
        cluster.shutdown()
    cpu: dict[str, float] = {}
    for file in Path(folder).glob("*.cpu"):
        name = file.name.partition("-")[0]
        cpu[name] = cpu.get(name, 0.0) + sum(map(float, file.read_text().split()))
    return {"cpu": sorted(cpu.values()), "killed": len(dead)}


def ring(path: str, out: str) -> None:
    """Be one rank of several: each holds its stretch of the rows."""
    import torch

    from glint.dist.world import join, leave
    from glint.search.ring import pairs_in_ring

    torch.set_num_threads(1)
    world, x_ND = join(timeout=600), np.load(path, mmap_mode="r")
    cut = [len(x_ND) * rank // world.size for rank in range(world.size + 1)]
    got = pairs_in_ring(x_ND[cut[world.rank] : cut[world.rank + 1]], CUT, group=world)
    np.savez(f"{out}-{world.rank}.npz", a=got.a, b=got.b, cosine=got.cosine)
    leave(world)


def card(path: str, out: str) -> Any:
    """Search on a CUDA device that is not there."""
    sys.path.insert(0, str(ROOT / "tests" / "gpuless"))
    import card as pretend

    from glint.search import pairs

    with pretend.pretended():
        got = pairs.pairs_above(np.load(path), CUT, device="cuda")
    np.savez(out, a=got.a, b=got.b, cosine=got.cosine)
    return {"engine": got.engine}


def material(count: int, least: int, most: int) -> Any:
    """Make samples of identities and pairs of them."""
    from glint.conflicts.evidence import Samples

    draw = np.random.default_rng(0)
    label_N = np.repeat(np.arange(4000), draw.integers(least, most + 1, 4000))
    x_ND = draw.standard_normal((len(label_N), 512)) + draw.standard_normal((4000, 512))[label_N]
    samples = Samples(x_ND.astype(np.float16), label_N, 4000)
    a, b = np.sort(draw.integers(0, 4000, (2, count)), axis=0)
    return samples, a, b, draw.uniform(0.4, 0.9, count)


def plain(samples: Any, a: Any, b: Any, cosine: Any, prior: float) -> Any:
    """Score pairs one by one, as glint did before."""
    from glint.conflicts.evidence import mean_cosine

    def rho(x_nD: Any) -> float:
        own, weight = mean_cosine(x_nD), len(x_nD) - 1
        return max((4 * prior + weight * own) / (4 + weight) if weight else prior, 0.05)

    out_K3, held, x_nD = np.full((len(a), 3), np.nan), -1, np.empty((0, 0), np.float32)
    for k in np.lexsort((b, a)):
        label, other = int(a[k]), int(b[k])
        if label != held:
            held, x_nD = label, samples.unit(samples.rows(label))
        y_mD = samples.unit(samples.rows(other))
        n, m = int(samples.count_C[label]), int(samples.count_C[other])
        a_D, b_D = x_nD.mean(axis=0, dtype=np.float64), y_mD.mean(axis=0, dtype=np.float64)
        mean, one, two = float(a_D @ b_D), rho(x_nD), rho(y_mD)
        centre = np.sqrt(one * two) * np.sqrt(n * m)
        centre /= np.sqrt((1 + (n - 1) * one) * (1 + (m - 1) * two))
        score = min(mean / np.sqrt(one * two), float(cosine[k]) / centre)
        out_K3[k] = mean, np.quantile(x_nD @ y_mD.T, 0.1), score
    return out_K3


def proof(count: int, some: int, least: int, most: int) -> Any:
    """Score pairs in batches, and the first `some` of them in a loop."""
    from glint.conflicts import evidence

    samples, a, b, cosine = material(count, least, most)
    evidence.collect(samples, a[:100], b[:100], cosine[:100], 0.6)
    got, cpu = spent(lambda: evidence.collect(samples, a, b, cosine, 0.6))
    loop, slow = spent(lambda: plain(samples, a[:some], b[:some], cosine[:some], 0.6))
    both = np.stack([got.cross_mean, got.cross_q10, got.score], axis=1)[:some]
    apart = np.abs(both - loop).max(axis=0).tolist()
    return {"us": cpu / count * 1e6, "loop": slow / some * 1e6, "apart": apart}


CHILDREN = {f.__name__: f for f in (whole, begin, share, nodes, ring, card, proof)}

# ---- figures ------------------------------------------------------------------------------------


def unlike(path: Path, want: Any) -> int:
    """Count the pairs that are not those wanted, or have another cosine."""
    got = np.load(path)
    one, two = ({(a, b): c for a, b, c in zip(*(found[name].tolist() for name in NAMES))}
                for found in (got, want))  # fmt: skip
    return sum(one.get(pair) != two.get(pair) for pair in one.keys() | two.keys())


def brute(path: Path) -> dict[str, Any]:
    """Give the pairs by products of all in float64, near the threshold term by term."""
    from glint.search import pairs

    unit_ND, found = pairs.unit64(np.load(path)), []
    for start in range(0, len(unit_ND), 1000):
        score = unit_ND[start : start + 1000] @ unit_ND[start:].T
        found.append(np.argwhere(np.triu(score, 1) >= CUT - 1e-9) + start)
    a, b = np.concatenate(found).T
    cosine = np.concatenate([(unit_ND[a[s : s + 4096]] * unit_ND[b[s : s + 4096]]).sum(1)
                             for s in range(0, len(a), 4096)])  # fmt: skip
    keep = cosine >= CUT
    return dict(zip(NAMES, (a[keep], b[keep], cosine[keep])))


def exact(folder: Path, quick: bool) -> Iterator[Figure]:
    """Compare the pairs of everything that searches with those of float64 products."""
    from glint.search import faiss_index, screens

    path = centres(folder, "structured", 6000 if quick else 40_000)
    want, out = brute(path), folder / "got.npz"
    if len(want["a"]) < 1000:
        raise SystemExit("the made-up centres hold no pairs")
    about = {"rows": len(np.load(path, mmap_mode="r")), "pairs": len(want["a"])}

    def line(name: str, found: int) -> Figure:
        return {**ceiling(f"pairs unlike float64's: {name}", found, 0), **about}

    engines = ["torch", *(["int8"] if screens.int8_is_fast() else []),
               *(["faiss"] if faiss_index.available() else [])]  # fmt: skip
    for engine in engines:
        child("whole", path=str(path), out=str(out), engine=engine)
        yield line(f"one process, {engine}", unlike(out, want))
    for name in ("4 tasks", "2 processes", *(() if quick else ("2 Ray nodes",))):
        work = folder / f"exact {name}"
        search = child("begin", path=str(path), work=str(work), block=512)["search"]
        if name == "4 tasks":
            for i in (2, 0, 3, 1):
                child("share", search=search, task=f"{i}/4")
        elif name == "2 processes":
            child("share", search=search, workers=2)
        else:
            child("nodes", search=search, folder=str(work))
        yield line(name, joined(search, want))
    for size in (2, 3):
        ranks(path, folder / f"ring{size}", size)
        found = [unlike(folder / f"ring{size}-{rank}.npz", want) for rank in range(size)]
        yield line(f"ring of {size} ranks of gloo", max(found))
    child("card", path=str(path), out=str(out))
    yield line("as on a card, pretended", unlike(out, want))


def joined(search: dict[str, Any], want: Any) -> int:
    """Join what was searched, in blocks of any size, and count the pairs that are not wanted."""
    from glint.search import pairs

    if pairs.Search(**search).missing():
        raise SystemExit("block rows are missing")
    pairs.close()
    x_ND = np.load(search["rows"], mmap_mode="r")
    got = pairs.pairs_above(x_ND, CUT, block=search["block"], work=Path(search["folder"]))
    out = Path(search["folder"]) / "joined.npz"
    np.savez(out, a=got.a, b=got.b, cosine=got.cosine)
    return unlike(out, want)


def ranks(path: Path, out: Path, size: int) -> None:
    """Run the ring on so many ranks."""
    from glint.dist.launch import run_ranks

    if run_ranks(words("ring", path=str(path), out=str(out)), size, alone()):
        raise SystemExit("a rank failed")


def shared(folder: Path, quick: bool) -> Iterator[Figure]:
    """Count what one process, tasks and Ray nodes spend."""
    path = centres(folder, "unstructured", 20_000 if quick else 100_000)
    out = folder / "whole.npz"
    one = child("whole", path=str(path), out=str(out))
    want = np.load(out)
    about = {"rows": len(np.load(path, mmap_mode="r")), "engine": one["engine"]}
    yield {**told("CPU-seconds of one process", one["cpu"]), **about, "pairs": one["pairs"]}
    for name, size in (("4 tasks", 4), ("2 Ray nodes", 2))[: 1 if quick else 2]:
        work = folder / f"shared {name}"
        first = child("begin", path=str(path), work=str(work))
        search = first["search"]
        opened = 0.0
        if size == 4:
            parts = [child("share", search=search, task=f"{i}/4") for i in range(4)]
            each, opened = [one["cpu"] for one in parts], parts[0]["open"]
        else:
            each = child("nodes", search=search, folder=str(work))["cpu"]
        last = child("whole", path=str(path), out=str(out), work=str(work))["cpu"]
        yield {**ceiling(f"pairs unlike one process's: {name}", unlike(out, want), 0), **about}
        own, once = sum(each) - size * opened, first["cpu"] + opened + last
        more = {"begin": round(first["cpu"], 2), "shares": [round(cpu, 2) for cpu in each],
                "open": round(opened, 2), "join": round(last, 2), **about}  # fmt: skip
        share = (own + once) / size / (max(each) + first["cpu"] + last)
        yield {**told(f"share of the ideal, {name}", share), **more}
        if size == 4:
            rows, tiles = 489, search["block_rows"] * (search["block_rows"] + 1)
            own, once = own * rows * (rows + 1) / tiles, once * 1_000_000 / about["rows"]
            share = (own + once) / size / (own / size + once)
            yield {**floor("share of the ideal, 4 tasks, 1,000,000 centres, by count", share, 0.9),
                   **more}  # fmt: skip


def kills(folder: Path, quick: bool) -> Iterator[Figure]:
    """Kill a task, and a Ray node, at random instants."""
    path = centres(folder, "unstructured", 6000 if quick else 20_000)
    rng, out = random.Random(0), folder / "kept.npz"
    child("whole", path=str(path), out=str(out))
    want, rounds, midway, other = np.load(out), 2 if quick else 6, 0, 0
    for number in range(rounds):
        work = folder / f"kills {number}"
        search = child("begin", path=str(path), work=str(work), block=128)["search"]
        for i in (0, 1):
            with subprocess.Popen(
                words("share", search=search, task=f"{i}/2"), stdout=subprocess.PIPE, env=alone()
            ) as task:
                assert task.stdout is not None
                task.stdout.readline()
                if not i:
                    task.stdout.read()  # it works to its end
                if i:
                    time.sleep(rng.random() * (0.1 if quick else 0.5))
                    task.send_signal(signal.SIGKILL)
        kept = len(list(work.glob("*.pairs")))
        midway += search["block_rows"] // 2 < kept < search["block_rows"]
        child("share", search=search, task="1/2")
        other += joined(search, want)
    about = {"rows": len(np.load(path, mmap_mode="r")), "kills": rounds, "midway": midway}
    yield {**ceiling("pairs unlike one process's: a task killed", other, 0), **about}
    yield floor("tasks killed between their first block row and their last", midway, 1)
    for number in range(1 if quick else 2):
        work = folder / f"nodes {number}"
        search = child("begin", path=str(path), work=str(work), block=128)["search"]
        seen = child("nodes", search=search, folder=str(work), kill=rng.uniform(0.1, 0.6))
        yield {**ceiling("pairs unlike one process's: a Ray node killed", joined(search, want), 0),
               "killed": seen["killed"]}  # fmt: skip


def evidence(folder: Path, quick: bool) -> Iterator[Figure]:
    """Measure the scoring of pairs."""
    for least, most in ((1, 5), (20, 40)):
        count = (200_000 if most == 5 else 20_000) // (10 if quick else 1)
        got = child("proof", count=count, some=count // 20, least=least, most=most)
        name = f"{least} to {most} images a side"
        yield {**told(f"us a pair of evidence, {name}", got["us"]), "loop": round(got["loop"], 1)}
        yield floor(f"plain loop over batches, {name}", got["loop"] / got["us"], 1.0)
        yield ceiling(f"difference of mean and score x 1e12, {name}",
                      1e12 * max(got["apart"][0], got["apart"][2]), 1)  # fmt: skip


def large(folder: Path, quick: bool, full: bool) -> Iterator[Figure]:
    """Search a whole dataset's centres."""
    from glint.jobs.tasks import Task
    from glint.pipelines.conflicts.share import dealt

    path, work = centres(folder, "unstructured", 20_000 if quick else 360_232), folder / "large"
    began = time.perf_counter()
    first = child("begin", path=str(path), work=str(work))
    search, rows = first["search"], first["search"]["block_rows"]
    about = {"rows": len(np.load(path, mmap_mode="r")), "begin": round(first["cpu"], 2)}
    if full:
        child("share", search=search, workers=2)
        last = child("whole", path=str(path), out=str(folder / "large.npz"), work=str(work))
        yield {**told("seconds of 360,232 centres, 2 processes", time.perf_counter() - began),
               **about, "pairs": last["pairs"]}  # fmt: skip
        return
    part = child("share", search=search, task="7/16")
    mine = dealt(Task(7, 16), rows)
    tile = (part["cpu"] - part["open"]) / sum(rows - row for row in mine)
    about |= {"tiles": sum(rows - row for row in mine), "ms a tile": round(1000 * tile, 2)}
    for count in (360_232, 1_000_000, 2_059_906):
        more = -(-count // 2048)
        cpu = tile * more * (more + 1) / 2 + first["cpu"] * count / about["rows"]
        yield {**told(f"CPU-seconds of {count:,} centres, from a sixteenth of 360,232's", cpu),
               **about}  # fmt: skip


PARTS = {f.__name__: f for f in (exact, shared, kills, evidence, large)}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        if (answer := CHILDREN[sys.argv[2]](**json.loads(sys.argv[3]))) is not None:
            print(json.dumps(answer))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows, for tests")
    parser.add_argument("--full", action="store_true", help="of large: all block rows")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; repeatable")
    parser.add_argument("--work", default="", help="a folder for made-up centres, which stay")
    parser.add_argument("--out", default="", help="add the lines to this file too")
    options = parser.parse_args()
    about, failed = machine("numpy", "torch", "ray", "faiss-cpu"), False
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(options.work or temporary)
        for name in options.only or [part for part in PARTS if part not in LONG]:
            place = Path(temporary) / name
            place.mkdir()
            for path in made.glob("*.npy"):
                (place / path.name).symlink_to(path)
            more = {"full": options.full} if name in LONG else {}
            for line in PARTS[name](place, options.quick, **more):
                text = json.dumps({**line, "part": name, **about})
                print(text, flush=True)
                failed |= line["holds"] is False
                if options.out:
                    with open(options.out, "a") as file:
                        file.write(text + "\n")
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
