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
    left: int = 48
    right: int = 624
    top: int = 12
    floor: int = 180

    def x(self, share: float) -> float:
        """Place a share of the horizontal axis."""
        return round(self.left + (self.right - self.left) * share, 1)

    def y(self, share: float) -> float:
        """Place a share of the vertical axis."""
        return round(self.floor - (self.floor - self.top) * share, 1)


MOST_READS = 400  # strips of a drawing that can be read
LETTER = 10.8  # units that a sign of a tick takes at most: 17 px on a phone


def framed(across: Sequence[float], up: Sequence[float], top: int = 12) -> Frame:
    """Return a frame whose margins hold the words of its ticks."""
    left = 10 + LETTER * max([5, *(len(short(value)) for value in up)])
    right = LETTER / 2 * max([3, *(len(short(value)) for value in across[-1:])])
    return Frame(left=math.ceil(left), right=math.floor(638 - right), top=top)


def number(value: float, form: str = ".4g") -> str:
    """Write a number; nothing has no sign."""
    text = format(value, form)
    return text[1:] if text.startswith("-") and not text.strip("-0.") else text


def short(value: float) -> str:
    """Write a round number for an axis, thousands and more with a letter."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:.7g}{letter}"
    return number(value, ".7g").replace("e-0", "e-")


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
class Read:
    """What a pointer reads at one place of the horizontal axis: a strip and its words.

    values: each with the class that colours it.
    """

    at: float
    left: float
    width: float
    head: str
    values: Sequence[tuple[str, str]]


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
    frame: Frame
    reads: Sequence[Read] = ()


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
    start, stop = start + 0.0, stop + 0.0  # no sign of a zero
    marks = ticks(start, stop, 10)
    powers = [10.0**d for d in range(0, decades + 1, 1 if decades <= 7 else 2)]
    frame = framed(marks, powers)

    def x(value: float) -> float:
        return frame.x((value - start) / (stop - start))

    def y(count: float) -> float:
        if count < 0.5:
            return frame.floor
        # One stands a step above none, so that a single pair can be seen.
        return frame.y((math.log10(count) + 0.3) / (decades + 0.3))

    series = []
    for (kind, words, _, filled), count in zip(values, counts):
        steps = [(x(start), float(frame.floor))]
        for i, many in enumerate(count):
            left, right = start + i * (stop - start) / bins, start + (i + 1) * (stop - start) / bins
            steps += [(x(left), y(many)), (x(right), y(many))]
        steps.append((x(stop), float(frame.floor)))
        points = " ".join(f"{a:g},{b:g}" for a, b in steps)
        series.append(Series(kind, f"{words} ({int(count.sum()):,})", points, filled))
    across = [Tick(x(value), short(value)) for value in marks]
    up = [Tick(y(value), short(value)) for value in powers]
    drawn = [Tick(x(value), words) for value, words in lines if start <= value <= stop]
    reads = []
    each = (stop - start) / bins
    for i in range(bins):
        held = [(kind, f"{words} {int(c[i]):,}") for (kind, words, _, _), c in zip(values, counts)]
        at, a, b = (start + (i + d) * each for d in (0.5, 0, 1))
        head = f"{axis} {number(a)} to {number(b)}"
        reads.append(Read(x(at), x(a), round(x(b) - x(a), 1), head, held))
    return Chart(
        title, axis, series, across, up, drawn, start, stop, cut, note, frame,
        reads if bins <= MOST_READS else (),
    )  # fmt: skip
