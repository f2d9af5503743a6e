"""The page of an evaluation: accept rates by false accept rate, cosines of pairs, tables."""

# p points of the curve

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glint.review.chart import Chart, chart, number
from glint.review.lines import Lines, lines
from glint.review.plots import Plots, Table, write


def drawing(name: str, result: dict[str, Any]) -> tuple[list[Lines], list[Chart], list[Table]]:
    """Draw the curve, the histograms and the table of accept rates.

    result: as `glint eval --json` has it: roc (points of FAR and TAR), histogram (counts of genuine
    and impostors over equal bins of [-1, 1]), tar_at_far and threshold_at_far by FAR, and
    where there are, tar_at_nearest_far and `cuts`, cosines with their words to mark.
    """
    curves: list[Lines] = []
    if len(result["roc"]) > 1:
        far_p, tar_p = (np.array(side, np.float64) for side in zip(*result["roc"]))
        found = lines(
            f"{name}: same-person pairs accepted, %, by false accept rate", "FAR",
            [("TAR", far_p, 100 * tar_p)], top=100.0, logarithmic=True, told=False,
            note="TAR: how many pairs of one person are accepted where so many pairs of different "
            "people (FAR, a logarithmic axis) are accepted too. Higher is better.",
        )  # fmt: skip
        curves = [found] if found is not None else []
    counts = [np.array(result["histogram"][kind], np.float64) for kind in ("impostors", "genuine")]
    bins = len(counts[0])
    centre = (np.arange(bins) + 0.5) * 2 / bins - 1
    filled = np.flatnonzero(counts[0] + counts[1])
    cuts = result.get("cuts") or [
        (value, f"FAR {far}")
        for far, value in result["threshold_at_far"].items()
        if value is not None and value > -1
    ]
    charts = []
    if len(filled):
        charts = [
            chart(
                f"{name}: cosines of pairs", "cosine",
                [("pairs", "different people", centre, True),
                 ("same", "the same person", centre, False)],
                cuts[:1],
                start=float(np.floor(10 * centre[filled[0]]) / 10),
                stop=float(np.ceil(10 * centre[filled[-1]]) / 10),
                step=2 / bins,
                weights=counts,
                note="How many pairs have each cosine, on a logarithmic axis: the less both kinds "
                "overlap, the better.",
            )
        ]  # fmt: skip
    digits = digits_of(result["genuine"])
    columns = [("TAR %", "tar_at_far", digits), ("TAR at the nearest FAR %", "tar_at_nearest_far",
               digits), ("threshold, cosine", "threshold_at_far", None)]  # fmt: skip
    columns = [one for one in columns if one[1] in result]
    rows = [
        (far, *(_words(result[key][far], places) for _, key, places in columns))
        for far in result["tar_at_far"]
    ]
    heads = ("FAR", *(words for words, _, _ in columns))
    return curves, charts, [Table(f"{name}: accept rates", heads, rows)]


def digits_of(count: int) -> int:
    """Return the decimals of a percentage of so many: two, more where one of them is worth less."""
    return min(4, max(2, math.ceil(math.log10(max(1, count)) - 2)))


def _words(value: float | None, digits: int | None) -> str:
    """Write a share in per cent with so many decimals, or a cosine."""
    if value is None:
        return "-"
    return number(value, ".4f") if digits is None else number(100 * value, f".{digits}f")


def write_page(
    path: Path,
    title: str,
    results: Sequence[tuple[str, dict[str, Any]]],
    *,
    facts: Sequence[tuple[str, str]] = (),
    tables: Sequence[Table] = (),
    notes: Sequence[str] = (),
    headline: Sequence[tuple[str, str]] = (),
) -> None:
    """Write the page of results as `drawing` takes them, each with a name. Raises ResourceError."""
    parts = [drawing(name, result) for name, result in results]
    counts = [*headline]
    for name, result in results:
        tars = [(far, tar) for far, tar in result["tar_at_far"].items() if tar is not None]
        tars = [one for one in tars if float(one[0]) * result["impostors"] >= 1] or tars
        if tars:
            far, tar = min(tars, key=lambda pair: abs(np.log10(float(pair[0])) + 4))
            text = number(100 * tar, f".{digits_of(result['genuine'])}f")
            counts.append((f"{text} %", f"{name}, TAR at FAR {far}"))
        counts.append((f"{result['genuine']:,}", "pairs of the same person"))
        counts.append((f"{result['impostors']:,}", "pairs of different people"))
    write(
        path,
        Plots(
            title,
            counts[:6],
            facts,
            [line for part in parts for line in part[0]],
            [drawn for part in parts for drawn in part[1]],
            [table for part in parts for table in part[2]] + list(tables),
            notes,
        ),
    )
