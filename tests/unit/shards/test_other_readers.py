"""Readers that know nothing of glint see the same keys, labels and bytes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glint.pipelines.dataset import shard as stage

SCRIPT = Path(__file__).parents[2] / "peers" / "read_with_datasets.py"
# Another Python, with `datasets`, `webdataset` and `pillow`, where this one lacks them.
PYTHON = os.environ.get("GLINT_PEERS_PYTHON", sys.executable)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, jpeg: Callable[[int], bytes]) -> list[Path]:
    root = tmp_path_factory.mktemp("sets")
    for k in range(40):  # some labels are numbers, some are text
        name = f'of "{k % 4}"\u00e9' if k % 8 < 4 else str(k % 4)
        folder = root / "src" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.jpg").write_bytes(jpeg(k))
    layouts = {
        "two": stage.Options(16),
        "json": stage.Options(16, with_json=True),
        "one": stage.Options(16, members="jpg"),
    }
    for name, options in layouts.items():
        stage.shard(root / "src", root / name, options)
    return [root / name for name in layouts]


@pytest.mark.parametrize("reader", ["datasets", "webdataset", "idx"])
def test_the_same_samples(sets: list[Path], reader: str, tmp_path: Path) -> None:
    if (
        reader == "datasets"
        and sys.executable == PYTHON
        and importlib.util.find_spec("datasets") is None
    ):
        pytest.skip("Hugging Face `datasets` is not installed: GLINT_PEERS_PYTHON names a Python")
    done = subprocess.run(
        [PYTHON, SCRIPT, "--reader", reader, *sets],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path), "PYTHONWARNINGS": "ignore"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        f"pass {reader}: 40 samples of {folder.name}" for folder in sets
    ]


def test_a_difference_is_told(sets: list[Path], tmp_path: Path) -> None:
    """One bit of an image: the comparison itself can fail."""
    copy = tmp_path / "copy"
    shutil.copytree(sets[0], copy)
    path = copy / "data" / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    for reader in ("webdataset", "idx"):
        done = subprocess.run(
            [sys.executable, SCRIPT, "--reader", reader, copy],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert done.stdout.startswith(f"FAIL {reader}: 40 samples of copy\n     0000000")
