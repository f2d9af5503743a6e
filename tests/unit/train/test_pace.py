"""When a run saves and stops."""

from __future__ import annotations

import time

import pytest

from glint.errors import UsageError
from glint.train.pace import NEVER, Pace, Until
from glint.train.recipe import Run


@pytest.mark.parametrize("text", ["0", "-3", "5k", "1.5", "m", "1e9s", "@", "@-1", "soon", "5 m"])
def test_what_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"GL0002.*--until.*expected steps"):
        Until.of(text)


def test_steps_durations_and_times() -> None:
    assert Until.of("") == NEVER and not NEVER.over(10**9) and NEVER.text() == ""
    steps = Until.of("12")
    assert [steps.over(done) for done in (11, 12, 13)] == [False, True, True]
    assert Until.of(steps.text()) == steps
    now = time.time()
    hours = Until.of("1.5h")
    assert hours.time == pytest.approx(now + 5400, abs=5) and not hours.over(1)
    assert Until.of(hours.text()) == hours  # a restart ends at the same time
    assert Until.of(f"@{now - 1}").over(0) and not Until.of(f"@{now + 60:.0f}").over(0)


def test_saves_at_steps_and_ends_of_epochs() -> None:
    pace = Pace(Run(save_every=4), steps_per_epoch=3, total=11)
    assert [done for done in range(1, 12) if pace.saves(done)] == [3, 4, 6, 8, 9, 11]
    pace = Pace(Run(save_every=4, save_epochs=False), steps_per_epoch=3, total=11)
    assert [done for done in range(1, 12) if pace.saves(done)] == [4, 8, 11]


def test_saves_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace, never = (Pace(Run(save_minutes=m), steps_per_epoch=10, total=100) for m in (2, 0))
    for now[0], due in ((119.0, False), (120.0, True), (500.0, True)):
        assert pace.due() is due and not never.due()
    pace.saved()
    assert not pace.due()
