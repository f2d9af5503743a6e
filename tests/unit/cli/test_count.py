"""How many of what."""

from __future__ import annotations

import pytest

from glint.cli import console


@pytest.mark.parametrize(
    "noun, many", [("shard", "shards"), ("identity", "identities"), ("class", "classes")]
)
def test_one_is_one(noun: str, many: str) -> None:
    assert [console.count(n, noun) for n in (0, 1, 2, 21)] == [
        f"0 {many}", f"1 {noun}", f"2 {many}", f"21 {many}",
    ]  # fmt: skip
