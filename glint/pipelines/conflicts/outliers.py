"""Part of stage `conflicts`: outliers and mixed identities, and images that repeat.

Listed, not applied: reviewers decide, or `apply --flagged` does what is suggested of outliers.
"""

# N samples, f outliers, m samples of a group of repeats, K pairs

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glint import log, schemas
from glint.conflicts import groups, image_hash
from glint.conflicts.evidence import Samples
from glint.conflicts.outliers import MORE, Mixed, Outliers, find_mixed, find_outliers
from glint.conflicts.verdicts import Found
from glint.errors import GlintError
from glint.files import parquet
from glint.log import Progress
from glint.search import cross, pairs
from glint.shards import duplicates
from glint.shards.dataset import Dataset
from glint.shards.embeddings import Embeddings
from glint.shards.labels import LabelTable

TABLES = ("inside.parquet", "duplicates.parquet")
NAMED = 10_000  # outliers, the farthest first, whose nearest other identity is looked for
ALIKE = 0.9  # least cosine of two images whose hashes are near: aligned faces share frequencies
SMALLEST = 48  # pixels a side that the decoder may scale a picture down to
CHUNK = 4096

Ints = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Repeats:
    """Groups of equal images, and groups of images that show the same picture.

    bits_m, cosine_m: to the nearest other image of the group, of near groups.
    """

    exact: duplicates.Equals
    near: duplicates.Equals
    bits_m: Ints
    cosine_m: Reals


@dataclass(frozen=True)
class Inside:
    """What was found. towards_f: the nearest other identity of an outlier, -1 where not looked for.

    repeats.near is empty where it was not looked for.
    """

    outliers: Outliers
    towards_f: Ints
    towards_cosine_f: Reals
    mixed: list[Mixed]
    repeats: Repeats

    def counts(self) -> dict[str, int]:
        """Return counts for conflicts.json."""
        exact, near = self.repeats.exact, self.repeats.near
        return {
            "outliers": len(self.outliers.row),
            "mixed": len(self.mixed),
            "duplicates": int(exact.group_m.max(initial=-1)) + 1,
            "duplicates_across": len(np.unique(exact.group_m[exact.across_m])),
            "near_duplicates": int(near.group_m.max(initial=-1)) + 1,
            "near_duplicates_across": len(np.unique(near.group_m[near.across_m])),
        }


def look_inside(
    dataset: Dataset,
    emb: Embeddings,
    samples: Samples,
    labels: LabelTable,
    person_N: Ints,
    found: Found,
    *,
    near: bool = True,
    seed: int = 0,
    progress: Progress = log.silent,
) -> Inside:
    """Look inside the identities of the labels in force.

    person_N: the first label of each sample's identity, -1 = none. near: decode every image for
    near duplicates as well.
    """
    prior = found.calibration.prior
    mixed = find_mixed(samples, prior, seed=seed, progress=progress)

    def elsewhere(row_f: Ints, cosine_f: Reals) -> npt.NDArray[np.bool_]:
        return _elsewhere(emb, samples, person_N, found, row_f, cosine_f)

    far = find_outliers(
        samples, prior, elsewhere=elsewhere, mixed=mixed, seed=seed, progress=progress
    )
    towards_f, cosine_f = _towards(emb, person_N, far.row)
    repeats = _repeats(dataset, emb, labels, near, progress)
    return Inside(far, towards_f, cosine_f, mixed, repeats)


def _elsewhere(
    emb: Embeddings, samples: Samples, person_N: Ints, found: Found, row_f: Ints, cosine_f: Reals
) -> npt.NDArray[np.bool_]:
    """Return which images may be one of another identity, and are nearer to it than to their own.

    cosine_f: to their own. May be: hardly any two people of one image and so many are as alike.
    """
    yes_f, count_C = np.zeros(len(row_f), bool), samples.count_C
    least_C = np.where(count_C > 0, found.judge.rare_cosine(1, count_C), np.inf)
    low = float(least_C.min(initial=np.inf))
    if np.isfinite(low) and len(row_f):
        x_fD = pairs.unit64(emb.sample_ND[row_f]).astype(np.float32)
        near = cross.pairs_across(x_fD, emb.centre_CD, low)
        other = near.b != person_N[row_f[near.a]]
        other &= near.cosine >= np.maximum(least_C[near.b], cosine_f[near.a] + MORE)
        yes_f[near.a[other]] = True
    return yes_f


def _towards(emb: Embeddings, label_N: Ints, row_f: Ints) -> tuple[Ints, Reals]:
    """Return the nearest other identity of the first images, and the cosine of its centre."""
    towards_f, cosine_f = np.full(len(row_f), -1, np.int64), np.full(len(row_f), np.nan)
    other = np.flatnonzero(pairs.usable(emb.centre_CD))
    for at in range(0, min(len(row_f), NAMED), 256):
        row = row_f[at : min(at + 256, NAMED)]
        x_nD = pairs.unit64(emb.sample_ND[row]).astype(np.float32)
        best, value = np.full(len(row), -1, np.int64), np.full(len(row), -2.0)
        for start in range(0, len(other), 65536):
            place = other[start : start + 65536]
            cosine_nC = x_nD @ emb.centre_CD[place].T
            cosine_nC[label_N[row][:, None] == place[None]] = -2.0
            most = cosine_nC.argmax(axis=1)
            higher = cosine_nC[np.arange(len(row)), most] > value
            best[higher] = place[most[higher]]
            value[higher] = cosine_nC[np.arange(len(row)), most][higher]
        towards_f[at : at + len(row)] = best
        cosine_f[at : at + len(row)] = np.where(best >= 0, value, np.nan)
    return towards_f, cosine_f


def _repeats(
    dataset: Dataset, emb: Embeddings, labels: LabelTable, near: bool, progress: Progress
) -> Repeats:
    exact = duplicates.equals(dataset, labels)
    none = duplicates.by_identity(*(np.empty(0, np.int64),) * 3)
    if not near:
        return Repeats(exact, none, np.empty(0, np.int64), np.empty(0))
    target_N = labels.sample_target(dataset.label)
    open_N = target_N >= 0
    first = np.r_[True, exact.group_m[1:] != exact.group_m[:-1]][: len(exact.row_m)]
    open_N[exact.row_m[~first]] = False  # one of equal images stands for them
    row_n, hash_n = _hashed(dataset, np.flatnonzero(open_N), progress)
    a, b, bits = image_hash.near(hash_n)
    a, b = row_n[a], row_n[b]
    cosine = pairs.cosines(emb.sample_ND, a, b)
    same = cosine >= ALIKE  # not where an embedding failed
    a, b, bits, cosine = a[same], b[same], bits[same], cosine[same]
    pieces = groups.components(a, b)
    row_m = np.concatenate([*pieces, np.empty(0, np.int64)])
    number = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    found = duplicates.by_identity(row_m, number, target_N[row_m])
    bits_N = {int(row): 64 for row in row_m}
    cosine_N = {int(row): -1.0 for row in row_m}
    for one, other, count, value in zip(a.tolist(), b.tolist(), bits.tolist(), cosine.tolist()):
        for row in (one, other):
            if (count, -value) < (bits_N[row], -cosine_N[row]):
                bits_N[row], cosine_N[row] = count, value
    rows = found.row_m.tolist()
    return Repeats(
        exact,
        found,
        np.array([bits_N[row] for row in rows], np.int64),
        np.array([cosine_N[row] for row in rows], np.float64),
    )


def _hashed(dataset: Dataset, row_N: Ints, progress: Progress) -> tuple[Ints, image_hash.Hashes]:
    """Hash the images of the rows; those that cannot be read or decoded are left out."""
    rows, found = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        for at in range(0, len(row_N), CHUNK):
            row_n = row_N[at : at + CHUNK]
            small = list(pool.map(lambda row: _small(dataset, int(row)), row_n))
            good = np.array([one is not None for one in small], bool)
            rows.append(row_n[good])
            if good.any():
                found.append(image_hash.phash(np.stack([one for one in small if one is not None])))
            progress(at + len(row_n), len(row_N), "near duplicates")
    return np.concatenate(rows), np.concatenate(found)


def _small(dataset: Dataset, row: int) -> npt.NDArray[np.float32] | None:
    import simplejpeg

    try:
        grey_HW1 = simplejpeg.decode_jpeg(
            dataset.read(row), "GRAY", fastdct=True, min_height=SMALLEST, min_width=SMALLEST
        )
    except (GlintError, ValueError) as error:
        if isinstance(error, GlintError) and error.code != "GL0303":
            raise
        return None
    return image_hash.shrunk(grey_HW1[..., 0])


def write(out: Path, dataset: Dataset, person_N: Ints, inside: Inside) -> None:
    """Write inside.parquet and duplicates.parquet."""
    parquet.write(out / TABLES[0], _inside(dataset, person_N, inside))
    exact, near = inside.repeats.exact, inside.repeats.near
    after = int(exact.group_m.max(initial=-1)) + 1
    near_table = duplicates.table(dataset, near)
    number = pa.array(near.group_m + after)
    parts = [duplicates.table(dataset, exact), near_table.set_column(0, "group", number)]
    facts = [
        ("exact", np.zeros(len(exact.row_m), np.int64), np.ones(len(exact.row_m))),
        ("near", inside.repeats.bits_m, inside.repeats.cosine_m),
    ]
    parquet.write(
        out / TABLES[1],
        pa.concat_tables(
            [
                pa.table(
                    [*part.columns, pa.array([kind] * part.num_rows, pa.string()), bits, cosine],
                    schema=schemas.REPEATS,
                )
                for part, (kind, bits, cosine) in zip(parts, facts)
            ]
        ),
    )


def _inside(dataset: Dataset, person_N: Ints, inside: Inside) -> pa.Table:
    """Return a row for each outlier, then one for each image of a mixed identity."""
    far = inside.outliers
    found: list[dict[str, Any]] = []
    for i, row in enumerate(far.row.tolist()):
        named = int(inside.towards_f[i]) >= 0
        found.append(
            {
                "kind": "outlier",
                "key": dataset.key[row],
                "label": int(person_N[row]),
                "cosine": float(far.cosine[i]),
                "score": float(far.score[i]),
                "z": float(far.z[i]),
                "towards": int(inside.towards_f[i]) if named else None,
                "towards_cosine": float(inside.towards_cosine_f[i]) if named else None,
                "suggested": "move" if named and far.elsewhere[i] else "exclude",
            }
        )
    for one in inside.mixed:
        for side, rows in enumerate((one.one, one.two)):
            found += [
                {
                    "kind": "mixed",
                    "key": dataset.key[row],
                    "label": one.label,
                    "side": side,
                    "cosine": one.cosine,
                    "score": one.score,
                    "z": one.z,
                }
                for row in rows.tolist()
            ]
    columns = {name: [row.get(name) for row in found] for name in schemas.INSIDE.names}
    return pa.table(columns, schema=schemas.INSIDE)
