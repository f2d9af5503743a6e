from __future__ import annotations

import pytest
import torch

from glint.nn.heads.options import PartialFCOptions
from glint.nn.heads.partial_fc import PartialFC
from glint.nn.heads.statistics import Tally
from glint.nn.margins import CosFace


def test_tally_by_hand():
    tally = Tally(4, torch.device("cpu"))
    tally.note(torch.tensor([0, 2, 3]), torch.tensor([1, 1]))  # row 2 has two images
    tally.note(None, torch.tensor([3]))
    assert tally.played_c.tolist() == [2, 1, 2, 2] and tally.active_c.tolist() == [0, 0, 1, 1]
    found = tally.summary(torch.tensor([1, 5, 2, 9]), share=0.25)
    assert found == {
        "passive_tail": 1.0,
        "active_tail": 0.0,
        "passive_head": 0.5,
        "active_head": 0.5,
    }
    assert Tally(4, torch.device("cpu")).summary(torch.ones(4)) == {}


@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_a_head_tallies_what_it_does(rate):
    head = PartialFC(50, 8, PartialFCOptions(rate=rate), margin=CosFace(), tally=True)
    generator = torch.Generator().manual_seed(0)
    for step in range(40):
        label = torch.randint(0, 5, (6,), generator=generator)  # classes 0 to 4 are the head
        head(torch.randn(6, 8, generator=generator), label, step=step).backward()
        head.update(step=step, lr=0.01)
    count = torch.zeros(50)
    count[:5] = 100
    found = head.tally.summary(count)
    assert found["active_tail"] == 0 and 0.5 < found["active_head"] <= 1
    assert found["passive_tail"] == pytest.approx(1.0 if rate == 1 else 6 / 46, abs=0.08)
    assert PartialFC(50, 8, margin=CosFace()).tally is None
