"""Learning rates by hand."""

from __future__ import annotations

import math

import pytest

from glint.train.recipe import Schedule
from glint.train.schedule import learning_rate, total_steps


def lrs(steps_per_epoch: int, **options: object) -> list[float]:
    schedule = Schedule.model_validate(options)
    steps = total_steps(schedule, steps_per_epoch)
    return [learning_rate(schedule, 0.1, s, steps_per_epoch) for s in range(steps)]


def test_poly_falls_linearly_to_almost_zero() -> None:
    got = lrs(5, epochs=2)
    assert got == pytest.approx([0.1 * (1 - s / 10) for s in range(10)])


def test_warmup_rises_to_the_base_rate_then_falls() -> None:
    got = lrs(10, epochs=4, warmup=1.0)
    assert got[:10] == pytest.approx([0.01 * (s + 1) for s in range(10)])
    assert got[10] == pytest.approx(0.1)
    assert got[-1] == pytest.approx(0.1 / 30)


def test_cosine_is_half_way_at_half_time() -> None:
    got = lrs(10, epochs=2, kind="cosine")
    assert got[10] == pytest.approx(0.05)
    assert got[19] == pytest.approx(0.05 * (1 + math.cos(math.pi * 0.95)))


def test_step_multiplies_at_each_milestone() -> None:
    got = lrs(2, epochs=4, kind="step", milestones=[1, 3], gamma=0.5)
    assert got == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.025, 0.025])


def test_max_steps_stops_early_and_leaves_the_schedule_alone() -> None:
    assert lrs(5, epochs=2, max_steps=3) == lrs(5, epochs=2)[:3]
