"""What the report shows of identities: names and faces; the tabs of what was found in them."""

# m samples of a group of repeats, D features

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from glint.conflicts.evidence import Samples
from glint.errors import GlintError
from glint.pipelines.conflicts.outliers import Inside
from glint.pipelines.conflicts.overlap import Overlap
from glint.review.report import Exhibit, Side, Strip, Tab
from glint.shards.dataset import Dataset
from glint.shards.duplicates import Equals
from glint.shards.embeddings import Embeddings

FACES = 6  # of an identity
SET = 24  # of one half of a mixed identity, and of an identity's repeats
EXHIBITS = 100  # of each kind on a tab; the others are in the tables
ACROSS = 12  # identities of one group of repeated images

Ints = npt.NDArray[np.int64]


def names(dataset: Dataset) -> tuple[list[str], list[str]]:
    """Return the name (or "") and the source label of each identity."""
    table = dataset.identities()
    source = [str(one) for one in table.column("source_label").to_pylist()]
    if "dataset" in table.column_names:  # merged: where each identity came from
        came = table.column("dataset").to_pylist()
        source = [f"{a}: {b}" for a, b in zip(came, source)]
    return [one or "" for one in table.column("name").to_pylist()], source


class Faces:
    """Identities as the page shows them: names from the dataset's table, faces from its shards."""

    def __init__(
        self, dataset: Dataset, emb: Embeddings, samples: Samples, person_N: Ints, thumbs: bool
    ) -> None:
        self.name, self.source_label = names(dataset)
        self.dataset, self.emb, self.samples, self.thumbs = dataset, emb, samples, thumbs
        self.person_N = person_N  # first label of each sample's identity, -1 = none

    def side(self, label: int, towards: int | None = None, most: int = FACES) -> Side:
        """Describe an identity, its faces ranked from the nearest to the other's centre."""
        faces = self.images(self._pick(label, towards, most)) if self.thumbs and most else []
        return Side(
            label,
            self.name[label],
            self.source_label[label],
            int(self.samples.count_C[label]),
            faces,
        )

    def called(self, label: int) -> str:
        """Return what to call an identity."""
        return self.name[label] or self.source_label[label]

    def strip(self, label: int, most: int = FACES, but: int = -1) -> Strip:
        """Describe an identity with its name and numbers, under its faces without row `but`."""
        rows = self._pick(label, None, most, but)
        count = int(self.samples.count_C[label])
        images = f"{count} image{'' if count == 1 else 's'}"
        words = f"label {label} \u00b7 source {self.source_label[label]} \u00b7 {images}"
        return Strip(self.called(label), words, self.images(rows), rows.tolist())

    def flagged(self, label: int, rows: Ints, title: str, words: str, to: int = -1) -> Strip:
        """Show images of an identity that a reviewer may act on, and where they might belong."""
        return Strip(
            title, words, self.images(rows[:SET]), rows.tolist(), True, label, to,
            self.called(to) if to >= 0 else "",
        )  # fmt: skip

    def images(self, rows: Iterable[int]) -> list[bytes]:
        """Read the images of rows; none on a page without faces."""
        return [self._read(int(row)) for row in rows] if self.thumbs else []

    def _pick(self, label: int, towards: int | None, most: int, but: int = -1) -> Ints:
        rows: Ints = self.samples.rows(label)
        rows = rows[rows != but]
        centre_D = self.emb.centre_CD[label if towards is None else towards]
        rows = rows[np.argsort(-(self.samples.unit(rows) @ centre_D), kind="stable")]
        if len(rows) > most:  # the nearest, the median and the farthest, evenly over the ranks
            rows = rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]
        return np.asarray(rows, dtype=np.int64)

    def _read(self, row: int) -> bytes:
        try:
            return self.dataset.read(row)
        except GlintError as error:
            if error.code != "GL0303":
                raise
            return b""  # damaged since it was embedded: the page says "no image"


def inside_tab(faces: Faces, inside: Inside) -> Tab:
    """Show the identities that hold two people, then the outliers, each by its own distance."""
    shown = []
    for one in inside.mixed[:EXHIBITS]:
        name, sides = faces.called(one.label), []
        for which, rows in (("first", one.one), ("second", one.two)):
            words = f"{len(rows)} images of label {one.label}"
            if len(rows) > SET:
                words += f", {SET} of them shown"
            sides.append(faces.flagged(one.label, rows, f"{name}, {which} set", words))
        numbers = [
            ("score", f"{one.score:.2f}"),
            ("cosine between the sets", f"{one.cosine:.2f}"),
            ("within them", f"{one.within:.2f}"),
        ]
        shown.append(Exhibit("mask", "two people?", sides, numbers))
    far = inside.outliers
    for i, row in enumerate(far.row[:EXHIBITS].tolist()):
        label, towards = int(faces.person_N[row]), int(inside.towards_f[i])
        name, key = faces.called(label), faces.dataset.key[row]
        title, words = f"not {name}?", f"key {key} \u00b7 label {label}"
        strips = [
            faces.flagged(label, np.array([row]), title, words, towards),
            faces.strip(label, but=row),
        ]
        numbers = [("spreads off", f"{far.z[i]:.1f}"), ("cosine", f"{far.cosine[i]:.2f}")]
        if towards >= 0:
            strips.append(faces.strip(towards, 3))
            numbers.append(("cosine to the nearest other", f"{inside.towards_cosine_f[i]:.2f}"))
        shown.append(Exhibit("keep", "outlier", strips, numbers))
    left = max(len(inside.mixed) - EXHIBITS, 0) + max(len(far.row) - EXHIBITS, 0)
    return Tab(
        "inside",
        "Inside identities",
        "Labels that hold two people, strangest first; then images that are no nearer to their "
        "identity than a stranger is, the farthest first, with the identity that they are nearest "
        "to. Each image stays where it is unless you exclude or move it.",
        shown,
        left,
        "inside.parquet",
    )


def repeats_tab(faces: Faces, inside: Inside) -> Tab:
    """Show repeated images by the identities that share them: several labels first, then many."""
    repeats, shown, left = inside.repeats, [], 0
    for kind, found in (("same bytes", repeats.exact), ("same picture", repeats.near)):
        sets = _by_labels(faces.person_N, found)
        for labels, place in sets[:EXHIBITS]:
            rows, strips = found.row_m[place], []
            for label in labels[:ACROSS]:
                mine = rows[faces.person_N[rows] == label]
                words = f"label {label} \u00b7 {len(mine)} of {faces.samples.count_C[label]} images"
                to = labels[1 - labels.index(label)] if len(labels) == 2 else -1
                strips.append(faces.flagged(label, mine, faces.called(label), words, to))
            numbers = [
                ("pictures", f"{len(np.unique(found.group_m[place]))}"),
                ("images", f"{len(rows)}"),
            ]
            if found is repeats.near:
                numbers += [
                    ("bits apart", f"{int(repeats.bits_m[place].max())}"),
                    ("cosine", f"{float(repeats.cosine_m[place].min()):.3f}"),
                ]
            across = bool(found.across_m[place].any())
            pill = f"{kind}, {'several labels' if across else 'one label'}"
            shown.append(Exhibit("mask" if across else "keep", pill, strips, numbers))
        left += max(len(sets) - EXHIBITS, 0)
    return Tab(
        "duplicates",
        "Repeated images",
        "Images that are there more than once, by the identities that share them: the same bytes, "
        "then the same picture in other bytes. Under several labels a repeat is a strong sign of "
        "one person, or of a wrong label.",
        shown,
        left,
        "duplicates.parquet",
    )


def _by_labels(person_N: Ints, found: Equals) -> list[tuple[tuple[int, ...], Ints]]:
    """Return the places of repeats by the labels that share them.

    Those under several identities come first, then those with the most images.
    """
    label_m = person_N[found.row_m]
    start = np.flatnonzero(np.r_[True, found.group_m[1:] != found.group_m[:-1]])
    sets: dict[tuple[int, ...], list[Ints]] = {}
    for place in np.split(np.arange(len(label_m)), start[1:]) if len(label_m) else ():
        sets.setdefault(tuple(sorted(set(label_m[place].tolist()))), []).append(place)
    joined = [(labels, np.concatenate(places)) for labels, places in sets.items()]
    joined.sort(key=lambda one: (not found.across_m[one[1]].any(), -len(one[1])))
    return joined


def overlap_tab(faces: Faces, overlaps: Sequence[Overlap]) -> Tab:
    """Show who is in other datasets too: leaks first, those kept apart left out."""
    shown, left = [], 0
    for one in overlaps:
        other = Faces(
            one.other.dataset, one.other.emb, one.other.samples, one.other.person_N, faces.thumbs
        )
        across = one.across
        score = np.where(np.isnan(across.evidence.score), -np.inf, across.evidence.score)
        order = np.lexsort((-score, -one.shared_K, ~one.leak_K))  # leaks first
        order = order[across.verdict[order] != "keep"]
        left += max(len(order) - EXHIBITS, 0)
        for k in order[:EXHIBITS].tolist():
            here = faces.strip(int(across.pairs.a[k]))
            there = other.strip(int(across.pairs.b[k]))
            numbers = [
                ("score", f"{across.evidence.score[k]:.2f}"),
                ("centres", f"{across.pairs.cosine[k]:.2f}"),
                ("shared images", f"{one.shared_K[k]}"),
            ]
            title = f"{there.title} in {one.other.name}"
            strips = [here, Strip(title, there.words, there.faces)]
            verdict = "leak" if one.leak_K[k] else str(across.verdict[k])
            kind = "refused" if one.leak_K[k] else str(across.verdict[k])
            shown.append(Exhibit(kind, verdict, strips, numbers))
    counts = "; ".join(
        f"{a['name']}{' (test set)' if a['test'] else ''}: {a['merge']} one person, {a['mask']} "
        f"may be, {a['shared_images']} images in both"
        + (f", {a['leaks']} identities here leak" if a["test"] else "")
        for a in (one.about() for one in overlaps)
    )
    return Tab(
        "overlap",
        "Other datasets",
        f"{counts}. A leak is a test set's person, or one of its images, in this dataset: "
        "leave these identities out of training.",
        shown,
        left,
        "overlap.parquet",
    )
