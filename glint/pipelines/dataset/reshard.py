"""The same samples in shards of another size, or without those that must be gone."""

# n positions, C labels as sharded

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glint import log, schemas
from glint.errors import InputError
from glint.files import atomic, parquet
from glint.jobs import tasks
from glint.jobs import workers as stage
from glint.log import Progress
from glint.pipelines.dataset import rewrite, upload
from glint.pipelines.dataset.output import How
from glint.pipelines.dataset.plan import Options
from glint.results import datasets as results
from glint.shards import labels
from glint.shards.content import content
from glint.shards.dataset import TOMBSTONES, Dataset

Ints = npt.NDArray[np.int64]
ERASED = "erased"
# Tables of a merged dataset that stay true whatever is left out.
_KEPT = {"merge.parquet": schemas.MERGED, "duplicates.parquet": schemas.DUPLICATES}


@dataclass(frozen=True)
class Without:
    """What a new dataset leaves out: identities (labels as sharded) and single images (keys)."""

    labels: tuple[int, ...] = ()
    keys: tuple[int, ...] = ()
    why: tuple[str, ...] = field(default=())  # seals of the tombstones, for the fingerprint


def _order(dataset: Dataset, without: Without) -> Ints:
    """Return position -> row: keys stay, what is left out becomes a gap."""
    order_n = np.full(rewrite.positions(dataset), -1, np.int64)
    key_N = rewrite.keys(dataset)
    order_n[key_N] = np.arange(dataset.n)
    gone_N = np.isin(dataset.label, without.labels) | np.isin(key_N, without.keys)
    order_n[key_N[gone_N]] = -1
    return order_n


def _identities(dataset: Dataset, gone: Iterable[int]) -> pa.Table:
    """Return the identities; those that are gone keep their row, without any name."""
    table = dataset.identities()
    for name, value in (("name", None), ("source_label", ERASED)):
        cells = table.column(name).to_pylist()
        for label in gone:
            cells[label] = value if value is None else f"{value}:{label}"
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(cells, pa.string()))
    return table


def _quarantine(dataset: Dataset, gone: Iterable[int], drop: bool) -> pa.Table:
    """Return the quarantine; rows of identities that are gone keep their reason and no more."""
    table = parquet.read(dataset.root / "quarantine.parquet", schemas.QUARANTINE)
    if drop:
        return table.slice(0, 0)
    said = dataset.identities().column("source_label").to_pylist()
    names = {said[label] for label in gone}
    if not names:
        return table
    rows = [
        row
        if row["source_label"] not in names
        else {
            **row,
            "source": ERASED,
            "source_label": None,
            "note": None,
            "sha256": None,
            "head": None,
        }
        for row in table.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=table.schema)


def _carry(dataset: Dataset, out: Path) -> None:
    """Copy the label versions and the tombstones; the version in force last."""
    source = dataset.root / "labels"
    names = sorted(p.name for p in source.glob("v*.parquet")) + ["history.jsonl", "current.json"]
    if (source / "history.jsonl").exists():
        atomic.make_dir(out / "labels")
        for name in names:
            if (source / name).exists():
                atomic.write_bytes(out / "labels" / name, (source / name).read_bytes())
    if (dataset.root / TOMBSTONES).exists():
        atomic.write_bytes(out / TOMBSTONES, (dataset.root / TOMBSTONES).read_bytes())


def _extra(dataset: Dataset, without: Without, out: Path) -> list[str]:
    """Copy the labels, and the tables that only merged datasets have."""
    _carry(dataset, out)
    listed = {str(entry["name"]) for entry in dataset.manifest.get("files", ())}
    names = []
    for name, schema in _KEPT.items():
        if name not in listed:
            continue
        table = parquet.read(dataset.root / name, schema)
        if name == "duplicates.parquet":
            key = table.column("key").cast(pa.int64()).to_numpy()
            label = table.column("label").to_numpy()
            table = table.filter(~(np.isin(label, without.labels) | np.isin(key, without.keys)))
        parquet.write(out / name, table)
        names.append(name)
    return names


def job(
    dataset: Dataset,
    samples_per_shard: int,
    *,
    drop_quarantine: bool = False,
    without: Without | None = None,
) -> rewrite.Job:
    """Describe the new dataset. Raises UsageError GL0002, InputError GL0301."""
    labels.current(dataset.root, dataset.classes)  # a damaged label table is not carried on
    gone = without or Without()
    said = dataset.manifest
    step = {
        "by": "erase" if without else "reshard",
        "from": dataset.digest,
        "samples": dataset.n,
        "samples_per_shard": said["samples_per_shard"],
    }
    facts = {
        "source": said["source"],
        "layout": said["layout"],
        "recognised": said.get("recognised", {}),
        "derived": [*said.get("derived", []), step],
    }
    if without or said.get("erased"):
        lost = int(np.isin(dataset.label, gone.labels).sum())
        if gone.keys:
            lost = int(
                (
                    np.isin(dataset.label, gone.labels) | np.isin(rewrite.keys(dataset), gone.keys)
                ).sum()
            )
        facts["erased"] = int(said.get("erased", 0)) + lost
    members, with_json = rewrite.layout(dataset)
    return rewrite.Job(
        kind=str(step["by"]),
        datasets=[dataset],
        names=[""],
        options=Options(samples_per_shard, int(said["seed"]), with_json, members=members),
        base=[0],
        print_={
            "drop_quarantine": drop_quarantine,
            "labels": list(gone.labels),
            "keys": list(gone.keys),
            "why": list(gone.why),
        },
        order=lambda: _order(dataset, gone),
        identities=lambda: _identities(dataset, gone.labels),
        quarantine=lambda: _quarantine(dataset, gone.labels, drop_quarantine),
        facts=facts,
        extra=lambda folder: _extra(dataset, gone, folder),
        provenance=_is_merged(dataset),
    )


def _is_merged(dataset: Dataset) -> bool:
    return any(entry.get("name") == "merge.parquet" for entry in dataset.manifest.get("files", ()))


def reshard(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    samples_per_shard: int,
    *,
    drop_quarantine: bool = False,
    workers: int = 1,
    dry_run: bool = False,
    progress: Progress = log.silent,
    task: tasks.Task | None = None,
    engine: stage.Engine | None = None,
    staging: str | os.PathLike[str] | None = None,
) -> results.Reshard | results.ReshardShare | results.ReshardPlan:
    """Write the samples of `src` into shards of another size, keys and image bytes untouched.

    Shard i holds the keys [i*n, (i+1)*n), as if the source had been sharded so at once. Label
    versions and take-downs are carried over. A task writes its share, see `shard`. Raises what
    `rewrite` raises.
    """
    dataset = Dataset(src)
    todo = job(dataset, samples_per_shard, drop_quarantine=drop_quarantine)
    if dry_run:
        return results.ReshardPlan(**rewrite.survey(todo, out))
    with upload.output(out, staging, task) as place:
        result = rewrite.rewrite(todo, place, How(workers, progress, task, engine))
        if result.get("left"):
            return results.ReshardShare(**result)
        before, after = content(dataset), content(Dataset(place.shown))
    if before != after:
        raise InputError(
            "GL0301",
            f"the samples are not those of {src}: expected content {before}, found {after}",
            where=str(out),
            hint="remove the folder and run the same command again",
        )
    return results.Reshard(**result, content=after)
