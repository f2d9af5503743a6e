"""`glint pack`: a list of pairs and its images as one verification pack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import console

if TYPE_CHECKING:
    from glint.results import models as results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("pack")(pack)


def pack(
    folder: Path = typer.Argument(
        ..., parser=console.local, metavar="SRC", help="A folder of images, or a dataset."
    ),
    pairs: Path = typer.Argument(
        ...,
        parser=console.local,
        metavar="PAIRS",
        help="A list of pairs: LFW's pairs.txt, `a b 1`.",
    ),
    out: Path = typer.Argument(..., parser=console.local, metavar="OUT", help="A new .bin file."),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Write a verification pack; `glint eval pairs` and insightface read it."""

    def work() -> results.Pack:
        from glint.errors import BusyError
        from glint.evals import lists, packs
        from glint.results import models as results

        if out.exists():
            raise BusyError("GL0004", "it is there already", where=str(out), hint="name a new file")
        chosen = lists.read_list(pairs, lists.images_of(folder))
        rows = [row for pair in zip(chosen.first.tolist(), chosen.second.tolist()) for row in pair]
        images = [chosen.images[row] for row in rows]
        packs.write_bin(out, images, chosen.same.tolist())
        odd = packs.nonsense(packs.Pairs(images, chosen.same))
        return results.Pack(
            out=str(out), pairs=len(chosen), same=int(chosen.same.sum()),
            images=len(chosen.images), warnings=[odd] if odd else [],
        )  # fmt: skip

    console.run(work, as_json, debug=debug, say=_say)


def _say(result: results.Pack) -> str:
    lines = [f"wrote        {result.out}: {console.count(result.pairs, 'pair')}, "
             f"{result.same} of one person, "
             f"of {console.count(result.images, 'image')}"]  # fmt: skip
    lines += [f"warning      {one}" for one in result.warnings]
    lines.append(f"next         glint eval pairs {console.quoted(result.out)} --model MODEL")
    return "\n".join(lines)
