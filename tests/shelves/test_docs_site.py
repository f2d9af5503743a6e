"""The pages as a site: links, anchors, the menu, first lines, spelling, what is made."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

import glint

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
OTHERS = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")]
FENCE = re.compile(r"^```.*?^```[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
KINDS = ("Tutorial", "How-to", "Reference", "Explanation")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    """Return what may follow # behind a page's name: headings as mkdocs writes them, and ids."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found = set(re.findall(r'<a id="([^"]+)"', text))
    for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        word = re.sub(r"[^\w\s-]", "", title).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", word))
    return found


ANCHORS = {page: anchors(page) for page in [*PAGES, *OTHERS]}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))
    for target in LINK.findall(text):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), target
        assert not anchor or anchor in ANCHORS[place], target


def test_the_menu_has_every_page_once_under_one_of_four_kinds() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    nav = text[text.index("\nnav:") :]
    assert sorted(re.findall(r"([\w-]+\.md)", nav)) == [page.name for page in PAGES]
    tops = re.findall(r"^  - ([\w-]+):", nav, re.MULTILINE)
    assert tuple(tops) == ("Home", *KINDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_first_line_says_who_a_page_is_for(page: Path) -> None:
    if page.name in ("log.md", "acceptance.md"):
        return
    title, empty, first = page.read_text(encoding="utf-8").splitlines()[:3]
    assert title.startswith("# ") and not empty
    assert first.startswith(("For people who", "For people with", "For people whose")), first


@pytest.mark.parametrize("name", ["cli", "recipe_keys"])
def test_pages_made_from_code_are_as_made(name: str) -> None:
    page = script(f"make_{name}").page()
    assert (DOCS / f"{name}.md").read_text(encoding="utf-8") == page, "run: make docs"


def test_every_option_says_what_it_is() -> None:
    rows = re.findall(r"^\| (`.*?) \| .*? \| (.*) \|$", (DOCS / "cli.md").read_text(), re.MULTILINE)
    assert len(rows) > 250 and [name for name, meaning in rows if not meaning] == []


def test_nothing_is_said_of_keys_that_are_not_there() -> None:
    made = script("make_recipe_keys")
    keys = set()
    for _, model, _ in made.SECTIONS:
        for name, field in model.model_fields.items():
            inner = (field.annotation, *get_args(field.annotation))
            tables = [one for one in inner if hasattr(one, "model_fields")]
            keys |= {f"{name}.{key}" for one in tables for key in one.model_fields} or {name}
    assert set(made.SAID) <= keys
    assert set(made.SHARED) <= {key.rpartition(".")[2] for key in keys}


def test_one_version_everywhere() -> None:
    assert f"\nversion: {glint.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    log = (ROOT / "CHANGELOG.md").read_text()
    first = re.search(r"^## (\d+\.\d+\.\d+)", log, re.MULTILINE)
    assert first and first[1] == glint.__version__
    assert log.index("## Advisory") < first.start()  # damaged data comes first


def test_spelling() -> None:
    pytest.importorskip("codespell_lib", reason="codespell is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib", "--ignore-words-list=fro"]
        + [str(page) for page in [*PAGES, *OTHERS, ROOT / "CITATION.cff"]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_picture_of_a_terminal_shows_the_commands_of_the_readme() -> None:
    text = (DOCS / "img" / "terminal.svg").read_text(encoding="utf-8")
    shown = [unescape(one) for one in re.findall(r">\$ (.*?)</text>", text)]
    assert shown == script("make_terminal").commands() and len(shown) == 3  # else: make pages


@pytest.mark.slow
def test_the_site_asks_no_network(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="mkdocs-material is not installed: make docs")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")],
        cwd=ROOT,
        check=True,
    )
    pages = list((tmp_path / "site").glob("*.html"))
    assert len(pages) == len(PAGES) + 1  # and 404
    loads = r'(?:<(?:script|img|iframe)[^>]*\ssrc|<link[^>]*\shref)="?(?:https?:)?//[^">\s]*'
    for page in [*pages, *(tmp_path / "site").rglob("*.css")]:
        text = page.read_text(encoding="utf-8")
        assert re.findall(loads, text) == [], page
        assert not re.search(r"url\(\s*[\"']?https?://", text), page
