"""The head's kernels as a card would get them: launches of a step, registers, memory, offsets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SHARED = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448}  # bytes that a program may have
# bytes that a thread may spill; with float32 or tf32 operands, rows behind or odd widths, more
SPILLED = {80: 512, 89: 512, 90: 1024, 100: 1024}
TABLES = {"weight_cD", "momentum_cD"}  # may have more than 2^31 numbers
SAMPLED = {"index nn/heads/sample.py:sampled_classes": 1, "read nn/heads/softmax.py:__init__": 1}


def release() -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version("triton").split(".")[:2])
    except PackageNotFoundError:
        return (0, 0)


pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        release() < (3, 7), reason="the head's kernels are not tested: pip install 'triton>=3.7'"
    ),
]


def child(script: str, *words: str, **more: str) -> list[Any]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    env["PYTHONPATH"] = os.pathsep.join([env.get("PYTHONPATH", ""), str(HERE.parents[1])])
    done = subprocess.run(
        [sys.executable, str(HERE / script), *words], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-4000:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def recorded() -> Any:
    return child("record.py", "[80, 90]", '["none"]')[0]


def test_launches_and_waits_of_a_step_hardly_grow_with_the_rows(recorded: Any) -> None:
    """A run of 33,792 rows is two launches of kernels and what prepares them."""
    counted = recorded["counted"]
    for rule in ("none", "v1_stale", "lazy_decay", "dense_exact", "adamw"):
        few, more, many = (counted[f"{rule} {rows}000"] for rows in (40, 60, 200))
        assert few["waits"] == more["waits"] == many["waits"] == SAMPLED, rule
        assert few == more and few["torch"] <= 300
        names = ("gather", "stream", "centre_grad", *["move"] * (rule != "adamw"))
        assert few["kernels"] == dict.fromkeys(names, 1)
        runs = 100_000 // 33_792  # beside the first
        assert sum(many["kernels"].values()) <= 4 + 2 * runs
        assert many["torch"] <= few["torch"] + runs * (20 if rule == "adamw" else 12)


def held(tmp_path: Path, recorded: Any, arch: int, *names: str) -> list[Any]:
    """Compile for an architecture and hold what ptxas says against the card."""
    nvidia = find_spec("triton").submodule_search_locations[0]  # type: ignore[union-attr,index]
    if not (Path(nvidia) / "backends" / "nvidia" / "bin" / "ptxas").exists():
        pytest.skip("this Triton brings no ptxas: nothing is compiled for a card")
    path = tmp_path / "recorded.json"
    path.write_text(json.dumps(recorded))
    cache = {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "TRITON_INTERPRET": "0"}
    built = child("compiled.py", str(path), str(arch), *names, **cache)
    for one in built:
        assert one["shared"] <= SHARED[arch], one
        if one["kernel"] in ("stream", "centre_grad"):  # 32: ptxas gave up
            assert one["registers"] > 32 and one["spilled"] <= SPILLED[arch], one
        else:
            assert one["spilled"] == 0, one
        narrow = {name for name, widths in one["offsets"].items() if widths == ["i32"]}
        assert not narrow & TABLES and one["offsets"], one
    return built


@pytest.mark.parametrize("arch", [80, 90])
def test_the_widest_loop_compiles_and_fits(tmp_path: Path, recorded: Any, arch: int) -> None:
    (one,) = held(tmp_path, recorded, arch, "stream")
    if arch == 90:  # 32 for the cosines and 4 for the gradient; 68 where half is done twice
        assert one["wgmma"] == 36


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("arch", SHARED)
def test_every_recorded_signature_compiles_and_fits(tmp_path: Path, arch: int) -> None:
    recorded = child("record.py", f"[{arch}]", "[]")[0]
    built = held(tmp_path, recorded, arch)
    assert {one["kernel"] for one in built} == {"gather", "stream", "centre_grad", "move"}
    assert len(built) >= 20
