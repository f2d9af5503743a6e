"""Tests of the GPU's side of glint on a machine without one."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from glint.pipelines.dataset import shard
from glint.synth import world as synth

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside these tests, by name


@dataclass(frozen=True)
class Made:
    """A dataset of made faces, and pairs of others to verify on."""

    data: Path
    pairs: Path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("made")
    world = synth.World(
        identities=40, images=4, conflicts=0, lookalikes=0, damaged=0, unseen=20, pairs=20
    )
    synth.make(world, root / "world")
    shard.shard(root / "world", root / "data", shard.Options(100))
    return Made(root / "data", root / "world" / "pairs.bin")
