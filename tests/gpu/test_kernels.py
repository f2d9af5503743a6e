"""The head's kernels on a card: the comparisons of `tests/numerics/kernel_cases.py`, larger."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "numerics"))

pytest.importorskip("triton", reason="the head's kernels need Triton")

from kernel_cases import PAIRS, close, errors, train

from glint.dist.world import World
from glint.nn.heads.fused import Fused, FusedTf32
from glint.nn.heads.options import PartialFCOptions
from glint.nn.heads.partial_fc import PartialFC
from glint.nn.heads.softmax import SoftmaxPass
from glint.nn.margins import AdaFace, ArcFace, CosFace

CARD = torch.device("cuda")
SMALL = {"n": 70, "classes": 333, "dim": 64}
LARGE = {"n": 300, "classes": 5003, "dim": 512}
CASES = [
    {},
    {"rule": "v1_stale", "rate": 0.5, "steps": 3, "margin": ArcFace(0.5)},
    {"rule": "lazy_decay", "rate": 0.1, "steps": 4},
    {"rule": "dense_exact", "rate": 0.1, "steps": 4, "margin": AdaFace()},
    {"rule": "adamw", "rate": 0.5},
    {"masks": PAIRS, "threshold": 0.2, "passes": 2},
    {"masks": PAIRS, "rate": 0.9, "rule": "dense_exact"},
    {"n": 1, "classes": 1},
    {"n": 65, "classes": 65, "dim": 100},
]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_float32(options):
    close(options, 2e-5, CARD, SMALL)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_bf16(options):
    close({"gemm": "bf16", **options}, 5e-2, CARD, LARGE)


def test_tf32():
    close({"gemm": "tf32"}, 1e-2, CARD, LARGE)


@pytest.mark.parametrize("rule", ["none", "v1_stale", "dense_exact"])
def test_bf16_tables_are_rounded_with_the_same_bits(rule):
    options = {"storage": "bf16", "rule": rule, **SMALL}
    fast = train("triton", torch.float32, CARD, **options)
    plain = train("torch", torch.float32, CARD, **options)
    for name in ("weight",) if rule == "none" else ("weight", "momentum"):
        # a value that float32 rounds otherwise may fall on the other side of its draw, rarely
        assert (fast[name] != plain[name]).double().mean() < 1e-3, name


def test_same_bits_twice():
    options = {"gemm": "bf16", "steps": 3, **LARGE}
    runs = [train("triton", torch.float32, CARD, **options) for _ in range(2)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_a_million_classes_equal_torchs_operations():
    shape = {"n": 1024, "classes": 1_000_003, "dim": 512, "rate": 0.1, "gemm": "bf16", "steps": 2}
    fast = train("triton", torch.float32, CARD, rule="dense_exact", **shape)
    plain = train("torch", torch.float32, CARD, rule="dense_exact", **shape)
    assert max(errors(fast, plain).values()) < 5e-2


def test_the_kernels_are_chosen():
    def chosen(**options):
        made = PartialFCOptions(**options)
        return PartialFC(8, 16, made, margin=CosFace(), world=World(device=CARD)).pass_type

    new = torch.cuda.get_device_capability() >= (8, 0)
    assert chosen(gemm="bf16") is (Fused if new else SoftmaxPass)
    assert chosen(gemm="tf32") is (FusedTf32 if new else SoftmaxPass)
    assert chosen() is SoftmaxPass
    assert chosen(gemm="bf16", kernels="torch") is SoftmaxPass
