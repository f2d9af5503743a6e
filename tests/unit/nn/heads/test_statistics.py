from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from glint.nn.heads.partial_fc import PartialFC
from glint.nn.heads.statistics import Tally, crowded
from glint.nn.margins import CosFace


def test_crowded_counts_centres_with_a_near_neighbour(monkeypatch):
    monkeypatch.setattr("glint.nn.heads.statistics._BLOCK", 64)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(500, 128, generator=generator)  # random cosines stay below 0.4
    assert crowded(weight, sample=500) == 0.0
    weight[100:150] = weight[:50] + 0.5 * torch.randn(50, 128, generator=generator)
    cosine = F.normalize(weight) @ F.normalize(weight).T
    truth = float((cosine.fill_diagonal_(-1).amax(1) > 0.4).double().mean())
    assert truth == pytest.approx(0.2)
    assert crowded(weight, sample=500) == truth
    some = [crowded(weight, sample=200, step=step) for step in range(10)]
    assert abs(sum(some) / 10 - truth) < 0.03 and len(set(some)) > 1
    assert crowded(weight[:1]) == 0.0


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
    head = PartialFC(50, 8, margin=CosFace(), rate=rate, tally=True)
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
