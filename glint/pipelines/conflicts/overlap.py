"""Part of stage `conflicts`: people of this dataset who also stand in another, or a test set."""

# N samples, K pairs of an identity here (a) and one there (b)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glint import log, schemas
from glint.conflicts import verdicts
from glint.conflicts.evidence import Samples
from glint.conflicts.verdicts import ConflictOptions, Found, Judged
from glint.errors import MismatchError, UsageError
from glint.files import atomic, parquet
from glint.log import Progress
from glint.pipelines.dataset import merge
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.shards.embeddings import Embeddings, load

TABLES = ("overlap.parquet", "shared.parquet")

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Other:
    """Another dataset under a name of its own. test: its people must not be trained on."""

    name: str
    dataset: Dataset
    emb: Embeddings
    samples: Samples
    test: bool
    person_N: Ints  # first label of each sample's identity by its labels in force, -1 = none


@dataclass(frozen=True)
class Overlap:
    """K pairs with one other dataset and the images that both hold.

    shared_K: images under both; leak_K: a test set's person or image; rows_s2: (row here, there).
    """

    other: Other
    across: Judged
    shared_K: Ints
    leak_K: npt.NDArray[np.bool_]
    rows_s2: Ints

    def about(self) -> dict[str, Any]:
        """Return names and counts for conflicts.json."""
        verdict, root = self.across.verdict, self.other.dataset.root
        return {
            "name": self.other.name,
            "path": str(root.resolve()),
            "digest": self.other.dataset.digest,
            "embeddings": str(self.other.emb.root),
            "test": self.other.test,
            "pairs": len(verdict),
            **{name: int((verdict == name).sum()) for name in ("merge", "mask", "keep")},
            "shared_images": len(np.unique(self.rows_s2[:, 0])),
            "leaks": len(np.unique(self.across.pairs.a[self.leak_K])),
            "note": self.across.judge.note,
        }


def opened(
    sets: Sequence[Path], tests: Sequence[Path], folders: Sequence[Path], own: Embeddings
) -> list[Other]:
    """Open other datasets and their embeddings, which name the dataset they were made from.

    Raises UsageError GL0002 where they do not pair up, MismatchError GL0402 for another model's.
    """
    paths = [*sets, *tests]
    if not paths and folders:
        raise UsageError(
            "GL0002", "there is no --against for these embeddings", where="--against-embeddings"
        )
    of_dataset: dict[str, Path] = {}
    for folder in folders:
        if not (folder / "embeddings.json").is_file():
            load(folder, "", images=0, classes=0)  # says what is missing
        about = atomic.read_json(folder / "embeddings.json", "GL0402")
        of_dataset[str(about.get("dataset"))] = folder
    others = []
    for place, (path, name) in enumerate(zip(paths, merge.name_all(paths))):
        dataset = Dataset(path)
        if dataset.digest not in of_dataset:
            raise UsageError(
                "GL0002",
                f"expected embeddings of {dataset.name}, found none among "
                f"{', '.join(map(str, folders)) or 'no folder'}",
                where="--against-embeddings",
                hint=f"run: glint embed {dataset.name} --model MODEL --out EMB, with the model of "
                "the other embeddings",
            )
        emb = load(
            of_dataset[dataset.digest], dataset.digest, images=dataset.n, classes=dataset.classes
        )
        if emb.about.get("model") != own.about.get("model"):
            raise MismatchError(
                "GL0402",
                f"made with model {emb.about.get('model')}, expected "
                f"{own.about.get('model')} as this dataset's are",
                where=str(emb.root),
                hint="embed both datasets with one model",
            )
        table = labels.current(dataset.root, dataset.classes)
        emb, person_N = emb.under(table, dataset.label), table.sample_person(dataset.label)
        samples = Samples(emb.sample_ND, person_N, dataset.classes)
        others.append(Other(name, dataset, emb, samples, place >= len(sets), person_N))
    return others


def judge_other(
    dataset: Dataset,
    emb: Embeddings,
    samples: Samples,
    person_N: Ints,
    found: Found,
    other: Other,
    options: ConflictOptions,
    *,
    progress: Progress = log.silent,
) -> Overlap:
    """Judge the pairs of identities of two datasets, by centres and by images that both hold."""
    rows_s2 = shared(dataset.digests, other.dataset.digests)
    one, two = person_N[rows_s2[:, 0]], other.person_N[rows_s2[:, 1]]
    held = (one >= 0) & (two >= 0)
    rows_s2, one, two = rows_s2[held], one[held], two[held]
    across = verdicts.across(
        found,
        emb.centre_CD, samples, np.arange(dataset.classes),
        other.emb.centre_CD, other.samples, np.arange(other.dataset.classes),
        options,
        also=np.unique(np.stack([one, two], axis=1), axis=0),
        progress=progress,
    )  # fmt: skip
    a, b = across.pairs.a, across.pairs.b
    place = {pair: k for k, pair in enumerate(zip(a.tolist(), b.tolist()))}
    shared_K = np.zeros(len(a), np.int64)
    for pair in zip(one.tolist(), two.tolist()):
        shared_K[place[pair]] += 1
    # One photograph under both: whatever the embeddings say, the two are not kept apart.
    lifted = np.where((across.verdict == "keep") & (shared_K > 0), "mask", across.verdict)
    leak_K = ((lifted == "merge") | (shared_K > 0)) & other.test
    return Overlap(other, replace(across, verdict=lifted), shared_K, leak_K, rows_s2)


def shared(one_nk: npt.NDArray[np.uint8], other_mk: npt.NDArray[np.uint8]) -> Ints:
    """Return (row here, row there) of every image that both hold byte for byte; int64 [s, 2]."""
    n = len(one_nk)
    pairs = [np.empty((0, 2), np.int64)]
    for row in merge.shared_images(np.concatenate([one_nk, other_mk]), [n, n + len(other_mk)]):
        here, there = row[row < n], row[row >= n] - n
        pairs.append(np.stack(np.meshgrid(here, there, indexing="ij"), axis=-1).reshape(-1, 2))
    return np.concatenate(pairs)


def write(out: Path, dataset: Dataset, found: Sequence[Overlap]) -> None:
    """Write overlap.parquet and shared.parquet; without other datasets remove those of before."""
    if not found:
        for name in TABLES:
            with atomic.writing(out / name):
                (out / name).unlink(missing_ok=True)
        return
    parquet.write(out / TABLES[0], pa.concat_tables([_pairs(one) for one in found]))
    parquet.write(out / TABLES[1], pa.concat_tables([_shared(dataset, one) for one in found]))


def _pairs(found: Overlap) -> pa.Table:
    across, count = found.across, len(found.shared_K)
    names = found.other.dataset.identities().column("source_label")
    return pa.table(
        {
            "label": across.pairs.a,
            "dataset": pa.array([found.other.name] * count, pa.string()),
            "dataset_label": across.pairs.b,
            "dataset_source_label": names.take(pa.array(across.pairs.b)),
            "test": np.full(count, found.other.test),
            "leak": found.leak_K,
            "shared": found.shared_K,
            "cosine": across.pairs.cosine,
            "cross_mean": across.evidence.cross_mean,
            "cross_q10": across.evidence.cross_q10,
            "n_a": across.n_a,
            "n_b": across.n_b,
            "score": across.evidence.score,
            "probability": across.probability,
            "verdict": pa.array(across.verdict.tolist(), pa.string()),
        },
        schema=schemas.OVERLAP,
    )


def _shared(dataset: Dataset, found: Overlap) -> pa.Table:
    here, there = found.rows_s2[:, 0].tolist(), found.rows_s2[:, 1].tolist()
    return pa.table(
        [
            pa.array([dataset.digests[row].tobytes() for row in here], pa.binary(16)),
            pa.array([found.other.name] * len(here), pa.string()),
            pa.array([found.other.dataset.key[row] for row in there], pa.string()),
            pa.array([dataset.key[row] for row in here], pa.string()),
            pa.array(dataset.label[here], pa.int64()),
        ],
        schema=schemas.DUPLICATES,
    )
