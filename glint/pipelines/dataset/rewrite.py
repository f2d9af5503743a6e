"""Samples of datasets -> another dataset: other shard sizes, several sets in one, some left out.

The plan is one array: position -> row of the datasets laid end to end, or -1 for a gap. Positions
are keys. Image bytes are copied untouched and checked on the way; for the rest see `shard`.
"""

# n positions, N samples of all datasets together, C labels of the new dataset

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from glint import schemas
from glint.errors import InputError
from glint.files import atomic, parquet, seal, store
from glint.pipelines.dataset.output import Execution, Output, join_rows, make, write_manifest
from glint.pipelines.dataset.plan import (
    SAMPLES,
    Entries,
    Job,
    Options,
    Plan,
    Save,
    check_places,
    check_workers,
)
from glint.results import datasets as results
from glint.shards import labels, tombstones
from glint.shards.dataset import FORMAT, Dataset
from glint.shards.plan import spans
from glint.shards.sources.samples import save
from glint.shards.tar import BLOCK, MEMBERS

Ints = npt.NDArray[np.int64]


class Rewrite(Job):
    """A dataset to be made of samples of others.

    also: what else decides the bytes. facts: fields of the manifest.
    """

    kind = SAMPLES
    provenance = False  # the samples say which dataset they came from

    def __init__(
        self,
        kind: str,
        datasets: list[Dataset],
        names: list[str],
        options: Options,
        facts: dict[str, Any],
        also: dict[str, Any] | None = None,
    ) -> None:
        self.by, self.datasets, self.names, self.options = kind, datasets, names, options
        self.facts, self.also = facts, also or {}
        # What is added to the labels of each dataset.
        self.base = [0, *np.cumsum([dataset.classes for dataset in datasets])[:-1].tolist()]

    @abstractmethod
    def order(self) -> Ints:
        """Compute the plan, int64 [n]."""

    @abstractmethod
    def identities(self) -> pa.Table:
        """Return the rows of identities.parquet; their counts are set later."""

    @abstractmethod
    def quarantine(self) -> pa.Table:
        """Return the rows of quarantine.parquet."""

    @abstractmethod
    def extra(self, folder: Path) -> list[str]:
        """Write further files; return the names of those that the manifest should list."""

    def clean(self, texts: pa.Array) -> pa.Array:
        """Return what the new dataset says of where samples came from."""
        return texts

    def inputs(self) -> tuple[dict[str, Any], Save]:
        """Do what a job does. Raises InputError GL0301, GL0304."""
        options: dict[str, Any] = {
            "samples_per_shard": self.options.samples_per_shard,
            "seed": self.options.seed,
        }
        if self.options.members != MEMBERS[0]:
            options["members"] = self.options.members
        places = ("/".join(filter(None, (str(i), name))) for i, name in enumerate(self.names))
        source = {
            "kind": self.by,
            "names": self.names,
            "from": dict(zip(places, map(state, self.datasets))),
            **self.also,
        }
        return {"dataset": FORMAT, "options": options, "source": source}, self._save

    def _save(self, folder: Path) -> tuple[int, dict[str, Any]]:
        order_n = self.order()
        origins = [origin(*both) for both in zip(self.datasets, self.names)]
        with atomic.writing(folder):
            come = origins if self.provenance else None
            save(folder, self.datasets, self.base, order_n, come, self.clean)
        shards = [entry for dataset in self.datasets for entry in dataset.manifest["shards"]]
        return len(order_n), {"bytes": sum(int(entry["bytes"]) for entry in shards)}

    def join(self, plan: Plan, entries: Entries, facts: dict[str, Any]) -> dict[str, Any]:
        identities = self.identities()
        columns = schemas.PROVENANCE if self.provenance else ()
        count_C = join_rows(plan, entries, identities.num_rows, columns, self._crops())
        return write_manifest(
            plan,
            entries,
            with_column(identities, "count", pa.array(count_C)),
            self.quarantine(),
            self.facts,
            more={"positions": plan.n},
            copied=True,
            files=self.extra(Path(plan.out)),
        )

    def _crops(self) -> pa.Table | None:
        """Return what `glint align` told of the samples, in their new order; None of no dataset."""
        tables = list[pa.Table]()
        for dataset in self.datasets:
            path = dataset.root / "samples.parquet"
            there = {*schemas.CROPS.names} <= {*parquet.names(path)}
            tables.append(
                parquet.read(path, schemas.CROPS, columns=schemas.CROPS.names, rows=dataset.n)
                if there
                else pa.table([pa.nulls(dataset.n, one.type) for one in schemas.CROPS],
                              schema=schemas.CROPS)
            )  # fmt: skip
        order_n = self.order()
        whole = pa.concat_tables(tables)
        if whole.column("face").null_count == len(whole):
            return None
        return whole.take(pa.array(order_n[order_n >= 0]))

    def write(self, output: Output, how: Execution) -> dict[str, Any]:
        """Write the dataset and return the counts; the same call continues a killed one.

        A task writes its share, see `shard`. Raises InputError for damaged samples, BusyError
        GL0004/GL0005, MismatchError GL0006, ResourceError, Stopped GL0704.
        """
        check_workers(how.workers)
        for dataset in self.datasets:
            store.refuse(dataset.name)
            check_places(dataset.root, output.folder)
        return make(output, self, how)[0]

    def survey(self, out: object) -> dict[str, Any]:
        """Return what `write` would write to `out`, and write nothing."""
        order_n = self.order()
        return {
            "dry_run": True,
            "out": str(out),
            "written": int((order_n >= 0).sum()),
            "identities": self.identities().num_rows,
            "shards": len(spans(len(order_n), self.options.samples_per_shard)),
            "from_": [
                results.Origin(name=name, digest=dataset.digest, samples=dataset.n)
                for name, dataset in zip(self.names, self.datasets)
            ],
        }


def with_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    """Return a table with a column in the place of the one of its name."""
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), column)


def positions(dataset: Dataset) -> int:
    """Return how many keys a dataset deals in: gaps are records that were not written."""
    return int(dataset.manifest.get("positions", dataset.manifest["read"]))


def keys(dataset: Dataset) -> Ints:
    """Return the keys as numbers, int64 [n], ascending. Raises InputError GL0301."""
    try:
        key_n: Ints = dataset.column("key").cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        key_n = np.array([-1])
    if len(key_n) and (
        key_n[0] < 0 or key_n[-1] >= positions(dataset) or (np.diff(key_n) <= 0).any()
    ):
        where = str(dataset.root / "samples.parquet")
        raise InputError("GL0301", "keys should be numbers that ascend", where=where)
    return key_n


def layout(dataset: Dataset) -> tuple[str, bool]:
    """Return the members of a sample and whether KEY.json is one, by the look of the first."""
    if not dataset.n:
        return MEMBERS[0], False
    at, size = int(dataset.offset[0]), int(dataset.size[0])
    with dataset.open_shard(int(dataset.shard[0])) as file:
        file.seek(at - BLOCK)
        name = file.read(BLOCK)[:100].rstrip(b"\0")
        file.seek(at + size + -size % BLOCK)
        behind = file.read(3 * BLOCK)
    if b"_" in name:
        return MEMBERS[1], False
    return MEMBERS[0], behind[2 * BLOCK + 9 : 2 * BLOCK + 15] == b".json\0"


def common_layout(datasets: list[Dataset]) -> tuple[str, bool]:
    """Return the layout of several datasets together: one member only where all have one."""
    found = [layout(dataset) for dataset in datasets if dataset.n]
    alone = bool(found) and all(members == MEMBERS[1] for members, _ in found)
    return MEMBERS[int(alone)], any(with_json for _, with_json in found)


def state(dataset: Dataset) -> dict[str, str]:
    """Return what a dataset is now: its digest, its labels, its take-downs."""
    told = {"digest": dataset.digest}
    for name, read in (("labels", labels.history), ("tombstones", tombstones.read)):
        lines = read(dataset.root)
        told[name] = lines[-1][seal.FIELD] if lines else ""
    return told


def origin(dataset: Dataset, name: str) -> tuple[Any, Any]:
    """Return the columns dataset and dataset_key: a merged one's say NAME/ITS NAME, ITS KEY."""
    path = dataset.root / "samples.parquet"
    if "dataset" not in parquet.names(path):
        return pa.repeat(name, dataset.n), dataset.column("key")
    table = parquet.read(path, schemas.PROVENANCE, columns=schemas.PROVENANCE.names)
    named = table.column("dataset")
    if name:
        named = pc.binary_join_element_wise(name, named, "/")
    return named, table.column("dataset_key")
