"""Bugs of the GPU's side, planted one by one: the tests beside this one see each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAD, TRAIN = "test_head.py", "test_train.py"
MUTANTS = [
    ("nn/heads/updates.py", 'torch.eye(2, device=gap_b.device)', "torch.eye(2)", "kernels"),
    ("nn/heads/sample.py", "torch.arange(start, stop, device=positive_P.device)",
     "torch.arange(start, stop)", HEAD),
    ("nn/heads/softmax.py", "torch.zeros((), device=batch.unit_ND.device, requires_grad=True)",
     "torch.zeros(1, requires_grad=True)", HEAD),
    ("nn/heads/masks.py", "dtype=torch.int64, device=device)", "dtype=torch.int64)", HEAD),
    ("nn/heads/storage.py", "torch.arange(at.start, at.stop, device=rows_bD.device)",
     "torch.arange(at.start, at.stop)", HEAD),
    ("nn/heads/partial_fc.py", 'torch.where(mine_N, row_N, -1)',
     "torch.where(mine_N, row_N, torch.full((len(row_N),), -1))", HEAD),
    ("train/loop.py", "batch.label.to(device, non_blocking=True)", "batch.label", "float32"),
    ("train/loop.py", "np.asarray(out.float().cpu())", "np.asarray(out.float())", "saved"),
    ("train/teacher.py", ".requires_grad_(False).to(world.device)", ".requires_grad_(False)",
     "saved"),
    ("nn/heads/class_queue.py", "torch.arange(count, device=device)", "torch.arange(count)", "dcq"),
    ("stream/augment.py", "flip_n.to(image_nHWC.device, non_blocking=True)[:, None]",
     "flip_n[:, None]", "float32"),
    ("train/loop.py", "torch.stack([one.double() for one in seen]).tolist()",
     "(float(one) for one in seen)", "waits"),
    ("stream/loader.py", 'pinned: bool = False', "pinned: bool = False\n    unread: int = 0", ""),
    ("train/build.py", 'pinned=world.device.type == "cuda"', "pinned=False", "waits"),
    ("dist/collectives.py", "torch.zeros(1, device=world.device)", "torch.zeros(1)", "ranks"),
    ("train/loop.py", "value: Tensor = torch.tensor([float(flag) for flag in flags], "
     "device=run.world.device)", "value = torch.tensor([float(flag) for flag in flags])", "ranks"),
]  # fmt: skip
