"""TOML -> checked tables: every mistake at once, with dotted paths, and back to TOML."""

from __future__ import annotations

import datetime
import difflib
import json
import math
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
from pydantic_core import ErrorDetails, PydanticCustomError

from glint.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Table(pydantic.BaseModel):
    """One table of a recipe: strict types, unknown keys refused, frozen.

    A subclass says what its types cannot by overriding `mistakes`.
    """

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True)

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """Yield (field, or "" for the table; what is wrong) for values that do not fit together."""
        yield from ()

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> Table:
        found = list(self.mistakes())
        if found:
            text = "; ".join(f"{field}: {what}" if field else what for field, what in found)
            raise PydanticCustomError("mistakes", "{text}", {"text": text, "found": found})
        return self


T = TypeVar("T", bound=Table)
LONGEST, DOTS = 1 << 18, 100  # characters of a recipe; dots between two = of a line


def load(text_or_path: str | Path, model: type[T], overrides: Sequence[str] = ()) -> T:
    """Read TOML, apply `a.b=c` overrides and check the whole against `model`.

    A Path, or a one-line str ending in .toml, is a file; any other str is TOML text. An override's
    value is TOML, or a bare string. Raises UsageError GL0101 (not TOML), GL0102 (every mistake in
    one message), GL0103 (no such file).
    """
    text, where = read(text_or_path)
    data = parse(text, where)
    found = _Mistakes(model, data)
    for override in overrides:
        found.override(override)
    try:
        # Through JSON: strict about types, while a TOML array may fill a tuple or a list.
        built: T | None = model.model_validate_json(json.dumps(data, default=_unjson))
    except pydantic.ValidationError as error:
        built = None
        found.collect(error.errors(include_url=False))
    except (ValueError, RecursionError):  # an integer of thousands of digits
        raise UsageError("GL0102", "a value is too large to be read", where=where) from None
    if built is None or found.lines:
        raise found.error(where)
    return built


def parse(text: str, where: str = "") -> dict[str, Any]:
    """Parse TOML into plain data. Raises UsageError GL0101.

    Too long a text, or too deep a key, is refused first: tomllib keeps every beginning of a dotted
    key, which is gigabytes for one of 200 kB.
    """
    deep = any(part.count(".") > DOTS for line in text.splitlines() for part in line.split("="))
    if len(text) > LONGEST or deep:
        what = f"a key of more than {DOTS} dots" if deep else f"{len(text)} characters"
        raise UsageError(
            "GL0101", f"expected a recipe of at most {LONGEST} characters, found {what}",
            where=where,
        )  # fmt: skip
    try:
        return dict(tomllib.loads(text))
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        raise UsageError(
            "GL0101",
            f"not valid TOML: {error}",
            where=where,
            hint='text needs quotes: key = "value"; tables look like [optim]',
        ) from None
    except RecursionError:
        raise UsageError("GL0101", "not valid TOML: nested too deep", where=where) from None


def dump(model: Table, given: bool = False) -> str:
    """Write a table as TOML that `load` reads back to an equal one; None is left out.

    given: only what was given to it, no defaults.
    """
    return toml(model.model_dump(exclude_unset=given))


def toml(tables: Mapping[str, object]) -> str:
    """Write plain data as TOML."""
    lines: list[str] = []
    _write(tables, (), lines)
    return "\n".join(lines).strip("\n") + "\n"


def read(text_or_path: str | Path) -> tuple[str, str]:
    """Return (text, where it is from). Raises UsageError GL0101 (not text), GL0103."""
    if isinstance(text_or_path, str):
        if "\n" in text_or_path or not text_or_path.endswith(".toml"):
            return text_or_path, "recipe"
        text_or_path = Path(text_or_path)
    where = str(text_or_path)
    try:
        return text_or_path.read_bytes().decode("utf-8"), where
    except FileNotFoundError:
        raise UsageError(
            "GL0103", "no such file", where=where, hint="glint ls shows the recipes there are"
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(
            "GL0101",
            f"not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}",
            where=where,
        ) from None
    except OSError as error:
        raise UsageError("GL0103", f"cannot be read: {error.strerror}", where=where) from None


class _Mistakes:
    """What is wrong with `data` as a `model`, one line per mistake, in the order found."""

    def __init__(self, model: type[Table], data: dict[str, Any]) -> None:
        self.model, self.data = model, data
        self.lines: list[str] = []
        self.overridden: set[str] = set()

    def override(self, text: str) -> None:
        """Put one `a.b=c` into the data, or note why it cannot be."""
        path, equals, raw = text.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if any("\ud800" <= char <= "\udfff" for char in text):  # bytes that are not text
            self.lines.append(f"override {text!r}: not UTF-8 text")
            return
        if not equals or not all(keys):
            self.lines.append(f"override {text!r}: expected key=value, as in optim.lr=0.1")
            return
        table = self.data
        for depth, key in enumerate(keys[:-1]):
            inner = table.setdefault(key, {})
            if not isinstance(inner, dict):
                name = ".".join(keys[: depth + 1])
                self.lines.append(f"override {text!r}: {name} is a value, not a table")
                return
            table = inner
        field = _field(self.model, keys)
        table[keys[-1]] = _value(raw.strip(), field)
        self.overridden.add(".".join(keys))

    def collect(self, errors: Iterable[ErrorDetails]) -> None:
        """Turn pydantic's errors into lines; a union's several errors into one."""
        expected: dict[tuple[str, ...], list[str]] = {}
        for error in errors:
            loc = self._location(error["loc"], error["type"] == "missing")
            dotted = ".".join(loc)
            context = error.get("ctx", {})
            if error["type"] == "mistakes":
                for field, what in context["found"]:
                    self.lines.append(_join([*loc, *([field] if field else [])]) + what)
            elif error["type"] == "json_invalid":
                self.lines.append("arrays or tables nested too deep")
            elif error["type"] == "extra_forbidden":
                self.lines.append(
                    f"{dotted}: unknown key{self._nearest_key(loc)}{self._origin(dotted)}"
                )
            elif error["type"] == "missing":
                self.lines.append(
                    f"{dotted}: missing, expected {_expected(self.model, loc)}"
                    f"{self._why_missing(loc)}"
                )
            else:
                expected.setdefault(loc, []).append(_wanted(error))
        for loc, wants in expected.items():
            dotted = ".".join(loc)
            found = _look(self.data, loc)
            line = f"{dotted}: expected {' or '.join(dict.fromkeys(wants))}, found {_show(found)}"
            if isinstance(found, str):
                line += _did_you_mean(found, _choices(self.model, loc))
            self.lines.append(line + self._origin(dotted))

    def error(self, where: str) -> UsageError:
        """All lines as one error."""
        lines = list(dict.fromkeys(self.lines))
        what = lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} mistakes", *lines])
        return UsageError(
            "GL0102", what, where=where, hint="glint cat NAME shows a recipe that is right"
        )

    def _location(self, loc: tuple[int | str, ...], missing: bool) -> tuple[str, ...]:
        """Drop the names of union members that pydantic adds behind the real path."""
        here: Any = self.data
        path: list[str] = []
        for key in loc:
            inside = isinstance(here, dict) and key in here
            if inside or (isinstance(here, list) and isinstance(key, int)):
                here = here[key]
                path.append(str(key))
            elif missing and key == loc[-1]:
                return (*path, str(key))
            else:
                break
        return tuple(path)

    def _nearest_key(self, loc: tuple[str, ...]) -> str:
        inside = _table(self.model, loc[:-1])
        siblings = [] if inside is None else list(inside.model_fields)
        near = difflib.get_close_matches(loc[-1], siblings, n=1)
        if near:
            return f", did you mean {'.'.join((*loc[:-1], near[0]))}?"
        everywhere = list(_leaves(self.model))
        same = [path for path in everywhere if path.rsplit(".", 1)[-1] == loc[-1]]
        near = same or difflib.get_close_matches(".".join(loc), everywhere, n=1)
        if near:
            return f", did you mean {near[0]}?"
        return f", known here: {', '.join(siblings)}" if siblings else ""

    def _why_missing(self, loc: tuple[str, ...]) -> str:
        given = _look(self.data, loc[:-1])
        unknown = (
            [key for key in given if key not in self.model.model_fields]
            if isinstance(given, dict) and len(loc) == 1
            else []
        )
        return _did_you_mean(loc[-1], unknown, "did you write it as {}?")

    def _origin(self, dotted: str) -> str:
        return " (from --set)" if dotted in self.overridden else ""


def _wanted(error: ErrorDetails) -> str:
    """What pydantic expected, in words."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "literal_error":
        return f"one of {context['expected'].replace(chr(39), chr(34))}"
    if kind in _WORDS:
        return _WORDS[kind]
    for key, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
        if key in context:
            return f"a number {sign} {context[key]}"
    if kind == "string_too_short":
        return "text that is not empty"
    return error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


_WORDS = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text in quotes",
    "list_type": "an array",
    "tuple_type": "an array",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_TYPES: dict[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text in quotes",
    list: "an array",
    tuple: "an array",
    dict: "a table",
}


def _expected(model: type[Table], loc: Sequence[str]) -> str:
    """Name the type of a field in words."""
    annotation = _field(model, loc)
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(json.dumps(choice) for choice in typing.get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return f"a table [{'.'.join(loc)}]"
    return _TYPES.get(typing.get_origin(annotation) or annotation, "a value")


def _field(model: type[Table], loc: Sequence[str]) -> object:
    """The annotation of a field by its path; None where there is no such field."""
    inside = _table(model, loc[:-1])
    field = None if inside is None else inside.model_fields.get(loc[-1])
    return None if field is None else field.annotation


def _table(model: type[Table], loc: Sequence[str]) -> type[Table] | None:
    """The table class at a path; None where the path leaves the known tables."""
    here: type[Table] = model
    for key in loc:
        field = here.model_fields.get(key)
        inner = None if field is None else _table_class(field.annotation)
        if inner is None:
            return None
        here = inner
    return here


def _table_class(annotation: object) -> type[Table] | None:
    members = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    for member in members:
        if isinstance(member, type) and issubclass(member, Table):
            return member
    return None


def _is_union(annotation: object) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _leaves(model: type[Table], prefix: str = "") -> Iterator[str]:
    """Every dotted path of a value in `model`."""
    for name, field in model.model_fields.items():
        inner = _table_class(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from _leaves(inner, f"{prefix}{name}.")


def _choices(model: type[Table], loc: Sequence[str]) -> list[str]:
    annotation = _field(model, loc)
    literal = typing.get_origin(annotation) is typing.Literal
    return [str(choice) for choice in typing.get_args(annotation)] if literal else []


def _value(raw: str, annotation: object) -> object:
    """Read an override's value: TOML where it is TOML, else the bare string."""
    try:
        read = tomllib.loads(f"value = {raw}")
    except (ValueError, RecursionError):
        return _plain_number(raw) if annotation is float else raw
    value = read.get("value")
    bare = len(read) != 1 or isinstance(value, (datetime.date, datetime.time))
    return raw if bare or (annotation is str and not isinstance(value, str)) else value


def _plain_number(raw: str) -> float | str:
    """Read .5 and 1. as people type them; TOML wants 0.5 and 1.0."""
    try:
        return float(raw)
    except ValueError:
        return raw


def _look(data: object, loc: Sequence[str]) -> object:
    for key in loc:
        data = data[int(key)] if isinstance(data, list) else typing.cast(Any, data)[key]
    return data


def _show(value: object) -> str:
    """Show a value that was found, in TOML, shortened."""
    if isinstance(value, dict):
        return "a table"
    text = _toml(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _did_you_mean(found: str, known: Sequence[str], text: str = "did you mean {}?") -> str:
    near = difflib.get_close_matches(found, known, n=1)
    return ", " + text.format(json.dumps(near[0])) if near else ""


def _join(loc: Sequence[str]) -> str:
    return ".".join(loc) + ": " if loc else ""


def _unjson(value: object) -> dict[str, str]:
    return {"TOML date or time": str(value)}  # a table where no field expects one: refused


def _write(data: Mapping[str, object], path: tuple[str, ...], lines: list[str]) -> None:
    """Append the TOML lines of a table: values first, then its tables."""
    inner = {key: value for key, value in data.items() if isinstance(value, Mapping)}
    values = {
        key: value
        for key, value in data.items()
        if value is not None and not isinstance(value, Mapping)
    }
    if path and (values or not inner):
        lines += ["", "[" + ".".join(map(_key, path)) + "]"]
    lines += [f"{_key(key)} = {_toml(value)}" for key, value in values.items()]
    for key, table in inner.items():
        _write(table, (*path, key), lines)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _text(key)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml(value: object) -> str:
    """Write one value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return repr(value) if isinstance(value, (int, float)) else str(value)
