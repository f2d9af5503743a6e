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
from torch import Tensor

from glint.dist.collectives import all_gather_rows
from glint.nn.heads import feature_rows
from glint.nn.heads.options import ClassQueueOptions
from glint.nn.heads.updates import ActiveRows, Plain, Table

# n samples on this rank, N over all ranks, g gallery images of a sample, c slots in use,
# w slots written, D embedding


class ClassQueue(feature_rows.FeatureHead):
    """A margin softmax over each sample's own class row and a queue of earlier ones.

    As rows are written in the order of the global batch, the queue is the same for every world
    size.
    """

    options: ClassQueueOptions

    def __init__(self, classes: int, dim: int, options: ClassQueueOptions, **shared: Any) -> None:
        """Make an empty queue; shared: keywords of `FeatureHead`."""
        super().__init__(classes, dim, options, **shared)
        self.weight: Tensor
        self.label: Tensor
        device, slots = self.world.device, self.slots
        weight_cD = torch.zeros((slots, dim), dtype=self.store.compute, device=device)
        self.register_buffer("weight", weight_cD)
        self.register_buffer("label", torch.full((slots,), -1, dtype=torch.int64, device=device))
        self.used = self.next = 0  # slots in use; the slot that is written next
        self._written: list[_Written] = []
        self._seen: tuple[Tensor, Tensor] | None = None

    def parts(self, rows_n: Tensor) -> tuple[Tensor, Tensor]:
        """Return which rows of a batch the trained net embeds, and which the averaged one.

        A batch is groups of one identity: a sample, then its gallery images.
        """
        group = rows_n.reshape(-1, 1 + self.options.gallery, *rows_n.shape[1:])
        return group[:, 0], group[:, 1:].flatten(0, 1)

    def forward(
        self, feature_nD: Tensor, label_n: Tensor, *, step: int, gallery_nD: Tensor
    ) -> Tensor:
        """Return the loss of the global batch, the same on every rank.

        gallery_nD: features of each sample's gallery images by the averaged net, (n g, D), side by
        side; every rank has as many. Raises InputError (GL0222) for a label outside [0, classes),
        UsageError (GL0002) where the queue has fewer slots than the global batch has samples.
        """
        label_n = label_n.to(self.weight.device, torch.int64)
        label_N = all_gather_rows(label_n, self.world)
        many = len(label_N)
        self.check_step(label_N.tolist(), many, f"a global batch has {many} samples")
        centre_nD = self.centres(feature_nD, gallery_nD)
        own, other = self.known.entries(label_n, self.label[: self.used], own=True)
        masked = feature_rows.cut(own, other, self.used, self.options.block)
        table = Table(self.weight[: self.used], {}, self.store)
        loss, cosine_n, hardest_n = self.softmax(
            feature_nD,
            label_n,
            torch.full_like(label_n, -1),
            ActiveRows(Plain(0.0), table, None, self.options.block),
            masked,
            classes=self.classes,
            own_centre_ND=centre_nD,
        )
        self._seen = cosine_n, hardest_n
        self._write(all_gather_rows(centre_nD, self.world), label_N)
        return feature_rows.over_ranks(loss / self.world.size, self.world, ddp_mean=self.ddp_mean)

    @torch.no_grad()
    def centres(self, feature_nD: Tensor, gallery_nD: Tensor) -> Tensor:
        """Return each sample's own class row, unit length: its gallery features, weighed."""
        dtype = self.weight.dtype
        gallery_ngD = gallery_nD.to(dtype).view(-1, self.options.gallery, self.dim)
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

    def tables(self) -> dict[str, Tensor]:
        """Return each slot's row, label and age, 0 for the oldest."""
        oldest = self.next if self.used == self.slots else 0
        age_c = (torch.arange(self.slots) - oldest) % self.slots
        return {"feature": self.weight, "label": self.label, "age": age_c}

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
        """Return the SHA-256 of rows, labels and the place to write next."""
        return feature_rows.digest([self.weight, self.label, torch.tensor([self.used, self.next])])

    def statistics(self) -> dict[str, float]:
        """Return figures of the last batch; waits for the device.

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
