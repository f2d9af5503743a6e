"""Do vanilla readers see what glint wrote? Hugging Face `datasets`, webdataset, DALI's `.idx`.

    python tests/peers/read_with_datasets.py DATASET [DATASET ...]

Imports nothing of glint: runs in an environment of its own that has `datasets`, `webdataset` and
`pillow`. Holds every key, label, image byte and JSON field against samples.parquet and prints one
line for each reader and dataset; exit code 1 where anything differs. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import xxhash

IMAGES = ("jpg", "png", "webp")
# key, label, image bytes, JSON fields or None
Sample = tuple[str, int, bytes, dict[str, Any] | None]


def tars(root: Path) -> list[str]:
    return [str(path) for path in sorted((root / "data").glob("*.tar"))]


def image_of(sample: dict[str, Any]) -> Any:
    (found,) = (sample[name] for name in IMAGES if sample.get(name) is not None)
    return found


def named(key: str, label: int | None) -> tuple[str, int]:
    """With one member a sample, KEY_LABEL is the name and there is no label besides."""
    stem, _, tail = key.partition("_")
    return stem, int(tail) if label is None else int(label)


def by_datasets(root: Path, cache: str) -> Iterator[Sample]:
    import datasets

    data = datasets.load_dataset(
        "webdataset", data_files={"train": tars(root)}, split="train", cache_dir=cache
    )
    for name in IMAGES:
        if name in data.column_names:
            data = data.cast_column(name, datasets.Image(decode=False))
    for sample in data:
        key, label = named(sample["__key__"], sample.get("cls"))
        yield key, label, image_of(sample)["bytes"], sample.get("json")


def by_webdataset(root: Path, cache: str) -> Iterator[Sample]:
    import webdataset

    for sample in webdataset.WebDataset(tars(root), shardshuffle=False, empty_check=False):
        key, label = named(sample["__key__"], sample.get("cls"))
        fields = json.loads(sample["json"]) if "json" in sample else None
        yield key, label, image_of(sample), fields


def by_idx(root: Path, cache: str) -> Iterator[Sample]:
    """Read as DALI does: each member at the place and of the size that the `.idx` says."""
    for tar in tars(root):
        first, *lines = Path(tar).with_suffix(".idx").read_text().splitlines()
        assert first == f"v1.2 {len(lines)}", first
        with open(tar, "rb") as file:
            for line in lines:
                words = line.split(" ")
                sample: dict[str, Any] = {}
                for suffix, at, size, name in zip(*(words[i::4] for i in range(4)), strict=True):
                    file.seek(int(at))
                    sample[suffix] = file.read(int(size))
                    stem, _, ending = name.partition(".")
                    assert ending == suffix, name
                key, label = named(stem, sample.get("cls"))
                fields = json.loads(sample["json"]) if "json" in sample else None
                yield key, label, image_of(sample), fields


READERS = {"datasets": by_datasets, "webdataset": by_webdataset, "idx": by_idx}


def compare(root: Path, found: Iterator[Sample]) -> tuple[int, list[str]]:
    """Count the samples and say what differs from the index."""
    rows, wrong, count = pq.read_table(root / "samples.parquet").to_pylist(), [], 0
    for count, (key, label, image, fields) in enumerate(found, 1):
        if count > len(rows):
            continue
        row = rows[count - 1]
        expected = (row["key"], row["label"], row["size"], row["digest"])
        if (key, label, len(image), xxhash.xxh3_128_digest(image)) != expected:
            wrong.append(f"{key}: {label}, {len(image)} bytes; expected {expected[:3]}")
        if fields is not None:
            same = {name: row[name] for name in fields}
            if fields != same:
                wrong.append(f"{key}: {fields}; expected {same}")
    if count != len(rows):
        wrong.append(f"{count} samples; expected {len(rows)}")
    return count, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=Path, nargs="+")
    parser.add_argument("--reader", choices=READERS, action="append")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    failed = False
    for root in args.dataset:
        for name in args.reader or READERS:
            with tempfile.TemporaryDirectory() as cache:
                count, wrong = compare(root, READERS[name](root, cache))
            failed |= bool(wrong)
            print(f"{'FAIL' if wrong else 'pass'} {name}: {count} samples of {root.name}")
            for line in wrong[:5]:
                print(f"     {line}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
