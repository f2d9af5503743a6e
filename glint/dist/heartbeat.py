"""A rank's sign of life: a file that changes every second, and its stacks on request."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from pathlib import Path

FOLDER = "GLINT_HEARTBEAT"  # the environment variable that names where ranks show life
BEAT = 1.0  # seconds


def beat_file(folder: Path, rank: int) -> Path:
    """Name the file of which a living rank changes the content."""
    return folder / f"beat-{rank}"


def stack_file(folder: Path, rank: int) -> Path:
    """Name the file that a rank writes its stacks to on SIGUSR2."""
    return folder / f"stacks-{rank}.txt"


def start() -> None:
    """Start the heartbeat where the launcher asked for one (main thread, once per process)."""
    named = os.environ.get(FOLDER, "")
    if not named:
        return
    folder, rank = Path(named), int(os.environ.get("LOCAL_RANK", "0"))
    stacks = stack_file(folder, rank).open("w")
    faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True)

    def beat() -> None:
        path, count = beat_file(folder, rank), 0
        pause = threading.Event()
        while folder.is_dir():
            count += 1
            try:
                path.write_text(str(count))
            except OSError:  # the launcher has taken its folder away
                return
            pause.wait(BEAT)

    threading.Thread(target=beat, name="heartbeat", daemon=True).start()
