"""The conflict report: which pairs stand on it as cards, which faces, which numbers, which tabs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import glint
from glint.conflicts import audit
from glint.conflicts.chance import Compared
from glint.conflicts.decisions import report_id
from glint.conflicts.verdicts import Found
from glint.pipelines.conflicts.exhibits import (
    FACES,
    Faces,
    inside_tab,
    overlap_tab,
    repeats_tab,
)
from glint.pipelines.conflicts.outliers import Inside
from glint.pipelines.conflicts.overlap import Overlap
from glint.review import report
from glint.review.chart import Chart, chart
from glint.review.report import Card, Group, Page, Review
from glint.search.pairs import cosines

CARDS = {"merge": 120, "mask": 100, "keep": 40}  # pairs with faces, most alike first
PAIRS = 100_000  # in the page; the others are in pairs.parquet
AUDIT = 100  # merges drawn for the page's own audit
GROUPS = 100
MEMBERS = 16  # of a group that are shown
TRAINED = 0.4  # the blind filter that training has used so far

Ints = npt.NDArray[np.int64]


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
    of = report_id(path.parent)
    merges = np.flatnonzero(found.verdict == "merge")
    drawn = merges[audit.draw(found.pairs.a[merges], found.pairs.b[merges], AUDIT, of)]
    cards, place = _cards(faces, found, drawn)
    tabs = [inside_tab(faces, inside), repeats_tab(faces, inside)]
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
        left_out=len(found.verdict) - len(cards),
        groups=_groups(faces, found),
        review=Review(of, faces.dataset.classes, len(merges), place, _estimate(about)),
        split={
            "cosine": split.pairs.cosine_K.tolist(),
            "strength": [] if likeness is None else likeness.strength(split.pairs).tolist(),
        },
        tabs=tabs + ([overlap_tab(faces, overlaps)] if overlaps else []),
    )
    report.write(path, page)


def _strength(found: Found) -> npt.NDArray[np.float64]:
    """Return what the judge compares with its cut; NaN where it has no model of likeness."""
    if found.judge.likeness is None:
        return np.full(len(found.verdict), np.nan)
    return found.judge.likeness.strength(Compared(found.pairs.cosine, found.n_a, found.n_b))


def _estimate(about: dict[str, Any]) -> str:
    """Say how many merges the judge expects to be wrong."""
    merges, likeness = about["counts"]["merge"], about["likeness"]
    if not merges:
        return "No pair would merge."
    if likeness is None or about["options"]["threshold"] is not None:
        return f"No audit yet, and no estimate of how many of the {merges} merges are wrong."
    wrong = likeness["expected_wrong"]
    share = f"{wrong:.1f}" if wrong >= 0.1 else "fewer than 0.1"
    return (
        f"Estimate, not audited yet: {share} of the {merges} merges are expected to be wrong, "
        f"at most {likeness['wrong_at_most']}."
    )


def _cards(faces: Faces, found: Found, drawn: Ints) -> tuple[list[Card], list[int]]:
    """Return the pairs of the page, and the places in it of those drawn for the audit.

    These, and the first of each verdict, have faces.
    """
    score = np.where(np.isnan(found.evidence.score), -np.inf, found.evidence.score)
    need, strength = found.judge.merge_cosine(found.n_a, found.n_b), _strength(found)
    order = np.lexsort((found.pairs.b, found.pairs.a, -found.pairs.cosine, -score))
    order = np.r_[order[:PAIRS], np.intersect1d(order[PAIRS:], drawn)]
    chosen = {
        int(k) for name, most in CARDS.items() for k in order[found.verdict[order] == name][:most]
    }
    chosen.update(drawn.tolist())
    cards = []
    for k in order.tolist():
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
    place = {k: i for i, k in enumerate(order.tolist())}
    return cards, [place[k] for k in drawn.tolist()]


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
            f"Groups held together by a chain, or too large: {counts['groups_refused']}. They are "
            "masked, not merged; the tab groups shows them."
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
    cuts = [(TRAINED, "0.4: filter in training without a report")]
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
            note="Each pair by how alike the mean faces of its identities are, beside one "
            "identity split in two: few images make even one person's less alike.",
        )
    ]
    if likeness is None:
        return charts
    note = "Strength is the centre cosine, lowered by how many images stand behind it; "
    if threshold is None:
        marks = [(likeness.cut, f"merge from {likeness.cut:.2f}")]
        note += "pairs beyond the merge line merge"
        if likeness.least:
            note += f" if they are {likeness.least:g} as alike as halves of one identity"
        note += ", unless their group does not hold together."
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
