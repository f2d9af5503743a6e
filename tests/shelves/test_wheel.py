"""What the wheel holds: one importable name, and the shelves inside it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import glint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (made,) = out.glob("*.whl")
    return made


def test_one_top_level_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "glint",
        f"glint_faces-{glint.__version__}.dist-info",
    }
    assert "glint/py.typed" in names
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    assert [name for name in names if name.endswith((".pyc", ".rec", ".onnx", ".npy", ".pt"))] == []


def test_it_holds_every_module_and_every_shelf_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "glint").rglob("*.py"):
        assert path.relative_to(ROOT).as_posix() in names
    files = [path for one in ("train", "pipelines", "manifests") for path in (ROOT / one).iterdir()]
    files = [path for path in files if path.suffix in (".toml", ".py")]
    assert len(files) >= 40
    for path in files:
        assert f"glint/_shelves/{path.relative_to(ROOT).as_posix()}" in names


def test_recipes_are_found_by_name_once_installed(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "site" / "train").mkdir()  # another project's folder of the same name
    (tmp_path / "site" / "train" / "stranger.toml").write_text("x = 1\n")
    code = (
        "from glint.recipes import shelf\n"
        "print(shelf.locate('glint360k_r50').path)\n"
        "print(*sorted(e.name for e in shelf.entries()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        text=True,
        check=True,
    )
    path, names = done.stdout.splitlines()
    assert Path(path) == tmp_path / "site/glint/_shelves/train/glint360k_r50.toml"
    here = [
        path for one in ("train", "pipelines", "manifests") for path in (ROOT / one).glob("*.toml")
    ]
    assert names.split() == sorted(path.stem for path in here)
