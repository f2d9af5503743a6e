"""The conflict report: which pairs stand on it as cards, which faces, which numbers, which tabs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import glint
from glint.conflicts.chance import Compared
from glint.conflicts.decisions import report_id
from glint.conflicts.evidence import Samples
from glint.conflicts.verdicts import Found
from glint.errors import GlintError
from glint.pipelines.conflicts.outliers import Inside
from glint.pipelines.conflicts.overlap import Overlap
from glint.review import report
from glint.review.chart import Chart, chart
from glint.review.report import Card, Exhibit, Group, Page, Side, Strip, Tab
from glint.search.pairs import cosines
from glint.shards.dataset import Dataset
from glint.shards.duplicates import Equals
from glint.shards.embeddings import Embeddings

CARDS = {"merge": 120, "mask": 100, "keep": 40}  # pairs with faces, most alike first
PAIRS = 100_000  # in the page; the others stand in pairs.parquet
GROUPS = 100
MEMBERS = 16  # of a group that are shown
FACES = 6  # of an identity
TRAINED = 0.4  # the blind filter that training has used so far
EXHIBITS = 100  # of each kind on a tab; the others stand in the tables
ACROSS = 12  # identities of one group of repeated images

Ints = npt.NDArray[np.int64]


class Faces:
    """Identities as the page shows them: names from the dataset's table, faces from its shards."""

    def __init__(
        self, dataset: Dataset, emb: Embeddings, samples: Samples, person_N: Ints, thumbs: bool
    ) -> None:
        table = dataset.identities()
        self.name = table.column("name").to_pylist()
        self.source_label = table.column("source_label").to_pylist()
        if "dataset" in table.column_names:  # merged: where each identity came from
            came = table.column("dataset").to_pylist()
            self.source_label = [f"{a}: {b}" for a, b in zip(came, self.source_label)]
        self.dataset, self.emb, self.samples, self.thumbs = dataset, emb, samples, thumbs
        self.person_N = person_N  # first label of each sample's identity, -1 = none

    def side(self, label: int, towards: int | None = None, most: int = FACES) -> Side:
        """Describe an identity, its faces ranked from the nearest to the other's centre."""
        faces = self.images(self._pick(label, towards, most)) if self.thumbs and most else []
        return Side(
            label,
            self.name[label] or "",
            str(self.source_label[label]),
            int(self.samples.count_C[label]),
            faces,
        )

    def strip(self, label: int, most: int = FACES) -> Strip:
        """Describe an identity with its name and numbers, under its faces."""
        side = self.side(label, None, most)
        images = f"{side.images} image{'' if side.images == 1 else 's'}"
        words = f"label {side.label} \u00b7 source {side.source_label} \u00b7 {images}"
        return Strip(side.name or side.source_label, words, side.faces)

    def images(self, rows: Iterable[int]) -> list[bytes]:
        """Read the images of rows; none on a page without faces."""
        return [self._read(int(row)) for row in rows] if self.thumbs else []

    def _pick(self, label: int, towards: int | None, most: int) -> Ints:
        rows = self.samples.rows(label)
        centre_D = self.emb.centre_CD[label if towards is None else towards]
        rows = rows[np.argsort(-(self.samples.unit(rows) @ centre_D), kind="stable")]
        if len(rows) <= most:
            return rows
        # The nearest, the median and the farthest, evenly over the ranks.
        rank = np.linspace(0, len(rows) - 1, most).round().astype(np.int64)
        return np.asarray(rows[rank], dtype=np.int64)

    def _read(self, row: int) -> bytes:
        try:
            return self.dataset.read(row)
        except GlintError as error:
            if error.code != "GL0303":
                raise
            return b""  # damaged since it was embedded: the page says "no image"


def write(
    path: Path,
    faces: Faces,
    found: Found,
    about: dict[str, Any],
    inside: Inside,
    overlaps: Sequence[Overlap],
) -> None:
    """Write report.html beside the conflicts.json that holds `about`."""
    counts = about["counts"]
    cards, left_out = _cards(faces, found)
    tabs = [_inside(faces, inside), _repeats(faces, inside)]
    split = found.calibration.genuine
    likeness = found.judge.likeness
    page = Page(
        title="Identities that look like one person",
        facts=_facts(found, about),
        thumbs=faces.thumbs,
        charts=_charts(found),
        counts=[
            ("merge", f"{counts['merge']}", "pairs to merge"),
            ("mask", f"{counts['mask']}", "pairs to mask"),
            ("keep", f"{counts['keep']}", "pairs to keep apart"),
            ("", f"{counts['groups']}", f"groups, largest {counts['largest_group']}"),
            ("", f"{counts['identities']} \u2192 {counts['identities_after']}", "identities"),
            ("", f"{counts['images_in_groups']}", "images in these groups"),
            ("", f"{counts['mixed']}", "identities of two people"),
            ("", f"{counts['outliers']}", "outliers"),
            ("", f"{counts['duplicates'] + counts['near_duplicates']}", "repeated images"),
        ],
        notes=_notes(found, counts)
        + [f"{one['name']}: {one['note']}" for one in about["against"] if one["note"]],
        cards=cards,
        left_out=left_out,
        groups=_groups(faces, found),
        report=report_id(path.parent),
        split={
            "cosine": split.pairs.cosine_K.tolist(),
            "strength": [] if likeness is None else likeness.strength(split.pairs).tolist(),
        },
        tabs=tabs + ([_overlap(faces, overlaps)] if overlaps else []),
    )
    report.write(path, page)


def _strength(found: Found) -> npt.NDArray[np.float64]:
    """Return what the judge compares with its cut; NaN where it has no model of likeness."""
    if found.judge.likeness is None:
        return np.full(len(found.verdict), np.nan)
    return found.judge.likeness.strength(Compared(found.pairs.cosine, found.n_a, found.n_b))


def _cards(faces: Faces, found: Found) -> tuple[list[Card], int]:
    """Return the pairs of the page, the first of each verdict with faces, and how many it lacks."""
    score = np.where(np.isnan(found.evidence.score), -np.inf, found.evidence.score)
    need, strength = found.judge.merge_cosine(found.n_a, found.n_b), _strength(found)
    order = np.lexsort((found.pairs.b, found.pairs.a, -found.pairs.cosine, -score))
    chosen = {
        int(k) for name, most in CARDS.items() for k in order[found.verdict[order] == name][:most]
    }
    cards = []
    for k in order[:PAIRS].tolist():
        a, b, most = int(found.pairs.a[k]), int(found.pairs.b[k]), FACES if k in chosen else 0
        card = Card(
            faces.side(a, b, most),
            faces.side(b, a, most),
            float(found.pairs.cosine[k]),
            float(found.evidence.cross_mean[k]),
            float(found.evidence.cross_q10[k]),
            float(found.evidence.score[k]),
            float(strength[k]),
            float(need[k]),
            str(found.verdict[k]),
            found.reason[k],
            float(found.probability[k]),
        )
        cards.append(card)
    return cards, len(order[PAIRS:])


def _notes(found: Found, counts: dict[str, Any]) -> list[str]:
    notes = []
    if found.judge.note:
        notes.append(found.judge.note)
    if found.judge.likeness is None:
        notes.append(
            "Too few identities have two images to calibrate on: scores are not "
            "comparable and nothing merges without --threshold."
        )
    if counts["samples_excluded"] or counts["classes_excluded"]:
        notes.append(
            f"{counts['samples_excluded']} images and {counts['classes_excluded']} "
            "identities have no usable embedding and took no part."
        )
    if counts["groups_refused"]:
        notes.append(
            f"{counts['groups_refused']} groups are held together by a chain or are too "
            "large: they are masked, not merged. Look at them below."
        )
    return notes


def _facts(found: Found, about: dict[str, Any]) -> list[tuple[str, str]]:
    options, calibration = about["options"], about["calibration"]
    if options["threshold"] is not None:
        cut = f"merge at centre cosine {options['threshold']}"
    elif calibration["merge_from"]:
        sizes = [tuple(map(int, size.split("x"))) for size in calibration["merge_from"]]
        least = [f"{n}x{m} {float(found.judge.merge_cosine(n, m)):.2f}" for n, m in sizes]
        cut = (
            f"merge from centre cosine, by images a side: {', '.join(least)}; so that at most "
            f"{options['rate']:.2%} of merges are wrong (an estimate; a reviewed sample is the "
            "proof)"
        )
    else:
        cut = "nothing merges by itself"
    return [
        ("dataset", f"{about['dataset']['absolute']}"),
        ("digest", about["dataset"]["digest"]),
        ("label version", str(about["dataset"]["label_version"])),
        ("recogniser", f"{about['embeddings']['name']} ({about['embeddings']['model']})"),
        ("searched from", f"centre cosine {options['low']:.3f}, exact, engine {about['engine']}"),
        ("thresholds", cut),
        ("mask", "from probability 0.05"),
        (
            "calibrated on",
            f"{calibration['genuine_splits']} splits of one identity, "
            f"{calibration['impostor_pairs']} random pairs of two",
        ),
        ("groups", f"at most {options['cap']} identities"),
        ("command", about["command"] or "(called from Python)"),
        ("made", f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC by glint {glint.__version__}"),
    ]


def _charts(found: Found) -> list[Chart]:
    """Draw the pairs by centre cosine and, where a model judges, by strength with its cuts."""
    judge, split = found.judge, found.calibration.genuine
    likeness, threshold = judge.likeness, judge.threshold
    start = min(judge.low, 0.3) - 0.05
    cuts = [(TRAINED, "blind training filter 0.4")]
    if threshold is not None:
        cuts.append((threshold, f"merge from {threshold:g}"))
    charts = [
        chart(
            "Pairs of identities by the cosine of their centres",
            "centre cosine",
            [
                ("pairs", "pairs", found.pairs.cosine, True),
                ("same", "one identity split in two", split.pairs.cosine_K, False),
            ],
            cuts,
            start=start,
            stop=1.0,
            cut="cosine",
            note="How alike the mean faces of two identities are: few images make even those of "
            "one person less alike.",
        )
    ]
    if likeness is None:
        return charts
    note = "Strength is the centre cosine, lowered by how many images stand behind it; "
    if threshold is None:
        marks = [(likeness.cut, f"merge from {likeness.cut:.2f}")]
        note += "from the merge line on pairs merge, "
        if likeness.least:
            note += f"if they are {likeness.least:g} as alike as halves of one identity, "
        note += "unless their group does not hold together."
    else:
        marks = []
        note += "merges were decided on the centre cosine instead, by --threshold."
    if likeness.mask_cut < likeness.cut:
        marks.append((likeness.mask_cut, f"mask from {likeness.mask_cut:.2f}"))
    strength = _strength(found)
    by_verdict = [
        (name, name, strength[found.verdict == name], True) for name in ("keep", "mask", "merge")
    ]
    charts.append(
        chart(
            "Pairs by strength: what the judge decides on",
            "strength",
            [
                *by_verdict,
                ("same", "one identity split in two", likeness.strength(split.pairs), False),
            ],
            marks,
            start=start,
            stop=1.0,
            cut="strength",
            note=note,
        )
    )
    return charts


def _groups(faces: Faces, found: Found) -> list[Group]:
    pieces = [(piece, why) for piece, why in found.groups.refused] + [
        (piece, "") for piece in found.groups.merged if len(piece) > 2
    ]
    shown = []
    for number, (piece, why) in enumerate(pieces[:GROUPS], 1):
        piece = piece[:MEMBERS]
        i, j = np.divmod(np.arange(len(piece) ** 2), len(piece))
        cosine = cosines(faces.emb.centre_CD, piece[i], piece[j]).reshape(len(piece), -1)
        sides = [faces.side(int(label), None, 3) for label in piece]
        shown.append(Group(number, sides, cosine.tolist(), why))
    return shown


def _inside(faces: Faces, inside: Inside) -> Tab:
    shown = []
    for one in inside.mixed[:EXHIBITS]:
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
    for i, row in enumerate(far.row[:EXHIBITS].tolist()):
        label, towards = int(faces.person_N[row]), int(inside.towards_f[i])
        strips = [
            Strip("far from its identity", f"key {faces.dataset.key[row]}", faces.images([row])),
            faces.strip(label),
        ]
        numbers = [("z", f"{far.z[i]:.1f}"), ("cosine", f"{far.cosine[i]:.2f}")]
        if towards >= 0:
            strips.append(faces.strip(towards, 3))
            numbers.append(("nearest other", f"{inside.towards_cosine_f[i]:.2f}"))
        shown.append(Exhibit("keep", "outlier", strips, numbers))
    left = max(len(inside.mixed) - EXHIBITS, 0) + max(len(far.row) - EXHIBITS, 0)
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
        across, number = _several(found)
        for g in number[:EXHIBITS].tolist():
            place = np.flatnonzero(found.group_m == g)
            rows = found.row_m[place]
            strips = []
            for label in np.unique(faces.person_N[rows]).tolist()[:ACROSS]:
                mine = rows[faces.person_N[rows] == label]
                side = faces.strip(label, 0)
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
        left += max(len(number) - EXHIBITS, 0)
    return Tab(
        "duplicates",
        "Repeated images",
        "Images that stand more than once: the same bytes, then the same picture in other bytes. "
        "Under several labels a repeat is a strong sign of one person, or of a wrong label.",
        shown,
        left,
        "duplicates.parquet",
    )


def _several(found: Equals) -> tuple[npt.NDArray[np.bool_], Ints]:
    """Return whether each group stands under several labels, and the groups, those first."""
    count = int(found.group_m.max(initial=-1)) + 1
    across = np.zeros(count, bool)
    across[found.group_m[found.across_m]] = True
    return across, np.argsort(~across, kind="stable")


def _overlap(faces: Faces, overlaps: Sequence[Overlap]) -> Tab:
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
