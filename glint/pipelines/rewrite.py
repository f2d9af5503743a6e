"""Samples of datasets -> another dataset: other shard sizes, several sets in one, some left out.

The plan is one array: position -> row of the datasets laid end to end, or -1 for a gap. Positions
are keys. Image bytes are copied untouched and checked on the way; for the rest see `shard`.
"""

# n positions, N samples of all datasets together, C labels of the new dataset

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

import glint
from glint import log
from glint.errors import InputError, MismatchError, UsageError
from glint.log import Progress
from glint.manifests import tables
from glint.pipelines import shard as sharding
from glint.pipelines import stage, tasks
from glint.shards import commit, dali, image, parquet, seal, store
from glint.shards import plan as deal
from glint.shards.index import FORMAT, OPEN_FILES, Dataset
from glint.shards.strings import Strings, load_array, new_array, save_array
from glint.shards.verify import TABLES, TOMBSTONES
from glint.shards.write import BLOCK, Shard

Ints = npt.NDArray[np.int64]
_NUMBERS = {
    "offset": np.int64,
    "size": np.int32,
    "shard": np.int32,
    "label": np.int64,
    "width": np.int32,
    "height": np.int32,
}
_TEXTS = ("source", "source_label")


@dataclass(frozen=True)
class Job:
    """What is to be written, from what.

    order: computes the plan, int64 [n]. identities: rows of identities.parquet, without counts.
    quarantine: its table. facts: fields of the manifest. extra: writes further files into the
    folder and returns the names of those that the manifest should list.
    """

    kind: str
    datasets: list[Dataset]
    names: list[str]  # of the datasets
    out: Path
    options: sharding.Options
    base: list[int]  # what is added to the labels of each dataset
    print_: dict[str, Any]  # what else decides the bytes
    order: Callable[[], Ints]
    identities: Callable[[], pa.Table]
    quarantine: Callable[[], pa.Table]
    facts: dict[str, Any]
    extra: Callable[[Path, Path], list[str]]  # of the output and the plan's folder
    provenance: bool = False


def positions(dataset: Dataset) -> int:
    """Return how many keys a dataset deals in: gaps are records that were not written."""
    return int(dataset.manifest.get("positions", dataset.manifest["read"]))


def column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """Read one column of the index. Raises InputError GL0301."""
    path = dataset.root / "samples.parquet"
    found = parquet.read(path, tables.SAMPLES, columns=[name]).column(name)
    if len(found) != dataset.n or found.null_count:
        raise InputError(
            "GL0301",
            f"column {name} has {len(found)} cells, {found.null_count} of "
            f"them empty; the manifest says {dataset.n} samples",
            where=str(path),
        )
    return found


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


def has_json(dataset: Dataset) -> bool:
    """Say whether samples have a KEY.json member, by the look of the first one."""
    if not dataset.n:
        return False
    path = dataset.shard_path(int(dataset.shard[0]))
    with path.open("rb") as file:
        file.seek(int(dataset.offset[0]) + int(dataset.size[0]) + -int(dataset.size[0]) % BLOCK)
        head = file.read(3 * BLOCK)
    return head[2 * BLOCK + 9 : 2 * BLOCK + 15] == b".json\0"


def state(dataset: Dataset) -> dict[str, str]:
    """Return what a dataset is now: its digest, its labels, its take-downs."""
    told = {"digest": dataset.digest}
    for name, path in (("labels", "labels/history.jsonl"), ("tombstones", TOMBSTONES)):
        lines, bad = seal.lines(dataset.root / path)
        if bad is not None:
            raise InputError(
                "GL0304",
                f"expected a sealed line, found damage at byte {bad}",
                where=str(dataset.root / path),
            )
        told[name] = lines[-1][seal.FIELD] if lines else ""
    return told


def _save(job: Job, folder: Path) -> None:
    """Lay the columns of all datasets end to end in the plan's folder."""
    total = sum(dataset.n for dataset in job.datasets)
    paths: list[str] = []
    first = []  # number of each dataset's first shard
    for dataset in job.datasets:
        first.append(len(paths))
        paths += [str(dataset.shard_path(i).absolute()) for i in range(len(dataset.shards))]
    for name, kind in _NUMBERS.items():
        add = {"shard": first, "label": job.base}.get(name, [0] * len(job.datasets))
        whole = new_array(folder / f"{name}.npy", kind, (total,))
        at = 0
        for dataset, more in zip(job.datasets, add):
            getattr(dataset, name, None)  # checks the range of labels and shards
            whole[at : at + dataset.n] = column(dataset, name).to_numpy() + more
            at += dataset.n
        whole.flush()
    digest_Nk = [dataset.digests for dataset in job.datasets]
    save_array(folder, "digest", np.concatenate(digest_Nk))
    for name in _TEXTS:
        Strings.of_columns(column(d, name) for d in job.datasets).save(folder, name)
    if job.provenance:
        _provenance(job).save(folder, "dataset")
        Strings.of_columns(_origin(d, "dataset_key", "key") for d in job.datasets).save(
            folder, "dataset_key"
        )
    save_array(folder, "order", job.order())
    commit.write_json(folder / "paths.json", {"paths": paths, "provenance": job.provenance})
    commit.sync_files(folder)


def _origin(dataset: Dataset, name: str, fallback: str) -> pa.ChunkedArray:
    if name in pq.read_schema(dataset.root / "samples.parquet").names:
        return parquet.read(
            dataset.root / "samples.parquet", tables.PROVENANCE, columns=[name]
        ).column(name)
    return column(dataset, fallback)


def _provenance(job: Job) -> Strings:
    """Return the name of the dataset of every sample; inside a merged one, NAME/ITS NAME."""
    values: list[bytes] = []
    for dataset, name in zip(job.datasets, job.names):
        if "dataset" in pq.read_schema(dataset.root / "samples.parquet").names:
            inner = _origin(dataset, "dataset", "key").to_pylist()
            values += [(f"{name}/{one}" if name else one).encode() for one in inner]
        else:
            values += [name.encode()] * dataset.n
    return Strings.of(values)


class Rows:
    """The saved plan, mapped, and the shards that it reads from."""

    def __init__(self, folder: Path) -> None:
        stored = commit.read_json(folder / "paths.json", "GL0006")
        self.paths = [str(path) for path in stored["paths"]]
        self.order_n = load_array(folder, "order")
        self.number = {name: load_array(folder, name) for name in _NUMBERS}
        self.digest_Nk = load_array(folder, "digest")
        names = (*_TEXTS, *(tables.PROVENANCE.names if stored["provenance"] else ()))
        self.text = {name: Strings.load(folder, name) for name in names}
        self._open: OrderedDict[int, int] = OrderedDict()

    def close(self) -> None:
        """Close the shards."""
        while self._open:
            os.close(self._open.popitem()[1])

    def read(self, row: int) -> bytes:
        """Return the image bytes of a row. Raises InputError GL0302, GL0303."""
        shard, size = int(self.number["shard"][row]), int(self.number["size"][row])
        offset = int(self.number["offset"][row])
        path = self.paths[shard]
        file = self._open.get(shard)
        try:
            if file is None:
                file = self._open[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if len(self._open) > OPEN_FILES:
                    os.close(self._open.popitem(last=False)[1])
            data = os.pread(file, size, offset)
        except OSError as error:
            raise InputError("GL0302", f"cannot be read: {error.strerror}", where=path) from None
        if xxhash.xxh3_128_digest(data) != self.digest_Nk[row].tobytes():
            raise InputError(
                "GL0303",
                "the image bytes do not match their checksum",
                where=f"{path} @ 0x{offset:x}",
                hint="glint verify --deep names all that is damaged",
            )
        return data


@lru_cache(maxsize=1)
def _open(folder: Path) -> Rows:
    return Rows(folder)


def run(plan: sharding.Plan, shard: int) -> dict[str, Any]:
    """Write one shard and its rows; return its journal entry. A pure function of the plan."""
    rows = _open(plan.folder)
    start, stop = plan.spans()[shard]
    name = deal.shard_name(shard)
    taken: list[int] = []
    with (
        commit.atomic(Path(plan.out) / "data" / name) as file,
        Shard(file, shard, with_json=plan.options.with_json) as out,
    ):
        for key, row in enumerate(rows.order_n[start:stop].tolist(), start):
            if row < 0:
                continue
            data = rows.read(row)
            width, height, label = (int(rows.number[c][row]) for c in ("width", "height", "label"))
            said, where = (rows.text[c][row].decode() for c in ("source_label", "source"))
            out.add(key, data, (image.kind(data) or "bin", width, height), label, said, where)
            taken.append(row)
        out.close()
        table = out.samples()
        for extra in tables.PROVENANCE.names:
            if extra in rows.text:
                table = table.append_column(
                    extra, pa.array([rows.text[extra][row].decode() for row in taken], pa.string())
                )
        with commit.atomic(plan.parts / f"{shard:06d}.parquet") as part:
            pq.write_table(table, part, **{**sharding.ROW_OPTIONS, "compression": "none"})
        told = dali.write(Path(plan.out) / "data", name, out.idx(table))
    return {
        "shard": shard,
        "name": name,
        "samples": table.num_rows,
        "bytes": out.tar.size,
        "sha256": out.tar.sha256,
        "idx": told,
        "content": out.content(),
        "bad": {},
    }


def _join(
    job: Job, plan: sharding.Plan, entries: list[dict[str, Any]], facts: dict[str, Any]
) -> dict[str, Any]:
    """Join the rows of all shards, write the tables and, last, the manifest; return it."""
    identities = job.identities()
    count_C = np.zeros(identities.num_rows, np.int64)
    schema = tables.SAMPLES
    for field in tables.PROVENANCE if job.provenance else ():
        schema = schema.append(field)
    options = {
        **sharding.ROW_OPTIONS,
        "use_dictionary": ["source_label", *(["dataset"] if job.provenance else [])],
    }
    with (
        commit.atomic(job.out / "samples.parquet") as file,
        pq.ParquetWriter(file, schema, **options) as writer,
    ):
        for entry in entries:
            rows = parquet.read(plan.parts / f"{entry['shard']:06d}.parquet", schema)
            count_C += np.bincount(rows.column("label").to_numpy(), minlength=len(count_C))
            if rows.num_rows:
                writer.write_table(rows)
    bad = job.quarantine()
    parquet.write(job.out / "quarantine.parquet", bad)
    place = identities.schema.get_field_index("count")
    parquet.write(
        job.out / "identities.parquet",
        identities.set_column(place, tables.IDENTITIES.field("count"), pa.array(count_C)),
    )
    names = [*TABLES, *job.extra(job.out, plan.folder)]
    hasher = hashlib.sha256(FORMAT.encode())
    for entry in entries:
        hasher.update("\n{name} {samples} {bytes} {sha256} {content}".format(**entry).encode())
    told, people = (identities.column(c).to_pylist() for c in ("source_label", "name"))
    hasher.update(repr((told, people, count_C.tolist())).encode())
    if bad.num_rows:
        hasher.update(repr(bad.to_pylist()).encode())
    written = sum(entry["samples"] for entry in entries)
    reasons = dict(sorted(Counter(bad.column("reason").to_pylist()).items()))
    manifest = {
        "format": FORMAT,
        "glint": glint.__version__,
        **job.facts,
        "read": written + bad.num_rows + int(job.facts.get("erased", 0)),
        "written": written,
        "quarantined": bad.num_rows,
        "quarantine_reasons": reasons,
        "identities": identities.num_rows,
        "shards": [
            {k: entry[k] for k in ("name", "samples", "bytes", "sha256", "idx")}
            for entry in entries
        ],
        "seed": plan.options.seed,
        "samples_per_shard": plan.options.samples_per_shard,
        "positions": plan.n,
        "digest": "sha256:" + hasher.hexdigest(),
        "files": [seal.entry(job.out / name) for name in names],
    }
    manifest = seal.sealed(manifest)
    commit.write_json(job.out / "manifest.json", manifest)
    return manifest


def _plan(job: Job) -> tuple[sharding.Plan, dict[str, Any]]:
    """Write the plan, or take up the one that lies there. Raises MismatchError GL0006."""
    place = job.out / "_glint" / "plan.json"
    told = {
        "dataset": FORMAT,
        "options": {"samples_per_shard": job.options.samples_per_shard, "seed": job.options.seed},
        "source": {
            "kind": job.kind,
            "names": job.names,
            "from": {
                "/".join(filter(None, (str(i), name))): state(dataset)
                for i, (name, dataset) in enumerate(zip(job.names, job.datasets))
            },
            **job.print_,
        },
    }
    stamp = hashlib.sha256(repr(sorted(told.items())).encode()).hexdigest()
    if place.exists():
        stored = commit.read_json(place, "GL0006")
        if stored.get("fingerprint") != told:
            lines = sharding.differences(stored.get("fingerprint"), told)
            raise MismatchError(
                "GL0006",
                "begun from other inputs or options: " + "; ".join(lines[:6]),
                where=str(job.out),
                hint="use the old ones, or another output",
            )
        plan = sharding.Plan(str(job.out), stamp, job.kind, "", int(stored["n"]), job.options)
        return plan, dict(stored["facts"])
    folder = sharding.Plan(str(job.out), stamp, job.kind, "", 0, job.options).folder
    shutil.rmtree(folder, ignore_errors=True)
    commit.make_dir(folder)
    with commit.writing(folder):
        _save(job, folder)
    facts = {"bytes": sum(int(e["bytes"]) for d in job.datasets for e in d.manifest["shards"])}
    n = len(load_array(folder, "order"))
    commit.write_json(place, {"fingerprint": told, "n": n, "facts": facts})
    return sharding.Plan(str(job.out), stamp, job.kind, "", n, job.options), facts


def rewrite(
    job: Job,
    *,
    workers: int = 1,
    progress: Progress = log.silent,
    after: Callable[[Path], None] | None = None,
    task: tasks.Task | None = None,
    engine: stage.Engine | None = None,
) -> dict[str, Any]:
    """Write the dataset of a job and return the counts; the same call continues a killed one.

    `after` runs on the finished folder, still locked; it may run twice. A task writes its share,
    see `shard`. Raises InputError for damaged samples, BusyError GL0004/GL0005, MismatchError
    GL0006, ResourceError, Stopped GL0704.
    """
    if workers < 1:
        raise UsageError("GL0002", f"expected 1 or more, found {workers}", where="--workers")
    for dataset in job.datasets:
        store.refuse(dataset.name)
        sharding.check_places(dataset.root, job.out)
    fresh, there = not job.out.exists(), job.out / "_glint"
    commit.make_dir(there)
    with tasks.claim(there, task) as held:
        try:
            with tasks.planning(there, task):
                plan, facts = _plan(job)
        except InputError:
            if task is None:
                sharding.leave_no_trace(job.out, fresh)
            raise
        try:
            written = sharding.complete(
                plan,
                facts,
                held,
                workers,
                progress,
                work=run,
                join=partial(_join, job),
                after=after,
                task=task,
                engine=engine,
            )
        finally:
            _open.cache_clear()
    return written.result(job.out, task)


def survey(job: Job) -> dict[str, Any]:
    """Say what a job would write, and write nothing."""
    order_n = job.order()
    return {
        "dry_run": True,
        "out": str(job.out),
        "written": int((order_n >= 0).sum()),
        "identities": job.identities().num_rows,
        "shards": len(deal.spans(len(order_n), job.options.samples_per_shard)),
        "from": [
            {"name": name, "digest": dataset.digest, "samples": dataset.n}
            for name, dataset in zip(job.names, job.datasets)
        ],
    }
