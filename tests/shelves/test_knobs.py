"""Every field of a recipe is read somewhere: a knob that turns nothing is a lie."""

from __future__ import annotations

import ast
from dataclasses import Field
from pathlib import Path
from typing import Any

from glint.manifests.card import Card
from glint.nn.heads.options import OPTIONS, key_of
from glint.pipelines.recipe import Recipe as Road
from glint.recipes.load import Table
from glint.train.recipe import Recipe

ROOT = Path(__file__).parents[2] / "glint"


def reads(folders: list[str], model: type[Table]) -> set[tuple[str, str]]:
    """(table, field) wherever code reads `table.field`, outside a recipe's own checks.

    `table` is an attribute or variable of the table's name, or a variable that was given one or is
    annotated with its class.
    """
    tables = {table_class(model, name).__name__: name for name in model.model_fields}
    found: set[tuple[str, str]] = set()
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            if path.name == "recipe.py":  # its checks use nothing; `commands` of a road does
                names = ("commands", "training_commands")
                tree.body = [one for one in tree.body if getattr(one, "name", "") in names]
            nodes = list(ast.walk(tree))
            known = {name: {name} for name in model.model_fields}
            for node in nodes:
                if isinstance(node, ast.arg) and node.annotation is not None:
                    kind = ast.unparse(node.annotation).split(".")[-1]
                    if kind in tables:
                        known[tables[kind]].add(node.arg)
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute):
                    for target in node.targets:
                        if isinstance(target, ast.Name) and node.value.attr in known:
                            known[node.value.attr].add(target.id)
            for node in nodes:
                if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
                    continue
                holder = node.value
                for table, names in known.items():
                    if (isinstance(holder, ast.Attribute) and holder.attr == table) or (
                        isinstance(holder, ast.Name) and holder.id in names
                    ):
                        found.add((table, node.attr))
    return found


def table_class(model: type[Table], name: str) -> type[Table]:
    annotation = model.model_fields[name].annotation
    inner = [
        one
        for one in (annotation, *getattr(annotation, "__args__", ()))
        if isinstance(one, type) and issubclass(one, Table)
    ]
    assert len(inner) == 1, name
    return inner[0]


def fields(model: type[Table]) -> set[tuple[str, str]]:
    """(table, field) of every value in a recipe of tables."""
    return {
        (name, field)
        for name in model.model_fields
        for field in table_class(model, name).model_fields
    }


def test_training_recipe() -> None:
    of_the_head = {("head", key_of(option)) for option in read_by_heads()}
    assert sorted(fields(Recipe) - reads(["train", "cli"], Recipe) - of_the_head) == []


def read_by_heads() -> list[Field[Any]]:
    """The options that the heads themselves read: `train.build` hands all of them over."""
    names = {
        node.attr
        for path in (ROOT / "nn" / "heads").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and "options" in ast.unparse(node.value)
    }
    return [option for option in OPTIONS.values() if option.name in names]


def test_every_option_of_a_head_is_read_by_it() -> None:
    assert {option.name for option in OPTIONS.values()} == {o.name for o in read_by_heads()}


def test_road() -> None:
    assert sorted(fields(Road) - reads(["pipelines"], Road)) == []


def test_a_card_is_small() -> None:
    assert len(Card.model_fields) <= 16  # read by people: `glint cat`
