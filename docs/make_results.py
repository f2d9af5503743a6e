"""Write docs/results.md from the dataclasses of glint/results."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAD = """\
# What `--json` prints

For people whose programs read what commands print. Made from the dataclasses in
`glint/results/` by `make docs`; a test compares the two.

Every command prints one JSON object on stdout with `--json`. Its `schema` names one of the tables
below; where a schema has several, each is a form of the answer. A key marked "not always" is left
out where it does not apply. Types are Python's; `None` is JSON's `null`. Tables without a schema
are parts of others.
"""


def page() -> str:
    """Return docs/results.md as text."""
    lines = [HEAD]
    for name in ("datasets", "identities", "models", "bench"):
        source = (ROOT / "glint" / "results" / f"{name}.py").read_text(encoding="utf-8")
        tree = ast.parse(source)
        lines.append(f"## {(ast.get_docstring(tree) or '').rstrip('.')}\n")
        found = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        parents = {ast.unparse(base) for node in found.values() for base in node.bases}
        for node in found.values():
            if node.name not in parents or "SCHEMA" in ast.unparse(node):
                lines += _table(node, found, source.splitlines())
    return "\n".join(lines).rstrip("\n") + "\n"


def _table(node: ast.ClassDef, found: dict[str, ast.ClassDef], text: list[str]) -> list[str]:
    schema, meaning = f"part `{node.name}`", _comment(text[node.lineno - 1])
    rows = []
    for part in [*(found[ast.unparse(base)] for base in node.bases), node]:
        for one in part.body:
            if not isinstance(one, ast.AnnAssign):
                continue
            key, said = ast.unparse(one.target), _comment(text[(one.end_lineno or 0) - 1])
            value = "" if one.value is None else ast.unparse(one.value)
            if key == "SCHEMA":
                schema, meaning = f"`{ast.literal_eval(value)}`", said
                continue
            renamed = re.search(r"'key': '([\w-]+)'", value)
            said = f"not always; {said}".rstrip("; ") if value == "None" else said
            kind = ast.unparse(one.annotation)
            kind = kind.removesuffix(" | None") if value == "None" else kind
            kind = kind.replace("|", "\\|")
            rows.append(f"| `{renamed[1] if renamed else key}` | `{kind}` | {said} |")
    head = f"### {schema}: {meaning}" if meaning else f"### {schema}"
    return [head, "", "| key | type | meaning |", "|---|---|---|", *rows, ""]


def _comment(line: str) -> str:
    return line.partition("  # ")[2]


if __name__ == "__main__":
    (ROOT / "docs" / "results.md").write_text(page(), encoding="utf-8")
