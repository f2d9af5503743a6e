"""Drawings as numbers of an inline SVG: their frame, and histograms with logarithmic counts."""

# B bins, S values

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Reals = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Frame:
    """A drawing's size and where its axes stand, in its own units."""

    width: int = 640
    height: int = 220
    left: int = 44
    right: int = 632
    top: int = 12
    floor: int = 186

    def x(self, share: float) -> float:
        """Place a share of the horizontal axis."""
        return round(self.left + (self.right - self.left) * share, 1)

    def y(self, share: float) -> float:
        """Place a share of the vertical axis."""
        return round(self.floor - (self.floor - self.top) * share, 1)


FRAME = Frame()


@dataclass(frozen=True)
class Series:
    """One distribution. kind: the CSS class that colours it; filled: an area, else an outline."""

    kind: str
    words: str
    points: str
    filled: bool


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, or a line across the drawing when it has words of its own."""

    at: float
    words: str


@dataclass(frozen=True)
class Chart:
    """One histogram, ready to draw.

    start, stop: the ends of its axis; cut: what a reader's own line counts, empty where there is
    none; note: a sentence to stand under it.
    """

    title: str
    axis: str
    series: Sequence[Series]
    across: Sequence[Tick]
    up: Sequence[Tick]
    lines: Sequence[Tick]
    start: float
    stop: float
    cut: str
    note: str
    frame: Frame = FRAME


def ticks(start: float, stop: float, most: int = 6) -> list[float]:
    """Return round values (1, 2 or 5 times a power of ten apart) within [start, stop]."""
    if not stop > start:
        return [start]
    raw = (stop - start) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    first = math.ceil(start / step - 1e-9)
    return [round(step * k, 12) for k in range(first, int(math.floor(stop / step + 1e-9)) + 1)]


def chart(
    title: str,
    axis: str,
    values: Sequence[tuple[str, str, Reals, bool]],
    lines: Sequence[tuple[float, str]],
    *,
    start: float,
    stop: float,
    step: float = 0.01,
    cut: str = "",
    note: str = "",
    weights: Sequence[Reals] | None = None,
) -> Chart:
    """Draw histograms over one axis: values = (kind, words, S values, filled); NaN is left out.

    Values outside [start, stop] count in the outermost bins. weights: how often each of the S
    values of a histogram counts, by default once.
    """
    bins = max(1, int(round((stop - start) / step)))
    often = [np.ones(len(v)) for _, _, v, _ in values] if weights is None else weights
    counts = [
        np.histogram(
            np.clip(v[np.isfinite(v)], start, stop), bins, (start, stop), weights=w[np.isfinite(v)]
        )[0]
        for (_, _, v, _), w in zip(values, often)
    ]
    top = max([10, *(int(c.max()) for c in counts if c.size)])
    decades = int(np.ceil(np.log10(top)))

    def x(value: float) -> float:
        return FRAME.x((value - start) / (stop - start))

    def y(count: float) -> float:
        if count < 0.5:
            return FRAME.floor
        # One stands a step above none, so that a single pair can be seen.
        return FRAME.y((math.log10(count) + 0.3) / (decades + 0.3))

    series = []
    for (kind, words, _, filled), count in zip(values, counts):
        steps = [(x(start), float(FRAME.floor))]
        for i, number in enumerate(count):
            left, right = start + i * (stop - start) / bins, start + (i + 1) * (stop - start) / bins
            steps += [(x(left), y(number)), (x(right), y(number))]
        steps.append((x(stop), float(FRAME.floor)))
        points = " ".join(f"{a:g},{b:g}" for a, b in steps)
        series.append(Series(kind, f"{words} ({int(count.sum())})", points, filled))
    across = [Tick(x(value), f"{value:.7g}") for value in ticks(start, stop, 10)]
    marks = range(0, decades + 1, 1 if decades <= 7 else 2)
    up = [Tick(y(10.0**d), f"{10**d}" if d < 5 else f"1e{d}") for d in marks]
    drawn = [Tick(x(value), words) for value, words in lines if start <= value <= stop]
    return Chart(title, axis, series, across, up, drawn, start, stop, cut, note)
