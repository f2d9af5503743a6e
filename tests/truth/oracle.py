"""What a dataset on disk holds, by tarfile and hashlib alone.

pyarrow reads keys, labels and names from the tables, to be held against the members of the tars;
no checksum, offset or count of glint's decides whether an image is right.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
from sources import Sample, sha

TREE = Path(os.environ.get("GLINT_TREE", Path(__file__).parents[2]))  # whose glint is asked
FORMS = {"both": (), "json": ("--with-json",), "jpg": ("--members", "jpg")}  # a sample's members
# What a finished dataset consists of, beside its shards.
PLACES = re.compile(
    r"(samples|identities|quarantine|merge|duplicates)\.parquet|manifest\.json"
    r"|_glint/(lock|plan\.json|tombstones\.jsonl|labels\.json)|labels/(current\.json|history\.jsonl|lock)"
    r"|labels/v\d{4}\.(masks\.)?parquet"
)
NOTHING = ("", b"", 0)


def glint(*args: object, cwd: Path, hook: Path | None = None) -> None:
    """Run `python -m glint ARGS --json`; RuntimeError where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "glint", *map(str, args), "--json"],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(p) for p in (hook, TREE) if p),
            "OMP_NUM_THREADS": "1",
            "GLINT_CACHE": str(cwd / "cache"),
        },
    )
    if done.returncode:
        raise RuntimeError(f"exit {done.returncode}: {done.stdout[-600:]}{done.stderr[-600:]}")


@dataclass
class Held:
    """What a dataset holds: key, label, SHA-256 of each image; and what is wrong with its files."""

    names: list[str]  # label -> label in the source
    rows: list[tuple[str, int, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def samples(self) -> Counter[Sample]:
        return Counter((image, self.names[label]) for _, label, image in self.rows)


def members(path: Path) -> Iterator[tuple[str, bytes, int]]:
    """Give (name, bytes, offset) of a tar's members; ValueError where one is not plain or in line.

    tarfile holds headers against their checksums, but takes a damaged one in the middle for the
    end: so what follows the last member must be zeros.
    """
    plain = (tarfile.REGTYPE, 0o644, 0, 0, 0, "", "", "", {})
    with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        raw, end = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), 0
        for m in tar:
            begin = m.offset_data
            told = (m.type, m.mode, m.uid, m.gid, m.mtime, m.uname, m.gname, m.linkname)
            if m.offset != end or begin != end + 512 or (*told, m.pax_headers) != plain:
                raise ValueError(f"{m.name} at {m.offset} is no plain member at {end}")
            yield m.name, raw[begin : begin + m.size], begin
            end = begin + -(-m.size // 512) * 512
            if raw[begin + m.size : end].strip(b"\0"):
                raise ValueError(f"no zeros behind {m.name}")
        rest = raw[end:]
        if rest.strip(b"\0") or not 1024 <= len(rest) < 1024 + 10240 or len(raw) % 10240:
            raise ValueError(f"what stands from {end} to {len(raw)} is no end of a tar")


def _shard(path: Path, held: Held, form: str) -> None:
    """Add a shard's samples; ValueError at the first member that should not be there."""
    lines, tar = [], members(path)
    for name, image, at in tar:
        key, line = name[:9], f"jpg {at} {len(image)} {name}"
        if form == "jpg":
            label = int(name[10:-4] or -1)
            wanted, found = [f"{key}_{label}.jpg"], [name]
        else:
            cls, text, at = next(tar, NOTHING)
            label = int(text)
            line += f" cls {at} {len(text)} {cls}"
            wanted, found = [f"{key}.jpg", f"{key}.cls"], [name, cls]
            if form == "json":
                about, text, at = next(tar, NOTHING)
                line += f" json {at} {len(text)} {about}"
                wanted.append(f"{key}.json")
                found.append(about)
                said = json.loads(text)
                if (said["label"], said["source_label"]) != (label, held.names[label]):
                    raise ValueError(f"{about} tells of another label than {cls}")
        if not key.isdigit() or found != wanted or not 0 <= label < len(held.names):
            raise ValueError(f"{found} of {label} where {wanted} should be")
        lines.append(line)
        held.rows.append((key, label, sha(image)))
    text = "".join(f"{line}\n" for line in [f"v1.2 {len(lines)}", *lines])
    if path.with_suffix(".idx").read_text() != text:
        raise ValueError("its .idx tells of other members")


def read(root: Path, form: str = "both") -> Held:
    """Read every byte of a dataset's shards, and hold its tables and file names against them."""
    held = Held(pq.read_table(root / "identities.parquet").column("source_label").to_pylist())
    tars = sorted(root.glob("data/*.tar"))
    for path in tars:
        try:
            _shard(path, held, form)
        except (ValueError, IndexError, KeyError, tarfile.TarError, OSError) as error:
            held.wrong.append(f"{path.name}: {error!r}")
    table = pq.read_table(root / "samples.parquet").select(["key", "label", "source_label"])
    told = Counter(zip(*(column.to_pylist() for column in table.columns)))
    if told != Counter((key, label, held.names[label]) for key, label, _ in held.rows):
        held.wrong.append("samples.parquet tells of other samples than the shards")
    if len({key for key, _, _ in held.rows}) != len(held.rows):
        held.wrong.append("a key stands twice")
    wanted = {f"data/train-{i:06d}.{end}" for i in range(len(tars)) for end in ("tar", "idx")}
    found = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    stray = [name for name in found - wanted if not PLACES.fullmatch(name)]
    held.wrong += [f"{name} is stray" for name in sorted(stray)]
    held.wrong += [f"{name} is missing" for name in sorted(wanted - found)]
    return held


def compare(held: Held, expected: Counter[Sample]) -> list[str]:
    """Return what is wrong with a dataset that should hold these samples; empty where all is right.

    The first few faults of each kind are named.
    """
    found, wrong = held.samples, held.wrong[:5]
    for what, some in (("lost", expected - found), ("not in the source", found - expected)):
        if some:
            shown = ", ".join(f"{image[:12]} of {label}" for image, label in list(some)[:3])
            wrong.append(f"{some.total()} images {what}: {shown}")
    return wrong


def quarantined(root: Path) -> Counter[str]:
    """Return the SHA-256 of what was not written."""
    return Counter(pq.read_table(root / "quarantine.parquet").column("sha256").to_pylist())
