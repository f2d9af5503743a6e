"""What `glint --help` and Tab say: whole lines, an example that parses, arguments named alike."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from glint.cli import app as root
from glint.cli import commands, complete, console
from glint.nn.names import NAMES

APP = typer.Typer(cls=root._Root, rich_markup_mode=None)
APP.callback()(root.root)
commands.register(APP)
TOP: Any = typer.main.get_command(APP)


def contexts(group: Any = TOP, before: Any = None, name: str = "glint") -> Iterator[Any]:
    """Yield the context of every command that is shown, groups before what is in them."""
    made = type(before) if before else CONTEXT
    here = made(group, info_name=name, parent=before, terminal_width=80, max_content_width=80)
    yield here
    for word, one in getattr(group, "commands", {}).items():
        if not one.hidden:
            yield from contexts(one, here, word)


CONTEXT = type(TOP.make_context("glint", ["ls"]))
ALL = {one.command_path.removeprefix("glint").strip(): one for one in contexts()}


def test_every_command_stands_under_one_heading() -> None:
    shown = [name for names in commands.HEADINGS.values() for name in names]
    assert sorted(shown) == sorted(TOP.commands)
    text = ALL[""].get_help()
    assert [line[:-1] for line in text.splitlines() if line in {f"{h}:" for h in commands.HEADINGS}]
    assert all(f"\n{heading}:\n" in text for heading in commands.HEADINGS)


@pytest.mark.parametrize("name", ALL)
def test_no_line_is_cut_and_none_is_too_long(name: str) -> None:
    text = ALL[name].get_help()
    assert max(map(len, text.splitlines())) <= 80
    if group := getattr(ALL[name].command, "commands", {}):
        lines = [line.split(None, 1) for line in text.splitlines()]
        for word in (word for word, one in group.items() if not one.hidden):
            found = [line[1] for line in lines if line and line[0] == word]
            assert found == [console.first(group[word].help)], word


@pytest.mark.parametrize("name", [name for name in ALL if name])
def test_every_command_has_an_example_that_parses(name: str) -> None:
    example = commands.EXAMPLES[name]
    assert example.startswith(f"glint {name.split()[0]}")
    shown = ALL[name].get_help().rstrip()
    assert shown.endswith("Example:\n    " + example.replace("\n", "\n  "))
    words = shlex.split(example.replace("\\\n", "").split(" > ")[0])[1:]
    command, context = TOP, TOP.make_context("glint", words)
    while hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        word, command, rest = command.resolve_command(context, rest)
        context = command.make_context(word, rest, parent=context)


def test_no_example_is_of_no_command() -> None:
    assert set(commands.EXAMPLES) == set(ALL) - {""}


def test_arguments_are_named_alike() -> None:
    found = {
        one.metavar
        for context in ALL.values()
        for one in context.command.params
        if one.param_type_name == "argument"
    }
    assert found == {
        "SRC", "OUT", "DATASET", "RECIPE", "SHELF", "KIND", "RUN...", "WEIGHTS", "MODEL", "PAIRS",
        "EMB", "FOLDER", "REPO",
    }  # fmt: skip
    for name, context in ALL.items():
        words = [p.metavar for p in context.command.params if p.param_type_name == "argument"]
        assert "OUT" not in words[:-1], name


def test_version_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["glint", "--version", "--json"])
    said = json.loads(CliRunner().invoke(APP, ["--version", "--json"]).stdout)
    assert said["schema"] == "glint/version@1" and re.fullmatch(r"\d+\.\d+\.\d+", said["version"])
    done = CliRunner().invoke(APP, ["--json", "ls"])
    assert done.exit_code == 2 and "behind the command" in done.stderr


def test_what_tab_offers(tmp_path: Path) -> None:
    for name in ("faces", "faces-b", "other"):
        (tmp_path / name).mkdir()
    for name in ("faces", "faces-b"):
        (tmp_path / name / "manifest.json").write_text("{}")
    assert complete.datasets(f"{tmp_path}/fa") == [f"{tmp_path}/faces", f"{tmp_path}/faces-b"]
    assert complete.datasets(f"{tmp_path}/o") == complete.datasets(f"{tmp_path}/none/x") == []
    assert "synth_tiny" in complete.train_recipes("synth")
    assert complete.pipeline_recipes("pho") == ["photos"]
    assert {"lfw", "photos", "synth_tiny"} <= {*complete.recipes("")}
    assert complete.nets("mbf") == [name for name in NAMES if name.startswith("mbf")]


@pytest.mark.parametrize(
    "line, offered",
    [("glint train ms1mv3_r1", "ms1mv3_r100"), ("glint import w.pt o --backbone vit_", "vit_b")],
)
def test_the_shell_is_told(line: str, offered: str) -> None:
    env = {"_GLINT_COMPLETE": "complete_bash", "COMP_WORDS": line}
    env["COMP_CWORD"] = str(len(line.split()) - 1)
    done = CliRunner().invoke(APP, [], env=env, prog_name="glint")
    assert offered in done.stdout.split()
