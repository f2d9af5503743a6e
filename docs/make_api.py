"""Write the signatures of docs/api.md from the code; what stands between is written by hand."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import glint

API = Path(__file__).parent / "api.md"
MADE = re.compile(r"^## `(\w+)`\n\n```text\n.*?^```\n", re.MULTILINE | re.DOTALL)
# methods of the public classes that are promised, too
METHODS = {
    "PartialFC": "forward update drop optimizer sharded state_rows load_rows statistics",
    "Stream": "batches loader view set_epoch state_dict load_state_dict",
    "Dataset": "__getitem__ read rows_of",
    "ClassPool": "parts forward update drop",
    "ClassQueue": "parts forward update drop",
}


def signature(found: Any, name: str) -> str:
    """Return a call as it is written, one argument a line where it is long."""
    call = inspect.signature(found, eval_str=False)
    parts, star = [], False
    for one in call.parameters.values():
        if one.name == "self":
            continue
        if one.kind is one.KEYWORD_ONLY and not star:
            parts, star = [*parts, "*"], True
        kind = {one.VAR_KEYWORD: "**", one.VAR_POSITIONAL: "*"}.get(one.kind, "")
        annotation = one.annotation
        text = annotation if isinstance(annotation, str) else _named(annotation)
        value = "" if one.default is one.empty else f" = {_value(one.default)}"
        parts.append(f"{kind}{one.name}: {text}{value}")
    back = call.return_annotation
    if isinstance(found, type) or back in (call.empty, None, "None"):
        end = ")"
    else:
        end = f") -> {back}"
    short = f"{name}({', '.join(parts)}{end}"
    if len(short) <= 96:
        return short
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), end])


def _named(annotation: Any) -> str:
    found = getattr(annotation, "__forward_arg__", None) or getattr(annotation, "__name__", "")
    return str(found or annotation)


def _value(default: Any) -> str:
    if inspect.isfunction(default):
        return str(default.__name__)
    return type(default).__name__ + "()" if hasattr(default, "given") else repr(default)


def block(name: str) -> str:
    """Return the heading and the made part of one name: signature, then what it says of itself."""
    found = getattr(glint, name)
    lines = [signature(found, name), "", inspect.getdoc(found) or ""]
    if isinstance(found, type) and "__init__" in vars(found) and found.__init__.__doc__:
        lines += ["", inspect.cleandoc(found.__init__.__doc__)]
    for method in METHODS.get(name, "").split():
        one = getattr(found, method)
        said = inspect.cleandoc(one.__doc__).replace("\n", "\n    ")
        lines += ["", signature(one, f".{method}"), f"    {said}"]
    text = re.sub(r"[ \t]+$", "", "\n".join(lines), flags=re.MULTILINE)
    return f"## `{name}`\n\n```text\n{text}\n```\n"


def page() -> str:
    """Return docs/api.md as text, its made parts made again."""
    return MADE.sub(lambda found: block(found[1]), API.read_text(encoding="utf-8"))


if __name__ == "__main__":
    API.write_text(page(), encoding="utf-8")
