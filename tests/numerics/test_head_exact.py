"""The head against a single-process full softmax in plain torch, float64, at every world size."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from glint.dist.launch import run_ranks
from glint.dist.span import span
from glint.dist.world import World
from glint.nn.heads.options import PartialFCOptions
from glint.nn.heads.partial_fc import PartialFC
from glint.nn.heads.sample import sampled_classes
from glint.nn.margins import ArcFace, Combined, CosFace

SCALE, SEED = 32.0, 5


def plain(kind, feature_ND, centre_CD, label_N, kept_NC=None):
    """Full softmax with autograd only; kept_NC False = out of the denominator."""
    cosine_NC = F.normalize(feature_ND) @ F.normalize(centre_CD).T
    rows = torch.arange(len(label_N))
    c = cosine_NC[rows, label_N]
    if isinstance(kind, CosFace):
        moved = c - kind.m
    elif isinstance(kind, ArcFace):
        moved = torch.where(
            c < -torch.cos(torch.tensor(kind.m, dtype=c.dtype)),
            c - kind.m * torch.sin(torch.tensor(kind.m, dtype=c.dtype)),
            torch.cos(torch.arccos(c) + kind.m),
        )
    else:
        moved = torch.cos(kind.m1 * torch.arccos(c) + kind.m2) - kind.m3
    target = F.one_hot(label_N, centre_CD.shape[0]).bool()
    logit_NC = SCALE * torch.where(target, moved[:, None], cosine_NC)
    if kept_NC is not None:
        logit_NC = logit_NC.masked_fill(~kept_NC, -torch.inf)
    return F.cross_entropy(logit_NC, label_N)


def batch(counts, classes, dim, same=False):
    generator = torch.Generator().manual_seed(1)
    total = sum(counts)
    feature = torch.randn(total, dim, dtype=torch.float64, generator=generator)
    label = torch.randint(0, classes, (total,), generator=generator)
    return feature, label.fill_(classes // 2) if same else label


def head_on(
    world, counts, classes, feature_ND, label_N, margin=None, masks=None, ddp_mean=False, **options
):
    """One forward and backward on this rank: (loss, feature grad, start, centre grad)."""
    first = sum(counts[: world.rank])
    feature = feature_ND[first : first + counts[world.rank]].clone().requires_grad_()
    label = label_N[first : first + counts[world.rank]].clone()
    kept = label.clone()
    head = PartialFC(
        classes,
        feature.shape[1],
        PartialFCOptions(scale=SCALE, keep=0 if len(counts) % 2 else 1 << 20, **options),
        margin=margin or CosFace(),
        masks=masks,
        world=world,
        seed=SEED,
        dtype=torch.float64,
        ddp_mean=ddp_mean,
    )
    loss = head(feature, label, step=0, counts=counts)
    loss.backward()
    assert torch.equal(label, kept)  # the caller's labels are his
    index, grad = head.gradient()
    start = head.span.start
    rows = torch.arange(start, head.span.stop) if index is None else index + start
    return loss.detach(), feature.grad, rows, grad, head.weight.clone()


def joined(results, classes, dim):
    losses, feature_grads, rows, grads, weights = zip(*results)
    assert all(torch.equal(loss, losses[0]) for loss in losses)  # to the bit on every rank
    centre_grad = torch.zeros(classes, dim, dtype=torch.float64)
    centre_grad[torch.cat(rows)] = torch.cat(grads)
    return losses[0], torch.cat(feature_grads), centre_grad, torch.cat(weights)


@pytest.mark.parametrize("kind", [CosFace(0.35), ArcFace(0.5), Combined(1.0, 0.3, 0.2)], ids=str)
@pytest.mark.parametrize(
    ("counts", "classes"),
    [
        ([5], 1),
        ([1], 37),
        ([6], 37),
        ([3, 3], 37),
        ([4, 1, 2], 37),
        ([2, 2, 2], 2),
        ([3, 0, 2], 9),
        ([2, 2, 2, 2], 1003),
        ([1, 1, 1, 1, 1], 9),
        ([5, 5, 5], 1),
    ],
)
def test_equals_full_softmax(ranks, counts, classes, kind):
    dim = 8
    feature, label = batch(counts, classes, dim)
    loss, feature_grad, centre_grad, weight = joined(
        ranks(
            len(counts),
            lambda world: head_on(world, counts, classes, feature, label, margin=kind, block=16),
        ),
        classes,
        dim,
    )
    feature.requires_grad_()
    weight.requires_grad_()
    truth = plain(kind, feature, weight, label)
    truth.backward()
    assert abs(loss - truth) < 1e-10
    assert (feature_grad - feature.grad).abs().max() < 1e-10
    assert (centre_grad - weight.grad).norm() < 1e-10 * (1 + weight.grad.norm())


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5])
@pytest.mark.parametrize(("counts", "same"), [([4], False), ([3, 1], False), ([2, 2, 3], True)])
def test_sampled_equals_softmax_over_the_sampled_classes(ranks, counts, same, rate):
    classes, dim = 101, 6
    feature, label = batch(counts, classes, dim, same)
    loss, feature_grad, centre_grad, weight = joined(
        ranks(
            len(counts),
            lambda world: head_on(world, counts, classes, feature, label, rate=rate, block=7),
        ),
        classes,
        dim,
    )
    playing = sampled_classes(label, classes, rate, seed=SEED, step=0)
    kept = torch.zeros(len(label), classes, dtype=torch.bool)
    kept[:, playing] = True
    feature.requires_grad_()
    weight.requires_grad_()
    truth = plain(CosFace(), feature, weight, label, kept)
    truth.backward()
    assert abs(loss - truth) < 1e-10
    assert (feature_grad - feature.grad).abs().max() < 1e-10
    assert (centre_grad - weight.grad).norm() < 1e-10 * (1 + weight.grad.norm())


@pytest.mark.parametrize("counts", [[6], [3, 1, 2]])
@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_threshold_and_known_pairs_leave_the_denominator(ranks, counts, rate):
    classes, dim, threshold = 53, 4, 0.3
    feature, label = batch(counts, classes, dim)
    pairs = torch.tensor(
        [
            [int(label[0]), (int(label[0]) + 3) % classes],
            [(int(label[1]) + 1) % classes, int(label[1])],
            [int(label[1]), (int(label[1]) + 7) % classes],
        ]
    )
    loss, feature_grad, centre_grad, weight = joined(
        ranks(
            len(counts),
            lambda world: head_on(
                world,
                counts,
                classes,
                feature,
                label,
                rate=rate,
                block=8,
                threshold=threshold,
                masks=pairs.numpy(),
            ),
        ),
        classes,
        dim,
    )
    kept = F.normalize(feature) @ F.normalize(weight).T <= threshold
    for a, b in pairs.tolist():
        kept[label == a, b] = False
        kept[label == b, a] = False
    playing = sampled_classes(label, classes, rate, seed=SEED, step=0)
    if playing is not None:
        absent = torch.ones(classes, dtype=torch.bool)
        absent[playing] = False
        kept[:, absent] = False
    kept[torch.arange(len(label)), label] = True
    assert not kept.all()
    feature.requires_grad_()
    weight.requires_grad_()
    truth = plain(CosFace(), feature, weight, label, kept)
    truth.backward()
    assert abs(loss - truth) < 1e-10
    assert (feature_grad - feature.grad).abs().max() < 1e-10
    assert (centre_grad - weight.grad).norm() < 1e-10 * (1 + weight.grad.norm())


def test_a_masked_class_gets_a_gradient_of_exactly_zero():
    classes, dim = 20, 4
    feature, label = batch([5], classes, dim, same=True)
    pairs = [(classes // 2, 3), (0, classes // 2)]
    _, _, _, grad, _ = head_on(World(), [5], classes, feature, label, masks=pairs)
    assert torch.count_nonzero(grad[[0, 3]]) == 0
    assert (grad.abs().sum(1) > 0).sum() == classes - 2


def test_filtered_classes_get_a_gradient_of_exactly_zero():
    classes, dim = 30, 3
    feature, label = batch([1], classes, dim)
    _, _, _, grad, weight = head_on(World(), [1], classes, feature, label, threshold=0.2)
    above = (F.normalize(feature) @ F.normalize(weight).T)[0] > 0.2
    above[label] = False
    assert 0 < above.sum() < classes - 1
    assert torch.count_nonzero(grad[above]) == 0
    assert torch.count_nonzero(grad[~above].abs().sum(1)) == (~above).sum()


def distance(found, truth):
    return (found.double() - truth.double()).norm() / truth.double().norm().clamp_min(1e-30)


def run_steps(world, rate, rule, dtype, steps=6, classes=203, dim=8, total=12, lr=1e-3):
    """Train centres and a shared linear layer for a few steps; give losses and final centres."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.eye(dim, dtype=dtype)
    head = PartialFC(
        classes,
        dim,
        PartialFCOptions(rate=rate, rule=rule, block=16),
        margin=CosFace(),
        world=world,
        seed=SEED,
        dtype=dtype,
    )
    losses = []
    for step in range(steps):
        data = torch.randn(total, dim, generator=generator).to(dtype)
        label = torch.randint(0, classes, (total,), generator=generator)
        mine = slice(*span(total, world.size, world.rank))
        weight = mixing.clone().requires_grad_()
        loss = head(data[mine] @ weight, label[mine], step=step)
        loss.backward()
        grad = weight.grad.clone()
        if world.size > 1:
            torch.distributed.all_reduce(grad)
        mixing -= 0.01 * grad / world.size  # what DDP does: the mean over ranks
        head.update(step=step, lr=lr / (1 + step))
        losses.append(loss.item())
    return losses, head.state_rows(), mixing


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("rule", ["none", "v1_stale", "lazy_decay", "dense_exact", "adamw"])
@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_worlds_agree_over_steps(ranks, rate, rule, dtype, tolerance):
    alone = ranks(1, lambda world: run_steps(world, rate, rule, dtype))[0]
    for size in (2, 4):
        together = ranks(size, lambda world: run_steps(world, rate, rule, dtype))
        for losses, _, mixing in together:
            assert losses == together[0][0]
            assert distance(mixing, alone[2]) < tolerance
        relative = [abs(a - b) / b for a, b in zip(together[0][0], alone[0])]
        assert max(relative) < (1e-6 if dtype == torch.float32 else 1e-12)
        for name in alone[1][2]:
            whole = torch.cat([rows[2][name] for _, rows, _ in together])
            assert distance(whole, alone[1][2][name]) < tolerance, name


PROGRAM = """
import os, sys, torch
sys.path.insert(0, {tests!r})
from test_head_exact import batch, head_on
from glint.dist.world import join, leave
torch.set_num_threads(1)
world = join("cpu", timeout=60)
counts = {counts}
feature, label = batch(counts, 37, 8)
result = head_on(world, counts, 37, feature, label, rate={rate}, block=8)
torch.save(result, {out!r} + str(world.rank))
leave(world)
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.parametrize(("counts", "rate"), [([5, 3], 0.4), ([3, 4, 1], 1.0)])
def test_real_processes_over_gloo_equal_one_process(ranks, tmp_path, counts, rate):
    out = str(tmp_path / "rank-")
    program = PROGRAM.format(tests=str(Path(__file__).parent), out=out, counts=counts, rate=rate)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert run_ranks([sys.executable, "-c", program], len(counts), env) == 0
    real = joined([torch.load(out + str(rank)) for rank in range(len(counts))], 37, 8)
    feature, label = batch(counts, 37, 8)
    alone = joined(
        ranks(1, lambda world: head_on(world, [8], 37, feature, label, rate=rate)), 37, 8
    )
    for found, expected in zip(real, alone):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
