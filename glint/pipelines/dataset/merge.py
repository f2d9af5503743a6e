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
from glint.errors import InputError, UsageError
from glint.files import atomic, parquet, seal
from glint.log import Progress
from glint.pipelines.dataset import rewrite
from glint.pipelines.dataset.output import How, Output
from glint.pipelines.dataset.plan import Options
from glint.results import datasets as results
from glint.shards import duplicates, labels
from glint.shards import plan as deal
from glint.shards.dataset import TOMBSTONES, Dataset
from glint.shards.sources.samples import joined

Ints = npt.NDArray[np.int64]
STAGE = "merge"
DUPLICATES = "duplicates.parquet"


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


def _tables(datasets: list[Dataset]) -> tuple[Ints, Ints, int]:
    """Return the targets and masks in force, laid end to end, and how many versions are in force.

    target int64 [C], masks int64 [m, 2].
    """
    targets, masks, base, versions = [], [np.empty((0, 2), np.int64)], 0, 0
    for dataset in datasets:
        table = labels.current(dataset.root, dataset.classes)
        targets.append(np.where(table.target < 0, -1, table.target + base))
        masks.append(table.masks + base)
        base += table.classes
        versions += table.version > 0
    return np.concatenate(targets), np.concatenate(masks), versions


def _identities(datasets: list[Dataset], names: list[str], base: list[int]) -> pa.Table:
    """Return all identities under their new labels, with the name of their dataset."""
    pieces = []
    for dataset, name, more in zip(datasets, names, base):
        table = dataset.identities().select(schemas.IDENTITIES.names)
        label = pa.array(table.column("label").to_numpy() + more)
        pieces.append(
            table.set_column(0, "label", label).append_column(
                "dataset", pa.array([name] * table.num_rows, pa.string())
            )
        )
    return pa.concat_tables(pieces)


def _quarantine(datasets: list[Dataset], names: list[str]) -> pa.Table:
    """Return all quarantined records, with the name of their dataset."""
    pieces = []
    for dataset, name in zip(datasets, names):
        table = parquet.read(dataset.root / "quarantine.parquet", schemas.QUARANTINE).select(
            schemas.QUARANTINE.names
        )
        pieces.append(
            table.append_column("dataset", pa.array([name] * table.num_rows, pa.string()))
        )
    return pa.concat_tables(pieces)


def shared_images(digest_Nk: npt.NDArray[np.uint8], end: Sequence[int]) -> list[Ints]:
    """Return the rows of every image that stands in more than one dataset, rows ascending.

    digest_Nk: uint8 [N, 16], datasets end to end; end: the row behind each dataset.
    """
    row_m, group_m = duplicates.groups(digest_Nk)
    groups = np.split(row_m, np.flatnonzero(np.diff(group_m)) + 1)
    ends = [np.searchsorted(end, group[[0, -1]], side="right") for group in groups if len(group)]
    return [group for group, (first, last) in zip(groups, ends) if first != last]


def _duplicates(job: rewrite.Job, folder: Path, end: list[int]) -> str:
    """Write duplicates.parquet; return its name."""
    digest_Nk = np.concatenate([dataset.digests for dataset in job.datasets])
    order_n = job.order()
    key_N = np.empty(len(order_n), np.int64)
    key_N[order_n] = np.arange(len(order_n))
    row_m = np.concatenate([np.empty(0, np.int64), *shared_images(digest_Nk, end)])
    origins = [rewrite.origin(*both) for both in zip(job.datasets, job.names)]
    named, keyed = (
        joined(columns).take(pa.array(row_m)).cast(pa.string()) for columns in zip(*origins)
    )
    label_N = np.concatenate([d.label + more for d, more in zip(job.datasets, job.base)])
    parquet.write(
        folder / DUPLICATES,
        pa.table(
            [
                pa.array([digest.tobytes() for digest in digest_Nk[row_m]], pa.binary(16)),
                named,
                keyed,
                pa.array([deal.key_name(key) for key in key_N[row_m].tolist()], pa.string()),
                pa.array(label_N[row_m], pa.int64()),
            ],
            schema=schemas.DUPLICATES,
        ),
    )
    return DUPLICATES


def _map(datasets: list[Dataset], names: list[str], base: list[int], folder: Path) -> str:
    """Write merge.parquet: what became of every label."""
    parquet.write(
        folder / "merge.parquet",
        pa.concat_tables(
            [
                pa.table(
                    [
                        pa.array([name] * dataset.classes, pa.string()),
                        np.arange(dataset.classes),
                        np.arange(dataset.classes) + more,
                    ],
                    schema=schemas.MERGED,
                )
                for dataset, name, more in zip(datasets, names, base)
            ]
        ),
    )
    return "merge.parquet"


def _tombstones(datasets: list[Dataset], names: list[str], base: list[int], out: Path) -> None:
    """Carry the take-downs over, under the new labels (keys do not outlive a merge)."""
    raw, before = b"", ""
    for dataset, name, more in zip(datasets, names, base):
        for entry in seal.sound_lines(dataset.root / TOMBSTONES):
            moved = {
                **entry,
                "labels": [label + more for label in entry.get("labels", ())],
                "dataset": name,
            }
            moved.pop("keys", None)
            one = seal.line(before, moved)
            raw, before = raw + one, str(json.loads(one)[seal.FIELD])
    if raw:
        atomic.write_bytes(out / TOMBSTONES, raw)


def job(
    roots: Sequence[str | os.PathLike[str]], *, samples_per_shard: int = 10_000, seed: int = 0
) -> rewrite.Job:
    """Describe the merged dataset. Raises UsageError GL0002, InputError GL0301, GL0304."""
    if len(roots) < 2:
        raise UsageError(
            "GL0002", f"expected two datasets or more, found {len(roots)}", where="SRC"
        )
    real = [Path(root).resolve() for root in roots]
    if len(set(real)) != len(real):
        twice = next(str(root) for i, root in enumerate(roots) if real[i] in real[:i])
        raise UsageError("GL0002", "the dataset is named twice", where=twice)
    datasets, names = [Dataset(root) for root in roots], name_all(roots)
    base = [0, *np.cumsum([dataset.classes for dataset in datasets])[:-1].tolist()]
    end = np.cumsum([dataset.n for dataset in datasets]).tolist()
    if end[-1] > 10**9:
        raise InputError(
            "GL0301", f"{end[-1]} samples, nine-digit keys allow 10^9", where=str(roots[-1])
        )
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
        for name, d, more in zip(names, datasets, base)
    ]
    facts: dict[str, Any] = {
        "source": " + ".join(names),
        "layout": "merged datasets",
        "recognised": {
            "layout": "merged datasets",
            "images": end[-1],
            "identities": base[-1] + datasets[-1].classes,
            "notes": [],
        },
        "derived": [{"by": STAGE, "from": came}],
    }
    erased = sum(int(dataset.manifest.get("erased", 0)) for dataset in datasets)
    if erased:
        facts["erased"] = erased

    def extra(folder: Path) -> list[str]:
        _tombstones(datasets, names, base, folder)
        return [_map(datasets, names, base, folder), _duplicates(made, folder, end)]

    members, with_json = rewrite.common_layout(datasets)
    made = rewrite.Job(
        kind=STAGE,
        datasets=datasets,
        names=names,
        options=Options(samples_per_shard, seed, with_json, members=members),
        base=base,
        print_={},
        order=lambda: deal.order(end[-1], seed),
        identities=lambda: _identities(datasets, names, base),
        quarantine=lambda: _quarantine(datasets, names),
        facts=facts,
        extra=extra,
        provenance=True,
    )
    return made


def merge(
    out: str | os.PathLike[str],
    roots: Sequence[str | os.PathLike[str]],
    *,
    samples_per_shard: int = 10_000,
    seed: int = 0,
    workers: int = 1,
    dry_run: bool = False,
    progress: Progress = log.silent,
) -> results.Merge | results.MergePlan:
    """Write several datasets as one, in one shuffled order.

    Labels of a dataset follow those of the one before (merge.parquet says which became which);
    label versions in force become version 1; take-downs stay in force. Images that stand in more
    than one dataset are counted and listed (duplicates.parquet), not removed. Raises what
    `rewrite` raises.
    """
    todo = job(roots, samples_per_shard=samples_per_shard, seed=seed)
    end = np.cumsum([dataset.n for dataset in todo.datasets]).tolist()
    came = [
        results.MergeOrigin(
            **{key: one[key] for key in ("name", "digest", "samples", "identities", "first_label")}
        )
        for one in todo.facts["derived"][0]["from"]
    ]
    if dry_run:
        digest_Nk = np.concatenate([dataset.digests for dataset in todo.datasets])
        groups = shared_images(digest_Nk, end)
        return results.MergePlan(
            **rewrite.survey(todo, out) | {"from_": came},
            duplicate_images=len(groups),
            duplicate_samples=sum(map(len, groups)),
        )
    target_C, mask_m2, versions = _tables(todo.datasets)

    def relabel(folder: Path) -> None:
        if versions and not labels.history(folder):
            labels.commit(
                folder,
                target_C,
                mask_m2,
                {"stage": STAGE, "from": [dataset.digest for dataset in todo.datasets]},
            )

    result = rewrite.rewrite(todo, Output(Path(out)), How(workers, progress), after=relabel)
    table = parquet.read(Path(out) / DUPLICATES, schemas.DUPLICATES)
    return results.Merge(
        **result,
        from_=came,
        label_version=labels.current(out, len(target_C)).version,
        duplicate_images=len(set(table.column("digest").to_pylist())),
        duplicate_samples=table.num_rows,
    )
