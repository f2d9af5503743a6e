"""The optimiser's state: saved by name, loaded as its weights lie."""

from __future__ import annotations

import torch
from torch import nn

from glint.train import optim


def net() -> nn.Module:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    return one.to(memory_format=torch.channels_last)


def test_momentum_that_was_loaded_lies_as_its_weight_does() -> None:
    backbone, again = net(), net()
    before = torch.optim.SGD(backbone.parameters(), lr=0.1, momentum=0.9)
    backbone(torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)).sum().backward()
    before.step()
    saved = {k: v.contiguous() for k, v in optim.state_by_name(before, backbone).items()}
    after = torch.optim.SGD(again.parameters(), lr=0.1, momentum=0.9)
    optim.load_by_name(after, again, saved)
    for name, weight in again.named_parameters():
        momentum = after.state[weight]["momentum_buffer"]
        assert momentum.stride() == weight.stride(), name
        assert torch.equal(momentum, saved[f"{name}/momentum_buffer"])
    assert not next(again.parameters()).is_contiguous()
