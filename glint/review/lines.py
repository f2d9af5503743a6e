"""Curves over an axis, as the numbers of an inline SVG."""

# S points of a curve

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glint.review.chart import FRAME, Frame, Tick, ticks

MOST = 400  # points drawn of a curve; more are averaged

Reals = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One curve: its words, the points of each unbroken piece, and its last value."""

    number: int
    words: str
    pieces: Sequence[str]
    last: str


@dataclass(frozen=True)
class Lines:
    """One drawing of curves, ready to draw."""

    title: str
    axis: str
    curves: Sequence[Curve]
    across: Sequence[Tick]
    up: Sequence[Tick]
    frame: Frame = FRAME


def lines(
    title: str,
    axis: str,
    values: Sequence[tuple[str, Reals, Reals]],
    *,
    bottom: float | None = None,
    top: float | None = None,
    logarithmic: bool = False,
) -> Lines | None:
    """Draw curves: values = (words, x of S points ascending, y); a NaN breaks a curve.

    bottom, top: ends of the vertical axis, else those of the values. logarithmic: the horizontal
    axis, whose values must be above 0. None where there is nothing to draw.
    """
    known = [(w, x[np.isfinite(x)], y[np.isfinite(x)]) for w, x, y in values]
    numbers = [number for number, (_, _, y) in enumerate(known) if np.isfinite(y).any()]
    sound = [known[number] for number in numbers]  # a curve keeps its colour where others lack
    if not sound:
        return None
    seen = np.concatenate([y[np.isfinite(y)] for _, _, y in sound])
    low = float(seen.min()) if bottom is None else bottom
    high = float(seen.max()) if top is None else top
    if high <= low:
        low, high = low - 0.5, high + 0.5
    ends = np.concatenate([x for _, x, _ in sound])
    start, stop = float(ends.min()), float(ends.max())
    if stop <= start:
        stop = start + 1

    def place(value: float) -> float:
        if logarithmic:
            share = math.log(value / start) / math.log(stop / start)
        else:
            share = (value - start) / (stop - start)
        return FRAME.x(share)

    def rise(value: float) -> float:
        return FRAME.y((min(max(value, low), high) - low) / (high - low))

    curves = []
    for number, (words, x, y) in zip(numbers, sound):
        last = y[np.isfinite(y)][-1]
        pieces: list[list[str]] = [[]]
        for at, value in zip(*thinned(x, y)):
            if math.isfinite(value):
                pieces[-1].append(f"{place(at):g},{rise(value):g}")
            elif pieces[-1]:
                pieces.append([])
        drawn = [" ".join(p if len(p) > 1 else p * 2) for p in pieces if p]
        curves.append(Curve(number, words, drawn, f"{last:.4g}"))
    if logarithmic:
        marks = [10.0**d for d in range(math.ceil(math.log10(start)), int(math.log10(stop)) + 1)]
        across = [Tick(place(v), f"{v:g}") for v in marks]
    else:
        across = [Tick(place(v), f"{v:g}") for v in ticks(start, stop, 8)]
    up = [Tick(rise(v), f"{v:g}") for v in ticks(low, high, 5)]
    return Lines(title, axis, curves, across, up)


def thinned(x: Reals, y: Reals) -> tuple[list[float], list[float]]:
    """Average runs of points so that at most MOST are left; the NaN of a run are left out."""
    if len(x) <= MOST:
        return x.tolist(), y.tolist()
    cuts = np.linspace(0, len(x), MOST + 1).astype(int)
    at, value = [], []
    for a, b in itertools.pairwise(cuts.tolist()):
        good = np.isfinite(y[a:b])
        at.append(float(x[a:b].mean()))
        value.append(float(y[a:b][good].mean()) if good.any() else math.nan)
    return at, value
