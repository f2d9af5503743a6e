"""Figures that others published, with source and date: to show beside, never to mix."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("published.toml")
SIZES = {"lfw": 6000, "cfp_fp": 7000, "agedb_30": 6000}  # pairs of the sets as published
ALIKE = {"agedb": "agedb_30", "agedb30": "agedb_30", "cfpfp": "cfp_fp", "ijb_c": "ijbc",
         "ijb_b": "ijbb", "lfw_pairs": "lfw"}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One net of one source; figures in per cent by set."""

    name: str
    data: str
    net: str
    source: str
    date: str
    figures: dict[str, float]


def known_as(name: str, pairs: int) -> str:
    """Return the published set that a test is, by its name and number of pairs; "" for none."""
    word = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    word = ALIKE.get(word, word)
    sound = word in ("ijbb", "ijbc", "tinyface") or SIZES.get(word) == pairs
    return word if sound else ""


def rows(sets: Mapping[str, int]) -> list[Row]:
    """Return the rows of sets by name, with their numbers of pairs: those that match both."""
    wanted = {known_as(name, pairs) for name, pairs in sets.items()} - {""}
    made = []
    told: dict[str, Any] = tomllib.loads(FILE.read_text(encoding="utf-8"))
    for source in told["source"]:
        for row in source["rows"]:
            said = dict(zip(source["columns"], row, strict=True))
            figures = {k: float(v) for k, v in said.items() if k.split("_1e-")[0] in wanted}
            if figures:
                made.append(Row(source["name"], said["data"], said["net"], source["source"],
                                source["date"], figures))  # fmt: skip
    return made
