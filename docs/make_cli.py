"""Write docs/cli.md from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from typer.models import ArgumentInfo

from glint.cli import commands

HEAD = """\
# The command line

For people who look up a command, an argument or an option. Made from the commands by `make docs`; a
test compares the two. `glint COMMAND --help` prints the same.

`SRC` is what is read, `OUT` what is written, `DATASET` a folder or URL that glint wrote. Every
command takes `--help`, most take `--json` ([what it prints](results.md)) and `--debug` (the stack
trace of an error). Exit codes and errors have [a page of their own](errors.md).

`glint --install-completion` teaches the shell to complete commands, options, recipes, datasets and
nets. `glint --version --json` prints the version as an object. `--cache FOLDER` and `--cache-size
SIZE`, before the command, say where datasets of a store are cached (also `GLINT_CACHE`,
`GLINT_CACHE_SIZE`).
"""
EVERYWHERE = {"as_json", "debug"}


def page() -> str:
    """Return docs/cli.md as text."""
    app = typer.Typer()
    commands.register(app)
    found: dict[str, Any] = {str(one.name): one for one in app.registered_commands}
    found |= {str(one.name): one for one in app.registered_groups}
    lines = [HEAD]
    for heading, names in commands.HEADINGS.items():
        lines += [f"## {heading}", ""]
        for name in names:
            lines += _command(found[name], name)
    return "\n".join(lines).rstrip("\n") + "\n"


def _command(command: Any, name: str) -> Iterator[str]:
    group = getattr(command, "typer_instance", None)
    said = group.info.help if group else inspect.getdoc(command.callback)
    yield from (f"### `glint {name}`", "", _line(said), "")
    yield from ("```text", commands.EXAMPLES[name], "```", "")
    for one in group.registered_commands if group else ():
        if not one.hidden:
            for line in _command(one, f"{name} {one.name}"):
                yield line.replace("### ", "#### ", 1)
    if group is None:
        rows = [
            _row(one.name, one.default, one.annotation)
            for one in inspect.signature(command.callback, eval_str=True).parameters.values()
            if one.name not in EVERYWHERE
        ]
        if rows:
            yield from ("| argument or option | default | meaning |", "|---|---|---|", *rows, "")


def _row(name: str, info: Any, annotation: Any) -> str:
    several = get_origin(annotation) is list
    if isinstance(info, ArgumentInfo):
        shown = f"`{info.metavar}`" + " ..." * several
    else:
        names = [one for text in info.param_decls or () for one in text.split("/")]
        names = names or [f"--{name.replace('_', '-')}"]
        value = "" if annotation is bool else f" {info.metavar or _kind(annotation)}"
        *others, last = [f"`{one}`" for one in names[:-1]] + [f"`{names[-1]}{value}`"]
        shown = ", ".join([*others, last])
    return f"| {shown} | {_default(info)} | {_line(info.help or '')} |"


def _kind(annotation: Any) -> str:
    inner = [one for one in get_args(annotation) if one is not type(None)]
    kind = inner[0] if inner else annotation
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "\\|".join(str(one.value) for one in kind)
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def _default(info: Any) -> str:
    value = info.default() if callable(info.default) else info.default
    if value is ...:
        return "required"
    if isinstance(info.show_default, str):
        return info.show_default
    if value is False or value in (None, "", [], ()):
        return ""
    return f"`{'on' if value is True else getattr(value, 'value', value)}`"


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(page(), encoding="utf-8")
