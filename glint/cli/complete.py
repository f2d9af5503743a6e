"""What a shell offers when Tab is pressed: recipes, datasets, nets. Nothing heavy is imported.

A file is offered by the shell itself where nothing here fits.
"""

from __future__ import annotations

from pathlib import Path


def datasets(incomplete: str) -> list[str]:
    """Return the datasets whose path begins so: finished ones, of one folder."""
    parent, _, start = incomplete.rpartition("/")
    folder = Path(parent or ("/" if incomplete.startswith("/") else "."))
    try:
        found = sorted(one.name for one in folder.iterdir() if (one / "manifest.json").is_file())
    except OSError:
        return []
    before = incomplete[: len(incomplete) - len(start)]
    return [before + name for name in found if name.startswith(start)]


def recipes(incomplete: str) -> list[str]:
    """Return the recipes of every shelf."""
    return _shelf("", incomplete)


def train_recipes(incomplete: str) -> list[str]:
    """Return the recipes of the shelf train."""
    return _shelf("train", incomplete)


def pipeline_recipes(incomplete: str) -> list[str]:
    """Return the recipes of the shelf pipelines."""
    return _shelf("pipelines", incomplete)


def nets(incomplete: str) -> list[str]:
    """Return the nets that can be built."""
    from glint.nn.names import NAMES

    return [name for name in NAMES if name.startswith(incomplete)]


def _shelf(shelf: str, incomplete: str) -> list[str]:
    from glint.recipes.shelf import entries

    return [one.name for one in entries(shelf) if one.name.startswith(incomplete)]
