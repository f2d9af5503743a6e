"""Which samples an epoch holds under the labels in force, and the plan that orders them."""

# C classes, L labels as sharded

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glint.errors import InputError, UsageError
from glint.rng import I64
from glint.shards.dataset import Dataset
from glint.shards.labels import LabelTable
from glint.stream import sampling
from glint.stream.class_rows import ClassRows
from glint.stream.columns import Columns, key_of
from glint.stream.draws import Draws
from glint.stream.identities import IdentityPlan
from glint.stream.plan import Plan
from glint.stream.positives import PositivePlan
from glint.stream.sampling import Sampling


@dataclass(frozen=True)
class Order:
    """What an epoch draws, and how it is shuffled.

    sampling: a sampling.parquet, or None to draw every image once; either way rows whose target is
    -1 are left out, and those that the table masks. block: slots per shuffle block: shards are then
    read in long sequential reads, a window of blocks at a time; None permutes the whole epoch and
    reads sample by sample. each: images of one identity that stand together, identities taking
    turns (a sampling table may ask for it, too); endless: such cycles follow one another inside one
    epoch. positives: so many images of its identity follow every sample (`PositivePlan`), so that a
    batch is groups of 1 + positives; a sampling table that groups just so many does without.
    """

    sampling: str | Path | None = None
    block: int | None = None
    each: int = 0
    endless: bool = False
    positives: int = 0


@dataclass(frozen=True)
class Selection:
    """The rows that an epoch draws, their classes, and the plan that orders them.

    target_L: class of each label, -1 where it was dropped. draws: None where every image of every
    label is drawn once, or identities take turns. table: the sampling table, if there is one.
    """

    columns: Columns
    target_L: I64
    count_C: I64
    plan: Plan | IdentityPlan | PositivePlan
    draws: Draws | None
    table: Sampling | None


def select(
    dataset: Dataset, labels: LabelTable, order: Order, columns: Columns, seed: int, batch: int
) -> Selection:
    """Apply the labels and the sampling table to a dataset, and plan its epochs.

    batch: images of one rank's batch, which holds whole groups.
    Raises UsageError GL0001, GL0002; InputError GL0304, GL0305.
    """
    columns = columns.relabelled(labels.row, labels.label)
    target_L = _targets(dataset, labels, columns)
    rows = ClassRows(columns.member, columns.first_L, target_L, labels.classes)
    table, draws_C, each = None, None, order.each
    if order.sampling is not None:
        path = order.sampling
        table = sampling.read(path, rows.count_C, labels, dataset.digest)
        draws_C, each = table.draws_C, table.each or each
        if len(table.left_out):
            columns = _masked(columns, table, dataset.n, path)
            rows = ClassRows(columns.member, columns.first_L, target_L, labels.classes)
            if (rows.count_C != table.count_C).any():
                what = "left_out names rows of other identities than its own"
                raise sampling.stale(path, what)
    _check_groups(each, order.positives, batch)
    draws: Draws | None = None
    plan: Plan | IdentityPlan | PositivePlan
    if each:
        drawn_C = None if draws_C is None else draws_C > 0
        plan = IdentityPlan(rows, each, seed, drawn_C, order.endless)
    else:
        if draws_C is not None or rows.count_C.sum() != dataset.n:
            draws = Draws(rows, draws_C, seed)
        plan = Plan(dataset.n, seed, draws, None if order.positives else order.block)
        if order.positives:
            plan = PositivePlan(plan, rows, columns.label, order.positives, seed)
    return Selection(columns, target_L, rows.count_C, plan, draws, table)


def _check_groups(each: int, positives: int, batch: int) -> None:
    """Refuse groups of two kinds, and batches that would cut one."""
    group = each or 1 + positives
    if positives and each not in (0, 1 + positives):
        raise UsageError(
            "GL0002",
            f"the table puts {each} images of an identity together, each sample takes {positives} "
            "more of its own",
            where="sampling table",
            hint=f"a table made without --per-identity, or with --per-identity {1 + positives}",
        )
    if batch % group:
        raise UsageError(
            "GL0002",
            f"a batch of {batch} does not hold whole groups of {group} images of an identity",
            where="batch",
        )


def _masked(columns: Columns, table: Sampling, n: int, path: str | Path) -> Columns:
    """Take the rows out that a sampling table masks. Raises InputError GL0305."""
    first, last = int(table.left_out[0]), int(table.left_out[-1])
    if not 0 <= first <= last < n:
        raise sampling.stale(path, f"left_out names rows {first} to {last}, there are {n}")
    return columns.without(table.left_out)


def _targets(dataset: Dataset, labels: LabelTable, columns: Columns) -> I64:
    """Return the class of every label, -1 where it was dropped; all that have an image checked."""
    if len(labels.target) != dataset.classes:
        raise InputError(
            "GL0304",
            f"expected {dataset.classes} labels, found {len(labels.target)}",
            where=str(dataset.root),
        )
    target_L = np.asarray(labels.target, dtype=np.int64)
    bad_L = (target_L < -1) | (target_L >= labels.classes)
    bad_L &= np.diff(columns.first_L) > 0
    if bad_L.any():
        label = int(np.flatnonzero(bad_L)[0])
        row = int(columns.member[columns.first_L[label]])
        shard = dataset.shards[int(columns.shard_of(np.array([row]))[0])]
        raise InputError(
            "GL0304",
            f"expected a label below {labels.classes}, found {target_L[label]}",
            where=f"data/{shard} key {key_of(dataset, row)}",
        )
    return target_L
