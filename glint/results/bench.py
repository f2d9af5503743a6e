"""Answers about tests of models, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class BenchModel:  # a model of a bench
    name: str  # of the file or folder
    path: str  # where it is
    digest: str  # of its weights
    engine: str  # what computed it
    dim: int  # numbers of an embedding
    parameters: int  # of the net
    ms_per_image: float | None  # of the net alone, in batches, on this machine; null if unused


@dataclass(frozen=True, kw_only=True)
class BenchSet:  # a test that lies in the folder
    set: str  # its name
    kind: str  # pack, pairs, ijb, tinyface, distractors or all-pairs
    path: str  # the list, pack or folder
    run_as: str  # in words


@dataclass(frozen=True, kw_only=True)
class BenchSkipped:  # what is no test
    path: str  # the file or folder
    reason: str  # why it was left out


@dataclass(frozen=True, kw_only=True)
class BenchRow:  # a model on a test
    set: str  # its name
    model: str  # its name
    error: str | None  # why there are no figures
    figures: dict[str, Any]  # as `glint eval --json` has them
    accuracy_interval: tuple[float, float] | None  # 95 %; of pairs
    tar_intervals: dict[str, tuple[float, float] | None]  # 95 %, by FAR; null: too few pairs
    people: int | None  # drawn for the intervals
    people_by: str  # how persons are told
    groups: list[dict[str, Any]]  # errors of each group at one threshold
    warnings: list[str]  # why a figure may say less than it seems
    contamination: dict[str, Any] | None  # with --trained-on: who was found; figures without them


@dataclass(frozen=True, kw_only=True)
class Published:  # of others, not measured here
    name: str  # of the work
    data: str  # trained on
    net: str  # the backbone
    source: str  # where it stands
    date: str  # of the paper, or of the page as it was read
    figures: dict[str, float]  # per cent, by set


@dataclass(frozen=True, kw_only=True)
class Bench:
    SCHEMA: ClassVar[str] = "glint/bench@1"  # models on all tests of a folder
    sets: list[BenchSet]  # what was found
    skipped: list[BenchSkipped]  # what is no test, with the reason
    models: list[BenchModel]  # side by side
    rows: list[BenchRow]  # a test and a model each
    pooled_groups: dict[str, list[dict[str, Any]]]  # by model: tests of one group each, together
    published: list[Published]  # of the same sets
    flip: bool  # whether the mirrored image was added
    errors: int  # rows without figures; the command leaves with 1
    page: str | None  # with --report: path of the page


@dataclass(frozen=True, kw_only=True)
class Split:
    SCHEMA: ClassVar[str] = "glint/split@1"  # identities held out as a test
    out: str  # where the lists were written
    ids: str  # the file of the held-out people, for `glint drop --ids-from`
    people: int  # held out
    images: int  # of them
    lists: dict[str, int]  # pairs by list
    packs: list[str]  # paths
    groups: dict[str, int]  # people held out by group
