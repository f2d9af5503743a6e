"""Mutated files by the million: each ends in a named error or is read, in bounded memory.

    python tests/faults/fuzz.py --kind rec --count 1000000 [--seed 0] [--seconds 60]

prints one JSON line and leaves with 1 where anything else happened. Case i depends on (kind, seed,
i) alone: `--first i --count 1` plays it again. The cases run in a child process, so that a signal
is seen and named.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import mmap
import os
import pickle
import random
import resource
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glint.errors import GlintError
from glint.shards import recordio
from glint.shards.image import Rejected, look
from glint.shards.sources import open_source

ROOT = Path(__file__).parents[2]
RSS, ALLOCATION = 64 << 20, 16 << 20  # bytes: growth in all, and at once where the input is less
ROOM = 6 << 30  # address space that the child may take beyond what it begins with
WORDS = (
    0,
    1,
    3,
    4,
    24,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    (1 << 29) - 1,
    1 << 29,
    3 << 29,
    recordio.MAGIC,
    0x7F800000,
    0x7FC00000,
    0xFFFF0000,
    16 << 20,
)
OCTAL = (
    b"00000000000\0",
    b"77777777777\0",
    b"\x80" + b"\0" * 7 + b"\x7f\xff\xff\xff",
    b"\xff" * 12,
    b"            ",
    b"00000001000\0",
    b"-0000000001\0",
)
TEXT = (
    b"\t",
    b"\n",
    b"\r\n",
    b" ",
    b"-1",
    b"99999999999999999999",
    b"9223372036854775807",
    b"\xff",
    b"\0",
    b"\xef\xbb\xbf",
    b"1e9",
    b"nan",
    b"inf",
    b"'''",
    b'"',
    b"[",
    b"]",
    b"{",
    b"}",
    b"=",
    b"[[",
    b"true",
    b"0x10",
    b"#",
    b"\\u0000",
    b"batch",
    b"path",
    b"." * 50,
)
JPEG = b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x70\x00\x70\x03" + b"\x01\x02" * 20 + b"\xff\xd9"
Chance = random.Random


@dataclass(frozen=True)
class Kind:
    """How files of a kind begin, where one lies, what else a mutation may do, how one is read."""

    seeds: Callable[[Path], list[bytes]]
    name: str
    read: Callable[[Path, int], str]
    harm: Callable[[bytearray, Chance], None]


def _read_source(path: Path, case: int) -> str:
    rec = path.suffix in (".rec", ".idx")
    source = open_source(path.with_suffix(".rec") if rec else path, resync=rec and case % 2 == 1)
    bad = 0
    for i in range(source.n):
        try:
            look(source.read(i))
        except Rejected:
            bad += 1
        source.name(i), source.offset(i)
    if source.label.max(initial=-1) >= len(source.classes):
        raise AssertionError("a label of no class")
    if case % 16 == 0:
        source.fingerprint(), source.describe(), source.bytes()
    return "read in part" if bad else "read"


def _read_bin(path: Path, case: int) -> str:
    from glint.evals.packs import read_bin

    pairs = read_bin(path)
    if len(pairs.images) != 2 * len(pairs.same):
        raise AssertionError("pairs without images")
    return "read"


def _read_recipe(path: Path, case: int) -> str:
    from glint.pipelines import recipe as road
    from glint.recipes import load
    from glint.train import recipe as training

    tables = path.read_bytes()
    is_road = b"[shard]" in tables or b"[align]" in tables
    load.load(path, road.Recipe if is_road else training.Recipe)
    return "read"


def _records(folder: Path) -> list[bytes]:
    """Give three files: plain, InsightFace's layout, and one whose records have parts."""
    made = []
    for layout in range(3):
        path = folder / f"{layout}.rec"
        with recordio.Writer(path, path.with_suffix(".idx")) as writer:
            for key in range(1, 7):
                image = JPEG + (recordio.MAGIC_BYTES * 2 if layout == 2 else b"") + b"\xff\xd9"
                label: Any = [key % 3, 1] if layout == 2 else float(key % 3)
                writer.write(key, recordio.pack(label, key, 0, image))
            if layout == 1:
                for key, a in ((7, 1), (8, 4)):
                    writer.write(key, recordio.pack([a, a + 3], key, 0, b""))
                writer.write(0, recordio.pack([7, 9], 0, 1, b""))
        made.append(path.read_bytes())
    return made


def _idx(folder: Path) -> list[bytes]:
    _records(folder)
    (folder / "case.rec").write_bytes((folder / "1.rec").read_bytes())
    return [(folder / "1.idx").read_bytes()]


def _tars(folder: Path) -> list[bytes]:
    made = []
    for k, format in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        for names in (
            ["a/1.jpg", "b/2.jpg", "b/" + "n" * 120 + ".jpg"],
            ["1.jpg", "1.cls", "2.jpg", "2.json"],
        ):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w", format=format) as archive:
                for name in names:
                    data = {"cls": b"3", "json": b'{"label": 4}'}.get(name[-3:].lstrip("."), JPEG)
                    info = tarfile.TarInfo(name if k or len(name) < 100 else "b/3.jpg")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
            made.append(file.getvalue()[: len(file.getvalue()) // 10240 * 10240])
            made[-1] = made[-1].rstrip(b"\0") + bytes(1024 + -len(made[-1].rstrip(b"\0")) % 512)
    return made


def _zips(folder: Path) -> list[bytes]:
    made = []
    for method in (0, 8):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            for name in ("a/1.jpg", "b/2.jpg", "c/3.jpg"):
                archive.writestr(name, JPEG)
        made.append(file.getvalue())
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w") as archive,
        archive.open("a/1.jpg", "w", force_zip64=True) as member,
    ):
        member.write(JPEG)
    return [*made, file.getvalue()]


def _tables(folder: Path) -> list[bytes]:
    made = []
    for packed in ("none", "snappy", "zstd"):
        for images in ([JPEG] * 4, [{"bytes": JPEG, "path": "x"}] * 4):
            file = io.BytesIO()
            pq.write_table(
                pa.table({"image": images, "label": [3, 1, 1, 2]}),
                file,
                compression=packed,
                row_group_size=2,
                write_page_checksum=packed == "zstd",
            )
            made.append(file.getvalue())
    return made


def _bins(folder: Path) -> list[bytes]:
    images = [JPEG + bytes([i]) for i in range(4)]
    arrays = [np.frombuffer(image, np.uint8) for image in images]
    return [
        pickle.dumps((some, [True, False]), protocol)
        for some in (images, arrays)
        for protocol in range(6)
    ]


def _recipes(folder: Path) -> list[bytes]:
    paths = sorted((ROOT / "train").glob("*.toml"))[::6] + sorted(
        (ROOT / "pipelines").glob("*.toml")
    )
    return [path.read_bytes() for path in paths]


def _words(data: bytearray, chance: Chance) -> None:
    at = chance.randrange(max(len(data) - 4, 1)) // 4 * 4
    data[at : at + 4] = struct.pack("<I", chance.choice(WORDS))


def _text(data: bytearray, chance: Chance) -> None:
    at = chance.randrange(len(data) + 1)
    data[at : at + chance.choice((0, 0, 1, 3))] = chance.choice(TEXT) * chance.choice((1, 1, 1, 40))


def _header(data: bytearray, chance: Chance) -> None:
    """Change a field of a tar header, and mostly make its checksum right again."""
    at = chance.randrange(max(len(data) // 512, 1)) * 512
    if len(data) < at + 512:
        return
    field = chance.choice(("size", "type", "name", "byte", "magic"))
    if field == "size":
        data[at + 124 : at + 136] = chance.choice(OCTAL)
    elif field == "type":
        data[at + 156 : at + 157] = chance.choice([b"%c" % c for c in b"01234567LKxgSVDM\0\xff"])
    elif field == "name":
        name = chance.choice(
            (
                b"../x.jpg",
                b"/x.jpg",
                b"a/../../b",
                b"",
                b"a\n/b.jpg",
                b"\xff/b.jpg",
                b"1.jpg",
                b"1.cls",
                b".jpg",
                b"././@LongLink",
            )
        )
        data[at : at + 100] = name.ljust(100, b"\0")
    elif field == "magic":
        data[at + 257 : at + 265] = chance.choice((b"ustar\00000", b"ustar  \0", bytes(8)))
    else:
        data[at + chance.randrange(512)] = chance.randrange(256)
    if chance.random() < 0.8:
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % (sum(data[at : at + 512]) & 0o777777)


def mutated(seeds: list[bytes], chance: Chance, harm: Callable[[bytearray, Chance], None]) -> bytes:
    """Return one seed with one to four things done to it."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 4))):
        at, way = chance.randrange(len(data) + 1), chance.randrange(9)
        length = chance.choice((1, 2, 4, 16, 64, 512))
        if way == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif way == 1:
            data[at : at + length] = chance.randbytes(length)
        elif way == 2:
            del data[at : at + length]
        elif way == 3:
            data[at:at] = data[at : at + length]
        elif way == 4:
            del data[at:]
        elif way == 5:
            other = chance.choice(seeds)
            data[at:] = other[chance.randrange(len(other) + 1) :]
        else:
            harm(data, chance)
    return bytes(data)


KINDS = {
    "rec": Kind(_records, "case.rec", _read_source, _words),
    "idx": Kind(_idx, "case.idx", _read_source, _text),
    "tar": Kind(_tars, "case.tar", _read_source, _header),
    "zip": Kind(_zips, "case.zip", _read_source, _words),
    "parquet": Kind(_tables, "case.parquet", _read_source, _words),
    "bin": Kind(_bins, "case.bin", _read_bin, _words),
    "toml": Kind(_recipes, "case.toml", _read_recipe, _text),
}


def _pages(which: int) -> int:
    """Return bytes of address space (0) or of memory in use (1)."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[which]) * resource.getpagesize()


def fuzz(
    kind: str,
    count: int,
    seed: int = 0,
    first: int = 0,
    seconds: float = float("inf"),
    at: Callable[[int], None] = lambda case: None,
) -> dict[str, Any]:
    """Run cases first.. of a kind and return what happened; `at` is told each case as it begins."""
    how = KINDS[kind]
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as place:
        folder = Path(place)
        seeds = how.seeds(folder)
        path = folder / how.name
        for good in seeds:  # warm, and proof that the seeds are no junk
            path.write_bytes(good)
            how.read(path, 0)
        gc.collect()  # what earlier work left must not hide what grows here
        start, begin, most, peak, case = _pages(1), time.monotonic(), 0, 0, first
        arrow = pa.default_memory_pool().max_memory()
        tracemalloc.start()
        try:
            for case in range(first, first + count):
                at(case)
                data = mutated(seeds, Chance(f"{kind}/{seed}/{case}"), how.harm)
                path.write_bytes(data)
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                try:
                    outcomes[how.read(path, case)] += 1
                except GlintError as error:
                    outcomes[error.code] += 1
                except Exception:
                    outcomes["other"] += 1
                    failures.append(f"case {case}: {traceback.format_exc(limit=-3)}")
                used = tracemalloc.get_traced_memory()[1] - before
                peak = max(peak, used)
                if used > max(len(data), ALLOCATION):
                    failures.append(f"case {case}: {used} bytes at once for {len(data)}")
                if case % 500 == 0:
                    most = max(most, _pages(1) - start)
                    if time.monotonic() - begin > seconds:
                        break
        finally:
            tracemalloc.stop()
        most = max(most, _pages(1) - start)
    grown = pa.default_memory_pool().max_memory()
    if grown > max(arrow, ALLOCATION):
        failures.append(f"Arrow took {grown} bytes at once")
    if most > RSS:
        failures.append(f"the process grew by {most} bytes")
    done = case - first + 1
    wall = time.monotonic() - begin
    return {
        "kind": kind,
        "seed": seed,
        "first": first,
        "count": done,
        "seconds": round(wall, 1),
        "per_second": round(done / wall),
        "rss_growth_mib": round(most / 2**20, 1),
        "peak_traced_mib": round(peak / 2**20, 2),
        "peak_arrow_mib": round(grown / 2**20, 2),
        "outcomes": dict(sorted(outcomes.items())),
        "failures": len(failures),
        "shown": failures[:5],
        "ok": not failures,
    }


def apart(kind: str, count: int, seed: int, first: int, seconds: float) -> dict[str, Any]:
    """Run `fuzz` in a child process of bounded address space; a signal becomes a failure."""
    page = mmap.mmap(-1, 8)
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reads)
            limit = _pages(0) + ROOM
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

            def note(case: int) -> None:
                page[:] = struct.pack("<q", case)

            result = fuzz(kind, count, seed, first, seconds, note)
            with os.fdopen(writes, "w") as pipe:
                json.dump(result, pipe)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    if status == 0 and text:
        return {**json.loads(text), "signals": 0}
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return {
        "kind": kind,
        "seed": seed,
        "first": first,
        "ok": False,
        "signals": int(number > 0),
        "signal": number,
        "case": struct.unpack("<q", page[:])[0],
    }


def main() -> None:
    """Read the options, run, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kind", choices=sorted(KINDS), required=True)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    given = parser.parse_args()
    result = apart(given.kind, given.count, given.seed, given.first, given.seconds)
    print(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
