"""The losses of distillation against their equations."""

from __future__ import annotations

import pytest
import torch

from glint.nn.distill import distance


@pytest.fixture
def both() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    length = torch.logspace(-2, 3, 40)[:, None]
    return torch.randn(40, 512) * length, torch.randn(40, 512) * length.flip(0)


def test_chord_is_two_minus_two_cosines(both: tuple[torch.Tensor, torch.Tensor]) -> None:
    ours, theirs = both
    cosine = torch.nn.functional.cosine_similarity(ours.double(), theirs.double())
    assert float(distance(ours, theirs)) == pytest.approx(float((2 - 2 * cosine).mean()), abs=1e-6)
    angular = float((1 - cosine).square().mean())
    assert float(distance(ours, theirs, "angular")) == pytest.approx(angular, abs=1e-6)
    assert float(distance(ours, 3 * ours)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="expected one of"):
        distance(ours, theirs, "cosine")


def test_their_gradients_are_parallel_in_the_ratio_of_the_paper(
    both: tuple[torch.Tensor, torch.Tensor],
) -> None:
    ours, theirs = (t.double()[:5] for t in both)
    ours.requires_grad_()
    (chord,) = torch.autograd.grad(distance(ours, theirs), ours)
    (angular,) = torch.autograd.grad(distance(ours, theirs, "angular"), ours)
    cosine = torch.nn.functional.cosine_similarity(ours.detach(), theirs)[:, None]
    assert torch.allclose(angular, (1 - cosine) * chord, rtol=1e-9, atol=1e-12)
    assert float(chord.abs().sum()) > 0
