"""Who stands in the pairs of a test: by labels, by the names of images, or by the pairs alone."""

# n images, m pairs

from __future__ import annotations

import re
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from glint.evals.embed import distinct
from glint.evals.packs import Pairs
from glint.evals.sets import names_of

NOISE = 0.01  # share of pairs whose flag may contradict the names: label noise


def people(pairs: Pairs) -> tuple[np.ndarray, str, list[str] | None]:
    """Return the person of each image (int64 (n,)), how that is known, and names of persons.

    Names count only where they agree with the flags of nearly all pairs: a folder may as well be
    a pose or a year. A pack has no names: its images of one person are those that its pairs join,
    and one person may count as several.
    """
    for words, name_n in _candidates(pairs):
        names, person_n = np.unique(name_n, return_inverse=True)
        person_n = person_n.reshape(-1)
        alike_m = person_n[pairs.first] == person_n[pairs.second]
        if np.mean(alike_m != pairs.same) <= NOISE:
            return person_n.astype(np.int64), words, [str(name) for name in names]
    copy_n = distinct(pairs.images)[1]
    a_m, b_m = copy_n[pairs.first][pairs.same], copy_n[pairs.second][pairs.same]
    size = int(copy_n.max()) + 1
    graph = coo_array((np.ones(len(a_m)), (a_m, b_m)), shape=(size, size))
    person_n = connected_components(graph, directed=False)[1][copy_n]
    return person_n.astype(np.int64), "pairs of one person that share an image", None


def _candidates(pairs: Pairs) -> list[tuple[str, np.ndarray]]:
    """Return what may name the person of an image, the surest first."""
    found = []
    samples = getattr(pairs.images, "dataset", None)
    label_N = getattr(samples, "label", None)
    if label_N is not None:
        found.append(("labels of the dataset", label_N[pairs.images.row_n]))  # type: ignore[attr-defined]
    names = names_of(pairs)
    if names is None:
        return found
    parts = [name.split("/") for name in names]
    deep = min(len(part) for part in parts)
    for up in range(2, deep + 1):
        found.append((f"folder {up - 1} above the image", np.array([p[-up] for p in parts])))
    stem = [re.sub(r"\.\w+$", "", part[-1]) for part in parts]
    numbers = re.compile(r"[_-]?\d+$")
    found.append(("names of images without their number",
                  np.array([numbers.sub("", one) for one in stem])))  # fmt: skip
    found.append(("names of images up to _", np.array([one.split("_")[0] for one in stem])))
    return found


def group_of(
    pairs: Pairs, table: dict[str, str], person_n: np.ndarray, names: list[str] | None
) -> np.ndarray:
    """Return the group of each image by a table of names; "" for one that it does not hold.

    The table may name images (path, its last parts, with or without suffix) or persons.
    """
    found = []
    images = names_of(pairs) or [""] * len(person_n)
    samples: Any = getattr(pairs.images, "dataset", None)
    known = (
        samples.identities().column("name").to_pylist() if hasattr(samples, "identities") else []
    )
    for image, person in zip(images, person_n.tolist()):
        name = names[person] if names is not None else ""
        label = int(name) if name.isdecimal() and known else -1
        told = known[label] if 0 <= label < len(known) else name
        keys = [*keys_of(image), told, name]
        found.append(next((table[key] for key in keys if key and key in table), ""))
    return np.array(found)


def keys_of(image: str) -> list[str]:
    """Return what a table may call an image: path, last parts, without suffix, folder."""
    bare = re.sub(r"\.\w+$", "", image)
    last = ["/".join(text.split("/")[-k:]) for text in (image, bare) for k in (3, 2, 1)]
    return [image, bare, *last, *image.split("/")[-2:-1], re.sub(r"[_-]?\d+$", "", last[-1])]
