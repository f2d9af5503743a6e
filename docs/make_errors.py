"""Write docs/errors.md from the table of error codes."""

from __future__ import annotations

from pathlib import Path

from glint import errors

RANGES = {
    "GL00": "Usage and paths",
    "GL01": "Recipes",
    "GL02": "Sources and sharding",
    "GL03": "A dataset on disk",
    "GL04": "Models and embeddings",
    "GL05": "Conflicts and decisions",
    "GL06": "Ranks and launch",
    "GL07": "Training and checkpoints",
    "GL08": "Evaluation files",
    "GL09": "Machine resources",
}
HEAD = """\
# Errors

For people who read an error or an exit code. Made from the table in `glint/errors.py` by
`make docs`; a test compares the two.

An error is printed on stderr as

```text
error GL0213 corrupt-record: train.rec @ 0x1f3a8c0 (record 48121): expected ..., found ...
hint: what to do about it
```

Codes and slugs are stable: none is ever given a second meaning. `--debug` shows the stack trace.

With `--json` the same error is also the one object on stdout: `schema` "glint/error@1", `error`
(the code), `slug`, `what`, `where`, `hint` and `exit`. Work that went over a budget of bad records
(exit code 5) prints its result instead.

## Exit codes

| code | meaning |
|--:|---|
| 0 | Done. |
| 1 | A mistake of glint's own: please report it. |
"""


def page() -> str:
    """Return docs/errors.md as text."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    kinds = [kind for kind in kinds if issubclass(kind, errors.GlintError)]
    codes = {kind.exit_code: (kind.__doc__ or "").strip() for kind in kinds if kind.exit_code > 1}
    codes[130] = "Interrupted from the keyboard."
    lines = [HEAD + "\n".join(f"| {code} | {text} |" for code, text in sorted(codes.items()))]
    for prefix, title in RANGES.items():
        found = [code for code in sorted(errors.CODES) if code.startswith(prefix)]
        lines += ["", f"## {prefix} {title}", "", "| code | slug | meaning |", "|---|---|---|"]
        lines += [
            f"| {code} | {errors.CODES[code][0]} | {errors.CODES[code][1]} |" for code in found
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("errors.md").write_text(page(), encoding="utf-8")
