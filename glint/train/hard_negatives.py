"""The nearest classes of each class, from a conflict report, for hard-aware negatives."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glint import schemas
from glint.errors import InputError, MismatchError
from glint.files import parquet
from glint.files.atomic import read_json
from glint.shards.dataset import Dataset
from glint.shards.labels import LabelTable

# C classes (targets of the labels in force), K neighbours of each, p pairs

MOST = 8  # neighbours of a class that are kept: 32 bytes a class
LIKELY = 0.01  # of one person: from here on a pair is no hard negative
ALIKE = 0.7  # the same by score, where the report has no probability

Ints = npt.NDArray[np.int64]


def read(folder: Path, dataset: Dataset, label: LabelTable) -> tuple[npt.NDArray[np.int32], str]:
    """Read the pairs of a report that are two people; return their table (C, K) and its digest.

    Pairs to merge or mask are known or suspected conflicts and left out, as are pairs to keep that
    may yet be one person (`LIKELY`, `ALIKE`) and classes that the labels in force merge or drop.
    Raises InputError GL0501 for a folder that is no report,
    MismatchError GL0501 for one of another dataset.
    """
    about = read_json(folder / "conflicts.json", "GL0501")
    named = about.get("dataset")
    digest = named.get("digest") if isinstance(named, dict) else None
    if digest != dataset.digest:
        raise MismatchError(
            "GL0501",
            f"the report was made from dataset {digest}, found {dataset.digest}",
            where=str(folder),
            hint="run glint embed and glint dedup-conflicts again",
        )
    path = folder / "pairs.parquet"
    names = ["a", "b", "cosine", "verdict", "score", "probability"]
    pairs = parquet.read(path, schemas.PAIRS, columns=names, code="GL0501")
    keep_p = np.asarray(pairs["verdict"].to_pylist(), dtype=object) == "keep"
    score_p, chance_p = pairs["score"].to_numpy(), pairs["probability"].to_numpy()
    keep_p &= ~np.where(np.isnan(chance_p), score_p >= ALIKE, chance_p >= LIKELY)
    a, b, cosine = (pairs[name].to_numpy()[keep_p] for name in names[:3])
    if len(a) and (min(a.min(), b.min()) < 0 or max(a.max(), b.max()) >= dataset.classes):
        raise InputError(
            "GL0501", f"expected labels from 0 to {dataset.classes - 1}", where=str(path)
        )
    near_CK = table(label.target[a], label.target[b], cosine, label.classes)
    return near_CK, "sha256:" + hashlib.sha256(near_CK.tobytes()).hexdigest()


def table(
    a: Ints, b: Ints, cosine: npt.NDArray[np.floating], classes: int, most: int = MOST
) -> npt.NDArray[np.int32]:
    """List the classes paired with each class, largest cosine first: int32 (C, K), -1 = none.

    a, b: pairs in any order, -1 = dropped; of a pair that stands twice the larger cosine counts.
    K is at most `most`, and no more than any class has.
    """
    apart = (a != b) & (a >= 0) & (b >= 0)
    a, b, cosine = a[apart], b[apart], cosine[apart]
    own, other, cosine = np.concatenate([a, b]), np.concatenate([b, a]), np.tile(cosine, 2)
    order = np.lexsort((-cosine, other, own))
    own, other, cosine = own[order], other[order], cosine[order]
    first = np.ones(len(own), bool)
    first[1:] = (own[1:] != own[:-1]) | (other[1:] != other[:-1])
    own, other, cosine = own[first], other[first], cosine[first]
    order = np.lexsort((other, -cosine, own))
    own, other = own[order], other[order]
    place = np.arange(len(own)) - np.searchsorted(own, own)
    own, other, place = (column[place < most] for column in (own, other, place))
    near_CK = np.full((classes, int(place.max()) + 1 if len(place) else 0), -1, np.int32)
    near_CK[own, place] = other
    return near_CK
