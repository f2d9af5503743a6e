"""The head's kernels against torch's operations and float64; run by test_kernels.py.

Not collected by name: on the CPU these need TRITON_INTERPRET=1 before Triton is imported, which no
other test of a process may be exposed to. `tests/gpu` uses the same comparison on a card.
"""

from __future__ import annotations

import mmap
import threading

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from glint.dist.world import World
from glint.errors import UsageError
from glint.nn.heads import fused
from glint.nn.heads.batch import gather_batch
from glint.nn.heads.options import PartialFCOptions
from glint.nn.heads.partial_fc import PartialFC
from glint.nn.heads.softmax import SoftmaxPass, margin_softmax
from glint.nn.heads.storage import Store
from glint.nn.heads.updates import ActiveRows, Table, row_rule
from glint.nn.margins import AdaFace, ArcFace, Combined, CosFace

CPU = torch.device("cpu")
TRITON = PartialFCOptions(kernels="triton")
SHAPE = {"n": 18, "classes": 40, "dim": 8}  # two tiles of samples, two runs of rows, three tiles


def train(
    kernels,
    dtype,
    device=CPU,
    *,
    n,
    classes,
    dim,
    steps=1,
    passes=1,
    margin=None,
    masks=None,
    **options,
):
    """Train for a few steps; give by name what every step found and the final table."""
    generator = torch.Generator().manual_seed(1)
    head = PartialFC(
        classes,
        dim,
        PartialFCOptions(
            kernels=kernels, block=16 if device == CPU else 1024, **{"scale": 32.0, **options}
        ),
        margin=margin or CosFace(),
        masks=masks,
        world=World(device=device),
        dtype=dtype,
        seed=3,
    )
    head.passes = passes
    found = {}
    for step in range(steps):
        for turn in range(passes):
            feature = (
                torch.randn(n, dim, generator=generator) * torch.rand(n, 1, generator=generator) * 3
            )
            feature = feature.to(device, dtype).requires_grad_()
            label = torch.randint(0, classes, (n,), generator=generator).to(device)
            loss = head(feature, label, step=step)
            loss.backward()
            found[f"loss {step}.{turn}"] = loss.detach()
            found[f"feature gradient {step}.{turn}"] = feature.grad
            found[f"hardest {step}.{turn}"] = head._seen[1].nan_to_num(neginf=-2)
            found[f"length {step}.{turn}"] = head._seen[2]
        found[f"centre gradient {step}"] = head.gradient()[1]
        head.update(step=step, lr=0.002 / (1 + step), divide=passes)
    return found | head.state_rows()[2]


def errors(found, truth):
    """Give the relative error of each figure; nan where something is not a number."""
    assert found.keys() == truth.keys()
    return {
        name: float(
            (found[name].double().cpu() - truth[name].double().cpu()).norm()
            / truth[name].double().cpu().norm().clamp_min(1e-30)
        )
        for name in truth
    }


def close(options, tolerance, device=CPU, shape=SHAPE):
    """Compare kernels with torch, within tolerance, and with float64, nearly as near as torch.

    The second allows for what is ill-conditioned, as AdamW is where a gradient vanishes.
    """
    exact = {k: v for k, v in options.items() if k not in ("gemm", "storage")}
    fast = train("triton", torch.float32, device, **{**shape, **options})
    plain = train("torch", torch.float32, device, **{**shape, **options})
    truth = train("torch", torch.float64, CPU, **{**shape, **exact})
    of_fast, of_plain, apart = errors(fast, truth), errors(plain, truth), errors(fast, plain)
    for name in truth:
        assert of_fast[name] <= 4 * of_plain[name] + tolerance / 4, (name, of_fast, of_plain)
        assert apart[name] <= tolerance, (name, apart[name])
    return of_fast


PAIRS = [(0, 7), (8, 3), (15, 16), (17, 39), (30, 31), (39, 1)]
CASES = [
    {},
    {"rule": "v1_stale", "rate": 0.5, "steps": 2, "margin": ArcFace(0.5)},
    {"rule": "lazy_decay", "rate": 0.2, "n": 3, "steps": 4, "margin": Combined(1.0, 0.3, 0.1)},
    {"rule": "dense_exact", "rate": 0.2, "n": 3, "steps": 4, "margin": AdaFace()},
    {"rule": "adamw", "rate": 0.5},
    {"masks": PAIRS, "threshold": 0.3, "passes": 2},
    {"masks": PAIRS, "rate": 0.9, "rule": "dense_exact"},
    {"n": 1, "classes": 1},
    {"n": 17, "classes": 33, "dim": 3, "rate": 0.0},
]
MANY = [
    {"n": n, "classes": classes, "dim": dim, "rate": rate, "rule": rule, "steps": 3}
    for n, classes, dim, rate in (
        (1, 2, 2, 1.0),
        (16, 32, 16, 1.0),
        (33, 97, 24, 0.4),
        (50, 130, 5, 1.0),
    )
    for rule in ("none", "v1_stale", "lazy_decay", "dense_exact", "adamw")
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_float32_equals_torch_and_float64(options):
    close(options, 2e-6)


@pytest.mark.parametrize("gemm", ["bf16", "tf32"])
def test_rounded_products_are_as_near_as_torch_rounds_them(gemm):
    found = close({"gemm": gemm, "dim": 24}, 2e-2 if gemm == "bf16" else 2e-6)
    if gemm == "bf16":  # rounded indeed
        assert found["feature gradient 0.0"] > 1e-4


@pytest.mark.parametrize("rule", ["none", "v1_stale"])
def test_bf16_tables_are_rounded_with_the_same_bits(rule):
    options = {"storage": "bf16", "rule": rule, "dim": 5, "classes": 20, "n": 7}
    fast = train("triton", torch.float32, **options)
    plain = train("torch", torch.float32, **options)
    names = ["weight"] if rule == "none" else ["weight", "momentum"]
    for name in names:
        assert fast[name].dtype == torch.bfloat16
        assert torch.equal(fast[name], plain[name])  # of a hundred draws, one other bit shows


def test_same_bits_twice():
    one = train("triton", torch.float32, **SHAPE)
    two = train("triton", torch.float32, **SHAPE)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_ranks_of_unequal_batches_and_without_rows(ranks, monkeypatch):
    lock, run = threading.Lock(), InterpretedFunction.run

    def alone(self, *args, **options):  # ranks are threads here, and the interpreter is one
        with lock:
            return run(self, *args, **options)

    monkeypatch.setattr(InterpretedFunction, "run", alone)
    counts, classes = [2, 0, 3], 4  # ranks own 2, 2 and no classes
    feature, label = torch.randn(5, 6), torch.tensor([0, 3, 3, 1, 0])

    def one(world):
        first = sum(counts[: world.rank])
        mine = feature[first : first + counts[world.rank]].clone().requires_grad_()
        head = PartialFC(classes, 6, TRITON, margin=CosFace(), world=world, ddp_mean=False)
        own = label[first : first + counts[world.rank]]
        loss = head(mine, own, step=0, counts=counts)
        loss.backward()
        head.update(step=0, lr=0.01)
        return loss.detach(), mine.grad, head.weight

    losses, grads, weights = zip(*ranks(3, one))
    whole = feature.clone().requires_grad_()
    head = PartialFC(classes, 6, margin=CosFace())
    loss = head(whole, label, step=0)
    loss.backward()
    head.update(step=0, lr=0.01)
    assert all(torch.equal(one, losses[0]) for one in losses)
    torch.testing.assert_close(losses[0], loss.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.cat(grads), whole.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat(weights), head.weight, rtol=1e-5, atol=1e-6)


def virtual(rows, dim):
    """Give a table that takes memory only where it is written."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    return torch.frombuffer(mmap.mmap(-1, 4 * rows * dim, flags=flags), dtype=torch.float32).view(
        rows, dim
    )


@pytest.mark.parametrize("rule_name", ["none", "v1_stale", "lazy_decay", "dense_exact"])
def test_rows_beyond_two_to_the_31_numbers(rule_name):
    """20 GB of centres, and as much momentum: rows on both sides of element 2^31 and at the end."""
    classes, dim = 10_000_000, 512
    index_k = torch.tensor([0, 1, 4_194_303, 4_194_304, 4_194_305, 8_388_608, 9_999_999])
    generator = torch.Generator().manual_seed(0)
    rows_kD = torch.randn(len(index_k), dim, generator=generator) * 0.05
    feature_nD = torch.randn(5, dim, generator=generator)
    target_n = torch.tensor([0, 3, 6, 4, 2])
    found = []
    for pass_type in (SoftmaxPass, fused.Fused):
        rule, weight_cD = row_rule(rule_name), virtual(classes, dim)
        weight_cD[index_k], state = rows_kD, {}
        if rule_name != "none":
            state["momentum"] = virtual(classes, dim)
            state["momentum"][index_k] = rows_kD.flip(0) / 5
        if rule_name in ("lazy_decay", "dense_exact"):
            state["last"] = torch.zeros(classes, dtype=torch.int32)
        table = Table(weight_cD, state, Store(torch.float32))
        if rule_name == "dense_exact":
            rule.done(table, lr=0.1)  # all rows are one step behind
        leaf_nD, passed = feature_nD.clone().requires_grad_(), []
        loss, *_ = margin_softmax(
            leaf_nD, ActiveRows(rule, table, index_k, 4),
            gather_batch(leaf_nD, target_n, World(), len(index_k), dtype=torch.float32), target_n,
            margin=CosFace(), scale=32.0, world=World(), pass_type=pass_type,
            on_backward=lambda *one, passed=passed: passed.append(one),
        )  # fmt: skip
        loss.backward()
        softmax_pass, weight = passed[0]
        with torch.no_grad():
            softmax_pass.update(weight, step=4, lr=0.1)
        moved = [one[index_k].clone() for one in (weight_cD, *state.values())]
        found.append([loss.detach(), leaf_nD.grad, *moved])
    assert not torch.equal(found[0][2], rows_kD)
    for plain, fast in zip(*found):
        torch.testing.assert_close(fast, plain, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_logits_at_both_ends_of_the_scale(sign):
    """Every centre the same as every feature, or its opposite: exp(64) and exp(-64), no maximum."""
    unit = torch.nn.functional.normalize(torch.randn(1, 8, generator=torch.Generator()), dim=1)
    found = []
    for kernels, dtype in (("triton", torch.float32), ("torch", torch.float64)):
        options = PartialFCOptions(kernels=kernels, scale=64.0)
        head = PartialFC(40, 8, options, margin=CosFace(0.4), dtype=dtype)
        head.weight.copy_(sign * unit * torch.linspace(0.5, 2, 40)[:, None])
        feature = (unit * torch.linspace(1, 3, 5)[:, None]).to(dtype).requires_grad_()
        loss = head(feature, torch.arange(5), step=0)
        loss.backward()
        found.append([loss.detach().double(), feature.grad.double(), head.gradient()[1].double()])
    for fast, truth in zip(*found):
        assert torch.isfinite(fast).all()
        torch.testing.assert_close(fast, truth, rtol=1e-5, atol=2e-5)


def test_without_gradients_no_gradient_is_made():
    head = PartialFC(9, 4, TRITON, margin=CosFace())
    plain = PartialFC(9, 4, margin=CosFace())
    feature, label = torch.randn(3, 4), torch.tensor([1, 8, 0])
    with torch.no_grad():
        torch.testing.assert_close(head(feature, label, step=0), plain(feature, label, step=0))


def test_tiles_fit_the_memory_of_a_card():
    def asked(shared, size, capability=90):
        tiles = fused.fitting(512, size, shared, 100, capability)
        return tiles.samples, tiles.warps, tiles.stages

    assert asked(232448, 2) == (64, 8, 2)  # compute capability 9.0
    assert asked(166912, 2, 80) == (32, 8, 1)  # 64 rows are 13 kB of spill there
    assert asked(101376, 2, 89) == (32, 8, 1)
    assert asked(101376, 2, 120) == (32, 8, 1)
    assert asked(232448, 4) == (32, 8, 2)
    assert asked(166912, 4, 80) == (32, 8, 1)
    assert asked(101376, 4, 89) == (16, 4, 1)
    exact = fused.fitting(512, 4, 232448, 132, 90, exact=True)  # 32 rows are 23 kB of spill
    assert (exact.samples, exact.warps, exact.stages) == (16, 8, 1)
    tiles = fused.fitting(512, 2, 232448, 132, 90)
    assert tiles.moved % tiles.classes == 0 and tiles.gathered == 32768


def test_what_kernels_cannot_do_is_refused():
    assert PartialFC(4, 4, margin=CosFace()).pass_type is SoftmaxPass  # auto, on the CPU
    for options, wants in (
        ({"dtype": torch.float64}, "float32 rows"),
        ({"dim": 513}, "at most 512 numbers per row"),
    ):
        with pytest.raises(UsageError, match=wants):
            PartialFC(4, **{"dim": 4, **options}, options=TRITON, margin=CosFace())


@pytest.mark.slow
@pytest.mark.parametrize("options", MANY, ids=str)
def test_many_shapes(options):
    close(options, 6e-6)  # a gradient of 1e-21 among them
