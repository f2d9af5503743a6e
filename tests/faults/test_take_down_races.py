"""A take-down beside apply, undo and cluster apply: nobody comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.take_down_races import OTHERS, race


@pytest.mark.parametrize(
    ("people", "turns"),
    [(60, 2), pytest.param(100_000, 20, marks=[pytest.mark.faults, pytest.mark.timeout(1800)])],
)
def test_no_take_down_is_lost(tmp_path: Path, people: int, turns: int) -> None:
    seen = race(tmp_path / "races", people, turns, processes=people > 1000)
    assert sum(seen.values()) == turns * len(OTHERS)
