"""The training loop: takes built objects, knows nothing of recipes' spelling or files' layout."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

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
from glint.nn.heads.partial_fc import PartialFC
from glint.recipes.load import dump
from glint.results import models as results
from glint.stream.augment import to_input
from glint.stream.loader import Batch
from glint.train import metrics, report, restore
from glint.train.build import PRECISION, Run, norms
from glint.train.saving import Saver
from glint.train.schedule import learning_rate, total_steps


def train(run: Run, progress: Progress = silent) -> results.Train:
    """Train from the newest checkpoint under `run.out`, or from the start, to the last step.

    Gives {steps, loss, accuracy, checkpoint, ...}. Raises DivergedError GL0703 where the loss or
    a gradient is not finite (every rank at the same step; checkpoints stay as they are),
    ResourceError GL0901 at the step after a checkpoint could not be written, and Stopped GL0704
    after SIGTERM, SIGINT or SIGUSR1, with the state saved.
    """
    recipe, spe = run.recipe, run.steps_per_epoch
    total = total_steps(recipe.schedule, spe)
    start = restore.resume(run)
    log = metrics.Log(run, start)
    if run.world.rank == 0 and start < total:
        write_bytes(run.out / "recipe.toml", dump(recipe).encode())
        logger.info("%s", run.stream.coverage(recipe.schedule.epochs))
    path = run.out / "checkpoints" / f"step-{start:08d}"
    verified: dict[str, Verification] = {}
    loss = math.nan
    if start == 0 and run.val:
        log.verification(0, 0.0, evaluate(run))
    with _signals() as stop, Saver(run, log) as saver:
        for step, batches in _steps(run, start, total):
            epoch = step // spe
            lr = learning_rate(recipe.schedule, recipe.optim.lr, step, spe)
            loss = train_step(run, batches, step, lr, log)
            log.step(step, epoch, lr, loss)
            done = step + 1
            progress(done, total, log.note(epoch, loss, lr))
            every = recipe.run.eval_every or spe
            if run.val and (done % every == 0 or done == total):
                verified = evaluate(run)
                log.verification(done, done / spe, verified)
            stopping, failed = _any(run, bool(stop), saver.failed)
            log.mark("update")
            if failed:
                saver.wait()
            if done % recipe.run.save_every == 0 or done == total or stopping:
                path = saver.save(done)
                if run.world.rank == 0:
                    report.keep_up(run.out)
                log.mark("save")
            if stopping and done < total:
                saver.wait()
                log.close()
                raise Stopped(
                    "GL0704",
                    f"stopped on {stop[0] if stop else 'a signal to another rank'} at step {done} "
                    f"of {total}; saved {path}",
                    hint="run the same command to continue",
                )
        saver.wait()
    log.close()
    if not verified and run.val:
        verified = evaluate(run)
    accuracy = [v.accuracy for v in verified.values()]
    return results.Train(
        steps=max(start, total),
        loss=None if math.isnan(loss) else loss,
        accuracy=float(np.mean(accuracy)) if accuracy else None,
        verification={name: v.accuracy for name, v in verified.items()},
        checkpoint=str(path),
        out=str(run.out),
        resumed_from=start,
        images=max(start, total) * run.global_batch * recipe.run.accumulate,
        classes=run.labels.classes,
        world=run.world.size,
    )


def train_step(
    run: Run,
    batches: list[Batch],
    step: int,
    lr: float,
    log: metrics.Log,
) -> float:
    """Do one optimiser step on `batches` (one per accumulation) and give the mean loss.

    The head's backward ends at the features; the backbone's starts there. So the head always works
    unscaled, and only the backbone sees the fp16 loss scale. A step whose loss or gradient is not
    finite moves nothing: it raises DivergedError GL0703, or is skipped where the recipe says so
    or fp16's scale was only too large.
    """
    recipe, device, scaler = run.recipe, run.world.device, run.scaler
    dtype = PRECISION[recipe.run.precision]
    mixed = dtype in (torch.bfloat16, torch.float16)
    losses, apart = [], []
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        sync = nullcontext() if last or not isinstance(run.model, DDP) else run.model.no_sync()
        image = to_input(
            batch.image.to(device, non_blocking=True),
            run.parameter_dtype,
            channels_last=recipe.run.channels_last,
            flip=batch.flip,
        )
        label = batch.label.to(device, non_blocking=True)
        log.mark("data")
        micro = step * len(batches) + i
        _draw_anew(recipe.run.seed, micro, run.world.rank)
        compared: dict[str, Tensor] = {}
        if not isinstance(run.head, PartialFC):
            label = run.head.parts(label)[0]
            image, other = run.head.parts(image)
            compared["gallery_nD"] = gallery_features(run, other, dtype if mixed else None)
        target_nd = None
        if run.teacher is not None:  # before the net's own pass keeps its activations
            target_nd = run.teacher.embed(image, dtype if mixed else None)
            log.mark("teacher")
        with sync:
            with torch.autocast(device.type, dtype, enabled=mixed):
                feature_nd = run.model(image)
            log.mark("forward")
            leaf_nd = feature_nd.detach().to(run.parameter_dtype).requires_grad_()
            loss = run.head(leaf_nd, label, step=micro, **compared) / len(batches)
            if run.teacher is not None and target_nd is not None:
                apart.append(run.teacher.distance(leaf_nd, target_nd) / len(batches))
                (loss + run.teacher.weight * apart[-1]).backward()
            else:
                loss.backward()
            log.mark("head")
            assert leaf_nd.grad is not None
            feature_nd.backward(scaler.scale(leaf_nd.grad.to(feature_nd.dtype)))
            log.mark("backward")
        losses.append(loss.detach())
    scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(
        run.backbone.parameters(), recipe.optim.clip if recipe.optim.clip > 0 else math.inf
    )
    value = float(torch.stack(losses).sum())
    if run.teacher is not None:  # each rank's gradient is of its own images: DDP averages them
        mean = all_reduce_(torch.stack(apart).detach().sum(), run.world) / run.world.size
        run.teacher.measured = float(mean)
        value += run.teacher.weight * run.teacher.measured
    if not (math.isfinite(value) and bool(torch.isfinite(norm))):
        overflow = scaler.is_enabled() and math.isfinite(value)
        run.skipped += 1
        if run.skipped > recipe.run.max_skips or not (overflow or recipe.run.on_nan == "skip"):
            raise _diverged(run, step, value, float(norm), log.dump(step, batches, value))
        if not overflow:
            where = log.dump(step, batches, value)
            logger.warning("step %d is skipped: loss %s; its samples: %s", step + 1, value, where)
        if scaler.is_enabled():
            scaler.step(run.optimizer)  # skips, as it has seen the gradient
            scaler.update()
        run.optimizer.zero_grad(set_to_none=True)
        run.head.drop()
        return value
    run.skipped = 0
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    scaler.step(run.optimizer)
    scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    run.head.update(step=step, lr=lr * recipe.head.lr_scale)
    if run.averaged is not None:
        run.averaged.update_parameters(run.backbone)
    log.mark("update")
    return value


@torch.no_grad()
def gallery_features(run: Run, image: Tensor, mixed: torch.dtype | None) -> Tensor:
    """Embed images by the moving average of the net, as class rows of a head without a table.

    Batch norms take the statistics of the batch, as the trained net's do: averaged ones lag behind
    the weights. Everything else is as in use: nothing is dropped or masked.
    """
    assert run.averaged is not None  # the recipe's check
    net = run.averaged.module.eval()
    for norm in norms(net):
        norm.train()
    with torch.autocast(run.world.device.type, mixed, enabled=mixed is not None):
        return net(image).to(run.parameter_dtype)  # type: ignore[no-any-return]


def _diverged(run: Run, step: int, loss: float, norm: float, where: str) -> DivergedError:
    row = f", {run.skipped} such steps in a row" if run.skipped > 1 else ""
    return DivergedError(
        "GL0703",
        f"loss {loss}, gradient norm {norm} at step {step + 1}{row}; its samples: {where}",
        hint="a lower optim.lr, a longer schedule.warmup, or precision bf16; "
        "checkpoints are as they were",
    )


def _draw_anew(seed: int, micro: int, rank: int) -> None:
    """Make what a net draws (dropout, drop path, masks) depend on these three alone.

    So a resumed run draws what the unbroken one would have, and no two ranks draw the same.
    """
    words = np.random.SeedSequence([seed, micro, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]))


def _steps(run: Run, start: int, total: int) -> Iterator[tuple[int, list[Batch]]]:
    """Give (global step, its micro-batches) from `start` to `total`, over epochs."""
    spe, micro = run.steps_per_epoch, run.recipe.run.accumulate
    step = start
    while step < total:
        epoch, within = divmod(step, spe)
        batches = run.stream.batches(epoch, start_step=within * micro)
        for _ in range(min(spe - within, total - step)):
            yield step, [next(batches) for _ in range(micro)]
            step += 1


def evaluate(run: Run) -> dict[str, Verification]:
    """Verify on every pack of `run.val`; images are spread over the ranks.

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
    for name, pairs in run.val.items():
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
    net.train()
    for name, v in results.items():
        logger.info("verification %s: %.2f +- %.2f %%", name, 100 * v.accuracy, 100 * v.std)
    return results


def share_buffers(run: Run) -> None:
    """Give every rank rank 0's batch norm statistics."""
    if run.world.size > 1:
        for buffer in run.judged.buffers():
            torch.distributed.broadcast(buffer, 0, group=run.world.group)


def _any(run: Run, *flags: bool) -> list[bool]:
    """Say of each flag whether it is up on any rank."""
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
