"""F2C's head: no table of classes, but a pool of slots that features are written to.

Source: Faster Face Classification (Wang et al., arXiv 2105.10375). Two rows per slot; a directory
(`lru`) gives a slot to each identity that was seen lately. A sample whose identity has a slot gets
a margin softmax over the slots; any other is only pushed from the slots that are nearest to it.

A step has two halves: the second image of every pair is written and the first compared, which is
then taken back, and the other way round, which is kept. Memory and time depend on the slots and
never on the classes. Slots without an identity take no part.
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
from glint.nn.heads.lru import Directory
from glint.nn.heads.options import ClassPoolOptions
from glint.nn.heads.softmax import Masked
from glint.nn.heads.storage import At, Space
from glint.nn.heads.updates import ActiveRows, Plain, Table

# n images on this rank, N over all ranks, h of one half on this rank, p with a slot, o without,
# c slots in use, b of one block, w rows written, k nearest slots, D embedding


class ClassPool(feature_rows.FeatureHead):
    """A margin softmax over the identities that were seen last, by features of an averaged net.

    Rows 2i and 2i + 1 of a batch are compared with each other's half: pairs of one identity stand
    together, then come `singles` rows of any. As rows are written in the order of the global batch,
    the pool is the same for every world size.
    """

    options: ClassPoolOptions

    def __init__(
        self, classes: int, dim: int, options: ClassPoolOptions, *, singles: int = 0, **shared: Any
    ) -> None:
        """Make an empty pool; shared: keywords of `FeatureHead`.

        singles: rows at the end of each rank's batch that are no pairs.
        """
        super().__init__(classes, dim, options, **shared)
        self.singles = singles
        self.directory = Directory(self.slots)
        self.weight: Tensor
        weight_2cD = torch.zeros((2, self.slots, dim), dtype=self.store.compute)
        self.register_buffer("weight", weight_2cD.to(self.world.device))
        self.class_c = torch.full((self.slots,), -1, device=self.world.device)  # as the directory
        self._written: list[_Written] = []
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._hits = 0.0

    @staticmethod
    def parts(rows_n: Tensor) -> tuple[Tensor, Tensor]:
        """Return which rows of a batch the trained net embeds, and which the averaged one: all."""
        return rows_n, rows_n

    def forward(
        self, feature_nD: Tensor, label_n: Tensor, *, step: int, gallery_nD: Tensor
    ) -> Tensor:
        """Return the loss of the global batch, the same on every rank.

        gallery_nD: features of the same images by the averaged net; every rank has as many rows.
        Raises InputError (GL0222) for a label outside [0, classes), UsageError (GL0002) where the
        pool has fewer slots than half a global batch has identities.
        """
        paired = label_n.shape[0] - self.singles
        if paired < 0 or paired % 2 or self.singles % 2:
            raise ValueError(f"{paired} rows in pairs and {self.singles} single ones: not halves")
        unit_nD = F.normalize(gallery_nD.detach().to(self.weight.dtype), dim=1)
        unit_ND, label_N = self._in_order(unit_nD), self._in_order(label_n)
        names = label_N.tolist()
        own, alone = self.world.rank * paired, self.world.size * paired
        alone += self.world.rank * self.singles
        mine = names[own : own + paired] + names[alone : alone + self.singles]
        most = max(len(set(names[0::2])), len(set(names[1::2])))
        self.check_step(names, most, f"half a global batch has {most} identities")
        label_n = label_n.to(self.weight.device, torch.int64)
        self._seen.clear()
        share = feature_nD.new_zeros((), dtype=self.weight.dtype)
        hits = 0
        for probe, other in ((0, 1), (1, 0)):
            done = self.directory.done
            written = self._write(unit_ND[other::2], names[other::2])
            inside = sum(self.directory.slot(name) >= 0 for name in names[probe::2])
            slots = [self.directory.slot(name) for name in mine[probe::2]]
            outside = len(names[probe::2]) - inside
            share = share + self._half(
                feature_nD[probe::2], label_n[probe::2], slots, written.hit_c, inside, outside
            )
            hits += inside
            if probe == 0:
                self._restore(written)
                self.directory.undo(done)
            else:
                self._written.append(written)
        self._hits = hits / max(1, len(names))
        return feature_rows.over_ranks(share, self.world, ddp_mean=self.ddp_mean)

    @torch.no_grad()
    def update(self, *, step: int, lr: float, divide: float = 1.0) -> None:
        """Keep what was written since the last update; there is no rate to move rows by."""
        self._written.clear()
        self.directory.forget()

    @torch.no_grad()
    def drop(self) -> None:
        """Take back what was written since the last update: the step is skipped."""
        while self._written:
            self._restore(self._written.pop())
        self.directory.undo()

    @torch.no_grad()
    def load_rows(self, fetch: Callable[[str, int, int], Tensor]) -> None:
        """Fill the whole pool; fetch(name, start, stop) gives slots of the saved one."""
        for number, name in enumerate(("first", "second")):
            self.weight[number].copy_(fetch(name, 0, self.slots))
        label, age, turn = (
            fetch(name, 0, self.slots).tolist() for name in ("label", "age", "turn")
        )
        self._written.clear()
        self.directory.load(label, age, turn)
        self.class_c.copy_(torch.tensor(self.directory.label))

    def tables(self) -> dict[str, Tensor]:
        """Return the two rows of each slot, and its entry of the directory."""
        return {"first": self.weight[0], "second": self.weight[1], **self._entries()}

    def digest(self) -> str:
        """Return the SHA-256 of rows and directory."""
        return feature_rows.digest([self.weight, *self._entries().values()])

    def statistics(self) -> dict[str, float]:
        """Return figures of the last batch; waits for the device.

        positive_cosine, hardest_negative and accuracy: as `PartialFC`, over this rank's samples
        with a slot;
        slots_used: share of the pool in use; hits: share of samples whose identity had a slot.
        """
        found = {"slots_used": len(self.directory) / self.slots, "hits": self._hits}
        for number, name in enumerate(("positive_cosine", "hardest_negative")):
            seen = [pair[number][pair[number] > -torch.inf] for pair in self._seen]
            if seen and (value := torch.cat(seen)).numel():
                found[name] = float(value.mean())
        right = [(cosine > hardest)[cosine > -torch.inf] for cosine, hardest in self._seen]
        if right and (right_n := torch.cat(right)).numel():
            found["accuracy"] = float(right_n.double().mean())
        return found

    def _in_order(self, x_n: Tensor) -> Tensor:
        """Gather every rank's rows, pairs first: the order that one rank would have."""
        size, paired = self.world.size, x_n.shape[0] - self.singles
        x_N = all_gather_rows(x_n, self.world).reshape(size, *x_n.shape)
        return torch.cat([x_N[:, :paired].flatten(0, 1), x_N[:, paired:].flatten(0, 1)])

    @torch.no_grad()
    def _write(self, unit_ND: Tensor, names: list[int]) -> _Written:
        """Write rows in their order; where one place is written twice, the last one stays."""
        last: dict[int, int] = {}
        hits = []
        for place, name in enumerate(names):
            slot, row, hit = self.directory.put(name)
            last[row * self.slots + slot] = place
            if hit:
                hits.append(slot)
        device = self.weight.device
        entries = [*last], [*last.values()], [names[place] for place in last.values()]
        at_w, place_w, name_w = torch.tensor(entries).to(device)
        flat, slot_w = self.weight.view(-1, self.dim), at_w % self.slots
        written = _Written(
            at_w, flat[at_w], self.class_c[slot_w], torch.zeros_like(self.class_c, dtype=torch.bool)
        )
        flat[at_w], self.class_c[slot_w] = unit_ND[place_w], name_w
        written.hit_c.index_fill_(0, torch.tensor(hits, dtype=torch.int64).to(device), True)
        return written

    def _restore(self, written: _Written) -> None:
        self.weight.view(-1, self.dim)[written.at_w] = written.before_wD
        self.class_c[written.at_w % self.slots] = written.class_w

    def _half(
        self, feature_hD: Tensor, label_h: Tensor, slots: list[int], hit_c: Tensor, inside: int,
        outside: int,
    ) -> Tensor:  # fmt: skip
        """Return this rank's share of a half's loss.

        slots: those of the half's samples here, -1: none; inside, outside: samples over all ranks.
        """
        device, used = self.weight.device, len(self.directory)
        order = sorted(range(len(slots)), key=lambda place: slots[place] < 0)
        at_h = torch.tensor([order, [slots[place] for place in order]]).to(device)
        split = sum(slot >= 0 for slot in slots)
        slot_p = at_h[1, :split]
        feature_pD, feature_oD = feature_hD.index_select(0, at_h[0]).tensor_split([split])
        label_p, label_o = label_h[at_h[0]].tensor_split([split])
        class_c = self.class_c[:used]
        masked_p, masked_o = self._masked(label_p, class_c), self._masked(label_o, class_c)
        first_cD, second_cD = self.weight[:, :used]
        table = Table(first_cD, {"second": second_cD, "hit": hit_c[:used]}, self.store)
        share = feature_hD.new_zeros((), dtype=self.weight.dtype)
        for number, rule in enumerate((Plain(0.0), _Newer(0.0))):
            active = ActiveRows(rule, table, None, self.options.block)
            if slot_p.numel():
                loss, cosine_p, hardest_p = self.softmax(
                    feature_pD, slot_p, slot_p, active, masked_p, classes=used
                )
                share = share + loss * (slot_p.numel() / inside)
                if number == 0:
                    self._seen.append((cosine_p, hardest_p))
            if feature_oD.shape[0]:
                near = nearest_cosines(
                    feature_oD, active, self.options.nearest, self.options.threshold, masked_o
                )
                share = share + near.clamp_min(0).mean(1).sum() / outside
        return share

    def _masked(self, label_h: Tensor, class_c: Tensor) -> Masked | None:
        entries = self.known.entries(label_h, class_c)
        return feature_rows.cut(*entries, len(class_c), self.options.block)

    def _entries(self) -> dict[str, Tensor]:
        """Return the directory as rows, one a slot: label, place from the oldest on, next row."""
        age = [0] * self.slots
        for place, slot in enumerate(self.directory.oldest()):
            age[slot] = place
        found = {"label": self.directory.label, "age": age, "turn": self.directory.turn}
        return {name: torch.tensor(value, dtype=torch.int64) for name, value in found.items()}


@dataclass(frozen=True)
class _Written:
    """Rows that were written, what stood there before, and the slots that were there already."""

    at_w: Tensor
    before_wD: Tensor
    class_w: Tensor
    hit_c: Tensor


class _Newer(Plain):
    """Read a slot's second row where this half found its identity there, else its first.

    Elsewhere the second row may still be that of an identity that left.
    """

    def current(self, table: Table, at: At, space: Space | None = None) -> Tensor:
        """Read one block of rows, or single ones."""
        hit_b = table.state["hit"][at][:, None]
        return torch.where(hit_b, table.take("second", at), table.take("", at))


def nearest_cosines(
    feature_nD: Tensor, active: ActiveRows, most: int, threshold: float, masked: Masked | None
) -> Tensor:
    """Return the `most` largest cosines of each sample to the rows, (n, k), differentiable.

    Those above `threshold` (if > 0) and masked ones do not count: -1 where too few are left.
    """
    unit_nD = F.normalize(feature_nD.to(active.table.weight_cD.dtype), dim=1)
    n, k = unit_nD.shape[0], min(most, active.count)
    best_nk = unit_nD.new_full((n, 0), -torch.inf)
    row_nk = torch.empty((n, 0), dtype=torch.int64, device=unit_nD.device)
    with torch.no_grad():
        for number in range(len(active)):
            cosine_nb = unit_nD @ active.take(number).t()
            start = active.rows(number).start
            if threshold > 0:
                cosine_nb.masked_fill_(cosine_nb > threshold, -torch.inf)
            if masked is not None:
                here = slice(*masked.bounds[number : number + 2])
                cosine_nb[masked.row_e[here], masked.column_e[here] - start] = -torch.inf
            value_nk, at_nk = cosine_nb.topk(min(k, cosine_nb.shape[1]), dim=1)
            best_nk, keep_nk = torch.cat([best_nk, value_nk], 1).topk(
                min(k, best_nk.shape[1] + value_nk.shape[1]), dim=1
            )
            row_nk = torch.cat([row_nk, at_nk + start], 1).gather(1, keep_nk)
    row_nkD = active.pick(row_nk.flatten()).view(*row_nk.shape, -1)
    cosine_nk = torch.einsum("nd,nkd->nk", unit_nD, row_nkD)
    return torch.where(best_nk > -torch.inf, cosine_nk, -1.0)
