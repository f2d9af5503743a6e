"""A first signal lets pieces end, a second one does not wait for them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from glint.errors import Stopped
from glint.jobs import workers
from glint.shards import recordio


def after(seconds: float, *numbers: int) -> threading.Timer:
    """Send signals to this process, a fifth of a second apart."""

    def send() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.2)

    timer = threading.Timer(seconds, send)
    timer.start()
    return timer


def none(piece: int, result: object) -> None:
    raise AssertionError("no piece was to end")


@pytest.mark.parametrize("count", [1, 2])
def test_a_second_signal_does_not_wait_for_pieces(count: int) -> None:
    wait: Callable[..., object] = signal.sigtimedwait  # work(plan, piece) = sleep `piece` seconds
    before = signal.getsignal(signal.SIGINT)
    timer = after(1.0, signal.SIGINT, signal.SIGINT)
    begin = time.monotonic()
    with pytest.raises(workers.Again), workers.ending():
        workers.each(wait, [], [60, 61, 62], count, none)
    assert time.monotonic() - begin < 8
    timer.join()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_first_signal_ends_what_may_end_anywhere() -> None:
    timer = after(0.1, signal.SIGTERM)
    with pytest.raises(Stopped, match="GL0704"), workers.ending():
        time.sleep(30)
    timer.join()


def test_signals_are_counted_through_contexts() -> None:
    with pytest.raises(workers.Again), workers.ending():
        with workers.stoppable() as stopped:
            os.kill(os.getpid(), signal.SIGINT)
            assert stopped()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_a_signal_while_a_file_is_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(condition: object) -> object:
        raise KeyboardInterrupt

    path = tmp_path / "a.rec"
    path.write_bytes(bytes(64))
    monkeypatch.setattr(np, "flatnonzero", interrupted)
    with pytest.raises(Stopped, match="GL0704"), workers.ending():
        recordio.magics(path)
