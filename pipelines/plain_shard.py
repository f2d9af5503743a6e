"""Sharding in one readable program: one process, no resume, no CLI, glint's public parts only.

    python pipelines/plain_shard.py SRC OUT

`glint shard SRC OUT` writes the same shards and the same tables, to the bit: a test runs both.
Read this to know what a dataset is; read glint/pipelines/dataset/shard.py to see how it is made so
that a kill, a full disk or a second process cannot spoil it.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from glint import schemas
from glint.files import parquet
from glint.shards import plan
from glint.shards.image import Rejected, look
from glint.shards.sources import open_source
from glint.shards.tar import Tar


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("src", help="a .rec file, its folder, or folders of images")
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples-per-shard", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    # A source is a list of records: bytes, a dense label (-1 = none), and where it came from.
    source = open_source(args.src)
    print("recognised", source.describe())
    names = source.classes.cast(pa.large_string()).to_pylist()
    people = [name or None for name in source.names.cast(pa.large_string()).to_pylist()]

    # All records in one shuffled order; shard i takes the i-th run of them. Keys are positions.
    order = plan.order(source.n, args.seed)
    samples: list[tuple[object, ...]] = []
    bad: list[dict[str, object]] = []
    (args.out / "data").mkdir(parents=True)
    for shard, (start, stop) in enumerate(plan.spans(source.n, args.samples_per_shard)):
        lines = []
        with open(args.out / "data" / plan.shard_name(shard), "wb") as file:
            tar = Tar(file)
            for key in range(start, stop):
                record = int(order[key])
                label = int(source.label[record])
                where = source.name(record)
                data = b""
                try:
                    data = source.read(record)
                    suffix, width, height = look(data)
                    if label < 0:
                        raise Rejected("label-not-integer")
                except Rejected as why:  # never dropped in silence
                    bad.append(
                        {
                            "source": where,
                            "offset": source.offset(record),
                            "source_label": names[label] if label >= 0 else None,
                            "reason": why.reason,
                            "note": why.note,
                            "size": len(data),
                            "sha256": hashlib.sha256(data).hexdigest(),
                            "head": data[:64],
                        }
                    )
                    continue
                name, text = f"{key:09d}", b"%d" % label
                # The image's bytes, untouched.
                offset, at = tar.add((f"{name}.{suffix}", data), (f"{name}.cls", text))
                lines.append(
                    f"{suffix} {offset} {len(data)} {name}.{suffix} "
                    f"cls {at} {len(text)} {name}.cls\n"
                )
                digest = xxhash.xxh3_128_digest(data)
                samples.append(
                    (
                        name,
                        label,
                        names[label],
                        shard,
                        offset,
                        len(data),
                        digest,
                        where,
                        width,
                        height,
                    )
                )
            tar.close()
        # What DALI wants beside a tar.
        idx = (args.out / "data" / plan.shard_name(shard)).with_suffix(".idx")
        idx.write_text(f"v1.2 {len(lines)}\n" + "".join(lines))

    # The index: a reader needs no tar module, and sees at once when a byte has changed.
    columns = list(zip(*samples)) or [()] * len(schemas.SAMPLES)
    index = pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schemas.SAMPLES)],
        schema=schemas.SAMPLES,
    )
    parquet.write(args.out / "samples.parquet", index)
    parquet.write(
        args.out / "quarantine.parquet", pa.Table.from_pylist(bad, schema=schemas.QUARANTINE)
    )
    count = np.bincount(index.column("label").to_numpy(), minlength=len(names))
    parquet.write(
        args.out / "identities.parquet",
        pa.table(
            [np.arange(len(names)), names, pa.array(people, pa.string()), count],
            schema=schemas.IDENTITIES,
        ),
    )
    print(f"read {source.n} = {len(samples)} written + {len(bad)} quarantined")


if __name__ == "__main__":
    main()
