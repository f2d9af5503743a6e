"""What tests of several heads use."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Counted(TorchDispatchMode):
    """Count operations and the numbers that they make."""

    def __init__(self):
        super().__init__()
        self.calls = self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.calls += 1
        for one in out if isinstance(out, tuple | list) else [out]:
            self.numbers += one.numel() if isinstance(one, torch.Tensor) else 0
        return out


@pytest.fixture
def counted() -> type[Counted]:
    return Counted
