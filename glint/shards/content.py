"""What a dataset holds, whatever its shards: one digest of all samples in order."""

# n samples

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa

from glint import schemas
from glint.files import parquet
from glint.shards.dataset import Dataset

NUMBERS = ("label", "size", "width", "height")
TEXTS = ("key", "source_label", "source")
COLUMNS = (*TEXTS, *NUMBERS, "digest")


def content(dataset: Dataset) -> str:
    """Return "sha256:..." over key, labels, source, size and image digest of every sample.

    Two datasets with equal content hold the same samples under the same keys and labels, however
    they are cut into shards. One pass over the index. Raises InputError GL0301.
    """
    hashers = {name: hashlib.sha256() for name in COLUMNS}
    lengths = {name: hashlib.sha256() for name in TEXTS}
    for table in parquet.groups(dataset.root / "samples.parquet", schemas.SAMPLES, columns=COLUMNS):
        for name in COLUMNS:
            for chunk in table.column(name).chunks:
                _feed(chunk, name, hashers[name], lengths.get(name))
    whole = hashlib.sha256(str(dataset.n).encode())
    for name in COLUMNS:
        whole.update(hashers[name].digest())
        if name in lengths:
            whole.update(lengths[name].digest())
    return "sha256:" + whole.hexdigest()


def _feed(chunk: pa.Array, name: str, hasher: Any, lengths: Any) -> None:
    if not len(chunk):
        return
    if name == "digest":
        hasher.update(chunk.buffers()[1][16 * chunk.offset : 16 * (chunk.offset + len(chunk))])
    elif lengths is None:
        hasher.update(chunk.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    else:
        end_n = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset :][: len(chunk) + 1]
        lengths.update(np.diff(end_n).astype("<i8").tobytes())
        hasher.update((chunk.buffers()[2] or b"")[int(end_n[0]) : int(end_n[-1])])
