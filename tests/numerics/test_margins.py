"""Margins: values against their papers' formulas, derivatives against finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from glint.errors import UsageError
from glint.nn.margins import AdaFace, ArcFace, Combined, CosFace, margin

COSINES = torch.linspace(-0.995, 0.995, 61, dtype=torch.float64)
NORMS = torch.ones_like(COSINES)


class Written(torch.autograd.Function):
    """A margin as an autograd function with its written-out derivative."""

    @staticmethod
    def forward(ctx, cosine, kind):
        moved, slope = kind(cosine, torch.ones_like(cosine))
        ctx.save_for_backward(slope)
        return moved

    @staticmethod
    def backward(ctx, upstream):
        return upstream * ctx.saved_tensors[0], None


@pytest.mark.parametrize(
    "kind",
    [
        CosFace(0.4),
        ArcFace(0.5),
        ArcFace(1.2),
        Combined(1, 0.5, 0),
        Combined(0.9, 0.4, 0.15),
        Combined(2.0, 0.1, 0.0),
        Combined(4.0, 0.0, 0.0),
    ],
    ids=str,
)
def test_derivative_is_the_derivative(kind):
    cosine = COSINES[::4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda c: Written.apply(c, kind), cosine, eps=1e-7, atol=1e-6)


@pytest.mark.parametrize(
    "kind",
    [
        CosFace(0.4),
        ArcFace(0.5),
        ArcFace(1.2),
        Combined(1, 0.5, 0),
        Combined(2.0, 0.3, 0.2),
        Combined(4.0, 0.0, 0.0),
    ],
    ids=str,
)
def test_never_falls_and_never_helps_the_target(kind):
    moved, slope = kind(torch.linspace(-1, 1, 4001, dtype=torch.float64), torch.ones(4001))
    assert (moved.diff() >= -1e-12).all()
    assert (moved <= torch.linspace(-1, 1, 4001, dtype=torch.float64) + 1e-12).all()
    assert torch.isfinite(slope).all() and (slope >= 0).all()


def test_arcface_adds_to_the_angle_until_pi():
    moved, slope = ArcFace(0.5)(COSINES, NORMS)
    theta = torch.arccos(COSINES)
    inside = theta + 0.5 <= math.pi
    torch.testing.assert_close(moved[inside], torch.cos(theta + 0.5)[inside])
    torch.testing.assert_close(slope[inside], (torch.sin(theta + 0.5) / torch.sin(theta))[inside])
    torch.testing.assert_close(moved[~inside], (COSINES - 0.5 * math.sin(0.5))[~inside])
    assert 0 < inside.sum() < len(inside)


def test_straight_through_has_slope_one_and_the_plain_value():
    moved, slope = ArcFace(0.5, straight_through=True)(COSINES, NORMS)
    torch.testing.assert_close(moved, torch.cos(torch.arccos(COSINES) + 0.5))
    assert (slope == 1).all()


def test_combined_contains_the_others():
    torch.testing.assert_close(Combined(1, 0, 0.4)(COSINES, NORMS), CosFace(0.4)(COSINES, NORMS))
    inside = COSINES[COSINES + math.cos(0.5) > 0]
    torch.testing.assert_close(Combined(1, 0.5, 0)(inside, inside), ArcFace(0.5)(inside, inside))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [ArcFace(0.5), Combined(1.1, 0.5, 0.1)], ids=str)
def test_finite_at_and_beyond_the_ends(kind, dtype):
    ends = torch.tensor([-1.0000001, -1.0, 1.0, 1.0000001], dtype=dtype)
    moved, slope = kind(ends, ends)
    assert torch.isfinite(moved).all() and torch.isfinite(slope).all()


def test_adaface_asks_more_of_the_better_image():
    kind, cosine = AdaFace(0.4), torch.full((3,), 0.3, dtype=torch.float64)
    norm = torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64)
    moved, slope = kind(cosine, norm)
    z = (0.333 * (norm - 20) / (norm.std(correction=0) + 1e-3)).clamp(-1, 1)
    theta = torch.arccos(cosine)
    torch.testing.assert_close(moved, torch.cos(theta - 0.4 * z) - (0.4 + 0.4 * z))
    torch.testing.assert_close(slope, torch.sin(theta - 0.4 * z) / torch.sin(theta))
    torch.testing.assert_close(moved[1], CosFace(0.4)(cosine, norm)[0][1])  # z = 0
    eps = 1e-6
    step = (kind(cosine + eps, norm)[0] - kind(cosine - eps, norm)[0]) / (2 * eps)
    torch.testing.assert_close(slope, step, rtol=1e-6, atol=1e-8)


def test_adaface_of_one_image_and_at_the_ends_is_finite():
    for cosine in (-1.0, 0.2, 1.0):
        moved, slope = AdaFace()(torch.tensor([cosine]), torch.tensor([7.0]))
        assert torch.isfinite(moved).all() and torch.isfinite(slope).all()
    ends = torch.tensor([1.0, 1.0, -1.0])
    moved, slope = AdaFace()(ends, torch.tensor([1.0, 50.0, 90.0]))
    assert torch.isfinite(moved).all() and (slope >= 0).all()


def test_factory():
    assert margin("adaface") == AdaFace(0.4)
    assert margin("cosface") == CosFace(0.4)
    assert margin("arcface", m=0.3, straight_through=True) == ArcFace(0.3, True)
    assert margin("combined", m1=1.0, m2=0.3, m3=0.2) == Combined(1.0, 0.3, 0.2)
    with pytest.raises(UsageError, match=r"GL0002.*'sphere', expected cosface, arcface"):
        margin("sphere")
