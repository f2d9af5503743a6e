"""`glint push` and `glint pull`: runs, models and datasets on a hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import console

if TYPE_CHECKING:
    from glint.results import models as results


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("push")(push)
    app.command("pull")(pull)


def push(
    source: Path = typer.Argument(
        ..., metavar="SRC", help="A run, checkpoint, .onnx file or dataset."
    ),
    repo: str = typer.Argument(..., metavar="REPO", help="OWNER/NAME."),
    public: bool = typer.Option(False, "--public", help="Let everybody read it."),
    faces: bool = typer.Option(
        False,
        "--these-faces-may-be-shared",
        help="Push a dataset: its licence and the people on it allow that.",
    ),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Upload a model or dataset to a hub; private unless said otherwise."""

    def work() -> results.Push:
        from glint.models import hub

        return hub.push(source, repo, public=public, faces=faces)

    console.run(work, as_json, debug=debug, say=_pushed)


def pull(
    repo: str = typer.Argument(..., metavar="REPO", help="OWNER/NAME or datasets/OWNER/NAME."),
    out: Path = typer.Argument(..., metavar="OUT", help="The folder to write."),
    revision: str = typer.Option("main", "--revision", help="A branch, tag or commit."),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Download a model or dataset from a hub; verify its checksums."""

    def work() -> results.Pull:
        from glint.models import hub

        return hub.pull(repo, out, revision=revision)

    console.run(work, as_json, debug=debug, say=_pulled)


def _pushed(result: results.Push) -> str:
    place = ("datasets/" if result.kind == "dataset" else "") + result.repo
    seen = "private" if result.private else "public"
    return (
        f"{place}: {console.count(result.files, 'file')}, {result.bytes / 1e6:.1f} MB, {seen}, "
        f"commit {result.commit}\nNext: glint pull {place} FOLDER"
    )


def _pulled(result: results.Pull) -> str:
    following = "verify" if result.kind == "dataset" else "eval pairs FILE.bin --model"
    return (
        f"{result.out}: {console.count(result.files, 'file')}, {result.bytes / 1e6:.1f} MB, "
        f"checksums as listed, commit {result.commit}\n"
        f"Next: glint {following} {console.quoted(result.out)}"
    )
