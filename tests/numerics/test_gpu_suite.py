"""benchmarks/gpu_suite.py runs: small on the CPU, and not at all without a card."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SUITE = [sys.executable, str(ROOT / "benchmarks" / "gpu_suite.py")]


def test_dry_run_shows_every_figure(tmp_path):
    out = tmp_path / "lines.jsonl"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*SUITE, "--dry", "--out", str(out)], env=env, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines == [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[0]["benchmark"] == "gpu_suite" and lines[0]["dry"] is True
    figures = {line["figure"]: line for line in lines[1:]}
    for part in (
        "TFLOP/s", "GB/s", "against float64", "none: ms a step", "dense_exact: ms a step",
        "times as fast as the reference", "share of the bf16 product's rate",
        "peak over 1.05 (weights + state) + 256 MB", "last loss over first", "images/s",
        "share of the head", "to the CPU's", "after a save and a resume",
    ):  # fmt: skip
        assert any(part in name for name in figures), part
    for line in figures.values():
        assert math.isfinite(line["value"]) and line["holds"] is None, line
    assert any("last loss" in name and line["value"] < 0.95 for name, line in figures.items())


def test_without_a_card_it_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    done = subprocess.run(SUITE, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"benchmark": "gpu_suite", "skipped": "no CUDA device"}
