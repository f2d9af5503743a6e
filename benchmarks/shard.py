"""`glint shard` against webdataset's ShardWriter and a plain write; `glint verify` against a read.

    python benchmarks/shard.py --quick
    python benchmarks/shard.py --out benchmarks/results/shard.jsonl

One JSON line a figure: {"figure", "value", "target", "holds"}; exit 1 where one falls short.
One RecordIO file of noise JPEGs, 112 x 112, 4 to 6 kB each, no two alike (200,000 of them, 20,000
with --quick), page cache warm. Every writer is a forked process, so that imports do not count; its
CPU time includes the system's and its children's. Rounds alternate; figures are medians of ratios.
glint: all of it, from fingerprint to manifest, fsynced, each shard read back. ShardWriter: its
defaults, images and labels from memory. Plain write: the very bytes of glint's shards, held in
memory, not fsynced; with the hashes that its contract asks for (xxh3-128 an image, SHA-256 a
shard) told apart.
Memory: fresh processes, the largest of the parent and its workers, over records of a few bytes
and over the images.
verify: the same files read front to back, 4 MiB at a time; cold by dropping them from the cache.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import ceiling, floor, machine, told

ROOT = Path(__file__).parents[1]
SHARD = 10_000  # samples
SIDE = 112
PIECE = 4 << 20  # bytes that the plain write writes together

# ---- material -----------------------------------------------------------------------------------


def pictures(count: int = 300) -> list[bytes]:
    """Encode noise, smooth enough for 4 to 6 kB."""
    import numpy as np
    import simplejpeg

    draw = np.random.default_rng(0)
    made: list[bytes] = []
    while len(made) < count:
        coarse = draw.integers(0, 256, (14, 14, 3)).repeat(8, 0).repeat(8, 1)
        noise = draw.normal(0, draw.uniform(13, 16), (SIDE, SIDE, 3))
        pixels = np.clip(coarse * 0.6 + 50 + noise, 0, 255).astype(np.uint8)
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 85, "RGB", "420")
        if 4000 <= len(data) <= 6000:
            made.append(data)
    return made


def distinct(data: bytes, i: int) -> bytes:
    """Make an image unlike all others: seven bits of its number a byte, which make no marker."""
    mark = bytes(i >> shift & 0x7F | 0x80 * (shift == 7) for shift in (21, 14, 7, 0))
    return data[:-40] + b"\x11" + mark.replace(b"\xff", b"\xfe") + data[-35:]


def write_records(
    folder: Path, n: int, images: list[bytes], each: int = 50, mark: bool = True
) -> None:
    """Write n records, `each` to an identity, with their .idx; marked ones all differ."""
    from glint.shards import recordio

    folder.mkdir(parents=True)
    with recordio.Writer(folder / "train.rec", folder / "train.idx") as writer:
        for i in range(n):
            image = images[i % len(images)]
            if mark and len(image) > 200:
                image = distinct(image, i)
            writer.write(i + 1, recordio.pack(float(i // each), i + 1, 0, image))


# ---- measuring ----------------------------------------------------------------------------------


@dataclass
class Cost:
    """What a process and its children took."""

    cpu: float
    wall: float
    said: Any


def forked(work: Callable[[], Any]) -> Cost:
    """Run `work` in a forked process and wait for it; what it returns comes back as JSON."""
    read, write = os.pipe()
    gc.freeze()  # or the child's collector copies every page of ours
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read)
            os.write(write, json.dumps(work()).encode())
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - started
    if status:
        raise SystemExit("a measured process failed")
    return Cost(usage.ru_utime + usage.ru_stime, wall, json.loads(said))


def rounds(runs: dict[str, Callable[[], Any]], count: int, clean: Path) -> dict[str, list[Cost]]:
    """Run all by turns, `clean` empty and the disk at rest before each, or the next one pays."""
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for _ in range(count):
        for name, work in runs.items():
            shutil.rmtree(clean, ignore_errors=True)
            clean.mkdir()
            os.sync()
            costs[name].append(forked(work))
    shutil.rmtree(clean, ignore_errors=True)
    return costs


def ratio(costs: dict[str, list[Cost]], a: str, b: str, what: str = "cpu") -> float:
    """Return the median over rounds of a's cost over b's."""
    return statistics.median(
        getattr(x, what) / getattr(y, what) for x, y in zip(costs[a], costs[b])
    )


# ---- writers ------------------------------------------------------------------------------------


def ours(source: Path, out: Path, workers: int = 1, **options: Any) -> Callable[[], Any]:
    """Shard with glint; return bytes of the shards."""

    def work() -> Any:
        from glint.pipelines.dataset import shard

        result = shard.shard(
            source, out / "glint", shard.Options(SHARD, **options), workers=workers
        )
        return {"bytes": result.bytes, "n": result.written}

    return work


def shard_writer(images: list[bytes], n: int, out: Path) -> Callable[[], Any]:
    """Write with webdataset, from memory."""

    def work() -> Any:
        import webdataset

        with (
            contextlib.redirect_stdout(sys.stderr),
            webdataset.ShardWriter(str(out / "wds-%06d.tar"), maxcount=SHARD, verbose=0) as sink,
        ):
            for i in range(n):
                sink.write({"__key__": f"{i:09d}", "jpg": images[i % len(images)], "cls": i // 50})
        return sum(path.stat().st_size for path in out.iterdir())

    return work


def plain_write(tars: list[bytes], out: Path, images: int = 0) -> Callable[[], Any]:
    """Write the shards that glint made, from memory and in its pieces.

    With `images`, hash as its contract asks: SHA-256 a shard, xxh3-128 for so many images.
    """

    def work() -> Any:
        import xxhash

        done = 0
        for number, tar in enumerate(tars):
            hasher, view = hashlib.sha256(), memoryview(tar)
            with open(out / f"plain-{number:06d}", "wb", buffering=0) as file:
                for at in range(0, len(view), PIECE):
                    piece = view[at : at + PIECE]
                    done += file.write(piece)
                    if images:
                        hasher.update(piece)
            count = images // len(tars) + (number < images % len(tars))
            size = len(tar) // max(count, 1)
            for at in range(0, count * size, size or 1):
                xxhash.xxh3_128_digest(view[at : at + size * 3 // 4])  # the rest is tar
        return done

    return work


def copy(source: Path, out: Path) -> Callable[[], Any]:
    """Copy a file by read and write, and fsync it."""

    def work() -> Any:
        done = 0
        with source.open("rb", buffering=0) as old, open(out / "copy", "wb", buffering=0) as new:
            while block := old.read(1 << 20):
                done += new.write(block)
            os.fsync(new.fileno())
        return done

    return work


# ---- sections -----------------------------------------------------------------------------------


def speed(args: argparse.Namespace, place: Path) -> Iterator[dict[str, Any]]:
    """CPU time, wall time and size."""
    n, images, source, out = args.images, pictures(), place / "source", place / "out"
    write_records(source, n, images)
    payload = sum(len(images[i % len(images)]) for i in range(n))
    out.mkdir()
    both = forked(ours(source, out)).said  # also warms the page cache
    tars = [path.read_bytes() for path in sorted((out / "glint" / "data").glob("*.tar"))]
    shutil.rmtree(out)
    total = both["bytes"]
    costs = rounds(
        {
            "glint": ours(source, out),
            "one member": ours(source, out, members="jpg"),
            "webdataset": shard_writer(images, n, out),
            "plain": plain_write(tars, out),
            "hashed": plain_write(tars, out, n),
        },
        args.rounds,
        out,
    )
    for name in costs:
        rate = n / statistics.median(c.cpu for c in costs[name])
        yield told(f"images per CPU-second, {name}", rate)
    yield floor(
        "shard: images per CPU-second over ShardWriter", ratio(costs, "webdataset", "glint"), 4
    )
    yield told("shard: CPU over a plain write of the same bytes", ratio(costs, "glint", "plain"))
    yield told(
        "shard: CPU over a plain write and the hashes of the contract",
        ratio(costs, "glint", "hashed"),
    )
    one = costs["one member"][0].said["bytes"]
    yield ceiling("shard: size overhead, jpg and cls", total / payload - 1, 0.34)
    yield ceiling("shard: size overhead, one member", one / payload - 1, 0.15)
    yield told("ShardWriter: size overhead", costs["webdataset"][0].said / payload - 1)
    wall = rounds(
        {"glint": ours(source, out, 2), "copy": copy(source / "train.rec", out)},
        args.rounds,
        out,
    )
    yield told(
        "shard: wall of a fsynced copy of the source over glint's, 2 workers",
        ratio(wall, "copy", "glint", "wall"),
    )


_PEAK = """
import multiprocessing, pathlib, sys, threading, time

def most(who):  # not ru_maxrss, which a process inherits
    try:
        text = pathlib.Path(f"/proc/{who}/status").read_text()
    except OSError:
        return 0
    return max((int(line.split()[1]) / 1024 for line in text.splitlines()
                if line.startswith("VmHWM")), default=0)

def watch():
    while True:
        seen.append(max([most(child.pid) for child in multiprocessing.active_children()] or [0]))
        time.sleep(0.02)

if __name__ == "__main__":
    from glint.pipelines.dataset import shard
    seen = [0]
    threading.Thread(target=watch, daemon=True).start()
    shard.shard(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]))
    print(max(most("self"), *seen))
"""


def peak(source: Path, out: Path, workers: int) -> float:
    """Return the peak memory of the largest process, MiB."""
    script = out.parent / "peak.py"
    script.write_text(_PEAK)
    shutil.rmtree(out, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, script, source, out, str(workers)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    shutil.rmtree(out)
    return float(done.stdout)


def memory(args: argparse.Namespace, place: Path) -> Iterator[dict[str, Any]]:
    """Peak memory per process, and whether it grows with the records."""
    tiny = [b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x70\x00\x70\x01\x01\x11\x00\xff\xd9"]
    peaks = {}
    for n in (20_000, args.records):
        source = place / f"tiny-{n}"
        write_records(source, n, tiny)
        peaks[n] = peak(source, place / "peak", 1)
        shutil.rmtree(source)
        yield ceiling(f"shard: peak MiB, {n} records", peaks[n], 400)
    yield told(
        f"shard: peak memory of {args.records} records over that of 20000",
        peaks[args.records] / peaks[20_000],
    )
    if (place / "source").exists():
        yield ceiling(
            f"shard: peak MiB, {args.images} images, 1 worker",
            peak(place / "source", place / "peak", 1),
            400,
        )
        yield ceiling(
            f"shard: peak MiB, {args.images} images, 2 workers",
            peak(place / "source", place / "peak", 2),
            400,
        )


def verify(args: argparse.Namespace, place: Path) -> Iterator[dict[str, Any]]:
    """`glint verify --deep` against reading, in the same state of the page cache."""
    source, data = place / "source", place / "dataset"
    if not source.exists():
        write_records(source, args.images, pictures())
    data.mkdir()
    forked(ours(source, data))
    data /= "glint"
    paths = sorted((data / "data").glob("*.tar"))

    def read() -> int:
        room, done = bytearray(4 << 20), 0
        for path in paths:
            with path.open("rb", buffering=0) as file:
                while got := file.readinto(room):
                    done += got
        return done

    def deep(workers: int) -> Callable[[], Any]:
        def work() -> Any:
            from glint.shards import verify

            result = verify.verify(data, deep=True, workers=workers)
            if not result.ok:
                raise AssertionError(result.shown)
            return result.bytes

        return work

    runs = {"read": read, "one": deep(1), "two": deep(2)}
    for state in ("cold", "warm"):
        costs: dict[str, list[Cost]] = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, work in runs.items():
                for path in paths if state == "cold" else ():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                costs[name].append(forked(work))
        size = costs["read"][0].said
        for name in costs:
            best = statistics.median(c.wall for c in costs[name])
            yield told(f"verify: MB/s {state}, {name}", size / best / 1e6)
        yield told(
            f"verify --deep: speed over a plain read, {state}, 1 worker",
            ratio(costs, "read", "one", "wall"),
        )
        figure = f"verify --deep: speed over a plain read, {state}, 2 workers"
        value = ratio(costs, "read", "two", "wall")
        yield floor(figure, value, 0.5) if state == "cold" else told(figure, value)


SECTIONS = {"speed": speed, "memory": memory, "verify": verify}


def main() -> int:
    """Run sections, print their figures, keep them on request."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--only", choices=SECTIONS)
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--records", type=int, default=0, help="of the memory section")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--scratch", type=Path, help="where to write, instead of the system's")
    parser.add_argument("--out", type=Path, help="append the figures, with the machine's name")
    args = parser.parse_args()
    args.images = args.images or (20_000 if args.quick else 200_000)
    args.records = args.records or (100_000 if args.quick else 2_000_000)
    args.rounds = args.rounds or (2 if args.quick else 5)
    sys.path.insert(0, str(ROOT))
    import webdataset  # noqa: F401

    import glint.pipelines.dataset.shard
    import glint.shards.verify  # noqa: F401

    holds = True
    where = {
        **machine("numpy", "pyarrow", "webdataset"),
        "images": args.images,
        "rounds": args.rounds,
    }
    with tempfile.TemporaryDirectory(dir=args.scratch) as temporary:
        for name, section in SECTIONS.items():
            if args.only not in (None, name):
                continue
            for figure in section(args, Path(temporary)):
                print(json.dumps(figure), flush=True)
                holds &= figure["holds"] is not False
                if args.out:
                    with args.out.open("a") as file:
                        file.write(json.dumps({**figure, **where}) + "\n")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
