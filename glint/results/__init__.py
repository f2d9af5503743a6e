"""What every command prints with `--json`: a class for each answer, a comment for each key.

`to_json` makes the fields in their order, but for those left at their default: keys that only
some answers have. `docs/results.md` is made of this file (`make docs`).
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Protocol


class Result(Protocol):
    """A dataclass with the name of its schema."""

    SCHEMA: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


def to_json(result: Result) -> dict[str, Any]:
    """Return the object that `--json` prints."""
    return {"schema": result.SCHEMA, **_plain(result)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        found = {one: getattr(value, one.name) for one in fields(value)}
        return {key(one): _plain(held) for one, held in found.items() if held is not one.default}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def key(one: Any) -> str:
    """Return the key that a field has in JSON."""
    return str(one.metadata.get("key", one.name))
