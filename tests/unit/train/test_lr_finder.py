"""The rate that a range test takes, and when it takes none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glint.train import lr_finder
from glint.train.lr_finder import HIGH, LOW, STEPS

RATE_S = LOW * (HIGH / LOW) ** (np.arange(STEPS) / (STEPS - 1))


def curve(seed: int, depth: float) -> np.ndarray:
    """A loss of 10 that falls by `depth` up to a rate of 0.01 and then rises, with noise."""
    at = np.log10(RATE_S)
    fall = depth / (1 + np.exp(-4 * (at + 3)))
    return 10 - fall + 8 * np.maximum(0, at + 2) + np.random.default_rng(seed).normal(0, 0.3, STEPS)


@pytest.mark.parametrize("seed", range(5))
def test_a_tenth_of_the_rate_of_the_lowest_loss(seed: int, tmp_path: Path) -> None:
    found = lr_finder.judged(RATE_S, curve(seed, 3.0))
    assert 3e-4 < found.rate < 3e-3
    lr_finder.draw(tmp_path / "rates.html", found)
    page = (tmp_path / "rates.html").read_text()
    assert f"{found.rate:.2g}" in page and "<polyline" in page


def test_noise_is_no_descent() -> None:
    for seed in range(200):
        with pytest.raises(lr_finder.NoDescent, match=r"GL0706 .* does not fall at any rate"):
            lr_finder.judged(RATE_S, np.random.default_rng(seed).normal(10, 0.5, STEPS))


def test_a_loss_that_only_rises_or_ends_at_once_is_none() -> None:
    for loss_S in (curve(0, 0.0), curve(0, 3.0)[:5]):
        with pytest.raises(lr_finder.NoDescent) as caught:
            lr_finder.judged(RATE_S[: len(loss_S)], loss_S)
        assert caught.value.exit_code == 3 and "--lr" in caught.value.hint


def test_smoothing_is_the_weighted_mean() -> None:
    losses = np.random.default_rng(0).normal(5, 1, 20)
    weight = lr_finder.KEEP ** np.arange(20)[::-1]
    assert lr_finder.smoothed(losses)[-1] == pytest.approx((weight * losses).sum() / weight.sum())
