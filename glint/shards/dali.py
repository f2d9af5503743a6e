"""The index file that NVIDIA DALI reads beside each tar: where the members of every sample lie.

A first line `v1.2 SAMPLES`, then one line a sample: `suffix offset size name` of each member in
turn. The format is that of DALI's own tool, wds2idx; offsets are those of the members' bytes.
"""

# n samples

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from glint.shards import commit
from glint.shards.blocks import BLOCK, Ints

VERSION = "v1.2"
_ROWS = 1 << 20  # rows made into text at once: an Arrow string column ends at 2 GiB


def beside(name: str) -> str:
    """Return the name of a tar's index."""
    return name.removesuffix(".tar") + ".idx"


def text(
    rows: pa.Table,
    suffix_n: npt.NDArray[np.str_],
    labels: bool = True,
    json_size_n: Ints | None = None,
) -> bytes:
    """Return the index of a shard with these rows of samples.parquet.

    suffix_n: of the images. labels: whether a sample has KEY.cls; else its label is in its name.
    json_size_n: bytes of KEY.json, where samples have it.
    """
    head = f"{VERSION} {rows.num_rows}\n".encode()
    parts = []
    for start in range(0, rows.num_rows, _ROWS):
        piece = slice(start, start + _ROWS)
        json_m = None if json_size_n is None else json_size_n[piece]
        parts.append(_lines(rows.slice(start, _ROWS), suffix_n[piece], labels, json_m))
    return b"".join([head, *parts])


def _lines(
    rows: pa.Table, suffix_m: npt.NDArray[np.str_], labels: bool, json_m: Ints | None
) -> bytes:
    key, label = (rows.column(c).combine_chunks().cast(pa.string()) for c in ("key", "label"))
    at_m, size_m = (rows.column(c).to_numpy().astype(np.int64) for c in ("offset", "size"))
    stem = [key] if labels else [key, "_", label]
    told = [_told(at_m), " ", _told(size_m), " ", *stem]
    parts: list[Any]
    if (suffix_m == suffix_m[0]).all():
        parts = [f"{suffix_m[0]} ", *told, f".{suffix_m[0]}"]
    else:
        suffix = pa.array(suffix_m.tolist(), pa.string())
        parts = [suffix, " ", *told, ".", suffix]
    at_m = at_m + _padded(size_m) + BLOCK
    if labels:
        length_m = pc.binary_length(label).to_numpy(zero_copy_only=False).astype(np.int64)
        parts += [" cls ", _told(at_m), " ", _told(length_m), " ", key, ".cls"]
        at_m = at_m + _padded(length_m) + BLOCK
    if json_m is not None:
        parts += [" json ", _told(at_m), " ", _told(json_m), " ", key, ".json"]
    line = pc.binary_join_element_wise(*parts, "\n", "")
    if isinstance(line, pa.ChunkedArray):
        line = line.combine_chunks()
    end_m = np.frombuffer(line.buffers()[1], np.int32)[line.offset :][: len(line) + 1]
    return bytes(line.buffers()[2])[end_m[0] : end_m[-1]]


def _told(number_m: Ints) -> pa.Array:
    return pa.array(number_m).cast(pa.string())


def _padded(size_m: Ints) -> Ints:
    return size_m + -size_m % BLOCK


def write(folder: Path, name: str, index: bytes) -> str:
    """Write the index of the tar `name` beside it; return its SHA-256 for the manifest."""
    commit.write_bytes(folder / beside(name), index)
    return hashlib.sha256(index).hexdigest()


def damage(folder: Path, entry: dict[str, Any]) -> tuple[str, str, str] | None:
    """Compare a shard's index in `folder` with the manifest's (or the journal's) entry of it.

    Returns what is wrong, expected, found; None where all is well or none was written.
    """
    if "idx" not in entry:
        return None
    path, expected = folder / beside(entry["name"]), f"sha256 {entry['idx']}"
    try:
        with path.open("rb") as file:
            found = f"sha256 {commit.sha256(file)}"
    except FileNotFoundError:
        return "the index for DALI is missing", expected, "no file"
    except OSError as error:
        return f"cannot be read: {error.strerror}", expected, "an error"
    return None if found == expected else ("the index for DALI has changed", expected, found)
