"""Curves: where points land, what is left out, what is averaged."""

from __future__ import annotations

import numpy as np
import pytest

from glint.review.chart import ticks
from glint.review.lines import MOST, lines, thinned


def places(piece: str) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in (point.split(",") for point in piece.split())]


def test_points_land_on_their_axes() -> None:
    x, y = np.array([0.0, 5.0, 10.0]), np.array([0.0, 2.0, 1.0])
    drawing = lines("t", "step", [("a", x, y)])
    assert drawing is not None
    (curve,) = drawing.curves
    frame = drawing.frame
    first, middle, last = places(curve.pieces[0])
    assert first == (frame.left, frame.floor)
    assert middle[1] == frame.top
    assert last == (frame.right, (frame.floor + frame.top) / 2)
    assert middle[0] == (first[0] + last[0]) / 2
    assert curve.last == "1"
    marks = {tick.words: tick.at for tick in drawing.across}
    assert marks["0"] == frame.left and marks["10"] == frame.right


def test_a_hole_breaks_a_curve_and_values_beyond_the_axis_stay_inside() -> None:
    y = np.array([1.0, np.nan, 9.0, 2.0])
    drawing = lines("t", "step", [("a", np.arange(4.0), y)], bottom=0.0, top=3.0)
    assert drawing is not None
    first, second = drawing.curves[0].pieces
    assert len(places(first)) == 2 and places(first)[0] == places(first)[1]  # a dot
    assert places(second)[0][1] == drawing.frame.top


def test_nothing_to_draw_is_none() -> None:
    assert lines("t", "step", []) is None
    assert lines("t", "step", [("a", np.arange(2.0), np.full(2, np.nan))]) is None


def test_a_logarithmic_axis() -> None:
    x = np.array([1e-4, 1e-2, 1.0])
    drawing = lines("t", "FAR", [("a", x, np.array([0.2, 0.5, 1.0]))], logarithmic=True)
    assert drawing is not None
    at = [a for a, _ in places(drawing.curves[0].pieces[0])]
    assert at[1] == pytest.approx((at[0] + at[2]) / 2, abs=0.1)
    assert [tick.words for tick in drawing.across] == ["0.0001", "0.001", "0.01", "0.1", "1"]


@pytest.mark.parametrize("start, stop", [(0.0, 1.0), (0.0, 12345.0), (-3.0, 2.0), (1e-9, 3e-9)])
def test_ticks_are_round_and_within(start: float, stop: float) -> None:
    found = ticks(start, stop)
    assert 3 <= len(found) <= 8
    assert all(start - 1e-12 <= value <= stop + 1e-12 for value in found)
    step = found[1] - found[0]
    assert round(step / 10 ** np.floor(np.log10(step) + 1e-9), 6) in (1, 2, 5)


def test_many_points_are_averaged() -> None:
    x = np.arange(10.0 * MOST)
    y = np.where(x % 2 == 0, 1.0, 3.0)
    y[:10] = np.nan
    at, value = thinned(x, y)
    assert len(at) == MOST and np.isnan(value[0])
    assert value[1:] == [2.0] * (MOST - 1)
