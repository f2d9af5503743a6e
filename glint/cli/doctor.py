"""`glint doctor`: what this machine has, and what is missing for which command."""

from __future__ import annotations

from typing import Any

import typer

from glint.cli import console as show


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(as_json: bool = show.JSON, debug: bool = show.DEBUG) -> None:
    """Say what is installed, on which machine, and what does not work."""
    found: dict[str, Any] = {}

    def look() -> dict[str, Any]:
        from glint.cli import machine

        found.update(machine.examine())
        return found

    show.run(look, "glint/doctor-result@1", as_json, debug=debug, say=_say)
    if found.get("problems"):
        raise SystemExit(6)


def _say(found: dict[str, Any]) -> str:
    ram, gib = found["ram"], 2.0**30
    lines = [
        f"glint {found['glint']}, Python {found['python']}, {found['system']}, "
        f"{found['cores']} cores, {ram['available'] / gib:.1f} of {ram['total'] / gib:.1f} GiB "
        f"RAM free, {found['disk']['free'] / gib:.1f} GiB free in {found['disk']['path']}"
    ]
    for part in found["parts"]:
        state = f"{part['version']:<14} ok" if part["works"] else f"{part['version'] or '-':<14} "
        if not part["works"]:
            state += "broken" if part["version"] else "absent"
        lines.append(f"  {part['name']:<12} {state:<22} {part['note']}".rstrip())
    lines += [f"problem: {problem}" for problem in found["problems"]]
    return "\n".join([*lines, "No problems found."] if not found["problems"] else lines)
