"""DCQ's head: no table of classes, but a queue of the class rows that earlier batches made.

Source: Dynamic Class Queue (Li et al., arXiv 2105.11113). Every sample comes with other images of
its identity; the averaged net turns them into the sample's own class row. The negatives of its
margin softmax are the queue, without the entries of its own identity; then the batch's class rows
take the place of the oldest ones.

With several such images their mean is weighed by attention, the softmax of their cosines to the
sample (AttFC, arXiv 2503.06839); with one, that is DCQ. Slots not yet written take no part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glint.dist.collectives import all_gather_rows
from glint.dist.span import span
from glint.dist.world import World
from glint.errors import UsageError
from glint.nn.heads import feature_rows
from glint.nn.heads.options import ClassQueueOptions
from glint.nn.heads.softmax import gather_batch, margin_softmax
from glint.nn.heads.storage import Store
from glint.nn.heads.updates import ActiveRows, Plain, Table
from glint.nn.margins import Margin

# n samples on this rank, N over all ranks, g gallery images of a sample, c slots in use,
# w slots written, D embedding


class ClassQueue(nn.Module):
    """A margin softmax over each sample's own class row and a queue of earlier ones.

    A step is `loss = head(feature, label, step=s, gallery_nD=g); loss.backward()`, then `update` to
    keep what was written, or `drop` to take it back. The queue is the same on every rank and, as
    rows are written in the order of the global batch, for every world size.
    """

    def __init__(
        self,
        classes: int,
        dim: int,
        options: ClassQueueOptions,
        *,
        margin: Margin,
        masks: Any = None,
        world: World | None = None,
        dtype: torch.dtype = torch.float32,
        ddp_mean: bool = True,
    ) -> None:
        """Make an empty queue; arguments as in `PartialFC`.

        Raises UsageError (GL0002) for an option out of range, InputError (GL0304) for bad masks.
        """
        super().__init__()
        options.check(classes, dim, dtype)
        self.classes, self.dim, self.margin = classes, dim, margin
        self.options, self.ddp_mean = options, ddp_mean
        self.slots = slots = options.slots
        self.gallery = options.gallery
        self.world = World() if world is None else world
        device = self.world.device
        self.known = feature_rows.Known(masks, classes, device)
        self.weight: Tensor
        self.label: Tensor
        self.register_buffer("weight", torch.zeros((slots, dim), dtype=dtype, device=device))
        self.register_buffer("label", torch.full((slots,), -1, dtype=torch.int64, device=device))
        self.used = self.next = 0  # slots in use; the slot that is written next
        self._store = Store(dtype)
        self._written: list[_Written] = []
        self._seen: tuple[Tensor, Tensor] | None = None

    def parts(self, rows_n: Tensor) -> tuple[Tensor, Tensor]:
        """Say which rows of a batch the trained net embeds, and which the averaged one.

        A batch is groups of one identity: a sample, then its gallery images.
        """
        group = rows_n.reshape(-1, 1 + self.gallery, *rows_n.shape[1:])
        return group[:, 0], group[:, 1:].flatten(0, 1)

    def forward(
        self, feature_nD: Tensor, label_n: Tensor, *, step: int, gallery_nD: Tensor
    ) -> Tensor:
        """Give the loss of the global batch, the same on every rank.

        gallery_nD: features of each sample's gallery images by the averaged net, (n g, D), side by
        side; every rank has as many. Raises InputError (GL0222) for a label outside [0, classes),
        UsageError (GL0002) where the queue has fewer slots than the global batch has samples.
        """
        label_n = label_n.to(self.weight.device, torch.int64)
        label_N = all_gather_rows(label_n, self.world)
        feature_rows.check_labels(label_N.tolist(), self.classes)
        if len(label_N) > self.slots:
            raise UsageError(
                "GL0002",
                f"slots is {self.slots}, a global batch has {len(label_N)} samples",
                where="head",
                hint="more head.slots, a smaller data.batch or fewer ranks",
            )
        centre_nD = self.centres(feature_nD, gallery_nD)
        own, other = self.known.entries(label_n, self.label[: self.used], own=True)
        table = Table(self.weight[: self.used], {}, self._store)
        alone = World(device=self.weight.device)
        loss, cosine_n, hardest_n, _ = margin_softmax(
            feature_nD,
            ActiveRows(Plain(0.0), table, None, self.options.block),
            gather_batch(feature_nD, label_n, alone, self.classes, dtype=self.weight.dtype),
            torch.full_like(label_n, -1),
            margin=self.margin,
            scale=self.options.scale,
            world=alone,
            on_backward=feature_rows.ignore,
            threshold=self.options.threshold,
            masked=feature_rows.cut(own, other, self.used, self.options.block),
            gemm=self.options.gemm,
            own_centre_ND=centre_nD,
        )
        self._seen = cosine_n, hardest_n
        self._write(all_gather_rows(centre_nD, self.world), label_N)
        return feature_rows.over_ranks(loss / self.world.size, self.world, ddp_mean=self.ddp_mean)

    @torch.no_grad()
    def centres(self, feature_nD: Tensor, gallery_nD: Tensor) -> Tensor:
        """Give each sample's own class row, unit length: its gallery features, weighed."""
        dtype = self.weight.dtype
        gallery_ngD = gallery_nD.to(dtype).view(-1, self.gallery, self.dim)
        unit_nD = F.normalize(feature_nD.to(dtype), dim=1)
        cosine_ng = torch.einsum("nd,ngd->ng", unit_nD, F.normalize(gallery_ngD, dim=2))
        mean_nD = (torch.softmax(cosine_ng, 1)[:, :, None] * gallery_ngD).sum(1)
        return F.normalize(mean_nD, dim=1)

    @torch.no_grad()
    def update(self, *, step: int, lr: float, divide: float = 1.0) -> None:
        """Keep what was written since the last update; there is no rate to move rows by."""
        self._written.clear()

    @torch.no_grad()
    def drop(self) -> None:
        """Take back what was written since the last update: the step is skipped."""
        while self._written:
            written = self._written.pop()
            self.weight[written.at_w] = written.before_wD
            self.label[written.at_w] = written.label_w
            self.used, self.next = written.used, written.next

    @torch.no_grad()
    def state_rows(self) -> tuple[int, int, dict[str, Tensor]]:
        """Give (start, stop, rows): this rank's share of the slots, for a checkpoint.

        Raises MismatchError (GL0602) where the ranks' queues are not the same.
        """
        feature_rows.agree(self.digest(), self.world)
        part = span(self.slots, self.world.size, self.world.rank)
        here = slice(part.start, part.stop)
        oldest = self.next if self.used == self.slots else 0
        age_c = (torch.arange(self.slots) - oldest) % self.slots
        rows = {"feature": self.weight[here], "label": self.label[here], "age": age_c[here]}
        return part.start, part.stop, rows

    @torch.no_grad()
    def load_rows(self, fetch: Callable[[str, int, int], Tensor]) -> None:
        """Fill the whole queue; fetch(name, start, stop) gives slots of the saved one."""
        self.weight.copy_(fetch("feature", 0, self.slots))
        self.label.copy_(fetch("label", 0, self.slots))
        self.used = int((self.label >= 0).sum())
        oldest = int(fetch("age", 0, self.slots).argmin())
        self.next = (oldest + self.used) % self.slots
        self._written.clear()

    def digest(self) -> str:
        """Give the SHA-256 of rows, labels and the place to write next."""
        return feature_rows.digest([self.weight, self.label, torch.tensor([self.used, self.next])])

    def statistics(self) -> dict[str, float]:
        """Give figures of the last batch; waits for the device.

        positive_cosine, hardest_negative and accuracy: as `PartialFC`, over this rank's samples,
        the latter two over those that have a negative; slots_used: share of the queue in use.
        """
        found = {"slots_used": self.used / self.slots}
        if self._seen is not None:
            cosine_n, hardest_n = self._seen
            found["positive_cosine"] = float(cosine_n.mean())
            some_n = hardest_n > -torch.inf
            if some_n.any():
                found["hardest_negative"] = float(hardest_n[some_n].mean())
                found["accuracy"] = float((cosine_n > hardest_n)[some_n].double().mean())
        return found

    @torch.no_grad()
    def _write(self, centre_ND: Tensor, label_N: Tensor) -> None:
        """Put rows in the place of the oldest ones, in their order."""
        count, device = len(label_N), self.weight.device
        at_w = (torch.arange(count, device=device) + self.next) % self.slots
        before = _Written(at_w, self.weight[at_w], self.label[at_w], self.used, self.next)
        self._written.append(before)
        self.weight[at_w], self.label[at_w] = centre_ND, label_N
        self.used = min(self.slots, self.used + count)
        self.next = (self.next + count) % self.slots


@dataclass(frozen=True)
class _Written:
    """Slots that were written, what stood there before, and how full the queue was."""

    at_w: Tensor
    before_wD: Tensor
    label_w: Tensor
    used: int
    next: int
