"""What heads share whose class rows are features of other images, the same on every rank.

Such rows come from a second net, an average of the one that is trained, and get no gradient. Each
rank compares its own samples with all of them, so the only messages are the new rows and labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glint.dist.collectives import all_gather_rows
from glint.dist.span import Span, span
from glint.dist.world import World, present
from glint.errors import InputError, MismatchError, UsageError
from glint.nn.heads.batch import gather_batch
from glint.nn.heads.masks import KnownPairs
from glint.nn.heads.options import ClassPoolOptions, ClassQueueOptions
from glint.nn.heads.softmax import Masked, SoftmaxPass, margin_softmax
from glint.nn.heads.storage import Store
from glint.nn.heads.updates import ActiveRows
from glint.nn.margins import Margin

# n samples on this rank, c rows to compare with, m pairs, e entries to mask, D embedding


class FeatureHead(nn.Module):
    """A head without a table of centres: its class rows lie in slots, the same on every rank.

    A step is `loss = head(feature, label, step=s, gallery_nD=g); loss.backward()`, then `update` to
    keep what was written, or `drop` to take it back.
    """

    def __init__(
        self,
        classes: int,
        dim: int,
        options: ClassPoolOptions | ClassQueueOptions,
        *,
        margin: Margin,
        masks: Any = None,
        world: World | None = None,
        dtype: torch.dtype = torch.float32,
        ddp_mean: bool = True,
    ) -> None:
        """Take what every such head has; arguments as in `PartialFC`.

        Raises UsageError (GL0002) for an option out of range, InputError (GL0304) for bad masks.
        """
        super().__init__()
        options.check(classes, dim, dtype)
        self.classes, self.dim, self.margin, self.ddp_mean = classes, dim, margin, ddp_mean
        self.options, self.slots = options, options.slots
        self.world = present(world)
        self.alone = World(device=self.world.device)  # a rank looks at its own samples only
        self.known = Known(masks, classes, self.world.device)
        self.store = Store(dtype)

    def check_step(self, labels: list[int], most: int, written: str) -> None:
        """Raise InputError (GL0222) for a label outside [0, classes), the same on every rank.

        Raises UsageError (GL0002) where a step writes `most` slots and there are fewer.
        """
        for place, label in enumerate(labels):
            if not 0 <= label < self.classes:
                raise InputError(
                    "GL0222",
                    f"expected a label from 0 to {self.classes - 1}, found {label}",
                    where=f"row {place} of the global batch",
                    hint="does the head have as many classes as the label table?",
                )
        if most > self.slots:
            raise UsageError(
                "GL0002",
                f"slots is {self.slots}, {written}",
                where="head",
                hint="more head.slots, a smaller data.batch or fewer ranks",
            )

    def softmax(
        self,
        feature_nD: Tensor,
        label_n: Tensor,
        target_n: Tensor,
        active: ActiveRows,
        masked: Masked | None,
        *,
        classes: int,
        own_centre_ND: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (loss, target cosines, hardest negatives) of this rank's samples.

        label_n: from 0 to classes; target_n, own_centre_ND: as `margin_softmax` takes them.
        """
        batch = gather_batch(feature_nD, label_n, self.alone, classes, dtype=self.store.compute)
        loss, cosine_n, hardest_n, _ = margin_softmax(
            feature_nD,
            active,
            batch,
            target_n,
            margin=self.margin,
            scale=self.options.scale,
            world=self.alone,
            on_backward=_ignore,
            threshold=self.options.threshold,
            masked=masked,
            gemm=self.options.gemm,
            own_centre_ND=own_centre_ND,
        )
        return loss, cosine_n, hardest_n

    @torch.no_grad()
    def state_rows(self) -> tuple[int, int, dict[str, Tensor]]:
        """Return (start, stop, rows): this rank's share of the slots, for a checkpoint.

        Raises MismatchError (GL0602) where the ranks' slots are not the same.
        """
        agree(self.digest(), self.world)
        part = span(self.slots, self.world.size, self.world.rank)
        here = slice(part.start, part.stop)
        rows = {name: table_c[here] for name, table_c in self.tables().items()}
        return part.start, part.stop, rows

    def tables(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds, one row a slot."""
        raise NotImplementedError

    def digest(self) -> str:
        """Return the SHA-256 of all that ranks must hold alike."""
        raise NotImplementedError


class Known:
    """Pairs of labels known to be one person, and the entries of (sample, row) that they mask."""

    def __init__(self, pair_m2: Any, classes: int, device: torch.device) -> None:
        """Take pairs (m, 2) or None; raises InputError (GL0304) as `KnownPairs` does."""
        self.classes = classes
        self.pairs = None
        if pair_m2 is not None and len(pair_m2):
            self.pairs = KnownPairs(pair_m2, classes, Span(0, classes), device)

    def entries(
        self, label_n: Tensor, class_c: Tensor, *, own: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return (sample, row) of each row whose class is known to be the sample's person.

        own: of rows of the sample's own class, too.
        """
        sample_e, class_e = (label_n.new_empty(0),) * 2
        if self.pairs is not None:
            found = self.pairs.entries(label_n, None, self.classes)  # columns are classes here
            if found is not None:
                sample_e, class_e = found.row_e, found.column_e
        if own:
            every_n = torch.arange(len(label_n), device=label_n.device)
            sample_e, class_e = torch.cat([every_n, sample_e]), torch.cat([label_n, class_e])
        if not sample_e.numel():
            return sample_e, class_e
        return rows_of(sample_e, class_e, class_c)


def rows_of(sample_e: Tensor, class_e: Tensor, class_c: Tensor) -> tuple[Tensor, Tensor]:
    """Turn (sample, class) into (sample, row) for every row of that class, however many."""
    sorted_c, order_c = torch.sort(class_c, stable=True)
    first_e = torch.searchsorted(sorted_c, class_e)
    count_e = torch.searchsorted(sorted_c, class_e, right=True) - first_e
    which = torch.repeat_interleave(torch.arange(len(class_e), device=class_e.device), count_e)
    inside = torch.arange(len(which), device=class_e.device)
    inside -= (torch.cumsum(count_e, 0) - count_e)[which]
    return sample_e[which], order_c[first_e[which] + inside]


def cut(sample_e: Tensor, row_e: Tensor, rows: int, block: int) -> Masked | None:
    """Cut entries of (sample, row) into blocks of rows; None where there are none."""
    if not sample_e.numel():
        return None
    row_e, order_e = torch.sort(row_e, stable=True)
    edges = torch.arange(0, rows + block, block, device=row_e.device)
    bounds = tuple(torch.searchsorted(row_e, edges).tolist())
    return Masked(sample_e[order_e], row_e, block, bounds)


def _ignore(softmax_pass: SoftmaxPass, weight: Tensor) -> None:
    """Keep nothing for a row update: these rows have none."""


def over_ranks(share: Tensor, world: World, *, ddp_mean: bool) -> Tensor:
    """Sum the ranks' shares of a loss: the same value on every rank, to the bit.

    Each rank's gradient is that of its own share, times the world size with ddp_mean (`softmax`).
    """
    total: Tensor = _Sum.apply(share, world, world.size if ddp_mean else 1)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    """See `over_ranks`."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, world: World, factor: int) -> Tensor:
        ctx.factor = factor
        return all_gather_rows(share[None], world).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream * ctx.factor, None, None


def digest(tensors: Iterable[Tensor]) -> str:
    """Return the SHA-256 of tensors' bytes."""
    seal = hashlib.sha256()
    for tensor in tensors:
        seal.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return seal.hexdigest()


def agree(own: str, world: World) -> None:
    """Raise MismatchError (GL0602) on every rank where the ranks' digests differ."""
    mine = torch.frombuffer(bytearray.fromhex(own), dtype=torch.uint8).to(world.device)
    seen = all_gather_rows(mine[None], world)
    different = (seen != seen[:1]).any(1).nonzero().flatten().tolist()
    if different:
        raise MismatchError(
            "GL0602",
            f"rank {different[0]} holds other class rows than rank 0",
            where="head",
            hint="every rank must run the same versions; the checkpoint before this one is good",
        )
