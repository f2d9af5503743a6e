"""The house rules that a machine can check."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from glint.errors import CODES, GlintError
from glint.results import bench, datasets, identities, key, models

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RESULTS = (datasets, identities, models, bench)


def tracked() -> list[Path]:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: no list of tracked files")
    done = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / os.fsdecode(name) for name in done.stdout.split(b"\0") if name]


def test_no_data_and_no_models_are_tracked() -> None:
    kinds = {
        ".rec",
        ".idx",
        ".onnx",
        ".npy",
        ".npz",
        ".pt",
        ".pth",
        ".bin",
        ".pkl",
        ".tar",
        ".jpg",
        ".jpeg",
        ".safetensors",
    }
    assert [path.name for path in tracked() if path.suffix.lower() in kinds] == []


def test_code_is_ascii() -> None:
    kinds = {".py", ".toml", ".html", ".css", ".js", ".yaml", ".sh", ""}
    for path in tracked():
        if path.suffix in kinds and path.is_file():
            text = path.read_bytes()
            assert text.isascii(), f"{path.relative_to(ROOT)}: {text[:0]!r}"
            assert b"\r" not in text, path


def test_no_lock_file_is_tracked() -> None:
    assert {path.name for path in tracked()} & {"uv.lock", "pylock.toml"} == set()


def test_no_module_is_named_for_nothing() -> None:
    vague = {"utils", "util", "helpers", "common", "manager", "base", "misc"}
    for path in (ROOT / "glint").rglob("*"):
        assert path.stem not in vague, path


def test_imports_point_down() -> None:
    done = subprocess.run(
        [str(BIN / "lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def made(name: str) -> str:
    """Return the page that a script of docs/ makes."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.page())


def test_the_page_of_errors_is_the_table() -> None:
    page = made("make_errors")
    assert (ROOT / "docs" / "errors.md").read_text(encoding="utf-8") == page, "run: make docs"
    assert all(code in page for code in CODES)


def test_the_page_of_benchmarks_is_their_results() -> None:
    page = made("make_benchmarks")
    assert (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8") == page, "run: make docs"
    assert "99.43 %" in page and page.count("| ") > 300


def test_the_page_of_results_is_the_dataclasses() -> None:
    page = made("make_results")
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == page, "run: make docs"
    answers = [kind for part in RESULTS for kind in vars(part).values() if hasattr(kind, "SCHEMA")]
    assert len({kind.SCHEMA for kind in answers}) == 50
    for kind in answers:
        assert f"`{kind.SCHEMA}`" in page
        assert all(f"| `{key(one)}` |" in page for one in fields(kind)), kind


def test_every_schema_of_the_commands_is_a_dataclass() -> None:
    for path in (ROOT / "glint" / "cli").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "-result@1" not in text and '"schema"' not in text, path


def test_codes_are_well_formed_and_slugs_unique() -> None:
    slugs = [slug for slug, _ in CODES.values()]
    assert len(set(slugs)) == len(slugs)
    for code, (slug, meaning) in CODES.items():
        assert len(code) == 6 and code.startswith("GL") and code[2:].isdigit(), code
        assert slug == slug.lower() and " " not in slug
        assert meaning.endswith(".")


def test_exit_codes_are_unique() -> None:
    codes = [kind.exit_code for kind in GlintError.__subclasses__()]
    assert sorted(codes) == [2, 3, 4, 5, 6, 7, 8, 9, 10, 75]


def cpu_seconds(*arguments: str) -> float:
    used = os.times()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    now = os.times()
    return now.children_user + now.children_system - used[2] - used[3]


def test_help_is_quick_and_without_torch() -> None:
    code = (
        "import sys\nfrom glint.cli.app import main\nsys.argv = ['glint', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'faiss', 'pyarrow', 'onnxruntime', 'insightface', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Measure:" in done.stdout
    assert done.stderr.strip().splitlines()[-1] == "[]"
    ours, bare = [], []
    for _ in range(5):
        ours.append(cpu_seconds("-m", "glint", "--help"))
        bare.append(cpu_seconds("-c", "import typer, rich.console"))
    # The promise is 0.35 s; a machine too slow for it still sees what glint adds to its libraries.
    assert min(ours) <= max(0.35, 2.0 * min(bare)), (ours, bare)


@pytest.mark.parametrize(
    "module",
    [
        "glint",
        "glint.errors",
        "glint.log",
        "glint.recipes.load",
        "glint.recipes.shelf",
        "glint.manifests.card",
        "glint.train.recipe",
        "glint.pipelines.recipe",
    ],
)
def test_describing_needs_no_torch(module: str) -> None:
    code = (
        f"import sys, {module}\nassert not {{'torch', 'faiss', 'insightface'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_image_is_made_of_files_and_extras_that_exist() -> None:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    words = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    assert {one[0] for one in words} <= {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "CMD"}
    copied = [name for one in words if one[0] == "COPY" for name in one[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    project = (ROOT / "pyproject.toml").read_text()
    for name in ("pyproject.toml", "README.md", "LICENSE", "glint", "pipelines", "train"):
        assert name in copied, f"the wheel needs {name}"
    extras = re.search(r'pip install --no-cache-dir "\.\[([\w,]+)\]"', text)
    assert extras and all(f"\n{one} = [" in project for one in extras[1].split(","))
    version = re.search(r"FROM python:3\.(\d+)-", text)
    assert version and f"Python :: 3.{version[1]}" in project
    assert " gcc " in text  # Triton's
