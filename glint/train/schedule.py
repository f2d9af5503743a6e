"""Learning rate as a function of the step: nothing to store, nothing to restore."""

from __future__ import annotations

import math

from glint.train.recipe import Schedule


def total_steps(schedule: Schedule, steps_per_epoch: int) -> int:
    """Steps of a run: `epochs` passes, or the first `max_steps` of them (same schedule)."""
    steps = schedule.epochs * steps_per_epoch
    return min(steps, schedule.max_steps) if schedule.max_steps else steps


def learning_rate(schedule: Schedule, base: float, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of global step `step` (counted from 0).

    Linear from 0 to `base` over `warmup` epochs, then: `poly` base*(1-t)^power, `cosine`
    base*(1+cos(pi t))/2 with t the share of the remaining steps done, `step` base*gamma^(number
    of milestone epochs passed), or `constant`.
    """
    warmup = round(schedule.warmup * steps_per_epoch)
    if step < warmup:
        return base * (step + 1) / warmup
    if schedule.kind == "constant":
        return base
    if schedule.kind == "step":
        passed = sum(step >= round(m * steps_per_epoch) for m in schedule.milestones)
        return base * schedule.gamma**passed
    total = schedule.epochs * steps_per_epoch
    t = (step - warmup) / max(1, total - warmup)
    if schedule.kind == "cosine":
        return base * 0.5 * (1.0 + math.cos(math.pi * t))
    return float(base * (1.0 - t) ** schedule.power)
