"""The names of insightface's `arcface_torch`: its `train_v2.py` runs on glint's head and reader.

    import sys, glint.compat.arcface_torch as glint_names
    sys.modules["partial_fc_v2"] = sys.modules["dataset"] = glint_names

`PartialFC_V2` is held as the original is: `weight` is a parameter of the trainer's own optimiser,
`state_dict` has that one key, and the sampled classes are drawn from torch's generator by the same
calls. What it does in less time is described at the class.
"""

from __future__ import annotations

from glint.compat.partial_fc_v2 import PartialFC_V2
from glint.compat.recordio_loader import DataLoaderX, MXFaceDataset, get_dataloader

__all__ = ["DataLoaderX", "MXFaceDataset", "PartialFC_V2", "get_dataloader"]
