from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from glint.dist.launch import run_ranks
from glint.dist.world import join
from glint.errors import LostError, ResourceError, UsageError


def program(text):
    return [sys.executable, "-S", "-c", "import os, sys, time, signal\n" + textwrap.dedent(text)]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ranks_get_their_environment_and_rank_0_speaks(tmp_path, capfd):
    text = f"""
        names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GLINT_RENDEZVOUS", "MORE"]
        seen = [os.environ[name] for name in names]
        open({str(tmp_path)!r} + "/" + seen[0], "w").write(" ".join(seen))
        print("rank", seen[0], "speaks")
    """
    assert run_ranks(program(text), 3, {**os.environ, "MORE": "x"}) == 0
    said = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [line[:4] for line in said] == [[str(r), str(r), "3", "3"] for r in range(3)]
    assert len({line[4] for line in said}) == 1 and said[0][4].startswith("file://")
    assert {line[5] for line in said} == {"x"}
    assert capfd.readouterr().out == "rank 0 speaks\n"


def test_a_killed_rank_is_named_within_a_second_and_none_is_left(tmp_path):
    text = f"""
        rank = os.environ["RANK"]
        open({str(tmp_path)!r} + "/" + rank, "w").write(str(os.getpid()))
        if rank == "1":
            while len(os.listdir({str(tmp_path)!r})) < 3:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    """
    start = time.monotonic()
    with pytest.raises(
        LostError,
        match=r"GL0601 rank-lost: rank 1 of 3: killed by signal 9 "
        r"\(SIGKILL\)",
    ):
        run_ranks(program(text), 3)
    assert time.monotonic() - start < 10
    assert not any(alive(int((tmp_path / str(rank)).read_text())) for rank in range(3))


def test_the_kill_is_the_cause_not_the_ranks_that_fell_after_it():
    text = """
        if os.environ["RANK"] == "2":
            os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(0.02)
        sys.exit(1)
    """
    with pytest.raises(LostError, match=r"rank 2 of 3: killed by signal 11 \(SIGSEGV\)"):
        run_ranks(program(text), 3)


def test_a_crash_shows_the_end_of_that_ranks_output():
    text = """
        if os.environ["RANK"] == "1":
            raise RuntimeError("the reason")
        time.sleep(60)
    """
    with pytest.raises(LostError, match="rank 1 of 2: left with exit code 1") as caught:
        run_ranks(program(text), 2)
    assert caught.value.hint.endswith("RuntimeError: the reason")


@pytest.mark.parametrize("code", [2, 3, 9, 10, 75])
def test_glints_own_exit_codes_pass_through(code, caplog):
    caplog.set_level("ERROR", logger="glint")
    text = f"""
        print("error GL0000 told")
        sys.exit({code})
    """
    assert run_ranks(program(text), 2) == code


def test_a_rank_that_ignores_sigterm_is_killed():
    text = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.environ["RANK"] == "0":
            time.sleep(0.5)
            sys.exit(1)
        time.sleep(60)
    """
    start = time.monotonic()
    with pytest.raises(LostError, match="rank 0 of 2"):
        run_ranks(program(text), 2, grace=0.3)
    assert time.monotonic() - start < 10


def launcher(text, tmp_path):
    """Start a process that runs `text` on two ranks; wait for both; give it and their pids."""
    text = f"""
open({str(tmp_path)!r} + "/" + os.environ["RANK"], "w").write(str(os.getpid()))
""" + textwrap.dedent(text)
    code = (
        "import sys; from glint.dist.launch import run_ranks\n"
        f"sys.exit(run_ranks({program(text)!r}, 2))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        pids = [p.read_text() for p in tmp_path.iterdir()]
        if len(pids) == 2 and all(pids):
            return process, [int(pid) for pid in pids]
        time.sleep(0.02)
    raise AssertionError("the ranks did not start")


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_ranks_die_with_their_parent(tmp_path):
    process, pids = launcher("time.sleep(60)", tmp_path)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def test_sigterm_is_passed_on_and_75_comes_back(tmp_path):
    process, _ = launcher(
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        time.sleep(60)
    """,
        tmp_path,
    )
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 75


def test_join_alone_needs_no_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GLINT_RENDEZVOUS"):
        monkeypatch.delenv(name, raising=False)
    world = join("cpu")
    assert (world.rank, world.size, world.device.type, world.group) == (0, 1, "cpu", None)


def test_join_says_what_is_wrong_with_the_environment(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"GL0002.*RANK is 2, expected 0 to WORLD_SIZE - 1 = 1"):
        join()
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(UsageError, match="RANK is 'one', expected a whole number"):
        join()
    monkeypatch.setenv("RANK", "0")
    for name in ("MASTER_ADDR", "GLINT_RENDEZVOUS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="nothing says where ranks meet"):
        join()


def test_join_names_a_device_that_is_not_there(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match="device is 'tpu-ish'"):
        join("tpu-ish")
    with pytest.raises(ResourceError, match="device cuda:99 was asked for"):
        join("cuda:99")


def test_ranks_that_do_not_come_are_told(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("GLINT_RENDEZVOUS", f"file://{tmp_path / 'meeting'}")
    with pytest.raises(LostError, match=r"GL0601.*2 ranks did not meet within 1 s"):
        join("cpu", timeout=1)


def test_a_stopped_rank_is_lost_and_all_stacks_are_kept(tmp_path):
    text = """
        import faulthandler
        sys.path.insert(0, {root!r})
        from glint.dist import heartbeat
        heartbeat.start()

        def where_it_waits():
            if os.environ["RANK"] == "1":
                time.sleep(1.5)
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(60)

        where_it_waits()
    """
    root = str(Path(__file__).parents[3])
    start = time.monotonic()
    with pytest.raises(LostError, match="rank 1 of 2: showed no life for 2 s") as caught:
        run_ranks(program(text.format(root=root)), 2, silence=2.5, stacks=tmp_path / "stacks")
    assert time.monotonic() - start < 20
    assert str(tmp_path / "stacks") in caught.value.hint
    told = [(tmp_path / "stacks" / f"stacks-{rank}.txt").read_text() for rank in range(2)]
    assert all("where_it_waits" in text for text in told)
