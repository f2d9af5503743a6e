"""Which learning rate: a few steps at rates that rise, on a run that is thrown away.

The range test of arXiv 1506.01186: where the loss is lowest on the way up is the edge of what the
run bears, and a tenth of that rate is taken.
"""

# S steps done

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from glint.errors import InputError
from glint.log import Progress, silent
from glint.review import plots
from glint.review.lines import lines
from glint.stream.augment import to_input
from glint.stream.loader import Batch
from glint.train import loop, restore
from glint.train.build import Run

LOW, HIGH, STEPS = 1e-6, 1.0, 80
FIRST = STEPS // 5  # steps at rates that move nothing: what the loss is, and how it scatters
LEAST = 0.01  # share of the loss that it must fall in any case
KEEP = 0.8  # of the smoothed loss, from one step to the next
SCATTER = 2.3  # standard deviations of the first steps that it must fall
RISEN = 1.1  # times the first loss: what comes behind is not looked at
BELOW = 10.0  # the lowest loss is at this many times the rate that is taken

Reals = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """rate: what to train with; rate_S, loss_S, smooth_S: the steps that led to it."""

    rate: float
    rate_S: Reals
    loss_S: Reals
    smooth_S: Reals


class _Unlogged:
    def mark(self, part: str) -> None:
        """Time nothing."""


def find(run: Run, progress: Progress = silent) -> Found:
    """Train a fresh run at rates from LOW to HIGH; it is of no use afterwards.

    Ends where the loss is twice what it was, or not finite. Raises InputError GL0706 where it does
    not fall below the scatter of the first steps at any rate.
    """
    restore.resume(run)
    log: Any = _Unlogged()
    clip = run.recipe.optim.clip or math.inf
    rates: list[float] = []
    losses: list[float] = []
    probe: Batch | None = None
    for step, batches in loop.planned(run, 0, STEPS):
        rate = LOW * (HIGH / LOW) ** (step / (STEPS - 1))
        if probe is None:  # copied: a stream writes into its buffers again
            one = batches[0]
            probe = one._replace(image=one.image.clone(), flip=one.flip.clone())
        value = _loss(run, probe)
        loop.forward_backward(run, batches, step, log)
        run.scaler.unscale_(run.optimizer)
        torch.nn.utils.clip_grad_norm_(run.backbone.parameters(), clip)
        if not math.isfinite(value):
            break
        loop.apply(run, step, rate)
        rates.append(rate)
        losses.append(value)
        progress(step + 1, STEPS, f"rate {rate:.1e} loss {value:.3f}")
        if step > FIRST and smoothed(losses)[-1] > 2 * np.mean(losses[:FIRST]):
            break
    return judged(np.array(rates), np.array(losses))


@torch.no_grad()
def _loss(run: Run, batch: Batch) -> float:
    """Return the loss of the same images each time: what one batch has more than another is gone.

    They are trained on at the lowest rate alone.
    """
    device = run.world.device
    image = to_input(batch.image.to(device), run.parameter_dtype,
                     channels_last=run.recipe.run.channels_last, flip=batch.flip)  # fmt: skip
    mixed = run.autocast_dtype
    with torch.autocast(device.type, mixed, enabled=mixed is not None):
        feature_nD = run.model(image)
    feature_nD = feature_nD.to(run.parameter_dtype)
    loss = float(run.head(feature_nD, batch.label.to(device), step=0))
    if run.teacher is not None:
        target_nD = run.teacher.embed(image, mixed)
        loss += run.teacher.weight * float(run.teacher.distance(feature_nD, target_nD))
    return loss


def smoothed(losses: Any) -> Reals:
    """Average losses exponentially, as if what came before them had been like them."""
    mean, made = 0.0, []
    for count, value in enumerate(losses, 1):
        mean = KEEP * mean + (1 - KEEP) * value
        made.append(mean / (1 - KEEP**count))
    return np.array(made)


def judged(rate_S: Reals, loss_S: Reals) -> Found:
    """Choose the rate. Raises InputError GL0706 where the loss does not fall."""
    smooth_S = smoothed(loss_S)
    first = loss_S[:FIRST]
    found = Found(math.nan, rate_S, loss_S, smooth_S)
    if len(loss_S) > FIRST:
        high = np.flatnonzero(smooth_S[FIRST:] > RISEN * first.mean())
        stop = FIRST + int(high[0]) if len(high) and high[0] else len(smooth_S)  # a net that fell
        lowest = FIRST + int(smooth_S[FIRST:stop].argmin())  # apart may recover: it is another one
        if smooth_S[lowest] < first.mean() - max(SCATTER * first.std(), LEAST * first.mean()):
            return Found(float(rate_S[lowest]) / BELOW, rate_S, loss_S, smooth_S)
    error = NoDescent(
        "GL0706",
        f"the loss of {len(loss_S)} steps does not fall at any rate up to "
        f"{rate_S[-1] if len(rate_S) else LOW:.1e}: {first.mean():.3f} +- {first.std():.3f} at the "
        f"start, {np.min(smooth_S, initial=math.inf):.3f} at best",
        hint="look at the page of rates; --lr trains with a rate of your own; labels that are "
        "wrong, or a net that is frozen, do not learn at any",
    )
    error.found = found
    raise error


class NoDescent(InputError):
    """The loss falls at no rate; `found` is what was seen."""

    found: Found


def draw(path: Path, found: Found) -> None:
    """Write the page of a search for a rate."""
    one = [("a step", found.rate_S, found.loss_S), ("smoothed", found.rate_S, found.smooth_S)]
    chosen = "none" if math.isnan(found.rate) else f"{found.rate:.2g}"
    drawing = lines(
        "Loss at a learning rate", "learning rate", one, logarithmic=True, told=False,
        note="Taken is a tenth of the rate where the smoothed loss is lowest before it rises.",
        marks=[] if chosen == "none" else [(found.rate, f"taken: {chosen}")],
    )  # fmt: skip
    facts = [("steps", str(len(found.rate_S))), ("rates", f"{LOW:g} to {HIGH:g}"),
             ("taken", f"1/{BELOW:g} of the rate where the smoothed loss is lowest")]  # fmt: skip
    shown = [drawing] if drawing is not None else []
    plots.write(path, plots.Plots("Learning rate", [(chosen, "rate")], facts, shown))
