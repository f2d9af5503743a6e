"""`glint train --dry-run`: what every rank would hold, before anything is allocated."""

from __future__ import annotations

from typing import Any


def run(recipe: str, change: list[str], world: int, classes: int) -> dict[str, Any]:
    """Load the recipe and count; `classes` 0 asks the dataset."""
    from glint.recipes import shelf
    from glint.recipes.load import load
    from glint.train.recipe import Recipe

    settings = load(shelf.find("train", recipe), Recipe, change)

    from glint.errors import InputError, UsageError
    from glint.shards import labels
    from glint.shards.dataset import Dataset
    from glint.train import dry

    if not classes:
        try:
            dataset = Dataset(settings.data.path)
            classes = labels.current(dataset.root, dataset.classes).classes
        except (InputError, UsageError) as error:
            hint = f"{error.hint}; " * bool(error.hint) + "--classes N counts without the data"
            raise type(error)(error.code, error.what, where=error.where, hint=hint) from None
    return dry.run(settings, classes, world)


def say(found: dict[str, Any]) -> str:
    """Tell it to people."""
    lines = [
        f"{found['backbone']}: {found['parameters']:,} parameters, {found['trained']:,} trained, "
        f"{found['macs'] / 1e9:.3f} G multiply-adds an image",
        f"{found['classes']:,} identities over {found['world']} ranks, {found['batch']} images "
        f"each, global batch {found['global_batch']:,}; a rank holds",
    ]
    lines += [f"  {name:<13} {value / 1e9:10.3f} GB" for name, value in found["memory"].items()]
    lines.append(
        f"and saves {found['checkpoint'] / 1e9:.3f} GB, copied into the host's memory first."
    )
    lines.append("Not counted: workspaces, gaps of the allocator, batches waiting.")
    return "\n".join(lines)
