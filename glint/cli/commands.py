"""The list of commands. Adding one is one module in this folder and one line here."""

from __future__ import annotations

import importlib

import typer

# Each module has `register(app)`, and imports nothing heavy at its top.
MODULES: tuple[str, ...] = (
    "eval",
    "export",
    "import_",
    "recipes",
    "run",
    "synth",
    "shard",
    "align",
    "doctor",
    "train",
    "tune",
    "launch",
    "report",
    "demo",
    "embed",
    "quality",
    "conflicts",
    "cluster",
    "coreset",
    "labels",
    "look",
    "balance",
    "plan",
    "verify",
    "reshard",
    "merge",
    "drop",
    "pack",
    "bench",
    "split",
    "card",
    "hub",
)


def register(app: typer.Typer) -> None:
    """Add every command to `app`."""
    for name in MODULES:
        importlib.import_module(f"glint.cli.{name}").register(app)
