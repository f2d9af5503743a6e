"""The report's tabs beside the pairs: inside identities, repeated images, other datasets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from glint.pipelines.conflicts.outliers import Inside
from glint.pipelines.conflicts.overlap import Overlap
from glint.pipelines.conflicts.page import Faces
from glint.review.report import Exhibit, Side, Strip, Tab
from glint.shards.duplicates import Equals

SHOWN = 100  # of each kind; the others stand in the tables
FACES = 6  # of an identity
ACROSS = 12  # images of one group of repeats


def tabs(faces: Faces, inside: Inside, overlaps: Sequence[Overlap]) -> list[Tab]:
    """Describe the tabs, each with what was found first."""
    made = [_inside(faces, inside), _repeats(faces, inside)]
    return made + ([_overlap(faces, overlaps)] if overlaps else [])


def identity(side: Side) -> Strip:
    """Show an identity with its name and number."""
    images = f"{side.images} image{'' if side.images == 1 else 's'}"
    words = f"label {side.label} \u00b7 source {side.source_label} \u00b7 {images}"
    return Strip(side.name or side.source_label, words, side.faces)


def _inside(faces: Faces, inside: Inside) -> Tab:
    shown = []
    for one in inside.mixed[:SHOWN]:
        sides = [
            Strip(
                f"set {number} of label {one.label}",
                f"{len(rows)} images looked at",
                faces.images(rows[:FACES]),
            )
            for number, rows in enumerate((one.one, one.two), 1)
        ]
        numbers = [
            ("score", f"{one.score:.2f}"),
            ("cosine across", f"{one.cosine:.2f}"),
            ("within", f"{one.within:.2f}"),
        ]
        shown.append(Exhibit("mask", "two people?", sides, numbers))
    far = inside.outliers
    for i, row in enumerate(far.row[:SHOWN].tolist()):
        label, towards = int(faces.dataset.label[row]), int(inside.towards_f[i])
        strips = [
            Strip("far from its identity", f"key {faces.dataset.key[row]}", faces.images([row])),
            identity(faces.side(label, None, FACES)),
        ]
        numbers = [("z", f"{far.z[i]:.1f}"), ("cosine", f"{far.cosine[i]:.2f}")]
        if towards >= 0:
            strips.append(identity(faces.side(towards, None, 3)))
            numbers.append(("nearest other", f"{inside.towards_cosine_f[i]:.2f}"))
        shown.append(Exhibit("keep", "outlier", strips, numbers))
    left = max(len(inside.mixed) - SHOWN, 0) + max(len(far.row) - SHOWN, 0)
    return Tab(
        "inside",
        "Inside identities",
        "Labels that hold two people, strangest first; then images that are no nearer to their "
        "identity than a stranger is, the farthest first, with the identity that they are nearest "
        "to. Nothing of this is applied.",
        shown,
        left,
        "inside.parquet",
    )


def _repeats(faces: Faces, inside: Inside) -> Tab:
    repeats, shown, left = inside.repeats, [], 0
    for kind, found in (("same bytes", repeats.exact), ("same picture", repeats.near)):
        across, number = _groups(found)
        for g in number[:SHOWN].tolist():
            place = np.flatnonzero(found.group_m == g)
            rows = found.row_m[place]
            strips = []
            for label in np.unique(faces.dataset.label[rows]).tolist()[:ACROSS]:
                mine = rows[faces.dataset.label[rows] == label]
                side = identity(faces.side(label, None, 0))
                keys = ", ".join(faces.dataset.key[row] for row in mine[:3].tolist())
                strips.append(
                    Strip(side.title, f"{side.words} \u00b7 key {keys}", faces.images(mine[:3]))
                )
            numbers = [("images", f"{len(rows)}")]
            if found is repeats.near:
                numbers += [
                    ("bits apart", f"{int(repeats.bits_m[place].max())}"),
                    ("cosine", f"{float(repeats.cosine_m[place].min()):.3f}"),
                ]
            pill = f"{kind}, {'several labels' if across[g] else 'one label'}"
            shown.append(Exhibit("mask" if across[g] else "keep", pill, strips, numbers))
        left += max(len(number) - SHOWN, 0)
    return Tab(
        "duplicates",
        "Repeated images",
        "Images that stand more than once: the same bytes, then the same picture in other bytes. "
        "Under several labels a repeat is a strong sign of one person, or of a wrong label.",
        shown,
        left,
        "duplicates.parquet",
    )


def _groups(found: Equals) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each group stands under several labels, and the groups, those first."""
    count = int(found.group_m.max(initial=-1)) + 1
    across = np.zeros(count, bool)
    across[found.group_m[found.across_m]] = True
    return across, np.argsort(~across, kind="stable")


def _overlap(faces: Faces, overlaps: Sequence[Overlap]) -> Tab:
    shown, left = [], 0
    for one in overlaps:
        other = Faces(one.other.dataset, one.other.emb, one.other.samples, faces.thumbs)
        across = one.across
        strength = np.where(np.isnan(across.evidence.score), -np.inf, across.evidence.score)
        told = np.flatnonzero(across.verdict != "keep")
        told = told[np.lexsort((-strength[told], -one.shared_K[told], ~one.leak_K[told]))]
        left += max(len(told) - SHOWN, 0)
        for k in told[:SHOWN].tolist():
            here = identity(faces.side(int(across.pairs.a[k]), None, FACES))
            there = identity(other.side(int(across.pairs.b[k]), None, FACES))
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
