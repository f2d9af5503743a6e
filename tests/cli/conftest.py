"""One small synthetic world, sharded, shared by the command-line tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def run_glint(*args: str | Path, code: int = 0, env: dict[str, str] | None = None) -> Any:
    """Run a command in a process of its own; give its JSON, or its stderr where it must fail."""
    done = subprocess.run(
        [sys.executable, "-m", "glint", *map(str, args)],
        capture_output=True,
        text=True,
        env={**ENV, **(env or {})},
        timeout=500,
        check=False,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    if code:
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr
    return json.loads(done.stdout) if "--json" in args else done.stdout


@pytest.fixture(scope="session")
def glint() -> Callable[..., Any]:
    return run_glint


@dataclass(frozen=True)
class Small:
    """A synthetic world and the dataset made of it."""

    world: Path
    data: Path
    pairs: Path


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    root = tmp_path_factory.mktemp("small")
    run_glint(
        "synth", root / "world", "--identities", "40", "--images", "6", "--conflicts", "3",
        "--lookalikes", "2", "--unseen", "20", "--pairs", "60", "--seed", "1", "--json",
    )  # fmt: skip
    run_glint("shard", root / "world", root / "data", "--samples-per-shard", "60", "--json")
    return Small(root / "world", root / "data", root / "world" / "pairs.bin")
