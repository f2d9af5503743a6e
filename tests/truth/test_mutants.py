"""Faults put in by hand: the truth tests must see the old ones, the writer must see its disk's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import chains
import oracle
import pytest
import sources
from sources import Image

HERE = Path(__file__).parent
RUNS = 20


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_buffer_with_two_names_is_seen(tmp_path: Path) -> None:
    """The short form fails every time on a checkout (GLINT_OLD) in which the writer had the fault.

    The fault was a race: `self._here = self._there`, then one buffer was filled while it was
    written.
    """
    old = os.environ.get("GLINT_OLD")
    if not old:
        pytest.skip("GLINT_OLD names no checkout of a version with the fault")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-k", "source", f"--basetemp={tmp_path / 'runs'}", str(HERE / "test_truth.py")]
    seen = []
    for _ in range(RUNS):
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "GLINT_TREE": old},
        )
        said = re.search(r"images (lost|not in the source)|train-\d+\.tar: ", done.stdout)
        seen.append(done.returncode == 1 and said is not None)
    print(f"the short form failed {sum(seen)} of {RUNS} times on {old}")
    assert all(seen), f"{sum(seen)} of {RUNS}"


@pytest.fixture(scope="module")
def images() -> list[Image]:
    return sources.mixed(20 << 20, seed=3)


Command = Callable[[Path], list[object]]


@pytest.fixture(scope="module")
def commands(images: list[Image], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Command]:
    """Give what writes a dataset at a place, by the name of its command."""
    place = tmp_path_factory.mktemp("mutants")
    source = sources.folder(place / "source", images)
    for name in ("base", "other"):
        oracle.glint("shard", source, place / name, "--workers", 1, cwd=place)
    base, one = place / "base", ["--workers", 1]
    per = ["--samples-per-shard", 1000]
    return {
        "shard": lambda out: ["shard", source, out, *one],
        "reshard": lambda out: ["reshard", base, out, *per, *one],
        "merge": lambda out: ["merge", out, base, place / "other", *one],
        "erase": lambda out: [
            "drop",
            base,
            "--id",
            "label:0",
            "--erase",
            out,
            "--reason",
            "x",
            *one,
        ],
        "upload": lambda out: ["shard", source, f"file://{out}", *one],
    }


QUICK = [("shard", "flip"), ("shard", "drop"), ("shard", "label"), ("reshard", "swap")]
MORE = [("shard", kind) for kind in ("lost", "repeat", "swap", "name", "padding")]
MORE += [("reshard", "flip"), ("merge", "flip"), ("merge", "lost"), ("erase", "repeat")]
MORE += [("upload", "flip"), ("upload", "drop")]


@pytest.mark.parametrize(
    ("command", "kind"), [*QUICK, *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE)]
)
def test_a_disk_that_writes_something_else(
    command: str,
    kind: str,
    commands: dict[str, Command],
    images: list[Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A command whose bytes did not arrive does not end with 0; once more, and all is good."""
    mark, out = tmp_path / "mark", tmp_path / "out"
    monkeypatch.setenv("GLINT_FAULT", f"{kind}:{mark}")
    glint = partial(oracle.glint, *commands[command](out), cwd=tmp_path)
    said = ""
    try:
        glint(hook=HERE / "faulty")
    except RuntimeError as error:
        said = str(error)
    assert mark.exists(), f"the fault did not come: {said}"
    assert re.match(r"exit [1-9]\d*: .*GL\d{4}", said, re.DOTALL), said or "exit 0"
    glint()
    samples = sources.usable(images)
    if command == "merge":
        samples += samples
    if command == "erase":
        for sample in list(samples):
            if sample[1] == "0":
                del samples[sample]
    dropped = frozenset({0}) if command == "erase" else frozenset[int]()
    chains.Data(out, "both", samples, dropped).held()
