"""What the conflict report shows: which pairs as cards, which faces, which numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import glint
from glint.conflicts.decisions import report_id
from glint.conflicts.evidence import Samples
from glint.conflicts.verdicts import Found
from glint.errors import GlintError
from glint.pipelines.embed import Embeddings
from glint.review import report
from glint.review.chart import Chart, chart
from glint.review.report import Card, Group, Page, Side, Tab
from glint.search import pairs
from glint.shards.dataset import Dataset

CARDS = {"merge": 120, "mask": 100, "keep": 40}  # pairs with faces, most alike first
PAIRS = 100_000  # in the page; the others stand in pairs.parquet
GROUPS = 100
FACES = 6  # per identity
TRAINED = 0.4  # the blind filter that training has used so far


class Faces:
    """Sides of cards: names from the identities table, faces from the shards."""

    def __init__(self, dataset: Dataset, emb: Embeddings, samples: Samples, thumbs: bool) -> None:
        table = dataset.identities()
        self.name = table.column("name").to_pylist()
        self.source_label = table.column("source_label").to_pylist()
        if "dataset" in table.column_names:  # merged: where each identity came from
            came = table.column("dataset").to_pylist()
            self.source_label = [f"{a}: {b}" for a, b in zip(came, self.source_label)]
        self.dataset, self.emb, self.samples, self.thumbs = dataset, emb, samples, thumbs

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

    def images(self, rows: Iterable[int]) -> list[bytes]:
        """Read the images of rows; none on a page without faces."""
        return [self._read(int(row)) for row in rows] if self.thumbs else []

    def _pick(self, label: int, towards: int | None, most: int) -> npt.NDArray[np.int64]:
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
        except GlintError:
            return b""  # damaged since it was embedded: the page says "no image"


def write(
    path: Path,
    dataset: Dataset,
    emb: Embeddings,
    samples: Samples,
    found: Found,
    about: dict[str, Any],
    *,
    thumbs: bool = True,
    tabs: Callable[[Faces], Sequence[Tab]] = lambda faces: (),
) -> None:
    """Write report.html beside the conflicts.json that it is about. tabs: more, besides pairs."""
    name = report_id(path.parent)
    made = page(dataset, emb, samples, found, about, thumbs=thumbs, name=name)
    more = tabs(Faces(dataset, emb, samples, thumbs))
    report.write(path, replace(made, tabs=more))


def page(
    dataset: Dataset,
    emb: Embeddings,
    samples: Samples,
    found: Found,
    about: dict[str, Any],
    *,
    thumbs: bool = True,
    name: str = "",
) -> Page:
    """Choose and describe what the page shows."""
    faces = Faces(dataset, emb, samples, thumbs)
    score = np.where(np.isnan(found.evidence.score), -np.inf, found.evidence.score)
    likeness, genuine = found.judge.likeness, found.calibration.genuine
    need = np.full(len(score), np.inf)
    if likeness is not None:
        need = likeness.merge_from(found.n_a, found.n_b)
    order = np.lexsort((found.pairs.b, found.pairs.a, -found.pairs.cosine, -score))
    chosen = {
        int(k) for name, most in CARDS.items() for k in order[found.verdict[order] == name][:most]
    }

    def card(k: int, most: int) -> Card:
        a, b = int(found.pairs.a[k]), int(found.pairs.b[k])
        return Card(
            faces.side(a, b, most),
            faces.side(b, a, most),
            float(found.pairs.cosine[k]),
            float(found.evidence.cross_mean[k]),
            float(found.evidence.cross_q10[k]),
            float(found.evidence.score[k]),
            float(need[k]),
            str(found.verdict[k]),
            found.reason[k],
            float(found.probability[k]),
        )

    counts = about["counts"]
    return Page(
        title="Identities that look like one person",
        facts=_facts(about),
        thumbs=thumbs,
        charts=_charts(found, about),
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
        cards=[card(int(k), FACES if int(k) in chosen else 0) for k in order[:PAIRS]],
        left_out=len(order[PAIRS:]),
        groups=_groups(faces, emb, found),
        report=name,
        split=(
            genuine.pairs.cosine_K.tolist(),
            genuine.score_S.tolist(),
        ),
    )


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


def _facts(about: dict[str, Any]) -> list[tuple[str, str]]:
    options, calibration = about["options"], about["calibration"]
    rate = ""
    if calibration["model"]:
        rate = (
            f", so that at most {options['rate']:.2%} of merges are wrong (an estimate; a reviewed "
            "sample is the proof)"
        )
    cut = (
        "merge at centre cosine " + f"{options['threshold']}"
        if (options["threshold"] is not None)
        else f"merge from score{rate}, by images a side: "
        + (
            ", ".join(f"{size} {value:.2f}" for size, value in calibration["merge_from"].items())
            or "none (not calibrated)"
        )
    )
    return [
        ("dataset", f"{about['dataset']['absolute']}"),
        ("digest", about["dataset"]["digest"]),
        ("label version", str(about["dataset"]["label_version"])),
        ("recogniser", f"{about['embeddings']['name']} ({about['embeddings']['model']})"),
        ("searched from", f"centre cosine {options['low']:.3f}, exact, engine {about['engine']}"),
        ("thresholds", cut),
        (
            "mask",
            "from probability 0.05",
        ),
        (
            "calibrated on",
            f"{calibration['genuine_splits']} splits of one identity, "
            f"{calibration['impostor_pairs']} random pairs of two",
        ),
        ("groups", f"at most {options['cap']} identities"),
        ("command", about["command"] or "(called from Python)"),
        ("made", f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC by glint {glint.__version__}"),
    ]


def _charts(found: Found, about: dict[str, Any]) -> list[Chart]:
    threshold, genuine = about["options"]["threshold"], found.calibration.genuine
    cuts = [(TRAINED, "blind training filter 0.4")]
    if threshold is not None:
        cuts.append((threshold, f"merge from {threshold:g}"))
    calibration = about["calibration"]["merge_from"]
    marks = (
        [
            (calibration[size], f"merge, {words}")
            for size, words in (("1x1", "1 image a side"), ("8x8", "8"))
            if size in calibration
        ]
        if (threshold is None)
        else []
    )
    score, start = found.evidence.score, min(found.judge.low, 0.3) - 0.05
    by_verdict = [
        (name, name, score[found.verdict == name], True) for name in ("keep", "mask", "merge")
    ]
    return [
        chart(
            "Pairs of identities by the cosine of their centres",
            "centre cosine",
            [
                ("pairs", "pairs", found.pairs.cosine, True),
                (
                    "same",
                    "one identity split in two",
                    genuine.pairs.cosine_K,
                    False,
                ),
            ],
            cuts,
            start=start,
            stop=1.0,
            cut="cosine",
        ),
        chart(
            "Pairs by score: 1 is what one person shows",
            "score",
            [
                *by_verdict,
                ("same", "one identity split in two", genuine.score_S, False),
            ],
            marks,
            start=0.0,
            stop=1.5,
            step=0.02,
            cut="score",
        ),
    ]


def _groups(faces: Faces, emb: Embeddings, found: Found) -> list[Group]:
    pieces = [(piece, why) for piece, why in found.groups.refused] + [
        (piece, "") for piece in found.groups.merged if len(piece) > 2
    ]
    shown = []
    for number, (piece, why) in enumerate(pieces[:GROUPS], 1):
        piece = piece[:16]
        i, j = np.divmod(np.arange(len(piece) ** 2), len(piece))
        cosine = pairs.cosines(emb.centre_CD, piece[i], piece[j]).reshape(len(piece), -1)
        shown.append(
            Group(
                number, [faces.side(int(label), None, 3) for label in piece], cosine.tolist(), why
            )
        )
    return shown
