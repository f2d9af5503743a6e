"""The proof of prove_ranks.py in short: ranks killed inside saves that go on beside the steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("prove_ranks.py")


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_rank_killed_while_a_checkpoint_is_written_beside_the_steps(tmp_path: Path) -> None:
    words = ["--kills", "3", "--ranks", "2", "--kinds", "save", "--place", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words, "--every", "2"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = {line["figure"]: line["value"] for line in map(json.loads, done.stdout.splitlines())}
    assert told["ranks: killed at random"] == 3
    assert told["ranks: killed inside a save"] >= 1
    recipe = (tmp_path / "killed" / "recipe.toml").read_text()
    assert "async_save = true" in recipe
