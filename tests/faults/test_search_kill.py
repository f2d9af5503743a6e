"""SIGKILL while pairs are searched: the same call goes on and gives the same pairs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from glint.search import faiss_index

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return importlib.import_module("conflicts")


@pytest.mark.skipif(not faiss_index.available(), reason="faiss is not installed")
def test_two_kills(benchmark: ModuleType, tmp_path: Path) -> None:
    """By the engine that starts soonest: what is kept does not depend on it."""
    path = benchmark.centres(tmp_path, "structured", 6000, 64)
    seen = benchmark.killed(path, tmp_path, 2, engine="faiss", block=100)
    assert (seen["kills"], seen["unlike"]) == (2, 0)
    assert seen["midway"] and seen["searches"] >= 2 and seen["pairs"] > 1000


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_many_kills(benchmark: ModuleType, tmp_path: Path, engine: str) -> None:
    path = benchmark.centres(tmp_path, "unstructured", 6000, 512)
    seen = benchmark.killed(path, tmp_path, 50, engine=engine, block=128)
    assert (seen["kills"], seen["unlike"]) == (50, 0)
    assert seen["midway"] > 25
