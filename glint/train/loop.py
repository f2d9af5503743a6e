"""The training loop, over the objects that `build` made.

Of the recipe it reads the schedule, the rates, and when to log, save and verify (`[run]`).
"""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel as DDP

from glint.dist.collectives import all_reduce_
from glint.errors import DivergedError, Stopped
from glint.evals.embed import embed_jpegs
from glint.evals.pairs import Verification, ten_fold
from glint.files.atomic import write_bytes
from glint.log import Progress, logger, silent
from glint.models.checkpoint import prune
from glint.nn import stages
from glint.nn.heads.partial_fc import PartialFC
from glint.recipes.load import dump
from glint.results import models as results
from glint.stream.augment import to_input
from glint.stream.loader import Batch
from glint.train import metrics, report, restore, sense
from glint.train.build import Run, norms
from glint.train.pace import NEVER, Pace, Until
from glint.train.restore import BEST
from glint.train.saving import Saver
from glint.train.schedule import learning_rate, total_steps


def train(run: Run, progress: Progress = silent, until: Until = NEVER) -> results.Train:
    """Train from the newest checkpoint under `run.out`, or from the start, to the last step.

    until: stop before, as on a signal.
    Returns {steps, loss, accuracy, checkpoint, ...}. Raises DivergedError GL0703 where the loss or
    a gradient is not finite (every rank at the same step; checkpoints stay as they are),
    ResourceError GL0901 at the step after a checkpoint could not be written, and Stopped GL0704
    after SIGTERM, SIGINT or SIGUSR1, with the state saved.
    """
    recipe, spe = run.recipe, run.steps_per_epoch
    start = restore.resume(run)
    total = start if _hopeless(run, start) else total_steps(recipe.schedule, spe)
    if start < total and any(_any(run, until.over(start))):
        what = f"--until is past: the run stands at step {start} of {total}"
        raise Stopped("GL0704", what, where=str(run.out), hint="give a later --until, or none")
    log = metrics.Log(run, start)
    if run.world.rank == 0 and start < total:
        write_bytes(run.out / "recipe.toml", dump(recipe).encode())
        logger.info("%s", run.data.stream.coverage(recipe.schedule.epochs))
        log.start(start, total)
    path = run.out / "checkpoints" / f"step-{start:08d}"
    if run.world.rank == 0 and start >= total:  # killed behind its last save, it had no time to
        prune(path.parent, path, recipe.run.keep)
    verified: dict[str, Verification] = {}
    result = Step(math.nan, math.nan)
    if start == 0 and run.data.val:
        log.verification(0, 0.0, evaluate(run))
    pace = Pace(recipe.run, spe, total)
    page = report.Kept(run.out, run.world.rank == 0)
    with _signals() as stop, page, Saver(run, log) as saver:
        for step, batches in planned(run, start, total):
            epoch = step // spe
            lr = learning_rate(recipe.schedule, recipe.optim.lr, step, spe)
            result = train_step(run, batches, step, lr, log, result.skipped)
            if step == 0:
                sense.first_loss(recipe, result.loss)
            log.step(step, epoch, lr, result.loss, result.distance)
            done = step + 1
            progress(done, total, log.note(epoch, result.loss, lr, result.distance))
            every, better = recipe.run.eval_every or spe, False
            if run.data.val and (done % every == 0 or done == total):
                verified = evaluate(run)
                log.verification(done, done / spe, verified)
                better = _better(run, done, verified)
            over = bool(stop) or until.over(done)
            stopping, failed, due = _any(run, over, saver.failed, pace.due())
            log.mark("update")
            if failed:
                saver.wait()
            total = done if _hopeless(run, done) else total
            if pace.saves(done) or stopping or due or better or done == total:
                path = saver.save(done, best=better)
                pace.saved()
                page.keep_up(now=done < total and not stopping)
                log.mark("save")
            else:
                page.keep_up()
            if stopping and done < total:
                saver.wait()
                log.close()
                why = stop[0] if stop else "--until" if over else "a signal to another rank"
                raise Stopped(
                    "GL0704",
                    f"stopped on {why} at step {done} of {total}; saved {path}",
                    hint="run the same command to continue",
                )
            if done == total:
                break
        saver.wait()
    log.close()
    if not verified and run.data.val:
        verified = evaluate(run)
    return _answer(run, start, total, result.loss, path, verified)


def _answer(
    run: Run, start: int, total: int, loss: float, path: Path, verified: dict[str, Verification]
) -> results.Train:
    accuracy = [v.accuracy for v in verified.values()]
    return results.Train(
        steps=max(start, total),
        loss=None if math.isnan(loss) else loss,
        accuracy=float(np.mean(accuracy)) if accuracy else None,
        verification={name: v.accuracy for name, v in verified.items()},
        checkpoint=str(path),
        best=str(run.out / BEST) if (run.out / BEST).is_dir() else None,
        out=str(run.out),
        resumed_from=start,
        images=max(start, total) * run.step_images,
        classes=run.data.labels.classes,
        world=run.world.size,
    )


@dataclass(frozen=True)
class Step:
    """What one step had.

    loss: of the head, and of the teacher at its weight; mean over the micro-batches. distance: to
    the teacher, mean over all ranks, NaN without one. skipped: steps in a row, up to this one,
    whose loss or gradient was not finite.
    """

    loss: float
    distance: float
    skipped: int = 0


def train_step(
    run: Run, batches: list[Batch], step: int, lr: float, log: metrics.Log, skipped: int = 0
) -> Step:
    """Do one optimiser step on `batches`, one per accumulation.

    skipped: steps in a row, up to this one, that were not finite. Such a step moves nothing: it
    raises DivergedError GL0703, or is skipped where the recipe says so or fp16's scale was only too
    large.
    """
    seen = forward_backward(run, batches, step, log)
    clip = run.recipe.optim.clip or math.inf
    run.scaler.unscale_(run.optimizer)
    seen.append(torch.nn.utils.clip_grad_norm_(run.backbone.parameters(), clip))
    # the one time in a step that the host waits for a GPU to end
    loss, distance, norm = torch.stack([one.double() for one in seen]).tolist()
    if run.teacher is None:
        distance = math.nan
    else:
        loss += run.teacher.weight * distance
    if math.isfinite(loss) and math.isfinite(norm):
        apply(run, step, lr)
        log.mark("update")
        return Step(loss, distance)
    result = Step(loss, distance, skipped + 1)
    skip(run, batches, step, result, norm, log)
    return result


def forward_backward(run: Run, batches: list[Batch], step: int, log: metrics.Log) -> list[Tensor]:
    """Add up the gradients of all micro-batches; return their head's loss and their distance."""
    losses, distances = [], []
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        sync = nullcontext() if last or not isinstance(run.model, DDP) else run.model.no_sync()
        with sync:
            loss, distance = _micro_batch(run, batch, step * len(batches) + i, len(batches), log)
        losses.append(loss)
        distances.append(distance)
    loss, distance = torch.stack(losses).sum(), torch.stack(distances).sum()
    if run.teacher is not None:  # each rank's gradient is of its own images: DDP averages them
        distance = all_reduce_(distance, run.world) / run.world.size
    return [loss, distance]


def _micro_batch(
    run: Run, batch: Batch, number: int, count: int, log: metrics.Log
) -> tuple[Tensor, Tensor]:
    """Run one of `count` micro-batches forward and backward; return its loss and distance.

    number: its place among all micro-batches of the run. The head's backward ends at the features;
    the backbone's starts there. So the head always works unscaled, and only the backbone sees the
    fp16 loss scale.
    """
    device, mixed = run.world.device, run.autocast_dtype
    image = to_input(
        batch.image.to(device, non_blocking=True),
        run.parameter_dtype,
        channels_last=run.recipe.run.channels_last,
        flip=batch.flip,
    )
    label = batch.label.to(device, non_blocking=True)
    log.mark("data")
    _reseed(run.recipe.run.seed, number, run.world.rank)
    compared: dict[str, Any] = {}
    if isinstance(run.head, PartialFC):
        compared["rate"] = run.recipe.head.rate_at(number / (run.steps_per_epoch * count))
    if not isinstance(run.head, PartialFC):
        label = run.head.parts(label)[0]
        image, other = run.head.parts(image)
        compared["gallery_nD"] = gallery_features(run, other)
    target_nD = None
    if run.teacher is not None:  # before the net's own pass keeps its activations
        target_nD = run.teacher.embed(image, mixed)
        log.mark("teacher")
    with torch.autocast(device.type, mixed, enabled=mixed is not None):
        feature_nD = run.model(image)
    log.mark("forward")
    leaf_nD = feature_nD.detach().to(run.parameter_dtype).requires_grad_()
    loss = run.head(leaf_nD, label, step=number, **compared) / count
    distance = loss.new_zeros(())
    if run.teacher is not None and target_nD is not None:
        distance = run.teacher.distance(leaf_nD, target_nD) / count
        (loss + run.teacher.weight * distance).backward()
    else:
        loss.backward()
    log.mark("head")
    assert leaf_nD.grad is not None
    feature_nD.backward(run.scaler.scale(leaf_nD.grad.to(feature_nD.dtype)))
    log.mark("backward")
    return loss.detach(), distance.detach()


def apply(run: Run, step: int, lr: float) -> None:
    """Move backbone, head and average by the gradients of this step."""
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    run.head.update(step=step, lr=lr * run.recipe.head.lr_scale)
    if run.averaged is not None:
        run.averaged.update_parameters(run.backbone)


def skip(
    run: Run, batches: list[Batch], step: int, result: Step, norm: float, log: metrics.Log
) -> None:
    """Leave everything as it was after a step that was not finite.

    Raises DivergedError GL0703 where that may not be, or was done too often in a row.
    """
    settings = run.recipe.run
    scaler = run.scaler
    loss, skipped = result.loss, result.skipped
    overflow = scaler.is_enabled() and math.isfinite(loss)
    if skipped > settings.max_skips or not (overflow or settings.on_nan == "skip"):
        in_a_row = f", {skipped} such steps in a row" if skipped > 1 else ""
        raise DivergedError(
            "GL0703",
            f"loss {loss}, gradient norm {norm} at step {step + 1}{in_a_row}; "
            f"its samples: {log.dump(step, batches, loss)}",
            hint="a lower optim.lr, a longer schedule.warmup, or precision bf16; "
            "checkpoints are as they were",
        )
    if not overflow:
        where = log.dump(step, batches, loss)
        logger.warning("step %d is skipped: loss %s; its samples: %s", step + 1, loss, where)
    if scaler.is_enabled():
        scaler.step(run.optimizer)  # skips, as it has seen the gradient
        scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    run.head.drop()


@torch.no_grad()
def gallery_features(run: Run, image: Tensor) -> Tensor:
    """Embed images by the moving average of the net, as class rows of a head without a table.

    Batch norms take the statistics of the batch, as the trained net's do: averaged ones lag behind
    the weights. Everything else is as in use: nothing is dropped or masked.
    """
    assert run.averaged is not None  # the recipe's check
    net, mixed = run.averaged.module.eval(), run.autocast_dtype
    for norm in norms(net):
        norm.train()
    with torch.autocast(run.world.device.type, mixed, enabled=mixed is not None):
        return net(image).to(run.parameter_dtype)  # type: ignore[no-any-return]


def _reseed(seed: int, number: int, rank: int) -> None:
    """Make what a net draws (dropout, drop path, masks) depend on these three alone.

    So a resumed run draws what the unbroken one would have, and no two ranks draw the same.
    """
    words = np.random.SeedSequence([seed, number, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]))


def planned(run: Run, start: int, total: int) -> Iterator[tuple[int, list[Batch]]]:
    """Yield (global step, its micro-batches) from `start` to `total`, over epochs."""
    spe, micro = run.steps_per_epoch, run.recipe.run.accumulate
    step = start
    while step < total:
        epoch, within = divmod(step, spe)
        batches = ahead(run.data.stream.batches(epoch, start_step=within * micro), run.world.device)
        for _ in range(min(spe - within, total - step)):
            yield step, [next(batches) for _ in range(micro)]
            step += 1


def ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Copy a batch's images to a GPU, on a stream of their own, while the one before is used."""
    if device.type != "cuda":
        yield from batches
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: deque[tuple[Batch, torch.cuda.Event]] = deque()

    def first() -> Batch:
        batch, copied = waiting.popleft()
        stream = torch.cuda.current_stream(device)
        stream.wait_event(copied)
        batch.image.record_stream(stream)  # its memory is free when that one is done with it
        return batch

    for batch in batches:
        with torch.cuda.stream(side):
            image = batch.image.to(device, non_blocking=True)
            waiting.append((batch._replace(image=image), side.record_event()))
        if len(waiting) > 1:
            yield first()
    while waiting:
        yield first()


def evaluate(run: Run) -> dict[str, Verification]:
    """Verify on every pack of `run.data.val`; images are spread over the ranks.

    Batch norm uses rank 0's running statistics, as the checkpoint does.
    """
    share_buffers(run)
    net = run.judged.eval()

    def embed(image_nhwc: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            image = torch.from_numpy(image_nhwc).to(run.world.device)
            out = net(to_input(image, run.parameter_dtype))
        return np.asarray(out.float().cpu())

    results = {}
    for name, pairs in run.data.val.items():
        size, rank = run.world.size, run.world.rank
        mine = pairs.images[rank::size]
        out_nD = torch.zeros(
            (len(pairs.images), run.recipe.backbone.embedding), dtype=torch.float64
        )
        if mine:
            out_nD[rank::size] = torch.from_numpy(embed_jpegs(embed, mine, name=name))
        out_nD = all_reduce_(out_nD.to(run.world.device), run.world).cpu()
        results[name] = ten_fold(
            out_nD.numpy()[pairs.first], out_nD.numpy()[pairs.second], pairs.same, pairs.folds
        )
    stages.train(net)
    for name, v in results.items():
        logger.info("verification %s: %.2f +- %.2f %%", name, 100 * v.accuracy, 100 * v.std)
    return results


def share_buffers(run: Run) -> None:
    """Broadcast rank 0's batch norm statistics to every rank."""
    if run.world.size > 1:
        for buffer in run.judged.buffers():
            torch.distributed.broadcast(buffer, 0, group=run.world.group)


def _better(run: Run, done: int, verified: dict[str, Verification]) -> bool:
    """Return whether a run has never verified better, and note it. The same on every rank."""
    accuracy = float(np.mean([one.accuracy for one in verified.values()]))
    if accuracy <= run.past.best.get("accuracy", -math.inf):
        return False
    run.past.best.update(step=done, accuracy=accuracy, packs=sorted(run.data.val))
    return True


def _hopeless(run: Run, done: int) -> bool:
    """Return whether `tune.patience` verifications went by since the best one."""
    tune, best = run.recipe.tune, run.past.best.get("step")
    if tune is None or not tune.patience or best is None:
        return False
    return bool(done - best >= tune.patience * (run.recipe.run.eval_every or run.steps_per_epoch))


def _any(run: Run, *flags: bool) -> list[bool]:
    """Return, for each flag, whether it is set on any rank."""
    if run.world.size == 1:
        return list(flags)
    value: Tensor = torch.tensor([float(flag) for flag in flags], device=run.world.device)
    return [count > 0 for count in all_reduce_(value, run.world).tolist()]


@contextmanager
def _signals() -> Iterator[list[str]]:
    """Collect the names of stop signals while inside; a second SIGINT ends at once."""
    seen: list[str] = []

    def note(number: int, frame: object) -> None:
        if seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        seen.append(signal.Signals(number).name)

    old = {}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        try:
            old[number] = signal.signal(number, note)
        except ValueError:  # not in the main thread: a test
            continue
    start = time.monotonic()
    try:
        yield seen
    finally:
        logger.debug("trained for %.1f s", time.monotonic() - start)
        for number, handler in old.items():
            signal.signal(number, handler)
