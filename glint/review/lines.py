"""Curves over an axis, as the numbers of an inline SVG."""

# S points of a curve

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glint.review.chart import Frame, Read, Tick, framed, number, short, ticks

MOST = 400  # points drawn of a curve; more are averaged
READS = 80  # places where a pointer reads values

Reals = npt.NDArray[np.float64]


Curves = Sequence[tuple[str, Reals, Reals]]


@dataclass(frozen=True)
class Curve:
    """One curve: its words, the points of each unbroken piece, and its last value, if told."""

    number: int
    words: str
    pieces: Sequence[str]
    last: str


@dataclass(frozen=True)
class Lines:
    """One drawing of curves, ready to draw.

    note: how to read it; marks: lines across it with words; epochs: ticks of a second axis.
    """

    title: str
    axis: str
    curves: Sequence[Curve]
    across: Sequence[Tick]
    up: Sequence[Tick]
    frame: Frame
    note: str
    marks: Sequence[Tick]
    epochs: Sequence[Tick]
    reads: Sequence[Read]


@dataclass(frozen=True)
class Scale:
    """The ends of both axes, and where values stand between them."""

    start: float
    stop: float
    low: float
    high: float
    logarithmic: bool

    def across(self, value: float) -> float:
        """Give the share of the horizontal axis."""
        if self.logarithmic:
            return math.log(value / self.start) / math.log(self.stop / self.start)
        return (value - self.start) / (self.stop - self.start)

    def up(self, value: float) -> float:
        """Give the share of the vertical axis; what is beyond it stands at its end."""
        return (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)

    def marks(self) -> list[float]:
        """Return the values that the horizontal axis names."""
        if not self.logarithmic:
            return ticks(self.start, self.stop, 8)
        ends = [math.floor(math.log10(self.start)), math.ceil(math.log10(self.stop))]
        for many in ((1,), (1, 2, 5)):
            values = [m * 10.0**d for d in range(ends[0], ends[1] + 1) for m in many]
            held = [v for v in values if self.start * 0.999 <= v <= self.stop * 1.001]
            if len(held) > 1:
                break
        return held[:: -(-len(held) // 9)]


def lines(
    title: str,
    axis: str,
    values: Curves,
    *,
    bottom: float | None = None,
    top: float | None = None,
    logarithmic: bool = False,
    note: str = "",
    told: bool = True,
    marks: Sequence[tuple[float, str]] = (),
    epoch: float = 0,
) -> Lines | None:
    """Draw curves: values = (words, x of S points ascending, y); a NaN breaks a curve.

    bottom, top: ends of the vertical axis, else those of the values. logarithmic: the horizontal
    axis, whose values must be above 0. told: the legend tells each last value. marks: (x, words)
    of lines across. epoch: steps of one, for a second axis. None where there is nothing to draw.
    """
    known = [(w, x[np.isfinite(x)], y[np.isfinite(x)]) for w, x, y in values]
    numbers = [at for at, (_, _, y) in enumerate(known) if np.isfinite(y).any()]
    sound = [known[at] for at in numbers]  # a curve keeps its colour where others lack
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
        stop = 10 * start if logarithmic else start + 1
    scale = Scale(start, stop, low, high, logarithmic)
    beside, above = ticks(low, high, 5), scale.marks()
    frame = framed(above, beside, 30 if epoch else 12)
    curves: list[Curve] = []
    points: list[tuple[int, str, Reals, Reals]] = []
    for at, (words, x, y) in zip(numbers, sound):
        last = number(y[np.isfinite(y)][-1]) if told else ""
        pieces: list[list[str]] = [[]]
        thin_x, thin_y = thinned(x, y)
        for a, b in zip(thin_x, thin_y):
            if math.isfinite(b):
                pieces[-1].append(f"{frame.x(scale.across(a)):g},{frame.y(scale.up(b)):g}")
            elif pieces[-1]:
                pieces.append([])
        drawn = [" ".join(p if len(p) > 1 else p * 2) for p in pieces if p]
        curves.append(Curve(at, words, drawn, last))
        points.append((at, words, np.array(thin_x), np.array(thin_y)))
    turns = ticks(start / epoch, stop / epoch, 8) if epoch else []
    return Lines(
        title, axis, curves,
        [Tick(frame.x(scale.across(v)), short(v)) for v in above],
        [Tick(frame.y(scale.up(v)), short(v)) for v in beside],
        frame, note,
        [Tick(frame.x(scale.across(x)), words) for x, words in marks if start <= x <= stop],
        [Tick(frame.x(scale.across(v * epoch)), short(v)) for v in turns if v == int(v)],
        _reads(axis, points, scale, frame, epoch),
    )  # fmt: skip


def _reads(
    axis: str,
    points: Sequence[tuple[int, str, Reals, Reals]],
    scale: Scale,
    frame: Frame,
    epoch: float,
) -> list[Read]:
    """Choose places where curves have points, and say what is there."""
    every = np.unique(np.concatenate([x[np.isfinite(y)] for _, _, x, y in points]))
    picked = every[np.unique(np.linspace(0, len(every) - 1, READS).astype(int))]
    share = np.array([scale.across(x) for x in picked])
    edges = np.concatenate([[0.0], (share[1:] + share[:-1]) / 2, [1.0]])
    near = max(0.5 / READS, float(np.diff(edges).max()) / 2)
    held: list[list[tuple[str, str]]] = [[] for _ in picked]
    for at, words, x, y in points:
        sound = np.isfinite(y)
        theirs = np.array([scale.across(a) for a in x[sound]])
        for k, nearest in enumerate(np.abs(theirs - share[:, None]).argmin(1)):
            if abs(theirs[nearest] - share[k]) <= near:
                held[k].append((f"f{at % 8}", f"{words} {number(y[sound][nearest], '.5g')}"))
    made = []
    for k, x in enumerate(picked.tolist()):
        head = f"{axis} {x:,.0f}" if x >= 1 and x == int(x) else f"{axis} {number(x)}"
        head += f", epoch {number(x / epoch, '.3g')}" if epoch else ""
        left, right = frame.x(edges[k]), frame.x(edges[k + 1])
        made.append(Read(frame.x(share[k]), left, round(right - left, 1), head, held[k]))
    return made


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
