"""What a dataset is: the cards on the shelf `manifests/`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from glint.recipes import shelf
from glint.recipes.load import Table, load

Text = Annotated[str, Field(min_length=1)]
Md5 = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class Card(Table):
    """A dataset as its publishers describe it: size, form, licence, where to ask for it.

    `files` are what one finds after unpacking; `md5` are the publishers' checksums, by file.
    """

    title: Text
    use: Literal["training", "evaluation"]
    identities: Annotated[int, Field(ge=1)]
    images: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    format: Literal["recordio", "webface", "folders"]
    files: list[Text]
    licence: Text
    commercial: bool
    ask: Text
    source: Text
    paper: Text
    notes: list[Text] = Field(default_factory=list)
    md5: dict[str, Md5] = Field(default_factory=dict)


def read(name: str | Path) -> Card:
    """Read a card by name or path. Raises UsageError GL0101, GL0102, GL0103."""
    return load(shelf.find("manifests", name), Card)
