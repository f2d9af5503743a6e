"""The proofs of prove.py in short, and what shows that they would see a fault."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("prove.py")
linux = pytest.mark.skipif(sys.platform != "linux", reason="prove.py needs Linux")
traced = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@pytest.fixture(scope="module")
def prove() -> ModuleType:
    spec = importlib.util.spec_from_file_location("glint_prove", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(tmp_path: Path, *args: object) -> list[dict[str, Any]]:
    """Run the script in a process of its own; it leaves with 0 where every figure holds."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, args), "--place", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told and all(figure["holds"] is not False for figure in told)
    return told


@linux
@pytest.mark.parametrize("section", ["races", "order"])
def test_in_short(tmp_path: Path, section: str) -> None:
    if section == "order" and shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    told = run(tmp_path, section, "--share", 0.01)
    assert len(told) >= {"races": 8, "order": 1}[section]


@linux
@traced
@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "section",
    ["kills", "disks", "races", "order", "signals", "truth", "large", "stages", "crashes"],
)
def test_at_length(tmp_path: Path, section: str) -> None:
    assert len(run(tmp_path, section, "--quick", "--seed", 1)) >= 4


GOOD = """
    7 mkdir("/d/data", 0777) = 0
    7 openat(AT_FDCWD</>, "/d", O_RDONLY|O_DIRECTORY) = 4</d>
    7 fsync(4</d>) = 0
    8 openat(AT_FDCWD</>, "/d/data/a.tar.tmp.8", O_WRONLY|O_CREAT, 0666) = 3</d/data/a.tar.tmp.8>
    8 write(3</d/data/a.tar.tmp.8>, "abc", 3) = 3
    8 fsync(3</d/data/a.tar.tmp.8> <unfinished ...>
    7 openat(AT_FDCWD</>, "/d/j/journal.jsonl", O_WRONLY|O_CREAT, 0666) = -1 ENOENT (none)
    8 <... fsync resumed>) = 0
    8 rename("/d/data/a.tar.tmp.8", "/d/data/a.tar") = 0
    8 fsync(4</d/data>) = 0
    7 write(5</d/_glint/journal.jsonl>, "1234 {\\"name\\": \\"a.tar\\"}", 24) = 24
    7 fsync(5</d/_glint/journal.jsonl>) = 0
    7 openat(AT_FDCWD</>, "/d/m.tmp.7", O_WRONLY|O_CREAT, 0666) = 3</d/m.tmp.7>
    7 write(3</d/m.tmp.7>, "{}", 2) = 2
    7 fsync(3</d/m.tmp.7>) = 0
    7 rename("/d/m.tmp.7", "/d/manifest.json") = 0
    7 fsync(4</d>) = 0
"""


def broken(prove: ModuleType, log: str) -> list[str]:
    return list(prove.check_order(prove.read_log(textwrap.dedent(log)), "/d").broken)


def without(line: str) -> str:
    lines = GOOD.splitlines(keepends=True)
    kept = [one for one in lines if line not in one]
    assert len(kept) < len(lines)
    return "".join(kept)


def test_a_good_order(prove: ModuleType) -> None:
    told = prove.check_order(prove.read_log(textwrap.dedent(GOOD)), "/d")
    assert (told.renames, told.lines, told.broken) == (2, 1, [])


@pytest.mark.parametrize(
    "line, said",
    [
        ("fsync(3</d/m.tmp", "/d/manifest.json is named before"),
        ("8 fsync(4</d/data>", "a journal speaks of /d/data/a.tar"),
        ("8 fsync(4</d/data>", "/d/manifest.json while /d/data/a.tar"),
        ("7 fsync(4</d>)", "end: the name /d/manifest.json"),
        ("7 fsync(5</d/_glint/journal", "end: /d/_glint/journal.jsonl was not synced"),
    ],
)
def test_a_sync_that_is_missing(prove: ModuleType, line: str, said: str) -> None:
    assert any(said in text for text in broken(prove, without(line)))


def test_a_write_behind_the_sync(prove: ModuleType) -> None:
    late = '8 write(3</d/data/a.tar.tmp.8>, "d", 1) = 1\n    8 rename('
    told = broken(prove, GOOD.replace("8 rename(", late))
    assert "/d/data/a.tar is named before" in told[0]
    assert "end: /d/data/a.tar was not synced" in told[-1]
    # one that begins while the sync is under way
    during = '9 write(3</d/data/a.tar.tmp.8>, "d", 1) = 1\n    8 <... fsync resumed>'
    told = broken(prove, GOOD.replace("8 <... fsync resumed>", during))
    assert "/d/data/a.tar is named before" in told[0]
    assert "end: /d/data/a.tar was not synced" in told[-1]


def test_a_sync_that_failed(prove: ModuleType) -> None:
    told = broken(prove, GOOD.replace("fsync resumed>) = 0", "fsync resumed>) = -1 EIO (error)"))
    assert any("/d/data/a.tar is named before" in text for text in told)


def test_a_folder_that_is_renamed(prove: ModuleType) -> None:
    log = """
    7 mkdir("/d/step.tmp", 0777) = 0
    7 openat(AT_FDCWD</>, "/d/step.tmp/net", O_WRONLY|O_CREAT, 0666) = 3</d/step.tmp/net>
    7 write(3</d/step.tmp/net>, "abc", 3) = 3
    7 fsync(3</d/step.tmp/net>) = 0
    7 fsync(4</d/step.tmp>) = 0
    7 rename("/d/step.tmp", "/d/step-1") = 0
    7 fsync(4</d>) = 0
    """
    assert broken(prove, log) == []
    lost = broken(prove, log.replace("    7 fsync(4</d/step.tmp>) = 0\n", ""))
    assert lost and "/d/step-1 is named, /d/step.tmp/net may be lost" in lost[0]


@linux
@traced
@pytest.mark.parametrize("gone, said", [("", ""), ("fsync", "is named before"), ("dir", "may be")])
def test_what_the_order_proof_sees(prove: ModuleType, tmp_path: Path, gone: str, said: str) -> None:
    """Real files written by glint's own commit, whole and with its syncs taken away."""
    code = (
        "import os, sys\nfrom glint.files import atomic\n"
        "real = os.fsync\n"
        "if sys.argv[2] == 'fsync': os.fsync = lambda fd: None\n"
        "if sys.argv[2] == 'dir': atomic.sync_dir = lambda folder: None\n"
        "atomic.write_json(sys.argv[1] + '/manifest.json', {})\n"
    )
    log, root = tmp_path / "log", tmp_path / "root"
    root.mkdir()
    subprocess.run(
        ["strace", "-f", "-y", "-o", str(log), "-e", f"trace={','.join(prove.CHANGES)}"]
        + [sys.executable, "-c", code, str(root), gone],
        check=True,
        capture_output=True,
    )
    told = prove.check_order(prove.read_log(log.read_text()), str(root))
    assert told.renames == 1
    assert bool(told.broken) == bool(gone)
    assert all(said in text for text in told.broken[:1])


@linux
def test_what_the_reader_sees(prove: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    (out / "data" / "a.tar").write_bytes(b"whole")
    whole = prove.files(out)
    job = prove.Job([], out, tmp_path, whole)
    assert (job.half(), job.other()) == ([], [])
    assert prove.looked(job, rounds=2) == {"read": 1, "rounds": 2, "bad": 0, "shown": []}
    (out / "data" / "a.tar").write_bytes(b"who")
    (out / "data" / "b.tar.tmp.h.1-1").write_bytes(b"b")
    assert prove.looked(job, rounds=1)["bad"] == 1
    assert job.half() == ["data/a.tar is not complete"]
    assert job.other() == [
        "data/a.tar is missing or changed",
        "data/b.tar.tmp.h.1-1 is stray",
    ]


def test_a_figure_that_falls_short(prove: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = prove.Tally()
    tally.note("half", [], "run 1")
    assert tally.none("figure", "half")["holds"] is True
    tally.note("half", ["a.tar is not complete"], "run 2")
    told = tally.none("figure", "half")
    assert (told["value"], told["holds"]) == (1, False)
    assert told["shown"] == ["run 2: half: a.tar is not complete"]
    monkeypatch.setitem(prove.SECTIONS, "order", lambda given: iter([told]))
    monkeypatch.setattr(sys, "argv", ["prove.py", "order"])
    with pytest.raises(SystemExit) as left:
        prove.main()
    assert left.value.code == 1
