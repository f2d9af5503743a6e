"""The host's side of the kernels: `Fused` is a `SoftmaxPass` that has its work done by `kernels`.

The forward pass goes over the rows that play in runs: one launch copies a run as the products take
it, one streams it. So does the update: one launch makes the gradient of a run, one moves it. Above
weights and rule state a step therefore needs one run of rows, one (N, D) per strip of classes, and
a few numbers per row that plays. Small vectors (what rows missed, masked entries, targets) are
prepared by torch.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from glint.nn.heads import kernels
from glint.nn.heads.softmax import SoftmaxPass
from glint.nn.heads.storage import At, column_hashes
from glint.nn.heads.updates import ActiveRows, DenseExact, Gradient, LazyDecay, Plain, Stale

# N samples over all ranks, S strips of classes, k class rows that play, b rows of one launch,
# e masked entries, t samples whose target is on this rank, in order of its row, D embedding

INTERPRETED = isinstance(kernels.stream, InterpretedFunction)  # TRITON_INTERPRET=1
_ROWS = 4  # rows that one program of `gather` or `move` takes
_SPARE = 24 << 10  # bytes of shared memory for what is not an operand
_SIZES = ((64, 8, 2), (64, 8, 1), (32, 8, 2), (32, 8, 1), (16, 4, 2), (16, 4, 1))
_OLDER = ((32, 8, 1), (16, 4, 1))  # below 9.0: more, and ptxas gives `stream` 32 registers
_EXACT = ((16, 8, 1),)  # float32 without tensor cores: the same


@dataclass(frozen=True)
class Tiles:
    """How work is cut: tile sides, warps and loop stages of a program, programs at a time.

    gathered: rows copied before they are streamed; moved: rows whose gradient is made before they
    are moved, a multiple of `classes`.
    """

    samples: int
    classes: int
    warps: int
    stages: int
    programs: int
    gathered: int
    moved: int


SMALL = Tiles(16, 16, 4, 1, 4, 32, 32)  # for the interpreter


def fitting(
    wide: int, size: int, shared: int, programs: int, capability: int, exact: bool = False
) -> Tiles:
    """Choose tiles for rows of `wide` numbers of `size` bytes and `shared` bytes of memory.

    capability: 90 is 9.0; exact: products are of float32, by no tensor core.
    """
    sizes = _EXACT if exact else _SIZES if capability >= 90 else _OLDER
    fit = [one for one in sizes if one[0] * wide * size * (1 + one[2]) + _SPARE <= shared]
    side, warps, stages = (fit or sizes[-1:])[0]
    gathered = (32 << 20) // (wide * size)  # 32 MiB
    moved = 4 * programs * side  # four rounds of programs
    return Tiles(side, side, warps, stages, programs, gathered, moved)


@lru_cache
def _tiles(device: torch.device, wide: int, size: int, exact: bool) -> Tiles:
    if device.type != "cuda":
        return SMALL
    number = torch.cuda.current_device() if device.index is None else device.index
    found = triton.runtime.driver.active.utils.get_device_properties(number)
    major, minor = torch.cuda.get_device_capability(number)
    shared, programs = found["max_shared_mem"], found["multiprocessor_count"]
    return fitting(wide, size, shared, programs, 10 * major + minor, exact)


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Make a device the one that kernels are launched on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class Fused(SoftmaxPass):
    """One pass over the class rows that play, by kernels."""

    precision = "widened" if INTERPRETED else "ieee"  # what products do with float32 operands

    def _reserve(self, keep: int) -> None:
        """Take no block buffers: nothing is kept between the loss and the update."""
        unit_ND = self.batch.unit_ND
        self.dim = unit_ND.shape[1]
        self.wide = max(16, triton.next_power_of_2(self.dim))
        self.operand_ND = self._operand(unit_ND)
        size = self.operand_ND.element_size()
        exact = size == 4 and self.precision == "ieee"
        self.tiles = _tiles(unit_ND.device, self.wide, size, exact)
        # where gradients are asked for by block (several passes a step), few launches make them
        rows, block = self.active, max(self.active.block, self.tiles.moved)
        self.active = ActiveRows(rows.rule, rows.table, rows.index_k, block)
        self.target_N = self.target_N.to(torch.int32)
        self.sample_t32, self.row_t32 = self.sample_t.to(torch.int32), self.row_t.to(torch.int32)
        self.masked_row_e = self.masked_column_e = self.length_k  # not read
        if self.masked is not None:
            self.masked_row_e = self.masked.row_e.to(torch.int32)
            self.masked_column_e = self.masked.column_e.to(torch.int32)

    def stream(self, learn: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return largest negative logit, sum of exp(logit - largest), and sum of exp * centres.

        (N), (N), (N, D). Where this rank has no negative: -inf, 0 and 0.
        """
        exact_ND, tiles = self.batch.unit_ND, self.tiles
        samples, count = self.batch.size, self.active.count
        across = triton.cdiv(samples, tiles.samples)
        run = min(tiles.gathered, count)
        most = triton.cdiv(run, tiles.classes)
        strips = max(1, min(tiles.programs // across, most))
        largest_SN = exact_ND.new_full((strips, samples), -torch.inf)
        sum_SN = exact_ND.new_zeros((strips, samples))
        feature_grad_SND = exact_ND.new_zeros((strips, samples, self.dim) if learn else (1, 1, 1))
        operand_kD = self.operand_ND.new_empty((run, self.dim))
        with _on(exact_ND.device):
            for first in range(0, count, tiles.gathered):
                rows = min(tiles.gathered, count - first)
                self._gather(operand_kD, first, rows)
                strip = triton.cdiv(triton.cdiv(rows, strips), tiles.classes) * tiles.classes
                kernels.stream[(across, strips)](
                    self.operand_ND,
                    operand_kD,
                    self.inverse_k[first:],
                    self.target_N,
                    largest_SN,
                    sum_SN,
                    feature_grad_SND,
                    self.masked_row_e,
                    self.masked_column_e,
                    self._masks(first, rows),
                    samples,
                    rows,
                    first,
                    strip,
                    float(self.scale),
                    float(self.cut or 0.0),
                    D=self.dim,
                    WIDE=self.wide,
                    SAMPLES=tiles.samples,
                    CLASSES=tiles.classes,
                    CUT=self.cut is not None,
                    MASKED=self.masked is not None,
                    LEARN=learn,
                    PRECISION=self.precision,
                    num_warps=tiles.warps,
                    num_stages=tiles.stages,
                )
        largest_N = largest_SN.amax(0)
        share_N = torch.exp(-largest_N.masked_fill(largest_N == -torch.inf, 0.0))
        feature_grad_ND = feature_grad_SND[0]
        if learn:
            feature_grad_ND = feature_grad_SND.sum(0).mul_(share_N[:, None])
        return largest_N, sum_SN.sum(0).mul_(share_N), feature_grad_ND

    def gradient(self, number: int, centre_bD: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of block `number`'s rows, (b, D), from the rows themselves."""
        rows = self.active.rows(number)
        count = rows.stop - rows.start
        grad_bD = torch.empty_like(centre_bD)
        bounds = self._bounds(self.row_t, rows.start, count), self._masks(rows.start, count)
        missed_b4 = self._missed_decay(rows.start, count)
        self._centre_grad(grad_bD, weight, rows.start, count, missed_b4, *bounds)
        return _across(grad_bD, centre_bD, self.inverse_k[rows])

    def update(self, weight: Tensor, *, step: int, lr: float) -> None:
        """Move the rows that play by their gradients, some at a time while they are in cache."""
        active, rule, tiles = self.active, self.active.rule, self.tiles
        noise = [part for salt in (0, 1) for part in self._noise(salt, step)]
        targets, masks = self._bounds(self.row_t, 0, active.count), self._masks(0, active.count)
        run = min(tiles.moved, active.count)
        grad_kD = self.batch.unit_ND.new_empty((run, self.dim))
        for first in range(0, active.count, tiles.moved):
            rows, tile = min(run, active.count - first), first // tiles.classes
            missed_b4 = self._missed_decay(first, rows)
            self._centre_grad(grad_kD, weight, first, rows, missed_b4, targets[tile:], masks[tile:])
            at = self._at(first, rows)
            if not isinstance(rule, (Plain, Stale, LazyDecay, DenseExact)):
                held = rule.read(active.table, at)
                inverse_b = self.inverse_k[first : first + rows]
                grad_bD = _across(grad_kD[:rows], held[0], inverse_b)
                rule.move(held, active.table, at, Gradient(grad_bD), step=step, lr=lr)
                rule.write(held, active.table, at, step=step)
                continue
            if isinstance(rule, LazyDecay):
                missed_b4 = rule.missed_decay(active.table, at, step)
            self._move(grad_kD, first, rows, missed_b4, noise, rule, lr)
            rule.note(active.table, at, step)
        rule.done(active.table, lr=lr)

    def release(self) -> None:
        """Hold nothing: there are no buffers."""

    def _at(self, first: int, rows: int) -> At:
        """Return where rows that play lie in the table."""
        at = slice(first, first + rows)
        return at if self.active.index_k is None else self.active.index_k[at]

    def _index(self, first: int) -> Tensor:
        """Return what a launch reads for the rows' places in the table."""
        index_k = self.active.index_k
        return self.length_k if index_k is None else index_k[first:]

    def _bounds(self, sorted_e: Tensor, first: int, rows: int) -> Tensor:
        """Return where the entries of each tile of rows begin, and where the last one's end."""
        side = self.tiles.classes
        edges = torch.arange(first, first + rows + side, side, device=sorted_e.device)
        return torch.searchsorted(sorted_e, edges, out_int32=True)

    def _masks(self, first: int, rows: int) -> Tensor:
        """Return the bounds of the entries to mask, if there are any."""
        if self.masked is None:
            return self.length_k
        return self._bounds(self.masked.column_e, first, rows)

    def _missed_decay(self, first: int, rows: int) -> Tensor | None:
        """Return the matrices that bring rows up to date, where they may be behind."""
        rule = self.active.rule
        if not isinstance(rule, DenseExact):
            return None
        return rule.missed_decay(self.active.table, self._at(first, rows))

    def _gather(self, operand_kD: Tensor, first: int, rows: int) -> None:
        """Copy a run of rows as products take them, and note their lengths."""
        active, missed_b4 = self.active, self._missed_decay(first, rows)
        kernels.gather[(triton.cdiv(rows, _ROWS),)](
            active.table.weight_cD,
            active.table.state.get("momentum", active.table.weight_cD),
            self._index(first),
            self.length_k if missed_b4 is None else missed_b4,
            operand_kD,
            self.length_k[first:],
            self.inverse_k[first:],
            rows,
            first,
            D=self.dim,
            WIDE=self.wide,
            ROWS=_ROWS,
            ALL=active.index_k is None,
            BEHIND=missed_b4 is not None,
            num_warps=4,
        )

    def _centre_grad(
        self,
        grad_bD: Tensor,
        weight: Tensor,
        first: int,
        rows: int,
        missed_b4: Tensor | None,
        targets: Tensor,
        masks: Tensor,
    ) -> None:
        """Write the gradient of some rows, but for `_across`."""
        active, tiles = self.active, self.tiles
        with _on(grad_bD.device):
            kernels.centre_grad[(triton.cdiv(rows, tiles.classes),)](
                active.table.weight_cD,
                active.table.state.get("momentum", active.table.weight_cD),
                self._index(first),
                self.length_k if missed_b4 is None else missed_b4,
                self.inverse_k[first:],
                grad_bD,
                self.operand_ND,
                self.batch.unit_ND,
                self.logsum_N,
                self.target_N,
                self.at_target_N,
                weight,
                self.sample_t32,
                self.row_t32,
                targets,
                self.masked_row_e,
                self.masked_column_e,
                masks,
                self.batch.size,
                rows,
                first,
                float(self.scale),
                float(self.cut or 0.0),
                D=self.dim,
                WIDE=self.wide,
                SAMPLES=tiles.samples,
                CLASSES=tiles.classes,
                ALL=active.index_k is None,
                CUT=self.cut is not None,
                MASKED=self.masked is not None,
                BEHIND=missed_b4 is not None,
                PRECISION=self.precision,
                num_warps=tiles.warps,
                num_stages=tiles.stages,
            )

    def _move(
        self,
        grad_bD: Tensor,
        first: int,
        rows: int,
        missed_b4: Tensor | None,
        noise: list[int | Tensor],
        rule: Plain | Stale | LazyDecay | DenseExact,
        lr: float,
    ) -> None:
        """Move some rows by what `_centre_grad` wrote."""
        active, table_cD = self.active, self.active.table.weight_cD
        momentum_cD = active.table.state.get("momentum", table_cD)
        with _on(table_cD.device):
            kernels.move[(triton.cdiv(rows, _ROWS),)](
                table_cD,
                momentum_cD,
                self._index(first),
                self.length_k if missed_b4 is None else missed_b4,
                self.inverse_k[first:],
                grad_bD,
                rows,
                first,
                1.0 - lr * rule.weight_decay,
                float(lr),
                0.0 if isinstance(rule, Plain) else float(rule.momentum),
                float(rule.weight_decay),
                active.table.store.first,
                *noise,
                D=self.dim,
                WIDE=self.wide,
                ROWS=_ROWS,
                ALL=active.index_k is None,
                MOMENTUM=momentum_cD is not table_cD,
                BEHIND=missed_b4 is not None,
                STOCHASTIC=table_cD.dtype == torch.bfloat16,
                num_warps=4,
            )

    def _noise(self, salt: int, step: int) -> tuple[int, int, Tensor]:
        """Return what the bits of a table's rounding are made of: two parts of a key, hashes."""
        if self.active.table.weight_cD.dtype != torch.bfloat16:
            return 0, 0, self.length_k
        key = self.active.table.store.rounding_key(salt, step)
        high = key >> 31 & 0xFFFFFFFF
        hashes = column_hashes(self.dim, key, self.length_k.device)
        return key & 0x7FFFFFFF, high - (high >> 31 << 32), hashes


def _across(grad_bD: Tensor, centre_bD: Tensor, inverse_b: Tensor) -> Tensor:
    """Take the part along each row out of its gradient, in place: lengths have none."""
    along_b = (grad_bD * centre_bD).sum(1).mul_(inverse_b).mul_(inverse_b)
    return grad_bD.addcmul_(centre_bD, along_b[:, None], value=-1)


class FusedTf32(Fused):
    """The same, with products of float32 operands rounded to 10 bits."""

    precision = "widened" if INTERPRETED else "tf32"


def fused(gemm: str) -> type[Fused]:
    """Return the class for a kind of matrix product."""
    return FusedTf32 if gemm == "tf32" else Fused
