"""Samples of datasets as a source: what a rewrite reads, image bytes checked on the way."""

# n positions of the new dataset, N samples of all datasets together, k bytes of a digest

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glint import schemas
from glint.errors import InputError
from glint.files import atomic
from glint.files.strings import load_names, save_names
from glint.shards import image
from glint.shards.dataset import Dataset, open_files, open_shard, read_sample
from glint.shards.sources.source import PIECE, Ints, load_rows, write_rows

ROW = np.dtype(
    [
        ("label", np.int64),  # of the new dataset; -1 for a gap
        ("shard", np.int32),  # number of the file in paths.json
        ("offset", np.int64),
        ("size", np.int32),
        ("width", np.int32),
        ("height", np.int32),
        ("digest", "V16"),
    ]
)
TEXTS = ("source", "source_label")


class Samples:
    """Positions [start, stop) of a rewrite: each a sample of a dataset, or a gap."""

    def __init__(self, folder: Path, start: int, stop: int) -> None:
        stored = atomic.read_json(folder / "paths.json", "GL0006")
        self.paths = [str(path) for path in stored["paths"]]
        self._row = load_rows(folder, start, stop)
        self.label: Ints = self._row["label"].copy()
        self.provenance = tuple(schemas.PROVENANCE.names if stored["provenance"] else ())
        self.text: dict[str, list[str]] = {
            name: load_names(folder, name).slice(start, stop - start).to_pylist()
            for name in (*TEXTS, *self.provenance)
        }

    @cached_property
    def _open(self) -> Callable[[int], IO[bytes]]:
        return lru_cache(open_files())(lambda shard: open_shard(self.paths[shard]))

    def read(self, i: int) -> bytes:
        """Return the image bytes of a sample, checked. Raises InputError GL0302, GL0303, GL0903."""
        row = self._row[i]
        shard, offset = int(row["shard"]), int(row["offset"])
        path = self.paths[shard]
        try:
            file = self._open(shard)
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
            raise InputError("GL0302", what, where=path) from None
        return read_sample(
            file.fileno(),
            offset,
            int(row["size"]),
            row["digest"].tobytes(),
            lambda: f"{path} @ 0x{offset:x}",
            lambda: (
                f"glint verify {Path(path).parents[1]} --deep names what is damaged; "
                "make that dataset again from its source"
            ),
        )

    def seen(self, i: int, data: bytes) -> tuple[str, int, int]:
        """Return format, width and height: as the dataset's index has them."""
        row = self._row[i]
        return image.kind(data) or "bin", int(row["width"]), int(row["height"])


def save(
    folder: Path,
    datasets: Sequence[Dataset],
    base: Sequence[int],
    order_n: Ints,
    origins: Sequence[tuple[pa.Array, pa.Array]] | None,
    clean: Callable[[pa.Array], pa.Array] = lambda texts: texts,
) -> None:
    """Write the positions of a rewrite.

    order_n: position -> row of the datasets laid end to end, -1 for a gap. base: what is added to
    the labels of each dataset. origins: for each dataset, the columns `dataset` and `dataset_key`.
    clean: what becomes of the texts that say where samples came from. Raises InputError GL0301 for
    a damaged index.
    """
    row_N = np.empty(sum(dataset.n for dataset in datasets), ROW)
    paths: list[str] = []
    at = 0
    for dataset, more in zip(datasets, base):
        _fill(row_N[at : at + dataset.n], dataset, more)
        row_N["shard"][at : at + dataset.n] += len(paths)
        paths += [str(dataset.shard_path(i).absolute()) for i in range(len(dataset.shards))]
        at += dataset.n
    none = np.zeros(1, ROW)
    none["label"] = -1

    def dealt() -> Any:
        for start in range(0, len(order_n), PIECE):
            order_m = order_n[start : start + PIECE]
            yield np.where(order_m < 0, none, row_N[order_m]) if len(row_N) else none[order_m * 0]

    write_rows(folder, dealt(), ROW, len(order_n))
    take = pa.array(order_n, mask=order_n < 0)
    for name in TEXTS:
        texts = joined(d.column(name) for d in datasets).take(take)
        save_names(folder, name, clean(texts) if name == "source" else texts)
    for name, columns in zip(schemas.PROVENANCE.names, zip(*origins) if origins else ()):
        save_names(folder, name, joined(columns).take(take))
    atomic.write_json(folder / "paths.json", {"paths": paths, "provenance": origins is not None})


def _fill(row_n: npt.NDArray[Any], dataset: Dataset, base: int) -> None:
    row_n["label"], row_n["shard"] = dataset.label + base, dataset.shard  # whose range is checked
    for name in ("offset", "size", "width", "height"):
        row_n[name] = dataset.column(name).to_numpy()
    row_n["digest"] = np.ascontiguousarray(dataset.digests).view("V16").ravel()


def joined(columns: Iterable[Any]) -> pa.LargeStringArray:
    """Return columns of strings laid end to end."""
    chunks = [chunk for column in columns for chunk in getattr(column, "chunks", [column])]
    large = [chunk.cast(pa.large_string()) for chunk in chunks]
    return pa.concat_arrays([pa.array([], pa.large_string()), *large])
