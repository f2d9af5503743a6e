"""All pairs in blocks against all pairs at once in float64: the same counts and thresholds."""

# n rows, D embedding

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from glint.errors import InputError, MismatchError, UsageError
from glint.evals import allpairs
from glint.evals.allpairs import all_pairs

FARS = ("1e-6", "1e-4", "1e-3", "1e-2", "1e-1", "1")


def draw(count: int, people: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Faces in random order, of any length; some are copies of a face of somebody else."""
    rng = np.random.default_rng(seed)
    label_n = rng.integers(0, people, count)
    x_nD = rng.normal(size=(people, dim))[label_n] + 0.8 * rng.normal(size=(count, dim))
    x_nD[:6] = x_nD[6:12]
    return (x_nD * rng.uniform(0.1, 9, (count, 1))).astype(np.float32), label_n


def brute(x_nD: np.ndarray, label_n: np.ndarray, fars: tuple[str, ...] = FARS) -> dict:
    """Every score at once in float64, of unit rows in float32, to ten decimals."""
    x_nD = x_nD.astype(np.float64)
    unit_nD = (x_nD / np.sqrt((x_nD**2).sum(1, keepdims=True))).astype(np.float32)
    a, b = np.triu_indices(len(x_nD), 1)
    score = np.einsum("nd,nd->n", unit_nD[a], unit_nD[b], dtype=np.float64).round(10)
    same = label_n[a] == label_n[b]
    impostor = np.sort(score[~same])[::-1]
    cut = {}
    for far in fars:
        spare = int(float(far) * len(impostor))
        cut[far] = float(impostor[spare]) if spare < len(impostor) else -np.inf
    return {
        "genuine": int(same.sum()),
        "impostors": len(impostor),
        "cut": cut,
        "tar": {far: float(np.mean(score[same] > t)) for far, t in cut.items()},
        "scores": (score[same], impostor),
    }


@pytest.mark.parametrize(
    ("count", "people", "dim", "block"), [(900, 60, 32, 128), (500, 400, 8, 4096), (500, 2, 64, 97)]
)
def test_counts_thresholds_and_rates_equal_brute_force(
    count: int, people: int, dim: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allpairs, "PERSON", 64)  # persons of more rows than are held at once
    monkeypatch.setattr(allpairs, "PARTS", 1000)
    x_nD, label_n = draw(count, people, dim)
    expected = brute(x_nD, label_n)
    found = all_pairs(x_nD, label_n, fars=FARS, block=block)
    assert (found.genuine, found.impostors) == (expected["genuine"], expected["impostors"])
    assert all(found.exact.values())
    for far in FARS:
        assert found.threshold_at_far[far] == max(expected["cut"][far], -1.0)
        assert found.tar_at_far[far] == found.tar_at_most[far] == expected["tar"][far]
    genuine, impostor = expected["scores"]
    for told, score in (("genuine", genuine), ("impostors", impostor)):
        direct = np.histogram(np.clip(score, -1, 1), allpairs.COARSE, (-1, 1))[0]
        assert sum(found.histogram[told]) == len(score)
        assert np.abs(np.cumsum(found.histogram[told]) - np.cumsum(direct)).max() <= 0.01 * len(
            score
        )
    for far, tar in found.roc:
        cut = impostor[min(len(impostor), round(far * len(impostor))) - 1]
        assert np.mean(genuine > cut + 1e-4) <= tar <= np.mean(genuine > cut - 1e-4)


def test_rows_without_embedding_or_person_are_left_out() -> None:
    x_nD, label_n = draw(300, 30, 16)
    keep_n = np.ones(300, bool)
    spoilt = x_nD.astype(np.float16).astype(np.float32)
    spoilt[[5, 77]], label_n[[9, 200]] = np.nan, -1
    spoilt[100] = 0
    keep_n[[5, 77, 9, 200, 100]] = False
    found = all_pairs(spoilt.astype(np.float16), label_n, fars=FARS, block=64)
    expected = brute(spoilt[keep_n], label_n[keep_n])
    assert (found.rows, found.dropped) == (295, 5)
    assert found.impostors == expected["impostors"]
    assert found.tar_at_far == expected["tar"]


def test_too_many_pairs_near_a_threshold_give_both_edges() -> None:
    x_nD, label_n = draw(900, 60, 32)
    expected = brute(x_nD, label_n)
    found = all_pairs(x_nD, label_n, fars=FARS, block=256, room=2)
    assert found.exact["1"] and not found.exact["1e-1"]
    for far in FARS:
        assert found.tar_at_far[far] <= expected["tar"][far] <= found.tar_at_most[far]
        assert found.threshold_at_far[far] >= max(-1.0, expected["cut"][far])
    assert found.threshold_at_far["1e-1"] - expected["cut"]["1e-1"] < 3e-4


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3, 6, 9])
def test_a_call_goes_on_where_another_stopped(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allpairs, "SAVE_SECONDS", 0.0)
    x_nD, label_n = draw(600, 40, 16)
    calls = []

    def note(done: int, total: int, words: str = "") -> None:
        calls.append(words)
        if len(calls) == after:
            raise Stop

    with pytest.raises(Stop):
        all_pairs(x_nD, label_n, work=tmp_path / "w", block=128, progress=note)
    assert len(calls) == after
    found = all_pairs(x_nD, label_n, work=tmp_path / "w", block=128, progress=note)
    assert len(calls) == 10  # five rows of blocks, twice: none was done again
    whole = all_pairs(x_nD, label_n, block=128)
    assert {**found.as_dict(), "pairs_per_second": 0} == {
        **whole.as_dict(), "pairs_per_second": 0,
    }  # fmt: skip
    again = all_pairs(x_nD, label_n, work=tmp_path / "w", block=128, fars=("1e-3",), progress=note)
    assert again.tar_at_far["1e-3"] == whole.tar_at_far["1e-3"]
    with pytest.raises(MismatchError, match="GL0006"):
        all_pairs(x_nD[::-1], label_n, work=tmp_path / "w", block=128)


def test_what_does_not_fit_is_told() -> None:
    x_nD, label_n = draw(20, 5, 4)
    with pytest.raises(InputError, match=r"GL0402.*expected a row for each"):
        all_pairs(x_nD, label_n[:-1])
    with pytest.raises(InputError, match="20 faces of 1 identities: no pairs to tell"):
        all_pairs(x_nD, np.zeros(20, np.int64))
    with pytest.raises(UsageError, match="a block of 1 to 4096"):
        all_pairs(x_nD, label_n, block=5000)


MEMORY = """
import sys
import numpy as np
from glint.evals.allpairs import all_pairs
rng = np.random.default_rng(0)
def high():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
label = np.arange(6000) // 3
x = rng.normal(size=(6000, 64)).astype(np.float32)
all_pairs(x[:600], label[:600], block=512)
before = high()
found = all_pairs(x, label, block=512)
print(high() - before, found.impostors)
"""


def test_memory_does_not_grow_with_the_pairs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    grown, impostors = map(int, done.stdout.split())
    assert impostors == 6000 * 5999 // 2 - 6000
    assert grown < 32 << 10, f"{grown} KiB"  # the scores alone would be 69 MiB in float32
