"""What the public functions say to arguments that would give a wrong number without a word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from glint import find_pairs, find_pairs_across, tar_at_far, ten_fold, to_input
from glint.errors import InputError, UsageError

ROWS = np.random.default_rng(0).normal(size=(20, 8))


@pytest.mark.parametrize(
    "image, flip",
    [
        (torch.rand(2, 8, 8, 3), None),  # scaled already
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), None),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), None),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.tensor([True])),  # would mirror both
    ],
)
def test_pixels_of_another_kind(image: torch.Tensor, flip: torch.Tensor | None) -> None:
    with pytest.raises(UsageError, match="expected uint8"):
        to_input(image, flip=flip)


def test_answers_that_are_no_booleans() -> None:
    same = np.where(np.arange(20) % 2, 1, -1)
    with pytest.raises(InputError, match="found -1"):
        ten_fold(ROWS, ROWS, same)
    with pytest.raises(InputError, match="found -1"):
        tar_at_far(np.ones(20), same, 0.1)
    assert ten_fold(ROWS, ROWS, (same + 1) // 2) == ten_fold(ROWS, ROWS, same == 1)


@pytest.mark.parametrize("rows", [ROWS[0], ROWS * 1j, ROWS.astype(object)])
def test_rows_that_are_no_table(rows: Any) -> None:
    with pytest.raises(UsageError, match="expected an array"):
        find_pairs(rows, 0.5)
    with pytest.raises(UsageError, match="expected an array"):
        find_pairs_across(ROWS, rows, 0.5)


@pytest.mark.parametrize("threshold", [90, float("nan"), float("inf")])
def test_a_threshold_that_is_no_cosine(threshold: float) -> None:
    with pytest.raises(UsageError, match="expected a cosine"):
        find_pairs(ROWS, threshold)
    with pytest.raises(UsageError, match="expected a cosine"):
        find_pairs_across(ROWS, ROWS, threshold)


def test_other_shapes() -> None:
    with pytest.raises(UsageError, match="8 and 4 numbers"):
        find_pairs_across(ROWS, ROWS[:, :4], 0.5)
    with pytest.raises(UsageError, match="block is 0"):
        find_pairs(ROWS, 0.5, block=0)
    assert len(find_pairs(ROWS.tolist(), -1.0).a) == 190  # type: ignore[arg-type]
