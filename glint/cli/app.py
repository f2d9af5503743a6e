"""The `glint` command. Thin: each command's module imports what it needs inside its body."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys

import typer

import glint
from glint.cli import commands, console


class _Root(console.Group):
    headings = commands.HEADINGS


app = typer.Typer(
    name="glint",
    cls=_Root,
    help="Train face recognition on millions of identities.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if not value:
        return
    if "--json" in sys.argv[1:]:
        from glint.results.models import Version

        version = ".".join(map(str, sys.version_info[:3]))
        console.print_json(Version(version=glint.__version__, python=version))
    else:
        typer.echo(f"glint {glint.__version__}")
    raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
    as_json: bool = typer.Option(
        False, "--json", help="With --version: as a JSON object. Else it follows the command."
    ),
    cache: str = typer.Option(
        "",
        "--cache",
        metavar="FOLDER",
        help="Where to cache datasets of a store; also GLINT_CACHE.",
    ),
    cache_size: str = typer.Option(
        "",
        "--cache-size",
        metavar="SIZE",
        help="Most bytes of shards to cache; also GLINT_CACHE_SIZE.",
    ),
) -> None:
    """Train face recognition on millions of identities."""
    if as_json:
        raise typer.BadParameter("belongs behind the command, or with --version: --json")
    for name, value in (("GLINT_CACHE", cache), ("GLINT_CACHE_SIZE", cache_size)):
        if value:
            os.environ[name] = value  # ranks and workers read it there


def main() -> None:
    """Run the command line."""
    _open_standard()
    from glint.errors import ResourceError, UsageError

    for stream in (sys.stdout, sys.stderr):  # ASCII, say: a name in another script is no error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    commands.register(app)
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except typer.Abort:
        code = 1
    except SystemExit as left:
        code = left.code
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":  # the reader of a pipe has left
            code = 128 + signal.SIGPIPE
    except BrokenPipeError:  # the same, at the flush
        _mute()
        code = 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO) or error.filename:
            raise
        _mute()
        with contextlib.suppress(OSError):
            console.fail(ResourceError("GL0901", f"the output cannot be written: {error.strerror}"))
        code = ResourceError.exit_code
    except Exception as error:  # the parser's own: its class is typer's or click's, by version
        if not hasattr(error, "format_message"):
            raise
        error.show(file := io.StringIO())  # type: ignore[attr-defined]
        console.tell(file.getvalue().rstrip("\n"))
        if "--json" in sys.argv[1:]:
            console.print_json(console.failure(UsageError("GL0002", error.format_message())))
        code = 2
    raise SystemExit(code or 0)


def _open_standard() -> None:
    """Let no file of glint's get the number of a standard stream that was closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _mute() -> None:
    """Let nothing more be written to stdout, or its flush at the end would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
