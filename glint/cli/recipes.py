"""`glint ls | cp | cat | validate`: the shelves, and whether a recipe is right."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import complete, console

if TYPE_CHECKING:
    from glint.recipes.shelf import Entry
    from glint.results import models as results
    from glint.train.recipe import Backbone

NAME = typer.Argument(
    ...,
    metavar="RECIPE",
    autocompletion=complete.recipes,
    help="A recipe: a name, shelf/name, or the path of a .toml file.",
)
SHELF = typer.Option(
    "", "--shelf", help="Treat it as a recipe of this shelf: train, pipelines or manifests."
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("ls")(ls)
    app.command("cp")(cp)
    app.command("cat")(cat)
    app.command("validate")(validate)


def ls(
    shelf: str = typer.Argument(
        "", metavar="SHELF", help="train, pipelines or manifests; all by default."
    ),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """List the recipes that come with glint."""
    console.run(lambda: _list(shelf), as_json, debug=debug, say=_say_list)


def cp(
    name: str = NAME,
    to: Path = typer.Argument(Path(), metavar="OUT", help="A file, or a folder to copy into."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing file."),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Copy a recipe to edit it."""
    console.run(
        lambda: _copy(name, to, overwrite),
        as_json,
        debug=debug,
        say=lambda result: f"{result.path}\nNext: glint validate {console.quoted(result.path)}",
    )


def cat(name: str = NAME, as_json: bool = console.JSON, debug: bool = console.DEBUG) -> None:
    """Print a recipe."""
    console.run(
        lambda: _text(name),
        as_json,
        debug=debug,
        say=lambda result: str(result.text).rstrip("\n"),
    )


def validate(
    name: str = NAME,
    change: list[str] = console.SET,
    shelf: str = SHELF,
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Check a recipe; print every mistake at once, or the commands to run."""
    console.run(
        lambda: _validate(name, change, shelf),
        as_json,
        debug=debug,
        say=_say_valid,
    )


def _list(shelf: str) -> results.Ls:
    from glint.recipes import shelf as shelves
    from glint.results import models as results

    rows = [
        results.Recipe(
            shelf=entry.shelf,
            name=entry.name,
            title=shelves.title(entry),
            path=str(entry.path),
        )
        for entry in shelves.entries(shelf)
    ]
    return results.Ls(recipes=rows)


def _say_list(result: results.Ls) -> str:
    rows = result.recipes
    width = max((len(row.name) for row in rows), default=0)
    lines: list[str] = []
    shelf = ""
    for row in rows:
        if row.shelf != shelf:
            lines += [""] * bool(lines) + [f"{row.shelf}/"]
        shelf = row.shelf
        lines.append(f"  {row.name:<{width}}  {row.title}")
    return "\n".join([*lines, "", "Next: glint cat NAME     or     glint cp NAME my.toml"])


def _copy(name: str, to: Path, overwrite: bool) -> results.Cp:
    from glint.recipes import shelf
    from glint.results import models as results

    return results.Cp(path=str(shelf.copy(name, to, overwrite)))


def _text(name: str) -> results.Cat:
    from glint.recipes import load, shelf
    from glint.results import models as results

    entry = shelf.locate(name)
    text, _ = load.read(entry.path)
    return results.Cat(shelf=entry.shelf, name=entry.name, path=str(entry.path), text=text)


def _validate(name: str, change: list[str], shelf: str) -> results.Validate:
    import shlex

    from glint.files.store import is_url
    from glint.manifests.card import Card
    from glint.pipelines import recipe as pipelines
    from glint.recipes import load
    from glint.recipes import shelf as shelves
    from glint.recipes.load import Table
    from glint.results import models as results
    from glint.train import recipe as train

    shelves.entries(shelf)  # an unknown shelf is told first
    entry = shelves.locate(name, shelf)
    kind = shelf or entry.shelf or _kind(entry)
    models: dict[str, type[Table]] = {
        "train": train.Recipe,
        "pipelines": pipelines.Recipe,
        "manifests": Card,
    }
    recipe = load.load(entry.path, models[kind], change)
    named = str(entry.path) if Path(name).is_file() else name
    commands: list[list[str]] = []
    missing: list[str] = []
    if isinstance(recipe, train.Recipe):
        _build(recipe.backbone)
        missing = [
            f"{key} = {path}"
            for key, path in recipe.paths()
            if not is_url(path) and not _there(path)
        ]
        from glint.train import sense

        sense.require_step(recipe)
        sets = [word for one in change for word in ("--set", one)]
        commands = [["glint", "train", named, *sets]]
    elif isinstance(recipe, pipelines.Recipe):
        commands = pipelines.commands(recipe)
    return results.Validate(
        path=str(entry.path),
        shelf=kind,
        valid=True,
        commands=[shlex.join(one) for one in commands],
        recipe=recipe.model_dump(),
        missing=missing,
    )


def _there(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long a name, a zero byte
        return False


def _build(table: Backbone) -> None:
    """Build the net without data, which checks its options. Raises UsageError GL0002.

    timm's are only known where it is installed.
    """
    if table.name.startswith("timm:") and importlib.util.find_spec("timm") is None:
        return
    import torch

    from glint.nn import backbones

    with torch.device("meta"):
        backbones.create(table.name, table.embedding, **table.options)


def _kind(entry: Entry) -> str:
    """Return the shelf that a file of the user belongs to, by its tables."""
    from glint.recipes import load

    text, where = load.read(entry.path)
    tables = set(load.parse(text, where))
    if tables & {"shard", "align", "embed", "conflicts", "balance"}:
        return "pipelines"
    return "manifests" if tables & {"identities", "licence"} else "train"


def _say_valid(result: results.Validate) -> str:
    lines = [f"{result.path}: valid"]
    lines += [f"not there: {what}" for what in result.missing]
    for number, command in enumerate(result.commands):
        lines.append(("Next: " if number == 0 else "      ") + command)
    return "\n".join(lines)
