"""The same samples in shards of another size, or without those that must be gone."""

# n positions, C labels as sharded

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glint import log, schemas
from glint.errors import InputError
from glint.files import atomic, parquet
from glint.jobs import tasks
from glint.jobs.workers import Engine
from glint.log import Progress
from glint.pipelines.dataset import rewrite, upload
from glint.pipelines.dataset.output import Execution
from glint.pipelines.dataset.plan import Options
from glint.results import datasets as results
from glint.shards import labels, tombstones
from glint.shards.dataset import Dataset

Ints = npt.NDArray[np.int64]
ERASED = "erased"
# Tables of a merged dataset that stay true whatever is left out.
_KEPT = {"merge.parquet": schemas.MERGED, "duplicates.parquet": schemas.DUPLICATES}
# What a digest of a dataset's content covers.
NUMBERS = ("label", "size", "width", "height")
TEXTS = ("key", "source_label", "source")
COLUMNS = (*TEXTS, *NUMBERS, "digest")


@dataclass(frozen=True)
class Without:
    """What a new dataset leaves out: identities (labels as sharded) and single images (keys)."""

    labels: tuple[int, ...] = ()
    keys: tuple[int, ...] = ()
    why: tuple[str, ...] = ()  # for the fingerprint

    def found(self, label_n: Ints, key_n: Ints) -> npt.NDArray[np.bool_]:
        """Return which samples are left out, given their labels and keys; bool [n]."""
        return np.isin(label_n, self.labels) | np.isin(key_n, self.keys)

    def rows(self, dataset: Dataset) -> npt.NDArray[np.bool_]:
        """Return which samples of a dataset are left out, bool [n]. Raises InputError GL0301."""
        return self.found(dataset.label, rewrite.keys(dataset))


def _told(recognised: dict[str, Any], gone: Without | None) -> dict[str, Any]:
    """Return what a source was recognised as; without names of people where some are erased."""
    named = ("examples", "notes", "warnings") if gone else ()
    return {key: [] if key in named else value for key, value in recognised.items()}


class Reshard(rewrite.Rewrite):
    """A dataset in other shards, or, with `without`, lacking what must be gone.

    Raises UsageError GL0002, InputError GL0301.
    """

    def __init__(
        self,
        dataset: Dataset,
        samples_per_shard: int,
        *,
        drop_quarantine: bool = False,
        without: Without | None = None,
    ) -> None:
        labels.unchecked(dataset.root, dataset.classes)  # a damaged label table is not carried on
        self.dataset, self.drop_quarantine = dataset, drop_quarantine
        self.gone = gone = without or Without()
        self.provenance = dataset.is_merged
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
            "recognised": _told(said.get("recognised", {}), without),
            "derived": [*said.get("derived", []), step],
        }
        if without or said.get("erased"):
            facts["erased"] = int(said.get("erased", 0)) + int(gone.rows(dataset).sum())
        if further := int(said.get("further", 0)):
            facts["further"] = further
        members, with_json = rewrite.layout(dataset)
        options = Options(samples_per_shard, int(said["seed"]), with_json, members=members)
        also = {
            "drop_quarantine": drop_quarantine,
            "labels": list(gone.labels),
            "keys": list(gone.keys),
            "why": list(gone.why),
        }
        super().__init__(str(step["by"]), [dataset], [""], options, facts, also)

    def order(self) -> Ints:
        """Return position -> row: keys stay, what is left out becomes a gap."""
        order_n = np.full(rewrite.positions(self.dataset), -1, np.int64)
        key_N, stays_N = rewrite.keys(self.dataset), ~self.gone.rows(self.dataset)
        order_n[key_N[stays_N]] = np.flatnonzero(stays_N)
        return order_n

    def identities(self) -> pa.Table:
        """Return the identities; those that are gone keep their row, without any name."""
        table = self.dataset.identities()
        for name in ("name", "source_label"):
            cells = table.column(name).to_pylist()
            for label in self.gone.labels:
                cells[label] = None if name == "name" else f"{ERASED}:{label}"
            table = rewrite.with_column(table, name, pa.array(cells, pa.string()))
        return table

    def quarantine(self) -> pa.Table:
        """Return the quarantine."""
        table = parquet.read(self.dataset.root / "quarantine.parquet", schemas.QUARANTINE)
        if self.drop_quarantine:
            return table.slice(0, 0)
        return table

    def extra(self, folder: Path) -> list[str]:
        """Copy the labels, and the tables that only merged datasets have."""
        self._carry(folder)
        listed = {str(entry["name"]) for entry in self.dataset.manifest.get("files", ())}
        names = [name for name in _KEPT if name in listed]
        for name in names:
            table = parquet.read(self.dataset.root / name, _KEPT[name])
            if name == "duplicates.parquet":
                key = table.column("key").cast(pa.int64()).to_numpy()
                table = table.filter(~self.gone.found(table.column("label").to_numpy(), key))
            parquet.write(folder / name, table)
        return names

    def _carry(self, out: Path) -> None:
        """Copy the label versions and the tombstones; the version in force last."""
        root, stays_N = self.dataset.root, ~self.gone.rows(self.dataset)
        new_N = None if stays_N.all() else np.where(stays_N, np.cumsum(stays_N) - 1, -1)
        labels.carry(root, out, new_N)
        if (root / tombstones.FILE).exists():
            atomic.write_bytes(out / tombstones.FILE, (root / tombstones.FILE).read_bytes())


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
    engine: Engine | None = None,
    staging: str | os.PathLike[str] | None = None,
) -> results.Reshard | results.ReshardShare | results.ReshardPlan:
    """Write the samples of `src` into shards of another size, keys and image bytes untouched.

    Shard i holds the keys [i*n, (i+1)*n), as if the source had been sharded so at once. Label
    versions and take-downs are carried over. A task writes its share, see `shard`. Raises what
    `Rewrite.write` raises.
    """
    dataset = Dataset(src)
    job = Reshard(dataset, samples_per_shard, drop_quarantine=drop_quarantine)
    if dry_run:
        return results.ReshardPlan(**job.survey(out))
    with upload.output(out, staging) as place:
        result = job.write(place, Execution(workers, progress, task, engine))
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
