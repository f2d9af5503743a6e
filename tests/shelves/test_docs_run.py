"""The documentation runs: every fence marked `bash run` or `python run`, page by page, in order.

A page's blocks share one empty folder; Python blocks that follow one another share a process, but
no names. $WORLD is a small synthetic world and $DATA the dataset that `glint shard` makes of it;
$PHOTOS are pictures in which $DETECTOR, a made ONNX file, finds faces. They are made only for pages
that name them. All other fences say what they are: text, console, toml, json, python, bash.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import zygote

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
SHOWN = {"text", "console", "toml", "json", "python", "bash", "make", "html"}
EACH = """import sys
for body in sys.argv[1:]:
    exec(compile(body, body, "exec"), {"__name__": "__main__"})
"""
RUN = {"bash run": ["bash", "-euo", "pipefail", "-c"], "python run": [sys.executable, "-c", EACH]}
BIN = Path(sys.executable).parent


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(kind.strip(), body) for kind, body in FENCE.findall(page.read_text(encoding="utf-8"))]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "world"
    glint("synth", str(out), "--identities", "24", "--images", "8", "--conflicts", "2")
    return out


@pytest.fixture(scope="session")
def data(world: Path) -> Path:
    glint("shard", str(world), str(world.parent / "data"))
    return world.parent / "data"


@pytest.fixture(scope="session")
def detector(made_detector: Callable[..., Path]) -> Path:
    return made_detector()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("photos") / "photos"
    for i in range(12):
        picture = np.full((160, 160, 3), 120, np.uint8)
        picture[48:56, 80:88] = [255, 0, 200] if i else 120  # one has no face
        (out / f"person-{i // 4}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(out / f"person-{i // 4}" / f"{i}.png")
    return out


def glint(*arguments: str) -> None:
    done = subprocess.run(
        [zygote.command(), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_says_what_it_is(page: Path) -> None:
    for kind, body in blocks(page):
        assert kind in SHOWN | set(RUN), f"```{kind}\n{body}"


RUNNABLE = [page for page in PAGES if any(kind in RUN for kind, _ in blocks(page))]


def test_something_runs() -> None:
    assert ROOT / "docs" / "recipes.md" in RUNNABLE


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_pages_run(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    todo = [(kind, body) for kind, body in blocks(page) if kind in RUN]
    path = os.pathsep.join([str(zygote.command().parent), str(BIN), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    for name in ("world", "data", "photos", "detector"):
        if any(re.search(rf"\b{name.upper()}\b", body) for _, body in todo):
            there = tmp_path / "given" / name  # a copy: a page may change what it is given
            made = request.getfixturevalue(name)
            there.parent.mkdir(exist_ok=True)
            (shutil.copytree if made.is_dir() else shutil.copy)(made, there)
            env[name.upper()] = str(there)
    for kind, group in groupby(todo, key=lambda one: (one[0], one[0] == "bash run" and one)):
        run = [*RUN[kind[0]], *(body for _, body in group)]
        done = subprocess.run(
            run, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{page.name}:\n{run[-1]}\n{done.stdout}\n{done.stderr}"
