"""Mutated files of every kind: a few thousand here, as many as GLINT_FUZZ says under `faults`."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    path = Path(__file__).with_name("fuzz.py")
    spec = importlib.util.spec_from_file_location("glint_fuzz", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "kind, count",
    [
        ("rec", 500),
        ("idx", 300),
        ("tar", 700),
        ("zip", 700),
        ("parquet", 500),
        ("bin", 800),
        ("toml", 400),
    ],
)
def test_a_few_thousand(fuzz: ModuleType, kind: str, count: int) -> None:
    result = fuzz.apart(kind, count, seed=1, first=0, seconds=20.0)
    assert result["ok"], result
    assert result["signals"] == 0 and result["count"] > 50
    # The mutations are neither harmless nor hopeless.
    read = sum(n for outcome, n in result["outcomes"].items() if outcome.startswith("read"))
    assert 0.05 * result["count"] < read < 0.95 * result["count"]


@pytest.mark.faults
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["rec", "idx", "tar", "zip", "parquet", "bin", "toml"])
def test_many(fuzz: ModuleType, kind: str) -> None:
    count = int(os.environ.get("GLINT_FUZZ", "20000"))
    result = fuzz.apart(kind, count, seed=2, first=0, seconds=float("inf"))
    assert result["ok"] and result["count"] == count, result


def test_what_the_harness_would_see(fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bytes] = []

    def spoilt(path: Path, case: int) -> str:
        if case == 3:
            raise IndexError("a bug")
        if case == 5:
            del bytearray(20 << 20)[:]
        if case == 9:
            kept.append(b"\1" * (8 * fuzz.RSS))
        return "read"

    how = fuzz.KINDS["bin"]
    monkeypatch.setitem(fuzz.KINDS, "bin", fuzz.Kind(how.seeds, how.name, spoilt, how.harm))
    result = fuzz.fuzz("bin", 10)
    assert not result["ok"] and result["outcomes"] == {"other": 1, "read": 9}
    assert [text.split(":")[0] for text in result["shown"]] == [
        "case 3",
        "case 5",
        "case 9",
        "the process grew by " + result["shown"][3].split()[4] + " bytes",
    ]
    monkeypatch.setitem(
        fuzz.KINDS,
        "bin",
        fuzz.Kind(
            how.seeds,
            how.name,
            lambda path, case: os.kill(os.getpid(), signal.SIGKILL) if case == 4 else "read",
            how.harm,
        ),
    )
    result = fuzz.apart("bin", 10, seed=0, first=0, seconds=60.0)
    assert (result["ok"], result["signal"], result["case"]) == (False, signal.SIGKILL, 4)


def test_a_case_can_be_played_again(fuzz: ModuleType, tmp_path: Path) -> None:
    how = fuzz.KINDS["rec"]
    seeds = how.seeds(tmp_path)
    made = [fuzz.mutated(seeds, fuzz.Chance(f"rec/0/{case}"), how.harm) for case in range(50)]
    assert made == [
        fuzz.mutated(seeds, fuzz.Chance(f"rec/0/{case}"), how.harm) for case in range(50)
    ]
    assert len(set(made)) > 40
