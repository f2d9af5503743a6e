"""Heads on a pretended card: no operand elsewhere, the CPU's numbers, few waits."""

from __future__ import annotations

from typing import Any

import card
import pytest
import torch
from torch import Tensor

from glint.dist.world import World
from glint.nn.heads.options import PartialFCOptions
from glint.nn.heads.partial_fc import PartialFC
from glint.nn.margins import AdaFace, ArcFace, Combined, CosFace

PAIRS = [(0, 7), (8, 3), (15, 16), (17, 39)]
NEAR = torch.arange(300 * 4, dtype=torch.int32).view(300, 4) % 300
CASES: dict[str, dict[str, Any]] = {
    "every centre": {},
    **{
        f"{rule} {gemm}": {"rate": 0.3, "rule": rule, "gemm": gemm}
        for rule in ("none", "v1_stale", "lazy_decay", "dense_exact", "adamw")
        for gemm in ("float32", "bf16")
    },
    "masks, threshold": {"rate": 0.9, "masks": PAIRS, "threshold": 0.3},
    "bf16 table": {"rate": 0.5, "storage": "bf16", "rule": "dense_exact", "gemm": "bf16"},
    "bf16 table, every centre": {"storage": "bf16", "rule": "v1_stale"},
    "hard negatives": {"rate": 0.5, "neighbours": NEAR, "hard_ratio": 0.5, "masks": PAIRS},
    "two passes": {"rate": 0.5, "rule": "dense_exact", "passes": 2},
    "tally": {"rate": 0.5, "tally": True},
    "arcface": {"rate": 0.5, "margin": ArcFace(0.5)},
    "adaface": {"rate": 0.5, "margin": AdaFace()},
    "combined": {"rate": 0.5, "margin": Combined(1.0, 0.3, 0.1)},
    "nothing kept": {"rate": 0.5, "keep": 0},
}


def steps(
    device: torch.device, *, passes: int = 1, margin: Any = None, masks: Any = None,
    neighbours: Any = None, tally: bool = False, **options: Any,
) -> list[Tensor]:  # fmt: skip
    """Do three steps; return each loss and feature gradient, and the rows at the end."""
    torch.manual_seed(0)
    feature_nD, label_n = torch.randn(12, 16), torch.randint(0, 300, (12,))
    head = PartialFC(
        300, 16, PartialFCOptions(block=64, kernels="torch", **options),
        margin=margin or CosFace(), masks=masks,
        neighbours=None if neighbours is None else neighbours.clone(),
        world=World(device=device), tally=tally,
    )  # fmt: skip
    head.passes, found = passes, []
    for step in range(3):
        for _ in range(passes):
            leaf_nD = feature_nD.clone().to(device).requires_grad_()
            loss = head(leaf_nD, label_n.to(device), step=step)
            loss.backward()
            assert leaf_nD.grad is not None
            found += [loss.detach(), leaf_nD.grad]
        head.update(step=step, lr=0.1)
    assert head.statistics()
    return [one.cpu() for one in (*found, *head.state_rows()[2].values())]


@pytest.mark.parametrize("options", CASES.values(), ids=list(CASES))
def test_three_steps_are_the_cpu_s_to_the_bit(options: dict[str, Any]) -> None:
    with card.pretended():
        found = steps(card.CUDA, **options)
    expected = steps(torch.device("cpu"), **options)
    assert len(found) == len(expected) > 6
    assert all(torch.equal(one, other) for one, other in zip(found, expected))


def test_catching_up_a_table_is_few_launches_on_a_card() -> None:
    """Before a save every row is brought up to date: by 16,384 on a card, where 1,024 took 8,000
    launches for a million rows."""
    options = PartialFCOptions(rule="dense_exact", rate=0.1, kernels="torch")
    with card.pretended() as book:
        head = PartialFC(16_000, 4, options, margin=CosFace(), world=World(device=card.CUDA))
        feature_nD = torch.randn(4, 4).to(card.CUDA).requires_grad_()
        head(feature_nD, torch.arange(4).to(card.CUDA), step=0).backward()
        head.update(step=0, lr=0.1)
        book.clear()
        head.state_rows()
        assert 0 < sum(book.launches.values()) < 40
