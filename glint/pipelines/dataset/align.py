"""Photographs -> a dataset of aligned crops: `shard`, with a detector and a warp in between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from glint.models.detector import located
from glint.pipelines.dataset import shard as stage
from glint.pipelines.dataset.photos import FACES, Align, Model
from glint.results import datasets as results
from glint.shards.sources.rule import Rule

__all__ = ["FACES", "Align", "Model", "align", "survey"]


def _settled(options: Align) -> Align:
    """Find and open the detector, so that its faults are said first, and name its digest."""
    file, reading = located(options.detector.file)
    known = replace(options.detector, file=str(file.absolute()), mean=reading.mean, std=reading.std)
    return replace(options, detector=replace(known, digest=known.opened().digest))


def align(
    src: stage.Src,
    out: Any,
    options: Align,
    rule: Rule = Rule(),  # noqa: B008
    *,
    max_bad: float = 0.5,
    **how: Any,
) -> results.Align | results.AlignShare:
    """Cut aligned crops of 112 x 112 from photographs into a dataset; return the counts.

    options.detector.file: as `models.detector.located` takes it. Which crops and which bytes
    depends on the photos, the detector's file and `options` only; all else is as `shard.shard` does
    it, which takes `how`. Raises what that, `located` and `models.detector.open_detector` raise.
    """
    made = stage.shard(src, out, _settled(options), rule, max_bad=max_bad, **how)
    assert isinstance(made, results.Align | results.AlignShare)
    return made


def survey(
    src: stage.Src,
    options: Align,
    rule: Rule = Rule(),  # noqa: B008
    *,
    out: Path | str = "",
) -> results.AlignPlan:
    """Say what aligning would read, and write nothing; faces are not looked for."""
    made = stage.survey(src, _settled(options), rule, out=out)
    assert isinstance(made, results.AlignPlan)
    return made
