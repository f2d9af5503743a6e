"""Small files that say themselves whether a bit of them has changed.

A sealed JSON file ends with the SHA-256 of its other fields; a line of a sealed log ends with the
SHA-256 of the line before and of its own fields. Both have one spelling only: any other is damage.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from glint.errors import InputError
from glint.files import atomic, reads

FIELD = "seal"


def _hash(*parts: bytes) -> str:
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part)
    return "sha256:" + hasher.hexdigest()


def spell(value: object) -> bytes:
    """Return the one form in which glint writes a JSON file."""
    return json.dumps(value, indent=1, ensure_ascii=True).encode() + b"\n"


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """Return `value` with its seal as the last field."""
    rest = {key: field for key, field in value.items() if key != FIELD}
    return {**rest, FIELD: _hash(spell(rest))}


def check(path: str | os.PathLike[str], code: str = "GL0301") -> dict[str, Any]:
    """Read a sealed JSON file. Raises InputError `code` where a bit of it has changed."""
    value = atomic.read_json(path, code)
    expected = sealed(value)
    if FIELD not in value:
        raise InputError(code, f"expected the field {FIELD!r}, found none", where=os.fspath(path))
    if expected[FIELD] != value[FIELD]:
        what = f"expected the seal {expected[FIELD]}, found {value[FIELD]}"
        raise InputError(code, what, where=os.fspath(path))
    if reads.whole(path) != spell(expected):
        what = "expected the spelling that glint writes, found another"
        raise InputError(code, what, where=os.fspath(path))
    return value


def entry(path: Path) -> dict[str, Any]:
    """Return the name, size and SHA-256 of a file, as a manifest lists it.

    Raises ResourceError GL0903 where it cannot be read.
    """
    try:
        size = path.stat().st_size
        return {"name": path.name, "bytes": size, "sha256": atomic.sha256_of(path)}
    except OSError as error:
        raise reads.unread(error, path) from error


def line(before: str, value: dict[str, Any]) -> bytes:
    """Return a sealed line of a log; `before` is the seal of the line before, or ''."""
    rest = {key: field for key, field in value.items() if key != FIELD}
    seal = _hash(before.encode(), json.dumps(rest, sort_keys=True).encode())
    return json.dumps({**rest, FIELD: seal}, sort_keys=True).encode() + b"\n"


def lines(path: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], int | None]:
    """Read a sealed log: its lines up to the first damaged one, and that one's byte offset.

    The offset is None where all is well. A file that does not exist is an empty log.
    """
    good: list[dict[str, Any]] = []
    path, at, before = Path(path), 0, ""
    if not path.exists():
        return good, None
    for raw in reads.whole(path).splitlines(keepends=True):
        try:
            value = json.loads(raw)
            if line(before, value) != raw:
                return good, at
            before = value[FIELD]
        except (ValueError, AttributeError, KeyError, RecursionError):
            return good, at
        good.append(value)
        at += len(raw)
    return good, None


def sound_lines(path: str | os.PathLike[str], code: str = "GL0304") -> list[dict[str, Any]]:
    """Return the lines of a sealed log. Raises InputError `code` where one is damaged."""
    good, bad = lines(path)
    if bad is not None:
        what = f"expected a sealed line, found damage at byte {bad}"
        hint = "bring the file back from a copy"
        raise InputError(code, what, where=os.fspath(path), hint=hint)
    return good


def append(path: str | os.PathLike[str], value: dict[str, Any], code: str) -> dict[str, Any]:
    """Add one line to a sealed log, durably, and return it. The caller holds a lock.

    Raises InputError `code` for a damaged log: what is lost must not be papered over.
    """
    path = Path(path)
    old = sound_lines(path, code)
    raw = line(old[-1][FIELD] if old else "", value)
    with atomic.writing(path):
        before = path.read_bytes() if path.exists() else b""
    atomic.write_bytes(path, before + raw)
    added: dict[str, Any] = json.loads(raw)
    return added
