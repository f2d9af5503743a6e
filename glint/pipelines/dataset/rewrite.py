"""Samples of datasets -> another dataset: other shard sizes, several sets in one, some left out.

The plan is one array: position -> row of the datasets laid end to end, or -1 for a gap. Positions
are keys. Image bytes are copied untouched and checked on the way; for the rest see `shard`.
"""

# n positions, N samples of all datasets together, C labels of the new dataset

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from glint import schemas
from glint.errors import InputError
from glint.files import atomic, parquet, seal, store
from glint.pipelines.dataset.output import Entries, How, Output, join_rows, make, write_manifest
from glint.pipelines.dataset.plan import SAMPLES, Inputs, Options, Plan, check_places, check_workers
from glint.results import datasets as results
from glint.shards import plan as deal
from glint.shards import ustar
from glint.shards.dataset import FORMAT, TOMBSTONES, Dataset
from glint.shards.sources.samples import column, save
from glint.shards.tar import MEMBERS

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Job:
    """What is to be written, from what.

    order: computes the plan, int64 [n]. identities: rows of identities.parquet, without counts.
    quarantine: its table. facts: fields of the manifest. extra: writes further files into the
    folder, from what `datasets` and the plan's order say, and returns the names of those that the
    manifest should list.
    """

    kind: str
    datasets: list[Dataset]
    names: list[str]  # of the datasets
    options: Options
    base: list[int]  # what is added to the labels of each dataset
    print_: dict[str, Any]  # what else decides the bytes
    order: Callable[[], Ints]
    identities: Callable[[], pa.Table]
    quarantine: Callable[[], pa.Table]
    facts: dict[str, Any]
    extra: Callable[[Path], list[str]]
    provenance: bool = False

    def inputs(self) -> Inputs:
        """Return what a plan for this job is made of. Raises InputError GL0301, GL0304."""
        options: dict[str, Any] = {
            "samples_per_shard": self.options.samples_per_shard,
            "seed": self.options.seed,
        }
        if self.options.members != MEMBERS[0]:
            options["members"] = self.options.members
        places = ("/".join(filter(None, (str(i), name))) for i, name in enumerate(self.names))
        fingerprint = {
            "dataset": FORMAT,
            "options": options,
            "source": {
                "kind": self.kind,
                "names": self.names,
                "from": dict(zip(places, map(state, self.datasets))),
                **self.print_,
            },
        }
        return Inputs(SAMPLES, "", fingerprint, self._save, self.options)

    def _save(self, folder: Path) -> tuple[int, dict[str, Any]]:
        order_n = self.order()
        origins = [origin(*both) for both in zip(self.datasets, self.names)]
        with atomic.writing(folder):
            save(folder, self.datasets, self.base, order_n, origins if self.provenance else None)
        shards = [entry for dataset in self.datasets for entry in dataset.manifest["shards"]]
        return len(order_n), {"bytes": sum(int(entry["bytes"]) for entry in shards)}


def positions(dataset: Dataset) -> int:
    """Return how many keys a dataset deals in: gaps are records that were not written."""
    return int(dataset.manifest.get("positions", dataset.manifest["read"]))


def keys(dataset: Dataset) -> Ints:
    """Return the keys as numbers, int64 [n], ascending. Raises InputError GL0301."""
    try:
        key_n: Ints = column(dataset, "key").cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        key_n = np.array([-1])
    if len(key_n) and (
        key_n[0] < 0 or key_n[-1] >= positions(dataset) or (np.diff(key_n) <= 0).any()
    ):
        raise InputError(
            "GL0301",
            "keys should be numbers that ascend",
            where=str(dataset.root / "samples.parquet"),
        )
    return key_n


def layout(dataset: Dataset) -> tuple[str, bool]:
    """Return the members of a sample and whether KEY.json is one, by the look of the first."""
    if not dataset.n:
        return MEMBERS[0], False
    block, at, size = ustar.BLOCK, int(dataset.offset[0]), int(dataset.size[0])
    with dataset.open_shard(int(dataset.shard[0])) as file:
        file.seek(at - block)
        name = file.read(block)[:100].rstrip(b"\0")
        file.seek(at + size + -size % block)
        behind = file.read(3 * block)
    if b"_" in name:
        return MEMBERS[1], False
    return MEMBERS[0], behind[2 * block + 9 : 2 * block + 15] == b".json\0"


def common_layout(datasets: list[Dataset]) -> tuple[str, bool]:
    """Return the layout of several datasets together: one member only where all have one."""
    found = [layout(dataset) for dataset in datasets if dataset.n]
    alone = bool(found) and all(members == MEMBERS[1] for members, _ in found)
    return MEMBERS[int(alone)], any(with_json for _, with_json in found)


def state(dataset: Dataset) -> dict[str, str]:
    """Return what a dataset is now: its digest, its labels, its take-downs."""
    told = {"digest": dataset.digest}
    for name, path in (("labels", "labels/history.jsonl"), ("tombstones", TOMBSTONES)):
        lines = seal.sound_lines(dataset.root / path)
        told[name] = lines[-1][seal.FIELD] if lines else ""
    return told


def origin(dataset: Dataset, name: str) -> tuple[Any, Any]:
    """Return the columns dataset and dataset_key: a merged one's say NAME/ITS NAME, ITS KEY."""
    path = dataset.root / "samples.parquet"
    if "dataset" not in pq.read_schema(path).names:
        return pa.array([name] * dataset.n, pa.string()), column(dataset, "key")
    table = parquet.read(path, schemas.PROVENANCE, columns=schemas.PROVENANCE.names)
    inner = table.column("dataset").to_pylist()
    named = [f"{name}/{one}" if name else one for one in inner]
    return pa.array(named, pa.string()), table.column("dataset_key")


def _join(job: Job, plan: Plan, entries: Entries, facts: dict[str, Any]) -> dict[str, Any]:
    """Join the rows of all shards, write the tables and, last, the manifest; return it."""
    identities = job.identities()
    count_C = join_rows(plan, entries, identities.num_rows, job.provenance)
    place = identities.schema.get_field_index("count")
    return write_manifest(
        plan,
        entries,
        identities.set_column(place, schemas.IDENTITIES.field("count"), pa.array(count_C)),
        job.quarantine(),
        job.facts,
        more={"positions": plan.n},
        copied=True,
        files=job.extra(Path(plan.out)),
    )


def rewrite(
    job: Job, output: Output, how: How, after: Callable[[Path], None] | None = None
) -> dict[str, Any]:
    """Write the dataset of a job and return the counts; the same call continues a killed one.

    `after` runs on the finished folder, still locked; it may run twice. A task writes its share,
    see `shard`. Raises InputError for damaged samples, BusyError GL0004/GL0005, MismatchError
    GL0006, ResourceError, Stopped GL0704.
    """
    check_workers(how.workers)
    for dataset in job.datasets:
        store.refuse(dataset.name)
        check_places(dataset.root, output.folder)
    written, _ = make(output, job.inputs, partial(_join, job), how, after)
    return written.result(output, how.task)


def survey(job: Job, out: object) -> dict[str, Any]:
    """Say what a job would write to `out`, and write nothing."""
    order_n = job.order()
    return {
        "dry_run": True,
        "out": str(out),
        "written": int((order_n >= 0).sum()),
        "identities": job.identities().num_rows,
        "shards": len(deal.spans(len(order_n), job.options.samples_per_shard)),
        "from_": [
            results.Origin(name=name, digest=dataset.digest, samples=dataset.n)
            for name, dataset in zip(job.names, job.datasets)
        ],
    }
