"""What a head costs on one rank: memory, messages and time, by count. Pure arithmetic.

The formulas are those of docs/plan.md; a test holds them against measured allocations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from glint.errors import UsageError
from glint.nn.heads import options
from glint.nn.heads.options import AnyOptions, ClassPoolOptions, ClassQueueOptions, PartialFCOptions
from glint.results import models as results

# bytes kept per class row beside the weights: multiples of a stored row, and plain bytes
STATE = {
    "none": (0, 0),
    "v1_stale": (1, 0),
    "lazy_decay": (1, 4),
    "dense_exact": (1, 4),
    "adamw": (2, 0),
}
SIZE = {"float32": 4, "tf32": 4, "bf16": 2}  # bytes of a stored number, or of a product's operand
INDEX = 4 * 8  # bytes per row that plays: its class, its row, and sorting them
LENGTHS = 2 * 4  # bytes per row that plays: length and inverse
# By their data sheets: TFLOP/s of dense products by type, GB/s of memory, GB/s of links out.
GPUS: dict[str, tuple[dict[str, float], float, float]] = {
    "a100": ({"float32": 19.5, "tf32": 156.0, "bf16": 312.0}, 2039.0, 300.0),
    "h100": ({"float32": 67.0, "tf32": 495.0, "bf16": 989.0}, 3350.0, 450.0),
    "h200": ({"float32": 67.0, "tf32": 495.0, "bf16": 989.0}, 4800.0, 450.0),
    "l40s": ({"float32": 91.6, "tf32": 183.0, "bf16": 362.0}, 864.0, 32.0),
}
# the options that a plan shows, in its order
PLANNED = ("rate", "rule", "storage", "gemm", "block", "keep", "kind", "slots", "gallery")


@dataclass(frozen=True)
class Head:
    """A head to plan for: its options, and what it is used on. `batch` is images per rank."""

    options: AnyOptions
    classes: int
    dim: int = 512
    world: int = 1
    batch: int = 128

    @property
    def rows(self) -> int:
        """Class rows of the fullest rank: of the table, or slots, the same on every rank."""
        if isinstance(self.options, PartialFCOptions):
            return -(-self.classes // self.world)
        return self.options.slots

    @property
    def written(self) -> int:
        """Rows that a rank's features of the averaged net make in a step, without a table."""
        if isinstance(self.options, ClassQueueOptions):
            return self.batch // (1 + self.options.gallery)
        return self.batch

    @property
    def samples(self) -> int:
        """Images of a step over all ranks."""
        return self.batch * self.world

    @property
    def playing(self) -> int:
        """Rows of one rank that play a step; positives may all fall on one rank."""
        rate = self.options.rate if isinstance(self.options, PartialFCOptions) else 1.0
        if rate >= 1:
            return self.rows
        return min(self.rows, max(math.ceil(rate * self.rows), min(self.samples, self.rows)))


def head(values: Mapping[str, Any], classes: int, **used_on: int) -> Head:
    """Make a head to plan for of options by their recipe keys; used_on: fields of `Head`.

    Raises UsageError (GL0002) for a value out of range, whether this kind reads it or not.
    """
    given = {"kind": "partial_fc", **values}
    kind, slots, gallery = given["kind"], given.get("slots", 0), given.get("gallery", 1)
    counts = {"classes": classes, **used_on}
    checks = [(name, count, count >= 1, "at least 1") for name, count in counts.items()]
    checks += [
        (key, given[key], *options.fits(options.OPTIONS[key], given[key]))
        for key in ("rate", "block", "rule", "storage", "gemm")
        if key in given
    ]
    pooled, queue = kind != "partial_fc", kind == "class_queue"
    checks += [
        ("kind", kind, kind in options.KINDS, " or ".join(options.KINDS)),
        ("slots", slots, (slots > 0) == pooled, "at least 1, for a head without a table"),
        (
            "gallery",
            gallery,
            gallery == 1 or (gallery > 1 and queue),
            "at least 1, more for a class_queue only",
        ),
    ]
    options.refuse(checks, where="plan")
    return Head(options.chosen(kind, given), classes, **used_on)


def memory(head: Head) -> dict[str, int]:
    """Return the bytes of each part on the fullest rank, and their sum."""
    if isinstance(head.options, PartialFCOptions):
        parts = _table(head, head.options)
    elif isinstance(head.options, ClassPoolOptions):
        parts = _pool(head, head.options)
    else:
        parts = _queue(head, head.options)
    return {**parts, "total": sum(parts.values())}


def _table(head: Head, options: PartialFCOptions) -> dict[str, int]:
    """Count a table's parts."""
    row, compute = head.dim * SIZE[options.storage], 4
    rows, plain = STATE[options.rule]
    samples, block = head.samples, min(options.block, head.playing)
    exponent = SIZE[options.gemm]
    everything = samples * head.playing * exponent
    kept = everything if everything <= options.keep else samples * block * exponent
    return {
        "weights": head.rows * row,
        "state": head.rows * (rows * row + plain),
        "sample": head.playing * (LENGTHS + (INDEX if options.rate < 1 else 0)),
        "exponentials": kept,
        # a block's rows, their state, gradient and two temporaries; and its logits
        "block": block * head.dim * compute * (4 + rows) + samples * block * compute,
        # gathered unit features, their scaled copy, the feature gradient, the positives' rows
        "features": samples * head.dim * compute * 5,
    }


def _pool(head: Head, options: ClassPoolOptions) -> dict[str, int]:
    """Count a pool's parts: two rows a slot, and what the two halves of a step make of them."""
    half, row = -(-head.batch // 2), head.dim * 4
    nearest, block = options.nearest, min(options.block, options.slots)
    return {
        "weights": 2 * options.slots * row,
        "state": 0,  # the directory lies in the host's memory
        # of a step: classes, lengths and their inverses
        "sample": options.slots * (8 + LENGTHS),
        # the rows near samples without a slot, a sixth of the batch in each half; four blocks
        "exponentials": 4 * -(-head.batch // 6) * nearest * row + 4 * half * block * 4,
        "block": 2 * block * row,
        # gathered in order; what was written and stood there; four passes: units and gradients
        "features": 3 * head.samples * row + 4 * 3 * half * row,
    }


def _queue(head: Head, options: ClassQueueOptions) -> dict[str, int]:
    """Count a queue's parts: rows and labels, and what a step makes of its samples."""
    samples, row = head.written, head.dim * 4
    return {
        "weights": options.slots * row,
        "state": options.slots * 8,  # labels
        "sample": options.slots * LENGTHS,
        "exponentials": samples * min(options.block, options.slots) * 4,
        "block": 0,  # rows are read where they are
        # of a rank: units, scaled, class rows, gradients; of all: what is written and stood there
        "features": 6 * samples * row + 2 * samples * head.world * row,
    }


def reference_memory(head: Head) -> int:
    """Return the bytes of dense momentum SGD over autograd: four tables at the optimiser's step."""
    return 4 * head.rows * head.dim * 4


def communication(head: Head) -> dict[str, int]:
    """Return the bytes that a rank receives per step and the number of collectives."""
    others = head.samples - head.batch
    if not isinstance(head.options, PartialFCOptions):
        # the averaged net's features, labels, one loss
        received = (head.world - 1) * (head.written * (head.dim * 4 + 8) + 4)
        return {"received": received, "collectives": 3 if head.world > 1 else 0}
    received = others * (head.dim + 3) * 4 + others * 3 * 4 + others * head.dim * 4
    return {
        "received": received if head.world > 1 else 0,
        "collectives": 3 if head.world > 1 else 0,
    }


def products(head: Head) -> float:
    """Return the floating-point operations of a step's matrix products on one rank."""
    options = head.options
    if isinstance(options, ClassQueueOptions):  # cosines and their way back
        return 2.0 * 2 * head.written * options.slots * head.dim
    if isinstance(options, ClassPoolOptions):  # two halves, two tables, cosines and their way back
        return 2.0 * 4 * 2 * (head.batch / 2) * options.slots * head.dim
    everything = head.samples * head.playing * SIZE[options.gemm]
    count = 3 if everything <= options.keep else 4  # not kept: cosines are computed twice
    return 2.0 * count * head.samples * head.playing * head.dim


def moved(head: Head) -> int:
    """Return the bytes of table rows that a step reads and writes on one rank."""
    options = head.options
    if isinstance(options, ClassQueueOptions):
        return options.slots * head.dim * 4
    if isinstance(options, ClassPoolOptions):
        # per half: the first rows, and both with the newer ones written out
        return 2 * 5 * options.slots * head.dim * 4
    rows, plain = STATE[options.rule]
    row = head.dim * SIZE[options.storage]
    forward = row * (2 if options.rule == "dense_exact" else 1)  # it reads momentum to catch up
    return head.playing * (forward + 2 * (1 + rows) * row + 2 * plain)


def seconds(head: Head, *, tflops: float, gbps: float, link: float) -> dict[str, float]:
    """Estimate a step: products at `tflops`, rows at `gbps` GB/s, messages at `link` GB/s.

    None of the three overlaps another, so the sum is not a lower bound of what could be done.
    """
    parts = {
        "products": products(head) / (tflops * 1e12),
        "rows": moved(head) / (gbps * 1e9),
        "messages": communication(head)["received"] / (link * 1e9),
    }
    return {**parts, "total": sum(parts.values())}


def largest(head: Head, card: float) -> int:
    """Return the most classes (of a pool: slots) that fit `card` bytes per rank; 0 if none."""

    def fits(rows: int) -> bool:
        if isinstance(head.options, PartialFCOptions):
            other = replace(head, classes=rows)
        else:
            other = replace(head, options=replace(head.options, slots=rows))
        return memory(other)["total"] <= card

    low, high = 0, 1
    while fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def plan(
    values: Mapping[str, Any],
    classes: int,
    *,
    card: float = 0.0,
    gpu: str = "h100",
    tflops: float = 0.0,
    gbps: float = 0.0,
    link: float = 0.0,
    **used_on: int,
) -> results.Plan:
    """Return the whole plan; values, classes and used_on as `head` takes them.

    card: GB (1e9 bytes) of memory for the head per rank; gpu: a name of `GPUS`, whose figures
    stand where tflops, gbps or link is 0.
    """
    one = head(values, classes, **used_on)
    if gpu not in GPUS:
        raise UsageError("GL0002", f"gpu is {gpu!r}, expected {' or '.join(GPUS)}", where="plan")
    given = {"tflops": tflops, "gbps": gbps, "link": link}
    for name, value in given.items():
        if value < 0:
            raise UsageError("GL0002", f"{name} is {value:g}, expected more than 0", where="plan")
    products_at, rows_at, links_at = GPUS[gpu]
    sheet = {"tflops": products_at[one.options.gemm], "gbps": rows_at, "link": links_at}
    speed = {name: given[name] or sheet[name] for name in sheet}
    on = ", ".join(f"{name} {value:g}" for name, value in speed.items())
    if not all(given.values()):
        on = f"{gpu.upper()} by its data sheet: {on}"
    need = memory(one)
    defaults = {key: option.default for key, option in options.OPTIONS.items()}
    defaults |= {"kind": "partial_fc", "slots": 0}
    return results.Plan(
        head={
            "classes": one.classes,
            "dim": one.dim,
            "world": one.world,
            "batch": one.batch,
            **{key: values.get(key, defaults[key]) for key in PLANNED},
        },
        rows=one.rows,
        playing=one.playing,
        memory=need,
        reference_memory=reference_memory(one),
        communication=communication(one),
        flop=products(one),
        seconds=seconds(one, **speed),
        on=on,
        card=card or None,
        fits=need["total"] <= card * 1e9 if card else None,
        largest=largest(one, card * 1e9) if card else None,
    )
