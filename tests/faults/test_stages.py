"""What shows that the proofs of stages and of power cuts would see a fault."""

from __future__ import annotations

import importlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
compiled = pytest.mark.skipif(
    sys.platform != "linux" or not (shutil.which("cc") or shutil.which("gcc")),
    reason="calls.c needs Linux and a C compiler",
)


def part(name: str) -> Any:
    """Import a file beside this one, which may import others there."""
    sys.path.insert(0, str(HERE))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def crashes() -> ModuleType:
    return part("prove_crashes")


SCRIPT = """
import ctypes, os, sys
at, error, work, log = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
library = ctypes.CDLL(os.environ["LD_PRELOAD"])
long = ctypes.c_long
library.calls_arm(work.encode(), long(at), error, log.encode(), long(1_800_000_000))
os.mkdir(f"{work}/in")
with open(f"{work}/in/a.tmp", "wb") as file:
    file.write(b"hello")
    file.flush()
    os.fsync(file.fileno())
os.rename(f"{work}/in/a.tmp", f"{work}/in/a")
os.link(f"{work}/in/a", f"{work}/b")
os.truncate(f"{work}/b", 2)
os.unlink(f"{work}/b")
open(f"{work}.beside", "w").write("not counted")
"""
CALLS = ["mkdir", "create", "write", "sync", "rename", "link", "truncate", "unlink"]


@compiled
def test_calls_are_seen_killed_and_failed(tmp_path: Path) -> None:
    library = part("prove_stages").compiled(tmp_path)
    env = {**os.environ, "LD_PRELOAD": str(library)}

    def run(at: int, error: int) -> tuple[int, list[str], set[str]]:
        work, log = tmp_path / "work", tmp_path / "log"
        shutil.rmtree(work, ignore_errors=True)
        log.unlink(missing_ok=True)
        work.mkdir()
        command = [sys.executable, "-c", SCRIPT, *map(str, (at, error, work, log))]
        done = subprocess.run(command, env=env, capture_output=True, check=False)
        ops = part("prove_crashes").journal(log.read_bytes())
        return done.returncode, [op.kind for op in ops], {p.name for p in work.rglob("*")}

    assert run(0, 0) == (0, CALLS, {"in", "a"})
    assert run(5, 0) == (-9, CALLS[:4], {"in", "a.tmp"})  # before the rename
    assert run(8, 28) == (1, CALLS[:7], {"in", "a", "b"})
    assert run(9, 0)[0] == 0


def seen(crashes: ModuleType, without: str, tmp_path: Path) -> set[bytes | None]:
    """Return what `a` may hold behind a replacement from which some calls are left out."""
    root, at = tmp_path / "root", str(tmp_path / "root")
    root.mkdir()
    (root / "a").write_bytes(b"old")
    one = crashes.Op
    ops = [
        one("create", f"{at}/t", "", 0, b""),
        one("write", f"{at}/t", "", 0, b"newest"),
        one("sync", f"{at}/t", "", 0, b""),
        one("rename", f"{at}/a", f"{at}/t", 0, b""),
        one("sync", at, "", 0, b""),
    ]
    ops = [op for op in ops if without != f"{op.kind} {Path(op.path).name}"]
    history = crashes.History(ops, root, crashes.read(root))
    found = set()
    for now in range(len(ops)):
        for lost in crashes.losses(history, now, random.Random(0)):
            node = history.disk(now, lost).names.get("a")
            found.add(None if node is None else node.data)
            if now == len(ops) - 1 and not lost:
                assert found >= {b"newest"}
    last = {history.disk(now, lost).names["a"].data
            for lost in crashes.losses(history, now, random.Random(0))}  # fmt: skip
    return found | ({b"not durable"} if last != {b"newest"} else set())


@pytest.mark.parametrize(
    "without, more",
    [
        ("", set()),
        ("sync t", {b"", b"new", b"not durable"}),  # the name before the bytes
        ("sync root", {b"not durable"}),
    ],
)
def test_what_a_power_cut_leaves(
    crashes: ModuleType, tmp_path: Path, without: str, more: set[bytes]
) -> None:
    assert seen(crashes, without, tmp_path) == {b"old", b"newest", *more}


def test_a_run_that_ends_otherwise_is_wrong(tmp_path: Path) -> None:
    stages = part("prove_stages")
    work = tmp_path / "work"
    work.mkdir()
    (work / "a").write_bytes(b"a")
    stage = stages.Stage("any", [], tmp_path / "state", work, stages.held(work))
    assert stage.verdict(0, "") == ("same", "")
    (work / "lock").write_text("process 7")  # stated as left out
    assert stage.verdict(0, "")[0] == "same"
    (work / "b.tmp").write_bytes(b"b")
    assert stage.verdict(0, "") == ("wrong", "b.tmp is stray")
    assert stage.verdict(0, "", lax=True)[0] == "left over"
    (work / "a").write_bytes(b"b")
    assert stage.verdict(0, "", lax=True)[0] == "wrong"
    assert stage.verdict(4, "error GL0005 busy: held") == ("refused", "GL0005")
    (work / "a").write_bytes(b"a"), (work / "b.tmp").unlink()
    assert stage.verdict(4, "error GL0005 busy: held")[1] == "GL0005, done already"
    for code, said in ((1, "error GL0005"), (6, "Traceback"), (None, ""), (-11, ""), (6, "no")):
        assert stage.verdict(code, said)[0] == "wrong"
