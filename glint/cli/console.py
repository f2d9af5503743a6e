"""What a command shows: a result on stdout, everything else on stderr, and the exit code."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

import typer
from typer.core import TyperGroup

from glint import log
from glint.cli import complete
from glint.errors import BudgetError, GlintError, UsageError
from glint.log import Progress
from glint.results import Result, to_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from glint.results.models import Error
    from glint.review.local import Local
    from glint.shards.dataset import Dataset

PAGES = ("text", "job")  # fields that hold many lines
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)  # errors that only a disk has

Answer = TypeVar("Answer", bound=Result | None)

JSON = typer.Option(False, "--json", help="Print one JSON object on stdout (docs/results.md).")
DEBUG = typer.Option(False, "--debug", help="Print the stack trace of an error.")
DRY_RUN = typer.Option(False, "--dry-run", help="Print what would be done; write nothing.")
WORKERS = typer.Option(0, help="Processes; 0 = one per core. The output does not depend on it.")
STAGING = typer.Option(None, help="Where shards wait for upload to a store; default: the cache.")
SET = typer.Option(
    [], "--set", metavar="KEY=VALUE", help="Change a value of the recipe, e.g. optim.lr=0.05."
)
DATASET = typer.Argument(
    ...,
    metavar="DATASET",
    autocompletion=complete.datasets,
    help="A dataset: a folder, or a URL such as s3://bucket/name.",
)
OUT = typer.Argument(
    ...,
    metavar="OUT",
    help="The dataset: a new folder or URL, or an unfinished one to continue.",
)
RECIPE = typer.Argument(
    ...,
    metavar="RECIPE",
    autocompletion=complete.train_recipes,
    help="A recipe: a .toml file or a name from `glint ls`.",
)
LOCAL_DATASET = typer.Argument(
    ..., metavar="DATASET", autocompletion=complete.datasets, help="A dataset: a folder."
)


class Group(TyperGroup):
    """A group whose help has a whole line for each command, under headings where there are any."""

    headings: ClassVar[dict[str, tuple[str, ...]]] = {}

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the first clause of what each command says of itself: it is never cut."""
        seen = {name: one for name, one in self.commands.items() if not one.hidden}
        width = max(map(len, seen), default=0)
        for title, names in (self.headings or {"Commands": tuple(seen)}).items():
            rows = [(f"{name:<{width}}", first(seen[name].help or "")) for name in names]
            with formatter.section(title):
                formatter.write_dl(rows)


def first(text: str) -> str:
    """Return the first clause of a docstring: up to a semicolon or the end of the sentence."""
    return re.split(r"[;.](?:\s|$)", text, maxsplit=1)[0]


class Bare(Group):
    """A group with a default subcommand: `glint dedup-conflicts DATASET` is `find`."""

    bare = "find"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default before arguments that name no subcommand."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = [self.bare, *args]
        return super().parse_args(ctx, args)


def poor(data: Dataset, folder: str | None, least: str | None) -> npt.NDArray[np.bool_] | None:
    """Return which images --quality and --min-quality leave out, None without them.

    Raises UsageError where one is given without the other.
    """
    if folder is None and least is None:
        return None
    if folder is None or least is None:
        missing = "--quality" if folder is None else "--min-quality"
        other = "--min-quality" if folder is None else "--quality"
        raise UsageError("GL0002", f"goes with {missing}", where=other)
    from glint.pipelines import quality

    return quality.below(path(folder, "--quality"), data, least)


def serve(server: Local) -> None:
    """Serve until Ctrl-C. A signal handler, as a KeyboardInterrupt may be swallowed."""

    def stop(number: int, frame: object) -> None:
        threading.Thread(target=server.shutdown, daemon=True).start()

    before = signal.signal(signal.SIGINT, stop)
    try:
        server.serve_forever()
    finally:
        signal.signal(signal.SIGINT, before)


def path(text: str, option: str) -> Path:
    """Turn an option's text into a local path. Raises UsageError for a URL.

    And for "", or it would mean ".".
    """
    from glint.files import store

    if not text:
        raise UsageError("GL0002", "expected a path, found an empty string", where=option)
    store.refuse(text, f"{option} must be a local path")
    return Path(text)


def local(text: str) -> Path:
    """Parse an argument that must be a local path. Raises typer.BadParameter for a URL or ""."""
    try:
        return path(text, "it")
    except UsageError as error:
        raise typer.BadParameter(f"{error.what} ({error.where})") from None


def place(text: str, option: str) -> Path | str:
    """Turn an option's text into a path, or leave it a URL. Raises UsageError."""
    from glint.files import store

    return text if store.is_url(text) else path(text, option)


def quoted(path: str | Path) -> str:
    """Write a path as a shell takes it back."""
    return shlex.quote(str(path))


def count(n: int, noun: str) -> str:
    """Say how many: 1 shard, 2 shards, 3 identities."""
    ending = {"y": "ies", "s": "ses"}.get(noun[-1], f"{noun[-1]}s")
    return f"{n} {noun if n == 1 else noun[:-1] + ending}"


def tell(text: str, *, error: bool = True) -> None:
    """Print text, on stderr or stdout: all that people read of a command, foreign names in it."""
    print(log.plain(text), file=sys.stderr if error else sys.stdout, flush=error)


def single_lines(value: Any) -> Any:
    """Return a result whose texts are a line each: a foreign name begins no line of its own."""
    if isinstance(value, str):
        return value.replace("\n", "\\n")
    if is_dataclass(value) and not isinstance(value, type):
        held = {one.name: getattr(value, one.name) for one in fields(value) if one.init}
        return replace(value, **{k: v if k in PAGES else single_lines(v) for k, v in held.items()})
    if isinstance(value, list | tuple):
        return type(value)(map(single_lines, value))
    if isinstance(value, dict):
        return {single_lines(k): single_lines(v) for k, v in value.items()}
    return value


def print_json(answer: Result) -> None:
    """Print the one JSON object of a command."""
    print(json.dumps(to_json(answer)))


def failure(error: GlintError) -> Error:
    """Return what `--json` prints for an error."""
    from glint.results.models import Error

    return Error(
        error=error.code,
        slug=error.slug,
        what=error.what,
        where=error.where,
        hint=error.hint,
        exit=error.exit_code,
    )


def fail(error: GlintError) -> NoReturn:
    """Print an error as people read it and leave with its exit code."""
    tell(re.sub(r"\n(?!  )", r"\\n", f"error {error}"))  # of several mistakes, lines are indented
    if error.hint:
        tell(f"hint: {error.hint}")
    raise SystemExit(error.exit_code)


def run(
    work: Callable[[], Answer],
    as_json: bool,
    *,
    debug: bool = False,
    say: Callable[[Answer], str] | None = None,
) -> None:
    """Do `work` and print its result: as JSON, or as the text that `say` makes of it.

    An error goes to stderr and, with JSON, to stdout too: there is one object whatever happens.
    """
    log.set_up()
    try:
        try:
            result = work()
        except OSError as error:
            if not debug and error.errno in DISK:  # of a call that nobody named
                from glint.files.atomic import disk_error

                raise disk_error(error, error.filename or "") from None
            if debug or error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
                raise
            name = str(error.filename)
            raise UsageError(
                "GL0002",
                f"the path cannot be used: {error.strerror}",
                where=name if len(name) <= 80 else f"{name[:60]}... ({len(name)} characters)",
            ) from None
    except GlintError as error:
        if as_json:
            over: Any = isinstance(error, BudgetError) and error.result
            print_json(over or failure(error))
        if debug:
            traceback.print_exception(error)
        fail(error)
    except KeyboardInterrupt:
        tell("interrupted")
        raise SystemExit(130) from None
    if as_json and result is not None:
        print_json(result)
    elif say is not None:
        tell(say(single_lines(result)), error=False)


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A progress bar on a terminal; elsewhere one line every 30 seconds; both on stderr."""
    if sys.stderr.isatty() and not os.environ.get("CI"):
        from tqdm import tqdm

        with tqdm(desc=title, dynamic_ncols=True, file=sys.stderr) as bar:

            def show(done: int, total: int, note: str = "") -> None:
                bar.total, bar.initial = total, bar.initial if bar.n else done
                bar.set_postfix_str(log.plain(note), refresh=False)
                bar.update(done - bar.n)

            yield show
        return
    last = time.monotonic()
    first: tuple[float, int] | None = None  # what was done when work began: a run may go on

    def line(done: int, total: int, note: str = "") -> None:
        nonlocal last, first
        now = time.monotonic()
        first = first or (now, done)
        if now - last >= 30:
            last = now
            rate = (done - first[1]) / (now - first[0]) if now > first[0] else 0.0
            left = f" ETA {timedelta(seconds=round((total - done) / rate))}" if rate else ""
            tell(f"{title} {done}/{total} {note}".rstrip() + left)

    yield line


QUALITY: str | None = typer.Option(
    None, "--quality", metavar="FOLDER", help="From `glint quality`, for --min-quality."
)
MIN_QUALITY: str | None = typer.Option(
    None, "--min-quality", metavar="LEAST", help="Leave out images below: a number, or 5% of all."
)
OUTPUT: str = typer.Option("", metavar="NAME", help="ONNX with several outputs: the one to take.")
MEAN: float | None = typer.Option(
    None, "--mean", help="ONNX: subtract this from pixels 0..255, whatever the file says."
)
STD: float | None = typer.Option(None, "--std", help="ONNX: divide pixels by this then.")
BGR: bool = typer.Option(False, "--bgr", help="ONNX: the model takes blue before red.")
