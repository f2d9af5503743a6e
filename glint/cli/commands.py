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
    "synth",
    "shard",
    "doctor",
    "train",
    "tune",
    "launch",
    "report",
    "demo",
    "embed",
    "conflicts",
    "cluster",
    "coreset",
    "labels",
    "balance",
    "plan",
    "verify",
    "reshard",
    "merge",
    "drop",
    "pack",
    "card",
)


def register(app: typer.Typer) -> None:
    """Add every command to `app`."""
    for name in MODULES:
        importlib.import_module(f"glint.cli.{name}").register(app)
