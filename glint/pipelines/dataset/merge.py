"""Several datasets -> one: every sample keeps where it came from, labels are laid end to end."""

# N samples of all datasets together, C labels as sharded, m masked pairs

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glint import log, schemas
from glint.conflicts.groups import components
from glint.errors import InputError, UsageError
from glint.files import atomic, parquet, seal
from glint.log import Progress
from glint.pipelines.dataset import rewrite
from glint.pipelines.dataset.output import Execution, Output
from glint.pipelines.dataset.plan import Options
from glint.results import datasets as results
from glint.shards import duplicates, labels, tombstones
from glint.shards.dataset import Dataset
from glint.shards.plan import key_name, order
from glint.shards.sources.samples import joined

Ints = npt.NDArray[np.int64]
STAGE = "merge"
LABELS, DUPLICATES, QUARANTINE = "merge.parquet", "duplicates.parquet", "quarantine.parquet"


def name_all(roots: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Name datasets after their folders; a second of the same name gets a number."""
    names: list[str] = []
    for root in roots:
        name = Path(root).resolve().name or "dataset"
        twin, count = name, 1
        while twin in names:
            count += 1
            twin = f"{name}-{count}"
        names.append(twin)
    return names


def shared_images(digest_Nk: npt.NDArray[np.uint8], end: Sequence[int]) -> list[Ints]:
    """Return the rows of every image that stands in more than one dataset, rows ascending.

    digest_Nk: uint8 [N, 16], datasets end to end; end: the row behind each dataset.
    """
    row_m, group_m = duplicates.groups(digest_Nk)
    groups = np.split(row_m, np.flatnonzero(np.diff(group_m)) + 1)
    ends = [np.searchsorted(end, group[[0, -1]], side="right") for group in groups if len(group)]
    return [group for group, (first, last) in zip(groups, ends) if first != last]


class Merge(rewrite.Rewrite):
    """Several datasets to be written as one, in one shuffled order.

    end: the row behind each dataset, of the rows laid end to end. Raises UsageError GL0002,
    InputError GL0301, GL0304.
    """

    provenance = True

    def __init__(
        self,
        roots: Sequence[str | os.PathLike[str]],
        *,
        samples_per_shard: int = 10_000,
        seed: int = 0,
        same_labels: bool = False,
    ) -> None:
        self.same_labels = same_labels
        if len(roots) < 2:
            what = f"expected two datasets or more, found {len(roots)}"
            raise UsageError("GL0002", what, where="SRC")
        real = [Path(root).resolve() for root in roots]
        if len(set(real)) != len(real):
            twice = next(str(root) for i, root in enumerate(roots) if real[i] in real[:i])
            raise UsageError("GL0002", "the dataset is named twice", where=twice)
        datasets, names = [Dataset(root) for root in roots], name_all(roots)
        self.end = np.cumsum([dataset.n for dataset in datasets]).tolist()
        if self.end[-1] > 10**9:
            what = f"{self.end[-1]} samples, nine-digit keys allow 10^9"
            raise InputError("GL0301", what, where=str(roots[-1]))
        members, with_json = rewrite.common_layout(datasets)
        options = Options(samples_per_shard, seed, with_json, members=members)
        also = {"same_labels": True} if same_labels else {}
        super().__init__(STAGE, datasets, names, options, {}, also)
        came = [
            {
                "name": name,
                "digest": d.digest,
                "samples": d.n,
                "identities": d.classes,
                "first_label": more,
                "source": d.manifest["source"],
                "derived": d.manifest.get("derived", []),
            }
            for name, d, more in zip(names, datasets, self.base)
        ]
        self.facts = {
            "source": " + ".join(names),
            "layout": "merged datasets",
            "recognised": {
                "layout": "merged datasets",
                "images": self.end[-1],
                "identities": self.base[-1] + datasets[-1].classes,
                "notes": [],
            },
            "derived": [{"by": STAGE, "from": came}],
        }
        self.shared = self._shared() if same_labels else None
        for name in ("erased", "further"):
            if count := sum(int(dataset.manifest.get(name, 0)) for dataset in datasets):
                self.facts[name] = count

    def order(self) -> Ints:
        return order(self.end[-1], self.options.seed)

    def identities(self) -> pa.Table:
        """Return all identities under their new labels, with the name of their dataset."""
        pieces = []
        for dataset, name, more in zip(self.datasets, self.names, self.base):
            table = dataset.identities().select(schemas.IDENTITIES.names)
            label = pa.array(table.column("label").to_numpy() + more)
            pieces.append(_named(table.set_column(0, "label", label), name))
        return pa.concat_tables(pieces)

    def quarantine(self) -> pa.Table:
        """Return all quarantined records, with the name of their dataset."""
        tables = (parquet.read(d.root / QUARANTINE, schemas.QUARANTINE) for d in self.datasets)
        tables = (table.select(schemas.QUARANTINE.names) for table in tables)
        return pa.concat_tables(map(_named, tables, self.names))

    def extra(self, folder: Path) -> list[str]:
        self._tombstones(folder)
        self._labels(folder)
        # What became of every label.
        ranges = zip(self.names, (np.arange(d.classes) for d in self.datasets), self.base)
        pieces = [
            pa.table(
                [pa.repeat(name, len(label_C)), label_C, label_C + more], schema=schemas.MERGED
            )
            for name, label_C, more in ranges
        ]
        parquet.write(folder / LABELS, pa.concat_tables(pieces))
        parquet.write(folder / DUPLICATES, self._duplicates())
        return [LABELS, DUPLICATES]

    def _places(self) -> Ints:
        """Return the key, which is the row here, of every sample of the datasets end to end."""
        order_n = self.order()
        key_N = np.empty(len(order_n), np.int64)
        key_N[order_n] = np.arange(len(order_n))
        return key_N

    def _duplicates(self) -> pa.Table:
        digest_Nk = np.concatenate([dataset.digests for dataset in self.datasets])
        key_N = self._places()
        row_m = np.concatenate([np.empty(0, np.int64), *shared_images(digest_Nk, self.end)])
        origins = [rewrite.origin(*both) for both in zip(self.datasets, self.names)]
        named, keyed = (
            joined(columns).take(pa.array(row_m)).cast(pa.string()) for columns in zip(*origins)
        )
        label_N = np.concatenate([d.label + more for d, more in zip(self.datasets, self.base)])
        digests = pa.array([digest.tobytes() for digest in digest_Nk[row_m]], pa.binary(16))
        keys = pa.array([key_name(key) for key in key_N[row_m].tolist()], pa.string())
        columns = [digests, named, keyed, keys, pa.array(label_N[row_m], pa.int64())]
        return pa.table(columns, schema=schemas.DUPLICATES)

    def _tombstones(self, out: Path) -> None:
        """Carry the take-downs over, under the new labels and, of images still there, new keys."""
        raw, before = b"", ""
        key_N, start = self._places(), 0
        for dataset, name, more in zip(self.datasets, self.names, self.base):
            old = rewrite.keys(dataset)
            for entry in tombstones.read(dataset.root):
                moved = [label + more for label in entry.pop("labels", ())]
                gone = np.flatnonzero(np.isin(old, [int(key) for key in entry.pop("keys", ())]))
                if len(gone):
                    entry["keys"] = [key_name(key) for key in key_N[start + gone].tolist()]
                one = seal.line(before, {**entry, "labels": moved, "dataset": name})
                raw, before = raw + one, str(json.loads(one)[seal.FIELD])
            start += dataset.n
        if raw:
            atomic.write_bytes(out / tombstones.FILE, raw)

    def write(self, output: Output, how: Execution) -> dict[str, Any]:
        self._in_force()  # a damaged label table stops it before anything is written
        return super().write(output, how)

    def _in_force(self) -> tuple[labels.LabelTable, int]:
        """Return the labels in force, laid end to end, and how many versions are in force."""
        parts = [labels.unchecked(dataset.root, dataset.classes) for dataset in self.datasets]
        first = [0, *np.cumsum([part.classes for part in parts])[:-1].tolist()]
        own = any(len(part.row) for part in parts)
        key_N, start = self._places() if own else np.empty(0, np.int64), [0, *self.end[:-1]]
        row = np.concatenate([key_N[at + part.row] for at, part in zip(start, parts)])
        label = [_later(part.label, more) for part, more in zip(parts, self.base)]
        order = np.argsort(row)
        target = np.concatenate([_later(part.target, more) for part, more in zip(parts, first)])
        masks = np.concatenate([part.masks + more for part, more in zip(parts, first)])
        if self.same_labels:
            one_T = _united(target, self._known(), int(target.max(initial=-1)) + 1)
            target, masks = np.where(target < 0, -1, one_T[target]), one_T[masks]
            masks = masks[masks[:, 0] != masks[:, 1]]  # kept apart until they are one
        table = labels.given(target, masks, row[order], np.concatenate(label)[order])
        return table, sum(part.version > 0 for part in parts) + self.same_labels

    def _known(self) -> list[str]:
        """Return what every label is known by: its source label, a number by its name if it has."""
        known = []
        for dataset in self.datasets:
            table = dataset.identities()
            said, names = (table.column(c).to_pylist() for c in ("source_label", "name"))
            known += [n if n and s.isdigit() else s for s, n in zip(said, names)]
        return known

    def _shared(self) -> int:
        """Count the labels that stand in more than one dataset. Raises UsageError GL0002."""
        for root, dataset in zip(self.names, self.datasets):
            if _without_labels(dataset):
                what = f"{root} was sharded with --unlabelled: a key of it is nobody's label"
                hint = "merge the others with --same-labels, then that with this one without it"
                raise UsageError("GL0002", what, where="--same-labels", hint=hint)
        known = self._known()
        if not (count := len(known) - len(set(known))):
            what = "no label of one dataset stands in another"
            hint = (
                "leave it out: labels are then renumbered, and glint dedup-conflicts looks at faces"
            )
            raise UsageError("GL0002", what, where="--same-labels", hint=hint)
        return count

    def _labels(self, folder: Path) -> None:
        """Put the labels in force as version 1, where there are any or somebody was taken down.

        Before the manifest: a dataset is never there without them.
        """
        table, versions = self._in_force()
        labels.forget(folder)
        if not (versions or tombstones.read(folder)):
            return
        why = {"stage": STAGE, "from": [dataset.digest for dataset in self.datasets]}
        counts = len(table.target), sum(dataset.n for dataset in self.datasets)
        with labels.changing(folder):
            labels.commit(folder, table, why, based_on=0, counts=counts)


def _without_labels(dataset: Dataset) -> bool:
    """Say whether labels are keys: most have one image and are written as glint writes keys."""
    count_C = np.bincount(dataset.label, minlength=dataset.classes)
    said = dataset.identities().column("source_label").to_pylist()
    keys = sum(len(one) == 9 and one.isdigit() for one, n in zip(said, count_C) if n < 2)
    return bool(2 * keys > len(said))


def _united(target_C: Ints, known: Sequence[str], targets: int) -> Ints:
    """Return the target, from 0, that each becomes where labels of one word are one person."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(w, t), t) for w, t in zip(known, target_C.tolist()) if t >= 0]
    one_T = np.arange(targets)
    for piece in components(*np.array(pairs, np.int64).reshape(-1, 2).T):
        one_T[piece] = piece[0]
    return np.unique(one_T, return_inverse=True)[1].reshape(-1)


def _later(number_n: Ints, more: int) -> Ints:
    return np.where(number_n < 0, -1, number_n + more)


def _named(table: pa.Table, name: str) -> pa.Table:
    return table.append_column("dataset", pa.repeat(name, table.num_rows))


def merge(
    out: str | os.PathLike[str],
    roots: Sequence[str | os.PathLike[str]],
    *,
    samples_per_shard: int = 10_000,
    seed: int = 0,
    workers: int = 1,
    same_labels: bool = False,
    dry_run: bool = False,
    progress: Progress = log.silent,
) -> results.Merge | results.MergePlan:
    """Write several datasets as one, in one shuffled order.

    Labels of a dataset follow those of the one before (merge.parquet says which became which);
    label versions in force become version 1; take-downs stay in force. Images that stand in more
    than one dataset are counted and listed (duplicates.parquet), not removed. same_labels: labels
    of one source label (or name, where that is a number) are one identity of version 1. Raises what
    `Rewrite.write` raises.
    """
    job = Merge(roots, samples_per_shard=samples_per_shard, seed=seed, same_labels=same_labels)
    came = [
        results.MergeOrigin(
            **{key: one[key] for key in ("name", "digest", "samples", "identities", "first_label")}
        )
        for one in job.facts["derived"][0]["from"]
    ]
    if dry_run:
        digest_Nk = np.concatenate([dataset.digests for dataset in job.datasets])
        groups = shared_images(digest_Nk, job.end)
        return results.MergePlan(
            **job.survey(out) | {"from_": came},
            same_labels=job.shared,
            duplicate_images=len(groups),
            duplicate_samples=sum(map(len, groups)),
        )
    result = job.write(Output(Path(out)), Execution(workers, progress))
    table = parquet.read(Path(out) / DUPLICATES, schemas.DUPLICATES)
    return results.Merge(
        **result,
        from_=came,
        same_labels=job.shared,
        label_version=labels.current(out, result["identities"]).version,
        duplicate_images=len(set(table.column("digest").to_pylist())),
        duplicate_samples=table.num_rows,
    )
