"""One shard of a plan: written, read back, and only then given its name."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from glint.files import atomic, parquet
from glint.files.strings import load_names, text
from glint.pipelines.dataset import photos
from glint.pipelines.dataset.plan import SAMPLES, Plan
from glint.shards import dali, image, pixels
from glint.shards.image import Rejected
from glint.shards.plan import key_name, shard_name
from glint.shards.sources import reopen
from glint.shards.sources.samples import Samples
from glint.shards.sources.source import Source
from glint.shards.tar import Shard

# Only these columns repeat enough for a dictionary.
ROW_OPTIONS = {**parquet.OPTIONS, "use_dictionary": ["source_label"]}


def write_shard(plan: Plan, shard: int) -> dict[str, Any]:
    """Write one shard and its rows; return its entry of the journal.

    A pure function of the plan: called again, by whomever, it writes the same bytes. The shard
    gets its name after its bytes were read again from the file and every image was held against
    the digest that was taken when it was read from its source. Raises what the source raises,
    ResourceError GL0007 where other bytes are read back, GL0901.
    """
    start, stop = plan.spans()[shard]
    path = Path(plan.out) / "data" / shard_name(shard)
    notes: Counter[str] = Counter()
    sha256 = ""

    def read_back(made: Path) -> None:
        nonlocal sha256
        sha256 = out.read_back(made)

    with atomic.replacing(path, read_back) as file:
        options = plan.options
        out = Shard(file, shard, with_json=options.with_json, members=options.members)
        if plan.kind == SAMPLES:
            table = _copy(out, Samples(plan.folder, start, stop), start)
        else:
            source = reopen(plan.kind, plan.path, plan.folder, start, stop)
            if isinstance(options, photos.Align):
                table = photos.pack(out, source, plan, start, notes)
            else:
                _pack(out, source, plan, start, notes)
                table = out.samples()
        out.close()
        bad = out.quarantine()
        parts = {f"{shard:06d}.parquet": table, f"{shard:06d}.bad.parquet": bad}
        sums = {
            name: _part(plan.parts / name, rows)
            for name, rows in parts.items()
            if rows is table or rows.num_rows
        }
        idx = dali.write(path.parent, path.name, out.idx())
    return {
        "shard": shard,
        "name": path.name,
        "samples": table.num_rows,
        "bytes": out.tar.size,
        "sha256": sha256,
        "idx": idx,
        "content": out.content(table),
        "bad": dict(Counter(bad.column("reason").to_pylist())),
        "notes": dict(+notes),
        **({"further": table.num_rows + bad.num_rows - (stop - start)} if options.each > 1 else {}),
        "parts": sums,
    }


def _part(path: Path, rows: pa.Table) -> str:
    """Write rows of a shard for those who join them; return the digest of the file."""
    with atomic.read_back(path) as file:
        pq.write_table(rows, file, **{**ROW_OPTIONS, "compression": "none"})
    return file.digest


def _pack(out: Shard, source: Source, plan: Plan, start: int, notes: Counter[str]) -> None:
    """Write the records of a source under their keys, or quarantine them with their reasons."""
    options = plan.options
    size = image.size_of(options.size)
    rule = image.Policy(options.formats, size, options.on_size, options.on_exif)
    said_C = _classes(plan.folder)
    label_n = source.label
    take_n = np.maximum(label_n, 0)
    said_n: list[str] = said_C.take(pa.array(take_n)).to_pylist() if len(said_C) else []
    for i, label in enumerate(label_n.tolist()):
        key, where, data = start + i, source.name(i), b""
        said = said_n[i] if label >= 0 else None
        try:
            data = source.read(i)
            if options.to_jpeg:
                turned = options.on_exif == image.KEEP
                data = pixels.as_jpeg(data, options.to_jpeg, notes, turned)
            digest = xxhash.xxh3_128_digest(data)
            seen = rule.look(data, notes)
            if options.decode:
                pixels.require_picture(data, notes)
            if options.unlabelled:
                label, said = key, key_name(key)
            if label < 0:
                raise Rejected("label-not-integer")
        except Rejected as why:
            out.reject(why, data, said, where, source.offset(i))
        else:
            out.add(key, data, digest, seen, label, str(said), where)


@lru_cache(maxsize=1)
def _classes(folder: Path) -> pa.StringArray:
    """Return the labels as the source writes them."""
    return text(load_names(folder, "classes"))


def _copy(out: Shard, source: Samples, start: int) -> pa.Table:
    """Write samples of datasets under their keys; return their rows with their provenance."""
    taken = np.flatnonzero(source.label >= 0).tolist()
    label_n = source.label.tolist()
    for i in taken:
        data = source.read(i)  # held against the digest of the dataset's index
        digest = xxhash.xxh3_128_digest(data)
        said, where = source.text["source_label"][i], source.text["source"][i]
        out.add(start + i, data, digest, source.seen(i, data), label_n[i], said, where)
    table = out.samples()
    for name in source.provenance:
        values = [source.text[name][i] for i in taken]
        table = table.append_column(name, pa.array(values, pa.string()))
    return table


def forget() -> None:
    """Let go of what this process holds of a plan."""
    _classes.cache_clear()
    photos.forget()
