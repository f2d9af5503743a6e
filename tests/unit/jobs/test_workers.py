"""glint.jobs.workers: worker processes that die, and a parent that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from glint.errors import LostError
from glint.jobs import workers

# Worker processes import their work by name: it lies in a module that the test writes.
WORK = """
import os, signal, sys, time
from pathlib import Path

def die_at_first(folder, piece):
    \"\"\"Kill this worker at piece 3 and at piece 7, but once each.\"\"\"
    mark = Path(folder) / str(piece)
    if piece in (3, 7) and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return piece * piece

def die_always(folder, piece):
    if piece == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return piece * piece

def die_at_the_end(folder, piece):
    \"\"\"Kill the worker of piece 0 as it exits, while it holds the lock of the pipe.\"\"\"
    frame = sys._getframe()
    while "result_queue" not in frame.f_locals:
        frame = frame.f_back
    queue = frame.f_locals["result_queue"]
    real = queue.put

    def put(value):
        if isinstance(value, int):  # its process id: it has been told to end
            if piece == 0:
                queue._wlock.acquire()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.5)
        real(value)

    queue.put = put
    time.sleep(0.3 if piece == 0 else 0)
    return piece * piece

def slow(folder, piece):
    (Path(folder) / f"pid-{os.getpid()}").touch()
    time.sleep(60)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dying.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_what_a_dead_worker_had_is_done_again(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    import dying  # type: ignore[import-not-found]

    got: dict[int, int] = {}
    with caplog.at_level("WARNING", logger="glint"):
        workers.each(dying.die_at_first, str(work), range(12), 4, got.__setitem__)
    assert got == {i: i * i for i in range(12)}
    said = [r.getMessage() for r in caplog.records if "a worker process died" in r.getMessage()]
    assert 1 <= len(said) <= 2 and "going on with 2" in said[0]


def test_a_piece_that_kills_every_worker_is_named(work: Path) -> None:
    import dying

    got: dict[int, int] = {}
    with pytest.raises(LostError, match=r"GL0902 .*died 3 times with piece (.* or )?5\b") as caught:
        workers.each(dying.die_always, str(work), range(8), 2, got.__setitem__)
    assert caught.value.exit_code == 10 and 5 not in got
    assert all(got[i] == i * i for i in got)


@pytest.mark.timeout(60)
def test_a_worker_killed_at_its_good_bye_holds_nobody(work: Path) -> None:
    import dying

    got: dict[int, int] = {}
    workers.each(dying.die_at_the_end, str(work), range(4), 4, got.__setitem__)
    assert got == {i: i * i for i in range(4)}


def test_no_worker_outlives_its_parent(work: Path) -> None:
    script = """
    import sys
    from glint.jobs import workers as stage
    if __name__ == "__main__":
        sys.path.insert(0, sys.argv[1])
        import dying
        stage.each(dying.slow, sys.argv[1], range(8), 2, print)
    """
    (work / "parent.py").write_text(textwrap.dedent(script))
    env = {**os.environ, "PYTHONPATH": f"{work}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    parent = subprocess.Popen([sys.executable, str(work / "parent.py"), str(work)], env=env)
    deadline = time.monotonic() + 60
    while len(pids := [int(p.name[4:]) for p in work.glob("pid-*")]) < 2:
        assert parent.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    killed = time.monotonic()
    while left := [pid for pid in pids if _alive(pid)]:
        assert time.monotonic() - killed < 2, f"processes {left} are left"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    """Say whether a process runs; one that waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
