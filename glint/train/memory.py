"""What a head costs on one rank: memory, messages and time, by count. Pure arithmetic.

The formulas are those of docs/plan.md; a test holds them against measured allocations.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from glint.errors import UsageError
from glint.results import models as results

# bytes kept per class row beside the weights: multiples of a stored row, and plain bytes
STATE = {
    "none": (0, 0),
    "v1_stale": (1, 0),
    "lazy_decay": (1, 4),
    "dense_exact": (1, 4),
    "adamw": (2, 0),
}
SIZE = {"float32": 4, "bf16": 2}
PRODUCT = {**SIZE, "tf32": 4}
KINDS = ("partial_fc", "class_pool", "class_queue")
KEEP = 64 << 20  # bytes of exponentials that a head keeps rather than compute twice
INDEX = 4 * 8  # bytes per row that plays: its class, its row, and sorting them
LENGTHS = 2 * 4  # bytes per row that plays: length and inverse


@dataclass(frozen=True)
class Head:
    """A head to plan for. `batch` is images per rank; `rate` the share of classes that play."""

    classes: int
    dim: int = 512
    world: int = 1
    batch: int = 128
    rate: float = 0.1
    rule: str = "none"
    storage: str = "float32"
    gemm: str = "float32"
    block: int = 1024
    keep: int = KEEP
    kind: str = "partial_fc"
    slots: int = 0  # without a table: rows (class_pool: two each), whatever classes and rate are
    gallery: int = 1  # class_queue: images of a batch that go with each sample

    def checked(self) -> Head:
        """Give the head back; raises UsageError GL0002 for a value out of range."""
        checks = (
            ("classes", self.classes >= 1, "at least 1"),
            ("dim", self.dim >= 1, "at least 1"),
            ("world", self.world >= 1, "at least 1"),
            ("batch", self.batch >= 1, "at least 1"),
            ("rate", 0 <= self.rate <= 1, "0 to 1"),
            ("block", self.block >= 1, "at least 1"),
            ("rule", self.rule in STATE, " or ".join(STATE)),
            ("storage", self.storage in SIZE, " or ".join(SIZE)),
            ("gemm", self.gemm in PRODUCT, " or ".join(PRODUCT)),
            ("kind", self.kind in KINDS, " or ".join(KINDS)),
            ("slots", (self.slots > 0) == self.pooled, "at least 1, for a head without a table"),
            (
                "gallery",
                self.gallery == 1 or (self.gallery > 1 and self.kind == "class_queue"),
                "at least 1, more for a class_queue only",
            ),
        )
        for name, good, expected in checks:
            if not good:
                found = getattr(self, name)
                raise UsageError(
                    "GL0002", f"{name} is {found!r}, expected {expected}", where="plan"
                )
        return self

    @property
    def pooled(self) -> bool:
        """Whether rows are slots instead of classes, the same on every rank."""
        return self.kind != "partial_fc"

    @property
    def rows(self) -> int:
        """Class rows of the fullest rank."""
        if self.pooled:
            return self.slots
        return -(-self.classes // self.world)

    @property
    def written(self) -> int:
        """Rows that a rank's features of the averaged net make in a step, without a table."""
        return self.batch // (1 + self.gallery) if self.kind == "class_queue" else self.batch

    @property
    def samples(self) -> int:
        """Images of a step over all ranks."""
        return self.batch * self.world

    @property
    def playing(self) -> int:
        """Rows of one rank that play a step; positives may all fall on one rank."""
        if self.rate >= 1 or self.pooled:
            return self.rows
        return min(self.rows, max(math.ceil(self.rate * self.rows), min(self.samples, self.rows)))


def memory(head: Head) -> dict[str, int]:
    """Give the bytes of each part on the fullest rank, and their sum."""
    if head.pooled:
        return _queue(head) if head.kind == "class_queue" else _pool(head)
    row, compute = head.dim * SIZE[head.storage], 4
    rows, plain = STATE[head.rule]
    samples, block = head.samples, min(head.block, head.playing)
    exponent = PRODUCT[head.gemm]
    everything = samples * head.playing * exponent
    kept = everything if everything <= head.keep else samples * block * exponent
    parts = {
        "weights": head.rows * row,
        "state": head.rows * (rows * row + plain),
        "sample": head.playing * (LENGTHS + (INDEX if head.rate < 1 else 0)),
        "exponentials": kept,
        # a block's rows, their state, gradient and two temporaries; and its logits
        "block": block * head.dim * compute * (4 + rows) + samples * block * compute,
        # gathered unit features, their scaled copy, the feature gradient, the positives' rows
        "features": samples * head.dim * compute * 5,
    }
    return {**parts, "total": sum(parts.values())}


def _pool(head: Head) -> dict[str, int]:
    """Count a pool's parts: two rows a slot, and what the two halves of a step make of them."""
    half, row = -(-head.batch // 2), head.dim * 4
    nearest = min(max(int(0.0002 * head.slots), 3), 10)
    block = min(head.block, head.slots)
    parts = {
        "weights": 2 * head.slots * row,
        "state": 0,  # the directory lies in the host's memory
        # of a step: classes, lengths and their inverses
        "sample": head.slots * (8 + LENGTHS),
        # the rows near samples without a slot, a sixth of the batch in each half; four blocks
        "exponentials": 4 * -(-head.batch // 6) * nearest * row + 4 * half * block * 4,
        "block": 2 * block * row,
        # gathered in order; what was written and stood there; four passes: units and gradients
        "features": 3 * head.samples * row + 4 * 3 * half * row,
    }
    return {**parts, "total": sum(parts.values())}


def _queue(head: Head) -> dict[str, int]:
    """Count a queue's parts: rows and labels, and what a step makes of its samples."""
    samples, row = head.written, head.dim * 4
    parts = {
        "weights": head.slots * row,
        "state": head.slots * 8,  # labels
        "sample": head.slots * LENGTHS,
        "exponentials": samples * min(head.block, head.slots) * 4,
        "block": 0,  # rows are read where they are
        # of a rank: units, scaled, class rows, gradients; of all: what is written and stood there
        "features": 6 * samples * row + 2 * samples * head.world * row,
    }
    return {**parts, "total": sum(parts.values())}


def reference_memory(head: Head) -> int:
    """Give the bytes of dense momentum SGD over autograd: four tables at the optimiser's step."""
    return 4 * head.rows * head.dim * 4


def communication(head: Head) -> dict[str, int]:
    """Give the bytes that a rank receives per step and the number of collectives."""
    others = head.samples - head.batch
    if head.pooled:  # the averaged net's features, labels, one loss
        received = (head.world - 1) * (head.written * (head.dim * 4 + 8) + 4)
        return {"received": received, "collectives": 3 if head.world > 1 else 0}
    received = others * (head.dim + 3) * 4 + others * 3 * 4 + others * head.dim * 4
    return {
        "received": received if head.world > 1 else 0,
        "collectives": 3 if head.world > 1 else 0,
    }


def products(head: Head) -> float:
    """Give the floating-point operations of a step's matrix products on one rank."""
    if head.kind == "class_queue":  # cosines and their way back
        return 2.0 * 2 * head.written * head.slots * head.dim
    if head.pooled:  # two halves, two tables, cosines and their way back
        return 2.0 * 4 * 2 * (head.batch / 2) * head.slots * head.dim
    everything = head.samples * head.playing * PRODUCT[head.gemm]
    count = 3 if everything <= head.keep else 4  # not kept: cosines are computed twice
    return 2.0 * count * head.samples * head.playing * head.dim


def moved(head: Head) -> int:
    """Give the bytes of table rows that a step reads and writes on one rank."""
    if head.kind == "class_queue":
        return head.slots * head.dim * 4
    if head.pooled:  # per half: the first rows, and both with the newer ones written out
        return 2 * 5 * head.slots * head.dim * 4
    rows, plain = STATE[head.rule]
    row = head.dim * SIZE[head.storage]
    forward = row * (2 if head.rule == "dense_exact" else 1)  # it reads momentum to catch up
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
    """Give the most classes (of a pool: slots) that fit into `card` bytes per rank; 0 if none."""
    name = "slots" if head.pooled else "classes"

    def fits(rows: int) -> bool:
        return memory(replace(head, **{name: rows}))["total"] <= card  # type: ignore[arg-type]

    low, high = 0, 1
    while fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def plan(
    head: Head,
    *,
    card: float = 0.0,
    tflops: float,
    gbps: float,
    link: float,
) -> results.Plan:
    """Give the whole plan as plain data. card: GB (1e9 bytes) of memory for the head per rank."""
    head.checked()
    for name, value in (("tflops", tflops), ("gbps", gbps), ("link", link)):
        if value <= 0:
            raise UsageError("GL0002", f"{name} is {value:g}, expected more than 0", where="plan")
    need = memory(head)
    return results.Plan(
        head=asdict(head),
        rows=head.rows,
        playing=head.playing,
        memory=need,
        reference_memory=reference_memory(head),
        communication=communication(head),
        flop=products(head),
        seconds=seconds(head, tflops=tflops, gbps=gbps, link=link),
        card=card or None,
        fits=need["total"] <= card * 1e9 if card else None,
        largest=largest(head, card * 1e9) if card else None,
    )
