"""The `glint` command. Thin: each command's module imports what it needs inside its body."""

from __future__ import annotations

import json
import os
import sys

import typer

import glint

app = typer.Typer(
    name="glint",
    help="Train face recognition on millions of identities.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"glint {glint.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
    cache: str = typer.Option(
        "", "--cache", metavar="FOLDER", help="Where datasets of a store are cached: GLINT_CACHE."
    ),
    cache_size: str = typer.Option(
        "", "--cache-size", metavar="SIZE", help="Most bytes of shards there: GLINT_CACHE_SIZE."
    ),
) -> None:
    """Train face recognition on millions of identities."""
    for name, value in (("GLINT_CACHE", cache), ("GLINT_CACHE_SIZE", cache_size)):
        if value:
            os.environ[name] = value  # ranks and workers take it from there


def main() -> None:
    """Run the command line."""
    from glint.cli import commands

    commands.register(app)
    if "--json" not in sys.argv[1:]:
        app()
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        code = 1
    except Exception as error:  # the parser's own: its class is typer's or click's, by version
        if not hasattr(error, "format_message"):
            raise
        from glint.cli import out
        from glint.errors import UsageError

        error.show()  # type: ignore[attr-defined]
        print(json.dumps(out.told(UsageError("GL0002", error.format_message()))))
        code = 2
    raise SystemExit(code or 0)
