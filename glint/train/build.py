"""From a recipe to built objects: data, nets, head and optimiser of one rank."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from glint.dist.collectives import differing
from glint.dist.ddp import data_parallel
from glint.dist.host import local_ranks
from glint.dist.world import World
from glint.errors import MismatchError, UsageError
from glint.evals.packs import Pairs, read_bin
from glint.log import logger
from glint.models import import_weights
from glint.nn import backbones, stages
from glint.nn.heads import options as head_options
from glint.nn.heads.class_pool import ClassPool
from glint.nn.heads.class_queue import ClassQueue
from glint.nn.heads.options import ClassPoolOptions, ClassQueueOptions
from glint.nn.heads.partial_fc import PartialFC
from glint.nn.margins import margin
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.stream.decode import on_gpu
from glint.stream.dual import Paired
from glint.stream.loader import Images, Stream
from glint.stream.order import Order
from glint.train import hard_negatives, optim, sense
from glint.train.recipe import Head, Recipe, Tune
from glint.train.teacher import Frozen

AnyHead = PartialFC | ClassPool | ClassQueue


@dataclass(frozen=True)
class Data:
    """What a run reads: training samples, and packs of pairs to verify on, by name."""

    dataset: Dataset
    labels: labels.LabelTable
    stream: Stream | Paired
    val: dict[str, Pairs]


@dataclass(frozen=True)
class Past:
    """What a run must know of itself to go on.

    fingerprint: what may not change between a run and its continuation; worlds: the numbers of
    ranks it was trained on before; best: step and accuracy of what verified best so far, and
    the packs that it was verified on.
    """

    fingerprint: dict[str, Any]
    worlds: list[int] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """Everything a training run works with, on this rank."""

    recipe: Recipe
    world: World
    out: Path
    data: Data
    backbone: nn.Module
    model: nn.Module  # the backbone, inside DDP where there is more than one rank
    head: AnyHead
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    averaged: AveragedModel | None  # of the backbone's weights and buffers
    teacher: Frozen | None  # what the net imitates besides
    past: Past

    @property
    def parameter_dtype(self) -> torch.dtype:
        """What weights are stored in: float32, or float64 where the recipe says so."""
        return parameter_dtype(self.recipe)

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """What autocast computes in, None without it."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.recipe.run.precision)

    @property
    def judged(self) -> nn.Module:
        """The net that is evaluated and exported: the average of the weights where one is kept."""
        return self.averaged.module if self.averaged is not None else self.backbone

    @property
    def global_batch(self) -> int:
        """Images of one micro-batch over all ranks."""
        return self.recipe.data.batch * self.world.size

    @property
    def step_images(self) -> int:
        """Images of one optimiser step over all ranks."""
        return self.global_batch * self.recipe.run.accumulate

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass."""
        return self.data.stream.steps_per_epoch // self.recipe.run.accumulate


def parameter_dtype(recipe: Recipe) -> torch.dtype:
    """Return what weights are stored in."""
    return torch.float64 if recipe.run.precision == "float64" else torch.float32


def fingerprint(recipe: Recipe, data: Data, near: str, teacher: Frozen | None) -> dict[str, Any]:
    """Return what may not change between a run and its continuation.

    near: digest of the table of nearest classes, "" without one.
    """
    table = recipe.model_dump(mode="json")
    kind = recipe.head.kind
    free = {"block", "kernels", "near"}  # keys of the head that may change
    free |= {"slots"} if kind == "partial_fc" else set()  # and that this kind does not have
    free |= {"gallery"} if kind != "class_queue" else set()
    free |= set() if recipe.head.hard else {"hard"}
    free |= {"init"}  # a run goes on from its own centres
    free |= set() if recipe.head.straight_through else {"straight_through"}
    return {
        "dataset": data.dataset.digest,
        "label_version": data.labels.version,
        "labels": data.labels.digest,
        "classes": data.labels.classes,
        **{
            name: table["run"][name]
            for name in ("seed", "accumulate", "precision", "ema", "sync_bn")
        },
        "sampling": data.stream.sampling_digest,
        "data": {name: table["data"][name] for name in ("flip", "augment", "block")},
        "backbone": {k: v for k, v in table["backbone"].items() if k != "pretrained"},
        "head": {k: v for k, v in table["head"].items() if k not in free},
        "optim": table["optim"],
        "schedule": {k: v for k, v in table["schedule"].items() if k != "max_steps"},
        **({"near": near} if near else {}),
        **({"tune": table["tune"]} if recipe.tune else {}),
        **({"teacher": teacher.fingerprint()} if teacher else {}),
    }


def threads(recipe: Recipe, world: World) -> int:
    """Compute threads of this rank: those of the recipe, or the machine's cores shared out."""
    return recipe.run.threads or max(1, len(os.sched_getaffinity(0)) // local_ranks(world.size))


def head(
    table: Head,
    classes: int,
    dim: int,
    masks: Any,
    world: World,
    recipe: Recipe,
    neighbours_CK: Any = None,
) -> AnyHead:
    """Build the classification head over `classes` identities.

    neighbours_CK: the classes nearest to each, where negatives are hard-aware. Raises UsageError
    GL0002 where a pool or queue has fewer slots than a step writes; warns where it has fewer than
    twice as many.
    """
    if table.margin == "combined":
        shape = margin("combined", m1=table.m1, m2=table.m2, m3=table.m3)
    else:
        shape = margin(table.margin, m=table.m, straight_through=table.straight_through)
    optim = {"momentum": recipe.optim.momentum, "weight_decay": recipe.optim.weight_decay}
    options = head_options.chosen(table.kind, {**table.options(), **optim})
    common: dict[str, Any] = {
        "margin": shape,
        "masks": masks if table.masks else None,
        "world": world,
        "dtype": torch.float64 if recipe.run.precision == "float64" else torch.float32,
    }
    if isinstance(options, ClassQueueOptions):
        written = recipe.data.batch * world.size // (1 + options.gallery)
        _check_slots(options.slots, written, classes, world)
        return ClassQueue(classes, dim, options, **common)
    if isinstance(options, ClassPoolOptions):
        written = min(recipe.data.batch * world.size // 2, classes)
        _check_slots(options.slots, written, classes, world)
        return ClassPool(classes, dim, options, singles=recipe.data.batch // 3, **common)
    seed = recipe.run.seed
    made = PartialFC(classes, dim, options, neighbours=neighbours_CK, seed=seed, **common)
    made.passes = recipe.run.accumulate
    return made


def _check_slots(slots: int, written: int, classes: int, world: World) -> None:
    """Refuse fewer slots than a step writes; warn of fewer than twice as many."""
    if slots < written:
        raise UsageError(
            "GL0002",
            f"head.slots is {slots}, a step may write {written}",
            hint="more head.slots, a smaller data.batch or fewer ranks",
        )
    if world.rank == 0 and slots < min(2 * written, classes):
        logger.warning(
            "head.slots is %d and a step may write %d: most negatives are of the same batch",
            slots,
            written,
        )


def build(recipe: Recipe, world: World, out: Path) -> Run:
    """Open the data and build stream, backbone, head and optimiser for this rank.

    The backbone's initial values depend on `run.seed` alone, so they are the same on every rank.
    Raises UsageError where a path of the recipe leads nowhere, MismatchError GL0602 where ranks
    were given different recipes or data.
    """
    torch.set_num_threads(threads(recipe, world))
    if world.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # every batch has the same shape
    sense.require_step(recipe, world.size)
    data = open_data(recipe, world)
    backbone, model = net(recipe, world)
    dim, teacher = recipe.backbone.embedding, None
    if recipe.teacher is not None:
        teacher = Frozen(
            recipe.teacher,
            dim,
            world,
            threads=threads(recipe, world),
            channels_last=recipe.run.channels_last,
        )
    near_CK, near_digest = None, ""
    if recipe.head.near:
        near_CK, near_digest = hard_negatives.read(
            Path(recipe.head.near), data.dataset, data.labels
        )
    classes, masks = data.labels.classes, data.labels.masks
    run = Run(
        recipe=recipe,
        world=world,
        out=out,
        data=data,
        backbone=backbone,
        model=data_parallel(model, world),
        head=head(recipe.head, classes, dim, masks, world, recipe, near_CK).to(world.device),
        optimizer=optim.optimizer(backbone, recipe.optim),
        scaler=torch.amp.GradScaler(
            world.device.type, enabled=recipe.run.precision == "fp16", growth_interval=100
        ),
        averaged=average(backbone, recipe),
        teacher=teacher,
        past=Past(fingerprint(recipe, data, near_digest, teacher)),
    )
    handshake(run)
    return run


def open_data(recipe: Recipe, world: World) -> Data:
    """Open the dataset, its labels in force, the packs to verify on, and this rank's stream."""
    dataset = Dataset(recipe.data.path)
    table = labels.current(dataset.root, dataset.classes)
    if recipe.data.held_out:
        table = table.without(held_out(Path(recipe.data.held_out), table))
    sampling = recipe.data.sampling
    if sampling == "auto":
        own = dataset.root / "sampling.parquet"
        sampling = str(own) if own.exists() else ""
    if sampling and not Path(sampling).is_file():
        raise UsageError("GL0001", f"data.sampling: no such file: {sampling}")
    val = {}
    for path in recipe.run.val:
        if not Path(path).is_file():
            raise UsageError("GL0001", f"run.val: no such file: {path}")
        val[Path(path).stem] = read_bin(path)
    sense.check(recipe, dataset, table, val)
    kind = Paired if recipe.head.kind == "class_pool" else Stream
    stream: Stream | Paired = kind(
        dataset,
        labels=table,
        batch=recipe.data.batch,
        rank=world.rank,
        world=world.size,
        seed=recipe.run.seed,
        workers=recipe.data.workers,
        threads=recipe.data.threads,
        order=Order(
            sampling=sampling or None,
            block=recipe.data.block or None,
            positives=recipe.head.gallery if recipe.head.kind == "class_queue" else 0,
        ),
        images=Images(
            flip=recipe.data.flip,
            augment=recipe.data.augment,
            decoder=on_gpu(world.device) if recipe.data.decode == "gpu" else None,
            verify=recipe.data.verify,
            pinned=world.device.type == "cuda",
        ),
    )
    if stream.steps_per_epoch < recipe.run.accumulate:
        raise UsageError(
            "GL0002",
            f"an epoch has {stream.epoch_samples} samples, one step takes "
            f"{recipe.data.batch} x {world.size} ranks x {recipe.run.accumulate}",
            hint="a smaller data.batch, fewer ranks, or more data",
        )
    return Data(dataset, table, stream, val)


def held_out(path: Path, table: labels.LabelTable) -> npt.NDArray[np.int64]:
    """Return the labels of the identities that a file names; all labels of one go together.

    Raises UsageError GL0001 for no such file, GL0002 for lines that are no labels of the dataset.
    """
    if not path.is_file():
        raise UsageError("GL0001", "data.held_out: no such file", where=str(path))
    words, classes = path.read_text().split(), len(table.target)
    odd = [one for one in words if not (one.isascii() and one.isdigit() and int(one) < classes)]
    if odd or not words:
        raise UsageError(
            "GL0002",
            f"data.held_out: expected labels from 0 to {classes - 1}, one a line, found "
            + (repr(odd[0]) if odd else "none"),
            where=str(path),
        )
    target = table.target[np.array(words, np.int64)]
    return np.flatnonzero((table.target >= 0) & np.isin(table.target, target[target >= 0]))


def net(recipe: Recipe, world: World) -> tuple[nn.Module, Any]:
    """Build the backbone; return it, and what computes it: itself, or its compiled form."""
    torch.manual_seed(recipe.run.seed)
    backbone = backbones.create(
        recipe.backbone.name, embedding=recipe.backbone.embedding, **recipe.backbone.options
    )
    if recipe.backbone.pretrained:
        trunk: Any = backbone.trunk
        import_weights.fill(trunk, recipe.backbone.pretrained, recipe.backbone.name)
    backbone = backbone.to(world.device, parameter_dtype(recipe))
    if recipe.run.channels_last:
        backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.run.sync_bn and world.size > 1:
        if world.device.type != "cuda":
            raise UsageError("GL0002", "run.sync_bn needs a GPU", hint="--set run.sync_bn=false")
        convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
        backbone = convert(backbone, world.group)
    if recipe.tune is not None:
        tuned(backbone, recipe.tune)
    if recipe.run.compile:
        return backbone, torch.compile(backbone, backend=recipe.run.compile)
    return backbone, backbone


def tuned(backbone: nn.Module, tune: Tune) -> None:
    """Make a net such that only what `tune` says learns. Raises UsageError GL0002 for nothing."""
    count = len(stages.stages(backbone))
    if tune.freeze:
        stages.freeze(backbone, tune.freeze)
    if tune.lora:
        stages.adapt(backbone, tune.lora, tune.alpha)
    if tune.norms == "frozen":
        stages.hold_norms(backbone)
    if not any(p.requires_grad for p in backbone.parameters()):
        raise UsageError(
            "GL0002", f"tune.freeze = {tune.freeze} leaves nothing of the net to learn",
            hint=f"it has {count} stages; {count - 1} leave the last one, that of the embedding",
        )  # fmt: skip
    stages.train(backbone)


def average(backbone: nn.Module, recipe: Recipe) -> AveragedModel | None:
    """Keep a moving average of weights and buffers: average * decay + weights * (1 - decay)."""
    if not recipe.run.ema:
        return None
    rule: Any = get_ema_multi_avg_fn
    averaged = AveragedModel(backbone, multi_avg_fn=rule(recipe.run.ema), use_buffers=True)
    if recipe.head.kind != "partial_fc":
        for norm in norms(averaged.module):
            norm.momentum = 0.0  # its statistics are averages of the trained net's, not its own
    return averaged


def norms(net: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """List a net's batch norms."""
    return [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def handshake(run: Run) -> None:
    """Make sure that every rank was started with the same recipe and data.

    Raises MismatchError GL0602 on every rank where they differ.
    """
    text = json.dumps([run.past.fingerprint, run.recipe.model_dump(mode="json")], sort_keys=True)
    if different := differing(text, run.world):
        raise MismatchError(
            "GL0602",
            f"rank {different[0]} was started with another recipe or dataset than rank 0",
            hint="start all ranks with the same command and the same files",
        )
